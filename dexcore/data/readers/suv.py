"""PET: the factor from a file's units to SUV by body weight (g/ml), or what is missing for it.

SUV = activity concentration x body weight / (injected dose, decayed to the time to which the image is decay-corrected).
The choice of that time follows the vendor-neutral computation of the Quantitative Imaging Biomarkers Alliance (QIBA).
"""

import math
import re
from datetime import datetime, timedelta
from typing import Any

from dexcore.data.readers.dicom_groups import Groups
from dexcore.data.readers.dicom_values import code, items, number, raw_value, text
from dexcore.data.readers.scan import RefusedError

_GML = {"GML", "G/ML", "{SUVBW}G/ML"}
_BQML = {"BQML", "BQ/ML"}
_PHILIPS = "Philips PET Private Group"
_PHILIPS_SUV, _PHILIPS_ACTIVITY = (0x7053, 0x1000), (0x7053, 0x1009)  # where its block is the first, as nearly always
_MIN_DOSE = 1e5  # Bq; smaller numbers are megabecquerels written by mistake
_MAX_WEIGHT = 700.0  # kg; larger numbers are grams
_MAX_HALF_LIVES = 10.0  # more between injection and scan is a wrong date


def suv_factor(dataset: Any, frame: int = 0) -> float:
    """What a frame's rescaled values are multiplied by to become SUV.

    Raises:
        RefusedError: naming the element that is missing, damaged or not plausible.
    """
    units = _units(dataset, frame)
    if units in _GML:
        kind = code(dataset, "SUVType")
        if kind not in (None, "BW"):
            raise RefusedError("SUVType is not BW: the SUV is not by body weight")
        return 1.0
    if units == "CNTS":
        return _counts_factor(dataset)
    if units in _BQML:
        return _activity_factor(dataset)
    raise RefusedError("Units is missing" if units is None else "Units is neither BQML, GML nor CNTS: no way to SUV")


def _units(dataset: Any, frame: int) -> str | None:
    units = code(dataset, "Units")
    groups = Groups(dataset)
    if units is None:
        for place in groups.places(frame, "PixelValueTransformationSequence"):
            units = units or code(place, "RescaleType")
    if units in (None, "US"):
        for place in groups.places(frame, "RealWorldValueMappingSequence"):
            for item in items(place, "MeasurementUnitsCodeSequence"):
                units = code(item, "CodeValue") or units
    return None if units == "US" else units


def _counts_factor(dataset: Any) -> float:
    """Philips writes counts, and beside them what brings them to SUV, or to activity."""
    suv, activity = _private(dataset, _PHILIPS_SUV), _private(dataset, _PHILIPS_ACTIVITY)
    if suv:
        return suv
    if activity:
        return activity * _activity_factor(dataset)
    raise RefusedError("Units is CNTS, and the factors of Philips (7053,1000) and (7053,1009) are missing")


def _private(dataset: Any, tag: tuple[int, int]) -> float | None:
    try:
        element = dataset.private_block(tag[0], _PHILIPS)[tag[1] & 0xFF]
    except KeyError:  # no block of this name, or without the element
        # De-identification may have taken the name away; where another stands, the number is of that vendor.
        named = getattr(dataset.get((tag[0], 0x10)), "value", None)
        element = None if named else dataset.get(tag)
    value = getattr(element, "value", None)
    try:
        result = float(value.decode("latin-1").strip(" \0") if isinstance(value, bytes) else str(value))
    except ValueError:
        return None
    return result if math.isfinite(result) and result > 0 else None


def _activity_factor(dataset: Any) -> float:
    """Grams per becquerel of the dose at the image's time."""
    weight = _positive(dataset, "PatientWeight")
    if weight > _MAX_WEIGHT:
        raise RefusedError(f"PatientWeight is over {_MAX_WEIGHT:.0f} kg")
    injection = next(iter(items(dataset, "RadiopharmaceuticalInformationSequence")), None)
    if injection is None:
        raise RefusedError("RadiopharmaceuticalInformationSequence is missing")
    dose = _positive(injection, "RadionuclideTotalDose")
    if dose < _MIN_DOSE:
        raise RefusedError(f"RadionuclideTotalDose is under {_MIN_DOSE:.0f}, expected becquerels")
    return 1000 * weight / (dose * _decay(dataset, injection))


def _decay(dataset: Any, injection: Any) -> float:
    """What is left of the dose at the time to which the image is decay-corrected."""
    correction = code(dataset, "DecayCorrection") or _enhanced_correction(dataset)
    if correction is None:
        raise RefusedError("DecayCorrection is missing")
    if correction == "ADMIN":
        return 1.0
    if correction != "START":
        raise RefusedError("DecayCorrection is neither START nor ADMIN")
    half_life = _positive(injection, "RadionuclideHalfLife")
    elapsed = _elapsed(dataset, injection, half_life)
    return float(2 ** (-elapsed / half_life))


