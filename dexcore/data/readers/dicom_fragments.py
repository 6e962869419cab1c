"""The frames of compressed DICOM pixels: fragments counted and joined, their own sizes checked before decoding."""

import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from dexcore.data.readers.codestream import read_codestream
from dexcore.data.readers.dicom_file import DicomFile
from dexcore.data.readers.dicom_values import raw_value
from dexcore.data.readers.scan import RefusedError
from dexcore.extras import require

_ITEM, _END = 0xFFFEE000, 0xFFFEE0DD
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")  # JPEG and JPEG-LS, JPEG 2000, its boxes
_END_OF_IMAGE = b"\xff\xd9"  # of JPEG, JPEG-LS and JPEG 2000
_RLE_BYTES = 1 << 20  # two bytes become 128 at most: fragments of less need no count

Fragment = tuple[int, int]  # where its bytes start in the file, and how many they are


def find_frames(file: DicomFile, declared: int | None) -> list[list[Fragment]]:
    """The fragments of each frame.

    An offset table is believed where it names as many frames as the header, or where the fragments themselves do not
    show where frames start; else a frame starts with each codestream.

    Raises:
        RefusedError: there are fewer frames than the header says, or a fragment is broken off.
    """
    table, fragments = _fragments(file)
    if not fragments:
        raise RefusedError("compressed pixel data without a fragment")
    by_content = _starts_by_content(file, fragments, declared)
    by_table = _starts_by_table(file, table, fragments)
    starts = by_table if by_table and (len(by_table) == declared or len(by_content) == 1) else by_content
    if declared is not None and len(starts) < declared:
        raise RefusedError(f"the pixel data holds {len(starts)} compressed frames, NumberOfFrames says {declared}")
    ends = [*starts[1:], len(fragments)]
    return [fragments[start:end] for start, end in zip(starts, ends, strict=True)]


def _fragments(file: DicomFile) -> tuple[bytes, list[Fragment]]:
    """The basic offset table, and all fragments after it."""
    stream, end = file.stream, file.start + file.length
    found: list[Fragment] = []
    at = file.start
    while at + 8 <= end:
        stream.seek(at)
        group, element, length = struct.unpack("<HHL", stream.read(8))
        if group << 16 | element == _END:
            break
        if group << 16 | element != _ITEM:
            raise RefusedError(f"compressed pixel data of which fragment {len(found)} does not start as one")
        if at + 8 + length > end:
            raise RefusedError(f"the pixel data is cut off in its fragment {len(found)}")
        found.append((at + 8, length))
        at += 8 + length
    if not found:
        return b"", []
    return _read(stream, found[0]), found[1:]


def _read(stream: Any, fragment: Fragment) -> bytes:
    stream.seek(fragment[0])
    return bytes(stream.read(fragment[1]))


def _starts_by_content(file: DicomFile, fragments: Sequence[Fragment], declared: int | None) -> list[int]:
    rle = file.syntax == require("pydicom", "data").uid.RLELossless
    if rle and len(fragments) == declared:
        return list(range(len(fragments)))  # a frame is one fragment, as it should be
    heads = [_read(file.stream, (start, min(length, 12))) for start, length in fragments]
    if rle:
        return [index for index, head in enumerate(heads) if index == 0 or _starts_rle(head)]
    return [index for index, head in enumerate(heads) if index == 0 or head.startswith(_STARTS)]


def _starts_rle(head: bytes) -> bool:
    """Whether a fragment begins with RLE's header: the number of segments, and where the first lies (behind it)."""
    segments, first = struct.unpack("<LL", head[:8].ljust(8, b"\0"))
    return 1 <= segments <= 15 and first == 64


def _starts_by_table(file: DicomFile, table: bytes, fragments: Sequence[Fragment]) -> list[int] | None:
    extended = raw_value(file.dataset, "ExtendedOffsetTable")
    if isinstance(extended, bytes) and len(extended) % 8 == 0 and extended:
        offsets = struct.unpack(f"<{len(extended) // 8}Q", extended)
    elif table and len(table) % 4 == 0:
        offsets = struct.unpack(f"<{len(table) // 4}L", table)
    else:
        return None
    by_offset = {start - fragments[0][0]: index for index, (start, _) in enumerate(fragments)}
    starts = [by_offset.get(offset, -1) for offset in offsets]
    sound = starts[0] == 0 and all(first < second for first, second in pairwise(starts))
    return starts if sound else None


def read_frame(
    file: DicomFile, fragments: Sequence[Fragment], index: int, rows: int, columns: int, samples: int
) -> bytes:
    """The compressed bytes of a frame, whose own size is the header's: decoders take memory for the former.

    Raises:
        RefusedError: with both sizes.
    """
    data = b"".join(_read(file.stream, fragment) for fragment in fragments)
    if file.syntax == require("pydicom", "data").uid.RLELossless:
        most = rows * columns * samples * 8  # bytes, of 64 bits a sample
        if len(data) > _RLE_BYTES and _rle_exceeds(data, most + _RLE_BYTES):
            raise RefusedError(f"frame {index} inflates to far more than {rows} x {columns} pixels")
        return data
    stream = read_codestream(data)
    if stream is None:
        raise RefusedError(f"frame {index} is not compressed as its transfer syntax says")
    if not data.rstrip(b"\0\xff").endswith(_END_OF_IMAGE):  # decoders fill up what is missing, without a word
        raise RefusedError(f"frame {index} is cut off: its compressed data has no end mark")
    if (stream.height, stream.width) != (rows, columns):
        raise RefusedError(
            f"frame {index} is compressed at {stream.height} x {stream.width} pixels, "
            f"its header says {rows} x {columns}"
        )
    if stream.samples != samples:
        raise RefusedError(f"frame {index} is compressed with {stream.samples} samples a pixel, expected {samples}")
    return data


def _rle_exceeds(data: bytes, most: int) -> bool:
    """Whether run-length coded bytes inflate to more than ``most``."""
    at, size, end = 64, 0, len(data)
    while at < end and size <= most:
        head = data[at]
        if head < 128:
            size, at = size + head + 1, at + head + 2
        elif head > 128:
            size, at = size + 257 - head, at + 2
        else:
            at += 1
    return size > most
