"""Writes that are whole or not at all."""

import os

import pytest

from dexcore.files import sync_folder, write_sealed, write_whole


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    write_whole(tmp_path / "a", b"old")
    write_whole(tmp_path / "a", memoryview(b"new"))
    assert contents(tmp_path) == {"a": b"new"}


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "a", b"old")
    with pytest.raises(TypeError):
        write_whole(tmp_path / "a", "text")
    assert contents(tmp_path) == {"a": b"old"}


def test_an_error_of_the_system_keeps_its_kind_and_names_the_file(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for place, kind in (("gone/a", FileNotFoundError), ("file/a", NotADirectoryError), ("folder", IsADirectoryError)):
        with pytest.raises(kind) as raised:
            write_whole(tmp_path / place, b"new")
        assert raised.value.filename == str(tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_pipe_or_a_device_is_not_replaced_by_a_file(tmp_path):
    (tmp_path / "seal").write_bytes(b"old")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"is no regular file: '.*pipe'$"):
        write_sealed({tmp_path / "pipe": b"new", tmp_path / "seal": b"new"})
    assert (tmp_path / "pipe").is_fifo()
    assert contents(tmp_path) == {"seal": b"old"}


def test_files_that_cannot_all_be_exchanged_are_left_without_their_seal(tmp_path):
    for name in ("first", "seal"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "second" / "in_the_way").mkdir(parents=True)
    with pytest.raises(OSError, match=r"second'$"):
        write_sealed({tmp_path / name: b"new" for name in ("first", "second", "seal")})
    assert contents(tmp_path) == {"first": b"new"}


def test_a_file_that_cannot_be_staged_leaves_all_the_old_ones(tmp_path):
    for name in ("first", "seal"):
        (tmp_path / name).write_bytes(b"old")
    with pytest.raises(TypeError):
        write_sealed({tmp_path / "first": b"new", tmp_path / "seal": "no bytes"})
    assert contents(tmp_path) == {"first": b"old", "seal": b"old"}


def test_a_folder_that_is_not_there_cannot_be_synced(tmp_path):
    sync_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        sync_folder(tmp_path / "gone")
