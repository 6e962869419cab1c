"""Copies among the files of pydicom and pydicom-data."""

import shutil
from pathlib import Path

import data_store
from pydicom.data import get_testdata_file

PYDICOM_DATA = Path(data_store.__file__).parent / "data"
# The copy, the image it was made of, and how.
RESCALED = {
    "examples_jpeg2k.dcm": "US1_UNCR.dcm",  # nothing was changed
    "examples_rgb_color.dcm": "US1_UNCR.dcm",  # half the size
    "examples_ybr_color.dcm": "color3d_jpeg_baseline.dcm",  # half the size, frames left out
}
CUT = {"examples_overlay.dcm": "MR-SIEMENS-DICOM-WithOverlays.dcm", "examples_palette.dcm": "OBXXXX1A.dcm"}


def lay(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        there = PYDICOM_DATA / name
        shutil.copy(there if there.is_file() else get_testdata_file(name), folder / name)
