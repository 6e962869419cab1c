"""Copies on the way from a folder to a store: within a source, and across sources."""

import json
from concurrent.futures import ThreadPoolExecutor

import cv2
import pytest
from known_copies import CUT, RESCALED, lay
from made_folders import write_picture

from dexcore.data import build_store
from dexcore.data.assemble.build import build as build_with_report
from dexcore.data.assemble.build import remove
from dexcore.data.assemble.options import Options
from dexcore.data.store import Store, check_store
from dexcore.data.store.manifest import Manifest
from dexcore.data.synthetic import SyntheticMVU


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def write_image(path, index, size=256, quality=75):
    """A generated image; the smaller ones are rescaled."""
    pixels = (SyntheticMVU(size=256, seed=4).sample(index).image * 255).round().astype("uint8")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else [])


@pytest.fixture
def folder(tmp_path):
    """Four different images, an exact copy of one and near-copies of two, in two sources."""
    for index in range(2, 6):
        write_image(tmp_path / "scans" / "mine" / f"{index}.png", index)
    write_image(tmp_path / "scans" / "mine" / "again.png", 3)
    write_image(tmp_path / "scans" / "mine" / "small.jpg", 2, size=160)
    write_image(tmp_path / "scans" / "yours" / "a.png", 5)
    write_image(tmp_path / "scans" / "yours" / "b.jpg", 4, size=200)
    write_image(tmp_path / "scans" / "yours" / "c.jpg", 15)
    for name in ("mine", "yours"):
        (tmp_path / "scans" / name / "dataset.yaml").write_text("modality: X-ray\n")
    return tmp_path / "scans"


def build(folder, out, threads=1, **options):
    with ThreadPoolExecutor(threads) as executor:
        return build_with_report(folder, out, Options(**options), executor=executor)


def paths(out):
    store = Store(out)
    return [store.row(index)["path"] for index in range(len(store))]


def reasons(out):
    return {line["path"]: line["reason"] for line in map(json.loads, (out / "rejects.jsonl").read_text().splitlines())}


def test_near_copies_within_a_source_are_told_and_kept(folder, tmp_path):
    report = build(folder, tmp_path / "store")
    assert report.manifest.sources["mine"].images == 5
    assert reasons(tmp_path / "store") == {"mine/again.png": "exact copy: of mine/3.png"}
    assert report.sources["mine"].near_copies == 1
    assert "mine: 1 image is a near-copy of another and kept; --drop-near-copies leaves such out" in report.lines()
    again = build(folder, tmp_path / "store")  # nothing to do: told all the same
    assert again.sources["mine"].near_copies == 1


def test_near_copies_are_left_out_on_demand_whatever_the_number_of_workers(folder, tmp_path):
    report = build(folder, tmp_path / "store", drop_near_copies=True)
    assert "mine/small.jpg" not in paths(tmp_path / "store")
    assert reasons(tmp_path / "store")["mine/small.jpg"] == "near-copy: of mine/2.png"
    assert report.sources["mine"].dropped == {"exact copy": 1, "near-copy": 1}
    assert report.sources["mine"].near_copies == 0
    again = build(folder, tmp_path / "again", threads=3, drop_near_copies=True)
    assert again.manifest == report.manifest
    assert check_store(tmp_path / "store") == []
    called = build_store(folder, tmp_path / "called", jobs=1, drop_near_copies=True)
    assert called.fingerprint == report.manifest.fingerprint


def test_copies_across_sources_are_told_and_stay(folder, tmp_path):
    report = build(folder, tmp_path / "store", drop_near_copies=True)
    assert report.sources["yours"].shared == {"mine": 2}
    assert report.sources["mine"].shared == {"yours": 2}
    assert "yours: 2 images are copies of some in mine" in report.lines()
    alone = build(folder / "yours", tmp_path / "alone", drop_near_copies=True)
    assert alone.manifest.images == report.manifest.sources["yours"].images == 3
    remove(tmp_path / "store", "mine")
    assert json.loads((tmp_path / "store" / "build.json").read_text())["sources"]["yours"]["shared"] == {}


def test_a_damaged_shard_of_another_source_does_not_stop_a_build(folder, tmp_path):
    build(folder / "mine", tmp_path / "store", name="first")
    victim = tmp_path / "store" / Manifest.load(tmp_path / "store").shards[0].name
    victim.write_bytes(victim.read_bytes()[:-100])
    report = build(folder / "yours", tmp_path / "store", name="second")
    assert report.manifest.images == 8
    [line] = [line for line in report.lines() if "were not looked for" in line]
    assert str(tmp_path) not in (tmp_path / "store" / "build.json").read_text()
    assert victim.name in line


def test_known_copies_of_public_files_are_found_in_their_source(tmp_path):
    lay(tmp_path / "scans", {*RESCALED, *RESCALED.values(), *CUT, *CUT.values()})
    build(tmp_path / "scans", tmp_path / "store", every=30, drop_near_copies=True)
    exact = {"examples_jpeg2k.dcm"}
    assert reasons(tmp_path / "store") == {
        copy: f"{'exact copy' if copy in exact else 'near-copy'}: of {of}{'#0' if of.startswith('color3d') else ''}"
        for copy, of in (RESCALED | CUT).items()
    }


def test_different_pictures_are_no_copies(tmp_path):
    for seed in range(12):
        write_picture(tmp_path / "scans" / f"{seed}.png", seed=seed)
    report = build(tmp_path / "scans", tmp_path / "store", modality="X-ray", drop_near_copies=True)
    assert (report.manifest.images, reasons(tmp_path / "store")) == (12, {})
