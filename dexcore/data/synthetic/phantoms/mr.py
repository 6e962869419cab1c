"""MR: an axial slice of the head, weighted by T1 (after contrast medium), T2 or FLAIR."""

import math
from dataclasses import dataclass

import numpy as np

from dexcore.data.synthetic.phantoms.fields import blur, finer, grid, noise, ramp, shrink
from dexcore.data.synthetic.phantoms.lesions import Lesion, Stamp, stamp
from dexcore.extras import require

_FINE = 192  # the cortex is folded on at least this many pixels a side
_BRAIN = 0.80  # radius of the brain in units of the head's
_CORTEX = 0.020  # thickness, as a share of the side
_NOISE = 0.025


@dataclass(frozen=True)
class _Weighting:
    """Signal of the tissues and of the bright and dark parts of lesions."""

    white: float
    gray: float
    fluid: float
    fat: float
    bright: float
    dark: float


_WEIGHTINGS = (
    _Weighting(white=0.72, gray=0.50, fluid=0.13, fat=0.95, bright=1.05, dark=0.30),  # T1
    _Weighting(white=0.33, gray=0.50, fluid=0.95, fat=0.70, bright=0.92, dark=0.66),  # T2
    _Weighting(white=0.44, gray=0.58, fluid=0.10, fat=0.72, bright=1.0, dark=0.74),  # FLAIR
)


