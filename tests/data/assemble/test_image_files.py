"""The image files below a folder, beside those that a build takes."""

import pytest
from made_folders import write_mask, write_picture, write_series, write_volume

from dexcore.data import build_store, open_mvu
from dexcore.data.assemble.image_files import image_files


def test_they_are_those_of_a_build(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "scans"
    write_series(folder / "ct", slices=4)
    write_volume(folder / "brain.nii.gz")
    for number in range(2):
        write_picture(folder / f"{number}.png", seed=number)
        write_mask(folder / f"{number}_mask.png", seed=number)
    (folder / "0.png").rename(folder / "0")  # kinds are told by content
    write_picture(folder / ".hidden.png", seed=7)
    (folder / "notes.txt").write_text("beside images")
    (folder / "weights.bin").write_bytes(b"no image")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    found, left = image_files(folder)
    names = [path.relative_to(folder).as_posix() for path in found]
    assert names == ["0", "1.png", "brain.nii.gz", "ct/001.dcm", "ct/002.dcm", "ct/003.dcm", "ct/004.dcm"]
    assert [(one.path, one.reason.split(":")[0]) for one in left] == [
        ("0_mask.png", "a mask"),
        ("1_mask.png", "a mask"),
        ("gone.png", "cannot be opened"),
        ("weights.bin", "no kind of image that is read"),
    ]
    build_store(folder, tmp_path / "store", modality="MR", min_side=1, jobs=1)
    store = open_mvu(tmp_path / "store")
    built = {store[number]["path"].partition("#")[0] for number in range(len(store))}
    assert built >= {"0", "1.png", "brain.nii.gz"}
    assert built <= set(names) | {"ct"}


def test_a_folder_that_is_left_or_missing(tmp_path):
    write_picture(tmp_path / "a.png")
    write_picture(tmp_path / "out" / "b.png")
    assert image_files(tmp_path, leave=tmp_path / "out") == ([tmp_path / "a.png"], [])
    with pytest.raises(ValueError, match="expected a folder of images"):
        image_files(tmp_path / "nowhere")


def test_a_folder_of_results_is_left_out_unread_and_as_one_and_folders_below_it_are_not(tmp_path):
    for name in ("a.png", "out/b.png", "out/b_mask.png", "out/deep/c.png", "outer/d.png"):
        write_picture(tmp_path / name)
    (tmp_path / "out" / "broken.bin").write_bytes(b"no image")
    found, left = image_files(tmp_path, holds_results=lambda folder: folder == tmp_path / "out")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.png", "out/deep/c.png", "outer/d.png"]
    assert [(one.path, one.reason) for one in left] == [("out", "results of an earlier call")]
    found, left = image_files(tmp_path, holds_results=lambda folder: folder == tmp_path)
    assert tmp_path / "a.png" not in found
    assert [one.path for one in left if "results" in one.reason] == [""]
