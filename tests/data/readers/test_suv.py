"""PET in DICOM: SUV by body weight from what the header says, or an error that names what is missing."""

import math

import numpy as np
import pydicom
import pytest
from made_files import write_dicom
from pydicom.dataset import Dataset

from dexcore.data.readers import UnreadableFileError, read_file

STORED = np.arange(64, dtype=np.uint16).reshape(8, 8)
HALF_LIFE = 6586.2  # s, fluorine-18


def injection(**changes):
    item = Dataset()
    values = {
        "RadionuclideTotalDose": 370e6,
        "RadionuclideHalfLife": HALF_LIFE,
        "RadiopharmaceuticalStartTime": "100000.00",
    }
    for keyword, value in (values | changes).items():
        if value is not None:
            setattr(item, keyword, value)
    return item


def write_pet(path, item=None, **changes):
    values = {
        "Modality": "PT",
        "Units": "BQML",
        "RescaleSlope": 100,
        "RescaleIntercept": 0,
        "PatientWeight": 70,
        "DecayCorrection": "START",
        "SeriesDate": "20200102",
        "SeriesTime": "110000",
        "AcquisitionDate": "20200102",
        "AcquisitionTime": "110000",
        "RadiopharmaceuticalInformationSequence": [item or injection()],
    }
    return write_dicom(path, STORED, **{key: value for key, value in (values | changes).items() if value is not None})


def suv_of(path):
    """The SUV of the stored value 1."""
    scan = read_file(path)
    assert scan.units == "SUV"
    np.testing.assert_allclose(scan.pixels[0], STORED * scan.pixels[0, 0, 1], rtol=1e-6)
    return float(scan.pixels[0, 0, 1])


def suv(elapsed, dose=370e6, weight=70):
    return 100 * weight * 1000 / (dose * math.exp(-math.log(2) * elapsed / HALF_LIFE))


def test_activity_becomes_suv_by_weight_dose_and_decay(tmp_path):
    assert suv_of(write_pet(tmp_path / "a.dcm")) == pytest.approx(suv(3600))
    heavier = write_pet(tmp_path / "b.dcm", injection(RadionuclideTotalDose=185e6), PatientWeight=35.5)
    assert suv_of(heavier) == pytest.approx(suv(3600, 185e6, 35.5))


def test_the_levels_are_in_suv_as_the_pixels_are(tmp_path):
    scan = read_file(write_pet(tmp_path / "a.dcm", WindowCenter=3000.5, WindowWidth=6001))
    np.testing.assert_allclose(scan.levels, (0, 60 * scan.pixels[0, 0, 1]), rtol=1e-5)


def test_what_is_corrected_to_the_injection_does_not_decay(tmp_path):
    assert suv_of(write_pet(tmp_path / "a.dcm", DecayCorrection="ADMIN")) == pytest.approx(suv(0))


@pytest.mark.parametrize(
    ("start", "scan", "elapsed"),
    [
        ({"RadiopharmaceuticalStartTime": "233000"}, {}, 3600),  # before midnight
        ({"RadiopharmaceuticalStartDateTime": "20200101233000.5+0100"}, {}, 3599.5),
        ({"RadiopharmaceuticalStartDateTime": "19990101233000"}, {}, 3600),  # de-identified: another day
    ],
)
def test_an_injection_before_midnight_counts_from_the_day_before(tmp_path, start, scan, elapsed):
    moment = {"SeriesTime": "003000", "AcquisitionTime": "003000"}
    if "RadiopharmaceuticalStartDateTime" in start:
        start = {"RadiopharmaceuticalStartTime": None} | start
    assert suv_of(write_pet(tmp_path / "a.dcm", injection(**start), **moment)) == pytest.approx(suv(elapsed))


def test_a_series_that_was_made_later_counts_from_the_first_frame_s_start(tmp_path):
    later = {"SeriesTime": "170000", "AcquisitionTime": "111000"}
    assert suv_of(write_pet(tmp_path / "a.dcm", **later)) == pytest.approx(suv(4200))
    # The frame began at 11:10 and had its mean activity some 60 s later, 660 s after the scan's reference time.
    frame = {"FrameReferenceTime": 660_000, "ActualFrameDuration": 120_000}
    assert suv_of(write_pet(tmp_path / "b.dcm", **later, **frame)) == pytest.approx(suv(3600), rel=1e-4)


def test_grams_per_millilitre_pass_as_they_are(tmp_path):
    path = write_pet(tmp_path / "a.dcm", Units="GML", PatientWeight=None)
    assert suv_of(path) == 100
    with pytest.raises(UnreadableFileError, match="SUVType"):
        read_file(write_pet(tmp_path / "b.dcm", Units="GML", SUVType="LBM"))


