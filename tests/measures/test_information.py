import math

import numpy as np
import pytest

from dexcore.measures.information import normalized_mutual_information


@pytest.mark.parametrize("shares", [np.eye(4), np.kron(np.eye(4), [0.5, 0.5]), np.kron(np.eye(2), [[1.0], [1.0]])])
def test_perfect_specialization_has_information_one(shares):
    assert normalized_mutual_information(shares) == pytest.approx(1.0)


def test_independence_and_collapse_have_information_zero():
    assert normalized_mutual_information(np.tile([0.1, 0.2, 0.7], (5, 1))) == pytest.approx(0.0, abs=1e-12)
    assert normalized_mutual_information(np.tile([1.0, 0.0, 0.0], (5, 1))) == pytest.approx(0.0, abs=1e-12)


def test_information_of_a_hand_made_case():
    # P(e) = (3/4, 1/4); I = H(E) - H(E | M) = H(3/4, 1/4) - (H(1/2, 1/2) + 0) / 2, over log 2.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = (entropy - math.log(2) / 2) / math.log(2)
    assert normalized_mutual_information(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx(expected)


def test_even_gates_over_k_experts_reach_the_stated_bound():
    shares = np.kron(np.eye(4), [0.5, 0.5])  # 4 modalities, 8 experts, 2 an image
    six = np.concatenate([shares, shares[:2]])
    assert normalized_mutual_information(six) <= math.log(8 / 2) / math.log(6)
    assert normalized_mutual_information(six) > 0.9 * math.log(8 / 2) / math.log(6)


def test_a_single_modality_or_expert_has_no_information():
    assert math.isnan(normalized_mutual_information(np.array([[0.5, 0.5]])))
    assert math.isnan(normalized_mutual_information(np.ones((3, 1))))
