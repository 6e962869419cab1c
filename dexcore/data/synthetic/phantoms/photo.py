"""Clinical photography: skin with pigmented lesions."""

import numpy as np

from dexcore.data.synthetic.phantoms.fields import blur, camera, ellipse, noise, ramp
from dexcore.data.synthetic.phantoms.lesions import Lesion, stamp
from dexcore.extras import require

# Light to dark skin (linear steps between them are drawn), RGB.
_TONES = np.array([[0.93, 0.77, 0.69], [0.86, 0.66, 0.55], [0.72, 0.51, 0.39], [0.5, 0.33, 0.24]], np.float32)
_PIGMENT = np.array([0.55, 0.75, 0.85], np.float32)  # how strongly melanin takes red, green and blue


def draw_photo(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Skin of any tone with furrows and pores; naevi (compact), irregular pigment (spread); hairs.

    Returns:
        uint8 [size, size, 3] (RGB) and the lesions' mask, bool [size, size].
    """
    tone = rng.uniform(0, 2.8)
    base = _TONES[int(tone)] + (tone % 1) * (_TONES[int(tone) + 1] - _TONES[int(tone)])
    image = base * _texture(rng, size)[..., None]
    blood = 0.05 * noise(rng, size, 6) + 0.025 * noise(rng, size, 30)
    image *= 1 - blood[..., None] * np.array([0.1, 1.0, 0.8], np.float32)
    mask = np.zeros((size, size), bool)
    for lesion in lesions:
        _pigment(rng, image, mask, lesion, size)
    _hairs(rng, image, size)
    shade = 1 - 0.18 * ellipse(size, rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7), 1.0, 1.0)
    image *= shade[..., None]
    image += 0.010 * rng.standard_normal((size, size, 1), dtype=np.float32)
    return camera(image), mask


def _texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Fine crossing furrows and pores around 1. [size, size]."""
    furrows = np.zeros((size, size), np.float32)
    for cells in ((34, 70), (70, 34)):
        furrows += 1 - ramp(np.abs(noise(rng, size, *cells)), 0.7)
    pores = ramp(noise(rng, size, 64) - 1.9, 0.5)
    return 1.02 - 0.035 * furrows - 0.08 * pores


def _pigment(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, lesion: Lesion, size: int) -> None:
    radius = 0.125 if lesion.spread else 0.052
    cy, cx = 0.5 + 0.33 * lesion.v, 0.5 + 0.33 * lesion.u
    place = stamp(lesion, size, cy, cx, radius, radius * rng.uniform(0.85, 1.15))
    if lesion.spread:
        ragged = place.distance + 0.07 * noise(rng, size, 22)[place.window]
        density = ramp(1 - ragged, rng.uniform(0.15, 0.3))
        clumps = 0.62 + 0.28 * ramp(noise(rng, size, 14)[place.window], 1.5)
        clumps -= 0.16 * (1 - ramp(np.abs(noise(rng, size, 45)[place.window]), 0.8))
        density = density * clumps * rng.uniform(1.0, 1.25)
        hue = noise(rng, size, 8)[place.window][..., None] * np.array([0.10, 0.0, -0.10], np.float32)
        absorb = _PIGMENT + np.clip(hue, -0.2, 0.2)
    else:
        ragged = place.distance
        density = ramp(1 - ragged, 0.4) * rng.uniform(0.6, 0.9)
        density = density * (1 + 0.10 * noise(rng, size, 50)[place.window])
        absorb = _PIGMENT
    image[place.window] *= np.clip(1 - density[..., None] * absorb, 0.04, 1)
    mask[place.window] |= ragged < 1


def _hairs(rng: np.random.Generator, image: np.ndarray, size: int) -> None:
    """Bent dark lines; more on some skin than on other."""
    cv2 = require("cv2", "train")
    count = int(rng.choice([0, 3, 10], p=[0.4, 0.35, 0.25]) * rng.uniform(0.6, 1.5))
    if count == 0:
        return
    lines = np.zeros((size, size), np.uint8)
    lie, t = rng.uniform(0, np.pi), np.linspace(0, 1, 14)[:, None]
    for _ in range(count):
        start, angle = rng.uniform(-0.1, 1.1, 2), lie + rng.normal(0, 0.35)
        end = start + rng.uniform(0.25, 0.7) * np.array([np.cos(angle), np.sin(angle)])
        bend = (start + end) / 2 + rng.normal(0, 0.06, 2)
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        points = np.round(curve * size * 16).astype(np.int32)  # in sixteenths of a pixel
        darkness, width = int(rng.integers(130, 235)), max(1, size // 200)
        cv2.polylines(lines, [points], False, darkness, width, cv2.LINE_AA, shift=4)
    opacity = blur(lines.astype(np.float32) / 255, 0.0022)[..., None]
    image *= 1 - opacity * 0.85
