import dataclasses
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_records import made_records

from dexcore.data.record import ImageRecord
from dexcore.data.store import Store, check_store, write_store
from dexcore.data.store.manifest import MANIFEST, ImageDecodeError, Manifest, StoreError

_fork = get_context("fork")


@pytest.fixture
def folder(tmp_path):
    """A store of 20 images in several shards."""
    folder = tmp_path / "store"
    write_store(made_records(20), folder, name="made", shard_bytes=12_000)
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*.arrow"))


def overwrite(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert data.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))


def in_a_process(work: Callable[[], None]) -> tuple[int, str]:
    """Do the work in a forked process; give its exit code (negative for a signal) and its error."""
    receiver, sender = _fork.Pipe(duplex=False)

    def run() -> None:
        try:
            work()
        except BaseException as error:
            sender.send(f"{type(error).__name__}: {error}")
            os._exit(1)
        os._exit(0)

    process = _fork.Process(target=run)
    process.start()
    sender.close()
    process.join(60)
    assert process.exitcode is not None, "the process hangs"
    return process.exitcode, receiver.recv() if receiver.poll() and process.exitcode == 1 else ""


# Writing and reading


def test_images_and_columns_come_back(folder):
    store = Store(folder)
    assert len(store) == 20
    assert len(store.manifest.shards) > 2
    for index, record in enumerate(made_records(20)):
        pixels, row = store.image(index), store.row(index)
        depth = 16 if record.normalization == "hu_window" else 8
        assert pixels.dtype == f"uint{depth}"
        assert np.abs(pixels / (2**depth - 1) - record.image).max() <= 0.51 / (2**depth - 1)
        for field in (
            "modality",
            "source",
            "anatomy",
            "normalization",
            "group",
            "path",
            "synthetic",
            "split",
        ):
            assert row[field] == getattr(record, field), field
        assert (row["height"], row["width"], row["bit_depth"]) == (*pixels.shape[:2], depth)


def test_large_images_are_scaled_down(tmp_path):
    [record] = made_records(1)
    large = dataclasses.replace(record, image=np.full((900, 700), 0.25, np.float32))
    write_store([large], tmp_path / "store", name="large", max_side=350)
    pixels = Store(tmp_path / "store").image(0)
    assert pixels.shape == (450, 350)
    assert (pixels == round(0.25 * 65535)).all()


def test_color_is_stored_at_8_bit_whatever_its_normalization(tmp_path):
    _, record = made_records(2)
    color = dataclasses.replace(record, normalization="percentile_minmax")
    write_store([color], tmp_path / "store", name="color")
    assert Store(tmp_path / "store").image(0).dtype == np.uint8


def test_the_manifest_counts_by_modality_source_and_split(folder):
    manifest = Manifest.load(folder)
    assert manifest.counts == {
        "CT": {"Scanner": {"train": 6, "heldout": 1}},
        "Fundus": {"Camera": {"train": 5, "heldout": 2}},
        "Ultrasound": {"Probe": {"train": 5, "heldout": 1}},
    }
    assert (manifest.name, manifest.images) == ("made", 20)
    assert [shard.size for shard in manifest.shards] == [path.stat().st_size for path in shards(folder)]


def test_the_same_records_give_the_same_bytes(folder, tmp_path):
    again = tmp_path / "elsewhere" / "again"
    write_store(made_records(20), again, name="made", shard_bytes=12_000)
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_the_fingerprint_follows_the_content_and_nothing_else(tmp_path):
    records = list(made_records(6))

    def fingerprint(records, **options):
        return write_store(records, tmp_path / "store", **{"name": "a", **options}).fingerprint

    original = fingerprint(records)
    elsewhere = [dataclasses.replace(record, path="/other/" + record.path) for record in records]
    assert fingerprint(elsewhere, name="b", shard_bytes=5000) == original

    pixels = records[2].image.copy()
    pixels[0, 0] += 0.1
    changes = [
        [*records[:2], dataclasses.replace(records[2], image=pixels), *records[3:]],
        [*records[:2], dataclasses.replace(records[2], group="x"), *records[3:]],
        [*records[:2], dataclasses.replace(records[2], split="heldout"), *records[3:]],
        [*records[:2], dataclasses.replace(records[2], synthetic=False), *records[3:]],
        records[::-1],
        records[:-1],
    ]
    prints = [fingerprint(changed) for changed in changes]
    assert len({original, *prints}) == 1 + len(changes)


