"""NRRD and MetaImage, written and read by ITK and by hand: its orientation, and files that lie."""

import gzip
import os
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from corpus import CORPUS, needs_corpus

from dexcore.data.readers import UnreadableFileError, read_file

_RNG = np.random.default_rng(0)
_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
# Columns: the directions of the image's axes; a turn about two axes, a mirror, a permutation.
_DIRECTIONS = {
    "identity": np.eye(3),
    "mirrored": np.diag([-1.0, 1, -1]),
    "permuted": np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
    "oblique": np.array([[0.96, 0.28, 0], [-0.28, 0.96, 0], [0, 0, 1]])
    @ np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]),
}


def _image(pixels, direction=None, spacing=(0.7, 1.1, 2.5), vector=False):
    image = sitk.GetImageFromArray(pixels, isVector=vector)
    image.SetSpacing(spacing[: image.GetDimension()])
    if direction is not None:
        image.SetDirection(direction.ravel().tolist())
    return image


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("direction", _DIRECTIONS.values(), ids=_DIRECTIONS)
@pytest.mark.parametrize("suffix", _SUFFIXES)
def test_a_volume_lies_in_the_body_as_the_same_volume_in_nifti(tmp_path, suffix, direction, compressed):
    image = _image(_RNG.integers(-1000, 3000, (5, 6, 7)).astype(np.int16), direction)
    sitk.WriteImage(image, tmp_path / f"a{suffix}", compressed)
    sitk.WriteImage(image, tmp_path / "a.nii")
    scan, nifti = read_file(tmp_path / f"a{suffix}"), read_file(tmp_path / "a.nii")
    assert scan.layout == "volume"
    assert scan.pixels.dtype == np.int16
    np.testing.assert_array_equal(scan.pixels, nifti.pixels)
    oriented = sitk.DICOMOrient(image, "RAS")
    assert scan.spacing == pytest.approx(oriented.GetSpacing())
    np.testing.assert_array_equal(scan.pixels, sitk.GetArrayFromImage(oriented).T)


@pytest.mark.parametrize("suffix", _SUFFIXES)
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_type_of_number_keeps_its_values(tmp_path, suffix, dtype):
    pixels = (_RNG.normal(size=(3, 4, 5)) * 50 + (64 if dtype[0] == "u" else 0)).clip(
        0 if dtype[0] == "u" else -128, 127
    )
    sitk.WriteImage(_image(pixels.astype(dtype)), tmp_path / f"a{suffix}")
    read = read_file(tmp_path / f"a{suffix}").pixels
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, pixels.astype(dtype).T[::-1, ::-1])


