import io
import json
import zlib

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest
from made_records import made_records

from dexcore.data.assemble.hub import import_parquet
from dexcore.data.store import Store, check_store, write_store
from dexcore.data.store.exchange import export_parquet


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write(path, columns, features=None):
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    table = pa.table(columns).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.fixture
def scans():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (40, 50), np.uint8) for _ in range(3)]


def test_an_exported_store_comes_back_the_same(tmp_path):
    before = write_store(made_records(20), tmp_path / "store", name="made")
    export_parquet(tmp_path / "store", tmp_path / "out")
    imported = import_parquet(tmp_path / "out", tmp_path / "again", name="made")
    assert imported.rejected == ()
    # The split's files come one after the other, so the order in a source is another: the images are the same.
    assert imported.manifest.counts == before.counts
    first, second = Store(tmp_path / "store"), Store(tmp_path / "again")
    assert sorted(map(str, map(first.row, range(20)))) == sorted(map(str, map(second.row, range(20))))


def test_columns_labels_and_splits_of_a_hub_are_understood(tmp_path, scans):
    names = ["chest film", "CT"]
    features = {"label": {"_type": "ClassLabel", "names": names}, "scan": {"_type": "Image"}}
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "test"):
        columns = {
            "scan": [{"bytes": encoded(scan), "path": None} for scan in scans],
            "label": [0, 1, 0],
            "patient": [7, 8, 8],
            "thumbnail": [b"x"] * 3,
        }
        write(corpus / f"{split}-00000-of-00001.parquet", columns, features)
    imported = import_parquet(
        corpus,
        tmp_path / "store",
        name="hub",
        anatomy="chest",
        columns={"modality": "label", "group": "patient"},
        values={"chest film": "X-ray"},
    )
    assert imported.manifest.counts == {
        "X-ray": {"corpus": {"train": 2, "heldout": 2}},
        "CT": {"corpus": {"train": 1, "heldout": 1}},
    }
    store = Store(tmp_path / "store")
    assert check_store(tmp_path / "store") == []
    row = store.row(3)
    assert (row["group"], row["anatomy"], row["split"]) == ("7", "chest", "train")
    assert row["path"] == "train-00000-of-00001.parquet#0"
    assert np.array_equal(store.image(3), scans[0])


def test_the_image_column_is_found_by_its_type(tmp_path, scans):
    file = write(tmp_path / "a.parquet", {"id": [1, 2, 3], "jpg": [encoded(scan) for scan in scans]})
    imported = import_parquet(file, tmp_path / "store", name="a", modality="OCT")
    assert imported.manifest.counts == {"OCT": {"a": {"train": 3}}}
    assert len(set(Store(tmp_path / "store").column("group").to_pylist())) == 3


def test_what_is_no_image_is_left_out_with_its_reason(tmp_path, scans):
    bomb = bytearray(encoded(np.zeros((1, 1), np.uint8)))
    bomb[16:24] = (100_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    images = [
        {"bytes": encoded(scans[0]), "path": "0.png"},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": "/etc/passwd"},
        {"bytes": encoded(scans[1])[:300], "path": None},
        {"bytes": bytes(bomb), "path": None},
        None,
    ]
    file = write(tmp_path / "a.parquet", {"image": images})
    imported = import_parquet(file, tmp_path / "store", name="a", modality="CT")
    assert imported.manifest.images == 1
    reasons = dict(imported.rejected)
    assert list(reasons) == [f"a.parquet#{row}" for row in range(1, 6)]
    assert "empty" in reasons["a.parquet#1"]
    assert "has no bytes" in reasons["a.parquet#2"]
    assert "pixels" in reasons["a.parquet#4"]
    assert all(reason.startswith("unreadable: ") for reason in reasons.values())
    assert "/tmp" not in str(imported.rejected)


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"image": [b""]}, {}, r"does not say what its images are: say modality=NAME, one of CT, PET"),
        ({"image": [b""], "label": [1]}, {}, r"or columns=\{'modality': NAME\}, one of label"),
        ({"image": [b""], "modality": ["cxr"]}, {}, r"row 0: modality is 'cxr', .* say values=\{'cxr': NAME\}"),
        ({"image": [b""]}, {"modality": "Xray"}, "modality is 'Xray', expected one of CT"),
        (
            {"a": [b""], "b": [b""]},
            {"modality": "CT"},
            r"the columns a, b may hold them; say columns=\{'image': NAME\}",
        ),
        ({"a": [1]}, {"modality": "CT"}, r"which column holds the images\? no column of \['a'\] does"),
        ({"image": [b""]}, {"columns": {"group": "patient"}}, "has no column 'patient', it has image"),
        ({"image": [b""]}, {"columns": {"patient": "image"}}, "columns names 'patient', expected image, modality"),
        ({"image": [b""]}, {"modality": "CT"}, "records is empty"),
    ],
)
def test_what_is_missing_is_said_with_what_helps(tmp_path, columns, arguments, message):
    file = write(tmp_path / "a.parquet", columns)
    with pytest.raises(ValueError, match=message):
        import_parquet(file, tmp_path / "store", name="a", **arguments)
    assert not (tmp_path / "store" / "manifest.json").exists()


def test_what_is_no_parquet_is_named(tmp_path):
    with pytest.raises(ValueError, match="no Parquet file, expected one or a folder"):
        import_parquet(tmp_path, tmp_path / "store", name="a", modality="CT")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(ValueError, match=r"a.parquet is no readable Parquet file"):
        import_parquet(tmp_path, tmp_path / "store", name="a", modality="CT")
