"""Heidelberg's .vol, as made here and as the device wrote it."""

import struct
from pathlib import Path

import numpy as np
import pytest
from corpus import CORPUS, needs_corpus
from made_kinds import write_vol

from dexcore.data.readers import UnreadableFileError, read_file

_INVALID = np.finfo(np.float32).max


def _scans(count=3):
    return np.random.default_rng(0).random((count, 20, 30), np.float32)


def test_b_scans_are_shown_by_the_fourth_root_and_carry_their_spacing(tmp_path):
    scan = read_file(write_vol(tmp_path / "a.vol", _scans()))
    np.testing.assert_allclose(scan.pixels, _scans() ** 0.25, rtol=1e-6)
    assert (scan.layout, scan.levels, scan.frames) == ("frames", (0.0, 1.0), (0, 1, 2))
    assert scan.spacing == (0.0038, 0.012)
    assert scan.metadata["Modality"] == "OPT"


def test_what_the_scanner_did_not_see_is_black(tmp_path):
    scans = _scans()
    scans[0, :5], scans[1, 0, 0] = _INVALID, np.nan
    pixels = read_file(write_vol(tmp_path / "a.vol", scans)).pixels
    assert (pixels[0, :5] == 0).all()
    assert pixels[1, 0, 0] == 0
    np.testing.assert_allclose(pixels[2], scans[2] ** 0.25, rtol=1e-6)


def test_one_b_scan_in_every_two_is_read(tmp_path):
    scan = read_file(write_vol(tmp_path / "a.vol", _scans(5)), every=2)
    assert scan.frames == (0, 2, 4)
    np.testing.assert_allclose(scan.pixels, _scans(5)[::2] ** 0.25, rtol=1e-6)


def test_the_patient_is_known_for_grouping(tmp_path):
    assert read_file(write_vol(tmp_path / "a.vol", _scans(), patient=b"P-17")).metadata["PatientID"] == "P-17"
    assert "PatientID" not in read_file(write_vol(tmp_path / "b.vol", _scans())).metadata


@pytest.mark.parametrize(
    ("start", "value", "reason"),
    [
        (16, 4, "claims [0-9]+ bytes, the file holds"),  # B-scans
        (12, 1 << 31, "pixels, expected at most"),  # width
        (20, 0, "holds no pixel"),  # depth
        (48, 4, "no header of B-scan 0"),  # the SLO image is wider: all would be read from the wrong place
        (100, 0xFFFFFFFF, "claims [0-9]+ bytes"),  # a B-scan's header
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, start, value, reason):
    path = write_vol(tmp_path / "a.vol", _scans())
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, start, value)
    path.write_bytes(data)
    with pytest.raises(UnreadableFileError, match=reason):
        read_file(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = write_vol(tmp_path / "a.vol", _scans())
    for length in (1000, len(path.read_bytes()) - 1):
        (tmp_path / "cut.vol").write_bytes(path.read_bytes()[:length])
        with pytest.raises(UnreadableFileError, match=r"less than its header|the file holds"):
            read_file(tmp_path / "cut.vol")


@needs_corpus
def test_the_device_s_own_files_are_read():
    files = sorted(Path(CORPUS, "OCT/spectralis-vol").glob("*.vol"))
    assert len(files) == 2
    for path in files:
        scan = read_file(path)
        assert scan.pixels.shape == (1, 496, 768)
        assert scan.spacing is not None
        assert scan.spacing[0] == pytest.approx(0.00387, abs=1e-5)
        assert 0.1 < scan.pixels.mean() < 0.2
        assert scan.pixels.max() <= 1
