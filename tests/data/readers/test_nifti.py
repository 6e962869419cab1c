"""NIfTI: made volumes in several orientations and types, and broken files."""

import gzip
import math
import os
import struct
import tracemalloc

import nibabel
import numpy as np
import pytest
from made_files import package_folder

from dexcore.data.assemble.slices import restacked, slices
from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.data.readers.nifti import like_nifti


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


def _changed(path, voxels, affine=None, **fields):
    """An image whose header is changed where nibabel would not: code, offset and numbers of each field."""
    data = bytearray(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine).to_bytes())
    for name, values in fields.items():
        offset, code = _FIELDS[name]
        struct.pack_into(f"<{len(values)}{code}", data, offset, *values)
    path.write_bytes(data)
    return path


# Where they lie in NIfTI-1's header.
_FIELDS = {
    "pixdim": (76, "f"),
    "vox_offset": (108, "f"),
    "scl": (112, "f"),
    "xyzt_units": (123, "B"),
    "codes": (252, "h"),  # qform, sform
    "quatern": (256, "f"),
    "srow": (280, "f"),
    "intent_code": (68, "h"),
}
_VOXELS = np.random.default_rng(0).integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
_LAS = np.diag([-2.0, 2, 3, 1])
_NAN = math.nan


@pytest.mark.parametrize("slope", [0.0, _NAN, math.inf])
def test_a_slope_of_zero_or_nan_scales_nothing(tmp_path, slope):
    path = _changed(tmp_path / "a.nii", _VOXELS, scl=[slope, 7.0])
    pixels = read_file(path).pixels
    assert pixels.dtype == np.int16
    np.testing.assert_array_equal(pixels, _VOXELS)


def test_an_intercept_that_is_not_finite_moves_nothing(tmp_path):
    path = _changed(tmp_path / "a.nii", _VOXELS, scl=[0.5, _NAN])
    np.testing.assert_array_equal(read_file(path).pixels, _VOXELS * np.float32(0.5))


@pytest.mark.parametrize("kind", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_type_keeps_its_values_in_both_byte_orders(tmp_path, kind, order):
    voxels = np.arange(120).reshape(4, 5, 6).astype(order + kind)
    image = nibabel.Nifti1Image(voxels, np.eye(4), nibabel.Nifti1Header(endianness=order), dtype=voxels.dtype)
    nibabel.save(image, tmp_path / "a.nii")
    pixels = read_file(tmp_path / "a.nii").pixels
    assert pixels.dtype == (np.dtype(kind) if kind[1] in "12" else np.float32)
    np.testing.assert_array_equal(pixels, voxels)


@pytest.mark.parametrize(
    "srow",
    [[0.0] * 12, [_NAN] * 4 + [0, 2, 0, 0, 0, 0, 3, 0], [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3, 0]],
    ids=["zeros", "NaN", "two axes alike"],
)
def test_the_qform_counts_where_the_sform_is_broken(tmp_path, srow):
    image = nibabel.Nifti1Image(_VOXELS, _LAS)
    image.set_qform(_LAS, 1)
    nibabel.save(image, tmp_path / "whole.nii")
    data = bytearray((tmp_path / "whole.nii").read_bytes())
    struct.pack_into("<12f", data, 280, *srow)
    (tmp_path / "broken.nii").write_bytes(data)
    scan = read_file(tmp_path / "broken.nii")
    np.testing.assert_array_equal(scan.pixels, _VOXELS[::-1])
    assert scan.spacing == (2, 2, 3)


@pytest.mark.parametrize("quatern", [[_NAN, 0, 0], [3, 0, 0]], ids=["NaN", "no rotation"])
def test_a_broken_qform_does_not_matter_beside_a_good_sform(tmp_path, quatern):
    path = _changed(tmp_path / "a.nii", _VOXELS, affine=_LAS, codes=[1, 2], quatern=quatern)
    np.testing.assert_array_equal(read_file(path).pixels, _VOXELS[::-1])


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"codes": [1, 1], "srow": [0] * 12, "quatern": [_NAN] * 3},
            "sform cannot be used and the qform cannot be used",
        ),
        ({"codes": [0, 1], "srow": [0] * 12}, "the sform cannot be used and the qform is not set"),
        ({"codes": [1, 0], "pixdim": [1, 0, 1, 1]}, "the sform is not set and the qform cannot be used"),
        ({"codes": [0, 0], "pixdim": [1, 1, _NAN, 1]}, "neither sform nor qform, and voxels of"),
    ],
)
def test_without_any_orientation_both_forms_are_named(tmp_path, fields, reason):
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(_changed(tmp_path / "a.nii", _VOXELS, **fields))


