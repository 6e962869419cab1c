"""Files inside ``.zip`` and ``.tar`` (also gzipped), one at a time, without unpacking the archive.

A member lies in a temporary file (in the system's temporary folder) while it is looked at; never where its name says.
"""

import gzip
import os
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from dexcore.data.readers.kind import Kind, file_kind
from dexcore.data.readers.scan import RefusedError, UnreadableFileError, check_ratio, unreadable

MAX_MEMBER_BYTES = 1 << 32
_MAX_DIRECTORY_BYTES = 1 << 26  # of a zip's directory, which is held whole: about 600,000 members
_CHUNK_BYTES = 1 << 20
_ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".tar.gz")
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # LZMA takes the memory that it declares
_SUFFIXES = re.compile(r"(\.[A-Za-z0-9]{1,8}){1,2}")
_INSIDE = "!/"


def members(path: str | os.PathLike[str]) -> Iterator[str]:
    """The names of all members that are no folders, in their order; ``inner.zip!/name`` for an archive's inside.

    Names that `open_member` refuses are among them, so that every file can be accounted for.

    Raises:
        UnreadableFileError: no archive, a bomb, or damaged, in this case after the names before the damage.
    """
    for member in _named(path):
        yield member.name


@contextmanager
def open_member(path: str | os.PathLike[str], name: str) -> Iterator[Path]:
    """A temporary file with one member's bytes, for `read_file`; gone afterwards.

    The archive is searched from its start: `each_member` is for many of them.

    Raises:
        UnreadableFileError: no such member, a link, an encrypted one, a name that leads out of the archive or that
            occurs twice, an archive deeper than one level, a bomb, damaged; or the archive is, before the member.
    """
    for member in _named(path):
        if member.name == name:
            with _extracted(path, member) as file:
                yield file
            return
    raise UnreadableFileError(f"{os.fspath(path)}{_INSIDE}{name}", "the archive has no such member")


def each_member(
    path: str | os.PathLike[str], names: Container[str] | None = None
) -> Iterator[tuple[str, Path | UnreadableFileError]]:
    """All members, or those in ``names``, in one pass: a temporary file each, or why there is none.

    Yields:
        the name; a file that exists until the next step, or the error that `open_member` would raise.

    Raises:
        UnreadableFileError: as `members`. A gzipped tar has one checksum, behind its last member: where that does not
            match, all members that were given may be wrong.
    """
    for member in _named(path):
        if names is not None and member.name not in names:
            continue
        try:
            extracted = _extracted(path, member)
            file = extracted.__enter__()
        except UnreadableFileError as error:
            yield member.name, error
            continue
        try:
            yield member.name, file
        finally:
            extracted.__exit__(None, None, None)


class _Member(NamedTuple):
    name: str
    refusal: str | None
    open: Callable[[], IO[bytes] | None]


def _named(path: str | os.PathLike[str]) -> Iterator[_Member]:
    walk = _walk(Path(path), "")
    while True:
        with unreadable(path):
            member = next(walk, None)
        if member is None:
            return
        yield member


@contextmanager
def _extracted(path: str | os.PathLike[str], member: _Member) -> Iterator[Path]:
    inside = f"{os.fspath(path)}{_INSIDE}{member.name}"
    if member.refusal is not None:
        raise UnreadableFileError(inside, member.refusal)
    with tempfile.TemporaryDirectory(prefix="dexcore-") as folder:
        suffix = _SUFFIXES.fullmatch("".join(PurePosixPath(member.name).suffixes[-2:]))
        copy = Path(folder, f"member{suffix[0].lower() if suffix else ''}")
        with open(copy, "wb") as file:
            pieces = _pieces(member)
            while True:
                with unreadable(inside):  # not what goes wrong while the copy is written
                    piece = next(pieces, None)
                if piece is None:
                    break
                file.write(piece)
        yield copy


def _pieces(member: _Member) -> Iterator[bytes]:
    size = 0
    with member.open() as file:  # type: ignore[union-attr]  # None for tar's links and devices, which are refused
        while piece := file.read(_CHUNK_BYTES):
            size += len(piece)
            if size > MAX_MEMBER_BYTES:
                raise RefusedError(f"more than {MAX_MEMBER_BYTES} bytes")
            yield piece


