"""DICOM files: single images, colour, palettes, several frames, compressed or not."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import numpy as np

from dexcore.data.readers.dicom_file import open_dicom
from dexcore.data.readers.dicom_geometry import pixel_spacing
from dexcore.data.readers.dicom_groups import Groups
from dexcore.data.readers.dicom_levels import (
    Levels,
    Modality,
    Window,
    frame_modality,
    frame_window,
    show,
    shown_levels,
    stored_levels,
    union,
)
from dexcore.data.readers.dicom_lut import Lut, read_palette
from dexcore.data.readers.dicom_padding import find_padding
from dexcore.data.readers.dicom_stored import QUANTITATIVE, Stored, read_stored
from dexcore.data.readers.dicom_values import code, text
from dexcore.data.readers.gray_stack import GrayStack
from dexcore.data.readers.scan import RefusedError, Scan
from dexcore.data.readers.suv import suv_factor

_KEYWORDS = (
    "Modality",
    "PatientID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "BodyPartExamined",
    "Manufacturer",
)
Units = Literal["HU", "SUV"] | None


@dataclass
class Frames:
    """Gray frames as they are read, one by one; `finish` completes them.

    Attributes:
        stack: of all frames; padding is NaN until `finish`.
        levels: of all frames read.
        bent: the levels that a VOI table or a sigmoid gives the values; None where they are what was measured.
        turned: whether white is small (MONOCHROME1, or PresentationLUTShape INVERSE).
        units: what the values measure.
        metadata: of the first file.
    """

    stack: GrayStack
    levels: Levels | None = None
    bent: Levels | None = None
    turned: bool = False
    units: Units = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    _files: int = 0

    def add_file(
        self, levels: Levels | None, bent: Levels | None, turned: bool, units: Units, metadata: Mapping[str, str]
    ) -> None:
        """Count in a file of a series.

        Raises:
            RefusedError: its values are of another kind than those before.
        """
        if not self._files:
            self.levels, self.bent, self.turned, self.units, self.metadata = levels, bent, turned, units, metadata
        elif bent != self.bent:
            raise RefusedError("the slices of the series differ in what bends their values: a sigmoid or a VOI table")
        elif (turned, units) != (self.turned, self.units):
            raise RefusedError(
                "the slices of the series differ in units, in PhotometricInterpretation or in PresentationLUTShape"
            )
        else:
            self.levels = union([self.levels, levels])
        self._files += 1


def read_dicom(source: str | os.PathLike[str] | BinaryIO, every: int = 1) -> Scan:
    """Read one DICOM file.

    Gray values are rescaled (slope and intercept, or the modality LUT); PET becomes SUV. The levels are the file's
    first whole window, else what its stored bits can hold, over all frames; a VOI LUT or a sigmoid bends the values
    and gives its own, except of CT and PET, whose values stay what they measure. MONOCHROME1 and an inverse
    presentation (white is small) are turned over between the levels, with the same exception. Padding becomes the
    smallest value that is no padding.
    Palettes and YBR become RGB, whose levels are what the stored bits can hold. Bits beside the stored ones
    (overlays, rubbish) are dropped.

    Args:
        source: the file, or an open one that can seek.
        every: read one frame in this many.

    Returns:
        A scan of layout "frames": [frames, height, width], int16 or uint16 where all values are such whole numbers,
        else float32; or RGB as the file's unsigned integers.

    Raises:
        RefusedError: the file holds no image, contradicts itself, is broken or over a limit.
    """
    with open_dicom(source) as file:
        stored = read_stored(file)
        indices = tuple(range(0, stored.frames, every))
        spacing = pixel_spacing(Groups(file.dataset))
        if stored.color or stored.photometric == "PALETTE COLOR":
            pixels, levels = _read_color(stored, indices)
            return Scan(pixels, "frames", levels, indices, _metadata(file.dataset), spacing)
        frames = Frames(GrayStack(len(indices), stored.rows, stored.columns))
        _read_gray(stored, frames, {index: slot for slot, index in enumerate(indices)})
        finish(frames)
        return Scan(
            frames.stack.whole_pixels(), "frames", frames.levels, indices, frames.metadata, spacing, frames.units
        )


def read_frames(source: str | os.PathLike[str] | BinaryIO, frames: Frames, slots: Mapping[int, int]) -> None:
    """Read gray frames of a file into ``frames``.

    Args:
        source: the file, or an open one.
        frames: where to.
        slots: for each frame of the file (all of them), its place in ``frames``.

    Raises:
        RefusedError: as `read_dicom`; colour; a frame of another size.
    """
    with open_dicom(source) as file:
        stored = read_stored(file)
        if stored.color or stored.photometric == "PALETTE COLOR":
            raise RefusedError("a slice in colour, expected gray")
        if (stored.rows, stored.columns) != frames.stack.shape[1:]:
            raise RefusedError(f"{stored.rows} x {stored.columns} pixels, the series has {frames.stack.shape[1:]}")
        if stored.frames != len(slots):
            raise RefusedError(f"the pixel data holds {stored.frames} frames, expected {len(slots)}")
        _read_gray(stored, frames, slots)


def finish(frames: Frames) -> None:
    """Turn MONOCHROME1 over, and put the smallest value for padding; in place.

    Raises:
        RefusedError: every pixel is padding or not finite.
    """
    stack = frames.stack
    low, high = stack.finite_range()
    if low > high:
        raise RefusedError("every pixel is padding or not finite")
    if frames.turned:
        black, white = frames.levels or (low, high)
        total = np.float32(black + white)
        stack.change(lambda values: total - values)
    stack.make_finite()


def _read_gray(stored: Stored, frames: Frames, slots: Mapping[int, int]) -> None:
    dataset = stored.file.dataset
    groups = Groups(dataset)
    groups.check_frames(stored.frames)
    modality = code(dataset, "Modality")
    quantitative = modality in QUANTITATIVE
    kinds = [_Kind.of(stored, groups, frame, modality) for frame in _distinct(groups, stored.frames)]
    # Of frames of which some are bent (a sigmoid) and others not, each is brought to black and white of its own.
    shown = {None} if quantitative else {shown_levels(kind.window) for kind in kinds}
    mixed = len(shown) > 1
    for index, (raw, clean) in zip(slots, stored.iterate(list(slots)), strict=True):
        kind = kinds[index if len(kinds) > 1 else 0]
        padding = find_padding(stored, raw, clean)
        values = kind.modality.apply(clean)
        _check_float32(values, padding, stored.integers)
        if kind.factor != 1:
            values *= kind.factor
        if not quantitative:
            values = show(values, kind.window)
            if mixed:
                values = _between(values, kind.levels(stored, quantitative))
        values = values.astype(np.float32, copy=False)
        if padding is not None:
            values[padding] = np.nan
        frames.stack.put(slots[index], values, raw)
    units: Units = "SUV" if modality == "PT" else None
    if modality == "CT" and all(kind.hounsfield for kind in kinds):
        units = "HU"
    inverse = code(dataset, "PresentationLUTShape") == "INVERSE"
    turned = (stored.photometric == "MONOCHROME1" or inverse) and not quantitative
    bent = (0.0, 1.0) if mixed else next(iter(shown))
    levels = bent if mixed else union([kind.levels(stored, quantitative) for kind in kinds])
    frames.add_file(levels, bent, turned, units, _metadata(dataset))


def _between(values: np.ndarray, levels: Levels | None) -> np.ndarray:
    if levels is None:
        raise RefusedError("some frames have a sigmoid or a table, others have no window at all")
    return ((values - levels[0]) / (levels[1] - levels[0])).clip(0, 1)


def _check_float32(values: np.ndarray, padding: np.ndarray | None, integers: bool) -> None:
    """Refuse what becomes infinite in float32."""
    if values.dtype == np.float64:
        beyond = np.isfinite(values) & (np.abs(values) > np.finfo(np.float32).max)
    elif integers:
        beyond = np.isinf(values)
    else:
        return
    if padding is not None:
        beyond &= ~padding
    if beyond.any():
        raise RefusedError("values beyond 3.4e38, which float32 cannot hold")


@dataclass(frozen=True)
class _Kind:
    """How a frame's values are made and shown."""

    modality: Modality
    window: Window | Lut | None
    factor: float  # to SUV

    @classmethod
    def of(cls, stored: Stored, groups: Groups, frame: int, modality: str | None) -> "_Kind":
        factor = suv_factor(stored.file.dataset, frame) if modality == "PT" else 1.0
        rescale = frame_modality(stored, groups, frame)
        return cls(rescale, frame_window(stored, groups, frame, rescale), factor)

    @property
    def hounsfield(self) -> bool:
        return self.modality.stated and self.modality.unit in (None, "HU")

    def levels(self, stored: Stored, quantitative: bool) -> Levels | None:
        window = self.window
        shown = shown_levels(window)
        if shown is not None and not quantitative:
            return shown
        if isinstance(window, Lut):
            levels: Levels | None = (float(window.first), float(window.first + len(window.entries) - 1))
        elif isinstance(window, Window):
            levels = window.levels
        else:
            levels = stored_levels(stored, self.modality)
        return levels and (levels[0] * self.factor, levels[1] * self.factor)


def _distinct(groups: Groups, frames: int) -> Iterable[int]:
    """The frames of which something may be said apart: all, or the first for all."""
    return range(frames) if groups.per_frame else (0,)


def _read_color(stored: Stored, indices: tuple[int, ...]) -> tuple[np.ndarray, Levels]:
    palette = None
    if not stored.color:
        if not stored.integers:
            raise RefusedError("a palette for pixels that are no integers")
        palette = read_palette(stored.file.dataset, stored.file.little, *stored.range)
    white = palette[0].white if palette else (1 << stored.bits) - 1
    dtype = np.uint8 if white <= 255 else np.uint16 if white <= 65535 else np.uint32
    pixels = np.empty((len(indices), stored.rows, stored.columns, 3), dtype)
    for slot, (_, frame) in enumerate(stored.iterate(indices)):
        if palette is None:
            pixels[slot] = frame
        else:
            for channel, table in enumerate(palette):
                pixels[slot, ..., channel] = table.apply(frame)
    return pixels, (0.0, float(white))


def _metadata(dataset: Any) -> dict[str, str]:
    return {key: value for key in _KEYWORDS if (value := text(dataset, key))}
