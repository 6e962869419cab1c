"""The fields of a configuration, which is a frozen dataclass, nested or not, and how they are checked."""

import math
import os
import reprlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

_LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127


class ConfigError(ValueError):
    """A field of the configuration is out of range, contradicts another, or does not exist."""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxtuple, _SHORT.maxstring, _SHORT.maxother = 3, 12, 12, 120, 120


def shown(value: object) -> str:
    """``repr(value)``, cut short: a file may hold a list of a million or a number of ten thousand digits."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # more digits than Python turns into text
        return "a number of thousands of digits"


def check_field(condition: bool, name: str, expected: str, value: object) -> None:
    """Raise ConfigError, which says what was expected of a field, unless ``condition``."""
    if not condition:
        raise ConfigError(f"{name}: expected {expected}, got {shown(value)}")


def check_kinds(section: Any, prefix: str = "") -> None:
    """Every value is of its field's kind, and whole numbers fit 64 bits: with larger ones something overflows."""
    for name, hint in get_type_hints(type(section)).items():
        value = getattr(section, name)
        fits, expected = _kind(value, hint)
        check_field(fits, prefix + name, expected, value)
        for number in value if isinstance(value, tuple) else (value,):
            check_field(not isinstance(number, int) or abs(number) < 2**63, prefix + name, "a number of 64 bits", value)


def _kind(value: Any, hint: Any) -> tuple[bool, str]:
    """Whether ``value`` is of a field's kind, and the kind in words."""
    if get_origin(hint) is Literal:
        return value in get_args(hint), " or ".join(repr(choice) for choice in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool), "a number"
    if hint in (int, bool, str):
        return type(value) is hint, {int: "a whole number", bool: "true or false", str: "a text"}[hint]
    if is_dataclass(hint):
        return isinstance(value, hint), f"a {hint.__name__}"  # type: ignore[arg-type, union-attr]
    numbers = value if isinstance(value, tuple) else (value,)  # int | tuple[int, ...]
    return bool(numbers) and all(type(number) is int for number in numbers), "a whole number, or a list of them"


def check_values(config: Any) -> None:
    """Every number of a (nested) configuration fits float32, and every text can name a file."""
    for name, value in flat(config):
        number = value if isinstance(value, float) else 0.0
        check_field(math.isfinite(number), name, "a finite number", value)
        check_field(abs(number) <= _LARGEST_FLOAT32, name, f"at most {_LARGEST_FLOAT32:.2g}, float32's largest", value)
        check_field(not isinstance(value, str) or _can_be_a_path(value), name, "a text that can name a file", value)


def _can_be_a_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a character
        return False


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a (nested) configuration as ``("model.dim", 768)``."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from flat(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", value