def test_a_shard_has_the_schema_of_a_hugging_face_image_dataset(folder):
    with pa.ipc.open_stream(str(shards(folder)[0])) as reader:
        schema = reader.schema
    assert schema.field("image").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features.pop("image") == {"_type": "Image"}
    for name, feature in features.items():
        assert feature == {"dtype": str(schema.field(name).type), "_type": "Value"}


def test_reading_encoded_images_copies_nothing(folder):
    store = Store(folder)
    before = pa.total_allocated_bytes()
    views = [store.encoded(index) for index in range(20)]
    assert pa.total_allocated_bytes() == before
    assert all(bytes(view[:4]) == b"\x89PNG" for view in views)


def test_a_row_outside_the_store_is_an_index_error(folder):
    for index in (-1, 20):
        with pytest.raises(IndexError, match="of a store of 20"):
            Store(folder).image(index)


# Builds that fail


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
    assert {path.name for path in folder.iterdir()} == {MANIFEST, manifest.shards[0].name}


def test_a_killed_build_leaves_the_store_that_was_there(folder):
    before = Manifest.load(folder)
    assert in_a_process(lambda: build_and_die(folder)) == (-signal.SIGKILL, "")
    assert check_store(folder) == []
    assert Manifest.load(folder) == before


FILE_OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}


def test_a_build_killed_at_any_moment_leaves_the_old_store_or_the_new(tmp_path):
    """The process kills itself before its first, second, ... file operation."""

    def build(folder: Path, moment: int) -> None:
        left = moment

        def watch(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in FILE_OPERATIONS:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
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
    assert {path.name for path in folder.iterdir()} == {MANIFEST, manifest.shards[0].name}
    assert check_store(folder) == []


def test_of_two_builds_at_a_time_the_first_to_end_stays(tmp_path):
    def records() -> Iterator[ImageRecord]:
        yield from made_records(20)
        write_store(made_records(7, seed=1), tmp_path / "store", name="first")

    with pytest.raises(StoreError, match="cannot write a store into"):
        write_store(records(), tmp_path / "store", name="second", shard_bytes=12_000)
    assert check_store(tmp_path / "store") == []
    assert Manifest.load(tmp_path / "store").name == "first"


def test_an_open_store_reads_on_while_it_is_replaced(folder):
    store = Store(folder)
    expected = [store.image(index) for index in range(20)]
    write_store(made_records(4, seed=1), folder, name="new")
    assert all(np.array_equal(store.image(index), image) for index, image in enumerate(expected))


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


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image": np.zeros((4, 4))}, r"float64 \[4, 4\], expected float32"),
        ({"image": np.zeros((4, 4, 2), np.float32)}, r"float32 \[4, 4, 2\], expected"),
        ({"image": np.full((4, 4), 1.5, np.float32)}, r"outside \[0, 1\]"),
        ({"image": np.full((4, 4), np.nan, np.float32)}, "not finite"),
        ({"image": np.zeros((0, 4), np.float32)}, "empty"),
        ({"modality": "X-Ray"}, "modality is 'X-Ray', expected one of CT, PET"),
        ({"split": "test"}, "split is 'test', expected one of"),
        ({"image": [[0.5]]}, "image is a list, expected a numpy array"),
        ({"group": None}, "group is None, expected a text"),
        ({"source": "caf\udce9"}, "source is .*, which UTF-8 cannot hold"),
        ({"normalization": "div256"}, "normalization is 'div256', expected one of hu_window"),
        ({"synthetic": None}, "synthetic is None, expected True or False"),
    ],
)
def test_a_record_that_is_not_as_promised_is_named(tmp_path, change, problem):
    [record] = made_records(1)
    with pytest.raises(ValueError, match=f"somewhere/0.dcm': .*{problem}"):
        write_store([dataclasses.replace(record, **change)], tmp_path, name="x")
    assert list(tmp_path.iterdir()) == []


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


