import contextlib
import dataclasses
import os
import signal
import time

import pytest
from made_records import made_records
from made_stores import die_before_operation, in_a_process

from dexcore.data.store import (
    Manifest,
    ShardWriter,
    Store,
    StoreError,
    Tally,
    check_store,
    commit,
    encode_row,
    remove_source,
    staging_folder,
    write_store,
)
from dexcore.data.store.commit import remove_staging
from dexcore.data.store.manifest import MANIFEST


def add(folder, staging, records):
    """Add one source to what is in a folder, as a build does."""
    rows = [encode_row(record, 512) for record in records]
    writer, tally = ShardWriter(staging, rows[0]["source"], 0), Tally()
    writer.write(rows)
    tally.add(rows)
    part = tally.part([writer.close()])
    before = Manifest.load(folder)
    return Manifest.of(before.name, before.max_side, {**before.sources, rows[0]["source"]: part})


def of(source, count=20, seed=0):
    return [record for record in made_records(count, seed) if record.source == source]


def contents(folder):
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir() if path.name != MANIFEST}


def test_a_source_is_added_without_a_touch_on_the_others(tmp_path):
    folder = tmp_path / "store"
    write_store(of("Probe") + of("Camera"), folder, name="made")
    before = contents(folder)
    with staging_folder(folder) as staging:
        commit(staging, folder, add(folder, staging, of("Scanner")))
    assert check_store(folder) == []
    after = contents(folder)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    # What a single build of all of it gives, bit for bit.
    whole = write_store(made_records(20), tmp_path / "whole", name="made")
    assert Manifest.load(folder) == whole
    assert (folder / MANIFEST).read_bytes() == (tmp_path / "whole" / MANIFEST).read_bytes()


def test_a_source_is_removed_without_a_touch_on_the_others(folder, tmp_path):
    before = contents(folder)
    manifest = remove_source(folder, "Camera")
    assert check_store(folder) == []
    assert contents(folder).items() <= before.items()
    assert len(Store(folder)) == manifest.images == 13
    without = [record for record in made_records(20) if record.source != "Camera"]
    assert write_store(without, tmp_path / "without", name="made", shard_bytes=12_000) == manifest


def test_a_source_is_rebuilt_without_a_touch_on_the_others(tmp_path):
    folder = tmp_path / "store"
    old = write_store(made_records(20), folder, name="made")
    before = contents(folder)
    with staging_folder(folder) as staging:
        commit(staging, folder, add(folder, staging, of("Scanner", seed=1)))
    assert check_store(folder) == []
    manifest, after = Manifest.load(folder), contents(folder)
    assert {name: part for name, part in manifest.sources.items() if name != "Scanner"} == {
        name: part for name, part in old.sources.items() if name != "Scanner"
    }
    assert len(before.items() & after.items()) == 2
    assert manifest.fingerprint != old.fingerprint


def test_what_cannot_be_removed_is_named(folder):
    with pytest.raises(StoreError, match="has no source 'Sonar', it has Camera, Probe, Scanner"):
        remove_source(folder, "Sonar")
    remove_source(folder, "Camera")
    remove_source(folder, "Probe")
    with pytest.raises(StoreError, match="has no source but 'Scanner': remove the folder instead"):
        remove_source(folder, "Scanner")
    assert check_store(folder) == []


def test_a_removal_killed_at_any_moment_leaves_the_old_store_or_the_new(tmp_path):
    seen = []
    for moment in range(1, 60):
        folder = tmp_path / f"store-{moment}"
        write_store(made_records(6), folder, name="made")

        def work(folder=folder, moment=moment):
            die_before_operation(moment)
            remove_source(folder, "Camera")

        exit_code, error = in_a_process(work)
        assert check_store(folder) == []
        seen.append(len(Manifest.load(folder).sources))
        if exit_code == 0:
            break
        assert (exit_code, error) == (-signal.SIGKILL, "")
    assert seen == sorted(seen, reverse=True)
    assert {2, 3} == set(seen)


def test_a_missing_shard_is_no_part_of_a_store(folder):
    before = Manifest.load(folder)
    part = before.sources["Probe"]
    absent = dataclasses.replace(part, shards=(dataclasses.replace(part.shards[0], name="shard-00000-0.arrow"),))
    with staging_folder(folder) as staging, pytest.raises(StoreError, match=r"shard-00000-0.arrow is missing"):
        commit(staging, folder, Manifest.of("made", 512, {**before.sources, "Probe": absent}))
    assert check_store(folder) == []
    assert Manifest.load(folder) == before


def test_two_commits_at_a_time_never_mix(tmp_path):
    """Both end at once: one store stays whole, and whoever lost says so."""
    folder = tmp_path / "store"
    write_store(made_records(3), folder, name="made")
    for seed in range(8):
        ready, go = os.pipe(), os.pipe()
        children = []
        for source in ("Scanner", "Probe"):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    with staging_folder(folder) as staging:
                        manifest = add(folder, staging, of(source, seed=seed + 1))
                        os.write(ready[1], b".")
                        os.read(go[0], 1)
                        commit(staging, folder, manifest)
                        code = 0
                except StoreError:
                    code = 2
                finally:
                    os._exit(code)
            children.append(child)
        for _ in children:
            os.read(ready[0], 1)
        os.write(go[1], b"..")
        codes = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
        for end in (*ready, *go):
            os.close(end)
        assert codes == [0, 2]
        assert check_store(folder) == []


def test_what_outlives_a_killed_build_does_not_fill_its_folder_again(tmp_path):
    """A task of the killed driver that still runs on another machine writes into the folder that is being removed."""
    write_store(of("Probe"), tmp_path / "store", name="made")
    before = sorted(path.name for path in (tmp_path / "store").iterdir())
    task = tmp_path / "store" / ".building-build" / "source"
    ready = os.pipe()
    writer = os.fork()
    if writer == 0:
        os.write(ready[1], b".")
        for number in range(10**9):
            with contextlib.suppress(OSError):
                (task / f"task-{number % 50}.json").touch()
    try:
        os.read(ready[0], 1)
        for _ in range(100):
            task.mkdir(parents=True)
            time.sleep(0.002)
            remove_staging(tmp_path / "store")
            assert sorted(path.name for path in (tmp_path / "store").iterdir()) == before
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def test_rows_of_another_source_are_refused(tmp_path):
    writer = ShardWriter(tmp_path, "Camera", 0)
    with pytest.raises(ValueError, match="rows are of the source 'Scanner', expected 'Camera'"):
        writer.write([encode_row(of("Scanner")[0], 512)])
