"""dex_mlp is expert_mlp and mix_align against the director, in one op."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from assertions import assert_close
from dexcore import ops
from dexcore.ops import experts_eager, reference
from dexcore.ops.expert_mlp import KEEPS
from dexcore.ops.mix_align import ALIGNS
from ops import plain

NAMES = ("x", "w1", "b1", "w2", "b2", "gates")


def plain_dex_mlp(x, w1, b1, w2, b2, dw1, db1, dw2, db2, gates, indices, activation, align):
    y = plain.expert_mlp(x, w1, b1, w2, b2, gates, indices, activation)
    director = reference.mlp(x, dw1, db1, dw2, db2, activation).to(x.dtype)
    return y, plain.mix_align(y, director, align)


def run(function, case, dtype, *settings):
    leaves = case.leaves(dtype)
    x, w1, b1, w2, b2, gates = leaves
    y, loss = function(x, w1, b1, w2, b2, *case.director, gates, case.indices, *settings)
    g = torch.Generator().manual_seed(1)
    grad_y = torch.randn(y.shape, generator=g).to(y.dtype)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return y, loss, torch.autograd.grad((y, loss), wanted, (grad_y, torch.tensor(7.0, dtype=loss.dtype)))


@given(
    plain.cases_and_activations().filter(lambda drawn: drawn[0].x.numel() and drawn[0].x.shape[2] > 1),
    st.sampled_from(ALIGNS),
    st.sampled_from(KEEPS),
)
def test_outputs_and_all_gradients_agree_with_float64(case_and_activation, align, keep):
    case, activation = case_and_activation
    y, loss, grads = run(ops.dex_mlp, case, torch.float32, activation, align, keep)
    y64, loss64, grads64 = run(reference.dex_mlp, case, torch.float64, activation, align)
    y32, loss32, grads32 = run(plain_dex_mlp, case, torch.float32, activation, align)
    assert_close(y, y64, plain=y32, name="y")
    assert_close(loss, loss64, bound=max(1e-6, 2 * abs(loss32 / loss64 - 1).item()), name="loss")
    names = [name for name, leaf in zip(NAMES, case.leaves(torch.float32), strict=True) if leaf is not None]
    for name, grad, grad64, grad32 in zip(names, grads, grads64, grads32, strict=True):
        assert_close(grad, grad64, plain=grad32, name=f"gradient of {name}")


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("block_bytes", [1, 700, 4000])  # an expert a group, and two groups of 2 and 1
def test_more_rows_than_a_block(monkeypatch, block_bytes, keep, activation):
    monkeypatch.setattr(experts_eager, "_BLOCK_BYTES", block_bytes)
    case = plain.make_case(batch=5, tokens=7, activation=activation)
    y, loss, grads = run(ops.dex_mlp, case, torch.float32, activation, "kd", keep)
    y64, loss64, grads64 = run(reference.dex_mlp, case, torch.float64, activation, "kd")
    assert_close(y, y64)
    assert_close(loss, loss64)
    for name, grad, grad64 in zip(NAMES, grads, grads64, strict=True):
        assert_close(grad, grad64, name=name)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("align", ALIGNS)
def test_gradcheck(align, activation):
    case = plain.make_case(tokens=2, width=3, hidden=4, activation=activation)
    case.dw1.zero_()  # the numeric derivative would see the target move with x
    director = [t.double() for t in case.director]

    def function(x, w1, b1, w2, b2, gates):
        return ops.dex_mlp(x, w1, b1, w2, b2, *director, gates, case.indices, activation, align)

    assert torch.autograd.gradcheck(function, case.leaves(torch.float64))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_it_equals_its_parts(activation):
    case = plain.make_case(batch=4, tokens=9, width=16, hidden=24, activation=activation)
    y, loss = ops.dex_mlp(*case.experts[:5], *case.director, *case.experts[5:], activation)
    assert torch.equal(y, ops.expert_mlp(*case.experts, activation))
    director = reference.mlp(case.x, *case.director, activation).float()
    assert_close(loss, ops.mix_align(y, director))


def test_the_director_gets_no_gradient_even_when_it_asks():
    case = plain.make_case()
    x, w1, b1, w2, b2, gates = case.leaves(torch.float32)
    director = [t.requires_grad_() for t in case.director]
    y, loss = ops.dex_mlp(x, w1, b1, w2, b2, *director, gates, case.indices)
    (y.sum() + loss).backward()
    assert all(t.grad is None for t in director)
    assert w1.grad is not None


def test_a_loss_that_nobody_uses_costs_no_correctness():
    case = plain.make_case()
    leaves = case.leaves(torch.float32)
    y, _ = ops.dex_mlp(*leaves[:5], *case.director, leaves[5], case.indices)
    expected = torch.autograd.grad(ops.expert_mlp(*leaves, case.indices).square().sum(), leaves)
    for a, b in zip(torch.autograd.grad(y.square().sum(), leaves), expected, strict=True):
        assert_close(a, b)


def test_autocast_keeps_the_loss_in_float32():
    case = plain.make_case(batch=4, tokens=9, width=32, hidden=48)
    leaves = case.leaves(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, loss = ops.dex_mlp(*leaves[:5], *case.director, leaves[5], case.indices)
    assert y.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    _, loss64 = reference.dex_mlp(*leaves[:5], *case.director, leaves[5], case.indices)
    assert_close(loss, loss64, bound=2e-2)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(y.float().sum() + loss, leaves))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_opcheck(activation):
    case = plain.make_case(activation=activation)
    arguments = (*case.experts, *case.director)
    for keep in ("nothing", "z"):
        opcheck(torch.ops.dexcore.dex_mlp.default, (*arguments, keep, "kd", activation, "ieee", "eager", torch.float32))
    y, loss, *kept = torch.ops.dexcore.dex_mlp(*arguments, "z", "kd", activation, "ieee", "eager", torch.float32)
    rest = (*case.experts, *kept, [True] * 6, activation, "ieee", "eager", *[torch.float32] * 3)
    grads = torch.ones_like(y), torch.ones_like(loss)
    for some in (grads, (grads[0], None), (None, grads[1])):
        opcheck(torch.ops.dexcore.dex_mlp_backward.default, (*some, *rest))


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_compiles_without_a_graph_break_and_with_its_backward(activation):
    case = plain.make_case(activation=activation)
    leaves = case.leaves(torch.float32)

    def function(x, w1, b1, w2, b2, gates, indices):
        y, loss = ops.dex_mlp(x, w1, b1, w2, b2, *case.director, gates, indices, activation)
        return y.square().sum() + loss

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected = function(*leaves, case.indices)
    got = compiled(*leaves, case.indices)
    assert_close(got, expected)
    for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("dw1", torch.ones(19, 12), ValueError, r"dw1 must have shape \[20, 12\]"),
        ("db1", torch.ones(12), ValueError, r"db1 must have shape \[20\]"),
        ("dw2", None, TypeError, "dw2 must be a tensor"),
        ("db2", torch.ones(12, dtype=torch.int32), TypeError, "db2 must be floating point"),
        ("dw1", torch.ones(20, 12, device="meta"), ValueError, "dw1 is on meta"),
        ("align", "l2", ValueError, "align must be one of 'kd'"),
        ("w2", torch.ones(4, 12, 19), ValueError, "w2 must have shape"),
    ],
)
def test_bad_arguments_are_named(argument, value, error, message):
    case = plain.make_case()
    names = ("x", "w1", "b1", "w2", "b2", "dw1", "db1", "dw2", "db2", "gates", "indices")
    values = (*case.experts[:5], *case.director, *case.experts[5:])
    with pytest.raises(error, match=message):
        ops.dex_mlp(**(dict(zip(names, values, strict=True)) | {argument: value}))
