"""What kind of file a file is, from its first bytes; its name says nothing."""

import os
import stat
import struct
import zlib
from enum import StrEnum
from typing import BinaryIO

_HEAD_BYTES = 2048
_MOST_IFDS = 64  # of a TIFF that are looked at for a pyramid


class Kind(StrEnum):
    """The kinds of file that are told apart."""

    DICOM = "dicom"
    NIFTI = "nifti"  # NIfTI-1 and -2, also under gzip
    PNG = "png"
    JPEG = "jpeg"
    BMP = "bmp"
    TIFF = "tiff"
    NUMPY = "numpy"  # .npy
    NPZ = "npz"
    NRRD = "nrrd"
    METAIMAGE = "metaimage"  # .mha, .mhd
    VIDEO = "video"  # AVI, MP4, QuickTime, Matroska, MPEG, Windows Media
    HDF5 = "hdf5"
    HEIDELBERG = "heidelberg"  # .vol of Heidelberg Engineering
    SLIDE = "slide"  # a TIFF that holds a tiled picture in several sizes, as SVS
    ZIP = "zip"
    TAR = "tar"  # also under gzip
    GZIP = "gzip"  # of anything else
    SYNTHETIC = "synthetic"  # no file: drawn by SyntheticMVU


_MAGIC = {
    b"\x89PNG\r\n\x1a\n": Kind.PNG,
    b"\xff\xd8\xff": Kind.JPEG,
    b"\x93NUMPY": Kind.NUMPY,
    b"NRRD000": Kind.NRRD,
    b"\x89HDF\r\n\x1a\n": Kind.HDF5,
    b"HSF-OCT-": Kind.HEIDELBERG,
    b"\x1a\x45\xdf\xa3": Kind.VIDEO,  # Matroska, WebM
    b"\x00\x00\x01\xba": Kind.VIDEO,  # MPEG program stream
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": Kind.VIDEO,  # Windows Media
}
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")  # the second: an empty archive
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)
_METAIMAGE_KEYS = (b"ObjectType", b"NDims", b"Comment", b"DimSize")
_MPEG4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_STILL_BRANDS = (b"heic", b"heix", b"heif", b"mif1", b"msf1", b"avif")  # photographs in a video's container
_EXPLICIT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)


