import cv2
import numpy as np
import pytest
from known_copies import CUT, RESCALED, lay
from made_folders import write_picture, write_series

from dexcore.data import build_store
from dexcore.data.assemble.leak import find_leaks


@pytest.fixture(autouse=True)
def _own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A store of what the copies were made of."""
    place = tmp_path_factory.mktemp("known")
    lay(place / "scans", {*RESCALED.values(), *CUT.values()})
    (place / "key").write_text("0123456789abcdef")
    build_store(place / "scans", place / "store", jobs=1, key=place / "key", every=10)
    return place / "store"


def test_known_copies_of_public_files_are_found_in_a_store(known, tmp_path):
    lay(tmp_path / "tests", RESCALED)
    leaks = find_leaks(known, tmp_path / "tests")
    found = {(leak.path.split("#")[0], leak.of.split("#")[0]) for leak in leaks.leaked}
    assert found == set(RESCALED.items())
    assert leaks.unread == ()
    exact = {leak.path for leak in leaks.leaked if leak.exact}
    assert exact == {"examples_jpeg2k.dcm"}


def test_pieces_of_an_image_are_not_found_across_stores(known, tmp_path):
    """Their hashes are those of any two images; what `build` finds in a patient's group."""
    lay(tmp_path / "tests", CUT)
    assert find_leaks(known, tmp_path / "tests").leaked == ()


def test_a_slice_of_a_volume_is_found_among_its_files(tmp_path):
    write_series(tmp_path / "scans" / "ct", slices=3)
    build_store(tmp_path / "scans", tmp_path / "store", jobs=1)
    leaks = find_leaks(tmp_path / "store", tmp_path / "scans" / "ct")
    assert (len(leaks.leaked), leaks.images) == (3, 3)
    assert all(leak.exact for leak in leaks.leaked)


def test_a_file_alone_can_be_looked_for(tmp_path):
    for seed in range(3):
        write_picture(tmp_path / "scans" / f"{seed}.png", seed=seed)
    build_store(tmp_path / "scans", tmp_path / "store", jobs=1, modality="X-ray")
    image = cv2.imread(str(tmp_path / "scans" / "2.png"), cv2.IMREAD_UNCHANGED)
    cv2.imwrite(str(tmp_path / "bright.png"), np.clip(image.astype(float) * 0.8 + 20, 0, 255).astype(np.uint8))
    [leak] = find_leaks(tmp_path / "store", tmp_path / "bright.png").leaked
    assert (leak.path, leak.source, leak.of, leak.exact) == ("bright.png", "scans", "2.png", False)


def test_a_file_that_cannot_be_read_is_told_without_its_place(known, tmp_path):
    write_picture(tmp_path / "tests" / "whole.png")
    (tmp_path / "tests" / "back\\slash.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    [(path, reason)] = find_leaks(known, tmp_path / "tests").unread
    assert (path, reason) == ("back\\slash.png", "unreadable: UnidentifiedImageError: cannot identify image file")


@pytest.mark.parametrize("other", ["nowhere", "empty", "notes.txt"])
def test_what_holds_no_image_is_an_error(known, tmp_path, other):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("none")
    with pytest.raises(ValueError, match=f"{other} holds no image that can be read, expected a store, a folder or a"):
        find_leaks(known, tmp_path / other)


def test_an_unknown_modality_is_an_error(known, tmp_path):
    with pytest.raises(ValueError, match="'Xray'"):
        find_leaks(known, tmp_path, modality="Xray")