@pytest.mark.parametrize("suffix", _SUFFIXES)
def test_pictures_are_frames_as_they_are_looked_at(tmp_path, suffix):
    gray = _RNG.integers(0, 255, (6, 7), dtype=np.uint8)
    color = _RNG.integers(0, 255, (6, 7, 3), dtype=np.uint8)
    stack = _RNG.integers(0, 255, (4, 6, 7, 3), dtype=np.uint8)
    for pixels, vector in ((gray, False), (color, True), (stack, True)):
        sitk.WriteImage(_image(pixels, vector=vector), tmp_path / f"a{suffix}")
        scan = read_file(tmp_path / f"a{suffix}")
        assert scan.layout == "frames"
        np.testing.assert_array_equal(scan.pixels, pixels if len(pixels.shape) == 4 else pixels[None])
        assert scan.levels == (0.0, 255.0)
        assert scan.spacing == pytest.approx((1.1, 0.7))


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_of_several_volumes_the_chosen_one_is_read(tmp_path, suffix):
    volumes = _RNG.integers(0, 999, (4, 3, 5, 6)).astype(np.int16)
    sitk.WriteImage(sitk.JoinSeries([_image(volume) for volume in volumes]), tmp_path / f"a{suffix}", True)
    for number in (0, 3):
        scan = read_file(tmp_path / f"a{suffix}", volume=number)
        assert scan.volumes == 4
        np.testing.assert_array_equal(scan.pixels, volumes[number].T[::-1, ::-1])
    with pytest.raises(UnreadableFileError, match="volume 4 was asked for, the file holds 4"):
        read_file(tmp_path / f"a{suffix}", volume=4)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_displacements_are_no_image(tmp_path, suffix):
    sitk.WriteImage(_image(_RNG.normal(size=(4, 5, 6, 3)), vector=True), tmp_path / f"a{suffix}")
    with pytest.raises(UnreadableFileError, match=r"expected (one, or RGB|space, RGB, a list)"):
        read_file(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("kind", ["RGBA-color", "HSV-color", "2-vector", "complex"])
def test_numbers_of_a_pixel_are_no_axis_of_space(tmp_path, kind):
    pixels = np.zeros((6, 5, {"HSV-color": 3, "RGBA-color": 4}.get(kind, 2)), np.uint8)
    path = _nrrd(tmp_path / "a.nrrd", pixels, "type: uchar", "encoding: raw", f"kinds: {kind} domain domain")
    with pytest.raises(UnreadableFileError, match="axis 0 counts numbers a pixel"):
        read_file(path)


def _nrrd(path, pixels, *lines, data=None):
    sizes = " ".join(map(str, pixels.shape[::-1]))
    header = ["NRRD0005", "# made by hand", f"dimension: {pixels.ndim}", f"sizes: {sizes}", *lines]
    path.write_bytes("\n".join(header).encode() + b"\n\n" + (pixels.tobytes() if data is None else data))
    return path


def test_spaces_other_than_itk_s_are_turned(tmp_path):
    pixels = _RNG.integers(0, 999, (3, 4, 5)).astype(">u2")
    lines = ("type: ushort", "endian: big", "encoding: raw", "space directions: (2,0,0) (0,3,0) (0,0,4)")
    for space, right in (
        ("right-anterior-superior", pixels.T),
        ("LAS", pixels.T[::-1]),
        ("left-posterior-superior", pixels.T[::-1, ::-1]),
    ):
        scan = read_file(_nrrd(tmp_path / "a.nrrd", pixels, *lines, f"space: {space}"))
        np.testing.assert_array_equal(scan.pixels, right)
        assert scan.spacing == (2, 3, 4)
        assert scan.pixels.dtype == np.uint16


def test_units_other_than_mm_are_no_spacing_in_mm(tmp_path):
    lines = ("type: short", "endian: little", "encoding: raw", "space directions: (2,0,0) (0,3,0) (0,0,4)")
    for unit, spacing in (("mm", (2, 3, 4)), ("um", None)):
        units = " ".join([f'"{unit}"'] * 3)
        path = _nrrd(tmp_path / "a.nrrd", np.zeros((3, 4, 5), np.int16), *lines, "space: RAS", f"space units: {units}")
        assert read_file(path).spacing == spacing


def test_volumes_that_lie_side_by_side_are_told_apart(tmp_path):
    pixels = _RNG.integers(0, 999, (3, 4, 5, 6)).astype("<i2")  # six volumes, their axis the fastest
    lines = ("type: short", "endian: little", "kinds: list domain domain domain", "space: RAS")
    directions = "space directions: none (2,0,0) (0,3,0) (0,0,4)"
    for encoding, data in (("raw", pixels.tobytes()), ("gzip", gzip.compress(pixels.tobytes()))):
        path = _nrrd(tmp_path / "a.nrrd", pixels, *lines, directions, f"encoding: {encoding}", data=data)
        for volume in (0, 5):
            scan = read_file(path, volume=volume)
            assert scan.volumes == 6
            assert scan.spacing == (2, 3, 4)
            np.testing.assert_array_equal(scan.pixels, pixels[..., volume].T)


def test_hexadecimal_numbers_are_read(tmp_path):
    pixels = _RNG.integers(0, 999, (3, 4, 5)).astype("<i2")
    lines = ("type: short", "endian: little", "encoding: hex")
    text = pixels.tobytes().hex().encode()
    path = _nrrd(tmp_path / "a.nrrd", pixels, *lines, data=text[:40] + b"\n" + text[40:])
    np.testing.assert_array_equal(read_file(path).pixels, pixels.T[::-1, ::-1])
    with pytest.raises(UnreadableFileError, match="120 bytes in 116 letters"):
        read_file(_nrrd(tmp_path / "b.nrrd", pixels, *lines, data=text[:116]))
    with pytest.raises(UnreadableFileError, match="should hold a number"):
        read_file(_nrrd(tmp_path / "c.nrrd", pixels, *lines, data=b"zz" * 120))


def test_text_skipped_lines_and_data_at_the_end_are_read(tmp_path):
    pixels = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    lines = ("type: short", "endian: little")
    text = " ".join(map(str, pixels.ravel())).encode()
    right = pixels.T[::-1, ::-1]
    for path in (
        _nrrd(tmp_path / "text.nrrd", pixels, *lines, "encoding: text", data=text),
        _nrrd(
            tmp_path / "end.nrrd", pixels, *lines, "encoding: raw", "byte skip: -1", data=b"rubbish" + pixels.tobytes()
        ),
        _nrrd(
            tmp_path / "skip.nrrd", pixels, *lines, "encoding: raw", "lineskip: 2", data=b"a\nb\n" + pixels.tobytes()
        ),
    ):
        scan = read_file(path)
        np.testing.assert_array_equal(scan.pixels, right)
        assert scan.spacing is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("data file: ../secret.raw", "outside of its folder"),
        ("data file: /etc/passwd", "outside of its folder"),
        ("datafile: LIST", "a list of files"),
        ("data file: slice%03d.raw 1 10 1", "a list of files"),
        ("encoding: jpeg", "encoding is none of"),
        ("type: block", "type is none of"),
        ("space directions: (1,0,0) (1,0,0) (0,0,1)", "span no space"),
        ("space directions: (nan,0,0) (0,1,0) (0,0,1)", "span no space"),
        ("kinds: 3-vector domain domain domain", "4 kinds of 3 axes"),
        ("sizes: 4000 4000 4000", "expected at most"),
        ("sizes: 40 40 40", "claims 128000 bytes, the file holds 120"),
    ],
)
def test_nrrd_headers_that_lie_or_lead_elsewhere_are_refused(tmp_path, line, reason):
    lines = ("type: short", "endian: little", "encoding: raw")
    path = _nrrd(tmp_path / "a.nrrd", np.zeros((3, 4, 5), np.int16), *lines, line)
    with pytest.raises(UnreadableFileError, match=reason) as caught:
        read_file(path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("ElementDataFile = a.raw", "ElementDataFile = ../a.raw", "outside of its folder"),
        ("ElementDataFile = a.raw", "ElementDataFile = LIST", "a list of files"),
        ("ElementDataFile = a.raw", "ElementDataFile = a%d.raw 1 3 1", "a list of files"),
        ("ElementDataFile = a.raw", "ElementDataFile = secret.raw", "does not lie beside it"),
        ("ElementDataFile = a.raw", "", "without ElementDataFile"),
        ("DimSize = 5 4 3", "DimSize = 50 40 30", "claims 120000 bytes, the file holds 120"),
        ("DimSize = 5 4 3", "DimSize = 5 4", "expected 3 of at least 1"),
        ("MET_SHORT", "MET_STRING", "ElementType is none of"),
        ("TransformMatrix = 1 0 0 0", "TransformMatrix = 0 0 0 0", "span no space"),
    ],
)
def test_metaimage_headers_that_lie_or_lead_elsewhere_are_refused(tmp_path, old, new, reason):
    sitk.WriteImage(_image(np.zeros((3, 4, 5), np.int16)), tmp_path / "a.mhd")
    header = (tmp_path / "a.mhd").read_text()
    assert old in header
    (tmp_path / "a.mhd").write_text(header.replace(old, new))
    with pytest.raises(UnreadableFileError, match=reason) as caught:
        read_file(tmp_path / "a.mhd")
    assert "secret" not in str(caught.value)