def _walk(path: Path, prefix: str) -> Iterator[_Member]:
    """The members of an archive, those of archives in it in their place; each to be opened before the next step."""
    kind = file_kind(path)
    with open(path, "rb") as file:
        if kind in (Kind.ZIP, Kind.NPZ):
            found = _zip_members(file)
        elif kind is Kind.TAR:
            found = _tar_members(file)
        else:
            raise RefusedError("neither a zip nor a tar archive")
        seen = set()
        for name, refusal, opened in found:
            if refusal is None and _leaves(name):
                refusal = "its name leads out of the archive"
            if refusal is None and name in seen:
                refusal = "its name occurs twice in the archive"
            seen.add(name)
            member = _Member(prefix + name, refusal, opened)
            if refusal is not None or not name.lower().endswith(_ARCHIVE_SUFFIXES):
                yield member
            elif prefix:
                yield member._replace(refusal="an archive in an archive in an archive")
            else:
                yield from _inside(path, member)


def _inside(path: Path, member: _Member) -> Iterator[_Member]:
    """The members of an archive in an archive; itself, if it cannot be read or only has the name of one."""
    try:
        with _extracted(path, member) as copy:
            if file_kind(copy) in (Kind.ZIP, Kind.NPZ, Kind.TAR):
                yield from _walk(copy, member.name + _INSIDE)
            else:
                yield member._replace(open=partial(_reopened, copy))
    except UnreadableFileError as error:
        yield member._replace(refusal=error.reason)
    except Exception as error:  # zipfile, tarfile and zlib raise many
        reason = str(error) if isinstance(error, RefusedError) else f"{type(error).__name__}: {error}"
        yield member._replace(refusal=reason)


def _reopened(path: Path) -> IO[bytes]:
    return open(path, "rb")


def _leaves(name: str) -> bool:
    parts = re.split(r"[/\\]", name)
    return ".." in parts or not parts[0] or parts[0].endswith(":") or "\0" in name


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                yield _Member(info.filename, _zip_refusal(info), partial(archive.open, info))


def _zip_refusal(info: zipfile.ZipInfo) -> str | None:
    if info.flag_bits & 1:
        return "an encrypted member"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a link"
    if info.compress_type not in _ZIP_METHODS:
        return f"compressed by method {info.compress_type}, expected none, deflate or bzip2"
    if info.file_size > MAX_MEMBER_BYTES:
        return f"{info.file_size} bytes, expected at most {MAX_MEMBER_BYTES}"
    try:
        check_ratio(info.file_size, info.compress_size)
    except RefusedError as error:
        return str(error)
    return None


def _check_directory(file: IO[bytes]) -> None:
    """Refuse a directory that would fill the memory: zipfile reads all of it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - (1 << 16) - 200))
    tail = file.read()
    end, end_64 = tail.rfind(b"PK\x05\x06"), tail.rfind(b"PK\x06\x06")
    declared = 0
    if 0 <= end <= len(tail) - 16:
        (declared,) = struct.unpack_from("<I", tail, end + 12)
    if declared == 0xFFFFFFFF and 0 <= end_64 <= len(tail) - 48:
        (declared,) = struct.unpack_from("<Q", tail, end_64 + 40)
    if declared > _MAX_DIRECTORY_BYTES:
        raise RefusedError(f"a directory of {declared} bytes, expected at most {_MAX_DIRECTORY_BYTES}")
    file.seek(0)


class _Inflated:
    """A gzip stream that stops at a bomb, and does not end twice: tarfile would skip a terabyte behind its end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._compressed, self._inflated = file, gzip.GzipFile(fileobj=file)
        self._size, self._ended = 0, False

    def read(self, size: int) -> bytes:
        data = self._inflated.read(size)
        self._size += len(data)
        check_ratio(self._size, self._compressed.tell())
        if not data and self._ended:
            raise RefusedError("a damaged archive: unexpected end of data")
        self._ended = not data
        return data


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes damage behind the first member, and a missing end, for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictHeader":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the mark of the end
            raise
        except tarfile.HeaderError as error:
            raise RefusedError(f"a damaged archive: {error}") from error


def _tar_members(file: IO[bytes]) -> Iterator[_Member]:
    size = os.fstat(file.fileno()).st_size
    stream = _Inflated(file) if file.read(2) == b"\x1f\x8b" else None
    file.seek(0)
    with tarfile.open(  # type: ignore[call-overload]
        fileobj=stream or file, mode="r|" if stream else "r:", tarinfo=_StrictHeader
    ) as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # it would keep all headers
            if stream:
                check_ratio(info.size, size)  # what is skipped must be inflated
            elif info.isreg() and info.offset_data + info.size > size:
                raise RefusedError("a damaged archive: unexpected end of data")
            if not info.isdir():
                yield _Member(info.name, _tar_refusal(info), partial(archive.extractfile, info))
        while stream and stream.read(_CHUNK_BYTES):
            pass  # to the checksum at the end


def _tar_refusal(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "a link"
    if not info.isreg() or info.issparse():
        return "no plain file"
    if info.size > MAX_MEMBER_BYTES:
        return f"{info.size} bytes, expected at most {MAX_MEMBER_BYTES}"
    return None
