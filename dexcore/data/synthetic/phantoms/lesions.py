"""Lesions: the meaning that all modalities share. Each modality draws the same lesion in its own way."""

from dataclasses import dataclass

import numpy as np

from dexcore.data.synthetic.phantoms.fields import box, grid

LABELS = ("healthy", "compact x1", "compact x2", "compact x3", "spread x1", "spread x2", "spread x3")
_PER_KIND = 3
_HARMONICS = np.arange(2, 6, dtype=np.float32)
_APART = 0.7


@dataclass(frozen=True)
class Lesion:
    """One lesion in a frame of its own.

    Attributes:
        spread: large with an irregular border, else compact: small and round.
        v, u: its place, down and across, in [-1, 1] of the region that the modality allows.
        size: its radius relative to the kind's usual one, 0.75 to 1.25.
        amplitudes, phases: of the border's waves around the center.
    """

    spread: bool
    v: float
    u: float
    size: float
    amplitudes: np.ndarray
    phases: np.ndarray


def draw_lesions(rng: np.random.Generator, label: int) -> list[Lesion]:
    """The lesions of a label (an index of `LABELS`), apart from one another in u and in v."""
    if label == 0:
        return []
    spread, count = label > _PER_KIND, (label - 1) % _PER_KIND + 1
    waves = 0.15 if spread else 0.03
    jitter = 0.5 if count == 1 else 0.15
    lesions: list[Lesion] = []
    for place in range(count):
        v = rng.uniform(-1, 1)
        while lesions and abs(v - lesions[-1].v) < _APART:
            v = rng.uniform(-1, 1)
        lesion = Lesion(
            spread=spread,
            v=v,
            u=2 * (place + 0.5 + rng.uniform(-jitter, jitter)) / count - 1,
            size=rng.uniform(0.75, 1.25),
            amplitudes=waves * rng.standard_normal(len(_HARMONICS), dtype=np.float32) / (_HARMONICS / 2),
            phases=rng.uniform(0, 2 * np.pi, len(_HARMONICS)).astype(np.float32),
        )
        lesions.append(lesion)
    return lesions


@dataclass(frozen=True)
class Stamp:
    """A lesion laid on an image, in the window around it.

    Attributes:
        window: the rows and columns it touches.
        distance: in the window, 0 at the center, 1 on the border.
        dy, dx: in the window, from the center, in radii.
    """

    window: tuple[slice, slice]
    distance: np.ndarray
    dy: np.ndarray
    dx: np.ndarray


def stamp(lesion: Lesion, size: int, cy: float, cx: float, ry: float, rx: float, reach: float = 2.0) -> Stamp:
    """Lay a lesion with center (cy, cx) and radii (ry, rx), in shares of the side, on an image of ``size``.

    Args:
        reach: how far the window goes, in radii.
    """
    ry, rx = ry * lesion.size, rx * lesion.size
    rows, columns = box(size, cy, cx, ry * reach, rx * reach)
    y, x = grid(size)
    dy = (y[rows] - cy) / ry
    dx = (x[:, columns] - cx) / rx
    angle = np.arctan2(dy, dx)
    border = np.ones_like(angle)
    for harmonic, amplitude, phase in zip(_HARMONICS, lesion.amplitudes, lesion.phases, strict=True):
        border += amplitude * np.cos(harmonic * angle + phase)
    distance = np.sqrt(dy * dy + dx * dx) / np.maximum(border, 0.3)
    return Stamp((rows, columns), distance, *np.broadcast_arrays(dy, dx))
