"""Members of zip and tar archives: each accounted for, none unpacked to where its name says, no bomb inflated."""

import gzip
import io
import stat
import struct
import tarfile
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.data.readers.archive import each_member, members, open_member

_FORMATS = ("zip", "tar", "tar.gz")


def _png(value):
    file = io.BytesIO()
    Image.new("L", (9, 8), value).save(file, format="PNG")
    return file.getvalue()


def _archive(path, contents):
    """A zip or tar, as the name ends, of {name: bytes}; a name that ends in "/" is a folder."""
    if path.name.endswith("zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in contents.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in contents.items():
            info = tarfile.TarInfo(name.rstrip("/"))
            info.size = len(data)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(params=_FORMATS)
def archive(request, tmp_path):
    contents = {"a/": b"", "a/1.png": _png(1), "größe (2).png": _png(2), "notes.txt": b"none", "3": _png(3)}
    return _archive(tmp_path / f"images.{request.param}", contents)


def test_members_are_named_in_their_order_without_folders(archive):
    assert list(members(archive)) == ["a/1.png", "größe (2).png", "notes.txt", "3"]


def test_a_member_is_read_from_a_temporary_file_that_goes_away(archive):
    before = sorted(archive.parent.iterdir())
    for name, value in (("a/1.png", 1), ("größe (2).png", 2), ("3", 3)):
        with open_member(archive, name) as path:
            assert (read_file(path).pixels == value).all()
            assert archive.parent not in path.parents
        assert not path.exists()
    assert sorted(archive.parent.iterdir()) == before


def test_all_members_come_in_one_pass(archive):
    found = {}
    for name, path in each_member(archive):
        found[name] = path.read_bytes()
    assert found == {"a/1.png": _png(1), "größe (2).png": _png(2), "notes.txt": b"none", "3": _png(3)}
    assert [name for name, _ in each_member(archive, {"3", "a/1.png"})] == ["a/1.png", "3"]
    assert not path.exists()


def test_an_error_of_who_reads_the_members_is_theirs(archive):
    step = each_member(archive)
    _, path = next(step)
    with pytest.raises(KeyError, match="theirs"):
        step.throw(KeyError("theirs"))
    assert not path.exists()
    with pytest.raises(KeyError, match="theirs"), open_member(archive, "3") as path:
        raise KeyError("theirs")
    assert not path.exists()


def test_a_member_that_is_missing_is_an_error_with_both_names(archive):
    with (
        pytest.raises(UnreadableFileError, match=r"images.*!/b.png: the archive has no such member"),
        open_member(archive, "b.png"),
    ):
        pass


@pytest.mark.parametrize("outer", _FORMATS)
@pytest.mark.parametrize("inner", _FORMATS)
def test_an_archive_in_an_archive_is_looked_into_once(tmp_path, outer, inner):
    deepest = _archive(tmp_path / "c.zip", {"4.png": _png(4)}).read_bytes()
    nested = _archive(tmp_path / f"b.{inner}", {"2.png": _png(2), "c.zip": deepest}).read_bytes()
    path = _archive(tmp_path / f"a.{outer}", {"1.png": _png(1), f"in/b.{inner}": nested, "3.png": _png(3)})
    assert list(members(path)) == ["1.png", f"in/b.{inner}!/2.png", f"in/b.{inner}!/c.zip", "3.png"]
    with open_member(path, f"in/b.{inner}!/2.png") as member:
        assert (read_file(member).pixels == 2).all()
    with (
        pytest.raises(UnreadableFileError, match="an archive in an archive in an archive"),
        open_member(path, f"in/b.{inner}!/c.zip"),
    ):
        pass


@pytest.mark.parametrize("suffix", _FORMATS)
def test_a_broken_archive_in_an_archive_costs_itself_alone(tmp_path, suffix):
    path = _archive(
        tmp_path / f"a.{suffix}", {"1.png": _png(1), "b.zip": b"PK\3\4 rubbish", "c.tar": b"text", "2.png": _png(2)}
    )
    found = {name: str(file) for name, file in each_member(path)}
    assert list(found) == ["1.png", "b.zip", "c.tar", "2.png"]
    assert "BadZipFile" in found["b.zip"]


@pytest.mark.parametrize("suffix", _FORMATS)
@pytest.mark.parametrize("name", ["../1.png", "/1.png", "a/../../1.png", "C:\\1.png", "\\\\host\\1.png"])
def test_names_that_lead_out_are_refused_and_named(tmp_path, suffix, name):
    path = _archive(tmp_path / f"a.{suffix}", {name: _png(1), "2.png": _png(2)})
    found = list(each_member(path))
    assert [member for member, _ in found] == [name, "2.png"]
    assert isinstance(found[0][1], UnreadableFileError)
    assert "leads out" in found[0][1].reason


def test_links_and_devices_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("soft", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("pipe", tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("soft")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    reasons = {
        f"{path.suffix} {name}": error.reason
        for path in (tmp_path / "a.tar", tmp_path / "a.zip")
        for name, error in each_member(path)
    }
    assert reasons == {
        ".tar soft": "a link",
        ".tar hard": "a link",
        ".tar pipe": "no plain file",
        ".zip soft": "a link",
    }


def test_encrypted_and_unusual_members_are_refused(tmp_path):
    path = _archive(tmp_path / "a.zip", {"1.png": _png(1)})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UnreadableFileError, match="encrypted"), open_member(path, "1.png"):
        pass
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("1.png", _png(1))
    with pytest.raises(UnreadableFileError, match="method 14"), open_member(path, "1.png"):
        pass


def test_a_name_that_occurs_twice_is_refused_the_second_time(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.png", _png(1))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("1.png", _png(2))
    (_, first), (_, second) = [
        (name, file if isinstance(file, Exception) else file.read_bytes())
        for name, file in each_member(tmp_path / "a.zip")
    ]
    assert first == _png(1)
    assert "occurs twice" in second.reason


@pytest.mark.parametrize("suffix", [*_FORMATS, "nested.zip"])
def test_bombs_are_refused_by_ratio_within_two_seconds(tmp_path, suffix):
    zeros = bytes(1 << 20)
    if suffix == "tar":  # nothing is compressed: it says more than it is
        info = tarfile.TarInfo("bomb")
        info.size = 1 << 40
        (tmp_path / "a.tar").write_bytes(info.tobuf() + zeros)
    elif suffix == "tar.gz":
        info = tarfile.TarInfo("bomb")
        info.size = 1 << 31
        with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
            file.write(info.tobuf())
            for _ in range(100):
                file.write(zeros)
    else:
        with (
            zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("bomb", "w") as file,
        ):
            for _ in range(100):
                file.write(zeros)
        if suffix == "nested.zip":
            _archive(tmp_path / "a.nested.zip", {"a.zip": (tmp_path / "a.zip").read_bytes()})
    start = time.monotonic()
    refusals = []
    try:
        refusals = [file for _, file in each_member(tmp_path / f"a.{suffix}")]
    except UnreadableFileError as error:
        refusals.append(error)
    assert time.monotonic() - start < 2
    assert ("unexpected end" if suffix == "tar" else "expected at most") in refusals[0].reason


def test_a_zip_whose_directory_would_fill_the_memory_is_refused(tmp_path):
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 1 << 30, 0, 0)
    (tmp_path / "a.zip").write_bytes(b"PK\3\4" + bytes(100) + end)
    with pytest.raises(UnreadableFileError, match="a directory of 1073741824 bytes"):
        list(members(tmp_path / "a.zip"))


def test_truncated_archives_are_errors_after_the_members_that_are_whole(tmp_path):
    noise = np.random.default_rng(0).bytes
    contents = {f"{number}.png": noise(3000) for number in range(5)}
    for suffix in _FORMATS:
        path = _archive(tmp_path / f"a.{suffix}", contents)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        found = []
        with pytest.raises(UnreadableFileError, match=r"BadZipFile|unexpected end|EOFError|damaged"):
            found.extend(name for name, file in each_member(path) if not isinstance(file, Exception))
        assert found == list(contents)[: {"zip": 0, "tar": 3, "tar.gz": len(found)}[suffix]]


def test_damage_between_two_members_is_no_end_of_the_archive(tmp_path):
    path = _archive(tmp_path / "a.tar", {"1.png": bytes(512), "2.png": bytes(512), "3.png": bytes(512)})
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 1  # the second header's checksum
    path.write_bytes(data)
    with pytest.raises(UnreadableFileError, match="a damaged archive: bad checksum"):
        list(members(path))
    path.write_bytes(_archive(path, {"1.png": bytes(512), "2.png": bytes(512)}).read_bytes()[:1024])
    with pytest.raises(UnreadableFileError, match="a damaged archive: empty header"):
        list(members(path))


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])  # a tar has no checksums
def test_flipped_bytes_of_a_member_are_noticed(tmp_path, suffix):
    path = _archive(tmp_path / f"a.{suffix}", {"1.png": np.random.default_rng(0).bytes(5000)})
    data = bytearray(path.read_bytes())
    data[2500] ^= 1
    path.write_bytes(data)
    errors = []
    try:
        errors = [file for _, file in each_member(path) if isinstance(file, UnreadableFileError)]
    except UnreadableFileError as error:
        errors = [error]
    assert "CRC" in errors[0].reason


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(_png(1))
    with pytest.raises(UnreadableFileError, match="neither a zip nor a tar"):
        list(members(tmp_path / "a.zip"))
