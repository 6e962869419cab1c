"""Checks of plain arguments that all rooms share: errors that name the argument and say what was expected."""

import os
import reprlib
from collections.abc import Callable
from numbers import Integral, Real
from types import UnionType


def check_kind(name: str, value: object, kind: type | UnionType, called: str) -> None:
    """Raise TypeError unless ``value`` is a ``kind``, which is ``called``, say, "a torch.nn.Module"."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {called}, got {reprlib.repr(value)} ({type(value).__name__})")


def check_path(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a path: a str, or an os.PathLike that stands for one."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    check_kind(name, text, str, "a path (str or os.PathLike)")


def check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    """Raise TypeError unless ``value`` is a whole number (NumPy's too), ValueError unless it is in range."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {reprlib.repr(value)} ({type(value).__name__})")
    if int(value) < least or (most is not None and int(value) > most):
        expected = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {expected}, got {value}")


def check_odd(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a whole number, ValueError unless it is odd and at least 1."""
    check_whole(name, value, 1)
    if int(value) % 2 == 0:  # type: ignore[call-overload]  # a whole number
        raise ValueError(f"{name} must be odd, got {value}")


def check_number(name: str, value: object, expected: str, holds: Callable[[float], bool]) -> None:
    """Raise TypeError unless ``value`` is a real number, ValueError unless it is as ``expected``, so that it ``holds``.

    What compares (``lambda x: 0 < x < 1``) refuses NaN by itself.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {reprlib.repr(value)} ({type(value).__name__})")
    if not holds(value):  # type: ignore[arg-type]  # a Real compares as a float does
        raise ValueError(f"{name} must be {expected}, got {value}")
