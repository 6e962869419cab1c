"""DICOM: real files of pydicom's packages, made ones, and broken ones."""

import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_files import PYDICOM, PYDICOM_DATA, changed_dicom, write_dicom
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.data.readers.scan import MAX_INFLATED_BYTES


def test_ct_is_read_in_hounsfield_units():
    scan = read_file(PYDICOM / "CT_small.dcm")
    stored = pydicom.dcmread(PYDICOM / "CT_small.dcm").pixel_array
    assert scan.layout == "frames"
    assert scan.pixels.shape == (1, 128, 128)
    assert scan.pixels.dtype == np.int16
    np.testing.assert_array_equal(scan.pixels[0], stored.astype(np.float32) - 1024)
    assert scan.metadata["Modality"] == "CT"
    assert scan.metadata["PatientID"] == "1CT1"


def test_padding_becomes_the_smallest_value_that_is_no_padding():
    stored = pydicom.dcmread(PYDICOM_DATA / "693_UNCR.dcm").pixel_array
    assert (stored == -2000).any()
    pixels = read_file(PYDICOM_DATA / "693_UNCR.dcm").pixels[0]
    assert pixels.min() == stored[stored != -2000].min() - 1024
    assert (pixels[stored == -2000] == pixels.min()).all()


def test_a_padding_range_is_padding_from_end_to_end(tmp_path):
    stored = np.array([[10, 20, 30, 1000], [1010, 1020, 500, 40]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=1000, PixelPaddingRangeLimit=1020)
    np.testing.assert_array_equal(read_file(path).pixels[0], [[10, 20, 30, 10], [10, 10, 500, 40]])


def test_monochrome1_is_turned_over_inside_the_window():
    scan = read_file(PYDICOM_DATA / "RG3_UNCR.dcm")
    stored = pydicom.dcmread(PYDICOM_DATA / "RG3_UNCR.dcm").pixel_array.astype(np.float32)
    low, high = scan.levels
    assert (low, high) == (38.0, 1061.0)  # center 550, width 1024
    np.testing.assert_array_equal(scan.pixels[0], low + high - stored)


def test_hounsfield_units_stay_what_they_are_under_monochrome1(tmp_path):
    source = PYDICOM / "CT_small.dcm"
    path = changed_dicom(source, tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_file(path).pixels, read_file(source).pixels)


def test_levels_are_what_the_stored_bits_hold_where_there_is_no_window(tmp_path):
    stored = np.array([[0, 4095], [100, 2000]], np.uint16)
    scan = read_file(write_dicom(tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11))
    assert scan.levels == (0.0, 4095.0)
    signed = write_dicom(tmp_path / "b.dcm", stored.astype(np.int16), RescaleSlope=2, RescaleIntercept=5)
    assert read_file(signed).levels == (2 * -32768 + 5, 2 * 32767 + 5)


def test_a_missing_slope_or_intercept_changes_nothing(tmp_path):
    stored = np.arange(12, dtype=np.uint16).reshape(3, 4)
    only_intercept = write_dicom(tmp_path / "a.dcm", stored, RescaleIntercept=-3)
    np.testing.assert_array_equal(read_file(only_intercept).pixels[0], stored.astype(np.float32) - 3)
    np.testing.assert_array_equal(read_file(write_dicom(tmp_path / "b.dcm", stored)).pixels[0], stored)


def test_an_enhanced_file_rescales_each_frame_by_its_functional_group(tmp_path):
    stored = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    groups = []
    for slope, intercept in ((2, 0), (3, -7)):
        values, group = Dataset(), Dataset()
        values.RescaleSlope, values.RescaleIntercept = slope, intercept
        group.PixelValueTransformationSequence = Sequence([values])
        groups.append(group)
    path = write_dicom(tmp_path / "a.dcm", stored, PerFrameFunctionalGroupsSequence=Sequence(groups))
    np.testing.assert_array_equal(read_file(path).pixels, [stored[0] * 2.0, stored[1] * 3.0 - 7])
    np.testing.assert_array_equal(read_file(path, every=2).pixels, stored[:1] * 2.0)


def test_a_modality_lut_is_applied():
    scan = read_file(PYDICOM_DATA / "mlut_18.dcm")
    dataset = pydicom.dcmread(PYDICOM_DATA / "mlut_18.dcm")
    expected = pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset)
    np.testing.assert_array_equal(scan.pixels[0], expected.astype(np.float32))


