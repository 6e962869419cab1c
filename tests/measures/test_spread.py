"""Evenly spread values: how many, and which."""

import numpy as np
import pytest

from dexcore.measures.spread import evenly


@pytest.mark.parametrize(("count", "most", "expected"), [(9, 3, [0, 4, 8]), (2, 5, [0, 1]), (3, 1, [0]), (0, 4, [])])
def test_values_are_spread_from_the_first_to_the_last(count, most, expected):
    assert evenly(np.arange(count), most).tolist() == expected
