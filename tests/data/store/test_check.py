import dataclasses
import json
from pathlib import Path

from made_records import made_records
from made_stores import in_a_process, overwrite, shards

from dexcore.data.store import (
    ShardWriter,
    Store,
    Tally,
    check_store,
    commit,
    encode_row,
    staging_folder,
)
from dexcore.data.store.manifest import MANIFEST, Manifest


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
    victim = folder / Store(folder).manifest.shards[0].name
    data = victim.read_bytes()
    victim.write_bytes(data.replace(b"patient-0", b"patient-9"))
    assert check_store(folder) == [f"{victim}: its sha256 is not the one in {MANIFEST}"]


def test_every_damaged_image_is_named_and_the_rest_is_checked_all_the_same(folder):
    store = Store(folder)
    places = {}
    for index in (0, 5, 19):
        shard, row = store.where(index).split(" (")[0].split(", row ")
        image = bytes(store.encoded(index))
        overwrite(Path(shard), image, image[:-9] + bytes(9))
        places[index] = f"{shard}, row {row}: its bytes do not have its sha256"
    (folder / store.manifest.shards[2].name).unlink()
    problems = check_store(folder)
    assert [problem for problem in problems if ", row " in problem] == list(places.values())
    assert f"{folder / store.manifest.shards[2].name} is missing, {MANIFEST} names it" in problems


def test_a_manifest_with_other_fingerprints_or_counts_is_named(folder):
    text = (folder / MANIFEST).read_text()
    fields = json.loads(text)
    fields["sources"]["Probe"]["counts"]["Ultrasound"]["train"] += 1
    (folder / MANIFEST).write_text(json.dumps(fields))
    assert check_store(folder) == [f"{folder / MANIFEST}: the counts of Probe are not those of the images"]
    manifest = Manifest.load(folder)
    parts = {**manifest.sources, "Probe": dataclasses.replace(manifest.sources["Probe"], fingerprint="0" * 64)}
    (folder / MANIFEST).write_text(Manifest.of("made", 512, parts).to_json())
    assert check_store(folder) == [f"{folder / MANIFEST}: the fingerprint of Probe is not that of the images"]


def test_a_stores_own_bytes_that_do_not_decode_are_named(tmp_path):
    """What was written wrong has the right hashes."""
    [record] = made_records(1)
    row = encode_row(record, 512) | {"height": 41}
    folder = tmp_path / "store"
    with staging_folder(folder) as staging:
        writer, tally = ShardWriter(staging, row["source"], 0), Tally()
        writer.write([row])
        tally.add([row])
        manifest = Manifest.of("wrong", 512, {row["source"]: tally.part([writer.close()])})
        commit(staging, folder, manifest)
    [problem] = check_store(folder)
    assert problem.endswith("row 0: its image is 40 x 48 pixels, expected 41 x 48")