@pytest.mark.parametrize(("unit", "mm"), [(0, 1), (1, 1000), (2, 1), (3, 0.001), (10, 1)])
def test_spacing_is_in_mm_along_x_y_and_z_after_the_axes_are_turned(tmp_path, unit, mm):
    affine = np.array([[0, -0.5, 0, 0], [0, 0, 2, 0], [-4, 0, 0, 0], [0, 0, 0, 1]])
    path = _changed(tmp_path / "a.nii", _VOXELS, affine=affine, xyzt_units=[unit])
    np.testing.assert_allclose(read_file(path).spacing, np.array([0.5, 2, 4]) * mm)


def test_an_oblique_volume_keeps_the_size_of_its_voxels(tmp_path):
    turn = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    scan = read_file(_write(tmp_path / "a.nii", _VOXELS, turn @ np.diag([1, 2, 3, 1])))
    np.testing.assert_allclose(scan.spacing, (1, 2, 3), rtol=1e-6)
    np.testing.assert_array_equal(scan.pixels, _VOXELS)


def test_of_several_volumes_one_is_read_and_the_number_is_told():
    path = package_folder("nibabel") / "tests" / "data" / "example4d.nii.gz"
    canonical = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    for volume in (0, 1):
        scan = read_file(path, volume=volume)
        assert scan.volumes == 2
        np.testing.assert_array_equal(scan.pixels, canonical[..., volume])
    with pytest.raises(UnreadableFileError, match="volume 2 was asked for, the file holds 2"):
        read_file(path, volume=2)


def test_two_axes_are_a_volume_of_one_slice(tmp_path):
    pixels = read_file(_write(tmp_path / "a.nii", _VOXELS[..., 0])).pixels
    np.testing.assert_array_equal(pixels, _VOXELS[..., :1])


@pytest.mark.parametrize("alpha", [False, True], ids=["RGB", "RGBA"])
def test_colour_voxels_are_frames_as_radiologists_look_at_them(tmp_path, alpha):
    names = "RGBA"[: 4 if alpha else 3]
    voxels = np.zeros((4, 5, 6), [(name, "u1") for name in names])
    for name in names:
        voxels[name] = np.random.default_rng(ord(name)).integers(0, 256, voxels.shape)
    scan = read_file(_write(tmp_path / "a.nii", voxels, np.diag([1, 2, 3, 1])))
    assert (scan.layout, scan.pixels.shape, scan.spacing) == ("frames", (6, 5, 4, 3), (2, 1))
    share = voxels["A"] / 255 if alpha else 1
    for channel, name in enumerate("RGB"):
        expected = (voxels[name] * share).transpose(2, 1, 0)[:, ::-1, ::-1]
        np.testing.assert_allclose(scan.pixels[..., channel], expected, atol=0.51)


def test_gzip_is_known_by_content_not_by_name(tmp_path):
    path = _write(tmp_path / "a.nii.gz", _VOXELS)
    path.rename(tmp_path / "b.nii")
    np.testing.assert_array_equal(read_file(tmp_path / "b.nii").pixels, _VOXELS)
    np.testing.assert_array_equal(read_file(os.fsencode(tmp_path / "b.nii")).pixels, _VOXELS)


