"""route's kernels against float64, written out image by image."""

import importlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assertions import assert_close
from dexcore.kernels.plan import make_plan
from dexcore.kernels.route import Balance, expert_load, route_backward, route_forward, route_gradients
from dexcore.ops import reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
POOLS = ["cls", "mean"]


def feature(x, pool, dtype=torch.float64):
    return x[:, 0].to(dtype) if pool == "cls" else x.to(dtype).mean(1)


def all_probs(x, weight, noise, tau, pool, dtype=torch.float64):
    logits = feature(x, pool, dtype) @ weight.to(dtype).T
    return ((logits if noise is None else logits + noise.to(dtype)) / tau).softmax(-1)


def gates_of(probs, indices):
    chosen = probs.gather(-1, indices)
    return chosen / chosen.sum(-1, keepdim=True)


def gradients(grad_gates, grad_probs, x, weight, noise, indices, tau, pool, dtype):
    x, weight = (t.detach().to(dtype).requires_grad_() for t in (x, weight))
    probs = all_probs(x, weight, noise, tau, pool, dtype)
    outputs = (gates_of(probs, indices), probs)
    return torch.autograd.grad(outputs, (x, weight), (grad_gates.to(dtype), grad_probs.to(dtype)))


@given(
    batch=st.integers(0, 5),
    tokens=st.integers(1, 40),
    width=st.integers(1, 70),
    experts=st.sampled_from([1, 2, 3, 8, 9, 33, 64]),
    pool=st.sampled_from(POOLS),
    noisy=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    weight_dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_routing_and_gradients_agree_with_float64(
    batch, tokens, width, experts, pool, noisy, dtype, weight_dtype, data
):
    top_k = data.draw(st.integers(1, min(experts, 4)))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(batch, tokens, width, generator=g).to(dtype)
    weight = (torch.randn(experts, width, generator=g) / width**0.5).to(weight_dtype)
    noise = torch.randn(batch, experts, generator=g) if noisy else None
    gates, indices, probs = route_forward(x, weight, noise, top_k, 0.7, pool)

    assert_close(probs, all_probs(x, weight, noise, 0.7, pool), name="probs")
    assert torch.equal(indices, probs.sort(dim=-1, descending=True, stable=True)[1][:, :top_k])
    assert_close(gates, gates_of(all_probs(x, weight, noise, 0.7, pool), indices), name="gates")
    assert gates.dtype == probs.dtype == torch.float32

    grad_gates = torch.randn(batch, top_k, generator=g)
    grad_probs = torch.randn(batch, experts, generator=g)
    grads = route_backward(grad_gates, grad_probs, x, weight, gates, indices, probs, 0.7, pool)
    wanted, plain = (
        gradients(grad_gates, grad_probs, x, weight, noise, indices, 0.7, pool, precision)
        for precision in (torch.float64, torch.float32)
    )
    for name, leaf, grad, want, close in zip(("x", "weight"), (x, weight), grads, wanted, plain, strict=True):
        assert grad.dtype == leaf.dtype
        if experts > 1:
            assert_close(grad, want, plain=close.to(leaf.dtype), name=name)
        else:  # a softmax over one is constant: nothing but rounding may come through
            assert (grad.double() - want).abs().sum() <= 1e-5


def fused_gradients(grads, x, weight, noise, indices, tau, pool, dtype):
    """By the feature and by the weight, of gates, probs (None: not used) and balance loss (None likewise)."""
    c = feature(x, pool, dtype).detach().requires_grad_()
    weight = weight.detach().to(dtype).requires_grad_()
    probs = all_probs(c[:, None], weight, noise, tau, "cls", dtype)
    importance = probs.sum(0) / max(len(probs), 1)
    outputs = gates_of(probs, indices), probs, len(weight) * (importance * importance.detach()).sum()
    used = [(output, grad.to(dtype)) for output, grad in zip(outputs, grads, strict=True) if grad is not None]
    return torch.autograd.grad([output for output, _ in used], (c, weight), [grad for _, grad in used])


@given(
    batch=st.integers(0, 70),
    tokens=st.integers(1, 6),
    width=st.integers(1, 70),
    experts=st.sampled_from([1, 2, 8, 9, 33, 64]),
    pool=st.sampled_from(POOLS),
    with_probs=st.booleans(),
    with_balance=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    weight_dtype=st.sampled_from(DTYPES),
    data=st.data(),
)
def test_the_fused_gradients_agree_with_float64(
    batch, tokens, width, experts, pool, with_probs, with_balance, dtype, weight_dtype, data
):
    top_k = data.draw(st.integers(1, min(experts, 4)))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(batch, tokens, width, generator=g).to(dtype)
    weight = (torch.randn(experts, width, generator=g) / width**0.5).to(weight_dtype)
    noise = torch.randn(batch, experts, generator=g)
    kept = torch.full((batch, width), float("nan"))
    gates, indices, probs = route_forward(x, weight, noise, top_k, 0.7, pool, kept)
    assert_close(kept, feature(x, pool), name="feature")

    grads = (
        torch.randn(batch, top_k, generator=g),
        torch.randn(batch, experts, generator=g) if with_probs else None,
        10 * torch.randn((), generator=g) if with_balance else None,
    )
    importance = probs.sum(0) / max(batch, 1)
    found = route_gradients(*grads, kept, weight, gates, indices, probs, importance, 0.7)
    want_grads, plain_grads = (
        fused_gradients(grads, x, weight, noise, indices, 0.7, pool, precision)
        for precision in (torch.float64, torch.float32)
    )
    for name, grad, want, close in zip(("feature", "weight"), found, want_grads, plain_grads, strict=True):
        assert grad.dtype == (torch.float32 if name == "feature" else weight_dtype)
        if experts > 1:
            assert_close(grad, want, plain=close.to(grad.dtype), name=name)
        else:  # a softmax over one is constant: nothing but rounding may come through
            assert (grad.double() - want).abs().sum() <= 1e-4


def test_a_step_of_the_routing_is_three_launches(monkeypatch):
    launched = []
    for home in ("route", "plan"):
        module = importlib.import_module(f"dexcore.kernels.{home}")
        monkeypatch.setattr(module, "launch", lambda kernel, *_, **__: launched.append(kernel.fn.__name__))
    x, weight, kept = torch.randn(3, 2, 8), torch.randn(5, 8), torch.empty(3, 8)
    gates, indices, probs = route_forward(x, weight, None, 2, 0.5, "cls", kept)
    balance = Balance.of(probs)
    make_plan(indices, 5, 2, 16, balance)
    route_gradients(gates, None, balance.loss, kept, weight, gates, indices, probs, balance.importance, 0.5)
    assert launched == ["_route_forward_kernel", "_plan_kernel", "_route_backward_kernel"]


@pytest.mark.parametrize("batch", [1, 5, 700])
@pytest.mark.parametrize("experts", [1, 3, 8, 64])
def test_the_balance_loss_is_summed_with_the_plan(batch, experts):
    probs = (3 * torch.randn(batch, experts)).softmax(-1)
    balance = Balance.of(probs)
    plain, _ = make_plan(indices := probs.topk(1).indices, experts, 3, 16)
    plan, _ = make_plan(indices, experts, 3, 16, balance)
    assert all(torch.equal(a, b) for a, b in zip(plan.tables, plain.tables, strict=True))
    assert_close(balance.importance, probs.double().mean(0))
    assert_close(balance.loss, reference.balance_loss(probs))


def test_without_images_importance_and_balance_loss_are_zero():
    balance = Balance.of(torch.empty(0, 5))
    make_plan(torch.empty(0, 2, dtype=torch.int64), 5, 3, 16, balance)
    assert balance.importance.tolist() == [0] * 5
    assert balance.loss == 0


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # of the interpreter's numpy
def test_probs_that_are_nan_reach_importance_and_balance_loss():
    probs = torch.full((3, 2), 0.5)
    probs[1] = float("nan")
    balance = Balance.of(probs)
    make_plan(torch.zeros(3, 1, dtype=torch.int64), 2, 3, 16, balance)
    assert balance.importance.isnan().all()
    assert balance.loss.isnan()


@pytest.mark.parametrize("top_k", [5, 64])
def test_all_experts_can_be_chosen(top_k):
    x, weight = torch.randn(3, 2, 16), torch.randn(top_k, 16) / 4
    gates, indices, probs = route_forward(x, weight, None, top_k, 0.5, "cls")
    assert torch.equal(indices.sort(-1)[0], torch.arange(top_k).expand(3, -1))
    assert_close(gates, probs.gather(-1, indices).double())
    grad_gates = torch.randn(3, top_k)
    arguments = (grad_gates, torch.zeros_like(probs), x, weight)
    grads = route_backward(*arguments, gates, indices, probs, 0.5, "cls")
    for grad, want in zip(grads, gradients(*arguments, None, indices, 0.5, "cls", torch.float64), strict=True):
        assert_close(grad, want)


@pytest.mark.parametrize("top_k", [1, 3])
def test_ties_go_to_the_lower_index(top_k):
    weight = torch.randn(4)[None].repeat(7, 1)  # all experts alike
    _, indices, _ = route_forward(torch.randn(5, 2, 4), weight, None, top_k, 0.5, "cls")
    assert indices.tolist() == [list(range(top_k))] * 5


def test_experts_whose_probability_underflows_tie():
    noise = torch.tensor([[0.0, -1000.0, 500.0, -1000.0]])
    gates, indices, probs = route_forward(torch.randn(1, 1, 4), torch.zeros(4, 4), noise, 4, 0.5, "cls")
    assert indices.tolist() == [[2, 0, 1, 3]]
    assert gates.tolist() == [[1, 0, 0, 0]]
    assert probs.tolist() == [[0, 0, 1, 0]]


def test_noise_is_added_before_the_temperature():
    x, weight, noise = torch.randn(4, 2, 6), torch.randn(5, 6) / 2, torch.randn(4, 5)
    _, _, probs = route_forward(x, weight, noise, 2, 0.25, "cls")
    assert_close(probs, ((x[:, 0].double() @ weight.double().T + noise) / 0.25).softmax(-1))


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # of the interpreter's numpy
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("pool", POOLS)
def test_an_image_that_is_not_finite_stays_alone_and_its_indices_stay_valid(bad, pool):
    x, weight = torch.randn(4, 3, 24), torch.randn(6, 24) / 5
    expected = route_forward(x, weight, None, 3, 0.5, pool)
    x[1, 0] = bad
    gates, indices, probs = route_forward(x, weight, None, 3, 0.5, pool)
    others = [0, 2, 3]
    for got, want in zip((gates, indices, probs), expected, strict=True):
        assert torch.equal(got[others], want[others])
    assert sorted(set(indices[1].tolist())) == sorted(indices[1].tolist())
    assert ((indices[1] >= 0) & (indices[1] < 6)).all()
    assert gates[1].isnan().all()
    grads = torch.randn_like(gates), torch.randn_like(probs)
    clean, _ = route_backward(*grads, x, weight, *expected, 0.5, pool)
    grad_x, _ = route_backward(*grads, x, weight, gates, indices, probs, 0.5, pool)
    assert torch.equal(grad_x[others], clean[others])
    assert grad_x[1, 0].isnan().all()


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # of the interpreter's numpy
def test_one_infinite_logit_gives_nan_and_valid_indices():
    noise = torch.zeros(1, 5)
    noise[0, 3] = float("inf")
    gates, indices, _ = route_forward(torch.randn(1, 2, 8), torch.randn(5, 8), noise, 2, 0.5, "cls")
    assert indices.tolist() == [[0, 1]]
    assert gates.isnan().all()


@pytest.mark.parametrize("pool", POOLS)
def test_an_image_is_routed_alike_in_every_batch(pool):
    x, weight = torch.randn(5, 7, 40), torch.randn(6, 40)
    together = route_forward(x, weight, None, 2, 0.5, pool)
    for b in range(5):
        alone = route_forward(x[b : b + 1].contiguous(), weight, None, 2, 0.5, pool)
        for got, want in zip(alone, together, strict=True):
            assert torch.equal(got[0], want[b])


@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_that_the_router_does_not_see_get_exact_zeros(dtype):
    x, weight = torch.randn(3, 20, 10).to(dtype), torch.randn(4, 10)
    gates, indices, probs = route_forward(x, weight, None, 2, 0.5, "cls")
    grad_x, _ = route_backward(torch.randn(3, 2), torch.randn(3, 4), x, weight, gates, indices, probs, 0.5, "cls")
    assert (grad_x[:, 1:] == 0).all()
    assert (grad_x[:, 0] != 0).any(-1).all()


@pytest.mark.parametrize("pool", POOLS)
def test_without_images_the_weight_gets_exact_zeros(pool):
    x, weight = torch.randn(0, 3, 40), torch.randn(5, 40)
    gates, indices, probs = route_forward(x, weight, None, 2, 0.5, pool)
    assert gates.shape == indices.shape == (0, 2)
    assert probs.shape == (0, 5)
    grad_x, grad_weight = route_backward(gates, probs, x, weight, gates, indices, probs, 0.5, pool)
    assert grad_x.shape == x.shape
    assert torch.equal(grad_weight, torch.zeros_like(weight))


def test_more_images_than_a_block_are_all_summed():
    x, weight = torch.randn(137, 1, 33), torch.randn(3, 33) / 6
    gates, indices, probs = route_forward(x, weight, None, 2, 0.5, "cls")
    arguments = (torch.randn(137, 2), torch.randn(137, 3), x, weight)
    _, grad_weight = route_backward(*arguments, gates, indices, probs, 0.5, "cls")
    assert_close(grad_weight, gradients(*arguments, None, indices, 0.5, "cls", torch.float64)[1])


@pytest.mark.parametrize("pool", POOLS)
def test_results_repeat_bit_for_bit(pool):
    x, weight, noise = torch.randn(9, 5, 70).bfloat16(), torch.randn(8, 70), torch.randn(9, 8)

    def everything():
        gates, indices, probs = route_forward(x, weight, noise, 2, 0.5, pool)
        balance = Balance.of(probs)
        make_plan(indices, 8, 5, 16, balance)
        grads = route_backward(gates, probs, x, weight, gates, indices, probs, 0.5, pool)
        of_feature = feature(x, pool, torch.float32), weight, gates, indices, probs, balance.importance
        fused = route_gradients(gates, probs, balance.loss, *of_feature, 0.5)
        return gates, indices, probs, *balance, *grads, *fused, expert_load(gates, indices, 8)

    assert all(torch.equal(a, b) for a, b in zip(everything(), everything(), strict=True))


@pytest.mark.parametrize("batch", [0, 1, 5, 1100])
def test_an_experts_load_is_the_sum_of_its_gates(batch):
    gates, indices = torch.rand(batch, 2), torch.randint(0, 6, (batch, 2))
    load = expert_load(gates, indices, 7)  # expert 6 has none
    want = torch.zeros(7, dtype=torch.float64).index_add_(0, indices.view(-1), gates.view(-1).double())
    assert_close(load, want)
    assert load[6] == 0


def test_a_gate_that_is_nan_loads_its_own_expert_alone():
    gates, indices = torch.tensor([[float("nan"), 0.5], [0.25, 0.75]]), torch.tensor([[0, 1], [2, 1]])
    load = expert_load(gates, indices, 3)
    assert load[0].isnan()
    assert load[1:].tolist() == [1.25, 0.25]
