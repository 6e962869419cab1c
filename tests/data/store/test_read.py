import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from made_records import as_stored, made_records
from made_stores import in_a_process, overwrite, shards

from dexcore.data.store import Store, check_store, remove_source, write_store
from dexcore.data.store.manifest import MANIFEST, ImageDecodeError, StoreError


def test_images_and_columns_come_back(folder):
    store = Store(folder)
    assert len(store) == 20
    assert len(store.manifest.shards) > 2
    for index, record in enumerate(as_stored(made_records(20))):
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


def test_a_shard_has_the_schema_of_a_hugging_face_image_dataset(folder):
    with pa.ipc.open_stream(str(shards(folder)[0])) as reader:
        schema = reader.schema
    assert schema.field("image").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features.pop("image") == {"_type": "Image"}
    for name, feature in features.items():
        assert feature["_type"] == "Value"
        assert pa.type_for_alias(feature["dtype"]) == schema.field(name).type


def test_datasets_opens_a_shard_as_it_is(folder):
    datasets = pytest.importorskip("datasets")
    store = Store(folder)
    first = 0
    for shard in store.manifest.shards:
        opened = datasets.Dataset.from_file(str(folder / shard.name))
        assert len(opened) == shard.images
        for place in range(len(opened)):
            assert np.array_equal(np.asarray(opened[place]["image"]), store.image(first + place))
        first += shard.images


def test_reading_encoded_images_copies_nothing(folder):
    store = Store(folder)
    before = pa.total_allocated_bytes()
    views = [store.encoded(index) for index in range(20)]
    assert pa.total_allocated_bytes() == before
    assert all(bytes(view[:4]) == b"II*\0" for view in views)


def test_a_row_outside_the_store_is_an_index_error(folder):
    for index in (-1, 20):
        with pytest.raises(IndexError, match="of a store of 20"):
            Store(folder).image(index)


def test_an_open_store_reads_on_while_it_is_replaced(folder):
    store = Store(folder)
    expected = [store.image(index) for index in range(20)]
    write_store(made_records(4, seed=1), folder, name="new")
    assert all(np.array_equal(store.image(index), image) for index, image in enumerate(expected))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StoreError, match="nowhere: no such folder, expected a store"):
        Store(tmp_path / "nowhere")


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


def read_damaged(folder, seed):
    """Damage a shard 50 times; what is read of it is what was there, or an error that names it."""
    expected = [Store(folder).image(index) for index in range(20)]
    rng = np.random.default_rng(seed)
    for _ in range(50):
        victim = shards(folder)[rng.integers(len(shards(folder)))]
        sound = victim.read_bytes()
        damaged = bytearray(sound)
        for place in rng.integers(0, len(sound), rng.choice([1, 1, 20])):
            damaged[place] ^= 1 << rng.integers(8)
        victim.write_bytes(damaged)
        said = []
        try:
            store = Store(folder)
            for index, pixels in enumerate(expected):
                try:
                    assert np.array_equal(store.image(index), pixels)
                except ImageDecodeError as error:
                    said.append(f"(image {index})" in str(error))
        except StoreError as error:
            said.append(victim.name in str(error) or "images" in str(error))
        assert all(said)
        assert any(victim.name in problem for problem in check_store(folder))
        victim.write_bytes(sound)


@pytest.mark.parametrize("seeds", [[0], pytest.param(range(1, 41), marks=pytest.mark.slow)], ids=["50", "2000"])
def test_a_damaged_shard_gives_errors_and_never_wrong_pixels(folder, seeds):
    for seed in seeds:
        assert in_a_process(lambda seed=seed: read_damaged(folder, seed)) == (0, "")


def test_a_store_of_version_1_is_read_on(tmp_path):
    archive = Path(__file__).parents[2] / "fixtures" / "0.1.0.tar.xz"
    shutil.unpack_archive(archive, tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    store = Store(tmp_path / "store")
    assert (store.manifest.version, len(store)) == (1, 8)
    assert check_store(tmp_path / "store") == []
    assert bytes(store.encoded(0)[:4]) == b"\x89PNG"
    assert (store.row(0)["spacing"], store.column("burned_in").null_count) == (None, 8)
    for index in range(8):
        assert np.array_equal(store.image(index), np.asarray(PIL.Image.open(io.BytesIO(store.encoded(index)))))
    with pytest.raises(StoreError, match="is a store of version 1, whose shards hold all sources: build it anew"):
        remove_source(tmp_path / "store", "SyntheticMVU")
    write_store(made_records(3), tmp_path / "store", name="new")
    assert Store(tmp_path / "store").manifest.version == 2