def test_an_overlay_in_the_unused_bits_is_not_drawn(tmp_path):
    stored = np.array([[1, 2], [3, 4095]], np.uint16)
    with_overlay = stored | np.array([[0x1000, 0], [0, 0x1000]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", with_overlay, BitsStored=12, HighBit=11)
    dataset = pydicom.dcmread(path)
    dataset.add_new((0x6000, 0x0102), "US", 12)
    dataset.save_as(path)
    np.testing.assert_array_equal(read_file(path).pixels[0], stored)


@pytest.mark.parametrize("name", ["US1_J2KR.dcm", "US1_J2KI.dcm"])
def test_compressed_colour_reads_as_the_uncompressed(name):
    compressed, plain = (read_file(PYDICOM_DATA / file).pixels for file in (name, "US1_UNCR.dcm"))
    assert compressed.shape == (1, 480, 640, 3)
    difference = np.abs(compressed.astype(int) - plain)
    assert difference.max() == 0 if name.endswith("R.dcm") else difference.mean() < 2


def test_ybr_becomes_rgb_and_one_frame_in_ten_is_read():
    scan = read_file(PYDICOM / "examples_ybr_color.dcm", every=10)
    assert scan.frames == (0, 10, 20)
    assert scan.pixels.shape == (3, 240, 320, 3)
    expected = pydicom.pixels.pixel_array(PYDICOM / "examples_ybr_color.dcm", index=10)
    np.testing.assert_array_equal(scan.pixels[1], expected)
    assert np.median(np.ptp(scan.pixels[1].astype(int), axis=-1)) < 8  # the picture is gray, YBR as RGB would be green


def test_a_palette_becomes_colour():
    scan = read_file(PYDICOM / "examples_palette.dcm")
    assert scan.pixels.shape == (1, 350, 800, 3)
    assert scan.levels == (0.0, float(np.iinfo(scan.pixels.dtype).max))
    assert np.ptp(scan.pixels.astype(int), axis=-1).max() > 50


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MR_truncated.dcm", "pixel data"),
        ("test-SR.dcm", "without pixel data"),
        ("waveform_ecg.dcm", "without pixel data"),
        ("rtplan.dcm", "without pixel data"),
        ("README.txt", "of no known kind"),
    ],
)
def test_a_file_without_a_whole_image_is_refused_by_name(name, reason):
    with pytest.raises(UnreadableFileError, match=reason) as caught:
        read_file(PYDICOM / name)
    assert str(PYDICOM / name) in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Rows": 1000}, "pixel data"),
        ({"Rows": 0}, "holds no pixel"),
        ({"Rows": 65535, "Columns": 65535}, "expected at most"),
        ({"NumberOfFrames": 1_000_000}, "expected at most"),
    ],
)
def test_a_header_that_lies_about_its_size_is_refused(tmp_path, attributes, reason):
    path = changed_dicom(PYDICOM / "CT_small.dcm", tmp_path / "a.dcm", **attributes)
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(path)


@pytest.mark.parametrize(
    "source",
    [
        PYDICOM_DATA / "693_J2KR.dcm",
        PYDICOM_DATA / "bad_sequence.dcm",
        PYDICOM / "MR_small_jpeg_ls_lossless.dcm",
    ],
    ids=["JPEG 2000", "lossless JPEG", "JPEG-LS"],
)
def test_a_compressed_image_larger_than_its_header_is_refused_before_it_is_decoded(tmp_path, source):
    path = changed_dicom(source, tmp_path / "a.dcm", Rows=32, Columns=32)
    with pytest.raises(UnreadableFileError, match=r"compressed at .* its header says 32 x 32"):
        read_file(path)


def test_a_deflated_file_is_read():
    pixels = read_file(PYDICOM / "image_dfl.dcm").pixels
    np.testing.assert_array_equal(pixels, pydicom.dcmread(PYDICOM / "image_dfl.dcm").pixel_array[None])


def test_a_deflated_bomb_is_refused_without_taking_its_memory(tmp_path):
    data = (PYDICOM / "image_dfl.dcm").read_bytes()
    meta_end = 132 + 12 + int.from_bytes(data[140:144], "little")
    deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    body = b"".join(deflater.compress(zeros) for _ in range(MAX_INFLATED_BYTES // len(zeros) + 1))
    bomb = tmp_path / "bomb.dcm"
    bomb.write_bytes(data[:meta_end] + body + deflater.flush())
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableFileError, match="deflated"):
            read_file(bomb)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


_FUZZED = [PYDICOM / "MR_small.dcm", PYDICOM / "MR_small_RLE.dcm", PYDICOM / "examples_palette.dcm"]


@pytest.mark.parametrize("source", _FUZZED, ids=lambda path: path.name)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_the_one_error(tmp_path_factory, source, data):
    content = bytearray(Path(source).read_bytes())
    length = data.draw(st.integers(0, len(content)))
    for _ in range(data.draw(st.integers(0, 20))):
        content[data.draw(st.integers(0, min(len(content), 3000) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "a.dcm"
    path.write_bytes(content[:length])
    try:
        pixels = read_file(path).pixels
    except UnreadableFileError:
        return
    assert pixels.size > 0
    assert np.isfinite(pixels).all()
