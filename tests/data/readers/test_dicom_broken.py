"""DICOM that is broken, lies or bombs: refused with its reason, in little memory and time, and without a name."""

import sys
import tracemalloc
from time import perf_counter
from traceback import format_exception

import imagecodecs
import numpy as np
import pydicom
import pytest
from fuzz import read_mutations
from made_files import PYDICOM, PYDICOM_DATA, changed_dicom, write_dicom
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG4HP41, HTJ2KLossless, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless

from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.extras import MissingExtraError

PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)


def without(path, *keywords):
    dataset = pydicom.dcmread(path)
    for keyword in keywords:
        del dataset[keyword]
    dataset.save_as(path)
    return path


def with_text(path, keyword, value):
    """Put text that pydicom would refuse to write into an element of numbers."""
    dataset = pydicom.dcmread(path)
    dataset.add(pydicom.DataElement(pydicom.datadict.tag_for_keyword(keyword), "LO", value))
    dataset.save_as(path)
    data = path.read_bytes()
    tag = pydicom.tag.Tag(keyword)
    start = data.index(tag.group.to_bytes(2, "little") + tag.element.to_bytes(2, "little") + b"LO")
    path.write_bytes(data[: start + 4] + b"DS" + data[start + 6 :])
    return path


@pytest.mark.parametrize(
    "keyword", ["Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation"]
)
def test_a_missing_element_that_pixels_need_is_named(tmp_path, keyword):
    path = without(write_dicom(tmp_path / "a.dcm", PIXELS), keyword)
    with pytest.raises(UnreadableFileError, match=f"{keyword} is missing"):
        read_file(path)


def test_samples_of_a_pixel_follow_from_the_colour_space(tmp_path):
    path = without(write_dicom(tmp_path / "a.dcm", PIXELS), "SamplesPerPixel", "HighBit")
    np.testing.assert_array_equal(read_file(path).pixels[0], PIXELS)


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("RescaleSlope", "nan", "RescaleSlope is no finite number"),
        ("RescaleSlope", "two", "RescaleSlope is no finite number"),
        ("RescaleIntercept", "inf", "RescaleIntercept is no finite number"),
    ],
)
def test_a_rescale_that_is_no_number_is_an_error(tmp_path, keyword, value, reason):
    path = with_text(write_dicom(tmp_path / "a.dcm", PIXELS, RescaleIntercept=0), keyword, value)
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(path)


def test_of_a_list_in_the_place_of_a_slope_the_first_is_taken_and_empty_text_is_none(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", PIXELS, RescaleSlope=[2, 2], RescaleIntercept=[-10, -10])
    np.testing.assert_array_equal(read_file(path).pixels[0], PIXELS * 2.0 - 10)
    path = write_dicom(tmp_path / "a.dcm", PIXELS, RescaleSlope="", RescaleIntercept="")
    np.testing.assert_array_equal(read_file(path).pixels[0], PIXELS)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PhotometricInterpretation": "HSV"}, "PhotometricInterpretation is neither"),
        ({"PhotometricInterpretation": "RGB"}, "SamplesPerPixel is 1, PhotometricInterpretation expects 3"),
        ({"BitsStored": 17}, "BitsStored is 17"),
        ({"BitsAllocated": 12, "BitsStored": 12}, "BitsAllocated is 12"),
        ({"PixelRepresentation": 2}, "PixelRepresentation is 2"),
    ],
)
def test_elements_that_contradict_each_other_are_named(tmp_path, attributes, reason):
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(write_dicom(tmp_path / "a.dcm", PIXELS, **attributes))


FRAMES = np.arange(3 * 64, dtype=np.uint8).reshape(3, 8, 8)


def test_frames_are_counted_by_the_bytes(tmp_path):
    path = without(write_dicom(tmp_path / "a.dcm", FRAMES), "NumberOfFrames")
    np.testing.assert_array_equal(read_file(path).pixels, FRAMES)
    for declared in (1, 2):
        path = write_dicom(tmp_path / "a.dcm", FRAMES, NumberOfFrames=declared)
        np.testing.assert_array_equal(read_file(path).pixels, FRAMES)
    path = write_dicom(tmp_path / "a.dcm", FRAMES[:1, :1, :1], NumberOfFrames=1, PixelData=b"\7\0")
    assert read_file(path).pixels.shape == (1, 1, 1)  # the second byte makes the length even
    path = write_dicom(tmp_path / "a.dcm", FRAMES, NumberOfFrames=4)
    with pytest.raises(UnreadableFileError, match="holds 3 frames in 192 bytes, the header says 4"):
        read_file(path)
    path = write_dicom(tmp_path / "a.dcm", FRAMES, PixelData=FRAMES.tobytes()[:-20], NumberOfFrames=1)
    with pytest.raises(UnreadableFileError, match=r"holds 2.688 frames, NumberOfFrames says 1"):
        read_file(path)


