"""Ultrasound: a sector of a curved probe on the belly: liver, its vessels, the diaphragm."""

import math
from itertools import pairwise

import numpy as np

from dexcore.data.synthetic.phantoms.fields import camera, grid, noise, ramp, strokes, walk
from dexcore.data.synthetic.phantoms.lesions import Lesion, stamp
from dexcore.extras import require

_DYNAMIC_RANGE = 52.0  # of the display, dB
_SOFT = 0.30  # echo amplitude of liver
_FLUID = 0.004


def draw_ultrasound(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scatterers along beams, attenuation and what lies in its shadow, speckle, log compression, scan conversion.

    Returns:
        uint8 [size, size] and the lesions' mask, bool [size, size].
    """
    cv2 = require("cv2", "train")
    fan = _Fan(rng, size)
    echo, loss = _tissue(rng, fan, size)
    mask = _add_lesions(rng, echo, loss, fan, lesions)
    rows, beams = size, max(size * 3 // 4, 48)
    columns_rb, rows_rb = fan.positions(rows, beams)
    echo_rb = cv2.remap(echo, columns_rb, rows_rb, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    loss_rb = cv2.remap(loss, columns_rb, rows_rb, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # The beam adds up scatterers of random phase: short along it, wider across.
    waves = rng.standard_normal((2, rows, beams), dtype=np.float32) * np.maximum(echo_rb, 0)
    resolved = [cv2.GaussianBlur(wave, (0, 0), sigmaX=0.011 * beams, sigmaY=0.0040 * rows) for wave in waves]
    envelope = np.hypot(*resolved) * math.sqrt(4 * math.pi * 0.011 * beams * 0.0040 * rows)
    envelope *= np.exp(-np.cumsum(loss_rb, axis=0) / rows)
    envelope += 0.0015 * np.abs(rng.standard_normal(envelope.shape, dtype=np.float32))
    decibels = 20 * np.log10(envelope + 1e-6)
    shown_rb = np.clip((decibels + _DYNAMIC_RANGE - 15) / _DYNAMIC_RANGE, 0, 1)
    image = fan.scan_convert(shown_rb)
    _add_console(image)
    return camera(image), mask


class _Fan:
    """The sector on the screen: beams leave an arc around (top, 0.5) at radius ``near`` and end at ``far``.

    Attributes:
        depth: 0 at the probe, 1 at the end. [size, size].
        angle: from the vertical, -1 to 1 from edge to edge. [size, size].
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self._half = rng.uniform(0.40, 0.54)
        self._near = rng.uniform(0.18, 0.32)
        self._far = min(0.93 + self._near * math.cos(self._half), 0.485 / math.sin(self._half))
        self._top = 0.04 - self._near * math.cos(self._half)
        y, x = grid(size)
        y, x = y - self._top, x - 0.5
        self.depth = (np.sqrt(y * y + x * x) - self._near) / (self._far - self._near)
        self.angle = np.arctan2(x, y) / self._half
        self._size = size

    def place(self, depth: float, angle: float) -> tuple[float, float]:
        """(y, x) on the screen."""
        radius = self._near + depth * (self._far - self._near)
        return self._top + radius * math.cos(angle * self._half), 0.5 + radius * math.sin(angle * self._half)

    def positions(self, rows: int, beams: int) -> tuple[np.ndarray, np.ndarray]:
        """Column and row on the screen, in pixels, of each sample of each beam. [rows, beams] each."""
        radius = self._near + np.linspace(0, 1, rows, dtype=np.float32)[:, None] * (self._far - self._near)
        angle = np.linspace(-self._half, self._half, beams, dtype=np.float32)[None]
        columns, lines = 0.5 + radius * np.sin(angle), self._top + radius * np.cos(angle)
        return columns * self._size - 0.5, lines * self._size - 0.5

    def scan_convert(self, image_rb: np.ndarray) -> np.ndarray:
        """From depth by beam to the screen; black outside the sector."""
        rows, beams = image_rb.shape
        columns = (self.angle + 1) / 2 * (beams - 1)
        lines = self.depth * (rows - 1)
        cv2 = require("cv2", "train")
        return cv2.remap(image_rb, columns, lines, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def _tissue(rng: np.random.Generator, fan: _Fan, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Echo amplitude and attenuation (nepers over the whole depth). [size, size] each."""
    depth, angle = fan.depth, fan.angle
    echo = _SOFT * np.exp(0.18 * noise(rng, size, 24) + 0.25 * noise(rng, size, 6))
    wobble = 0.006 * noise(rng, size, 5)
    wall = rng.uniform(0.10, 0.16)
    layers = ((0.0, 1.6), (0.02, 0.5), (0.05, 1.3), (0.065, 0.28), (wall - 0.02, 1.9), (wall, 1.0))
    for (start, factor), (end, _) in pairwise(layers):
        inside = ramp(depth + wobble - start, 0.012) * ramp(end - depth - wobble, 0.012)
        echo = echo * (1 + inside * (factor - 1))
    # The diaphragm, a bright arc, and behind it its mirror image, dim.
    center, height = rng.uniform(-0.5, 0.5), rng.uniform(0.83, 0.93)
    arc = depth - (height - 0.10 * (angle - center) ** 2) + wobble
    echo += 2.2 * np.exp(-((arc / 0.010) ** 2)) * ramp(noise(rng, size, 8) + 0.9, 1.5)
    echo *= 1 - 0.6 * ramp(arc - 0.02, 0.02)
    lumen, walls = [], []
    for _ in range(rng.integers(2, 5)):
        y, x = fan.place(rng.uniform(0.3, 0.75), rng.uniform(-0.7, 0.7))
        line = walk(rng, (x, y), rng.uniform(0, 2 * np.pi), rng.uniform(0.16, 0.34), 0.12)
        width = rng.uniform(0.014, 0.026)
        lumen.append((line, width))
        walls.append((line, width + 0.014))
    inside = strokes(size, lumen)
    echo += 0.75 * (strokes(size, walls) - inside) * rng.uniform(0.3, 1)
    echo *= 1 - 0.96 * inside
    loss = np.full((size, size), rng.uniform(1.2, 1.9), np.float32)
    gain = 1.2 * np.exp(loss * depth * 0.8)  # time gain compensation
    return (echo * gain).astype(np.float32), loss


def _add_lesions(
    rng: np.random.Generator, echo: np.ndarray, loss: np.ndarray, fan: _Fan, lesions: list[Lesion]
) -> np.ndarray:
    """Compact: cysts, black, bright behind. Spread: irregular masses, dark gray, that cast a shadow."""
    size = len(echo)
    mask = np.zeros(echo.shape, bool)
    for lesion in lesions:
        cy, cx = fan.place(0.50 + 0.22 * lesion.v, 0.62 * lesion.u)
        radius = 0.078 if lesion.spread else 0.034
        place = stamp(lesion, size, cy, cx, radius, radius)
        inside, window = ramp(1 - place.distance, 0.12), echo[place.window]
        if lesion.spread:
            texture = np.exp(0.35 * noise(rng, size, 34)[place.window])
            window += inside * (_SOFT * rng.uniform(0.2, 0.32) * texture - window)
            loss[place.window] += 4.5 * inside
        else:
            window += inside * (_FLUID - window)
            back = np.exp(-(((place.distance - 1.06) / 0.08) ** 2)) * ramp(place.dy - 0.6, 0.4)
            window += 0.9 * back
            loss[place.window] -= 6.0 * inside
        mask[place.window] |= place.distance < 1
    return mask


def _add_console(image: np.ndarray) -> None:
    """The screen's gray wedge on the left and its depth marks on the right."""
    y, x = grid(len(image))
    wedge = (np.abs(x - 0.035) < 0.012) * ramp(0.12 - np.abs(y - 0.22), 0.003)
    image += wedge * (np.clip((0.34 - y) / 0.24, 0, 1) - image)
    marks = (np.abs((y + 0.05) % 0.1 - 0.05) < 0.0045) * (np.abs(x - 0.975) < 0.010)
    np.maximum(image, 0.6 * marks, out=image)
