import dataclasses
import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from made_records import made_records
from made_stores import die_before_operation, in_a_process

from dexcore.data.record import ImageRecord
from dexcore.data.store import Store, check_store, write_store
from dexcore.data.store.manifest import MANIFEST, Manifest, StoreError


def test_the_same_records_give_the_same_bytes(folder, tmp_path):
    again = tmp_path / "elsewhere" / "again"
    write_store(made_records(20), again, name="made", shard_bytes=12_000)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)


def build_and_die(folder: Path) -> None:
    def records() -> Iterator[ImageRecord]:
        yield from made_records(30, seed=1)
        os.kill(os.getpid(), signal.SIGKILL)

    write_store(records(), folder, name="killed", shard_bytes=12_000)


def test_a_killed_build_leaves_nothing_that_opens_and_can_be_repeated(tmp_path):
    folder = tmp_path / "store"
    assert in_a_process(lambda: build_and_die(folder)) == (-signal.SIGKILL, "")
    assert any(folder.iterdir())
    with pytest.raises(StoreError, match=r"manifest.json is missing: .* its build did not end"):
        Store(folder)
    manifest = write_store(made_records(5), folder, name="again")
    assert check_store(folder) == []
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *(shard.name for shard in manifest.shards)}


def test_a_killed_build_leaves_the_store_that_was_there(folder):
    before = Manifest.load(folder)
    assert in_a_process(lambda: build_and_die(folder)) == (-signal.SIGKILL, "")
    assert check_store(folder) == []
    assert Manifest.load(folder) == before


def test_a_build_killed_at_any_moment_leaves_the_old_store_or_the_new(tmp_path):
    """The process kills itself before its first, second, ... file operation."""

    def build(folder: Path, moment: int) -> None:
        die_before_operation(moment)
        write_store(made_records(9, seed=1), folder, name="new", shard_bytes=12_000)

    write_store(made_records(9), tmp_path / "store", name="old", shard_bytes=12_000)
    seen = []
    for moment in range(1, 100):
        folder = tmp_path / f"copy-{moment}"
        shutil.copytree(tmp_path / "store", folder)
        exit_code, error = in_a_process(lambda folder=folder, moment=moment: build(folder, moment))
        assert check_store(folder) == []
        seen.append(Manifest.load(folder).name)
        if exit_code == 0:
            break
        assert (exit_code, error) == (-signal.SIGKILL, "")
    assert seen == sorted(seen, reverse=True)  # "old" until the commit, then "new"
    assert seen.count("old") > 10
    assert seen.count("new") > 3


def test_a_build_that_fails_leaves_no_temporary_files(folder):
    before = {path.name for path in folder.iterdir()}

    def records():
        yield from made_records(20, seed=1)
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        write_store(records(), folder, name="broken", shard_bytes=12_000)
    assert {path.name for path in folder.iterdir()} == before
    assert check_store(folder) == []


def test_a_new_build_replaces_a_store_and_its_shards(folder):
    manifest = write_store(made_records(4, seed=1), folder, name="new")
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *(shard.name for shard in manifest.shards)}
    assert check_store(folder) == []


def test_of_two_builds_at_a_time_the_first_to_end_stays(tmp_path):
    def records() -> Iterator[ImageRecord]:
        yield from made_records(20)
        write_store(made_records(7, seed=1), tmp_path / "store", name="first")

    with pytest.raises(StoreError, match="cannot write a store into"):
        write_store(records(), tmp_path / "store", name="second", shard_bytes=12_000)
    assert check_store(tmp_path / "store") == []
    assert Manifest.load(tmp_path / "store").name == "first"


@pytest.mark.parametrize("foreign", ["thesis.docx", "shard-notes.txt"])
def test_a_folder_with_other_files_is_refused(tmp_path, foreign):
    (tmp_path / foreign).write_text("precious")
    with pytest.raises(StoreError, match=f"holds {foreign} and no store: expected an empty folder or a store"):
        write_store(made_records(2), tmp_path, name="x")
    assert [path.name for path in tmp_path.iterdir()] == [foreign]


def test_the_manifest_of_another_program_is_not_replaced(tmp_path):
    (tmp_path / MANIFEST).write_text('{"short_name": "an extension of a browser"}')
    with pytest.raises(StoreError, match="is no manifest of a store"):
        write_store(made_records(2), tmp_path, name="x")
    assert "browser" in (tmp_path / MANIFEST).read_text()


def test_a_file_in_the_folders_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write a store into .*/file"):
        write_store(made_records(2), tmp_path / "file", name="x")


def test_a_read_only_folder_is_named(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)

    def work() -> None:
        if os.getuid() == 0:  # root writes anywhere
            os.setuid(65534)
        write_store(made_records(2), folder, name="x")

    exit_code, error = in_a_process(work)
    assert exit_code == 1
    assert error.startswith(f"StoreError: cannot write a store into {folder}: [Errno 13]")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    def work() -> None:
        # A limit on the size of files stands in for a disk with no space left.
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        write_store(made_records(90), tmp_path / "store", name="x")

    exit_code, error = in_a_process(work)
    assert exit_code == 1
    assert error.startswith(f"StoreError: cannot write a store into {tmp_path / 'store'}")
    assert list((tmp_path / "store").iterdir()) == []


def test_no_records_and_impossible_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="records is empty"):
        write_store([], tmp_path, name="x")
    for option in ("shard_bytes", "max_side"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1, got 0"):
            write_store(made_records(1), tmp_path, name="x", **{option: 0})
        with pytest.raises(TypeError, match=f"{option} must be a whole number, got nan"):
            write_store(made_records(1), tmp_path, name="x", **{option: float("nan")})
    with pytest.raises(TypeError, match="name must be a text, got None"):
        write_store(made_records(1), tmp_path, name=None)
    with pytest.raises(TypeError, match="records must be images with what is known about them"):
        write_store("images", tmp_path, name="x")
    assert list(tmp_path.iterdir()) == []


def test_writing_is_fast(tmp_path):
    """At 256 px and 16 bit: 600 images/s were measured on one core; 100 are asked for."""
    rng = np.random.default_rng(0)
    [record] = made_records(1)
    smooth = np.cumsum(rng.normal(0, 0.002, (256, 256)), axis=1).astype(np.float32).clip(-0.5, 0.5) + 0.5
    records = [dataclasses.replace(record, image=np.roll(smooth, shift, axis=0)) for shift in range(100)]
    start = time.process_time()
    write_store(records, tmp_path / "store", name="speed")
    assert time.process_time() - start < 1.0
