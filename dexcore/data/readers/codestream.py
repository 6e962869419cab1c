"""What a compressed image itself declares, read from its first bytes without decoding anything."""

import struct
from typing import NamedTuple

_SOI = b"\xff\xd8"  # JPEG and JPEG-LS
_SOC_SIZ = b"\xff\x4f\xff\x51"  # JPEG 2000: start of codestream, then the size marker
# Start-of-frame markers: SOF0-15 without DHT (C4), JPG (C8) and DAC (CC), and JPEG-LS's SOF55.
_START_OF_LS_FRAME = 0xF7
_START_OF_FRAME = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {_START_OF_LS_FRAME}
_APP1, _EXIF = 0xE1, b"Exif\0\0"


class Codestream(NamedTuple):
    """Size in pixels, samples a pixel, bits a sample, and whether these are signed (JPEG 2000 alone says so).

    Of JPEG and JPEG-LS also which of the two it is, and the EXIF segment (b"" without one).
    """

    height: int
    width: int
    samples: int
    bits: int
    signed: bool = False
    jpeg_ls: bool = False
    exif: bytes = b""


def read_codestream(data: bytes) -> Codestream | None:
    """What a JPEG, JPEG-LS or JPEG 2000 codestream declares; None for others and broken headers."""
    try:
        if data.startswith(_SOI):
            return _read_jpeg(data)
        start = data.find(_SOC_SIZ, 0, 4096)  # a JP2 file wraps the codestream in boxes
        if start < 0:
            return None
        width, height, left, top = struct.unpack_from(">4I", data, start + 8)
        samples, depth = struct.unpack_from(">HB", data, start + 40)
        return Codestream(height - top, width - left, samples, (depth & 127) + 1, depth > 127)
    except (struct.error, IndexError):
        return None


def jpeg_ends(data: bytes) -> bool:
    """Whether a JPEG's last scan is followed by the end of the image: decoders fill up what is cut off, in silence."""
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def _read_jpeg(data: bytes) -> Codestream | None:
    position, exif = 2, b""
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _START_OF_FRAME:
            bits, height, width, samples = struct.unpack_from(">BHHB", data, position + 4)
            return Codestream(height, width, samples, bits, jpeg_ls=marker == _START_OF_LS_FRAME, exif=exif)
        end = position + 2 + struct.unpack_from(">H", data, position + 2)[0]
        if marker == _APP1 and data.startswith(_EXIF, position + 4) and not exif:
            exif = data[position + 4 : end]
        position = end
    return None
