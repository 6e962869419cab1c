"""The gradient's norm against float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assertions import assert_close
from dexcore.engine.gradient_norm import gradient_norm


@given(shapes=st.lists(st.lists(st.integers(1, 9), max_size=4), min_size=1, max_size=6), seed=st.integers(0, 999))
def test_it_is_that_of_all_values_together_whatever_their_shapes_and_strides(shapes, seed):
    torch.manual_seed(seed)
    gradients = [torch.randn(shape).permute([*range(len(shape))][::-1]) for shape in shapes]
    truth = torch.cat([gradient.double().flatten() for gradient in gradients]).norm()
    found = gradient_norm(gradients)
    assert found.shape == ()
    assert found.dtype == torch.float32
    assert_close(found, truth)


def test_millions_of_values_cost_it_no_digits():
    torch.manual_seed(0)
    gradients = [torch.randn(8, 384, 1536), torch.randn(384)]
    truth = torch.cat([gradient.double().flatten() for gradient in gradients]).norm()
    assert_close(gradient_norm(gradients), truth, bound=2e-6)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_shows(wrong):
    gradients = [torch.ones(3, 4), torch.ones(5)]
    gradients[0][1, 2] = wrong
    assert not gradient_norm(gradients).isfinite()
