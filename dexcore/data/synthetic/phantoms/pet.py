"""PET: a coronal slice of whole-body FDG uptake, in SUV."""

import numpy as np

from dexcore.data.synthetic.phantoms.fields import blur, ellipse, grid, noise, ramp
from dexcore.data.synthetic.phantoms.lesions import Lesion, stamp

_EDGE = 0.02
_RESOLUTION = 0.0065  # of the scanner, as the blur's sigma: some 5 mm of 80 cm
_COUNTS = 60.0  # an SUV of 1 is this many counts in a pixel of 1/256


def draw_pet(rng: np.random.Generator, lesions: list[Lesion], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Uptake of body and organs, lesions as hot spots, the scanner's blur, Poisson noise of its counts.

    Returns:
        SUV, float32 [size, size], and the lesions' mask, bool [size, size].
    """
    width = rng.uniform(0.85, 1.15)
    middle = 0.5 + rng.uniform(-0.02, 0.02)
    suv = _body(rng, size, middle, width)
    _add_organs(rng, suv, size, middle, width)
    mask = np.zeros((size, size), bool)
    for lesion in lesions:
        radius = 0.038 if lesion.spread else 0.016
        place = stamp(lesion, size, 0.46 + 0.23 * lesion.v, middle + 0.10 * width * lesion.u, radius, radius)
        uptake = rng.uniform(5, 9) if lesion.spread else rng.uniform(8, 14)
        profile = ramp(1 - place.distance, 0.5)
        if lesion.spread:  # a tumour's core dies and takes up less
            profile *= 1 - 0.6 * ramp(0.5 - place.distance, 0.5)
        suv[place.window] = np.maximum(suv[place.window], uptake * profile)
        mask[place.window] |= place.distance < 1
    suv = blur(suv, _RESOLUTION)
    counts = _COUNTS * (256 / size) ** 2
    # Reconstruction correlates the noise over the resolution, which takes most of its amplitude.
    noisy = suv + (rng.poisson(suv * counts).astype(np.float32) / counts - suv) * 2
    return np.maximum(blur(noisy, _RESOLUTION * 0.6), 0), mask


def _body(rng: np.random.Generator, size: int, middle: float, width: float) -> np.ndarray:
    """Head, trunk, arms and thighs of soft tissue."""
    y, x = grid(size)
    # Half the trunk's width down the body: neck, shoulders, chest, waist, hips.
    levels = [0.16, 0.22, 0.27, 0.40, 0.55, 0.68, 0.80]
    widths = [0.040, 0.050, 0.155, 0.150, 0.125, 0.150, 0.150]
    half = np.interp(y[:, 0], levels, np.array(widths) * width, left=0, right=0).astype(np.float32)[:, None]
    inside = ramp(half - np.abs(x - middle), _EDGE) * (half > 0)
    inside = np.maximum(inside, ramp(1 - ellipse(size, 0.115, middle, 0.085, 0.058), 0.3))
    spread = rng.uniform(0.0, 0.03)
    for side in (-1, 1):
        shoulder = middle + side * (0.185 * width + spread)
        arm = ellipse(size, 0.50, shoulder, 0.24, 0.028, side * rng.uniform(-0.14, 0))
        leg = ellipse(size, 0.90, middle + side * 0.075 * width, 0.17, 0.066 * width)
        inside = np.maximum(inside, np.maximum(ramp(1 - arm, 0.5), ramp(1 - leg, 0.3)))
    return inside * (rng.uniform(0.6, 0.9) * (1 + 0.18 * noise(rng, size, 24)))


def _add_organs(rng: np.random.Generator, suv: np.ndarray, size: int, middle: float, width: float) -> None:
    def put(cy: float, cx: float, ry: float, rx: float, uptake: float, angle: float = 0.0, share: float = 1.0) -> None:
        """Replace the uptake inside an ellipse; ``cx`` from the midline, to the image's right."""
        cy, cx = cy + rng.uniform(-0.008, 0.008), middle + width * (cx + rng.uniform(-0.006, 0.006))
        ry, rx = ry * rng.uniform(0.9, 1.1), rx * width * rng.uniform(0.9, 1.1)
        inside = ramp(1 - ellipse(size, cy, cx, ry, rx, angle), 0.35) * share
        suv[...] += inside * (uptake - suv)

    put(0.100, 0.0, 0.055, 0.046, rng.uniform(6, 10))  # brain, with its darker middle
    put(0.105, 0.0, 0.020, 0.014, 3.0)
    for side in (-1, 1):
        put(0.375, side * 0.078, 0.095, 0.048, rng.uniform(0.25, 0.45))  # lungs
    put(0.340, 0.0, 0.09, 0.022, rng.uniform(1.3, 1.8))  # mediastinum
    put(0.500, -0.060, 0.055, 0.072, rng.uniform(1.8, 2.6), 0.25)  # liver: the patient's right is on the left
    put(0.490, 0.100, 0.035, 0.022, rng.uniform(1.5, 2.1))  # spleen
    heart = rng.uniform(4, 8) if rng.random() < 0.5 else 1.8  # the fed heart burns sugar, the fasting one fat
    put(0.415, 0.042, 0.040, 0.034, heart, -0.6)
    put(0.415, 0.044, 0.020, 0.015, 1.6, -0.6)  # its blood
    if rng.random() < 0.75:  # in slices towards the back
        for side in (-1, 1):
            put(0.575, side * 0.068, 0.036, 0.018, rng.uniform(3, 7), side * 0.2)  # kidneys
    put(0.62, 0.0, 0.19, 0.014, rng.uniform(1.1, 1.7), share=0.7)  # marrow of the spine
    belly = ramp(1 - ellipse(size, 0.655, middle, 0.075, 0.10 * width), 0.3)
    suv += belly * ramp(noise(rng, size, 20) - 1, 0.8) * rng.uniform(0.5, 2.5)  # bowel
    put(0.775, 0.0, 0.024, 0.030, rng.uniform(8, 18))  # bladder