def file_kind(path: str | bytes | os.PathLike[str]) -> Kind | None:
    """The kind of a file, by content; None for what is no kind of ours.

    Raises:
        OSError: the file cannot be opened, or is none (a folder, a pipe, a device).
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its other end
        raise OSError(f"{os.fsdecode(path)} is no regular file")
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
        kind = _kind(head)
        if kind is Kind.GZIP:
            inside = _kind(_inflated(head))
            return inside if inside in (Kind.NIFTI, Kind.TAR) else Kind.GZIP
        if kind is Kind.TIFF and _is_pyramid(file, head):
            return Kind.SLIDE
    return kind


def _kind(head: bytes) -> Kind | None:
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[128:132] == b"DICM":
        return Kind.DICOM
    if head.startswith(b"\x1f\x8b\x08"):
        return Kind.GZIP
    if head.startswith(_TIFF_MAGIC):
        return Kind.TIFF
    if head.startswith(_ZIP_MAGIC):
        return Kind.NPZ if _first_member(head).endswith(b".npy") else Kind.ZIP
    if head[257:262] == b"ustar":
        return Kind.TAR
    if head[512:520] == b"\x89HDF\r\n\x1a\n":  # after a block of the user's, as MATLAB writes
        return Kind.HDF5
    if head.startswith(b"BM") and head[14:18] in [struct.pack("<I", size) for size in _BMP_HEADER_SIZES]:
        return Kind.BMP
    if _is_nifti(head):
        return Kind.NIFTI
    if head.startswith(_METAIMAGE_KEYS) and b"=" in head.split(b"\n", 1)[0]:
        return Kind.METAIMAGE
    if _is_video(head):
        return Kind.VIDEO
    return Kind.DICOM if _is_bare_dicom(head) else None


def _inflated(head: bytes) -> bytes:
    """The first bytes of what a gzip file holds, as far as it is whole."""
    inflater, inflated = zlib.decompressobj(16 + zlib.MAX_WBITS), b""
    try:
        for start in range(0, len(head), 256):
            inflated += inflater.decompress(head[start : start + 256], _HEAD_BYTES)
            if len(inflated) >= _HEAD_BYTES:
                break
    except zlib.error:
        pass
    return inflated


def _first_member(head: bytes) -> bytes:
    if len(head) < 30:
        return b""
    return head[30 : 30 + struct.unpack_from("<H", head, 26)[0]]


def _is_nifti(head: bytes) -> bool:
    """Also the header of a .hdr/.img pair (its magic begins with "ni")."""
    size = head[:4]
    if size in (struct.pack("<i", 348), struct.pack(">i", 348)):
        return head[344:348] in (b"n+1\0", b"ni1\0")
    return size in (struct.pack("<i", 540), struct.pack(">i", 540)) and head[4:8] in (b"n+2\0", b"ni2\0")


def _is_video(head: bytes) -> bool:
    if head.startswith(b"RIFF"):
        return head[8:12] in (b"AVI ", b"AVIX")
    return head[4:8] in _MPEG4_BOXES and head[8:12] not in _STILL_BRANDS


def _is_bare_dicom(head: bytes) -> bool:
    """DICOM without its preamble: a sound first element, of the file's or the identifying group."""
    for order in "<>":
        if len(head) < 16:
            return False
        group, element = struct.unpack_from(f"{order}HH", head)
        if group not in (0x0002, 0x0008) or element > 0x0100:
            continue
        if head[4:6] in _EXPLICIT_VRS:
            return True
        (length,) = struct.unpack_from(f"{order}I", head, 4)
        if length % 2 or not 0 < length <= len(head) - 12:
            continue
        following = struct.unpack_from(f"{order}HH", head, 8 + length)  # no VR: the next tag must follow
        if following[0] in (0x0002, 0x0008) and (group, element) < following:
            return True
    return False


def _is_pyramid(file: BinaryIO, head: bytes) -> bool:
    """Whether a TIFF holds a tiled colour picture in several sizes, or says that it is Aperio's."""
    order, big = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\0", b"\0+")
    try:
        (offset,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", head, 8 if big else 4)
        first, offset = _read_ifd(file, offset, order, big)
        if 322 not in first or first.get(262) not in (2, 6):  # tiles; RGB or YCbCr
            return False
        file.seek(first.get(270, 0))
        if (270 in first and file.read(6) == b"Aperio") or 330 in first:  # ImageDescription, SubIFDs
            return True
        for _ in range(_MOST_IFDS):
            if not offset:
                break
            page, offset = _read_ifd(file, offset, order, big)
            if 322 in page and page.get(256, 0) < first.get(256, 0) and page.get(257, 0) < first.get(257, 0):
                return True
    except (struct.error, OSError, ValueError, OverflowError):
        pass  # broken: the TIFF reader says how
    return False


def _read_ifd(file: BinaryIO, offset: int, order: str, big: bool) -> tuple[dict[int, int], int]:
    """The first value of each tag (or where its values lie), and where the next directory is."""
    file.seek(offset)
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", file.read(8 if big else 2))
    size, value_at = (20, 12) if big else (12, 8)
    data = file.read(min(count, 4096) * size)
    tags = {}
    for start in range(0, len(data) - size + 1, size):
        tag, kind = struct.unpack_from(f"{order}HH", data, start)
        code = "H" if kind == 3 else "Q" if big and kind != 4 else "I"
        (tags[tag],) = struct.unpack_from(order + code, data, start + value_at)
    (following,) = struct.unpack(f"{order}{'Q' if big else 'I'}", file.read(8 if big else 4))
    return tags, following
