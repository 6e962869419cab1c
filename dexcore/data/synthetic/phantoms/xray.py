"""X-ray: a chest from the front, as line integrals of its tissues on a detector."""

import numpy as np

from dexcore.data.synthetic.phantoms.fields import blur, camera, ellipse, grid, noise, ramp, strokes, walk
from dexcore.data.synthetic.phantoms.lesions import Lesion, stamp
from dexcore.extras import require

_PHOTONS = 2500.0  # in a pixel of 1/256 behind nothing
_SCATTER = 0.04  # share of the light that reaches the detector from everywhere


def draw_xray(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Trunk, lungs full of air, heart, spine, ribs, clavicles: what they take from the beam is white.

    Returns:
        uint8 [size, size] and the lesions' mask, bool [size, size].
    """
    chest = _Chest(rng, size)
    path = chest.soft_tissue() + chest.bones()
    mask = _add_lesions(rng, path, chest, lesions)
    path = blur(path, 0.0018)
    photons = _PHOTONS * (256 / size) ** 2
    beam = np.exp(-path)
    beam = (1 - _SCATTER) * beam + _SCATTER * blur(beam, 0.08)
    counts = rng.poisson(beam * photons).astype(np.float32) + 1
    attenuation = -np.log(counts / photons)
    low, high = np.percentile(attenuation[size // 16 : -size // 16, size // 16 : -size // 16], (1, 99.5))
    film = np.clip((attenuation - low) / (high - low), 0, 1)
    film = 0.04 + 0.92 * film ** rng.uniform(0.85, 1.1)
    _add_marker(rng, film)
    return camera(film), mask


class _Chest:
    """Geometry of one chest; ``x`` grows to the patient's left.

    Attributes:
        lungs: thickness of the air in them, 1 at most. [size, size].
    """

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self._rng, self._size = rng, size
        y, x = grid(size)
        self.middle = 0.5 + rng.uniform(-0.015, 0.015)
        self._y = y + 0.006 * noise(rng, size, 6)
        self._x = x - self.middle + 0.006 * noise(rng, size, 6)
        self.width = rng.uniform(0.93, 1.06)
        self._domes = [rng.uniform(0.70, 0.76), rng.uniform(0.73, 0.79)]  # tops of the diaphragm, right and left
        self.lungs = self._lungs()

    def _lungs(self) -> np.ndarray:
        lungs = []
        for side, dome in zip((-1, 1), self._domes, strict=True):
            along = self._x * side / self.width
            outer = 0.375 * np.clip(1 - ((self._y - 0.68) / 0.63) ** 2, 0, 1) ** 0.5
            outer = np.where(self._y > 0.68, 0.375, outer)
            inner = 0.060 + 0.02 * ramp(self._y - 0.45, 0.4)
            floor = dome + 1.9 * np.maximum(along - 0.13, 0) ** 2 + 0.5 * np.maximum(0.1 - along, 0) ** 2
            # Air thins out towards every border.
            depth = np.minimum(np.minimum(outer - along, along - inner), (floor - self._y) * 1.8)
            lungs.append(np.clip(depth / 0.085, 0, 1) ** 0.55)
        return np.maximum(*lungs)

    def soft_tissue(self) -> np.ndarray:
        """Attenuation of everything but bone. [size, size]."""
        rng, size, x, y = self._rng, self._size, self._x, self._y
        neck = 0.13 + 0.62 * ramp(y - 0.09, 0.18) ** 0.8
        half = np.minimum(neck, 0.56 - 0.11 * ramp(y - 0.40, 0.5)) * self.width
        trunk = np.sqrt(np.clip(1 - (x / half) ** 2, 0, 1)) ** 0.8
        path = 1.75 * trunk * (1 + 0.25 * ramp(y - 0.72, 0.25))
        path += 0.12 * noise(rng, size, 5) * trunk
        if rng.random() < 0.4:  # breasts
            for side in (-1, 1):
                shape = ellipse(size, 0.66, self.middle + side * 0.22, 0.13, 0.13)
                path += 0.22 * np.sqrt(np.clip(1 - shape, 0, 1))
        path -= 1.25 * self.lungs * trunk
        heart = ellipse(size, 0.625, self.middle + 0.085, rng.uniform(0.12, 0.14), rng.uniform(0.16, 0.20), 0.6)
        right = ellipse(size, 0.60, self.middle - 0.035, 0.13, 0.085)
        for shape in (heart, right):
            path += 0.75 * np.clip(1 - shape**2, 0, 1) ** 0.5 * self.lungs**0.5
        vessels = ellipse(size, 0.36, self.middle, 0.16, 0.058)
        path += 0.45 * np.clip(1 - vessels**2, 0, 1) ** 0.5
        knob = ellipse(size, 0.325, self.middle + 0.045, 0.042, 0.042)  # the aorta's arch
        path += 0.40 * np.clip(1 - knob**2, 0, 1) ** 0.5
        windpipe = strokes(size, [(np.array([[self.middle - 0.005, 0.02], [self.middle - 0.005, 0.33]]), 0.032)])
        path -= 0.22 * blur(windpipe, 0.006)
        path += self._vessels()
        bubble = ellipse(size, self._domes[1] + 0.055, self.middle + 0.17, 0.028, 0.055, -0.2)  # air in the stomach
        path -= rng.uniform(0.2, 0.6) * np.clip(1 - bubble, 0, 1) ** 0.5
        return path * ramp(half - np.abs(x), 0.01)

    def _vessels(self) -> np.ndarray:
        """Of the lungs, fanning out from both hila."""
        rng, lines = self._rng, []
        for side in (-1, 1):
            hilum = (self.middle + side * 0.075, 0.44 + 0.02 * side)
            for _ in range(16):
                angle = rng.uniform(-1.2, 1.45)
                angle = angle if side > 0 else np.pi - angle
                trunk = walk(rng, hilum, angle, rng.uniform(0.12, 0.28), 0.18)
                lines += [(trunk[:4], rng.uniform(0.008, 0.013)), (trunk[3:], 0.005)]
                lines.append((walk(rng, tuple(trunk[4]), angle + rng.normal(0, 0.6), 0.10, 0.15), 0.004))
        near = ellipse(self._size, 0.45, self.middle, 0.40, 0.33)
        fan = blur(strokes(self._size, lines), 0.003)
        hila = sum(
            np.exp(-(ellipse(self._size, 0.45, self.middle + side * 0.085, 0.07, 0.035) ** 2)) for side in (-1, 1)
        )
        return (0.30 * fan * np.clip(1.1 - near, 0, 1) + 0.22 * hila) * self.lungs**0.5

    def bones(self) -> np.ndarray:
        """Attenuation of spine, ribs, clavicles and shoulder blades. [size, size]."""
        rng, size, x, y = self._rng, self._size, self._x, self._y
        path = 0.42 * np.sqrt(np.clip(1 - (x / 0.040) ** 2, 0, 1)) * ramp(y, 0.01)
        discs = np.cos(2 * np.pi * y / 0.062 + rng.uniform(0, 6))
        path *= 1 - 0.22 * ramp(discs - 0.55, 0.6)
        back, front, shoulders, blades = [], [], [], []
        spacing, first, slope = rng.uniform(0.066, 0.074), rng.uniform(0.105, 0.125), rng.uniform(0.9, 1.15)
        t = np.linspace(0, 1, 24)
        for side in (-1, 1):
            for rib in range(9):
                reach = min(0.19 + 0.06 * rib, 0.39) * self.width
                top = first + spacing * rib
                # From the spine up a little, out, and down around the flank.
                across = np.sin(np.pi / 2 * np.minimum(t * 1.12, 1.0)) * (reach - 0.03) + 0.03
                down = slope * (-0.025 * np.sin(np.pi * t) + (0.07 + 0.014 * rib) * t**1.8)
                back.append((np.stack([self.middle + side * across, top + down], axis=1), 0.019))
                if rib > 0:  # back to the breastbone in front, lower than behind, into cartilage that is not seen
                    across = reach - (reach - 0.11) * t**1.3
                    end = top + down[-1] + 0.12 * slope * t
                    front.append((np.stack([self.middle + side * across, end], axis=1), 0.021))
            collar = np.stack([0.03 + 0.27 * t, 0.175 - 0.10 * t + 0.022 * np.sin(2 * np.pi * t)], axis=1)
            shoulders.append((np.array([self.middle, 0.0]) + collar * [side, 1], 0.026))
            blade = np.stack([0.34 + 0.06 * np.sin(np.pi * t), 0.11 + 0.30 * t], axis=1)
            blades.append((np.array([self.middle, 0.0]) + blade * [side * self.width, 1], 0.010))
            arm = np.stack([0.43 + 0.10 * np.sin(np.pi / 2 * t), 0.115 + 0.28 * t], axis=1)
            shoulders.append((np.array([self.middle, 0.0]) + arm * [side * self.width, 1], 0.055))
        path += _tubes(size, back, 0.30) + _tubes(size, shoulders, 0.34) + _tubes(size, blades, 0.16)
        return path + _tubes(size, front, 0.17) * ramp(0.70 - y, 0.15)


def _tubes(size: int, lines: list[tuple[np.ndarray, float]], amount: float) -> np.ndarray:
    """Hollow bones: the ray through an edge meets the most of the hard shell."""
    whole = strokes(size, lines)
    marrow = strokes(size, [(points, 0.6 * width) for points, width in lines])
    return amount * (whole - 0.4 * blur(marrow, 0.003))


def _add_lesions(rng: np.random.Generator, path: np.ndarray, chest: _Chest, lesions: list[Lesion]) -> np.ndarray:
    """Compact: round nodules. Spread: cloudy consolidations."""
    size = len(path)
    mask = np.zeros(path.shape, bool)
    for lesion in lesions:
        radius = 0.072 if lesion.spread else 0.030
        side = 1 if lesion.u > 0 else -1
        cy = 0.43 + 0.17 * lesion.v
        cx = chest.middle + chest.width * side * (0.21 + 0.065 * (2 * abs(lesion.u) - 1))
        place = stamp(lesion, size, cy, cx, radius, radius)
        if lesion.spread:
            cloud = 1 + 0.10 * noise(rng, size, 24)[place.window]
            thickness = rng.uniform(0.6, 0.8) * ramp(0.95 - place.distance, 0.6) * cloud
        else:
            thickness = rng.uniform(0.5, 0.7) * np.clip(1 - place.distance**2, 0, 1) ** 0.4
        path[place.window] += thickness
        mask[place.window] |= place.distance < 1
    return mask


def _add_marker(rng: np.random.Generator, film: np.ndarray) -> None:
    """The letter of lead that tells the side."""
    size = len(film)
    cv2 = require("cv2", "train")
    canvas = np.zeros((512, 512), np.uint8)
    left = rng.random() < 0.5
    place = (int(rng.integers(440, 470)) if left else int(rng.integers(15, 40)), int(rng.integers(30, 60)))
    cv2.putText(canvas, "L" if left else "R", place, cv2.FONT_HERSHEY_SIMPLEX, 1.1, 255, 4, cv2.LINE_AA)
    lead = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    film += lead * (0.98 - film)
