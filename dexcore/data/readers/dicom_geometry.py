"""Where a DICOM image lies in the patient, and the distance between its pixels."""

from dataclasses import dataclass

import numpy as np

from dexcore.data.readers.dicom_groups import Groups
from dexcore.data.readers.dicom_values import numbers

_PIXEL_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
_UNIT_TOLERANCE = 1e-2  # how far direction cosines, rounded by writers, may be from unit and orthogonal

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Place:
    """One frame in the patient (DICOM's axes: x to the left, y to the back, z to the head), in mm.

    Attributes:
        position: of the centre of the first pixel, [3].
        orientation: the direction along a row (as columns increase), then along a column, [6].
    """

    position: Vector
    orientation: Vector


def frame_place(groups: Groups, frame: int = 0) -> Place | None:
    """Where a frame lies; None where the file does not say, or not soundly."""
    position = _first(groups, frame, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _first(groups, frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
    if position is None or orientation is None:
        return None
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    products = np.array([row @ row, column @ column, row @ column])
    if np.abs(products - (1, 1, 0)).max() > _UNIT_TOLERANCE:
        return None
    return Place(position, orientation)


def pixel_spacing(groups: Groups, frame: int = 0) -> tuple[float, float] | None:
    """(between rows, between columns) in mm; of a file that knows the ratio alone, with the smaller as 1."""
    for keyword in _PIXEL_SPACINGS:
        spacing = _first(groups, frame, "PixelMeasuresSequence", keyword, 2)
        if spacing is not None and min(spacing) > 0:
            return spacing[0], spacing[1]
    ratio = _first(groups, frame, "PixelMeasuresSequence", "PixelAspectRatio", 2)
    if ratio is not None and min(ratio) > 0:
        return ratio[0] / min(ratio), ratio[1] / min(ratio)
    return None


def _first(groups: Groups, frame: int, macro: str, keyword: str, count: int) -> Vector | None:
    for place in groups.places(frame, macro):
        values = [value for value in numbers(place, keyword) if value is not None]
        if len(values) == count:
            return tuple(values)
    return None