@pytest.mark.parametrize("declared", [1, 9, 10, 11, None])
def test_compressed_frames_are_counted_by_their_codestreams(tmp_path, declared):
    source = PYDICOM_DATA / "emri_small_jpeg_2k_lossless.dcm"
    path = changed_dicom(source, tmp_path / "a.dcm", NumberOfFrames=declared)
    if declared == 11:
        with pytest.raises(UnreadableFileError, match="holds 10 compressed frames, NumberOfFrames says 11"):
            read_file(path)
    else:
        np.testing.assert_array_equal(read_file(path).pixels, read_file(source).pixels)
        assert read_file(path, every=4).frames == (0, 4, 8)


@pytest.mark.parametrize("declared", [1, 2, None])
def test_frames_of_rle_in_several_fragments_are_put_together(tmp_path, declared):
    pixels = np.random.default_rng(0).integers(0, 4096, (2, 8, 8)).astype(np.uint16)
    dataset = pydicom.dcmread(write_dicom(tmp_path / "a.dcm", pixels))
    dataset.compress(RLELossless)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=2))
    dataset.PixelData = encapsulate([half for frame in frames for half in (frame[:70], frame[70:])], has_bot=False)
    dataset.NumberOfFrames = declared
    dataset.save_as(tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_file(tmp_path / "a.dcm").pixels, pixels)


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, HTJ2KLossless, JPEGLSLossless])
def test_bits_beside_the_stored_ones_are_dropped_from_lossless_codestreams_too(tmp_path, syntax):
    encode = {JPEG2000Lossless: imagecodecs.jpeg2k_encode, HTJ2KLossless: imagecodecs.htj2k_encode}
    more = {"level": 0, "reversible": True} if syntax in encode else {}
    stored = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    frame = encode.get(syntax, imagecodecs.jpegls_encode)(stored.view(np.uint16) & 0xFFF, **more)
    path = compressed(tmp_path / "a.dcm", frame, syntax, stored, BitsStored=12, HighBit=11)
    np.testing.assert_array_equal(read_file(path).pixels[0], stored)


def test_a_jpeg_of_eight_bits_may_be_said_to_be_allocated_sixteen(tmp_path):
    pixels = np.full((16, 16), 100, np.uint16)
    frame = imagecodecs.jpeg8_encode(pixels.astype(np.uint8))
    path = compressed(tmp_path / "a.dcm", frame, JPEGBaseline8Bit, pixels, BitsStored=8, HighBit=7)
    scan = read_file(path)
    assert scan.levels == (0, 255)
    np.testing.assert_allclose(scan.pixels[0], pixels, atol=1)


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        (b"1.2.840.10008.1.2.4.94", "written as JPIP Referenced"),
        (b"1.2.840.10008.1.2.4.99", "private or an unknown one"),
    ],
)
def test_a_transfer_syntax_that_is_not_read_is_named(tmp_path, syntax, reason):
    path = compressed(tmp_path / "a.dcm", bytes(64), JPEG2000Lossless, FRAMES)
    path.write_bytes(path.read_bytes().replace(JPEG2000Lossless.encode(), syntax))
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(path)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("MR_small_RLE.dcm", 400),
        ("JPEG2000.dcm", 100),
        ("JPEG-LL.dcm", 400),
        ("MR_small_jpeg_ls_lossless.dcm", 400),
        ("SC_rgb_jpeg.dcm", 400),
    ],
)
def test_a_compressed_file_that_is_cut_off_is_refused(tmp_path, name, lost):
    source = next(folder / name for folder in (PYDICOM, PYDICOM_DATA) if (folder / name).exists())
    path = tmp_path / "a.dcm"
    path.write_bytes(source.read_bytes()[:-lost])
    with pytest.raises(UnreadableFileError, match="cut off"):
        read_file(path)


