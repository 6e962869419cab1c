import numpy as np
import pytest

from dexcore.measures.components import principal_components

RANDOM = np.random.default_rng(0)


def test_principal_components_are_those_of_the_singular_value_decomposition():
    features = RANDOM.normal(size=(50, 7)) * np.arange(1, 8)
    projected, shares = principal_components(features, 3)
    left, values, _ = np.linalg.svd(features - features.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(projected), np.abs(left[:, :3] * values[:3]), rtol=1e-6)
    np.testing.assert_allclose(shares, values[:3] ** 2 / (values**2).sum())


def test_the_sign_of_a_component_is_fixed():
    features = RANDOM.normal(size=(50, 4)) * [5, 1, 1, 1]
    projected, _ = principal_components(features, 1)
    assert np.corrcoef(projected[:, 0], features[:, 0])[0, 1] > 0.9
    flipped, _ = principal_components(-features, 1)
    assert np.corrcoef(flipped[:, 0], -features[:, 0])[0, 1] > 0.9


def test_rows_that_are_not_finite_take_no_part():
    features = RANDOM.normal(size=(20, 4))
    broken = np.concatenate([features, [[np.nan] * 4, [np.inf, 0, 0, 0]]])
    projected, shares = principal_components(broken, 2)
    expected, expected_shares = principal_components(features, 2)
    np.testing.assert_allclose(projected[:20], expected)
    assert np.isnan(projected[20:]).all()
    np.testing.assert_allclose(shares, expected_shares)


@pytest.mark.parametrize("features", [np.ones((5, 2)), np.zeros((0, 2)), np.full((4, 2), np.nan)])
def test_without_variance_there_is_no_share(features):
    projected, shares = principal_components(features, 3)
    assert projected.shape == (len(features), 3)
    assert shares.tolist() == [0, 0, 0]
