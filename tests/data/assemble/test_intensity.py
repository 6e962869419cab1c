import numpy as np
import pytest

from dexcore.data.assemble.intensity import UnitsError, method_for
from dexcore.data.modality import Modality
from dexcore.data.readers import Scan

FRAMES = np.zeros((1, 4, 4), np.uint8)
VOLUME = np.zeros((4, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("modality", "scan", "method"),
    [
        (Modality.MR, Scan(FRAMES, "frames"), "div255"),  # a picture, made for the eye
        (Modality.MR, Scan(VOLUME, "volume"), "percentile_minmax"),  # measured, and rounded to 8 bits
        (Modality.MR, Scan(FRAMES.astype(np.float32), "frames"), "percentile_minmax"),
        (Modality.CT, Scan(FRAMES.astype(np.float32), "frames", units="HU"), "hu_window"),
        (Modality.CT, Scan(VOLUME.astype(np.float32) - 1000, "volume"), "hu_window"),  # air: they can only be HU
        (Modality.CT, Scan(VOLUME.astype(np.float32), "volume"), "percentile_minmax"),
        (Modality.PET, Scan(VOLUME.astype(np.float32), "volume", units="SUV"), "suv_window"),
        (Modality.PET, Scan(VOLUME.astype(np.float32), "volume"), "percentile_zscore_minmax"),
        (Modality.XRAY, Scan(FRAMES.astype(np.uint16), "frames"), "div255"),
    ],
)
def test_a_method_follows_from_the_modality_and_what_the_file_holds(modality, scan, method):
    assert method_for(modality, scan, None, None) == method


def test_a_window_is_refused_for_values_in_other_units():
    with pytest.raises(UnitsError, match="suv_window is for values in SUV, this file holds values in HU"):
        method_for(Modality.PET, Scan(VOLUME, "volume", units="HU"), "suv_window", None)
    with pytest.raises(UnitsError, match="hu_window is for values in HU, this file holds an 8-bit picture"):
        method_for(Modality.CT, Scan(FRAMES, "frames"), "hu_window", None)
    with pytest.raises(UnitsError, match="values whose units nobody states: say units: SUV"):
        method_for(Modality.PET, Scan(VOLUME.astype(np.float32), "volume"), "suv_window", None)
    assert method_for(Modality.PET, Scan(VOLUME, "volume"), "suv_window", "SUV") == "suv_window"
