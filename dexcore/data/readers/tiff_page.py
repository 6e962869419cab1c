"""One page of a TIFF file as it is to be seen: colour, transparency, orientation, physical size."""

import math
import re
from typing import Any

import numpy as np

from dexcore.data.readers.pixels import oriented, over_black
from dexcore.data.readers.scan import RefusedError

# PhotometricInterpretation
WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, PALETTE, _CMYK, YCBCR = 0, 1, 2, 3, 5, 6
_CHANNELS = {WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, PALETTE: 1, _CMYK: 4, YCBCR: 3}
_ASSOCIATED, _UNASSOCIATED = 1, 2  # ExtraSamples: the colour is multiplied by alpha already, or not yet
# Compression: what decoders give as RGB already, and what they do not.
JPEG = {6, 7, 33007, 34892}
JPEG_2000_YCBCR = 33003  # Aperio's

_MM = {"nm": 1e-6, "um": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3, "mm": 1.0, "cm": 10.0, "inch": 25.4}
_OME_SIZES = re.compile(r'\bPhysicalSize([XY])(Unit)?="([^"]*)"')
_RESOLUTION_UNITS = {4: 1.0, 5: 1e-3}  # ResolutionUnit mm and micrometre; inch and cm are mostly a printer's


def photometric_of(page: Any) -> int:
    """PhotometricInterpretation; where it is missing, what the samples look like."""
    if 262 in page.tags or page.compression in JPEG:
        return int(page.photometric)
    return _RGB if page.samplesperpixel >= 3 else _BLACK_IS_ZERO  # the tag is missing


def channels_of(page: Any) -> int:
    """How many samples are colour; those after it are alpha or of no meaning.

    Raises:
        RefusedError: there are fewer samples, or it is no picture (a raw camera's mosaic, a mask, CIE L*a*b*).
    """
    photometric, samples = photometric_of(page), page.samplesperpixel
    channels = _CHANNELS.get(photometric)
    if channels is None:
        raise RefusedError(
            f"page {page.index} has PhotometricInterpretation {photometric}, expected gray, RGB, palette, CMYK or YCbCr"
        )
    if samples < channels or (channels == 1 and samples > 2) or (photometric == _CMYK and _tag(page, 332, 1) != 1):
        raise RefusedError(
            f"page {page.index} has {samples} samples a pixel under PhotometricInterpretation {photometric}, "
            f"expected {channels} and alpha"
        )
    return channels


def _tag(page: Any, code: int, default: int) -> int:
    """The first value of a tag."""
    value = page.tags.valueof(code, default)
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, int) else default


def page_orientation(page: Any) -> int:
    """Orientation, 1 to 8 (other numbers are none)."""
    return _tag(page, 274, 1)


def page_bits(page: Any) -> int:
    """Bits a sample."""
    return int(page.bitspersample)


def as_shown(page: Any, plane: np.ndarray) -> np.ndarray:
    """One plane [length, width, samples] as it is to be seen: [height, width] or [height, width, 3]."""
    photometric, channels = photometric_of(page), channels_of(page)
    if plane.dtype.kind == "b":
        plane = plane.astype(np.uint8) * np.uint8(1 if photometric == PALETTE else 255)
    colour = plane[..., 0] if channels == 1 else plane[..., :channels]
    opaque = 1 if plane.dtype.kind == "f" else (1 << page_bits(page)) - 1
    if plane.dtype.kind == "i":
        opaque >>= 1
    elif page_bits(page) == 1 and photometric != PALETTE:
        opaque = 255
    if photometric == WHITE_IS_ZERO and plane.dtype.kind != "f":  # floats: when all are known
        colour = colour.dtype.type(-1) - colour if plane.dtype.kind == "i" else colour.dtype.type(opaque) - colour
    elif photometric == PALETTE:
        colour = _through_palette(page, colour)
    elif photometric == _CMYK:
        colour = over_black(opaque - colour[..., :3], opaque - colour[..., 3], opaque)
    elif (photometric == YCBCR and page.compression not in JPEG) or page.compression == JPEG_2000_YCBCR:
        colour = _from_ycbcr(page, colour, opaque)
    alpha = _alpha(page, channels)
    if alpha is not None:
        colour = over_black(colour, plane[..., alpha], opaque)
    return oriented(colour, page_orientation(page))