def draw_mr(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scalp, skull, folded cortex, white matter, ventricles; the coil's bias field; Rician noise.

    Returns:
        Signal, float32 [size, size], and the lesions' mask, bool [size, size].
    """
    fine = finer(size, _FINE)
    weighting = _WEIGHTINGS[rng.integers(len(_WEIGHTINGS))]
    head = _Head(rng, fine)
    signal = head.signal(rng, weighting)
    mask = np.zeros((size, size), bool)
    for lesion in lesions:
        _add_lesion(rng, signal, _place(lesion, fine, head), lesion.spread, weighting)
        place = _place(lesion, size, head)
        mask[place.window] |= place.distance < 1
    signal = blur(shrink(signal, size), 0.0015)
    signal *= np.exp(0.10 * noise(rng, size, 3))  # the coil's sensitivity
    channels = _NOISE * rng.standard_normal((2, size, size), dtype=np.float32)
    return np.hypot(signal + channels[0], channels[1]), mask


class _Head:
    """Shape and tissues of a head; all maps are [size, size], shares of 0 to 1.

    Attributes:
        cy, cx, ry, rx: center and half axes, as shares of the side.
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.cy, self.cx = 0.5 + rng.uniform(-0.01, 0.01), 0.5 + rng.uniform(-0.01, 0.01)
        self.ry, self.rx = rng.uniform(0.43, 0.46), rng.uniform(0.35, 0.39)
        y, x = grid(size)
        self._v = (y - self.cy) / self.ry + 0.012 * noise(rng, size, 6)
        self._u = (x - self.cx) / self.rx + 0.012 * noise(rng, size, 6)
        widened = np.abs(self._u) / (1 + 0.10 * self._v)  # the back of the head is wider
        self.radius = (np.abs(self._v) ** 2.2 + widened**2.2) ** (1 / 2.2)
        self.ventricles = self._ventricles(rng)
        sulci = self._sulci(rng)
        brain = self.radius < _BRAIN
        # The cortex follows every surface that fluid touches, but the ventricles' walls.
        cv2 = require("cv2", "train")
        inner = (brain & ~sulci).astype(np.uint8)
        depth = cv2.distanceTransform(inner, cv2.DIST_L2, 3) / size
        self.cortex = ramp(_CORTEX - depth, 0.005)
        self.fluid = np.maximum(ramp(0.0025 - depth, 0.004), self.ventricles) * (self.radius < 0.87)
        self.nuclei = self._nuclei(rng)

    def _inside(self, v: float, u: float, rv: float, ru: float, angle: float = 0.0, bow: float = 0.0) -> np.ndarray:
        """A soft ellipse, in half axes of the head, bowed to the right or to the left (negative)."""
        dv, du = self._v - v, self._u - u
        cos, sin = math.cos(angle), math.sin(angle)
        along, across = (dv * cos + du * sin) / rv, (du * cos - dv * sin) / ru
        across += bow * along * along
        return ramp(1 - np.sqrt(along * along + across * across), 0.12)

    def _ventricles(self, rng: np.random.Generator) -> np.ndarray:
        """Front and back horns of the two lateral ventricles, the third between them."""
        wide = rng.uniform(0.7, 1.4)
        parts = [self._inside(0.06, 0.0, 0.10, 0.014 * wide)]
        for side in (-1, 1):
            parts.append(self._inside(-0.20, side * 0.085, 0.17, 0.05 * wide, -side * 0.40, -side * 0.5))
            parts.append(self._inside(0.33, side * 0.20, 0.17, 0.05 * wide, side * 0.3, side * 0.9))
        return np.max(parts, axis=0)

    def _nuclei(self, rng: np.random.Generator) -> np.ndarray:
        """Gray matter in the depth: caudate, putamen, thalamus of both sides."""
        parts = []
        for side in (-1, 1):
            parts.append(self._inside(-0.20, side * 0.19, 0.11, 0.055, -side * 0.35))
            parts.append(self._inside(-0.05, side * 0.35, 0.17, 0.065, -side * 0.22))
            parts.append(self._inside(0.10, side * 0.12, 0.12, 0.085, side * 0.35))
        return np.max(parts, axis=0) * (1 - self.ventricles)

    def _sulci(self, rng: np.random.Generator) -> np.ndarray:
        """Where fluid dips between the folds, along the midline and in the Sylvian fissures. bool."""
        size = len(self.radius)
        cv2 = require("cv2", "train")
        angle = np.arctan2(self._u, self._v)
        # A texture in polar coordinates, long across the folds and short along the surface.
        texture = noise(rng, 256, 5, 54)
        columns = np.ascontiguousarray((angle / np.pi + 1) * 127.5)
        swirl = 0.05 * noise(rng, size, 12)
        rows = np.clip(self.radius + swirl, 0, 1) * 255
        columns += 6.0 * noise(rng, size, 10)
        folds = cv2.remap(texture, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        ends = 0.58 + 0.05 * noise(rng, size, 12)
        sulci = (np.abs(folds) < 0.13) & (self.radius > ends)
        straight = np.abs(self._u + 0.008 * noise(rng, size, 9))
        sulci |= (straight < 0.014) & ((self._v < -0.36) | (self._v > 0.40))
        for side in (-1, 1):
            v, tilt = rng.uniform(-0.12, 0.0), side * rng.uniform(-0.1, 0.4)
            sulci |= self._inside(v, side * 0.64, 0.022, 0.18, tilt, rng.uniform(-0.8, 0.8)) > 0.5
            sulci |= self._inside(v + 0.12, side * 0.48, 0.14, 0.016, side * rng.uniform(0, 0.3), side * 0.9) > 0.5
        return sulci

    def signal(self, rng: np.random.Generator, weighting: _Weighting) -> np.ndarray:
        """What each tissue sends. [size, size]."""
        scalp = ramp(1 - self.radius, 0.012) * weighting.fat
        scalp *= 1 - 0.45 * ramp(self.radius - 0.975, 0.015)  # skin over fat
        skull = ramp(0.925 - self.radius, 0.012)
        signal = scalp + skull * (0.05 - scalp)
        marrow = np.exp(-(((self.radius - 0.895) / 0.010) ** 2))
        signal += marrow * 0.55 * weighting.fat * ramp(noise(rng, len(signal), 9) + 0.6, 1.5)
        white = weighting.white * (1 + 0.02 * noise(rng, len(signal), 12))
        brain = white + np.maximum(self.cortex, 0.75 * self.nuclei) * (weighting.gray - white)
        brain += self.fluid * (weighting.fluid - brain)
        signal += ramp(0.86 - self.radius, 0.012) * (brain - signal)
        return signal


def _place(lesion: Lesion, size: int, head: _Head) -> Stamp:
    radius = 0.060 if lesion.spread else 0.024
    cy, cx = head.cy + 0.46 * head.ry * lesion.v, head.cx + 0.44 * head.rx * lesion.u
    return stamp(lesion, size, cy, cx, radius, radius)


def _add_lesion(
    rng: np.random.Generator, signal: np.ndarray, place: Stamp, spread: bool, weighting: _Weighting
) -> None:
    """Compact: a bright spot. Spread: a bright irregular ring around a darker core."""
    window = signal[place.window]
    inside = ramp(1 - place.distance, 0.2)
    value = np.full_like(window, weighting.bright)
    if spread:
        ragged = place.distance + 0.05 * noise(rng, len(signal), 30)[place.window]
        value += ramp(0.66 - ragged, 0.2) * (weighting.dark - value)
    window += inside * (value - window)