def test_counts_become_suv_by_the_private_factors_of_philips(tmp_path):
    def with_factor(path, number, value):
        dataset = pydicom.dcmread(write_pet(path, Units="CNTS"))
        block = dataset.private_block(0x7053, "Philips PET Private Group", create=True)
        block.add_new(number, "DS", value)
        dataset.save_as(path)
        return path

    assert suv_of(with_factor(tmp_path / "a.dcm", 0x00, "0.5")) == 50
    assert suv_of(with_factor(tmp_path / "b.dcm", 0x09, "2")) == pytest.approx(2 * suv(3600))
    dataset = pydicom.dcmread(write_pet(tmp_path / "d.dcm", Units="CNTS"))
    dataset.private_block(0x7053, "Somebody else", create=True).add_new(0x00, "DS", "9")
    dataset.private_block(0x7053, "Philips PET Private Group", create=True).add_new(0x00, "DS", "0.5")
    dataset.save_as(tmp_path / "d.dcm")
    assert suv_of(tmp_path / "d.dcm") == 50  # of the second block, whose numbers begin with 11
    with pytest.raises(UnreadableFileError, match=r"7053,1000"):
        read_file(write_pet(tmp_path / "c.dcm", Units="CNTS"))


@pytest.mark.parametrize("name", [None, "", "Somebody else"])
def test_a_private_factor_is_of_philips_unless_its_block_names_another(tmp_path, name):
    dataset = pydicom.dcmread(write_pet(tmp_path / "a.dcm", Units="CNTS"))
    dataset.add_new(0x70531000, "DS", "0.5")
    if name is not None:
        dataset.add_new(0x70530010, "LO", name)
    dataset.save_as(tmp_path / "a.dcm")
    if name:
        with pytest.raises(UnreadableFileError, match=r"7053,1000"):
            read_file(tmp_path / "a.dcm")
    else:
        assert suv_of(tmp_path / "a.dcm") == 50


@pytest.mark.parametrize(
    ("changes", "item", "reason"),
    [
        ({"Units": None}, {}, "Units is missing"),
        ({"Units": "PROPCPS"}, {}, "Units is neither"),
        ({"PatientWeight": None}, {}, "PatientWeight is missing"),
        ({"PatientWeight": 0}, {}, "PatientWeight is missing or not positive"),
        ({"PatientWeight": 70000}, {}, "PatientWeight is over"),
        ({"DecayCorrection": None}, {}, "DecayCorrection is missing"),
        ({"DecayCorrection": "NONE"}, {}, "DecayCorrection is neither"),
        ({"SeriesTime": None, "AcquisitionTime": None}, {}, "SeriesTime and AcquisitionTime are missing"),
        ({"RadiopharmaceuticalInformationSequence": None}, {}, "RadiopharmaceuticalInformationSequence is missing"),
        ({}, {"RadionuclideTotalDose": None}, "RadionuclideTotalDose is missing"),
        ({}, {"RadionuclideTotalDose": 370}, "RadionuclideTotalDose is under"),
        ({}, {"RadionuclideHalfLife": None}, "RadionuclideHalfLife is missing"),
        ({}, {"RadiopharmaceuticalStartTime": None}, "RadiopharmaceuticalStartTime is missing"),
        ({}, {"RadiopharmaceuticalStartTime": "120000"}, "more than ten half-lives"),
    ],
)
def test_what_is_missing_for_suv_is_named(tmp_path, changes, item, reason):
    path = write_pet(tmp_path / "a.dcm", injection(**item), **changes)
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(path)


def test_an_enhanced_file_is_corrected_to_the_moment_that_it_names(tmp_path):
    value, group, unit = Dataset(), Dataset(), Dataset()
    value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 100, 0, "US"
    unit.CodeValue = "Bq/ml"
    mapping = Dataset()
    mapping.MeasurementUnitsCodeSequence = [unit]
    group.PixelValueTransformationSequence = [value]
    group.RealWorldValueMappingSequence = [mapping]
    enhanced = {
        "Units": None,
        "RescaleSlope": None,
        "RescaleIntercept": None,
        "DecayCorrection": None,
        "DecayCorrected": "YES",
        "DecayCorrectionDateTime": "20200102110000",
        "SharedFunctionalGroupsSequence": [group],
    }
    start = {"RadiopharmaceuticalStartTime": None, "RadiopharmaceuticalStartDateTime": "20200102100000"}
    assert suv_of(write_pet(tmp_path / "a.dcm", injection(**start), **enhanced)) == pytest.approx(suv(3600))
    not_corrected = write_pet(tmp_path / "b.dcm", injection(**start), **(enhanced | {"DecayCorrected": "NO"}))
    with pytest.raises(UnreadableFileError, match="DecayCorrection is neither"):
        read_file(not_corrected)
