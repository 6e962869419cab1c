"""Shares."""

import numpy as np

from dexcore.measures.ratio import ratio


def test_the_share_of_nothing_is_not_defined_and_says_no_warning():
    with np.errstate(all="raise"):
        found = ratio(np.array([[0, 1], [3, 0]]), np.array([[0, 2], [4, 5]]))
        assert np.isnan(ratio(np.int64(0), np.int64(0)))
    np.testing.assert_array_equal(found, [[np.nan, 0.5], [0.75, 0]])
