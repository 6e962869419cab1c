import math
import tracemalloc

import numpy as np
import pytest

from dexcore.measures.neighbors import _majority, nearest, neighbor_accuracy

RANDOM = np.random.default_rng(0)


def test_classes_that_lie_apart_are_told_by_their_neighbors():
    label = np.repeat([0, 1, 2], 20)
    features = np.eye(3)[label] + RANDOM.normal(0, 0.05, (60, 3))
    found = neighbor_accuracy(features, label, np.arange(60))
    assert (found.accuracy, found.classes, found.images) == (1.0, 3, 60)
    assert found.chance == pytest.approx(1 / 3)


def test_features_without_meaning_are_at_chance():
    accuracies = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        label = random.integers(0, 4, 200)
        accuracies.append(neighbor_accuracy(random.normal(size=(200, 8)), label, np.arange(200)).accuracy)
    assert np.mean(accuracies) == pytest.approx(0.25, abs=0.03)


def test_slices_of_the_same_volume_are_no_evidence():
    # Every volume is a point of its own; its label says nothing of where it lies.
    volume = np.repeat(np.arange(20), 10)
    features = RANDOM.normal(size=(20, 8))[volume] + RANDOM.normal(0, 0.01, (200, 8))
    label = volume % 2
    assert neighbor_accuracy(features, label, np.arange(200)).accuracy == 1.0
    assert neighbor_accuracy(features, label, volume).accuracy < 0.8


def test_classes_weigh_the_same_and_unknown_ones_take_no_part():
    # Class 1 lies in the middle of class 0 and is outvoted: half of the classes are right, not 90 % of the images.
    label = np.array([0] * 90 + [1] * 2 + [-1] * 5 + [2])
    features = RANDOM.normal(size=(98, 3)) + 10 * np.eye(3)[0] * (np.arange(98) >= 92)[:, None]
    found = neighbor_accuracy(features, label, np.arange(98))
    assert (found.classes, found.images) == (2, 92)  # class 2 has a single image
    assert 0.4 < found.accuracy <= 0.55


def test_a_tie_goes_to_the_nearest():
    label = np.array([[1, 0, 0, 1, 2], [0, 1, 1, 0, 2], [2, 1, 1, 0, 2], [1, 2, 2, 2, 1], [2, -1, -1, -1, -1]])
    assert _majority(label, 3).tolist() == [1, 0, 2, 2, 2]


def test_one_class_cannot_be_asked():
    assert math.isnan(neighbor_accuracy(RANDOM.normal(size=(5, 2)), np.zeros(5, int), np.arange(5)).accuracy)
    assert math.isnan(neighbor_accuracy(np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, int)).accuracy)


def brute_force(queries, rows, k, apart_q=None, apart_n=None, center=0.0):
    queries, rows = queries.astype(np.float64) - center, rows.astype(np.float64) - center
    likeness = (queries[:, None] * rows).sum(-1)
    likeness /= np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    if apart_q is not None:
        likeness[apart_q[:, None] == apart_n] = -np.inf
    order = np.argsort(-likeness, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(likeness, order, axis=1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_neighbors_are_those_of_brute_force(dtype):
    queries, rows = RANDOM.normal(size=(70, 24)).astype(dtype), RANDOM.normal(size=(500, 24)).astype(dtype)
    center = rows.mean(axis=0, dtype=np.float64)
    case_q, case_n = RANDOM.integers(0, 9, 70), RANDOM.integers(0, 9, 500)
    found = nearest(queries, rows, 20, case_q, case_n, center)
    index, likeness = brute_force(queries, rows, 20, case_q, case_n, center)
    np.testing.assert_array_equal(found.index_qk, index)
    np.testing.assert_allclose(found.likeness_qk, likeness, rtol=1e-12)


def test_the_size_of_the_chunks_changes_no_bit(monkeypatch):
    queries, rows = RANDOM.normal(size=(2, 300, 8)).astype(np.float32)
    whole = nearest(queries, rows, 7)
    monkeypatch.setattr("dexcore.measures.neighbors._NUMBERS", 1000)
    monkeypatch.setattr("dexcore.measures.neighbors._PAIRS", 13)
    parts = nearest(queries, rows, 7)
    assert parts.index_qk.tobytes() == whole.index_qk.tobytes()
    assert parts.likeness_qk.tobytes() == whole.likeness_qk.tobytes()


def test_a_tie_goes_to_the_lower_index():
    # Copies of ten rows: float32 products of equal rows may differ in the last place, which must decide nothing.
    rows = np.tile(RANDOM.normal(size=(10, 33)).astype(np.float32), (97, 1))
    found = nearest(RANDOM.normal(size=(40, 33)).astype(np.float32), rows, 5).index_qk
    np.testing.assert_array_equal(found, found[:, :1] + 10 * np.arange(5))
    assert (found[:, 0] < 10).all()


def test_rows_closer_than_float32_tells_are_told_apart():
    base = RANDOM.normal(size=64)
    rows = base + 1e-7 * RANDOM.normal(size=(200, 64))
    found = nearest(base[None] + 0.1, rows, 9)
    np.testing.assert_array_equal(found.index_qk, brute_force(base[None] + 0.1, rows, 9)[0])


def test_where_fewer_rows_may_be_asked_the_rest_is_told_as_missing():
    rows = np.eye(3)
    found = nearest(rows, rows, 3, np.arange(3), np.arange(3))
    assert (found.index_qk[:, 2] == -1).all()
    assert found.index_qk[:, :2].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert nearest(rows, np.zeros((0, 3)), 2).index_qk.tolist() == [[-1, -1]] * 3


def test_memory_does_not_grow_with_the_square(monkeypatch):
    monkeypatch.setattr("dexcore.measures.neighbors._NUMBERS", 1 << 20)
    features = RANDOM.normal(size=(5000, 8)).astype(np.float32)
    tracemalloc.start()
    nearest(features, features, 5, np.arange(5000), np.arange(5000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5000**2  # a byte a pair


def test_features_that_are_not_finite_are_refused():
    rows = np.ones((4, 2))
    rows[2, 1] = np.nan
    with pytest.raises(ValueError, match="rows: the features of row 2 are not finite"):
        nearest(np.ones((1, 2)), rows, 1)
