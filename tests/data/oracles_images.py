"""What independent readers say of common image files and NIfTI: OpenCV, Pillow and SimpleITK."""

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import SimpleITK
from PIL import Image

from dexcore.data.readers import Scan

SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)


def image_oracles(path: Path, scan: Scan) -> Iterator[np.ndarray]:
    """PNG, JPEG and BMP."""
    data = np.fromfile(path, np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if pixels is not None and data[0] == 0xFF:  # of JPEG, EXIF's rotation is applied under these flags alone
        pixels = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE if pixels.ndim == 2 else cv2.IMREAD_COLOR)
    if pixels is not None:
        yield over_black(_from_bgr(pixels))[None]
    yield over_black(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path)).squeeze())[None]


def tiff_oracles(path: Path, scan: Scan) -> Iterator[np.ndarray]:
    """Every page."""
    read, pages = cv2.imreadmulti(str(path), flags=cv2.IMREAD_UNCHANGED)
    if read:
        yield np.stack([over_black(_from_bgr(page)) for page in pages])
    with Image.open(path) as image:
        pages = []
        for number in range(image.n_frames):
            image.seek(number)
            pages.append(over_black(np.asarray(image)))
        yield np.stack(pages)


def nifti_oracles(path: Path, scan: Scan) -> Iterator[np.ndarray]:
    """The first volume, by SimpleITK, turned as `Scan` promises."""
    try:
        image = SimpleITK.ReadImage(path)
    except RuntimeError:
        return
    while image.GetDimension() > 3:
        image = SimpleITK.Extract(image, [*image.GetSize()[:-1], 0], [0] * image.GetDimension())
    image = SimpleITK.DICOMOrient(image, "RAS")
    assert scan.spacing is not None
    if all(math.isclose(*pair, rel_tol=1e-4) for pair in zip(scan.spacing, image.GetSpacing(), strict=True)):
        yield SimpleITK.GetArrayFromImage(image).T.astype(np.float64)


def over_black(pixels: np.ndarray) -> np.ndarray:
    """[height, width, 2 or 4] with alpha last to gray or RGB, rounded."""
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return pixels.astype(np.float64)
    values = pixels.astype(np.float64)
    values = np.floor(values[..., :-1] * values[..., -1:] / np.iinfo(pixels.dtype).max + 0.5)
    return values[..., 0] if values.shape[2] == 1 else values


def _from_bgr(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
