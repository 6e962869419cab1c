"""Fundus: a color photograph of the retina through the pupil."""

import math

import numpy as np

from dexcore.data.synthetic.phantoms.fields import blur, camera, ellipse, grid, noise, ramp, strokes, walk
from dexcore.data.synthetic.phantoms.lesions import Lesion, stamp

_FIELD = 0.475  # radius of what the camera sees
_BLOOD = np.array([0.30, 0.85, 0.95], np.float32)  # how strongly blood takes red, green and blue


def draw_fundus(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Choroid's glow, optic disc, macula, arcades of vessels; dark hemorrhages (compact), bright exudates (spread).

    Returns:
        uint8 [size, size, 3] (RGB) and the lesions' mask, bool [size, size].
    """
    nasal = -1 if rng.random() < 0.5 else 1  # the disc's side: left in a left eye's picture, right in a right eye's
    disc = 0.5 + rng.uniform(-0.03, 0.03), 0.5 + nasal * rng.uniform(0.26, 0.31)
    macula = disc[0] + rng.uniform(0.01, 0.04), disc[1] - nasal * 0.29
    image = _background(rng, size, macula)
    _add_disc(rng, image, size, disc)
    arteries, veins = _arcades(rng, disc, nasal)
    for lines, strength in ((veins, 0.62), (arteries, 0.40)):
        cover = blur(strokes(size, lines), 0.0015)
        image *= 1 - strength * cover[..., None] * _BLOOD
    mask = np.zeros((size, size), bool)
    for lesion in lesions:
        _add_lesion(rng, image, mask, lesion)
    y, x = grid(size)
    from_middle = np.hypot(y - 0.5, x - 0.5)
    light = ellipse(size, 0.5 + rng.uniform(-0.1, 0.1), 0.5 + rng.uniform(-0.1, 0.1), 0.5, 0.5)
    image *= (1.06 - 0.32 * light**2)[..., None]
    image += np.array([0.05, 0.03, 0.02], np.float32) * ramp(from_middle - 0.9 * _FIELD, 0.1)[..., None]  # haze
    image += 0.010 * rng.standard_normal((size, size, 3), dtype=np.float32)
    field = ramp(_FIELD - from_middle, 0.008)
    if rng.random() < 0.4:  # cut above and below by a wide sensor
        field = field * ramp(0.42 - np.abs(y - 0.5), 0.006)
    return camera(image * field[..., None]), mask


def _background(rng: np.random.Generator, size: int, macula: tuple[float, float]) -> np.ndarray:
    """Orange of pigment over the choroid, darker at the macula. [size, size, 3]."""
    base = np.array([0.80, 0.36, 0.16], np.float32) * np.array([rng.uniform(0.85, 1.1), *rng.uniform(0.75, 1.2, 2)])
    glow = 0.06 * noise(rng, size, 6) + 0.025 * noise(rng, size, 24)
    stripes = ramp(np.abs(noise(rng, size, 14)) - 0.25, 0.4) - 0.5  # choroidal vessels that shine through
    glow = glow + rng.uniform(0.02, 0.09) * stripes
    image = base.astype(np.float32) * (1 + glow[..., None] * np.array([0.5, 1.1, 1.0], np.float32))
    spot = np.exp(-(ellipse(size, *macula, 0.085, 0.085) ** 2)) + 0.9 * np.exp(
        -(ellipse(size, *macula, 0.025, 0.025) ** 2)
    )
    return image * (1 - 0.26 * spot[..., None] * np.array([0.7, 1.0, 0.9], np.float32))


def _add_disc(rng: np.random.Generator, image: np.ndarray, size: int, disc: tuple[float, float]) -> None:
    radius = rng.uniform(0.066, 0.080)
    shape = ellipse(size, *disc, radius * 1.06, radius)
    cup = ellipse(size, *disc, radius * rng.uniform(0.35, 0.6), radius * rng.uniform(0.35, 0.6))
    halo = np.exp(-((shape / 1.7) ** 2))[..., None]
    image += 0.16 * halo * np.array([0.8, 0.7, 0.3], np.float32)
    rim = np.array([0.98, 0.70, 0.36], np.float32)
    image += ramp(1 - shape, 0.16)[..., None] * (rim - image)
    image += (ramp(1 - cup, 0.5) * 0.75)[..., None] * (np.array([1.0, 0.90, 0.64], np.float32) - image)


_Lines = list[tuple[np.ndarray, float]]


def _arcades(rng: np.random.Generator, disc: tuple[float, float], nasal: int) -> tuple[_Lines, _Lines]:
    """Arteries and veins: above and below the macula in wide arcs, and short ones to the nasal side."""
    trees: tuple[_Lines, _Lines] = ([], [])
    for lines, width, offset in ((trees[0], 0.0085, 0.0), (trees[1], 0.0125, 0.16)):
        for side in (-1, 1):
            start = disc[0] + 0.012 * side, disc[1] + rng.uniform(-0.012, 0.012)
            reach = rng.uniform(0.205, 0.26) - 0.25 * offset * rng.uniform(0.3, 1)
            t = np.linspace(0, 1, 20)
            x = start[1] - nasal * 0.72 * t**1.25
            y = start[0] + side * reach * np.sin(0.88 * np.pi * t**0.62) * (1 - 0.2 * t)
            y = y + 0.006 * np.sin(t * rng.uniform(14, 24) + rng.uniform(0, 6)) * t
            arc = np.stack([x, y], axis=1)
            _taper(lines, arc, width)
            for number, place in enumerate(rng.integers(4, 17, 5)):
                dx, dy = arc[place + 1] - arc[place]
                outwards = -side * nasal  # the turn that leads away from the macula
                inside = number >= 3
                turn = rng.uniform(0.4, 0.9) * (-outwards if inside else outwards)
                start_xy = float(arc[place, 0]), float(arc[place, 1])
                _branch(
                    rng,
                    lines,
                    start_xy,
                    math.atan2(dy, dx) + turn,
                    width * (0.4 if inside else 0.6),
                    0 if inside else 2,
                )
            heading = math.atan2(side * rng.uniform(0.5, 1.4), nasal)
            _branch(rng, lines, (start[1], start[0]), heading, width * 0.7, 2)
    return trees


def _branch(
    rng: np.random.Generator, lines: _Lines, start: tuple[float, float], angle: float, width: float, forks: int
) -> None:
    line = walk(rng, start, angle, rng.uniform(0.10, 0.22), 0.14)
    _taper(lines, line, width)
    if forks == 0:
        return
    end = line[-1] - line[-2]
    heading = math.atan2(end[1], end[0])
    for turn in (-0.45, 0.4):
        _branch(rng, lines, (line[-1][0], line[-1][1]), heading + turn * rng.uniform(0.6, 1.2), width * 0.66, forks - 1)


def _taper(lines: _Lines, line: np.ndarray, width: float) -> None:
    """Split a vessel in pieces that get thinner to 70 %."""
    quarter = -(-len(line) // 4)
    for number, start in enumerate(range(0, len(line) - 1, quarter)):
        lines.append((line[start : start + quarter + 1], width * (1 - 0.1 * number)))


def _add_lesion(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, lesion: Lesion) -> None:
    size = len(image)
    radius = 0.068 if lesion.spread else 0.029
    cy, cx = 0.5 + 0.25 * lesion.v, 0.5 + 0.25 * lesion.u
    place = stamp(lesion, size, cy, cx, radius, radius)
    window = image[place.window]
    if lesion.spread:
        crumbs = ramp(noise(rng, size, 46)[place.window] + 0.9, 0.8)
        cover = ramp(1 - place.distance, 0.25) * (0.25 + 0.75 * crumbs) * rng.uniform(0.75, 0.95)
        window += cover[..., None] * (np.array([0.97, 0.83, 0.45], np.float32) - window)
    else:
        cover = ramp(1 - place.distance, 0.3) * rng.uniform(0.65, 0.85)
        window *= 1 - cover[..., None] * np.array([0.55, 0.90, 0.85], np.float32)
    mask[place.window] |= place.distance < 1
