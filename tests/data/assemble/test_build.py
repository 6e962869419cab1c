"""Folders that become stores: in threads of this process, where the test is not about processes."""

import json
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from made_folders import noise, write_mask, write_picture, write_series, write_volume
from made_kinds import write_video
from PIL import Image

from dexcore.data import build_store, open_mvu
from dexcore.data.assemble.build import dry_run
from dexcore.data.assemble.options import Options
from dexcore.data.assemble.walk import path_text
from dexcore.data.sources.recipe import RecipeError
from dexcore.data.store import StoreError, check_store
from dexcore.data.store.manifest import Manifest
from dexcore.report.store_page import report_store


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def folder(tmp_path):
    """A CT series, a volume, pictures beside masks and sidecars, in two sources."""
    root = tmp_path / "scans"
    write_series(root / "ct" / "a", patient="P1")
    for index in range(5):
        write_picture(root / "xray" / f"{index}.png", seed=index)
        write_mask(root / "xray" / f"{index}_mask.png", seed=index)
    (root / "xray" / "dataset.yaml").write_text("modality: X-ray\n")
    write_volume(root / "mr" / "brain.nii.gz")
    (root / "mr" / "dataset.yaml").write_text("modality: MR\nname: brains\n")
    (root / "readme.txt").write_text("from the clinic")
    return root


def build(folder, out, **options):
    with ThreadPoolExecutor(1) as executor:
        return build_store(folder, out, executor=executor, **options)


def rejects(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "rejects.jsonl").read_text().splitlines()]
    return {line["path"]: line["reason"] for line in lines}


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_folder_of_many_kinds_becomes_a_store(folder, tmp_path):
    manifest = build(folder, tmp_path / "store")
    assert manifest.counts.keys() == {"CT", "X-ray", "MR"}
    assert {name: part.images for name, part in manifest.sources.items()} == {"brains": 3, "scans": 4, "xray": 5}
    assert check_store(tmp_path / "store") == []
    assert rejects(tmp_path / "store").keys() == {f"xray/{index}_mask.png" for index in range(5)}
    dataset = open_mvu(tmp_path / "store")
    paths = [dataset[index]["path"] for index in range(12)]
    assert paths == [
        *(f"mr/brain.nii.gz#axial={index}" for index in range(3)),
        *(f"ct/a/004.dcm#axial={index}" for index in range(4)),
        *(f"xray/{index}.png" for index in range(5)),
    ]
    assert dataset[3]["normalization"] == "hu_window"
    assert {path.name for path in (tmp_path / "store").iterdir() if not path.name.startswith("shard")} == {
        "manifest.json",
        "build.json",
        "examples.jsonl",
        "rejects.jsonl",
    }


def test_slices_of_a_series_stand_in_the_order_of_their_positions(folder, tmp_path):
    build(folder, tmp_path / "store")
    dataset = open_mvu(tmp_path / "store")
    for index in range(4):  # the scanner's x and y lead to the left and the back: seen as radiologists do
        hu = noise((72, 68), index, 2000).astype(np.float32) - 1000
        expected = (hu.clip(-200, 400) + 200) / 600
        assert np.abs(dataset[3 + index]["image"] - expected).max() < 1e-4


def test_a_patient_is_in_one_split_and_its_name_in_no_store(tmp_path):
    for number in range(3):
        write_series(tmp_path / "scans" / str(number), patient="Doe^Jane", seed=number)
    build(tmp_path / "scans", tmp_path / "store")
    dataset = open_mvu(tmp_path / "store")
    assert len(set(dataset.group)) == 1
    assert all(b"Doe" not in content for content in files_of(tmp_path / "store").values())


def test_groups_and_splits_stay_when_data_is_added(tmp_path):
    for number in range(40):
        write_picture(tmp_path / "scans" / f"{number:02d}.png", seed=number)
    build(tmp_path / "scans", tmp_path / "store", modality="X-ray", key=_key(tmp_path))
    before = open_mvu(tmp_path / "store")
    placed = {before[index]["path"]: (before.group[index], before.split[index]) for index in range(40)}
    assert {split for _, split in placed.values()} == {"train", "heldout"}
    for number in range(40, 60):
        write_picture(tmp_path / "scans" / f"0{number:02d}.png", seed=number)
    build(tmp_path / "scans", tmp_path / "store", modality="X-ray", key=_key(tmp_path))
    after = open_mvu(tmp_path / "store")
    assert len(after) == 60
    again = {after[index]["path"]: (after.group[index], after.split[index]) for index in range(60)}
    assert {path: again[path] for path in placed} == placed


