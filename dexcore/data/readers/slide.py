"""Whole slides: tiled TIFF pyramids and Aperio's SVS, cut into tiles at a chosen size of pixel, one by one."""

import math
import os
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dexcore.checks import check_number, check_whole
from dexcore.data.readers.scan import RefusedError, check_size, unreadable
from dexcore.data.readers.tiff import stream_size
from dexcore.data.readers.tiff_page import as_shown, page_orientation, physical_spacing
from dexcore.extras import require

_MAX_PAGES = 64
_CACHE_BYTES = 1 << 26  # of decoded TIFF tiles, which neighbours share
_ALIKE = (
    0.05  # pixels that differ by less from the size that is wanted are given as they are; levels are as long and wide
)
_APERIO_MPP = re.compile(r"\|\s*MPP\s*=\s*([0-9.]+)")
_PLAUSIBLE_MPP = (0.05, 20.0)  # a resolution outside of it is a screen's or a printer's
_UNIT_MICRONS = {2: 25_400.0, 3: 10_000.0}  # ResolutionUnit inch and cm
# Stained tissue has colour, glass has none. Blacker than this is outside of what was scanned.
_TISSUE_SATURATION = 0.07
_TISSUE_BRIGHTNESS = 40
_TISSUE_SHARE = 0.25
_TISSUE_CONTRAST = 4.0  # of gray slides: standard deviation


def iterate_tiles(
    path: str | os.PathLike[str], mpp: float | None = 0.5, side: int = 512
) -> Iterator[tuple[str, np.ndarray]]:
    """Give the tiles of a slide that hold tissue, row by row; whole ones alone, side by side without overlap.

    They come from the coarsest level that is fine enough, area-averaged to ``mpp``; of a level within 5 % of it, as
    they are. What the scanner left out (a tile of the file without data) is white. Only tiled pages of the first
    page's proportions are looked at: thumbnail, macro photograph and label (which often shows the patient's name) are
    never decoded. A tile of colour holds tissue where at least a quarter of its pixels is saturated by 7 %; a gray
    one, where its standard deviation is at least 4.

    Args:
        path: the file.
        mpp: microns per pixel of the tiles; None for the finest level as it is.
        side: of a tile, in pixels.

    Yields:
        a name, "x<left>_y<top>" in pixels of the finest level; uint8 [side, side, 3], or [side, side] for gray.

    Raises:
        UnreadableFileError: no slide, damaged, over a limit, of unknown or coarser pixels than ``mpp``, or smaller than
            one tile. What is damaged is met when its tile is decoded: after others.
        MissingExtraError: tifffile, imagecodecs or OpenCV is not installed.
        ValueError: ``mpp`` is not positive, or ``side`` less than 1.
    """
    if mpp is not None:
        check_number("mpp", mpp, "positive and finite", lambda value: 0 < value < math.inf)
    check_whole("side", side, 1)
    tiles = _tiles(path, mpp, side)
    while True:
        with unreadable(path):
            found = next(tiles, None)
        if found is None:
            return
        yield found


def _tiles(path: str | os.PathLike[str], mpp: float | None, side: int) -> Iterator[tuple[str, np.ndarray]]:
    tifffile, cv2 = require("tifffile", "data"), require("cv2", "train")
    require("imagecodecs", "data")
    with tifffile.TiffFile(path, _multifile=False) as tiff:
        levels = _levels(tiff)
        level, scale = _choose(levels, mpp)
        source = max(1, round(side * scale))
        check_size(source, source, channels=level.page.samplesperpixel)
        rows, columns = level.page.imagelength // source, level.page.imagewidth // source
        if not rows or not columns:
            raise RefusedError(f"{level.page.imagelength} x {level.page.imagewidth} pixels, smaller than one tile")
        for row in range(rows):
            for column in range(columns):
                tile = level.region(row * source, column * source, source)
                if source != side:
                    tile = cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA)
                if _is_tissue(tile):
                    left, top = (round(number * source * level.coarseness) for number in (column, row))
                    yield f"x{left}_y{top}", tile


