"""What a DICOM file says about itself, without its pixels; damage is None, not an error."""

import numpy as np
import pytest
from made_files import PYDICOM, PYDICOM_DATA, write_dicom

from dexcore.data.readers import UnreadableFileError
from dexcore.data.readers.dicom_header import read_header

PIXELS = np.zeros((3, 4), np.uint16)


def test_a_real_file_s_header():
    header = read_header(PYDICOM / "CT_small.dcm")
    assert (header.modality, header.patient, header.rows, header.columns, header.frames) == ("CT", "1CT1", 128, 128, 1)
    assert header.position == (-158.135803, -179.035797, -75.699997)
    assert header.orientation == (1, 0, 0, 0, 1, 0)
    assert header.spacing == (0.661468, 0.661468)
    assert header.image_type == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert header.is_image
    assert header.number == 1
    with open(PYDICOM / "CT_small.dcm", "rb") as file:
        assert read_header(file) == header
        assert not file.closed


def test_damaged_elements_are_none(tmp_path):
    path = write_dicom(
        tmp_path / "a.dcm",
        PIXELS,
        ImagePositionPatient=[0, 0, 1],
        ImageOrientationPatient=[1, 0, 0, 1, 0, 0],  # twice the same direction
        PixelSpacing=[0, 0],
        InstanceNumber="",
        BurnedInAnnotation="MAYBE",
        Modality="",
    )
    header = read_header(path)
    assert header.position is header.orientation is header.spacing is header.number is None
    assert header.burned_in is header.modality is None
    assert header.image_type == ()
    assert header.is_image


@pytest.mark.parametrize(
    ("source", "image"),
    [
        (PYDICOM / "image_dfl.dcm", True),
        (PYDICOM / "MR_truncated.dcm", True),  # whether its pixels are whole is for the reader to say
        (PYDICOM_DATA / "liver.dcm", False),  # a segmentation
        (PYDICOM / "rtdose.dcm", False),
        (PYDICOM / "rtstruct.dcm", False),
        (PYDICOM / "test-SR.dcm", False),
        (PYDICOM / "rtplan.dcm", False),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_is_no_image_is_told_apart(source, image):
    assert read_header(source).is_image is image


def test_text_in_the_pixels_is_reported(tmp_path):
    for word, value in (("YES", True), ("NO", False)):
        assert read_header(write_dicom(tmp_path / "a.dcm", PIXELS, BurnedInAnnotation=word)).burned_in is value


def test_what_is_no_dicom_is_an_error_that_names_the_file(tmp_path):
    (tmp_path / "a.dcm").write_text("no image")
    for path in (tmp_path / "a.dcm", tmp_path / "missing.dcm"):
        with pytest.raises(UnreadableFileError, match=path.name):
            read_header(path)


def test_a_file_without_the_preamble_has_a_header(tmp_path):
    data = write_dicom(tmp_path / "a.dcm", PIXELS, PatientID="7").read_bytes()
    (tmp_path / "b.dcm").write_bytes(data[132:])
    assert read_header(tmp_path / "b.dcm").patient == "7"
