"""The page of a store: built from folders, in a thread of this process."""

import base64
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from made_files import write_dicom
from PIL import Image

from dexcore.cli import main
from dexcore.data import build_store
from dexcore.data.assemble.build import remove
from dexcore.data.store import StoreError
from dexcore.report.store_page import report_store


@pytest.fixture(autouse=True)
def _own_key(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (70, 80))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Films with masks, a copy, dark and small ones, a damaged one and one in no source; and photographs."""
    root = tmp_path_factory.mktemp("folder") / "scans"
    for index in range(20):
        write(root / "films" / f"{index:02d}.png", noise(index))
    for index in range(5):
        write(root / "films" / f"dark{index}.png", noise(index) * (noise(index + 50) > 253))
        write(root / "films" / f"{index:02d}_mask.png", (noise(index) > 100) * 255)
        write(root / "photos" / f"{index}.png", np.stack([noise(100 + index)] * 3, axis=2) // [1, 2, 4])
    write(root / "films" / "small.png", noise(1)[:20, :20])
    shutil.copy(root / "films" / "03.png", root / "films" / "copy.png")
    (root / "films" / "broken.png").write_bytes((root / "films" / "00.png").read_bytes()[:900])
    (root / "films" / "notes.txt").write_text("from the clinic")
    (root / "films" / "dataset.yaml").write_text("modality: X-ray\n")
    (root / "photos" / "dataset.yaml").write_text("modality: Photo\n")
    write(root / "stray.png", noise(7))
    return root


@pytest.fixture(scope="module")
def store(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("built") / "store"
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as executor:
        patch.setenv("XDG_CONFIG_HOME", str(out.parent / "config"))
        build_store(folder, out, executor=executor)
    return out


@pytest.fixture
def copied(store, tmp_path):
    return Path(shutil.copytree(store, tmp_path / "store"))


def text_of(page: Path) -> str:
    """What a reader sees, without the pictures."""
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page.read_text(encoding="utf-8"))))


def pictures(page: Path, name: str) -> list[Image.Image]:
    """The pictures that carry a name."""
    found = re.findall(rf'<img alt="{re.escape(name)}"[^>]*base64,([^"]+)">', page.read_text(encoding="utf-8"))
    return [Image.open(BytesIO(base64.b64decode(data))) for data in found]


def names(page: Path) -> list[str]:
    return [unescape(name) for name in re.findall(r'<img alt="([^"]*)"', page.read_text(encoding="utf-8"))]


def test_the_numbers_are_those_of_build_json(store):
    reports = json.loads((store / "build.json").read_text())["sources"]
    manifest = json.loads((store / "manifest.json").read_text())
    text = text_of(report_store(store))
    assert (reports["films"]["kept"], reports["photos"]["kept"]) == ({"X-ray/png": 20}, {"Photo/png": 5})
    assert reports["films"]["groups"] == 20
    assert "25 images kept" in text
    assert f"fingerprint {manifest['fingerprint']}" in text
    assert "films X-ray PNG 20" in text
    assert "photos Photo PNG 5" in text
    for reason, count in reports["films"]["dropped"].items():
        assert f" {reason} {count} " in text
    assert "Ignored: 1 file beside the images" in text
    assert "python examples/pretrain_mvu.py --data.store STORE" in text


def test_kept_images_are_shown_evenly_and_few(store):
    shown = [name for name in names(report_store(store)) if re.fullmatch(r"films/\d\d\.png", name)]
    assert len(shown) == 12
    kept = sorted(set(shown))
    assert kept[0] == "films/00.png"
    assert kept[-1] >= "films/18.png"


def test_a_kept_picture_is_the_image(store, folder):
    [shown] = pictures(report_store(store), "films/00.png")
    assert np.abs(np.asarray(shown, float) - np.asarray(Image.open(folder / "films" / "00.png"), float)).mean() < 12
    [photo] = pictures(report_store(store), "photos/0.png")
    red, green, blue = np.asarray(photo, float).mean(axis=(0, 1))
    assert red > 1.5 * green > 2 * blue


def test_dropped_images_are_shown_with_their_reason(store):
    page = report_store(store)
    text = text_of(page)
    dark = [name for name in names(page) if name.startswith("films/dark")]
    masks = [name for name in names(page) if name.endswith("_mask.png")]
    assert (len(dark), len(masks)) == (3, 3)  # of five each
    assert all(re.search(rf"foreground ratio 0\.\d+, expected at least 0\.05 {name}", text) for name in dark)
    assert all(f"a mask: an image has the same name {name}" in text for name in masks)
    [mask] = pictures(page, masks[0])
    assert np.mean((np.asarray(mask) < 60) | (np.asarray(mask) > 195)) > 0.8
    assert "shorter side of 20 px, expected at least 64 films/small.png" in text
    assert "--min-side PX" in text


def test_a_copy_stands_beside_what_it_is_a_copy_of(store):
    copies = pictures(report_store(store), "films/copy.png")
    assert len(copies) == 2
    assert np.array_equal(*map(np.asarray, copies))
    assert "exact copy: of films/03.png films/copy.png" in text_of(store / "report.html")


def test_what_has_no_pixels_is_told(store):
    text = text_of(report_store(store))
    assert re.search(r"films/broken\.png unreadable: ", text)
    assert re.search(r"stray\.png no modality \(PNG\)", text)
    assert "1 PNG file has no modality: add --modality X-ray" in text
    assert "scans: no image was kept." in text


def test_the_page_is_the_same_wherever_the_store_lies(store, copied):
    assert report_store(copied).read_bytes() == report_store(store).read_bytes()
    assert str(copied) not in (copied / "report.html").read_text()


def test_nothing_is_fetched_and_nothing_runs(store):
    page = report_store(store).read_text()
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []


def test_a_source_that_is_removed_leaves_the_page(copied):
    report_store(copied)
    remove(copied, "photos")
    assert not (copied / "report.html").exists()  # of the store that was
    assert "photos" not in report_store(copied).read_text()


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), Path.unlink])
def test_of_a_store_without_reports_a_source_is_removed_and_the_others_lines_stay(copied, damage, capsys):
    damage(copied / "build.json")
    kept = [line for line in (copied / "rejects.jsonl").read_text().splitlines() if '"films"' in line]
    assert main(["mvu", "build", "--remove", "photos", "--out", str(copied)]) == 0
    assert "photos is removed, 20 images are left" in capsys.readouterr().out
    left = (copied / "rejects.jsonl").read_text().splitlines()
    assert [line for line in left if '"films"' in line] == kept
    assert len(kept) > 5
    assert '"films"' in (copied / "examples.jsonl").read_text()


def test_a_source_that_is_added_leaves_the_others_pictures(folder, tmp_path):
    moved = Path(shutil.copytree(folder, tmp_path / "scans"))
    more = tmp_path / "later"
    shutil.move(moved / "photos", more)
    with ThreadPoolExecutor(1) as executor:
        build_store(moved, tmp_path / "store", executor=executor)
        before = names(report_store(tmp_path / "store"))
        shutil.move(more, moved / "photos")
        build_store(moved, tmp_path / "store", executor=executor)
    after = names(report_store(tmp_path / "store"))
    assert [name for name in after if not name.startswith("photos/")] == before
    assert len(after) == len(before) + 5


def test_many_sources_and_rejects_make_a_page_of_a_few_megabytes(copied):
    build = json.loads((copied / "build.json").read_text())
    examples = (copied / "examples.jsonl").read_text().splitlines()
    rejects = []
    for number in range(300):
        build["sources"][f"other{number:03d}"] = build["sources"]["films"]
        rejects += [{"source": f"other{number:03d}", "path": f"{i}.png", "reason": "empty file"} for i in range(100)]
    (copied / "build.json").write_text(json.dumps(build))
    lines = [json.dumps(json.loads(line) | {"source": name}) for name in build["sources"] for line in examples]
    (copied / "examples.jsonl").write_text("\n".join(lines))
    (copied / "rejects.jsonl").write_text("\n".join(map(json.dumps, rejects)))
    page = report_store(copied)
    assert page.stat().st_size < 12e6
    text = text_of(page)
    assert text.count("empty file") < 400
    assert "in the tables above alone: 243 more sources" in text


@pytest.mark.parametrize("name", ["<b>&", "a" * 80])
def test_names_of_files_are_text(copied, name):
    line = {"source": "films", "path": name, "reason": "<i>empty"}
    (copied / "rejects.jsonl").write_text(json.dumps(line))
    page = report_store(copied)
    assert f"{name} <i>empty" in unescape(page.read_text().replace("</b> ", " ").replace("<p><b>", ""))
    assert "<i>" not in page.read_text()


def test_a_folder_without_a_store_and_a_store_without_a_build_are_named(copied, tmp_path):
    with pytest.raises(StoreError, match="no such folder"):
        report_store(tmp_path / "none")
    (copied / "build.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"build\.json: missing or damaged"):
        report_store(copied)


@pytest.mark.parametrize("line", [{"reason": None}, {"pictures": None}, {"pictures": [3]}, {"kept": "x"}, {"more": 1}])
def test_examples_that_are_damaged_are_passed_over(copied, line):
    lines = (copied / "examples.jsonl").read_text().splitlines()
    good = report_store(copied).read_bytes()
    damaged = json.dumps(json.loads(lines[0]) | line)
    (copied / "examples.jsonl").write_text("\n".join([*lines, damaged, "[1]", '{"source": [']))
    with (copied / "rejects.jsonl").open("a") as file:
        file.write('{"source": ["films"], "path": 3}\n')
    assert "films" in text_of(report_store(copied))
    assert names(copied / "report.html") == re.findall(r'<img alt="([^"]*)"', good.decode())


@pytest.mark.parametrize(
    "field", [{"dropped": None}, {"kept": 3}, {"kept": {"Foo/png": 1}}, {"kept": {"CT": 1}}, {"advice": [1]}]
)
def test_a_damaged_account_of_a_build_is_named(copied, field):
    build = json.loads((copied / "build.json").read_text())
    build["sources"]["films"] |= field
    (copied / "build.json").write_text(json.dumps(build))
    with pytest.raises(FileNotFoundError, match=r"build\.json: missing or damaged"):
        report_store(copied)


def test_the_commands_make_the_page(folder, copied, tmp_path, capsys):
    (copied / "report.html").unlink(missing_ok=True)
    assert main(["mvu", "report", str(copied)]) == 0
    made = (copied / "report.html").read_bytes()
    (copied / "report.html").unlink()
    assert main(["mvu", "build", "--remove", "photos", "--out", str(copied)]) == 0
    assert (copied / "report.html").read_bytes() != made
    assert "report.html" in capsys.readouterr().out


def test_no_picture_shows_the_text_that_was_to_be_dropped(tmp_path):
    (tmp_path / "scans").mkdir()
    for seed, (name, burned_in) in enumerate([("scan.dcm", "YES"), ("scan_mask.dcm", "YES"), ("other.dcm", "NO")]):
        pixels = noise(seed).astype(np.uint8)
        write_dicom(tmp_path / "scans" / name, pixels, Modality="US", BurnedInAnnotation=burned_in)
    with ThreadPoolExecutor(1) as executor:
        build_store(tmp_path / "scans", tmp_path / "open", executor=executor)
        build_store(tmp_path / "scans", tmp_path / "closed", executor=executor, drop_burned_in=True)
    assert "scan_mask.dcm" in names(report_store(tmp_path / "open"))
    assert names(report_store(tmp_path / "closed")) == ["other.dcm"]
    assert "scan.dcm text is burned in" in text_of(tmp_path / "closed" / "report.html")