@dataclass
class _Level:
    """One size of the picture; ``coarseness``: how many pixels of the finest one of its pixels spans."""

    tiff: Any
    page: Any
    coarseness: float
    cache: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict)

    def region(self, top: int, left: int, side: int) -> np.ndarray:
        """[side, side] or [side, side, 3] of this level, which holds it whole."""
        page = self.page
        pixels: np.ndarray | None = None
        for row in range(top // page.tilelength, (top + side - 1) // page.tilelength + 1):
            for column in range(left // page.tilewidth, (left + side - 1) // page.tilewidth + 1):
                tile = self._tile(row, column)
                if pixels is None:
                    pixels = np.empty((side, side, *tile.shape[2:]), tile.dtype)
                y, x = row * page.tilelength - top, column * page.tilewidth - left  # of the tile in the region
                part = tile[max(0, -y) : side - y, max(0, -x) : side - x]
                pixels[max(0, y) :, max(0, x) :][: part.shape[0], : part.shape[1]] = part
        assert pixels is not None  # side is at least 1
        return pixels

    def _tile(self, row: int, column: int) -> np.ndarray:
        index = row * math.ceil(self.page.imagewidth / self.page.tilewidth) + column
        if index in self.cache:
            self.cache.move_to_end(index)
            return self.cache[index]
        tile = self._decoded(index)
        self.cache[index] = tile
        while len(self.cache) * tile.nbytes > _CACHE_BYTES and len(self.cache) > 1:
            self.cache.popitem(last=False)
        return tile

    def _decoded(self, index: int) -> np.ndarray:
        page, file = self.page, self.tiff.filehandle
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        shape = (page.tilelength, page.tilewidth, page.samplesperpixel)
        if not offset and not count:
            white = np.full(shape, 255, np.uint8)
            return white if shape[2] > 1 else white[..., 0]
        if offset + count > file.size or (page.compression == 1 and count < math.prod(shape)):
            raise RefusedError(f"tile {index} ends after the file, or is shorter than its {shape} pixels")
        file.seek(offset)
        data = file.read(count)
        measure = stream_size(page)
        size = measure(data) if measure else None
        if size is not None and (size[0] > shape[0] or size[1] > shape[1]):
            raise RefusedError(f"tile {index} holds a stream of {size[0]} x {size[1]} pixels, expected {shape[:2]}")
        decoded = page.decode(data, index, jpegtables=page.jpegtables, _fullsize=True)[0]
        if decoded is None or decoded.shape[-3:] != shape:
            raise RefusedError(f"tile {index} is not of its {shape} pixels")
        return np.ascontiguousarray(as_shown(page, decoded.reshape(shape)))


def _levels(tiff: Any) -> list[_Level]:
    """The finest and what are its smaller copies, from fine to coarse."""
    first = tiff.pages[0]
    if not first.is_tiled:
        raise RefusedError("its first page is no tiled picture, expected a slide")
    pages = [first, *(first.pages or [])[:_MAX_PAGES], *tiff.pages[1:_MAX_PAGES]]
    levels = []
    for page in pages:
        if not page.is_tiled or re.search(r"\b(label|macro)\b", page.description):
            continue
        down, across = first.imagelength / page.imagelength, first.imagewidth / page.imagewidth
        # A rounded-up copy of a few pixels is longer than its share by up to one.
        same = abs(down / across - 1) < _ALIKE and down >= 1 and page.samplesperpixel == first.samplesperpixel
        if page is first or (same and page.dtype == first.dtype):
            _check_level(page)
            levels.append(_Level(tiff, page, across))
    return sorted(levels, key=lambda level: level.coarseness)


def _check_level(page: Any) -> None:
    if page.dtype != np.uint8 or page.imagedepth != 1 or page.planarconfig != 1:
        raise RefusedError(f"a slide of {page.dtype} in planes or volumes, expected interleaved uint8")
    if page_orientation(page) != 1:
        raise RefusedError("a slide that is to be turned, which is not read")
    check_size(page.tilelength, page.tilewidth, channels=page.samplesperpixel)
    expected = math.ceil(page.imagelength / page.tilelength) * math.ceil(page.imagewidth / page.tilewidth)
    if min(len(page.dataoffsets), len(page.databytecounts)) < expected:
        raise RefusedError(f"{len(page.dataoffsets)} tiles, expected {expected}")


def _choose(levels: list[_Level], mpp: float | None) -> tuple[_Level, float]:
    """The coarsest level whose pixels are at most as large as wanted, and how many of them one that is wanted spans."""
    if mpp is None:
        return levels[0], 1.0
    finest = _microns(levels[0].page)
    if finest is None:
        raise RefusedError("the slide does not say how large its pixels are; mpp=None gives them as they are")
    fine_enough = [level for level in levels if finest * level.coarseness <= mpp * (1 + _ALIKE)]
    if not fine_enough:
        raise RefusedError(f"pixels of {finest:.3g} microns, coarser than the {mpp:g} that are wanted")
    level = fine_enough[-1]
    scale = mpp / (finest * level.coarseness)
    return level, 1.0 if scale < 1 + _ALIKE else scale


def _microns(page: Any) -> float | None:
    """The size of a pixel, as Aperio, OME or the resolution say."""
    aperio = _APERIO_MPP.search(page.description)
    if aperio:
        found = float(aperio[1])
    else:
        spacing = physical_spacing(page, None)
        if spacing is None:
            unit, (pixels, of) = page.tags.valueof(296, 2), page.tags.valueof(282, (0, 1))
            spacing = (0, _UNIT_MICRONS.get(int(unit), 0.0) / 1000 * of / pixels if pixels else 0.0)
        found = 1000 * spacing[1]
    return found if _PLAUSIBLE_MPP[0] <= found <= _PLAUSIBLE_MPP[1] else None


def _is_tissue(tile: np.ndarray) -> bool:
    sample = tile[::4, ::4].astype(np.int16) if len(tile) >= 16 else tile.astype(np.int16)
    if sample.ndim == 2:
        return bool(sample.std() >= _TISSUE_CONTRAST)
    bright = sample.max(axis=-1)
    saturated = bright - sample.min(axis=-1) >= _TISSUE_SATURATION * bright
    return bool((saturated & (bright >= _TISSUE_BRIGHTNESS)).mean() >= _TISSUE_SHARE)
