"""What ONNX export makes of the DEX ops computes what they compute."""

import pytest
import torch
from torch._decomp import decomposition_table

from assertions import assert_close
from dexcore.ops.activation import ACTIVATIONS

B, N, D, H, R = 5, 4, 8, 12, 6


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("top_k", [1, 3])
def test_experts(activation, biases, top_k):
    x, w1, w2 = torch.randn(B, N, D), torch.randn(R, H, D), torch.randn(R, D, H)
    b1, b2 = (torch.randn(R, H), torch.randn(R, D)) if biases else (None, None)
    gates, indices = torch.rand(B, top_k), torch.stack([torch.randperm(R)[:top_k] for _ in range(B)])
    op = torch.ops.dexcore.expert_mlp.default
    for keep in ("nothing", "both"):
        arguments = (x, w1, b1, w2, b2, gates, indices, keep, activation, "ieee", "eager")
        got, want = decomposition_table[op](*arguments), op(*arguments)
        assert_close(got[0], want[0].double(), bound=1e-5)
        assert [t.shape for t in got] == [t.shape for t in want]


def test_experts_in_half_precision_give_half_precision():
    x, w1, w2 = torch.randn(B, N, D), torch.randn(R, H, D), torch.randn(R, D, H)
    half = [t.bfloat16() for t in (x, w1, w2)]
    gates, indices = torch.rand(B, 2), torch.tensor([[0, 1], [5, 2], [3, 3], [1, 4], [2, 0]])
    op = torch.ops.dexcore.expert_mlp.default
    settings = (None, gates, indices, "nothing", "gelu", "ieee", "eager")
    y = decomposition_table[op](half[0], half[1], None, half[2], *settings)[0]
    assert y.dtype == torch.bfloat16
    assert_close(y, op(x.double(), w1.double(), None, w2.double(), None, gates.double(), *settings[2:])[0])


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("noisy", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_routing(pool, noisy, dtype):
    x, weight = torch.randn(B, N, D).to(dtype), torch.randn(R, D).to(dtype)
    op = torch.ops.dexcore.route.default
    arguments = (x, weight, torch.randn(B, R) if noisy else None, 3, 0.5, pool, "eager")
    (gates, indices, probs), want = decomposition_table[op](*arguments), op(*arguments)
    assert torch.equal(indices, want[1])
    assert gates.dtype == want[0].dtype
    assert_close(gates, want[0].double(), bound=1e-5)
    assert_close(probs, want[2].double(), bound=1e-5)
