"""A DICOM file opened up to its pixels: the data set, and where the bytes of the pixels lie."""

import io
import logging
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, BinaryIO

from dexcore.data.readers.dicom_values import safe_message
from dexcore.data.readers.scan import MAX_INFLATED_BYTES, RefusedError, UnreadableFileError
from dexcore.extras import MissingExtraError, require

_DEFLATED = "1.2.840.10008.1.2.1.99"
_UNDEFINED = 0xFFFFFFFF
_PIXELS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", 0x7FE00010: "PixelData"}
_LONG_VRS = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"UN", b"UT", b"SQ", b"UC", b"UR", b"SV", b"UV"}


@dataclass(frozen=True)
class DicomFile:
    """An open DICOM file.

    Attributes:
        dataset: all elements before the pixels.
        stream: the file (or what its deflated part inflates to).
        syntax: the transfer syntax.
        little: the byte order.
        keyword: the element that holds the pixels; None where there is none.
        vr: its value representation ("OW" where the file does not say).
        start: where its value starts in ``stream``.
        length: its bytes that are there; of a compressed image the rest of the file.
    """

    dataset: Any
    stream: BinaryIO
    syntax: Any
    little: bool = True
    keyword: str | None = None
    vr: str = "OW"
    start: int = 0
    length: int = 0


@contextmanager
def open_dicom(source: str | os.PathLike[str] | BinaryIO) -> Iterator[DicomFile]:
    """Read a file's elements up to the pixels, which stay on disk.

    Args:
        source: its path, or an open file that can seek (a member of an archive), which stays open.

    Raises:
        RefusedError: it is no DICOM, or inflates to more than the limit; whatever else is raised while it is open
            becomes one too, without what it quotes from the file.
    """
    pydicom = require("pydicom", "data")
    with _opened(source) as file, quiet_pydicom():
        try:
            dataset, stream = _read_dataset(pydicom, file)
        except (RefusedError, MissingExtraError):
            raise
        except Exception as error:
            raise RefusedError(f"the DICOM elements cannot be read: {safe_message(error)}") from None
        try:
            yield _with_pixels(dataset, stream)
        except (RefusedError, MissingExtraError):
            raise
        except Exception as error:  # its text and its traceback may quote the file
            raise RefusedError(safe_message(error)) from None


def _opened(source: str | os.PathLike[str] | BinaryIO) -> AbstractContextManager[BinaryIO]:
    return open(source, "rb") if isinstance(source, str | bytes | os.PathLike) else nullcontext(source)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Elements that pydicom warns about are checked where they are used; decoding has its own rules."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def naming(source: str | os.PathLike[str] | BinaryIO) -> Iterator[None]:
    """Turn whatever is raised inside into the one error that names the file, as `readers.read_file` does."""
    path = source if isinstance(source, str | bytes | os.PathLike) else str(getattr(source, "name", "a file"))
    try:
        yield
    except (MissingExtraError, UnreadableFileError):
        raise
    except RefusedError as error:
        raise UnreadableFileError(path, str(error)) from None
    except Exception as error:
        raise UnreadableFileError(path, safe_message(error)) from None


def _read_dataset(pydicom: Any, file: BinaryIO) -> tuple[Any, BinaryIO]:
    filereader = pydicom.filereader
    preamble = filereader.read_preamble(file, force=True)
    if preamble is None and not _starts_as_dicom(file):
        raise RefusedError("not a DICOM file")
    meta = filereader.read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if preamble is None or meta.get("TransferSyntaxUID") != _DEFLATED:
        file.seek(0)
        return pydicom.dcmread(file, stop_before_pixels=True, force=preamble is None), file
    stream = io.BytesIO(_inflate(file))
    dataset = filereader.read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag in _PIXELS)
    dataset.file_meta = meta
    dataset.set_original_encoding(False, True)
    return dataset, stream


def _starts_as_dicom(file: BinaryIO) -> bool:
    """Whether a file without the preamble starts with an element of the first groups."""
    head = file.read(8)
    file.seek(0)
    return any(head.startswith(group) for group in (b"\2\0", b"\0\2", b"\x08\0", b"\0\x08")) and len(head) == 8


def _with_pixels(dataset: Any, stream: BinaryIO) -> DicomFile:
    syntax = _syntax(dataset)
    implicit, little = (value is not False for value in dataset.original_encoding)
    order = "<" if little else ">"
    at = stream.tell()
    size = stream.seek(0, os.SEEK_END)
    stream.seek(at)
    head = stream.read(12)
    if len(head) < 8:
        return DicomFile(dataset, stream, syntax, little)
    group, element = struct.unpack_from(order + "HH", head)
    keyword = _PIXELS.get(group << 16 | element)
    if keyword is None:
        return DicomFile(dataset, stream, syntax, little)
    vr = b"OW" if implicit else head[4:6]
    long_vr = not implicit and vr in _LONG_VRS
    if implicit:
        length = struct.unpack_from(order + "L", head, 4)[0]
    else:
        length = struct.unpack_from(*((order + "L", head, 8) if long_vr else (order + "H", head, 6)))[0]
    start = at + (12 if long_vr else 8)
    there = size - start
    claimed = there if length == _UNDEFINED else length
    vr_name = vr.decode("latin-1")
    return DicomFile(dataset, stream, syntax, little, keyword, vr_name, start, max(0, min(claimed, there)))


def _syntax(dataset: Any) -> Any:
    """The transfer syntax; where the file does not say, the uncompressed one by which pydicom could read it."""
    uid = require("pydicom", "data").uid
    stated = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if stated:
        return uid.UID(str(stated))
    implicit, little = dataset.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _inflate(file: BinaryIO) -> bytes:
    """Inflate a deflated data set, measured first: pydicom would inflate all of it at once.

    Raises:
        RefusedError: it inflates to more than the limit.
    """
    data = file.read()
    inflated = 0
    for piece in _inflated_pieces(data):
        inflated += len(piece)
        if inflated > MAX_INFLATED_BYTES:
            raise RefusedError(f"a deflated data set of more than {MAX_INFLATED_BYTES} bytes")
    return b"".join(_inflated_pieces(data))


def _inflated_pieces(data: bytes) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while data and not inflater.eof:
        yield inflater.decompress(data, 1 << 20)
        data = inflater.unconsumed_tail
