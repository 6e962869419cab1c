"""Pathology: a section of a glandular mucosa stained with hematoxylin and eosin, some 250 micrometers wide."""

import math

import numpy as np

from dexcore.data.synthetic.phantoms.fields import blur, box, camera, finer, grid, noise, ramp, shrink
from dexcore.data.synthetic.phantoms.lesions import Lesion, Stamp, stamp
from dexcore.extras import require

# Optical density of the stains in red, green and blue, as is usual for color deconvolution.
_HEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
_EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
_NUCLEUS = 0.012  # half axis of a healthy one, as a share of the side
_FINE = 256  # nuclei are drawn on at least this many pixels a side


def draw_pathology(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Glands in stroma; nests of crowded dark nuclei (compact), wide sheets of them (spread); two stains absorb.

    Returns:
        uint8 [size, size, 3] (RGB) and the lesions' mask, bool [size, size].
    """
    fine = finer(size, _FINE)
    tumor = _tumor(lesions, fine)
    section = _Section(rng, fine, tumor)
    strength = rng.uniform(0.85, 1.15, 2)  # no two laboratories stain alike
    density = section.hematoxylin[..., None] * (_HEMATOXYLIN * np.float32(strength[0])) + section.eosin[..., None] * (
        _EOSIN * np.float32(strength[1])
    )
    image = shrink(np.exp(-density), size) * np.array([0.97, 0.95, 0.97], np.float32)
    image += 0.010 * rng.standard_normal((size, size, 3), dtype=np.float32)
    mask = np.zeros((size, size), bool)
    for lesion in lesions:
        place = _place(lesion, size)
        mask[place.window] |= place.distance < 1
    return camera(image), mask


def _place(lesion: Lesion, size: int) -> Stamp:
    radius = 0.108 if lesion.spread else 0.056
    return stamp(lesion, size, 0.5 + 0.33 * lesion.v, 0.5 + 0.33 * lesion.u, radius, radius)


def _tumor(lesions: list[Lesion], size: int) -> np.ndarray:
    """Share of each pixel inside a lesion. [size, size]."""
    tumor = np.zeros((size, size), np.float32)
    for lesion in lesions:
        place = _place(lesion, size)
        tumor[place.window] = np.maximum(tumor[place.window], ramp(1 - place.distance, 0.12))
    return tumor


class _Section:
    """The tissue on the slide.

    Attributes:
        hematoxylin, eosin: how much of each stain lies in a pixel. [size, size].
    """

    def __init__(self, rng: np.random.Generator, size: int, tumor: np.ndarray) -> None:
        self._rng, self._size, self._tumor = rng, size, tumor
        self._canvas = np.zeros((size, size), np.uint8)
        self._grain = float(rng.uniform(0, np.pi))  # how the stroma's fibers run
        self.eosin = self._stroma()
        self._glands()
        pale = 0.34 + 0.05 * noise(rng, size, 60)
        self.eosin += tumor * (pale - self.eosin)
        self._stroma_nuclei()
        self._tumor_nuclei()
        nuclei = blur(self._canvas.astype(np.float32) / 255, 0.0012)
        chromatin = 1 + 0.22 * noise(rng, size, 150)
        haze = 0.05 + 0.16 * tumor  # RNA in the cells' bodies
        self.hematoxylin = np.maximum(1.25 * nuclei * chromatin + haze * (self.eosin > 0.08), 0)
        self.eosin = np.maximum(self.eosin * (1 - 0.45 * nuclei), 0.01)

    def _stroma(self) -> np.ndarray:
        """Wavy fibers along the grain, with clefts between them. [size, size]."""
        rng, size = self._rng, self._size
        y, x = grid(size)
        across = (x - 0.5) * math.sin(self._grain) - (y - 0.5) * math.cos(self._grain)
        phase = across * rng.uniform(170, 240) + 2.2 * noise(rng, size, 5) + 1.1 * noise(rng, size, 22)
        fibers = np.sin(phase) * ramp(noise(rng, size, 10) + 0.4, 1.5)
        clefts = ramp(fibers + noise(rng, size, 26) - 1.9, 0.5)
        return (0.46 + 0.10 * fibers + 0.07 * noise(rng, size, 12)) * (1 - 0.9 * clefts)

    def _glands(self) -> None:
        """Rings of columnar cells around an empty lumen, their nuclei at the outer side."""
        rng, size = self._rng, self._size
        wobble = 0.09 * noise(rng, size, 14)
        row = float(rng.uniform(0.25, 0.36))
        for cy in np.arange(rng.uniform(-0.1, 0.15), 1.15, row):
            for cx in np.arange(rng.uniform(-0.1, 0.15), 1.15, row):
                ry, rx = rng.uniform(0.085, 0.125, 2)
                center = float(cy + rng.uniform(-0.05, 0.05)), float(cx + rng.uniform(-0.05, 0.05))
                if rng.random() < 0.18:
                    continue
                place = box(size, *center, ry * 1.5, rx * 1.5)
                y, x = grid(size)
                inside = np.hypot((y[place[0]] - center[0]) / ry, (x[:, place[1]] - center[1]) / rx) + wobble[place]
                eosin = self.eosin[place]
                apical = ramp(0.78 - inside, 0.3)  # mucus takes no stain
                eosin += ramp(1 - inside, 0.06) * (0.42 - 0.22 * apical - eosin)
                eosin += ramp(0.38 - inside, 0.06) * (0.015 - eosin)
                count = int(2 * np.pi * (ry + rx) / 2 / 0.021)
                for angle in np.linspace(0, 2 * np.pi, count, endpoint=False):
                    out = 0.80 + rng.normal(0, 0.035)
                    v, u = center[0] + out * ry * math.sin(angle), center[1] + out * rx * math.cos(angle)
                    self._nucleus(v, u, 1.25, 0.72, math.atan2(ry * math.sin(angle), rx * math.cos(angle)), 165)

    def _stroma_nuclei(self) -> None:
        """Spindles along the grain, and round dark lymphocytes in swarms."""
        rng = self._rng
        places = self._scatter(0.052)
        swarms = self._at(noise(rng, self._size, 5), places) > 0.7
        free = (
            (self._at(self.eosin, places) > 0.25)
            & (self._at(self._tumor, places) < 0.05)
            & (self._at(self._canvas, places) == 0)
        )
        for (v, u), swarm in zip(places[free], swarms[free], strict=True):
            if swarm:
                self._nucleus(v, u, 0.72, 0.70, 0.0, 225)
            elif rng.random() < 0.6:
                self._nucleus(v, u, 1.5, 0.42, self._grain + rng.normal(0, 0.25), 170)

    def _tumor_nuclei(self) -> None:
        """Large, crowded, of all shapes, over whatever was there."""
        rng = self._rng
        self._canvas[self._tumor > 0.5] = 0
        places = self._scatter(0.026)
        for v, u in places[self._at(self._tumor, places) > 0.6]:
            long, round_ = rng.uniform(0.95, 1.35), rng.uniform(0.7, 1)
            self._nucleus(v, u, long, long * round_, rng.uniform(0, np.pi), int(rng.integers(185, 255)))

    def _scatter(self, spacing: float) -> np.ndarray:
        """Places (y, x) all over the section, some ``spacing`` apart. [n, 2]."""
        along = np.arange(spacing / 2, 1, spacing)
        places = np.stack(np.meshgrid(along, along, indexing="ij"), axis=-1).reshape(-1, 2)
        return np.clip(places + self._rng.uniform(-0.36, 0.36, places.shape) * spacing, 0, 1)

    def _at(self, field: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The field's values in the pixels of the places. [n]."""
        rows, columns = np.minimum((places * self._size).astype(int), self._size - 1).T
        return field[rows, columns]

    def _nucleus(self, v: float, u: float, along: float, across: float, angle: float, dark: int) -> None:
        """An ellipse; half axes in units of `_NUCLEUS`."""
        cv2 = require("cv2", "train")
        sixteenths = 16 * self._size
        center = round(u * sixteenths), round(v * sixteenths)
        axes = round(along * _NUCLEUS * sixteenths), round(across * _NUCLEUS * sixteenths)
        cv2.ellipse(self._canvas, center, axes, math.degrees(angle), 0, 360, dark, -1, cv2.LINE_AA, shift=4)
