"""assert_close must notice what a wrong kernel does."""

import pytest
import torch

from assertions import assert_close


@pytest.fixture
def reference():
    return torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "spoil",
    [
        torch.zeros_like,
        lambda t: t.index_fill(0, torch.tensor([2]), 0),  # an image left out
        lambda t: t.flip(0),  # images swapped
        lambda t: t.index_fill(2, torch.tensor([7]), float("nan")),
        lambda t: t * 1.1,
    ],
)
def test_a_wrong_result_fails(reference, dtype, spoil):
    plain = reference.to(dtype)
    assert_close(plain, reference, plain=plain)
    with pytest.raises(AssertionError):
        assert_close(spoil(plain), reference, plain=plain)
    with pytest.raises(AssertionError):
        assert_close(spoil(plain), reference)


def test_a_zero_reference_accepts_zeros_alone():
    zeros = torch.zeros(3)
    assert_close(zeros, zeros)
    with pytest.raises(AssertionError):
        assert_close(torch.full((3,), 1e-30), zeros)


def test_another_shape_fails(reference):
    with pytest.raises(AssertionError):
        assert_close(reference[..., :1], reference)
