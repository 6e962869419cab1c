"""Endoscopy: the view down the colon under the light at the camera."""

import numpy as np

from dexcore.data.phantoms.fields import blur, camera, ellipse, grid, noise, ramp
from dexcore.data.phantoms.lesions import Lesion, stamp


def draw_endoscopy(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """A tube of mucosa: folds as rings that come closer with depth, a dark lumen, vessels, wet reflections.

    Returns:
        uint8 [size, size, 3] (RGB) and the lesions' mask, bool [size, size].
    """
    cy, cx = rng.uniform(0.36, 0.64, 2)
    y, x = grid(size)
    dy, dx = y - np.float32(cy), x - np.float32(cx)
    wobble = 1 + np.float32(0.16) * noise(rng, size, 4)
    radius = np.sqrt(dy * dy + dx * dx) * wobble + np.float32(1e-3)
    angle = np.arctan2(dy, dx)
    # The wall's distance is that of a tube seen from inside, 1 / radius; folds are even along it.
    depth = np.log(radius)
    folds = rng.integers(3, 6)
    phase = depth * np.float32(rng.uniform(5.5, 8)) + np.float32(0.8) * np.sin(3 * angle + np.float32(rng.uniform(0, 6)))
    phase += np.float32(0.7) * noise(rng, size, int(folds))
    sawtooth = np.float32(0.5) + np.float32(0.5) * np.sin(phase + np.float32(0.7) * np.sin(phase))
    light = ramp(radius - np.float32(0.20), rng.uniform(0.34, 0.46)) ** np.float32(0.8)
    light *= np.float32(0.66) + np.float32(0.34) * sawtooth
    mucosa = _mucosa(rng, size)
    relief = light.copy()
    mask = _polyps(rng, mucosa, light, lesions, size)
    image = mucosa * light[..., None]
    image += _reflections(rng, size, relief, sawtooth)[..., None]
    image *= (1 - np.float32(0.55) * ramp(ellipse(size, 0.5, 0.5, 0.62, 0.62) - np.float32(0.9), 0.7))[..., None]
    image += np.float32(0.012) * rng.standard_normal((size, size, 1), dtype=np.float32)
    image *= _aperture(rng, size)[..., None]
    return camera(image), mask


def _mucosa(rng: np.random.Generator, size: int) -> np.ndarray:
    """Pink, mottled, with a net of small vessels. [size, size, 3]."""
    pink = np.array([0.93, 0.52, 0.42], np.float32) * np.array([1, *rng.uniform(0.88, 1.14, 2)], np.float32)
    mottle = 1 + np.float32(0.06) * noise(rng, size, 7) + np.float32(0.03) * noise(rng, size, 40)
    image = pink * mottle[..., None]
    for cells, width, strength in ((6, 0.10, 0.30), (13, 0.16, 0.22)):
        ridge = 1 - ramp(np.abs(noise(rng, size, cells)) - np.float32(width / 2), width)
        patchy = ramp(noise(rng, size, 5), 1.5) * np.float32(strength)
        image *= 1 - (ridge * patchy)[..., None] * np.array([0.35, 0.9, 0.8], np.float32)
    return image


def _polyps(
    rng: np.random.Generator, mucosa: np.ndarray, light: np.ndarray, lesions: list[Lesion], size: int
) -> np.ndarray:
    """Compact: domes with their own shading and a shadow around; spread: flat, pale, coarse patches."""
    mask = np.zeros((size, size), bool)
    for lesion in lesions:
        cy, cx = 0.5 + 0.33 * lesion.v, 0.5 + 0.33 * lesion.u
        radius = 0.115 if lesion.spread else 0.062
        place = stamp(lesion, size, cy, cx, radius, radius * rng.uniform(0.9, 1.2))
        inside = ramp(1 - place.distance, 0.2)
        color, shade = mucosa[place.window], light[place.window]
        if lesion.spread:
            coarse = noise(rng, size, 60)[place.window]
            pale = np.array([0.98, 0.74, 0.60], np.float32) * (1 + np.float32(0.10) * coarse)[..., None]
            color += (inside * np.float32(0.75))[..., None] * (pale - color)
            shade += inside * (np.maximum(shade, np.float32(0.45)) * np.float32(1.08) - shade)
            shade *= 1 - np.float32(0.18) * np.exp(-(((place.distance - 1.05) / 0.1) ** 2))
        else:
            red = np.array([0.92, 0.38, 0.33], np.float32)
            color += (inside * np.float32(0.7))[..., None] * (red - color)
            height = np.sqrt(np.maximum(1 - place.distance**2, 0))
            lit = np.float32(0.42) + np.float32(0.5) * height - np.float32(0.18) * (place.dy + place.dx)
            shade += inside * (np.clip(lit, 0.1, 1) - shade)
            shade *= 1 - np.float32(0.5) * np.exp(-(((place.distance - 1.12) / 0.16) ** 2)) * (place.dy + 0.4 > 0)
        mask[place.window] |= place.distance < 1
    return mask


def _reflections(rng: np.random.Generator, size: int, relief: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    """Wet spots on the sides of folds that face the light."""
    bumps = noise(rng, size, 34) + np.float32(0.8) * noise(rng, size, 12)
    spots = ramp(bumps - np.float32(2.1), 0.5) * ramp(ridge - np.float32(0.6), 0.4) * ramp(relief - np.float32(0.4), 0.3)
    return np.float32(0.9) * blur(spots, 0.003) + np.float32(0.25) * blur(spots, 0.02)


def _aperture(rng: np.random.Generator, size: int) -> np.ndarray:
    """The endoscope's frame: a circle or a square with cut corners, or none."""
    y, x = grid(size)
    kind = rng.integers(3)
    if kind == 0:
        return ramp(np.float32(1) - ellipse(size, 0.5, 0.5, 0.52, 0.52), 0.02)
    corner = np.float32(0.88 if kind == 1 else 1.1)
    return ramp(corner - np.abs(y - np.float32(0.5)) - np.abs(x - np.float32(0.5)), 0.012)