def test_what_has_no_modality_is_kept_out_with_the_sentence_that_helps(folder, tmp_path):
    for index in range(3):
        write_picture(folder / "unknown" / f"{index}.png", seed=50 + index)
    with ThreadPoolExecutor(1) as executor:
        from dexcore.data.assemble.build import build as build_with_report

        report = build_with_report(folder, tmp_path / "store", Options(), executor=executor)
    sentence = "3 PNG files have no modality: add --modality X-ray, or write dataset.yaml with `modality: X-ray`"
    assert sentence in report.lines()
    assert rejects(tmp_path / "store")["unknown/0.png"] == "no modality (PNG)"


def test_nothing_to_keep_is_an_error_that_leaves_nothing(tmp_path):
    write_picture(tmp_path / "scans" / "a.png")
    with pytest.raises(ValueError, match=r"(?s)no image was kept.*1 PNG file has no modality: add --modality"):
        build(tmp_path / "scans", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_the_same_files_again_are_nothing_to_do(folder, tmp_path):
    build(folder, tmp_path / "store")
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "store").iterdir()}
    shutil.move(folder, tmp_path / "elsewhere")  # the place does not matter
    build(tmp_path / "elsewhere", tmp_path / "store", name="scans")
    assert {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (tmp_path / "store").iterdir()
    } == before


def test_a_change_rebuilds_its_source_alone(folder, tmp_path):
    first = build(folder, tmp_path / "store")
    write_picture(folder / "xray" / "9.png", seed=9)
    second = build(folder, tmp_path / "store")
    assert second.sources["xray"].images == 6
    assert second.sources["brains"] == first.sources["brains"]
    assert second.sources["scans"] == first.sources["scans"]
    assert len(rejects(tmp_path / "store")) == 5
    assert check_store(tmp_path / "store") == []
    fresh = build(folder, tmp_path / "fresh")
    assert fresh == second
    assert files_of(tmp_path / "fresh") == files_of(tmp_path / "store")


def test_a_source_that_left_the_folder_leaves_the_store_and_others_stay(folder, tmp_path):
    write_picture(tmp_path / "more" / "x.png", seed=77)
    build(tmp_path / "more", tmp_path / "store", modality="Fundus")
    build(folder, tmp_path / "store")
    shutil.rmtree(folder / "mr")
    manifest = build(folder, tmp_path / "store")
    assert set(manifest.sources) == {"more", "scans", "xray"}


def test_another_folder_does_not_replace_a_source_of_the_same_name(tmp_path):
    write_picture(tmp_path / "a" / "scans" / "x.png", seed=1)
    write_picture(tmp_path / "b" / "scans" / "x.png", seed=2)
    build(tmp_path / "a" / "scans", tmp_path / "store", modality="Photo")
    with pytest.raises(StoreError, match=r"has a source 'scans' from another folder: give this one another --name"):
        build(tmp_path / "b" / "scans", tmp_path / "store", modality="Photo")
    build(tmp_path / "b" / "scans", tmp_path / "store", modality="Photo", name="others")
    assert set(Manifest.load(tmp_path / "store").sources) == {"scans", "others"}


def test_exact_copies_are_dropped_and_the_first_stays(tmp_path):
    write_picture(tmp_path / "scans" / "b.png", seed=1)
    write_picture(tmp_path / "scans" / "a.png", seed=1)
    write_picture(tmp_path / "scans" / "c.bmp", seed=1)
    manifest = build(tmp_path / "scans", tmp_path / "store", modality="Photo")
    assert manifest.images == 1
    assert rejects(tmp_path / "store") == {"b.png": "exact copy: of a.png", "c.bmp": "exact copy: of a.png"}