# Stores that are not sound


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StoreError, match="nowhere: no such folder, expected a store"):
        Store(tmp_path / "nowhere")


def test_a_store_of_another_version_is_named(folder):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(StoreError, match=r"manifest.json has version 2, this dexcore reads version 1"):
        Store(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "shards": [3]}', "\x00"])
def test_a_broken_manifest_is_named(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(StoreError, match=r"manifest.json is no manifest of a store"):
        Store(folder)


def test_a_missing_shard_is_named(folder):
    victim = shards(folder)[1]
    victim.unlink()
    with pytest.raises(StoreError, match=f"{victim.name} is missing"):
        Store(folder)
    assert check_store(folder) == [f"{victim} is missing, {MANIFEST} names it"]


@pytest.mark.parametrize("change", [-1, 8])
def test_a_shard_of_another_size_is_never_mapped(folder, change):
    victim = shards(folder)[1]
    size = victim.stat().st_size
    os.truncate(victim, size + change)
    with pytest.raises(StoreError, match=f"{victim.name} has {size + change} bytes, {MANIFEST} says {size}"):
        Store(folder)


def test_a_shard_that_is_no_arrow_file_is_named(folder):
    victim = shards(folder)[1]
    victim.write_bytes(bytes(victim.stat().st_size))
    with pytest.raises(StoreError, match=victim.name):
        Store(folder)
    problems = check_store(folder)
    assert len(problems) == 1
    assert victim.name in problems[0]


def test_a_damaged_image_is_named_by_shard_and_row(folder):
    store = Store(folder)
    first = store.manifest.shards[0]
    image = bytes(store.encoded(first.images + 1))
    overwrite(folder / store.manifest.shards[1].name, image, image[:60] + bytes(len(image) - 60))
    victim = folder / store.manifest.shards[1].name

    damaged = Store(folder)
    with pytest.raises(ImageDecodeError, match=rf"{victim.name}, row 1 \(image {first.images + 1}\) is no readable"):
        damaged.image(first.images + 1)
    assert damaged.image(first.images).shape == store.image(first.images).shape
    assert check_store(folder) == [
        f"{victim}: its sha256 is not the one in {MANIFEST}",
        f"{victim}, row 1: its bytes do not have its sha256",
    ]


def test_check_survives_damage_anywhere_in_a_shard(folder):
    """Headers and offsets included: each changed byte is noticed, none kills the process."""
    victim = shards(folder)[0]
    data = victim.read_bytes()

    def work() -> None:
        for place in range(0, len(data), 61):
            victim.write_bytes(data[:place] + bytes([data[place] ^ 0x5A]) + data[place + 1 :])
            assert any(victim.name in problem for problem in check_store(folder)), place

    assert in_a_process(work) == (0, "")


def test_a_changed_column_changes_the_verdict(folder):
    overwrite_all = shards(folder)[0]
    data = overwrite_all.read_bytes()
    overwrite_all.write_bytes(data.replace(b"patient-0", b"patient-9"))
    assert check_store(folder) == [f"{overwrite_all}: its sha256 is not the one in {MANIFEST}"]


def test_writing_is_fast(tmp_path):
    """At 256 px and 16 bit: 600 images/s were measured on one core; 100 are asked for."""
    rng = np.random.default_rng(0)
    [record] = made_records(1)
    smooth = np.cumsum(rng.normal(0, 0.002, (256, 256)), axis=1).astype(np.float32).clip(-0.5, 0.5) + 0.5
    records = [dataclasses.replace(record, image=np.roll(smooth, shift, axis=0)) for shift in range(100)]
    start = time.process_time()
    write_store(records, tmp_path / "store", name="speed")
    assert time.process_time() - start < 1.0
