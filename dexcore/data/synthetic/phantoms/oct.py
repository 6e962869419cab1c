"""OCT: a B-scan through the retina with its foveal pit."""

from itertools import pairwise

import numpy as np

from dexcore.data.synthetic.phantoms.fields import blur, camera, grid, noise, ramp
from dexcore.data.synthetic.phantoms.lesions import Lesion, stamp

# From the vitreous outwards: name, thickness as a share of the height, reflectivity, and how much of the
# thickness is left in the fovea.
_LAYERS = (
    ("nerve fibers", 0.030, 0.62, 0.0),
    ("ganglion cells", 0.038, 0.36, 0.05),
    ("inner plexiform", 0.034, 0.46, 0.10),
    ("inner nuclear", 0.032, 0.24, 0.15),
    ("outer plexiform", 0.022, 0.44, 0.35),
    ("outer nuclear", 0.062, 0.17, 1.35),
    ("limiting membrane", 0.006, 0.36, 1.0),
    ("inner segments", 0.014, 0.26, 1.1),
    ("ellipsoid zone", 0.014, 0.78, 1.0),
    ("outer segments", 0.014, 0.40, 1.2),
    ("pigment epithelium", 0.020, 0.95, 1.0),
)
_VITREOUS, _CHOROID = 0.035, 0.46
_FLUID = 0.06


def draw_oct(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Layers along bent boundaries, cysts that lift the layers above them, shadows of vessels, speckle.

    Returns:
        uint8 [size, size] and the lesions' mask, bool [size, size].
    """
    y, x = grid(size)
    boundaries, fovea = _boundaries(rng, x[0], rng.uniform(0.24, 0.40))
    _lift(boundaries, lesions, x[0])
    image = np.full((size, size), _VITREOUS, np.float32)
    reflectivity = [_VITREOUS, *(layer[2] for layer in _LAYERS), _CHOROID]
    for boundary, (above, below) in zip(boundaries, pairwise(reflectivity), strict=True):
        image += ramp(y - boundary, 0.008) * (below - above)
    epithelium = boundaries[-1]
    depth = np.maximum(y - epithelium, 0)
    vessels = 0.65 + 0.45 * ramp(noise(rng, size, 14, 28), 1.2)
    image *= np.where(depth > 0, np.exp(-rng.uniform(5, 9) * depth) * vessels, 1)
    mask = _cysts(rng, image, lesions, boundaries)
    image *= _shadows(rng, y, x, boundaries[0], fovea)
    image *= 1 + 0.10 * noise(rng, size, 5)
    return camera(_speckle(rng, image)), mask


def _boundaries(rng: np.random.Generator, x: np.ndarray, top: float) -> tuple[np.ndarray, float]:
    """Depth of the twelve boundaries at each column, [12, size], and where the fovea is."""
    fovea = rng.uniform(0.35, 0.65) if rng.random() < 0.8 else -0.4  # outside the scan
    pit = np.exp(-(((x - fovea) / rng.uniform(0.07, 0.11)) ** 2))
    scale = rng.uniform(0.9, 1.25)
    thickness = [scale * t * (1 + (left - 1) * pit) for _, t, _, left in _LAYERS]
    total = scale * sum(t for _, t, _, _ in _LAYERS)
    tilt, bend = rng.uniform(-0.10, 0.10), rng.uniform(-0.05, 0.25)
    outer = top + total + tilt * (x - 0.5) + bend * (x - 0.5) ** 2
    waves = np.interp(x, np.linspace(0, 1, 9), rng.standard_normal(9)) * 0.004
    lowest = outer + waves
    above = np.cumsum(thickness[::-1], axis=0)[::-1]
    return np.vstack([lowest - above, lowest]).astype(np.float32), fovea


def _place(lesion: Lesion) -> tuple[float, float, float]:
    """Column of the center and the two radii."""
    return 0.5 + 0.40 * lesion.u, *((0.032, 0.085) if lesion.spread else (0.026, 0.030))


def _lift(boundaries: np.ndarray, lesions: list[Lesion], x: np.ndarray) -> None:
    for lesion in lesions:
        cx, ry, rx = _place(lesion)
        bump = np.exp(-(((x - cx) / (1.3 * rx * lesion.size)) ** 2)) * (1.4 * ry * lesion.size)
        boundaries[:6] -= bump.astype(np.float32)


def _cysts(rng: np.random.Generator, image: np.ndarray, lesions: list[Lesion], boundaries: np.ndarray) -> np.ndarray:
    """Dark fluid with a bright lower edge in the outer nuclear layer: round cysts, flat irregular pools."""
    size = image.shape[0]
    mask = np.zeros(image.shape, bool)
    for lesion in lesions:
        cx, ry, rx = _place(lesion)
        column = min(max(int(cx * size), 0), size - 1)
        place = stamp(lesion, size, float(boundaries[5:7, column].mean()), cx, ry, rx)
        inside = ramp(1 - place.distance, 0.25)
        edge = np.exp(-(((place.distance - 1.1) / 0.12) ** 2)) * (place.dy > 0)
        window = image[place.window]
        window += inside * (_FLUID * rng.uniform(0.8, 1.3) - window) + 0.15 * edge
        mask[place.window] |= place.distance < 1
    return mask


def _shadows(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, surface: np.ndarray, fovea: float) -> np.ndarray:
    """Retinal vessels take the light from all that lies below them."""
    light = np.ones_like(x)
    for _ in range(rng.integers(2, 6)):
        center, width = rng.uniform(0, 1), rng.uniform(0.006, 0.016)
        if abs(center - fovea) > 0.12:  # the fovea has none
            light -= rng.uniform(0.25, 0.6) * np.exp(-(((x - center) / width) ** 2))
    return 1 + (np.maximum(light, 0.3) - 1) * ramp(y - surface - 0.03, 0.03)


def _speckle(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Interference of many scatterers: the intensity is exponential; a few averaged scans narrow it."""
    waves = rng.standard_normal((2, *image.shape), dtype=np.float32)
    waves[0] = blur(waves[0], 0.0025)
    waves[1] = blur(waves[1], 0.0025)
    speckle = np.hypot(waves[0], waves[1])
    speckle *= 1 / speckle.mean()
    strength = rng.uniform(0.35, 0.6)
    return image * (1 + strength * (speckle - 1)) + 0.03 * speckle
