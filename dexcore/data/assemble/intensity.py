"""How the values of a file come to lie in [0, 1]: the method, by modality and by what the file holds."""

import numpy as np

from dexcore.data.modality import Modality
from dexcore.data.readers import Scan
from dexcore.data.sources.recipe import Units

_AIR_HU = -200  # a CT in Hounsfield units has air in it
_BY_MODALITY = {Modality.CT: "hu_window", Modality.PET: "percentile_zscore_minmax", Modality.MR: "percentile_minmax"}


class UnitsError(Exception):
    """The values are in other units than the normalization is for; the message says what would help."""


def method_for(modality: Modality, scan: Scan, wanted: str | None, declared: Units | None) -> str:
    """The normalization of a file, a name of `dexcore.data.normalize`.

    Without a wish: 8-bit pictures (also of CT and MR: they were made for the eye) are divided by 255, CT in Hounsfield
    units and PET in SUV are windowed, MR and what has no units is cut at its percentiles, all others go from the black
    to the white that their files state.

    Args:
        modality: of the images.
        scan: the file, which may know its units.
        wanted: the source's; goes before all else.
        declared: the units that the source gives to files that do not say theirs.

    Raises:
        UnitsError: ``wanted`` is a window of units that the values are not in.
    """
    units = scan.units or declared
    picture = scan.held.dtype == np.uint8 and scan.layout == "frames"  # a volume of 8 bits was measured
    if wanted is not None:
        needed = {"hu_window": "HU", "suv_window": "SUV"}.get(wanted)
        if needed and units is None and (picture or needed == "SUV"):  # activity would be all white, without a word
            held = "an 8-bit picture" if picture else "values whose units nobody states"
            hint = "set another normalization" if picture else "say units: SUV, or set another normalization"
            raise UnitsError(f"{wanted} is for values in {needed}, this file holds {held}: {hint}")
        if needed and units not in (needed, None):
            raise UnitsError(
                f"{wanted} is for values in {needed}, this file holds values in {units}: set another normalization"
            )
        return wanted
    if modality not in _BY_MODALITY or picture:
        return "div255"
    if modality is Modality.CT and units != "HU" and scan.held.min() > _AIR_HU:
        return "percentile_minmax"
    if modality is Modality.PET and units == "SUV":
        return "suv_window"
    return _BY_MODALITY[modality]