def test_no_word_of_a_header_stands_in_an_error(tmp_path):
    pixels = np.zeros((3, 4, 5), np.int16)
    lines = ("type: short", "endian: little", "encoding: raw")
    broken = [
        _nrrd(tmp_path / "a.nrrd", pixels, *lines, "spacings: 1 secret 1"),
        _nrrd(tmp_path / "b.nrrd", pixels, *lines, "byte skip: secret"),
        _nrrd(tmp_path / "c.nrrd", pixels, "type: short", "encoding: text", data=b"secret " * 60),
    ]
    sitk.WriteImage(_image(pixels), tmp_path / "a.mha")
    header = (tmp_path / "a.mha").read_bytes()
    for number, (old, new) in enumerate(
        [(b"DimSize = 5 4 3", b"DimSize = 5 4 secret"), (b"ElementSpacing = ", b"ElementSpacing = secret ")]
    ):
        assert old in header
        broken.append(tmp_path / f"{number}.mha")
        broken[-1].write_bytes(header.replace(old, new))
    for path in broken:
        with pytest.raises(UnreadableFileError, match="should hold a number") as caught:
            read_file(path)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_flipped_and_missing_bytes_of_compressed_numbers_are_noticed(tmp_path, suffix, capfd):
    sitk.WriteImage(_image(_RNG.integers(0, 99, (9, 20, 20)).astype(np.int16)), tmp_path / f"a{suffix}", True)
    data = (tmp_path / f"a{suffix}").read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    for broken in (flipped, data[:-1], data[: len(data) // 2]):
        (tmp_path / f"a{suffix}").write_bytes(broken)
        with pytest.raises(UnreadableFileError, match=r"[Ee]rror -3|incorrect|truncated|inflate to"):
            read_file(tmp_path / f"a{suffix}")
    assert capfd.readouterr() == ("", "")


def test_bombs_are_refused_before_memory_is_taken(tmp_path):
    sitk.WriteImage(sitk.Image(512, 512, 300, sitk.sitkInt16), tmp_path / "a.nrrd", True)
    start = time.monotonic()
    with pytest.raises(UnreadableFileError, match="inflate to 157286400, expected at most 200 times"):
        read_file(tmp_path / "a.nrrd")
    assert time.monotonic() - start < 2


def test_names_that_are_not_utf_8_are_read(tmp_path):
    sitk.WriteImage(_image(np.ones((5, 6, 7), np.int16)), tmp_path / "a.nrrd")
    path = os.fsencode(tmp_path) + b"/\xff\xfe.nrrd"
    os.rename(tmp_path / "a.nrrd", path)
    assert (read_file(path).pixels == 1).all()


def test_a_modality_that_the_header_names_is_known(tmp_path):
    sitk.WriteImage(_image(np.ones((5, 6, 7), np.int16)), tmp_path / "a.mhd")
    header = (tmp_path / "a.mhd").read_text()
    (tmp_path / "a.mhd").write_text(header.replace("NDims", "Modality = MET_MOD_CT\nNDims"))
    assert read_file(tmp_path / "a.mhd").metadata == {"Modality": "CT"}


@needs_corpus
def test_the_corpus_is_read_as_itk_reads_it():
    files = sorted(Path(CORPUS, "MR/pyradiomics").glob("*.nrrd"))
    assert len(files) == 6
    for path in files:
        scan, oriented = read_file(path), sitk.DICOMOrient(sitk.ReadImage(path), "RAS")
        np.testing.assert_array_equal(scan.pixels, sitk.GetArrayFromImage(oriented).T)
        assert scan.spacing == pytest.approx(oriented.GetSpacing())
