"""Checks of plain arguments."""

import numpy as np
import pytest

from dexcore.checks import check_kind, check_number, check_path, check_whole

NO_NUMBERS = [None, "3", b"3", True, [3], {}, np.ones(2), object()]


@pytest.mark.parametrize("value", [*NO_NUMBERS, 3.0, np.float32(3), float("nan")])
def test_what_is_no_whole_number_is_a_type_error_that_names_the_argument(value):
    with pytest.raises(TypeError, match=r"^depth must be a whole number, got "):
        check_whole("depth", value, 1)


@pytest.mark.parametrize("value", [0, -1, 10, 10**30, np.int64(0)])
def test_a_whole_number_out_of_range_is_a_value_error_that_tells_the_range(value):
    with pytest.raises(ValueError, match=rf"^depth must be from 1 to 9, got {value}$"):
        check_whole("depth", value, 1, 9)
    if value < 1:
        with pytest.raises(ValueError, match=rf"^depth must be at least 1, got {value}$"):
            check_whole("depth", value, 1)


@pytest.mark.parametrize("value", [1, 9, np.int64(4), np.uint8(9)])
def test_whole_numbers_of_python_and_numpy_are_taken(value):
    check_whole("depth", value, 1, 9)


@pytest.mark.parametrize("value", [None, 3, b"run", ["run"]])
def test_what_is_no_path_is_a_type_error_that_names_the_argument(value):
    with pytest.raises(TypeError, match=r"^folder must be a path \(str or os.PathLike\), got "):
        check_path("folder", value)


def test_names_and_paths_are_taken(tmp_path):
    check_path("folder", str(tmp_path))
    check_path("folder", tmp_path)


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1j])
def test_what_is_no_number_is_a_type_error_that_names_the_argument(value):
    with pytest.raises(TypeError, match=r"^tau must be a number, got "):
        check_number("tau", value, "above 0", lambda x: x > 0)


@pytest.mark.parametrize("value", [0, -1.5, float("nan"), float("-inf"), np.float32("nan")])
def test_a_number_that_does_not_hold_is_a_value_error_that_tells_what_was_expected(value):
    with pytest.raises(ValueError, match=rf"^tau must be above 0, got {value}$"):
        check_number("tau", value, "above 0", lambda x: x > 0)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int64(1)])
def test_numbers_of_python_and_numpy_are_taken(value):
    check_number("tau", value, "above 0", lambda x: x > 0)


def test_another_kind_is_a_type_error_that_shows_a_short_value():
    check_kind("path", "x", str, "a text")
    with pytest.raises(TypeError, match=r"^path must be a text, got \[0, 1, 2, 3, 4, 5, \.\.\.\] \(list\)$"):
        check_kind("path", list(range(100_000)), str, "a text")