def _alpha(page: Any, channels: int) -> int | None:
    """Which sample the colour is still to be multiplied by."""
    kinds = page.tags.valueof(338, None)  # ExtraSamples
    if kinds is None:  # older writers of RGBA leave it out
        return 3 if photometric_of(page) == _RGB and page.samplesperpixel == 4 else None
    kinds = [int(kind) for kind in (kinds if isinstance(kinds, tuple | list | np.ndarray) else [kinds])]
    if _UNASSOCIATED not in kinds or _ASSOCIATED in kinds:
        return None
    sample = channels + kinds.index(_UNASSOCIATED)
    return sample if sample < page.samplesperpixel else None


def _through_palette(page: Any, indices: np.ndarray) -> np.ndarray:
    """Colours of 16 bits, or of 8 where the palette has no more."""
    palette = page.colormap
    if palette is None or indices.dtype.kind != "u" or palette.shape[1] < 1 << page_bits(page):
        raise RefusedError(f"page {page.index} has no palette of {1 << page_bits(page)} colours")
    palette = np.asarray(palette, np.uint16).T
    if palette.max() < 256:  # some writers do not scale them
        palette = palette.astype(np.uint8)
    elif not (palette & 255).any() or (palette >> 8 == palette & 255).all():
        palette = (palette >> 8).astype(np.uint8)
    return palette[indices]


def _from_ycbcr(page: Any, colour: np.ndarray, opaque: int) -> np.ndarray:
    """ITU-R BT.601 at full range, which is TIFF's default, or at the range of ReferenceBlackWhite."""
    y, cb, cr = np.moveaxis(colour.astype(np.float32), -1, 0)
    middle = (opaque + 1) // 2
    black, white, *ends = _reference(page) or (0, opaque, middle, opaque, middle, opaque)
    y = (y - black) * (opaque / (white - black))
    cb, cr = (
        (part - low) * ((opaque - middle) / (high - low)) for part, low, high in ((cb, *ends[:2]), (cr, *ends[2:]))
    )
    red, blue = y + 1.402 * cr, y + 1.772 * cb
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    return np.stack([red, green, blue], -1).round().clip(0, opaque).astype(colour.dtype)


def _reference(page: Any) -> list[float] | None:
    """ReferenceBlackWhite: the stored values of black and white, and of no and full colour twice; None without it."""
    value = page.tags.valueof(532, None)
    if not isinstance(value, tuple) or len(value) != 12:
        return None
    found = [_ratio(value[at : at + 2]) for at in range(0, 12, 2)]
    return found if all(low < high for low, high in zip(found[::2], found[1::2], strict=True)) else None


def physical_spacing(page: Any, imagej: dict[str, Any] | None) -> tuple[float, float] | None:
    """(between rows, between columns) in mm, where the file means a physical size."""
    sizes: tuple[float, float] | None = None
    if page.is_ome:
        found = {axis + unit: value for axis, unit, value in _OME_SIZES.findall(page.description)}
        steps = [_number(found.get(axis)) * _mm(found.get(f"{axis}Unit", "um")) for axis in "YX"]
        sizes = (steps[0], steps[1])
    else:
        unit = _mm(imagej["unit"]) if imagej and "unit" in imagej else _RESOLUTION_UNITS.get(_tag(page, 296, 2), 0.0)
        across, down = (_ratio(page.tags.valueof(code)) for code in (282, 283))
        if across > 0 and down > 0:
            sizes = unit / down, unit / across
    if sizes is None or not all(math.isfinite(size) and 0 < size < 100 for size in sizes):
        return None
    return sizes[::-1] if page_orientation(page) >= 5 else sizes


def _mm(unit: Any) -> float:
    text = str(unit).strip().replace("\\u00B5", "u").replace("µ", "u").replace("μ", "u")
    return _MM.get(text, 0.0)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _ratio(value: Any) -> float:
    if isinstance(value, tuple) and len(value) == 2 and value[1]:
        return float(value[0]) / float(value[1])
    return 0.0
