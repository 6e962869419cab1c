"""CT: an axial slice of the abdomen (lesions in the liver) or of the chest (in the lungs), in Hounsfield units."""

import math

import numpy as np

from dexcore.data.synthetic.phantoms.fields import blur, box, finer, grid, noise, ramp, shrink, strokes, walk
from dexcore.data.synthetic.phantoms.lesions import Lesion, Stamp, stamp

_AIR, _LUNG, _FAT, _MUSCLE = -1000.0, -860.0, -100.0, 55.0
_TRABECULAR, _CORTICAL = 230.0, 650.0
_FINE = 192  # thin bone is drawn on at least this many pixels a side
_NOISE = 14.0  # standard deviation at the edge of the body; twice that in its middle
_RESOLUTION = 0.0022  # of the scanner, as the blur's sigma


def draw_ct(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Skin, fat, muscle, bones, organs after contrast medium; the table; correlated noise.

    Seen from the feet: the patient's right is on the left, the front on top.

    Returns:
        Hounsfield units, float32 [size, size], and the lesions' mask, bool [size, size].
    """
    body = _Body(rng, finer(size, _FINE))
    if rng.random() < 0.6:
        body.add_abdomen()
        add, place = _add_liver_lesion, _in_liver
    else:
        body.add_chest()
        add, place = _add_lung_lesion, _in_lungs
    mask = np.zeros((size, size), bool)
    for lesion in lesions:
        add(rng, body, place(lesion, body, body.size), lesion.spread)
        marked = place(lesion, body, size)
        mask[marked.window] |= marked.distance < 1
    body.add_bones()
    _add_table(body)
    hu = blur(shrink(body.hu, size), _RESOLUTION)
    grain = blur(rng.standard_normal(hu.shape, dtype=np.float32), 0.0015)
    grain -= blur(grain, 0.008)  # filtered back-projection leaves little low-frequency noise
    depth = np.clip(1.2 - shrink(body.radius, size), 0.1, 1)
    return hu + grain * (_NOISE * (1 + depth) / float(grain.std())), mask


class _Body:
    """A slice in the making.

    Attributes:
        hu: [size, size].
        cy, cx, ry, rx: center and half axes of the body, as shares of the side.
        radius: 1 on the skin, 0 in the middle. [size, size].
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size = rng, size
        self.cy, self.cx = 0.48 + rng.uniform(-0.015, 0.015), 0.5 + rng.uniform(-0.015, 0.015)
        self.ry, self.rx = rng.uniform(0.29, 0.34), rng.uniform(0.42, 0.46)
        # Organs are ellipses in coordinates that a smooth field bends.
        y, x = grid(size)
        self._bend = 0.014 * noise(rng, size, 7), 0.014 * noise(rng, size, 7)
        dy, dx = (y - self.cy) / self.ry, (x - self.cx) / self.rx
        dy = dy * (1 + 0.12 * (dy > 0))  # the back is flatter
        self.radius = (np.abs(dy) ** 2.3 + np.abs(dx) ** 2.3) ** (1 / 2.3) + 0.3 * self._bend[0]
        self.hu = np.full((size, size), _AIR, np.float32)
        self._skin = ramp(1 - self.radius, 0.015)
        self._fill(self._skin, 0.0)
        self._fill(ramp(0.975 - self.radius, 0.015), _FAT)
        self._wall = 0.975 - rng.uniform(0.07, 0.17)  # inside of the fat
        self._fill(ramp(self._wall - self.radius, 0.015), _MUSCLE)
        self.cavity = ramp(self._wall - 0.075 - self.radius, 0.015)
        self._fill(self.cavity, _FAT)

    def organ(self, v: float, u: float, rv: float, ru: float, angle: float = 0.0, edge: float = 0.06) -> np.ndarray:
        """Share of each pixel inside an ellipse; place and radii in half axes of the body, slightly varied."""
        v, u = v + self.rng.uniform(-0.02, 0.02), u + self.rng.uniform(-0.02, 0.02)
        rv, ru = rv * self.rng.uniform(0.92, 1.08) * self.ry, ru * self.rng.uniform(0.92, 1.08) * self.rx
        cy, cx = self.cy + v * self.ry, self.cx + u * self.rx
        reach = max(rv, ru) + 0.06
        place = box(self.size, cy, cx, reach, reach)
        y, x = grid(self.size)
        y, x = y[place[0]] - cy + self._bend[0][place], x[:, place[1]] - cx + self._bend[1][place]
        cos, sin = math.cos(angle), math.sin(angle)
        along, across = (y * cos + x * sin) / rv, (x * cos - y * sin) / ru
        inside = np.zeros((self.size, self.size), np.float32)
        inside[place] = ramp(1 - np.sqrt(along * along + across * across), edge)
        inside[place] *= self._skin[place]
        return inside

    def _fill(self, inside: np.ndarray, hu: float) -> None:
        self.hu += inside * (hu - self.hu)

    def add_abdomen(self) -> None:
        """Liver, stomach with its gas, spleen, kidneys, pancreas, bowel, the great vessels."""
        rng = self.rng
        back = [self.organ(0.72, side * 0.27, 0.24, 0.22) for side in (-1, 1)]
        self._add_bowel()
        stomach = self.organ(-0.38, 0.38, 0.34, 0.30, -0.4) * self.cavity
        self._fill(stomach, 75)
        inside = self.organ(-0.38, 0.38, 0.28, 0.25, -0.4) * stomach
        self._fill(inside, rng.uniform(0, 40))
        y, _ = grid(self.size)
        level = self.cy - rng.uniform(0.38, 0.55) * self.ry
        self._fill(inside * ramp(level - y, 0.006), -900)  # gas rises to the front
        self._fill(self.organ(0.22, 0.66, 0.36, 0.15, 0.35) * self.cavity, rng.uniform(105, 135))  # spleen
        self._fill(self.organ(0.02, 0.12, 0.085, 0.30, -0.2) * self.cavity, 90)  # pancreas
        liver = np.maximum(self.organ(-0.08, -0.45, 0.64, 0.36, 0.1), self.organ(-0.45, -0.12, 0.24, 0.38, 0.25))
        liver = liver * self.cavity
        self._fill(liver, rng.uniform(105, 135))
        trunk = (self.cx - 0.16 * self.rx, self.cy - 0.02 * self.ry)
        veins = [(walk(rng, trunk, rng.uniform(2.2, 4.2), 0.22, 0.25), rng.uniform(0.006, 0.012)) for _ in range(6)]
        self.hu += 45 * blur(strokes(self.size, veins), 0.002) * liver
        for inside in back:
            self._fill(inside, _MUSCLE)
        for side in (-1, 1):
            tilt = side * rng.uniform(0.2, 0.5)
            self._fill(self.organ(0.44, side * 0.43, 0.25, 0.155, tilt), rng.uniform(165, 205))  # kidney
            self._fill(self.organ(0.44, side * 0.42, 0.16, 0.085, tilt, 0.3), 120)
            self._fill(self.organ(0.43, side * 0.39, 0.09, 0.06, tilt, 0.3), -40)  # fat of its sinus
            self._fill(self.organ(0.50, side * 0.22, 0.13, 0.08), _MUSCLE)  # psoas
        self._fill(self.organ(0.20, -0.17, 0.07, 0.075), 140)  # vena cava
        self._fill(self.organ(0.22, 0.07, 0.075, 0.058), rng.uniform(170, 230))  # aorta

    def _add_bowel(self) -> None:
        rng = self.rng
        for _ in range(rng.integers(5, 10)):
            v, u = rng.uniform(-0.45, 0.2), rng.uniform(0.0, 0.62)
            radius = rng.uniform(0.07, 0.12)
            self._fill(self.organ(v, u, radius * 1.35, radius) * self.cavity, 70)
            content = rng.choice([15.0, 45.0, -700.0], p=[0.4, 0.35, 0.25])
            self._fill(self.organ(v, u, radius * 0.95, radius * 0.7) * self.cavity, float(content))

    def add_chest(self) -> None:
        """Lungs with their vessels, heart and aorta, muscle of the back."""
        rng = self.rng
        for side in (-1, 1):
            self._fill(self.organ(0.55, side * 0.72, 0.42, 0.13, side * 0.5), _MUSCLE)  # shoulder muscle
            self._fill(self.organ(0.76, side * 0.25, 0.18, 0.22), _MUSCLE)
        sides = [self.organ(0.0, side * 0.42, 0.72, 0.33, side * 0.12) for side in (-1, 1)]
        lungs = np.maximum(*sides) * self.cavity
        self._fill(self.organ(0.0, 0.0, 0.6, 0.2), _FAT)
        self._fill(lungs, _LUNG)
        hilum = [(self.cx + side * 0.16 * self.rx, self.cy + 0.05 * self.ry) for side in (-1, 1)]
        vessels = [
            (walk(rng, hilum[k % 2], rng.uniform(-1.3, 1.3) + (k % 2 == 0) * np.pi, rng.uniform(0.1, 0.2), 0.25), w)
            for k, w in enumerate(rng.uniform(0.003, 0.010, 26))
        ]
        self.hu += 800 * strokes(self.size, vessels) * lungs
        dots = ramp(noise(rng, self.size, 60) - 2.0, 0.6) * lungs  # vessels that cross the slice
        self.hu += 700 * dots
        heart = self.organ(-0.22, 0.14, 0.42, 0.34, 0.5)
        self._fill(heart, 60)
        self._fill(self.organ(-0.34, 0.02, 0.20, 0.15, 0.4, 0.15), rng.uniform(150, 210))  # blood of its chambers
        self._fill(self.organ(-0.16, 0.24, 0.19, 0.15, 0.4, 0.15), rng.uniform(150, 210))
        self._fill(self.organ(0.30, 0.16, 0.105, 0.075), rng.uniform(160, 220))  # descending aorta
        self._fill(self.organ(0.22, 0.03, 0.05, 0.04), 40)  # esophagus
        self._fill(self.organ(-0.80, 0.0, 0.055, 0.12), _TRABECULAR)  # sternum

    def add_bones(self) -> None:
        """A vertebra around its canal, and ribs cut obliquely along the body's wall."""
        for v, u, rv, ru, angle in (
            (0.45, 0.0, 0.155, 0.135, 0.0),
            (0.64, 0.11, 0.14, 0.035, -0.5),
            (0.64, -0.11, 0.14, 0.035, 0.5),
            (0.66, 0.17, 0.04, 0.12, -0.35),
            (0.66, -0.17, 0.04, 0.12, 0.35),
            (0.84, 0.0, 0.13, 0.028, 0.0),
        ):
            self._bone(v, u, rv, ru, angle)
        self._fill(self.organ(0.655, 0.0, 0.062, 0.065), 30)  # the spinal cord's canal
        middle = self._wall - 0.04
        turn = self.rng.uniform(0, 0.25)
        for side in (-1, 1):
            for angle in np.arange(-1.2, 1.1, 0.38) + turn:
                v, u = middle * math.sin(angle), side * middle * math.cos(angle)
                v /= 1 + 0.12 * (v > 0)
                along = math.atan2(self.ry * v, self.rx * abs(u)) * side
                self._bone(v, u, 0.13, 0.026, -along * 0.9)

    def _bone(self, v: float, u: float, rv: float, ru: float, angle: float) -> None:
        """A hard shell around softer marrow."""
        distance = 1.25 - 0.5 * self.organ(v, u, rv, ru, angle, edge=0.5)  # from the center, 1 on the border
        self._fill(ramp(1 - distance, 0.06), _CORTICAL)
        self._fill(ramp(0.82 - distance, 0.1), _TRABECULAR)


def _add_table(body: _Body) -> None:
    y, x = grid(body.size)
    top = body.cy + 0.96 * body.ry + 0.012 - 0.25 * (x - body.cx) ** 2
    shell = np.exp(-(((y - top) / 0.006) ** 2)) + np.exp(-(((y - top - 0.055) / 0.006) ** 2))
    within = ramp(0.36 - np.abs(x - body.cx), 0.01) * (body.radius > 1)
    np.maximum(body.hu, _AIR + 1250 * within * np.minimum(shell, 1), out=body.hu)


def _in_liver(lesion: Lesion, body: _Body, size: int) -> Stamp:
    radius = 0.066 if lesion.spread else 0.032
    cy, cx = body.cy + (-0.06 + 0.36 * lesion.v) * body.ry, body.cx + (-0.46 + 0.25 * lesion.u) * body.rx
    return stamp(lesion, size, cy, cx, radius, radius)


def _add_liver_lesion(rng: np.random.Generator, body: _Body, place: Stamp, spread: bool) -> None:
    """Both take up contrast medium early: compact ones all over, spread ones in a ring around a dead core."""
    inside, hu = ramp(1 - place.distance, 0.15), body.hu[place.window]
    if spread:
        texture = 12 * noise(rng, body.size, 40)[place.window]
        core = ramp(0.72 - place.distance, 0.3)
        hu += inside * (210 - core * rng.uniform(180, 210) + texture - hu)
    else:
        hu += inside * (rng.uniform(230, 270) - hu)


def _in_lungs(lesion: Lesion, body: _Body, size: int) -> Stamp:
    radius = 0.064 if lesion.spread else 0.028
    side = 1 if lesion.u > 0 else -1
    cy = body.cy + (0.02 + 0.42 * lesion.v) * body.ry
    middle, reach = (0.58, 0.07) if side > 0 else (0.47, 0.12)  # the heart takes the left lung's inner half
    cx = body.cx + side * (middle + reach * (2 * abs(lesion.u) - 1)) * body.rx
    return stamp(lesion, size, cy, cx, radius, radius)


def _add_lung_lesion(rng: np.random.Generator, body: _Body, place: Stamp, spread: bool) -> None:
    """Compact: round nodules. Spread: ragged consolidations with air in them."""
    inside, hu = ramp(1 - place.distance, 0.15), body.hu[place.window]
    if spread:
        bubbles = ramp(noise(rng, body.size, 44)[place.window] - 0.9, 0.4)
        inside = ramp(1 - place.distance, 0.3) * (1 - 0.9 * bubbles)
    hu += inside * np.maximum(rng.uniform(20, 60) - hu, 0)
