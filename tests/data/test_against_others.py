"""Real files of other people, read by us and by independent readers: equal, or listed here with the reason.

Every file of the kinds in `ORACLES` counts: of the test folders of pydicom, pydicom-data and nibabel, and of the corpus
whose folder ``DEXCORE_CORPUS`` names. Plain pytest draws sixty of them; ``-m slow`` reads all.
"""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from made_files import PYDICOM, PYDICOM_DATA, package_folder
from oracles_dicom import dicom_oracles
from oracles_images import image_oracles, nifti_oracles, tiff_oracles

from dexcore.data.readers import Scan, UnreadableFileError, read_file
from dexcore.data.readers.kind import Kind, file_kind

# For each kind, what yields the pixels as independent readers give them; one that agrees is enough, since each has
# faults of its own.
ORACLES: dict[Kind, Callable[[Path, Scan], Iterator[np.ndarray]]] = {
    Kind.DICOM: dicom_oracles,
    Kind.PNG: image_oracles,
    Kind.JPEG: image_oracles,
    Kind.BMP: image_oracles,
    Kind.TIFF: tiff_oracles,
    Kind.NIFTI: nifti_oracles,
}
# Relative to the largest value: float32 against float64 arithmetic.
ROUNDING = 2e-7

# Files that hold no image, or a broken one: what our error says of them. Names are shell patterns.
REFUSED = {
    "*/dicomdirtests/DICOMDIR*": "without pixel data",
    "TINY_ALPHA/DICOMDIR": "without pixel data",
    "TINY_ALPHA/PT000000/*/*/*": "without pixel data",
    "RTSTRUCT_PET.dcm": "without pixel data",
    "*/mask/RS.dcm": "without pixel data",
    "ExplVR_*EndNoMeta.dcm": "without pixel data",
    "UN_sequence.dcm": "without pixel data",
    "empty_charset_LEI.dcm": "without pixel data",
    "no_meta_group_length.dcm": "without pixel data",
    "priv_SQ.dcm": "without pixel data",
    "reportsi*.dcm": "without pixel data",
    "rtplan*.dcm": "without pixel data",
    "rtstruct.dcm": "without pixel data",
    "test-SR.dcm": "without pixel data",
    "waveform_ecg.dcm": "without pixel data",
    "csa_slice_norm.dcm": "without pixel data",
    "meta_missing_tsyntax.dcm": "Rows is missing",
    "nested_priv_SQ.dcm": "Rows is missing",
    "MR_truncated.dcm": "8130 bytes of pixel data, a frame has 8192",
    # The codestream was overwritten by an item delimiter: nobody reads it.
    "JPEG2000-embedded-sequence-delimiter.dcm": "is compressed at",
    # A segmentation cut to its first frame, with the groups of three.
    "liver*_1frame.dcm": "PerFrameFunctionalGroupsSequence has 3 items for 1 frames",
    # NIfTI: headers without their voxels, and a matrix of connectivity.
    "nibabel/tests/data/nifti?.hdr": "expected under the name .hdr with its .img beside it",
    "row_major.dconn.nii": "CIFTI",
}
# Files that no independent reader reads right, beside the same pixels in a file that they do read.
TWINS = {
    "rtdose_expb.dcm": "rtdose.dcm",
    "rtdose_expb_1frame.dcm": "rtdose_1frame.dcm",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "emri_small.dcm",
}
# Files that no independent reader reads right, and why.
UNMATCHED = {
    "example_nifti2.nii.gz": "SimpleITK has no NIfTI-2",
    "resampled_anat_moved.nii": "SimpleITK gives NaN as 0",
    "badVR.dcm": "highdicom fails, SimpleITK gives the first of the 15 frames that the bytes hold",
    "mlut_18.dcm": "highdicom takes the first input of the table for unsigned, SimpleITK has no such table",
}


def every_file() -> list[Path]:
    """All files of a kind that has an oracle, in one order."""
    folders = [PYDICOM, PYDICOM_DATA, package_folder("nibabel")]
    if "DEXCORE_CORPUS" in os.environ:
        folders.append(Path(os.environ["DEXCORE_CORPUS"]))
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if _kind(path) in ORACLES]


def _kind(path: Path) -> Kind | None:
    try:
        return file_kind(path)
    except OSError:
        return None


def listed(path: Path, table: dict[str, str]) -> str | None:
    return next((reason for pattern, reason in table.items() if path.match(pattern)), None)


def check(path: Path) -> None:
    expected = listed(path, REFUSED)
    try:
        scan = read_file(path)
    except UnreadableFileError as error:
        if expected is None or expected not in error.reason:
            raise AssertionError(f"{error}, expected {expected}") from error
        return
    assert expected is None, f"{path} is listed as refused, and was read"
    twin = listed(path, TWINS)
    if twin is not None:
        path = path.with_name(twin)
    differences = []
    kind = file_kind(path)
    assert kind is not None
    for pixels in ORACLES[kind](path, scan):
        if pixels.shape == scan.pixels.shape:
            difference = float(np.abs(pixels - scan.pixels).max())
            if difference <= ROUNDING * max(1.0, float(np.abs(pixels).max())):
                return
            differences.append(f"by {difference:g}")
        else:
            differences.append(f"shape {pixels.shape}, ours {scan.pixels.shape}")
    assert listed(path, UNMATCHED), f"{path} differs from the independent readers: {differences}"


def test_sixty_drawn_files_are_read_as_by_independent_readers():
    files = every_file()
    for path in random.Random(0).sample(files, 60):
        check(path)


@pytest.mark.slow
def test_every_file_is_read_as_by_independent_readers():
    files = every_file()
    wrong = []
    for path in files:
        try:
            check(path)
        except AssertionError as error:
            wrong.append(str(error).splitlines()[0])
    assert not wrong, "\n".join(wrong)
    for pattern in [*REFUSED, *TWINS, *UNMATCHED]:
        corpus = pattern in ("*/mask/RS.dcm", "RTSTRUCT_PET.dcm")
        assert any(path.match(pattern) for path in files) or (corpus and "DEXCORE_CORPUS" not in os.environ), pattern
