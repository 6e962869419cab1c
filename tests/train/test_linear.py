"""The dense layer by oneDNN against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from assertions import assert_close
from dexcore.train.linear import faster_by_onednn, linear

sizes = st.integers(1, 70)


@given(shape=st.lists(sizes, min_size=2, max_size=4), width=sizes, with_bias=st.booleans(), seed=st.integers(0, 999))
def test_values_and_gradients_are_those_of_a_dense_layer_in_float64(shape, width, with_bias, seed):
    torch.manual_seed(seed)
    operands = [torch.randn(shape), torch.randn(width, shape[-1]), torch.randn(width) if with_bias else None]
    operands = [t if t is None else t.requires_grad_() for t in operands]
    plain = [t if t is None else t.detach().clone().requires_grad_() for t in operands]
    truth = [t if t is None else t.detach().double().requires_grad_() for t in operands]
    results = [layer(*given) for layer, given in ((linear, operands), (F.linear, plain), (F.linear, truth))]
    grad = torch.randn(results[0].shape)
    for y in results:
        y.backward(grad.to(y.dtype))
    assert_close(results[0], results[2], plain=results[1], name="y")
    for name, ours, theirs, true in zip(("x", "weight", "bias"), operands, plain, truth, strict=True):
        if ours is not None:
            assert_close(ours.grad, true.grad, plain=theirs.grad, name=name)


@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_only_what_is_trained_gets_a_gradient(trained):
    operands = {"x": torch.randn(3, 4), "weight": torch.randn(5, 4), "bias": torch.randn(5)}
    operands[trained].requires_grad_()
    linear(*operands.values()).sum().backward()
    assert [name for name, t in operands.items() if t.grad is not None] == [trained]


def test_it_is_not_for_devices_that_are_no_cpu():
    assert not faster_by_onednn(torch.device("meta"))
