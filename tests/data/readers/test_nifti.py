"""NIfTI: made volumes in several orientations and types, and broken files."""

import gzip
import struct

import nibabel
import numpy as np
import pytest
from made_files import package_folder

from dexcore.data.readers import UnreadableFileError, read_file


def _write(path, voxels, affine=None):
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def test_a_volume_is_turned_to_right_front_head(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 1000, (4, 5, 6)).astype(np.int16)
    # The file's axes run to the feet, to the left and to the front.
    affine = np.array([[0, -1, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 0], [0, 0, 0, 1]], float)
    scan = read_file(_write(tmp_path / "a.nii.gz", voxels, affine))
    assert scan.layout == "volume"
    np.testing.assert_array_equal(scan.pixels, voxels.transpose(1, 2, 0)[::-1, :, ::-1])


def test_slope_and_intercept_are_applied(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    image.header.set_slope_inter(2, -5)
    path = tmp_path / "a.nii"
    nibabel.save(image, path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<ff", data, 112, 2.0, -5.0)  # nibabel resets what was set
    path.write_bytes(data)
    stored = nibabel.load(path).dataobj.get_unscaled()
    np.testing.assert_array_equal(read_file(path).pixels, stored * 2.0 - 5)


def test_of_several_volumes_the_first_is_read():
    path = package_folder("nibabel") / "tests" / "data" / "example4d.nii.gz"
    scan = read_file(path)
    canonical = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    assert scan.pixels.shape == (128, 96, 24)
    np.testing.assert_array_equal(scan.pixels, canonical[..., 0].astype(np.float32))


def test_nan_voxels_become_the_smallest_value_and_infinite_ones_the_ends(tmp_path):
    voxels = np.array([-3.0, np.nan, 5.0, np.inf, -np.inf, 1.0, 2.0, 0.0], np.float32).reshape(2, 2, 2)
    pixels = read_file(_write(tmp_path / "a.nii", voxels)).pixels
    np.testing.assert_array_equal(pixels.ravel(), [-3, -3, 5, 5, -3, 1, 2, 0])


def test_nifti2_and_a_name_in_other_letters_are_read(tmp_path):
    voxels = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    path = tmp_path / "Größe-脳.NII.GZ"
    nibabel.save(nibabel.Nifti2Image(voxels, np.eye(4)), path)
    np.testing.assert_array_equal(read_file(path).pixels, voxels)


@pytest.mark.parametrize(
    ("voxels", "reason"),
    [
        (np.zeros((2, 2, 2), np.complex64), "complex64"),
        (np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "expected integers or floats"),
        (np.zeros((4, 4), np.int16), "expected a volume"),
        (np.full((2, 2, 2), np.nan, np.float32), "no pixel is finite"),
    ],
    ids=["complex", "RGB", "two axes", "NaN alone"],
)
def test_what_is_no_gray_volume_is_refused(tmp_path, voxels, reason):
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(_write(tmp_path / "a.nii", voxels))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("side", "reason"), [(3000, "expected at most"), (600, "can hold")])
def test_a_header_that_claims_more_than_the_file_can_hold_is_refused(tmp_path, suffix, side, reason):
    header = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)).to_bytes()
    header = bytearray(header)
    struct.pack_into("<4h", header, 40, 3, side, side, side)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(header) if suffix.endswith("gz") else header)
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(path)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, suffix, share):
    voxels = np.random.default_rng(0).integers(0, 1000, (20, 20, 20)).astype(np.int16)
    path = _write(tmp_path / f"a{suffix}", voxels)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnreadableFileError):
        read_file(path)
