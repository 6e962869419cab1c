"""What ONNX export makes of the DEX ops computes what they compute."""

import pytest
import torch

from assertions import assert_close
from dexcore import ops
from dexcore.ops import onnx
from dexcore.ops.activation import ACTIVATIONS, columns_of
from dexcore.ops.expert_types import ExpertArguments

B, N, D, H, R = 5, 4, 8, 12, 6


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("top_k", [1, 3])
def test_experts(activation, biases, top_k):
    columns = columns_of(activation) * H
    x, w1, w2 = torch.randn(B, N, D), torch.randn(R, columns, D), torch.randn(R, D, H)
    b1, b2 = (torch.randn(R, columns), torch.randn(R, D)) if biases else (None, None)
    gates, indices = torch.rand(B, top_k), torch.stack([torch.randperm(R)[:top_k] for _ in range(B)])
    given = ExpertArguments(x, w1, b1, w2, b2, gates, indices)
    assert_close(onnx.expert_mlp(given, activation), ops.expert_mlp(*given, activation).double(), bound=1e-5)


def test_experts_in_half_precision_give_half_precision():
    x, w1, w2 = torch.randn(B, N, D), torch.randn(R, H, D), torch.randn(R, D, H)
    gates, indices = torch.rand(B, 2), torch.tensor([[0, 1], [5, 2], [3, 3], [1, 4], [2, 0]])
    y = onnx.expert_mlp(ExpertArguments(x.bfloat16(), w1.bfloat16(), None, w2.bfloat16(), None, gates, indices), "gelu")
    assert y.dtype == torch.bfloat16
    assert_close(y, ops.expert_mlp(x.double(), w1.double(), None, w2.double(), None, gates.double(), indices))


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_routing(pool, noisy, dtype):
    x, weight = torch.randn(B, N, D).to(dtype), torch.randn(R, D).to(dtype)
    noise = torch.randn(B, R) if noisy else None
    gates, indices, probs = onnx.route(x, weight, noise, 3, 0.5, pool)
    want_gates, want_indices, want_probs = ops.route(x, weight, 3, 0.5, noise, pool)
    assert torch.equal(indices, want_indices)
    assert gates.dtype == want_gates.dtype
    assert_close(gates, want_gates.double(), bound=1e-5)
    assert_close(probs, want_probs.double(), bound=1e-5)
