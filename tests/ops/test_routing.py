"""route against float64; ties, temperature, noise, precision."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from assertions import assert_close
from dexcore import ops
from dexcore.ops import reference


@given(
    batch=st.integers(1, 6),
    tokens=st.integers(1, 5),
    width=st.integers(1, 20),
    experts=st.integers(1, 9),
    pool=st.sampled_from(["cls", "mean"]),
    noisy=st.booleans(),
    data=st.data(),
)
def test_gates_probs_and_gradients_agree_with_float64(batch, tokens, width, experts, pool, noisy, data):
    top_k = data.draw(st.integers(1, experts))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x, weight = torch.randn(batch, tokens, width, generator=g), torch.randn(experts, width, generator=g)
    noise = torch.randn(batch, experts, generator=g) if noisy else None
    grad_gates, grad_probs = torch.randn(batch, top_k, generator=g), torch.randn(batch, experts, generator=g)
    results = []
    for function, dtype in ((ops.route, torch.float64), (reference.route, torch.float64)):
        leaves = [x.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
        gates, indices, probs = function(*leaves, top_k, 0.7, noise, pool)
        grads = torch.autograd.grad((gates, probs), leaves, (grad_gates.to(dtype), grad_probs.to(dtype)))
        results.append((gates, probs, indices, *grads))
    (gates, probs, indices, *grads), (gates64, probs64, indices64, *grads64) = results
    assert torch.equal(indices, indices64)
    assert_close(gates, gates64, name="gates")
    assert_close(probs, probs64, name="probs")
    for name, grad, grad64 in zip(("x", "weight"), grads, grads64, strict=True):
        # One expert, or all of them: the gradient may vanish but for rounding, so its scale is that of its terms.
        scale = grad_gates.abs().max().item() + grad_probs.abs().max().item()
        assert (grad - grad64).abs().max() <= 1e-12 * scale * (1 + grad64.abs().max()), name


def test_float32_is_close_to_float64():
    x, weight = torch.randn(16, 3, 64), torch.randn(8, 64)
    gates, indices, probs = ops.route(x, weight, 2)
    gates64, indices64, probs64 = reference.route(x, weight, 2)
    assert gates.dtype == probs.dtype == torch.float32
    assert indices.dtype == torch.int64
    assert torch.equal(indices, indices64)
    assert_close(gates, gates64)
    assert_close(probs, probs64)


def test_gates_sum_to_one_and_fall():
    gates, _, _ = ops.route(torch.randn(9, 2, 12), torch.randn(7, 12), 3)
    assert_close(gates.sum(-1), torch.ones(9))
    assert (gates.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_ties_go_to_the_lower_index(top_k):
    weight = torch.ones(64, 4)  # all experts alike
    _, indices, _ = ops.route(torch.randn(5, 2, 4), weight, top_k)
    assert indices.tolist() == [list(range(top_k))] * 5


def test_noise_is_added_before_the_temperature():
    x, weight, noise = torch.randn(4, 2, 6), torch.randn(5, 6), torch.randn(4, 5)
    _, _, probs = ops.route(x, weight, 2, tau=0.5, noise=noise)
    assert_close(probs, ((x[:, 0] @ weight.T + noise) / 0.5).softmax(-1))


def test_autocast_does_not_touch_the_router():
    x, weight = torch.randn(8, 3, 32), torch.randn(6, 32)
    expected = ops.route(x, weight, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ops.route(x, weight, 2)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_half_precision_tokens_are_routed_in_float32():
    x, weight = torch.randn(8, 3, 32, dtype=torch.bfloat16, requires_grad=True), torch.randn(6, 32, requires_grad=True)
    gates, _, probs = ops.route(x, weight, 2)
    assert gates.dtype == torch.float32
    assert torch.equal(probs, ops.route(x.float(), weight, 2)[2])
    grads = torch.autograd.grad(gates[:, 0].sum(), (x, weight))
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_gradcheck(pool):
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def gates_and_probs(x, weight):
        gates, _, probs = ops.route(x, weight, 2, pool=pool)
        return gates, probs

    assert torch.autograd.gradcheck(gates_and_probs, (x, weight))


def test_opcheck():
    x, weight = torch.randn(3, 2, 4), torch.randn(5, 4)
    opcheck(torch.ops.dexcore.route.default, (x, weight, torch.randn(3, 5), 2, 0.5, "cls", "eager"))
    gates, indices, probs = ops.route(x, weight, 2)
    opcheck(
        torch.ops.dexcore.route_backward.default,
        (torch.ones_like(gates), torch.ones_like(probs), x, weight, gates, indices, probs, 0.5, "cls", "eager"),
    )


def test_no_image_is_no_error():
    gates, indices, probs = ops.route(torch.randn(0, 2, 4), torch.randn(5, 4), 2)
    assert gates.shape == indices.shape == (0, 2)
    assert probs.shape == (0, 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"top_k": 6}, ValueError, r"top_k must lie in 1\.\.5 \(the number of experts\), got 6"),
        ({"top_k": 0}, ValueError, "top_k"),
        ({"top_k": 1.5}, TypeError, "top_k must be an int"),
        ({"tau": 0.0}, ValueError, "tau must be finite and > 0"),
        ({"tau": float("inf")}, ValueError, "tau must be finite"),
        ({"tau": "0.5"}, TypeError, "tau must be a number"),
        ({"tau": float("nan")}, ValueError, "tau must be finite and > 0"),
        ({"pool": "max"}, ValueError, "pool must be one of 'cls', 'mean'"),
        ({"noise": torch.zeros(2, 5)}, ValueError, r"noise must have shape \[3, 5\]"),
        ({"noise": torch.zeros(3, 5, dtype=torch.int32)}, TypeError, "noise must be floating point"),
        ({"weight": torch.randn(5, 3)}, ValueError, r"weight must have shape \[R, 4\]"),
        ({"x": torch.randn(3, 4)}, ValueError, "x must have shape"),
        ({"x": torch.randn(3, 0, 4)}, ValueError, "at least one token"),
        ({"weight": torch.randn(5, 4, device="meta")}, ValueError, "weight is on meta"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    good = {"x": torch.randn(3, 2, 4), "weight": torch.randn(5, 4), "top_k": 2}
    with pytest.raises(error, match=message):
        ops.route(**(good | arguments))


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_the_load_is_the_sum_of_each_experts_gates(backend):
    gates, indices = torch.rand(6, 2), torch.tensor([[0, 2], [2, 0], [3, 2], [2, 2], [0, 3], [3, 0]])
    expected = [sum(g for g, i in zip(gates.view(-1), indices.view(-1), strict=True) if i == r) for r in range(5)]
    load = ops.expert_load(gates, indices, 5, backend=backend)
    assert_close(load, torch.tensor([float(e) for e in expected], dtype=torch.float64))
    assert load[1] == 0


@pytest.mark.parametrize(
    ("gates", "indices", "error", "message"),
    [
        (
            torch.ones(3, 2, dtype=torch.int64),
            torch.zeros(3, 2, dtype=torch.int64),
            TypeError,
            "gates must be floating",
        ),
        (torch.ones(3, 2), torch.zeros(3, 2), TypeError, "indices must be int64 or int32"),
        (torch.ones(3), torch.zeros(3, dtype=torch.int64), ValueError, r"gates must have shape \[B, k\]"),
        (torch.ones(3, 2), torch.zeros(3, 1, dtype=torch.int64), ValueError, r"indices must have shape \[3, 2\]"),
    ],
)
def test_bad_arguments_of_the_load_are_named(gates, indices, error, message):
    with pytest.raises(error, match=message):
        ops.expert_load(gates, indices, 4)