def test_a_broken_file_costs_itself_alone(folder, tmp_path):
    (folder / "xray" / "broken.png").write_bytes((folder / "xray" / "0.png").read_bytes()[:2000])
    (folder / "xray" / "empty.png").write_bytes(b"")
    (folder / "xray" / "thing.bin").write_bytes(b"\x00\x01\x02\x03" * 50)
    manifest = build(folder, tmp_path / "store")
    assert manifest.sources["xray"].images == 5
    reasons = rejects(tmp_path / "store")
    assert reasons["xray/broken.png"].startswith("unreadable: ")
    assert reasons["xray/empty.png"] == "empty file"
    assert reasons["xray/thing.bin"] == "no kind of image that is read"


def test_a_broken_slice_does_not_cost_its_series(tmp_path):
    paths = write_series(tmp_path / "scans", slices=6)
    paths[2].write_bytes(paths[2].read_bytes()[:-3000])
    manifest = build(tmp_path / "scans", tmp_path / "store")
    assert manifest.images == 5
    assert [*rejects(tmp_path / "store")] == [paths[2].name]


def test_thick_slices_are_cut_as_acquired_and_others_on_request_with_square_pixels(tmp_path):
    write_volume(tmp_path / "scans" / "v.nii.gz", (66, 70, 20))
    (tmp_path / "scans" / "dataset.yaml").write_text("modality: MR\naxes: [axial, coronal]\n")
    build(tmp_path / "scans", tmp_path / "store")
    dataset = open_mvu(tmp_path / "store")
    shapes = {
        (dataset[index]["image"].shape, dataset[index]["path"].split("#")[1][:3]) for index in range(len(dataset))
    }
    assert shapes == {((70, 66), "axi"), ((80, 66), "cor")}  # 20 slices, 4 mm apart, beside pixels of 1 mm


def test_all_volumes_of_a_4d_file_on_request(tmp_path):
    write_volume(tmp_path / "scans" / "cine.nii.gz", (66, 70, 2, 3))
    (tmp_path / "scans" / "dataset.yaml").write_text("modality: MR\n")
    assert build(tmp_path / "scans", tmp_path / "first").images == 2
    (tmp_path / "scans" / "dataset.yaml").write_text("modality: MR\nvolume: all\n")
    assert build(tmp_path / "scans", tmp_path / "all").images == 6
    assert open_mvu(tmp_path / "all")[5]["path"] == "cine.nii.gz#2#axial=1"


def test_small_images_are_kept_where_the_source_says_so(tmp_path):
    write_picture(tmp_path / "scans" / "a.png", (30, 40))
    with pytest.raises(ValueError, match="shorter side"):
        build(tmp_path / "scans", tmp_path / "store", modality="MR")
    assert build(tmp_path / "scans", tmp_path / "store", modality="MR", min_side=30).images == 1
    (tmp_path / "scans" / "dataset.yaml").write_text("min_side: 20\nmodality: MR")
    assert build(tmp_path / "scans", tmp_path / "other").images == 1


