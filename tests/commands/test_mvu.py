"""``dexcore mvu``: the road from a folder to a store, as a person walks it."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_folders import write_picture, write_series

from dexcore.cli import main
from dexcore.data import open_mvu
from dexcore.data.store.manifest import Manifest


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def folder(tmp_path):
    for index in range(3):
        write_picture(tmp_path / "scans" / "xray" / f"{index}.png", seed=index)
    write_series(tmp_path / "scans" / "ct", slices=3)
    (tmp_path / "scans" / "xray" / "dataset.yaml").write_text("modality: X-ray\nsplit: train\n")
    return tmp_path / "scans"


def run(capsys, *line):
    code = main(["mvu", *map(str, line)])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_the_road_from_a_folder_to_parquet_and_back(folder, tmp_path, capsys):
    store = tmp_path / "store"
    code, out, _ = run(capsys, "build", folder, "--out", store, "--jobs", 1)
    assert code == 0
    assert "CT           DICOM                   3" in out
    fingerprint = Manifest.load(store).fingerprint
    assert f"fingerprint: {fingerprint}" in out
    assert out.splitlines()[-1] == f"train on it: python examples/pretrain_mvu.py --data.store {store}"

    assert (store / "report.html").is_file()
    assert f"report: {store / 'report.html'}" in out

    code, out, _ = run(capsys, "build", folder, "--out", store, "--jobs", 1)
    assert out.startswith(f"nothing to do: {store} holds these files already")

    assert run(capsys, "check", store) == (0, f"{store}: 6 images, every hash is right\n", "")
    code, out, _ = run(capsys, "stats", store)
    assert code == 0
    assert "X-ray" in out
    code, out, _ = run(capsys, "show", store, "--out", tmp_path / "sheet.png")
    assert (code, out) == (0, f"{tmp_path / 'sheet.png'}: 6 images\n")
    assert run(capsys, "export", store, "--parquet", tmp_path / "parquet")[0] == 0
    code, out, _ = run(capsys, "import", tmp_path / "parquet", "--out", tmp_path / "again", "--name", "scans")
    assert (code, Manifest.load(tmp_path / "again").fingerprint) == (0, fingerprint)

    assert run(capsys, "build", "--remove", "xray", "--out", store)[:2] == (
        0,
        f"{store}: xray is removed, 3 images are left\n",
    )
    assert run(capsys, "check", store)[0] == 0
    victim = next(store.glob("shard-*"))
    victim.write_bytes(victim.read_bytes()[:-1])
    code, out, err = run(capsys, "check", store)
    assert (code, out) == (1, "")
    assert victim.name in err


def test_an_import_is_told_what_the_corpus_calls_things(tmp_path, capsys):
    parquet = tmp_path / "hub" / "films.parquet"
    parquet.parent.mkdir()
    write_picture(tmp_path / "film.png")
    image = [{"bytes": (tmp_path / "film.png").read_bytes(), "path": "film.png"}]
    pq.write_table(pa.table({"image": image, "kind": ["cxr"], "patient_id": ["7"]}), parquet)
    flags = ["--column", "modality=kind", "--column", "group=patient_id", "--value", "cxr=X-ray"]
    code, _, _ = run(capsys, "import", parquet, "--out", tmp_path / "store", *flags)
    assert code == 0
    row = open_mvu(tmp_path / "store")[0]
    assert (row["modality"], row["group"]) == ("X-ray", "7")
    with pytest.raises(SystemExit):
        run(capsys, "import", parquet, "--out", tmp_path / "store", "--column", "kind")
    assert "expected NAME=NAME, got 'kind'" in capsys.readouterr().err


def test_leak_tells_what_of_a_test_set_is_in_a_store(folder, tmp_path, capsys):
    store = tmp_path / "store"
    assert run(capsys, "build", folder, "--out", store, "--jobs", 1)[0] == 0
    tests = tmp_path / "tests"
    write_picture(tests / "new.png", seed=90)
    (tests / "notes.txt").write_text("none")
    code, out, err = run(capsys, "leak", store, tests)
    assert (code, out) == (0, f"0 of 1 images are in {store}: none\n")
    assert err == "left out: notes.txt: no kind of image that dexcore reads\n"
    shutil.copy(folder / "xray" / "1.png", tests / "again.png")
    code, out, _ = run(capsys, "leak", store, tests, "--out", tmp_path / "leaks.csv")
    assert code == 1
    assert out == (f"again.png is an exact copy of xray/1.png (xray)\n1 of 2 images are in {store}: 1 exact, 0 near\n")
    assert (tmp_path / "leaks.csv").read_text() == (
        "image,source,copy_of,exact,distance,similarity\nagain.png,xray,xray/1.png,1,0,1.0000\n"
    )
    assert run(capsys, "leak", store, store)[1].splitlines()[-1] == f"6 of 6 images are in {store}: 6 exact, 0 near"


def test_a_dry_run_needs_no_place_for_a_store(folder, capsys):
    code, out, _ = run(capsys, "build", folder, "--dry-run", "--jobs", 1)
    assert code == 0
    assert out.splitlines()[-1].startswith("estimated: about 6 images before any is dropped, ")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (["build", "FOLDER"], "--out STORE is missing"),
        (["build", "--out", "STORE"], "FOLDER is missing"),
        (["build", "nowhere", "--out", "STORE"], "nowhere: No such file or directory, expected a folder of images"),
        (["build", "FOLDER", "--out", "STORE", "--modality", "Xray"], "modality is 'Xray', expected one of CT, PET"),
        (["build", "FOLDER", "--out", "STORE", "--jobs", "0"], "jobs must be at least 1, got 0"),
        (["build", "FOLDER", "--out", "STORE", "--key", "nokey"], "cannot read the key of groups nokey: No such file"),
        (["build", "FOLDER", "--root", "FOLDER", "--out", "STORE"], "FOLDER and --root are both given"),
        (["build", "FOLDER", "--out", "FOLDER"], "cannot be its own store: give another folder by --out"),
        (["build", "--remove", "x", "--out", "STORE"], "STORE: no such folder, expected a store"),
        (["stats", "FOLDER"], "holds no store"),
        (["leak", "FOLDER", "FOLDER"], "holds no store"),
        (["leak", "STORE", "FOLDER"], "STORE: no such folder, expected a store"),
    ],
)
def test_what_cannot_be_done_is_told_in_a_line(folder, tmp_path, monkeypatch, capsys, line, told):
    monkeypatch.chdir(tmp_path)
    shutil.move(folder, tmp_path / "FOLDER")
    code, out, err = run(capsys, *line)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "STORE").exists()