def test_a_changed_byte_under_gzip_is_found_by_its_checksum(tmp_path):
    data = bytearray(gzip.compress(nibabel.Nifti1Image(_VOXELS, np.eye(4)).to_bytes(), 0))  # stored, not deflated
    data[-20] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(data)
    with pytest.raises(UnreadableFileError, match="CRC"):
        read_file(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", [".img", ".img.gz"])
def test_a_pair_is_read_by_its_header_and_never_without_its_voxels(tmp_path, suffix):
    nibabel.save(nibabel.Nifti1Pair(_VOXELS, _LAS), tmp_path / "a.hdr")
    if suffix == ".img.gz":
        (tmp_path / "a.img.gz").write_bytes(gzip.compress((tmp_path / "a.img").read_bytes()))
        (tmp_path / "a.img").unlink()
    np.testing.assert_array_equal(read_file(tmp_path / "a.hdr").pixels, _VOXELS[::-1])
    (tmp_path / "a.hdr.gz").write_bytes(gzip.compress((tmp_path / "a.hdr").read_bytes()))
    np.testing.assert_array_equal(read_file(tmp_path / "a.hdr.gz").pixels, _VOXELS[::-1])
    (tmp_path / "a.hdr").rename(tmp_path / "a.nii")
    with pytest.raises(UnreadableFileError, match="expected under the name"):
        read_file(tmp_path / "a.nii")


def test_a_label_map_that_says_so_is_told(tmp_path):
    path = _changed(tmp_path / "a.nii", _VOXELS, intent_code=[1002])
    assert read_file(path).metadata["Intent"] == "label"


def test_cifti_is_no_image(tmp_path):
    with pytest.raises(UnreadableFileError, match="CIFTI"):
        read_file(_changed(tmp_path / "a.nii", _VOXELS, intent_code=[3001]))


@pytest.mark.parametrize("intent", [1006, 1007, 2003])
def test_vectors_are_no_image(tmp_path, intent):
    path = _changed(tmp_path / "a.nii", np.zeros((4, 5, 6, 1, 3), np.float32), intent_code=[intent])
    with pytest.raises(UnreadableFileError, match="3 numbers a voxel"):
        read_file(path)
    one = _changed(tmp_path / "b.nii", np.ones((4, 5, 6, 1, 1), np.float32), intent_code=[intent])
    assert read_file(one).pixels.shape == (4, 5, 6)


def test_an_offset_of_zero_is_the_end_of_the_header(tmp_path):
    path = _changed(tmp_path / "a.nii", _VOXELS, vox_offset=[0.0])
    np.testing.assert_array_equal(read_file(path).pixels, _VOXELS)
    with pytest.raises(UnreadableFileError, match="vox_offset is nan"):
        read_file(_changed(tmp_path / "a.nii", _VOXELS, vox_offset=[_NAN]))


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_a_volume_is_read_without_a_second_copy(tmp_path, kind):
    voxels = np.ones((128, 128, 128), kind)
    voxels[3] = 7
    path = _changed(tmp_path / "a.nii", voxels, scl=[2.0, 1.0])
    tracemalloc.start()
    try:
        pixels = read_file(path).pixels
        assert tracemalloc.get_traced_memory()[1] < 1.1 * pixels.nbytes
    finally:
        tracemalloc.stop()
    assert pixels.dtype == np.float32
    assert pixels[3].min() == 15


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
        (np.zeros(4, np.int16), "1 axes, expected 2 to 7"),
        (np.full((2, 2, 2), np.nan, np.float32), "no pixel is finite"),
    ],
    ids=["complex", "one axis", "NaN alone"],
)
def test_what_is_no_volume_is_refused(tmp_path, voxels, reason):
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(_write(tmp_path / "a.nii", voxels))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(("side", "reason"), [(3000, "expected at most"), (600, "can hold|inflate to")])
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


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("orders", [(0, 1, 2), (1, 2, 0), (2, 1, 0), (0, 2, 1)])
@pytest.mark.parametrize("turns", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
def test_slices_that_are_put_together_again_lie_where_the_file_has_them(tmp_path, axis, orders, turns):
    voxels = np.random.default_rng(0).integers(0, 200, (3, 4, 5)).astype(np.uint8)
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(turns) * (0.5, 1, 2))[list(orders)]
    affine[:3, 3] = -7, 3, 11
    path = _write(tmp_path / "a.nii.gz", voxels, affine)
    planes = [np.ascontiguousarray(plane) for plane in slices(read_file(path).held, axis)]
    made = like_nifti(path, restacked(planes, axis))
    nibabel.save(made, tmp_path / "mask.nii.gz")
    again = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(again.dataobj), voxels)
    np.testing.assert_array_equal(again.affine, nibabel.load(path).affine)
    assert again.get_data_dtype() == np.uint8


def test_labels_in_a_volumes_place_keep_its_forms_and_units_and_not_its_scaling(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5, 2), np.int16), np.diag([2, 2, 3, 1]))
    image.header.set_sform(np.diag([2, 2, 3, 1]), "mni")
    image.header.set_qform(np.diag([2, 2, 3, 1]), "scanner")
    image.header.set_xyzt_units("micron", "sec")
    image.header["scl_slope"], image.header["scl_inter"] = 2, 10
    nibabel.save(image, tmp_path / "a.nii")
    made = like_nifti(tmp_path / "a.nii", np.full((3, 4, 5), 3, np.uint8))
    nibabel.save(made, tmp_path / "mask.nii")
    again = nibabel.load(tmp_path / "mask.nii")
    assert again.shape == (3, 4, 5)
    assert np.unique(again.get_fdata()).tolist() == [3]
    assert again.header.get_sform(coded=True)[1] == 4
    assert again.header.get_qform(coded=True)[1] == 1
    assert again.header.get_xyzt_units()[0] == "micron"
    with pytest.raises(ValueError, match="voxels have shape"):
        like_nifti(tmp_path / "a.nii", np.zeros((4, 4, 5), np.uint8))
