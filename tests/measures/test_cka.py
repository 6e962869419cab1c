import math

import numpy as np
import pytest

from dexcore.measures.cka import linear_cka

RANDOM = np.random.default_rng(0)


def test_maps_alike_up_to_rotation_and_scale_have_cka_one_and_unrelated_ones_zero():
    # As many dimensions as inputs, where the biased estimate of unrelated maps is near 0.5.
    first, third = RANDOM.normal(size=(2, 100, 100))
    rotation = np.linalg.qr(RANDOM.normal(size=(100, 100)))[0]
    cka = linear_cka(np.stack([first, 3 * first @ rotation + 1, third]))
    np.testing.assert_allclose(cka, cka.T)
    np.testing.assert_allclose(np.diag(cka), 1)
    assert cka[0, 1] == pytest.approx(1)
    assert abs(cka[0, 2]) < 0.03


def test_cka_is_that_of_the_definition_with_matrices_of_all_pairs():
    maps = RANDOM.normal(size=(2, 30, 5))
    maps[1] += maps[0]

    def hsic(a, b):
        n, one = len(a), np.ones(len(a))
        k, l = a @ a.T, b @ b.T  # noqa: E741
        np.fill_diagonal(k, 0)
        np.fill_diagonal(l, 0)
        return (
            np.trace(k @ l) + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ l @ one
        )

    expected = hsic(*maps) / math.sqrt(hsic(maps[0], maps[0]) * hsic(maps[1], maps[1]))
    assert linear_cka(maps)[0, 1] == pytest.approx(expected)


def test_too_few_inputs_tell_no_likeness():
    assert np.isnan(linear_cka(RANDOM.normal(size=(2, 3, 5)))).all()
    assert np.isfinite(linear_cka(RANDOM.normal(size=(2, 4, 5)))).any()


def test_a_map_without_variance_has_no_likeness():
    cka = linear_cka(np.stack([np.ones((10, 3)), RANDOM.normal(size=(10, 3)), np.full((10, 3), np.nan)]))
    assert np.isnan(cka[0]).all()
    assert np.isnan(cka[2]).all()
    assert cka[1, 1] == pytest.approx(1)
