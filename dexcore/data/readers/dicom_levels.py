"""From stored values to what they measure, and the levels that stand for black and white: one place for both.

Rescale, modality table, window, VOI table and VOI function may stand at a file's top, in its shared functional group or
in each frame's own; `Groups` looks them up.
"""

import math
from dataclasses import dataclass

import numpy as np

from dexcore.data.readers.dicom_groups import Groups
from dexcore.data.readers.dicom_lut import Lut, read_lut
from dexcore.data.readers.dicom_stored import Stored
from dexcore.data.readers.dicom_values import code, items, numbers, stated_number

Levels = tuple[float, float]


@dataclass(frozen=True)
class Window:
    """Center, width and the function (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    center: float
    width: float
    function: str
    whole: bool = False  # whether the values are whole numbers

    @property
    def levels(self) -> Levels:
        """Black and white; of a sigmoid, where its tangent at the center is 0 and 1."""
        linear = self.function not in ("LINEAR_EXACT", "SIGMOID")
        if linear and self.width > 1:
            low = self.center - 0.5 - (self.width - 1) / 2
            return low, low + self.width - 1
        if linear and self.width == 1 and self.whole:  # a step at center - 0.5
            low = float(math.floor(self.center - 0.5))
            return low, low + 1
        # LINEAR has no meaning at widths below 1, which float images have.
        return self.center - self.width / 2, self.center + self.width / 2


@dataclass(frozen=True)
class Modality:
    """How a frame's stored values become what they measure.

    Attributes:
        slope, intercept: of the rescale.
        table: in their place; or None.
        stated: whether the file says any of them.
        unit: the file's word for the unit, or None.
    """

    slope: float = 1.0
    intercept: float = 0.0
    table: Lut | None = None
    stated: bool = False
    unit: str | None = None

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """float32, or float64 where the stored values need it."""
        if self.table is not None:
            return self.table.apply(stored).astype(np.float32)
        values: np.ndarray = stored.astype(np.float32 if stored.dtype.itemsize <= 2 else np.float64)
        np.multiply(values, self.slope, out=values)
        np.add(values, self.intercept, out=values)
        return values


def frame_modality(stored: Stored, groups: Groups, frame: int) -> Modality:
    """The rescale or modality table of a frame.

    Raises:
        RefusedError: an element is damaged.
    """
    little = stored.file.little
    for place in groups.places(frame, "PixelValueTransformationSequence"):
        tables = items(place, "ModalityLUTSequence")
        if tables and stored.integers:
            table = read_lut(tables[0], little, *stored.range)
            return Modality(table=table, stated=True, unit=code(tables[0], "ModalityLUTType"))
        slope, intercept = stated_number(place, "RescaleSlope"), stated_number(place, "RescaleIntercept")
        if slope is not None or intercept is not None:
            # A missing or zero slope is a writer's fault: the values stay as they are.
            return Modality(slope or 1.0, intercept or 0.0, None, True, code(place, "RescaleType"))
    return Modality()


def frame_window(stored: Stored, groups: Groups, frame: int, modality: Modality) -> Window | Lut | None:
    """The first whole window of a frame, else its VOI table, else None."""
    low, high = stored_levels(stored, modality) or (-math.inf, math.inf)
    whole = stored.integers and modality.slope == int(modality.slope) and modality.intercept == int(modality.intercept)
    for place in groups.places(frame, "FrameVOILUTSequence"):
        centers, widths = numbers(place, "WindowCenter"), numbers(place, "WindowWidth")
        for center, width in zip(centers, widths, strict=False):
            if center is not None and width is not None and width > 0:
                return Window(center, width, code(place, "VOILUTFunction") or "LINEAR", whole)
        tables = items(place, "VOILUTSequence")
        if tables:
            whole_tables = (table for table in tables if "LUTDescriptor" in table and "LUTData" in table)
            return read_lut(next(whole_tables, tables[0]), stored.file.little, low, high)
    return None


def stored_levels(stored: Stored, modality: Modality) -> Levels | None:
    """What the stored bits can hold, in the values that they measure; None for floats."""
    if not stored.integers:
        return None
    if modality.table is not None:
        return float(modality.table.entries.min()), float(modality.table.entries.max())
    ends = [end * modality.slope + modality.intercept for end in stored.range]
    return min(ends), max(ends)


def shown_levels(window: Window | Lut | None) -> Levels | None:
    """The levels of what `show` bends; None where it bends nothing."""
    if isinstance(window, Lut):
        return 0.0, float(window.white)
    return (0.0, 1.0) if window is not None and window.function == "SIGMOID" else None


def show(values: np.ndarray, window: Window | Lut | None) -> np.ndarray:
    """Values bent by a VOI table or a sigmoid; others as they are."""
    if isinstance(window, Lut):
        return window.apply(values).astype(np.float32)
    if window is not None and window.function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp((values - window.center) * (-4 / window.width)))
    return values


def union(levels: list[Levels | None]) -> Levels | None:
    """The levels that lose nothing of any frame; None where one has none, or none that is finite."""
    known = [pair for pair in levels if pair is not None and math.isfinite(pair[0]) and math.isfinite(pair[1])]
    if not known or len(known) < len(levels):
        return None
    return min(low for low, _ in known), max(high for _, high in known)
