import dataclasses

import pytest
from made_records import made_records

from dexcore.data.store import Store, write_store
from dexcore.data.store.manifest import MANIFEST, Manifest, StoreError


def test_the_manifest_counts_by_modality_source_and_split(folder):
    manifest = Manifest.load(folder)
    assert manifest.counts == {
        "CT": {"Scanner": {"train": 6, "heldout": 1}},
        "Fundus": {"Camera": {"train": 5, "heldout": 2}},
        "Ultrasound": {"Probe": {"train": 5, "heldout": 1}},
    }
    assert (manifest.name, manifest.images) == ("made", 20)
    assert [shard.size for shard in manifest.shards] == [
        (folder / shard.name).stat().st_size for shard in manifest.shards
    ]


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


def test_a_store_of_another_version_is_named(folder):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text.replace('"version": 2', '"version": 3'))
    with pytest.raises(StoreError, match=r"manifest.json has version 3, this dexcore reads versions 1 and 2"):
        Store(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "shards": [3]}', "\x00"])
def test_a_broken_manifest_is_named(folder, text):
    (folder / MANIFEST).write_text(text)
    with pytest.raises(StoreError, match=r"manifest.json is no manifest of a store"):
        Store(folder)
