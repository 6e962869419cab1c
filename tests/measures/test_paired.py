import math

import numpy as np
import pytest

from dexcore.measures.paired import holm, wilcoxon


def test_holms_method_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    found = holm([math.nan, 0.02, 0.01])
    assert math.isnan(found[0])
    assert found[1:] == pytest.approx([0.02, 0.02])
    assert holm([]) == []


def test_wilcoxon_is_scipys_and_pairs_that_do_not_differ_take_no_part():
    scipy = pytest.importorskip("scipy.stats")
    difference = np.random.default_rng(0).normal(0.4, 1, 30)
    with_others = np.concatenate([difference, np.zeros(7), [math.nan]])
    assert wilcoxon(with_others) == pytest.approx(scipy.wilcoxon(difference).pvalue)
    assert math.isnan(wilcoxon(np.zeros(5)))
