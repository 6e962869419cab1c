"""The stored pixels of a DICOM file: what its elements say of them, checked, and its frames one by one."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dexcore.data.readers.codestream import Codestream, read_codestream
from dexcore.data.readers.dicom_file import DicomFile
from dexcore.data.readers.dicom_fragments import Fragment, find_frames, read_frame
from dexcore.data.readers.dicom_values import code, needed_whole, safe_message, whole
from dexcore.data.readers.scan import RefusedError, check_size
from dexcore.extras import MissingExtraError, require

# Their values are measures (Hounsfield units, SUV): what changes their display, and colours above them, leave these be.
QUANTITATIVE = {"CT", "PT"}
_GRAY = {"MONOCHROME1", "MONOCHROME2"}
_YBR = {"YBR_FULL", "YBR_FULL_422"}
_COLORS = {"RGB", *_YBR, "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420", "YBR_PARTIAL_422"}
_MPEG = "1.2.840.10008.1.2.4.10"  # 100 to 108: MPEG-2, MPEG-4, HEVC
_LOSSLESS = {  # JPEG 2000, JPEG-LS, HTJ2K
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.201",
    "1.2.840.10008.1.2.4.202",
}
_MAX_FRAMES = 1 << 31
# What pydicom warns about and puts right itself; every other warning while decoding is an error.
_PUT_RIGHT = (
    r".*codestream uses component IDs",
    r".*codestream contains a JFIF APP marker",
    r".*decoding plugin has changed",
    r".*non-conformant padding",
)


@dataclass(frozen=True)
class Stored:
    """The stored pixels of a file.

    Attributes:
        file: the open file.
        rows, columns, samples: of each frame.
        photometric: DICOM's word for the colour space.
        allocated, bits, high_bit: bits a sample, those that hold its value, and the highest of them.
        signed: whether integers are signed.
        planar: whether the colours of uncompressed RGB lie in planes.
        frames: how many there are, by the bytes.
        fragments: where the bytes of each compressed frame lie.
    """

    file: DicomFile
    rows: int
    columns: int
    samples: int
    photometric: str
    allocated: int
    bits: int
    high_bit: int
    signed: bool
    planar: bool
    frames: int
    fragments: list[list[Fragment]]

    @property
    def color(self) -> bool:
        return self.samples == 3

    @property
    def integers(self) -> bool:
        return self.file.keyword == "PixelData"

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and the largest integer that the stored bits can hold."""
        low = -(1 << (self.bits - 1)) if self.signed else 0
        return low, low + (1 << self.bits) - 1

    def iterate(self, indices: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each frame as its bits are allocated, and as its stored bits alone: [rows, columns] or [rows, columns, 3].

        Raises:
            RefusedError: a frame cannot be decoded, or its own size is not the header's.
        """
        for index in indices:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    for message in _PUT_RIGHT:
                        warnings.filterwarnings("ignore", message=message)
                    raw, photometric, stream = self._decode(index)
            except (RefusedError, MissingExtraError):
                raise
            except Exception as error:
                raise RefusedError(
                    f"frame {index} of the pixel data cannot be decoded: {safe_message(error)}"
                ) from None
            expected = (self.rows, self.columns, 3) if self.color else (self.rows, self.columns)
            if raw.shape != expected:
                raise RefusedError(f"frame {index} is decoded to the shape {raw.shape}, expected {expected}")
            clean = self._used_bits(raw, stream)
            if photometric in _YBR:
                clean = _to_rgb(clean, self.bits)
            yield raw, clean

    def _decode(self, index: int) -> tuple[np.ndarray, str, Codestream | None]:
        """The frame, the colour space that it is in, and what its own codestream declares."""
        if self.allocated == 1 and not self.file.syntax.is_encapsulated and self.file.little:
            return self._unpacked(index), self.photometric, None
        stream = None
        decoder = require("pydicom", "data").pixels.get_decoder(self.file.syntax)
        options = {
            "rows": self.rows,
            "columns": self.columns,
            "samples_per_pixel": self.samples,
            "photometric_interpretation": self.photometric,
            "bits_allocated": self.allocated,
            "bits_stored": self.bits,
            "pixel_representation": int(self.signed),
            "planar_configuration": int(self.planar),
            "pixel_keyword": self.file.keyword,
            "pixel_vr": self.file.vr,
            "number_of_frames": self.frames,
            "correct_unused_bits": False,
        }
        if self.file.syntax.is_encapsulated:
            data = read_frame(self.file, self.fragments[index], index, self.rows, self.columns, self.samples)
            stream = read_codestream(data)
            if self._has_own_decoder():
                return self._decode_own(data, stream), self.photometric, stream
            if self._plugin() == "pillow" and stream is not None and stream.bits == 8:
                options["bits_allocated"] = 8  # whatever the header says
                options["bits_stored"] = min(self.bits, 8)
            source: Any = require("pydicom", "data").encaps.encapsulate([data], has_bot=False)
            options["number_of_frames"] = 1
            index = 0
        else:
            source = self.file.stream
            source.seek(self.file.start)
        pixels, properties = decoder.as_array(source, index=index, raw=True, decoding_plugin=self._plugin(), **options)
        pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
        return pixels, properties["photometric_interpretation"], stream

    def _unpacked(self, index: int) -> np.ndarray:
        """A frame of single bits, which may begin within a byte."""
        count = self.rows * self.columns * self.samples
        first = index * count
        self.file.stream.seek(self.file.start + first // 8)
        data = self.file.stream.read(-(-(first % 8 + count) // 8))
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[first % 8 :][:count]
        return bits.reshape((self.rows, self.columns, 3) if self.color else (self.rows, self.columns))

    def _plugin(self) -> str:
        """One decoder for each compression, so that pixels are the same everywhere; GDCM writes to the terminal."""
        uid = require("pydicom", "data").uid
        if self.file.syntax in uid.JPEGLSTransferSyntaxes:
            require("jpeg_ls", "data")
            return "pyjpegls"
        if self.file.syntax in uid.JPEGTransferSyntaxes:
            require("PIL.Image", "train")
            return "pillow"
        return ""

    def _has_own_decoder(self) -> bool:
        """Of JPEG 2000 and of lossless and 12-bit JPEG, for which pydicom has GDCM or nothing."""
        syntax, uid = self.file.syntax, require("pydicom", "data").uid
        twelve_bits = syntax == uid.JPEGExtended12Bit and self.bits > 8
        return syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1, *uid.JPEG2000TransferSyntaxes) or twelve_bits

    def _decode_own(self, data: bytes, stream: Codestream | None) -> np.ndarray:
        """By imagecodecs: colours as they are stored, integers in the header's sign."""
        imagecodecs = require("imagecodecs", "train")
        if self.file.syntax in require("pydicom", "data").uid.JPEG2000TransferSyntaxes:
            pixels: np.ndarray = imagecodecs.jpeg2k_decode(data)
        else:
            colors = {"colorspace": "YCBCR", "outcolorspace": "YCBCR"} if self.color else {}
            pixels = imagecodecs.jpeg_decode(data, **colors)
        if pixels.dtype.kind not in "iu" or stream is None:
            raise RefusedError(f"a frame is decoded to {pixels.dtype}, expected integers")
        pixels = pixels.view(f"{'i' if self.signed else 'u'}{pixels.itemsize}")
        spare = 8 * pixels.itemsize - stream.bits
        if spare and stream.signed != self.signed:
            pixels = (pixels << spare) >> spare
        return pixels

    def _used_bits(self, raw: np.ndarray, stream: Codestream | None) -> np.ndarray:
        """The bits above and below the stored ones may hold anything: rubbish, overlays."""
        if not self.integers or self.allocated == 1:
            return raw
        overlay = not self.signed and _has_embedded_overlay(self.file.dataset)  # signed: those bits are the sign
        if _keeps_depth(self.file.syntax) and not overlay:
            # Of more bits than are stored only a lossless codestream can hold others beside them.
            wider = stream is not None and stream.bits > self.bits
            if not wider or self.file.syntax not in _LOSSLESS:
                return raw
        width = 8 * raw.dtype.itemsize
        if self.high_bit + 1 > width or self.bits >= width:
            return raw
        return (raw << (width - 1 - self.high_bit)) >> (width - self.bits)


def read_stored(file: DicomFile) -> Stored:
    """Check what a file says of its pixels, and count its frames.

    Raises:
        RefusedError: an element is missing, damaged or contradicts the pixels; the element is named.
    """
    if file.keyword is None:
        raise RefusedError("a DICOM file without pixel data")
    dataset = file.dataset
    rows, columns = needed_whole(dataset, "Rows", 0, 65535), needed_whole(dataset, "Columns", 0, 65535)
    photometric, samples = _colors(dataset)
    allocated, bits, high_bit = _bits(dataset, file.keyword)
    declared = whole(dataset, "NumberOfFrames")
    declared = declared if declared and declared > 0 else None
    check_size(rows, columns, min(declared or 1, _MAX_FRAMES), samples)
    planar = whole(dataset, "PlanarConfiguration")
    _check_presentation(dataset)
    _check_syntax(file.syntax)
    fragments: list[list[Fragment]] = []
    native = not file.syntax.is_encapsulated
    if native and samples == 3 and planar not in (0, 1):
        raise RefusedError(f"PlanarConfiguration is {'missing' if planar is None else planar}, expected 0 or 1")
    if native and photometric.startswith("YBR_PARTIAL"):
        raise RefusedError("PhotometricInterpretation YBR_PARTIAL is not read without compression")
    if native:
        if photometric == "YBR_FULL_422" and file.length >= (declared or 1) * rows * columns * 3 * allocated // 8:
            photometric = "YBR_FULL"  # the header lies: the colours are there for every pixel
        pixel_bits = allocated * samples if photometric != "YBR_FULL_422" else allocated * 2
        frames = _count_native(file, rows * columns * pixel_bits, declared)
    else:
        fragments = find_frames(file, declared)
        frames = len(fragments)
    check_size(rows, columns, frames, samples)
    return Stored(
        file, rows, columns, samples, photometric, allocated, bits, high_bit,
        _signed(dataset, file.keyword, samples, photometric, bits), planar == 1, frames, fragments,
    )  # fmt: skip


def _check_presentation(dataset: Any) -> None:
    """Refuse gray with colours above it (a supplemental palette), unless its values stay what they measure."""
    mixed = code(dataset, "PixelPresentation") in ("COLOR", "MIXED")
    if mixed and code(dataset, "Modality") not in QUANTITATIVE and code(dataset, "PhotometricInterpretation") in _GRAY:
        raise RefusedError("colours above the gray values (a supplemental palette), which are not read")


def _check_syntax(syntax: Any) -> None:
    if str(syntax).startswith(_MPEG):
        raise RefusedError("a video stream (MPEG) in DICOM, which is not read")
    if not syntax.is_transfer_syntax:
        raise RefusedError("its transfer syntax is a private or an unknown one, which is not read")
    try:
        require("pydicom", "data").pixels.get_decoder(syntax)
    except NotImplementedError:
        raise RefusedError(f"its pixels are written as {syntax.name}, which is not read") from None


def _colors(dataset: Any) -> tuple[str, int]:
    photometric, samples = code(dataset, "PhotometricInterpretation"), whole(dataset, "SamplesPerPixel")
    if photometric is None:
        raise RefusedError("PhotometricInterpretation is missing")
    expected = 1 if photometric in _GRAY or photometric == "PALETTE COLOR" else 3 if photometric in _COLORS else None
    if expected is None:
        raise RefusedError("PhotometricInterpretation is neither gray, palette, RGB nor YBR")
    if samples not in (None, expected):
        raise RefusedError(f"SamplesPerPixel is {samples}, PhotometricInterpretation expects {expected}")
    return photometric, expected


def _bits(dataset: Any, keyword: str) -> tuple[int, int, int]:
    """Allocated, stored, and the highest stored bit."""
    if keyword != "PixelData":
        allocated = 32 if keyword == "FloatPixelData" else 64
        return allocated, allocated, allocated - 1
    allocated = needed_whole(dataset, "BitsAllocated", 1, 64)
    if allocated not in (1, 8, 16, 32, 64):
        raise RefusedError(f"BitsAllocated is {allocated}, expected 1, 8, 16, 32 or 64")
    if allocated <= 8 and whole(dataset, "BitsStored") is None:
        return allocated, allocated, allocated - 1
    bits = needed_whole(dataset, "BitsStored", 1, allocated)
    high_bit = whole(dataset, "HighBit")
    return allocated, bits, high_bit if high_bit is not None and bits <= high_bit + 1 <= allocated else bits - 1


def _signed(dataset: Any, keyword: str, samples: int, photometric: str, bits: int) -> bool:
    value = whole(dataset, "PixelRepresentation")
    if keyword != "PixelData":
        return False
    if value not in (None, 0, 1):
        raise RefusedError(f"PixelRepresentation is {value}, expected 0 or 1")
    if value is None and photometric in _GRAY and bits > 8:
        raise RefusedError("PixelRepresentation is missing: signed and unsigned pixels look alike")
    return value == 1 and samples == 1


def _count_native(file: DicomFile, frame_bits: int, declared: int | None) -> int:
    held = 8 * file.length
    there = held // frame_bits
    if declared is not None and there < declared:
        raise RefusedError(
            f"the pixel data holds {held / frame_bits:.4g} frames in {file.length} bytes, the header says {declared}"
        )
    if there < 1:
        raise RefusedError(f"{file.length} bytes of pixel data, a frame has {-(-frame_bits // 8)}")
    if declared is not None and held - declared * frame_bits <= 8:  # the byte that makes the length even
        return declared
    left = held - there * frame_bits
    if declared is None or there > declared:
        if left >= 16 and there > 1:  # more than the padding of an odd length
            raise RefusedError(
                f"the pixel data holds {held / frame_bits:.4g} frames, NumberOfFrames says {declared or 'nothing'}"
            )
        return there
    return declared


def _to_rgb(pixels: np.ndarray, bits: int) -> np.ndarray:
    if bits > 8:
        raise RefusedError(f"YBR of {bits} bits, expected 8")
    pixels = pixels.astype(np.uint8, copy=False)
    convert = require("pydicom", "data").pixels.convert_color_space
    result: np.ndarray = convert(pixels, "YBR_FULL", "RGB")
    return result


def _keeps_depth(syntax: Any) -> bool:
    """Whether the codestream's own depth and sign are applied by its decoder, whatever the header says is stored."""
    uid = require("pydicom", "data").uid
    return syntax in uid.JPEG2000TransferSyntaxes or syntax in uid.JPEGLSTransferSyntaxes


def _has_embedded_overlay(dataset: Any) -> bool:
    """Retired, but met: an overlay in the bits above the stored ones, whose group names a bit position."""
    positions = (dataset.get((group, 0x0102)) for group in range(0x6000, 0x6020, 2))
    return any(element is not None and element.value for element in positions)
