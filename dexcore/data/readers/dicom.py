"""DICOM files: single images, colour, palettes, multi-frame, compressed or not."""

import os
import zlib
from typing import Any, BinaryIO

import numpy as np

from dexcore.data.readers.codestream import codestream_size
from dexcore.data.readers.scan import MAX_INFLATED_BYTES, RefusedError, Scan, check_size, make_finite
from dexcore.extras import require

_DEFLATED = "1.2.840.10008.1.2.1.99"
_KEYWORDS = (
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "BodyPartExamined",
    "Manufacturer",
)
# Their values are measures (Hounsfield units, activity): MONOCHROME1 changes how they are shown alone.
_QUANTITATIVE = {"CT", "PT"}


def read_dicom(path: str | os.PathLike[str], every: int = 1) -> Scan:
    """Read one DICOM file.

    Gray values are rescaled (slope and intercept, or the modality LUT). MONOCHROME1 (white is small) is
    turned over between the levels, except for CT and PET. Padding becomes the smallest value that is no
    padding. Palettes and YBR become RGB. Overlays are not drawn, also those hidden in the pixels' unused
    bits. The levels are the file's first window, else what its stored bits can hold; those of a palette or of
    RGB are what their bits can hold.

    Args:
        path: the file.
        every: read one frame in this many.

    Returns:
        A scan of layout "frames": float32 [frames, height, width], or RGB as the file's unsigned integers.

    Raises:
        RefusedError: the file holds no image, or lies about its size, or is over a limit.
        Exception: pydicom and its decoders raise many more on broken files.
    """
    pydicom = require("pydicom", "data")
    with open(path, "rb") as file:
        _refuse_bomb(pydicom, file)
        file.seek(0)
        dataset = pydicom.dcmread(file)
        if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise RefusedError("a DICOM file without pixel data")
        total = int(dataset.get("NumberOfFrames") or 1)
        indices = list(range(0, total, every))
        check_size(int(dataset.Rows), int(dataset.Columns), len(indices), int(dataset.SamplesPerPixel))
        _check_codestreams(pydicom, dataset, indices, total)
        stored = np.stack(list(pydicom.pixels.iter_pixels(dataset, indices=indices)))
    metadata = {key: str(dataset[key].value) for key in _KEYWORDS if dataset.get(key)}
    if dataset.SamplesPerPixel == 3:
        pixels, levels = stored, _range_of(stored.dtype)
    elif dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = pydicom.pixels.apply_color_lut(stored, dataset)[..., :3]
        levels = _range_of(pixels.dtype)
    else:
        pixels, levels = _gray(pydicom, dataset, stored, indices)
    return Scan(make_finite(pixels), "frames", levels, tuple(indices), metadata)


def _range_of(dtype: np.dtype) -> tuple[float, float] | None:
    return (0.0, float(np.iinfo(dtype).max)) if np.issubdtype(dtype, np.unsignedinteger) else None


def _refuse_bomb(pydicom: Any, file: BinaryIO) -> None:
    """Inflate a deflated data set piece by piece up to the limit: pydicom would inflate all of it at once."""
    filereader = pydicom.filereader
    filereader.read_preamble(file, force=False)
    meta = filereader.read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID") != _DEFLATED:
        return
    inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
    data = file.read()
    while data and not inflater.eof:
        inflated += len(inflater.decompress(data, 1 << 20))
        if inflated > MAX_INFLATED_BYTES:
            raise RefusedError(f"a deflated data set of more than {MAX_INFLATED_BYTES} bytes")
        data = inflater.unconsumed_tail


def _check_codestreams(pydicom: Any, dataset: Any, indices: list[int], total: int) -> None:
    """Compare the size in each compressed frame with the header's: decoders take memory for the former."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    wanted = set(indices)
    for index, frame in enumerate(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=total)):
        size = codestream_size(frame) if index in wanted else None
        if size is not None and size != (dataset.Rows, dataset.Columns):
            raise RefusedError(
                f"frame {index} is compressed at {size[0]} x {size[1]} pixels, "
                f"its header says {dataset.Rows} x {dataset.Columns}"
            )


def _gray(
    pydicom: Any, dataset: Any, stored: np.ndarray, indices: list[int]
) -> tuple[np.ndarray, tuple[float, float] | None]:
    padding = _padding(dataset, stored)
    if _has_embedded_overlay(dataset):
        stored = stored & stored.dtype.type((1 << int(dataset.BitsStored)) - 1)
    levels: tuple[float, float] | None
    if "ModalityLUTSequence" in dataset:
        pixels = pydicom.pixels.apply_modality_lut(stored, dataset).astype(np.float32)
        levels = None
    else:
        slopes, intercepts = zip(*(_rescale(dataset, index) for index in indices), strict=True)
        slope, intercept = np.array([slopes, intercepts], np.float32)[..., None, None]
        pixels = stored.astype(np.float32) * slope + intercept
        levels = _stored_levels(dataset, slopes[0], intercepts[0])
    levels = _window(dataset) or levels
    if dataset.PhotometricInterpretation == "MONOCHROME1" and dataset.get("Modality") not in _QUANTITATIVE:
        low, high = levels or (float(pixels.min()), float(pixels.max()))
        pixels = np.float32(low + high) - pixels
    if padding is not None and padding.any() and not padding.all():
        pixels[padding] = pixels[~padding].min()
    return pixels, levels


def _padding(dataset: Any, stored: np.ndarray) -> np.ndarray | None:
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int) or not np.issubdtype(stored.dtype, np.integer):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    limit = limit if isinstance(limit, int) else value
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def _has_embedded_overlay(dataset: Any) -> bool:
    """Retired, but met: an overlay in the bits above the stored ones, whose group names a bit position."""
    if dataset.get("PixelRepresentation") != 0:  # in signed values those bits are the sign
        return False
    positions = (dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2))
    return any(element is not None and element.value for element in positions)


def _rescale(dataset: Any, index: int) -> tuple[float, float]:
    """Slope and intercept of a frame: at the top, or in the functional groups of an enhanced file."""
    places = [dataset, *dataset.get("SharedFunctionalGroupsSequence", [])]
    places += dataset.get("PerFrameFunctionalGroupsSequence", [])[index : index + 1]
    for place in reversed(places):
        for item in [place, *place.get("PixelValueTransformationSequence", [])]:
            slope, intercept = item.get("RescaleSlope"), item.get("RescaleIntercept")
            if slope is not None or intercept is not None:
                # A missing or zero slope is a writer's fault: the values stay as they are.
                return float(slope or 1), float(intercept or 0)
    return 1.0, 0.0


def _stored_levels(dataset: Any, slope: float, intercept: float) -> tuple[float, float] | None:
    bits = dataset.get("BitsStored")
    if "PixelData" not in dataset or not bits:
        return None
    low = -(1 << (bits - 1)) if dataset.PixelRepresentation else 0
    ends = low * slope + intercept, (low + (1 << bits) - 1) * slope + intercept
    return min(ends), max(ends)


def _window(dataset: Any) -> tuple[float, float] | None:
    """The first window's ends, as DICOM PS3.3 C.11.2.1.2 defines them."""
    center, width = (_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or width <= 1:
        return None
    low = center - 0.5 - (width - 1) / 2
    return low, low + width - 1


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value if isinstance(value, int | float | str) else value[0])
