import io
import os

import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
from made_records import made_records
from made_stores import overwrite

from dexcore.data.store import Store, StoreError, write_store
from dexcore.data.store.exchange import export_parquet


def test_every_image_and_column_is_in_the_parquet_files(folder, tmp_path):
    files = export_parquet(folder, tmp_path / "out", shard_bytes=30_000)
    assert len(files) == 3
    assert sorted(files) == sorted((tmp_path / "out").rglob("*.parquet"))
    store = Store(folder)
    rows = [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    expected = [index for split in ("train", "heldout") for index in range(20) if store.row(index)["split"] == split]
    for index, row in zip(expected, rows, strict=True):
        image = row.pop("image")
        known = store.row(index)
        assert image["path"] == known.pop("path")
        known.pop("sha256")
        assert row == known
        with PIL.Image.open(io.BytesIO(image["bytes"])) as picture:
            assert picture.format == "PNG"
            assert np.array_equal(np.asarray(picture), store.image(index))


def test_datasets_opens_the_export_with_its_splits(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    export_parquet(folder, tmp_path / "out")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {split: len(images) for split, images in loaded.items()} == {"train": 16, "heldout": 4}
    assert isinstance(loaded["train"][0]["image"], PIL.Image.Image)


def test_a_folder_with_files_is_left_alone(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.docx").write_text("precious")
    with pytest.raises(StoreError, match="out holds files, expected an empty folder or none"):
        export_parquet(folder, out)
    assert os.listdir(out) == ["thesis.docx"]
    (out / "thesis.docx").unlink()
    export_parquet(folder, out)
    assert (out / "data").is_dir()


def test_a_damaged_image_ends_the_export_and_leaves_nothing(folder, tmp_path):
    store = Store(folder)
    image = bytes(store.encoded(12))
    shard = store.where(12).split(",")[0]
    overwrite(type(folder)(shard), image, image[:-9] + bytes(9))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=r"image 12\) is no readable TIFF"):
        export_parquet(folder, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_without_held_out_images_has_one_split(tmp_path):
    write_store(list(made_records(4)), tmp_path / "store", name="a")
    files = export_parquet(tmp_path / "store", tmp_path / "out")
    assert [file.name for file in files] == ["train-00000-of-00001.parquet"]