def test_hashed_paths_leave_no_name_behind(tmp_path):
    root = tmp_path / "Jane-Doe-root"
    write_picture(root / "Jane-Doe-folder" / "Jane-Doe-1.png", seed=1)
    write_picture(root / "Jane-Doe-folder" / "Jane-Doe-2.png", (20, 20))
    (root / "Jane-Doe-folder" / "dataset.yaml").write_text("modality: Photo")
    (root / "Jane-Doe-broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (root / "license.Jane-Doe").write_text("x")
    os.symlink("Jane-Doe-nowhere", root / "Jane-Doe-link")
    with zipfile.ZipFile(root / "Jane-Doe.zip", "w") as archive:
        archive.writestr("Jane-Doe-bad.png", b"\x89PNG\r\n\x1a\nbad checksum")
        archive.writestr("license.Jane-Doe", b"x")
    damaged = (root / "Jane-Doe.zip").read_bytes().replace(b"bad checksum", b"bad Checksum")
    (root / "Jane-Doe.zip").write_bytes(damaged)
    build(root, tmp_path / "store", hash_paths=True)
    report_store(tmp_path / "store")
    written = files_of(tmp_path / "store")
    assert all(b"Jane" not in content and "Jane" not in name for name, content in written.items())
    assert len(rejects(tmp_path / "store")) == 5


def test_reasons_name_no_place_outside_of_the_folder(tmp_path):
    write_picture(tmp_path / "scans" / "x.png")
    names = ["cut.png", "back\\slash.png", "new\nline.png", "bell\x07.png", "Bob's.png", os.fsdecode(b"caf\xe9.png")]
    for name in names:
        (tmp_path / "scans" / name).write_bytes(b"\x89PNG\r\n\x1a\n")
    with zipfile.ZipFile(tmp_path / "scans" / "more.zip", "w") as archive:
        archive.writestr("cut.png", b"\x89PNG\r\n\x1a\n")
    build(tmp_path / "scans", tmp_path / "store", modality="Photo")
    told = rejects(tmp_path / "store")
    assert told.keys() == {path_text(name) for name in names} | {"more.zip#cut.png"}
    assert all(reason == "unreadable: UnidentifiedImageError: cannot identify image file" for reason in told.values())


def test_of_a_series_with_and_without_a_sigmoid_no_slice_is_black(tmp_path):
    attributes = {"Modality": "MR", "RescaleIntercept": 0, "WindowCenter": 1000, "WindowWidth": 800}
    for function in ("LINEAR", "SIGMOID"):
        paths = write_series(tmp_path / function, VOILUTFunction=function, **attributes)
        (tmp_path / "scans").mkdir(exist_ok=True)
        for path in paths[:2] if function == "LINEAR" else paths[2:]:
            path.rename(tmp_path / "scans" / path.name)
    build(tmp_path / "scans", tmp_path / "store")
    dataset = open_mvu(tmp_path / "store")
    assert len(dataset) == 4
    assert all(dataset[index]["image"].std() > 0.1 for index in range(4))


def test_text_burned_in_is_flagged_and_can_be_dropped(tmp_path):
    write_series(tmp_path / "scans" / "a", slices=1, BurnedInAnnotation="YES")
    write_series(tmp_path / "scans" / "b", slices=1, seed=1, BurnedInAnnotation="NO")
    build(tmp_path / "scans", tmp_path / "store")
    dataset = open_mvu(tmp_path / "store")
    assert [dataset[index]["burned_in"] for index in range(2)] == [True, False]
    assert build(tmp_path / "scans", tmp_path / "clean", drop_burned_in=True).images == 1
    assert rejects(tmp_path / "clean") == {"a/001.dcm": "text is burned in, as its header says"}


def test_names_that_are_not_utf8_and_circles_of_links(tmp_path):
    root = tmp_path / "scans"
    write_picture(root / "a" / "x.png")
    os.rename(os.fsencode(root / "a" / "x.png"), os.fsencode(root / "a") + b"/caf\xe9.png")
    os.symlink(root, root / "a" / "around")
    os.symlink(root / "a", root / "again")
    manifest = build(root, tmp_path / "store", modality="Photo")
    assert manifest.images == 1
    assert open_mvu(tmp_path / "store")[0]["path"] == "a/caf\\xe9.png"


def test_a_store_inside_its_folder_is_not_read_again(tmp_path):
    root = tmp_path / "scans"
    write_picture(root / "x.png")
    first = build(root, root / "store", modality="Photo")
    assert build(root, root / "store", modality="Photo") == first


def test_an_empty_folder_and_none_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no file"):
        build(tmp_path / "empty", tmp_path / "store")
    with pytest.raises(ValueError, match="nowhere: No such file or directory, expected a folder of images"):
        build(tmp_path / "nowhere", tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_folder_with_other_files_is_no_place_for_a_store(folder, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.docx").write_text("precious")
    with pytest.raises(StoreError, match=r"holds thesis\.docx and no store"):
        build(folder, tmp_path / "home")
    with pytest.raises(ValueError, match="cannot be its own store"):
        build(folder, folder)


def test_two_sources_of_one_name_are_refused(folder, tmp_path):
    (folder / "mr" / "dataset.yaml").write_text("modality: MR\nname: xray\n")
    with pytest.raises(RecipeError, match=r"the source 'xray' stands also in .*/dataset.yaml: give one of them"):
        build(folder, tmp_path / "store")


def test_a_dry_run_says_what_would_be_kept_and_writes_nothing(folder, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with ThreadPoolExecutor(1) as executor:
        found = dry_run(folder, Options(key=_key(tmp_path)), executor=executor)
    lines = "\n".join(found.lines())
    assert "CT           DICOM                   1" in lines
    assert "X-ray        PNG                     5" in lines
    assert "a mask" in lines
    assert "estimated: about" in lines
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "key") == before


def _key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_text("0123456789abcdef0123456789abcdef")
    return tmp_path / "key"


def test_the_key_of_groups_is_made_once_and_for_its_owner_alone(tmp_path):
    write_picture(tmp_path / "scans" / "x.png")
    build(tmp_path / "scans", tmp_path / "a", modality="Photo")
    key = tmp_path / "config" / "dexcore" / "group.key"
    assert key.stat().st_mode & 0o777 == 0o600
    build(tmp_path / "scans", tmp_path / "b", modality="Photo")
    build(tmp_path / "scans", tmp_path / "c", modality="Photo", key=_key(tmp_path))
    a, b, c = (open_mvu(tmp_path / name).group[0] for name in "abc")
    assert a == b != c


def test_gray_saved_as_color_is_stored_as_gray(tmp_path):
    pixels = np.repeat(noise((70, 70), 0)[..., None], 3, axis=2)
    (tmp_path / "scans").mkdir()
    Image.fromarray(pixels).save(tmp_path / "scans" / "x.png")
    build(tmp_path / "scans", tmp_path / "store", modality="X-ray")
    assert np.array_equal(open_mvu(tmp_path / "store").read(0), pixels[..., 0])


def test_video_frames_have_square_pixels(tmp_path):
    (tmp_path / "scans").mkdir()
    frames = noise((31, 80, 70, 3), 0)
    write_video(tmp_path / "scans" / "a.mp4", frames, "libx264", "yuv420p", aspect=2)  # shown twice as wide
    build(tmp_path / "scans", tmp_path / "store", modality="Endoscopy")
    dataset = open_mvu(tmp_path / "store")
    assert [dataset[index]["path"] for index in range(len(dataset))] == ["a.mp4#0", "a.mp4#30"]
    assert [dataset.read(index).shape for index in range(2)] == [(80, 140, 3)] * 2


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_an_archive_is_a_folder(folder, tmp_path, ending):
    for path in folder.rglob("dataset.yaml"):
        path.unlink()
    shutil.rmtree(folder / "mr")
    expected = build(folder, tmp_path / "unpacked", modality="X-ray", name="x")
    packed = tmp_path / "packed"
    packed.mkdir()
    shutil.make_archive(str(packed / "scans"), {"zip": "zip", "tar.gz": "gztar"}[ending], folder)
    manifest = build(packed, tmp_path / "store", modality="X-ray", name="x")
    assert manifest.counts["CT"]["x"].keys() == expected.counts["CT"]["x"].keys()
    assert manifest.images == expected.images == 9
    first, second = open_mvu(tmp_path / "unpacked"), open_mvu(tmp_path / "store")
    images = {first[index]["path"]: first.read(index) for index in range(9)}
    for index in range(9):
        archive, place = second[index]["path"].split("#", 1)
        assert archive == f"scans.{ending}"
        assert np.array_equal(second.read(index), images[place])
    reasons = rejects(tmp_path / "store")
    assert reasons[f"scans.{ending}#xray/0_mask.png"] == "a mask: an image has the same name"
    assert reasons[f"scans.{ending}"] == "ignored inside an archive: 1 .txt"


def test_a_damaged_archive_and_a_damaged_file_in_one(tmp_path):
    root = tmp_path / "scans"
    write_picture(root / "a" / "x.png")
    (root / "a" / "y.png").write_bytes((root / "a" / "x.png").read_bytes()[:700])
    shutil.make_archive(str(root / "whole"), "zip", root / "a")
    shutil.make_archive(str(root / "cut"), "gztar", root / "a")
    (root / "cut.tar.gz").write_bytes((root / "cut.tar.gz").read_bytes()[:-200])
    shutil.rmtree(root / "a")
    manifest = build(root, tmp_path / "store", modality="Photo")
    assert manifest.images == 1
    reasons = rejects(tmp_path / "store")
    assert reasons.keys() == {"cut.tar.gz", "whole.zip#y.png"}
    assert all(reason.startswith("unreadable: ") for reason in reasons.values())
