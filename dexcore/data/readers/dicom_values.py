"""Values of DICOM elements as they are met: lists where one value belongs, empty strings, text that is no number."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dexcore.data.readers.scan import RefusedError


def raw_value(dataset: Any, keyword: str) -> Any:
    """The value of an element; None where it is missing, empty or cannot be understood."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts on access, and raises many types on text that is no number
        return _as_text(dataset, keyword)
    if value is None or (isinstance(value, str | bytes | Sequence) and len(value) == 0):
        return None
    return value


def _as_text(dataset: Any, keyword: str) -> list[str] | None:
    """The parts of an element that pydicom cannot convert ("2.0" as a whole number, "12,5" as a decimal)."""
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(keyword)
    element = dataset.get_item(tag) if tag is not None else None
    value = getattr(element, "value", None)
    return value.decode("latin-1").split("\\") if isinstance(value, bytes) else None


def numbers(dataset: Any, keyword: str) -> list[float | None]:
    """All values of an element as floats; None for each that is empty, no number or not finite."""
    value = raw_value(dataset, keyword)
    if value is None:
        return []
    parts = [value] if isinstance(value, str | bytes) or not isinstance(value, Iterable) else list(value)
    return [_number(part) for part in parts]


def _number(value: Any) -> float | None:
    try:
        result = float(value.strip(" \0") if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def number(dataset: Any, keyword: str) -> float | None:
    """The first value of an element, or None where it has none or the first is no finite number."""
    return next(iter(numbers(dataset, keyword)), None)


def stated_number(dataset: Any, keyword: str) -> float | None:
    """As `number`, but what is there and is no number is an error, since the pixels depend on it.

    Raises:
        RefusedError: naming the element.
    """
    values = numbers(dataset, keyword)
    if values and values[0] is None and raw_value(dataset, keyword) != "":
        raise RefusedError(f"{keyword} is no finite number")
    return values[0] if values else None


def whole(dataset: Any, keyword: str) -> int | None:
    """The first value of an element as a whole number, or None."""
    value = number(dataset, keyword)
    return int(value) if value is not None and value == int(value) else None


def needed_whole(dataset: Any, keyword: str, low: int, high: int) -> int:
    """As `whole`, within [low, high].

    Raises:
        RefusedError: naming the element that is missing or outside.
    """
    value = whole(dataset, keyword)
    if value is None:
        raise RefusedError(f"{keyword} is missing or no whole number")
    if not low <= value <= high:
        raise RefusedError(f"{keyword} is {value}, expected {low} to {high}")
    return value


def text(dataset: Any, keyword: str) -> str | None:
    """The first value of an element as text without spaces around it, or None."""
    value = raw_value(dataset, keyword)
    if value is None:
        return None
    if not isinstance(value, str | bytes) and isinstance(value, Sequence):
        value = value[0]
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return str(value).strip(" \0") or None


def code(dataset: Any, keyword: str) -> str | None:
    """As `text`, in upper case: for elements whose values are words of the standard."""
    value = text(dataset, keyword)
    return value.upper() if value else None


def items(dataset: Any, keyword: str) -> list[Any]:
    """The items of a sequence; none where it is missing or no sequence."""
    value = raw_value(dataset, keyword)
    if value is None or isinstance(value, str | bytes) or not isinstance(value, Iterable):
        return []
    return [item for item in value if hasattr(item, "get_item")]


def safe_message(error: Exception) -> str:
    """An error of pydicom's without what it quotes from the file, which may be a patient's name."""
    message = re.sub(r"'[^']*'|\"[^\"]*\"", "'...'", str(error).splitlines()[0] if str(error) else "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
