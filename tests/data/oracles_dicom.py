"""What independent readers say of a DICOM file: the pixels by SimpleITK and highdicom, SUV by hand."""

import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK

from dexcore.data.readers import Scan

SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)


def dicom_oracles(path: Path, scan: Scan) -> Iterator[np.ndarray]:
    """The pixels as each reader that can read the file gives them, brought to what `Scan` promises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        for values in _independent_pixels(path, scan):
            pixels = values.astype(np.float64)
            pixels = pixels.reshape(scan.pixels.shape) if pixels.size == scan.pixels.size else pixels
            if dataset.get("Modality") == "PT":
                pixels = pixels * suv_factor(dataset)
            elif dataset.get("PhotometricInterpretation") == "MONOCHROME1":
                pixels = float(2 * np.atleast_1d(dataset.WindowCenter)[0] - 1) - pixels
            yield padding_filled(pixels, dataset)


def _independent_pixels(path: Path, scan: Scan) -> Iterator[np.ndarray]:
    try:
        image = highdicom.imread(path)
        table = "VOILUTSequence" in image and "WindowCenter" not in image
        yield image.get_frames(
            apply_real_world_transform=False,
            apply_voi_transform=table,
            voi_output_range=scan.levels if table else (0.0, 1.0),
            apply_presentation_lut=False,
        )
    except Exception:  # it refuses whatever it finds out of order
        pass
    try:
        pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(path))
    except RuntimeError:
        return
    if scan.levels == (0.0, 1.0):  # a bit, which it shows as 255
        pixels = pixels / 255.0
    elif pixels.dtype == np.uint8 and scan.pixels.dtype == np.uint16:  # of a palette it keeps the upper bytes
        pixels = pixels * 256.0
    yield pixels


def padding_filled(pixels: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Both give padding as it is stored."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int) or pixels.ndim != 3:
        return pixels
    slope, intercept = dataset.get("RescaleSlope") or 1, dataset.get("RescaleIntercept") or 0
    padding = np.isclose(pixels, value * float(slope) + float(intercept), rtol=0, atol=1e-6)
    if padding.any() and not padding.all():
        pixels[padding] = pixels[~padding].min()
    return pixels


def suv_factor(dataset: pydicom.Dataset) -> float:
    """SUV by body weight, for what the corpus holds: GML, and BQML that is corrected to the start of its series."""
    if dataset.Units == "GML":
        return 1.0
    assert (dataset.Units, dataset.DecayCorrection) == ("BQML", "START")
    (injection,) = dataset.RadiopharmaceuticalInformationSequence

    def clock(value: str) -> datetime:
        return datetime.strptime(str(value).split(".")[0], "%H%M%S")

    elapsed = (clock(dataset.SeriesTime) - clock(injection.RadiopharmaceuticalStartTime)).total_seconds()
    dose = injection.RadionuclideTotalDose * 0.5 ** (elapsed / injection.RadionuclideHalfLife)
    return float(1000 * dataset.PatientWeight / dose)