def test_a_compressed_frame_that_is_cut_off_within_its_fragment_is_refused(tmp_path):
    dataset = pydicom.dcmread(PYDICOM_DATA / "JPEG-LL.dcm")
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame[: len(frame) // 2]])
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(UnreadableFileError, match="frame 0 is cut off"):
        read_file(tmp_path / "a.dcm")


def rle_bomb(path):
    """Two megabytes that inflate to 200 under a header of 64 x 64 pixels."""
    runs = b"\x81\0" * (3 << 19)
    frame = (1).to_bytes(4, "little") + (64).to_bytes(4, "little") + bytes(56) + runs
    return compressed(path, frame, RLELossless, np.zeros((64, 64), np.uint8))


def jpeg2000_bomb(path):
    """A codestream of 16000 x 16000 under a header of 64 x 64."""
    size = b"".join(value.to_bytes(4, "big") for value in (16000, 16000, 0, 0, 16000, 16000, 0, 0))
    frame = b"\xff\x4f\xff\x51\0\x29\0\0" + size + b"\0\1\7\1\1" + bytes(500) + b"\xff\xd9"
    return compressed(path, frame, JPEG2000Lossless, np.zeros((64, 64), np.uint8))


def compressed(path, frame, syntax, pixels, **attributes):
    dataset = pydicom.dcmread(write_dicom(path, pixels, **attributes))
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)
    return path


def test_a_video_stream_is_refused_as_one(tmp_path):
    path = compressed(tmp_path / "a.dcm", bytes(64), MPEG4HP41, FRAMES)
    with pytest.raises(UnreadableFileError, match="MPEG"):
        read_file(path)


@pytest.mark.parametrize(
    ("name", "package"), [("JPEG2000.dcm", "imagecodecs"), ("MR_small_jpeg_ls_lossless.dcm", "jpeg_ls")]
)
def test_a_missing_decoder_is_named_with_its_extra(monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package}.*pip install"):
        read_file(next(folder / name for folder in (PYDICOM, PYDICOM_DATA) if (folder / name).exists()))


@pytest.mark.parametrize("bomb", [rle_bomb, jpeg2000_bomb])
def test_bombs_are_refused_in_little_memory_and_time(tmp_path, bomb):
    path = bomb(tmp_path / "a.dcm")
    start = perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableFileError, match=r"inflates|compressed at 16000 x 16000"):
            read_file(path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert perf_counter() - start < 5


SECRET = "DOE^JOHN^4711"


def test_no_error_names_the_patient(tmp_path):
    keywords = ("PatientName", "PatientID", "StudyID", "AccessionNumber", "OtherPatientIDs", "PatientComments")
    planted = dict.fromkeys(keywords, SECRET)
    broken = [
        write_dicom(tmp_path / "0.dcm", PIXELS, **planted, Rows=9),
        write_dicom(tmp_path / "1.dcm", PIXELS, **planted, PhotometricInterpretation=SECRET.replace("^", "_")),
        with_text(write_dicom(tmp_path / "2.dcm", PIXELS, **planted, RescaleIntercept=0), "RescaleSlope", SECRET),
        with_text(write_dicom(tmp_path / "3.dcm", PIXELS, **planted), "NumberOfFrames", SECRET),
        write_dicom(tmp_path / "4.dcm", PIXELS, **planted, Modality="PT", Units="DOE"),
    ]
    for path in broken:
        if path.name == "3.dcm":  # one frame is there, whatever the header says
            assert read_file(path).frames == (0,)
            continue
        with pytest.raises(UnreadableFileError) as caught:
            read_file(path)
        assert "DOE" not in "".join(format_exception(caught.value))


SOURCES = [
    PYDICOM / "MR_small_RLE.dcm",
    PYDICOM / "MR_small_jp2klossless.dcm",
    PYDICOM / "SC_rgb_jpeg_dcmtk.dcm",
    PYDICOM_DATA / "MR_small_jpeg_ls_lossless.dcm",
    PYDICOM_DATA / "bad_sequence.dcm",
    PYDICOM / "image_dfl.dcm",
]


@pytest.mark.parametrize("count", [9, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(tmp_path, count):
    sources, mutated = tmp_path / "sources", tmp_path / "mutated"
    sources.mkdir()
    mutated.mkdir()
    groups = pydicom.Dataset()
    groups.FrameVOILUTSequence = [pydicom.Dataset()]
    groups.FrameVOILUTSequence[0].WindowCenter = [3432, 1]
    groups.FrameVOILUTSequence[0].WindowWidth = [656, 2]
    enhanced = write_dicom(sources / "enhanced.dcm", FRAMES, PerFrameFunctionalGroupsSequence=[groups] * 3)
    outcomes = read_mutations([enhanced, *(path for path in SOURCES if path.exists())], mutated, count)
    assert sum(outcome["read"] for outcome in outcomes.values()) > 3, outcomes
    assert sum(outcome["refused"] for outcome in outcomes.values()) > count, outcomes