def _enhanced_correction(dataset: Any) -> str | None:
    """An enhanced file says whether it is corrected, and to which moment."""
    stated = code(dataset, "DecayCorrected")
    if stated is None:
        for place in Groups(dataset).places(0, "PETFrameCorrectionFactorsSequence"):
            stated = stated or code(place, "DecayCorrected")
    if stated == "NO":
        return "NONE"
    moment = _moment(dataset, "DecayCorrectionDateTime")
    return "START" if moment else None


def _elapsed(dataset: Any, injection: Any, half_life: float) -> float:
    """Seconds from the injection to the moment of decay correction."""
    scan = _scan_start(dataset, half_life)
    injected = _moment(injection, "RadiopharmaceuticalStartDateTime")
    limit = _MAX_HALF_LIVES * half_life
    if injected is not None and 0 <= (scan - injected).total_seconds() <= limit:
        return (scan - injected).total_seconds()
    time = _time(text(injection, "RadiopharmaceuticalStartTime"))
    if time is None and injected is not None:  # de-identified files keep the hour and change the day
        time = injected - injected.replace(hour=0, minute=0, second=0, microsecond=0)
    if time is None:
        raise RefusedError("RadiopharmaceuticalStartTime is missing or no time")
    midnight = scan.replace(hour=0, minute=0, second=0, microsecond=0)
    elapsed = (scan - (midnight + time)).total_seconds()
    if elapsed < 0:  # injected before midnight
        elapsed += 86400
    if elapsed > limit:
        raise RefusedError("RadiopharmaceuticalStartTime lies more than ten half-lives before the scan")
    return elapsed


def _scan_start(dataset: Any, half_life: float) -> datetime:
    """The moment to which START corrects."""
    enhanced = _moment(dataset, "DecayCorrectionDateTime")
    if enhanced is not None:
        return enhanced
    series = _date_and_time(dataset, "SeriesDate", "SeriesTime")
    acquired = _moment(dataset, "AcquisitionDateTime") or _date_and_time(dataset, "AcquisitionDate", "AcquisitionTime")
    if series is None and acquired is None:
        raise RefusedError("SeriesTime and AcquisitionTime are missing")
    if acquired is None or (series is not None and series <= acquired):
        return series or datetime.min
    # The series was made later (a reformatted copy): from this frame back to the first.
    reference, duration = number(dataset, "FrameReferenceTime"), number(dataset, "ActualFrameDuration")  # ms
    if reference is None or duration is None or duration <= 0:
        return acquired
    rate = math.log(2) / half_life
    seconds = duration / 1000
    average = math.log(rate * seconds / -math.expm1(-rate * seconds)) / rate  # when the frame had its mean activity
    return acquired + timedelta(seconds=average - reference / 1000)


def _positive(item: Any, keyword: str) -> float:
    value = number(item, keyword)
    if value is None or value <= 0:
        raise RefusedError(f"{keyword} is missing or not positive")
    return value


def _date_and_time(dataset: Any, date: str, time: str) -> datetime | None:
    """A moment; without a date a fixed day, since times of one day are compared."""
    hour = _time(text(dataset, time))
    if hour is None:
        return None
    day = re.fullmatch(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)", text(dataset, date) or "")
    try:
        return (datetime(int(day[1]), int(day[2]), int(day[3])) if day else datetime(1, 1, 2)) + hour
    except ValueError:
        return datetime(1, 1, 2) + hour


def _moment(item: Any, keyword: str) -> datetime | None:
    """A DICOM date and time; its time zone is dropped, since all of a file are in one."""
    if raw_value(item, keyword) is None:
        return None
    match = re.match(r"(\d{4})(\d\d)(\d\d)(\d\d[\d.]*)", text(item, keyword) or "")
    hour = _time(match[4]) if match else None
    if match is None or hour is None:
        return None
    try:
        return datetime(int(match[1]), int(match[2]), int(match[3])) + hour
    except ValueError:
        return None


def _time(value: str | None) -> timedelta | None:
    """A DICOM time of day: HHMMSS.FFFFFF, shorter, or with colons as of old."""
    match = re.match(r"(\d\d):?(\d\d)?:?(\d\d(?:\.\d*)?)?", value or "")
    if match is None:
        return None
    return timedelta(hours=int(match[1]), minutes=int(match[2] or 0), seconds=float(match[3] or 0))
