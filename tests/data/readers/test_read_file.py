"""`read_file`: which reader reads, and the one error."""

import logging
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from made_files import PYDICOM
from PIL import Image

from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.extras import MissingExtraError


def test_a_wrong_extension_does_not_matter(tmp_path):
    shutil.copy(PYDICOM / "CT_small.dcm", tmp_path / "ct.png")
    Image.new("L", (9, 9), 7).save(tmp_path / "image.dcm", format="PNG")
    assert read_file(tmp_path / "ct.png").metadata["Modality"] == "CT"
    assert (read_file(tmp_path / "image.dcm").pixels == 7).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"P5 2 2 255 abcd", "of no known kind, expected one of dicom"),
        (b"\x89PNG\r\n\x1a\n", "UnidentifiedImageError"),
    ],
)
def test_what_is_no_image_is_refused_by_name(tmp_path, content, reason):
    path = tmp_path / "größe.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=reason) as caught:
        read_file(path)
    assert "größe.png" in str(caught.value)
    assert caught.value.path == path


def test_missing_files_folders_and_link_loops_are_refused(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "missing.png", tmp_path, tmp_path / "loop"):
        with pytest.raises(UnreadableFileError, match=path.name):
            read_file(path)


def test_the_error_travels_between_processes(tmp_path):
    error = pickle.loads(pickle.dumps(UnreadableFileError("a.png", "truncated")))
    assert str(error) == "a.png: truncated"
    assert error.reason == "truncated"


def test_every_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        read_file(tmp_path / "a.png", every=0)


def test_an_open_file_s_number_is_no_path(tmp_path):
    with open(tmp_path / "a", "w+b") as file:
        with pytest.raises(TypeError, match="path must be a path"):
            read_file(file.fileno())
        file.write(b"still open")
        file.flush()


def test_an_image_of_one_pixel_is_read(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_file(tmp_path / "a.png").pixels, [[[[1, 2, 3]]]])


def test_reading_changes_no_logging(tmp_path, caplog):
    logger = logging.getLogger("pydicom")
    before = logger.level
    with pytest.raises(UnreadableFileError):
        read_file(PYDICOM / "MR_truncated.dcm")
    assert logger.level == before
    assert not caplog.records


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"pydicom .* pip install 'dexcore\[data\]'"):
        read_file(PYDICOM / "CT_small.dcm")


def test_the_data_room_is_imported_without_any_optional_package():
    blocked = ("pyarrow", "cv2", "PIL", "pydicom", "nibabel", "nilearn", "skimage", "matplotlib", "tqdm")
    blocked += ("tifffile", "imagecodecs", "SimpleITK", "av", "h5py")
    code = (
        "import sys, dexcore\n"  # timm brings some of them itself
        f"sys.modules.update(dict.fromkeys({blocked}))\n"
        "import dexcore.data, dexcore.data.readers, dexcore.data.sources.samples, dexcore.data.assemble.filter\n"
        "from dexcore.data.readers import archive, arrays, grid, hdf5, heidelberg, metaimage, nrrd, slide, tiff, video"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
