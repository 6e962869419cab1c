"""Endoscopy: the view down the colon under the light at the camera."""

import math

import numpy as np

from dexcore.data.synthetic.phantoms.fields import blur, camera, ellipse, grid, noise, ramp
from dexcore.data.synthetic.phantoms.lesions import Lesion, stamp


def draw_endoscopy(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """A tube of mucosa: folds as rings that come closer with depth, a dark lumen, vessels, wet reflections.

    Returns:
        uint8 [size, size, 3] (RGB) and the lesions' mask, bool [size, size].
    """
    cy, cx = _lumen(rng, lesions)
    y, x = grid(size)
    dy, dx = y - cy, x - cx
    wobble = 1 + 0.16 * noise(rng, size, 4)
    radius = np.sqrt(dy * dy + dx * dx) * wobble + 1e-3
    angle = np.arctan2(dy, dx)
    # The wall's distance is that of a tube seen from inside, 1 / radius; folds are even along it.
    depth = np.log(radius)
    phase = rng.uniform(7, 10) * depth + 0.8 * np.sin(3 * angle + rng.uniform(0, 6))
    phase += 0.6 * noise(rng, size, int(rng.integers(3, 6)))
    ridge = 0.5 + 0.5 * np.sin(phase + 0.8 * np.sin(phase))
    light = ramp(radius - 0.17, rng.uniform(0.34, 0.44)) ** 1.2
    light *= 0.5 + 0.5 * ridge * (1.15 - 0.3 * radius)
    light += 0.15 * ramp(radius - 0.35, 0.5)  # what the walls throw back
    mucosa = _mucosa(rng, size)
    relief = light.copy()
    mask = _polyps(rng, mucosa, light, lesions, size)
    image = mucosa * light[..., None]
    image += _reflections(rng, size, relief, ridge)[..., None]
    vignette = ramp(ellipse(size, 0.5, 0.5, 0.62, 0.62) - 0.9, 0.7)
    image *= (1 - 0.55 * vignette)[..., None]
    image += 0.012 * rng.standard_normal((size, size, 1), dtype=np.float32)
    image *= _aperture(rng, size)[..., None]
    return camera(image), mask


def _lumen(rng: np.random.Generator, lesions: list[Lesion]) -> tuple[float, float]:
    """Its center, (y, x): of a few places the one farthest from the lesions, which sit on the wall."""
    centers = [_center(lesion) for lesion in lesions]
    candidates = [(rng.uniform(0.34, 0.66), rng.uniform(0.34, 0.66)) for _ in range(8)]
    return max(candidates, key=lambda place: min((math.dist(place, c) for c in centers), default=0.0))


def _center(lesion: Lesion) -> tuple[float, float]:
    return 0.5 + 0.35 * lesion.v, 0.5 + 0.35 * lesion.u


def _mucosa(rng: np.random.Generator, size: int) -> np.ndarray:
    """Pink, mottled, with a net of small vessels. [size, size, 3]."""
    pink = np.array([0.93, 0.52, 0.42], np.float32) * np.array([1, *rng.uniform(0.88, 1.14, 2)], np.float32)
    mottle = 1 + 0.06 * noise(rng, size, 7) + 0.03 * noise(rng, size, 40)
    image = pink * mottle[..., None]
    for cells, width, strength in ((6, 0.10, 0.30), (13, 0.16, 0.22)):
        ridge = 1 - ramp(np.abs(noise(rng, size, cells)) - width / 2, width)
        patchy = ramp(noise(rng, size, 5), 1.5) * strength
        image *= 1 - (ridge * patchy)[..., None] * np.array([0.35, 0.9, 0.8], np.float32)
    return image


def _polyps(
    rng: np.random.Generator, mucosa: np.ndarray, light: np.ndarray, lesions: list[Lesion], size: int
) -> np.ndarray:
    """Compact: domes with their own shading and a shadow around; spread: flat, paler, coarse patches."""
    mask = np.zeros((size, size), bool)
    for lesion in lesions:
        cy, cx = _center(lesion)
        radius = 0.115 if lesion.spread else 0.062
        place = stamp(lesion, size, cy, cx, radius, radius * rng.uniform(0.9, 1.2))
        inside = ramp(1 - place.distance, 0.35 if lesion.spread else 0.2)
        color, shade = mucosa[place.window], light[place.window]
        if lesion.spread:
            coarse = noise(rng, size, 44)[place.window]
            paler = np.array([1.0, 0.66, 0.54], np.float32) * (1 + 0.09 * coarse)[..., None]
            color += (inside * 0.65)[..., None] * (paler - color)
            shade += inside * (0.06 + 0.03 * coarse + np.maximum(0.3 - shade, 0))
        else:
            redder = np.array([0.95, 0.40, 0.34], np.float32)
            color += (inside * 0.6)[..., None] * (redder - color)
            height = np.sqrt(np.maximum(1 - place.distance**2, 0))
            lit = 0.40 + 0.5 * height - 0.16 * (place.dy + place.dx)
            # The light comes from the top left.
            cast = ramp(1.5 - np.hypot(place.dy - 0.35, place.dx - 0.35), 0.9)
            shade *= 1 - 0.45 * cast * (1 - inside)
            shade += inside * (np.clip(lit, 0.1, 1) - shade)
        mask[place.window] |= place.distance < 1
    return mask


def _reflections(rng: np.random.Generator, size: int, relief: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Wet spots on the sides of folds that face the light."""
    bumps = noise(rng, size, 34) + 0.8 * noise(rng, size, 12)
    facing = ramp(ridge - 0.6, 0.4) * ramp(relief - 0.4, 0.3)
    spots = ramp(bumps - 2.1, 0.5) * facing
    return 0.9 * blur(spots, 0.003) + 0.25 * blur(spots, 0.02)


def _aperture(rng: np.random.Generator, size: int) -> np.ndarray:
    """The endoscope's frame: a circle or a square with cut corners, or none."""
    y, x = grid(size)
    kind = rng.integers(3)
    if kind == 0:
        return ramp(1 - ellipse(size, 0.5, 0.5, 0.52, 0.52), 0.02)
    corner = 0.88 if kind == 1 else 1.1
    return ramp(corner - np.abs(y - 0.5) - np.abs(x - 0.5), 0.012)
