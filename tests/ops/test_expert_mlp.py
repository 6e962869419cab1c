"""expert_mlp against float64, in every keep-level, activation and dtype."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.library import opcheck

from assertions import assert_close
from dexcore import ops
from dexcore.ops import reference
from dexcore.ops.expert_mlp import KEEPS
from ops import plain

NAMES = ("x", "w1", "b1", "w2", "b2", "gates")
each_way = pytest.mark.parametrize("activation", ["gelu", "quick_gelu", "swiglu"])


def gradients(function, leaves, indices, grad_y, **kwargs):
    y = function(*leaves, indices, **kwargs)
    wanted = [leaf for leaf in leaves if leaf is not None]
    return y, torch.autograd.grad(y, wanted, grad_y.to(y.dtype))


@given(plain.cases_and_activations(), st.sampled_from(KEEPS))
def test_output_and_all_gradients_agree_with_float64(case_and_activation, keep):
    case, activation = case_and_activation
    grad_y = torch.randn(case.x.shape, generator=torch.Generator().manual_seed(1))
    results = [
        gradients(function, case.leaves(dtype), case.indices, grad_y, activation=activation, **kwargs)
        for function, dtype, kwargs in (
            (ops.expert_mlp, torch.float32, {"keep": keep}),
            (reference.expert_mlp, torch.float64, {}),
            (plain.expert_mlp, torch.float32, {}),
        )
    ] if case.x.numel() else []  # fmt: skip
    if not results:
        y = ops.expert_mlp(*case.leaves(torch.float32), case.indices, activation, keep)
        assert y.shape == case.x.shape
        return
    (y, grads), (y64, grads64), (y32, grads32) = results
    assert_close(y, y64, plain=y32, name="y")
    names = [n for n, leaf in zip(NAMES, case.leaves(torch.float32), strict=True) if leaf is not None]
    for name, grad, grad64, grad32 in zip(names, grads, grads64, grads32, strict=True):
        assert_close(grad, grad64, plain=grad32, name=f"gradient of {name}")


@each_way
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep", KEEPS)
def test_half_precision_is_as_good_as_plain_pytorch(dtype, keep, activation):
    case = plain.make_case(batch=6, tokens=17, width=64, hidden=96, activation=activation)
    grad_y = torch.randn(case.x.shape)
    y, grads = gradients(ops.expert_mlp, case.leaves(dtype), case.indices, grad_y, keep=keep, activation=activation)
    rounded = [leaf.detach().double().requires_grad_() for leaf in case.leaves(dtype)]
    y64, grads64 = gradients(reference.expert_mlp, rounded, case.indices, grad_y.to(dtype), activation=activation)
    y_plain, grads_plain = gradients(plain.expert_mlp, case.leaves(dtype), case.indices, grad_y, activation=activation)
    assert y.dtype == dtype
    assert_close(y, y64, plain=y_plain, name="y")
    for name, grad, grad64, grad_plain in zip(NAMES, grads, grads64, grads_plain, strict=True):
        assert_close(grad, grad64, plain=grad_plain, name=f"gradient of {name}")


@each_way
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_image_has_the_same_output_with_gradients_to_the_bit(dtype, keep, activation):
    case = plain.make_case(batch=1, tokens=17, width=64, hidden=96, top_k=3, activation=activation)
    leaves, grad_y = case.leaves(dtype), torch.randn(case.x.shape)
    y, grads = gradients(ops.expert_mlp, leaves, case.indices, grad_y, keep=keep, activation=activation)
    with torch.no_grad():
        assert torch.equal(y, ops.expert_mlp(*leaves, case.indices, activation=activation))
    rounded = [leaf.detach().double().requires_grad_() for leaf in leaves]
    _, grads64 = gradients(reference.expert_mlp, rounded, case.indices, grad_y.to(dtype), activation=activation)
    _, grads_plain = gradients(plain.expert_mlp, leaves, case.indices, grad_y, activation=activation)
    for name, grad, grad64, grad_plain in zip(NAMES, grads, grads64, grads_plain, strict=True):
        assert_close(grad, grad64, plain=grad_plain, name=f"gradient of {name}")


@each_way
@pytest.mark.parametrize("keep", KEEPS)
def test_gradcheck(keep, activation):
    case = plain.make_case(tokens=2, width=3, hidden=4, activation=activation)
    assert torch.autograd.gradcheck(
        lambda *leaves: ops.expert_mlp(*leaves, case.indices, keep=keep, activation=activation),
        case.leaves(torch.float64),
    )


@each_way
def test_an_expert_without_images_gets_zero_gradient(activation):
    case = plain.make_case(experts=5, top_k=2, activation=activation)
    leaves = case.leaves(torch.float32)
    idle = [r for r in range(5) if r not in case.indices]
    assert idle
    y = ops.expert_mlp(*leaves, case.indices, activation=activation)
    for name, grad in zip(NAMES[1:5], torch.autograd.grad(y.square().sum(), leaves[1:5]), strict=True):
        assert (grad[idle] == 0).all(), name
        used = [r for r in range(5) if r in case.indices]
        assert (grad[used] != 0).any(-1).all(), name


def test_all_images_on_one_expert():
    case = plain.make_case(batch=7, top_k=1)
    case.indices.fill_(2)
    y = ops.expert_mlp(*case.experts)
    assert_close(y, reference.expert_mlp(*case.experts), plain=plain.expert_mlp(*case.experts))


def test_the_same_expert_twice_counts_twice():
    case = plain.make_case()
    case.indices[:, 1] = case.indices[:, 0]
    leaves = case.leaves(torch.float64)
    expected = gradients(reference.expert_mlp, leaves, case.indices, torch.ones_like(case.x))
    y, grads = gradients(ops.expert_mlp, leaves, case.indices, torch.ones_like(case.x))
    assert_close(y, expected[0])
    for grad, grad64 in zip(grads, expected[1], strict=True):
        assert_close(grad, grad64)


@each_way
def test_a_gate_of_zero_has_the_right_gradient(activation):
    case = plain.make_case(activation=activation)
    case.gates[:, 1] = 0
    leaves = case.leaves(torch.float64)
    _, grads = gradients(ops.expert_mlp, leaves, case.indices, torch.ones_like(case.x), activation=activation)
    _, grads64 = gradients(reference.expert_mlp, leaves, case.indices, torch.ones_like(case.x), activation=activation)
    assert grads64[5][:, 1].abs().min() > 0
    for grad, grad64 in zip(grads, grads64, strict=True):
        assert_close(grad, grad64)


def test_an_image_full_of_infinities_stays_alone():
    case = plain.make_case(batch=4)
    clean = ops.expert_mlp(*case.experts)
    case.x[1] = float("inf")
    spoilt = ops.expert_mlp(*case.experts)
    others = [0, 2, 3]
    assert torch.equal(spoilt[others], clean[others])
    assert not spoilt[1].isfinite().any()


@each_way
@pytest.mark.parametrize("keep", KEEPS)
def test_repeated_calls_are_bit_equal(keep, activation):
    case = plain.make_case(batch=8, tokens=17, width=32, hidden=64, activation=activation)
    grad_y, settings = torch.ones_like(case.x), {"keep": keep, "activation": activation}
    first, second = (
        gradients(ops.expert_mlp, case.leaves(torch.float32), case.indices, grad_y, **settings) for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


@each_way
def test_non_contiguous_inputs_and_expanded_gradients(activation):
    case = plain.make_case(batch=4, tokens=6, width=8, hidden=10, activation=activation)
    x, w1, b1, w2, b2, gates = case.leaves(torch.float32)
    strided = [
        x.transpose(0, 1).contiguous().transpose(0, 1).detach().requires_grad_(),
        w1.transpose(1, 2).contiguous().transpose(1, 2).detach().requires_grad_(),
        b1,
        w2.transpose(1, 2).contiguous().transpose(1, 2).detach().requires_grad_(),
        b2,
        gates,
    ]
    assert not strided[0].is_contiguous()
    ones = torch.ones(()).expand(x.shape)  # stride 0, as .sum().backward() sends it
    expected = gradients(
        ops.expert_mlp, [x, w1, b1, w2, b2, gates], case.indices, ones.contiguous(), activation=activation
    )
    got = gradients(ops.expert_mlp, strided, case.indices, ones, activation=activation)
    assert_close(got[0], expected[0])
    for a, b in zip(got[1], expected[1], strict=True):
        assert_close(a, b)


@each_way
def test_gradients_have_their_inputs_dtype(activation):
    case = plain.make_case(activation=activation)
    leaves = case.leaves(torch.bfloat16, parameter_dtype=torch.float32)
    y = ops.expert_mlp(*leaves, case.indices, activation=activation)
    assert y.dtype == torch.bfloat16
    for leaf, grad in zip(leaves, torch.autograd.grad(y.float().sum(), leaves), strict=True):
        assert grad.dtype == leaf.dtype


@each_way
def test_autocast_computes_in_its_dtype_and_returns_float32_gradients(activation):
    case = plain.make_case(batch=4, tokens=9, width=32, hidden=48, activation=activation)
    leaves = case.leaves(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.expert_mlp(*leaves, case.indices, activation=activation)
    dtypes = [torch.bfloat16] * 5 + [torch.float32]
    half = [leaf.detach().to(dtype).requires_grad_() for leaf, dtype in zip(leaves, dtypes, strict=True)]
    assert torch.equal(y, ops.expert_mlp(*half, case.indices, activation=activation))
    grads = torch.autograd.grad(y.float().square().sum(), leaves)
    assert all(grad.dtype == torch.float32 for grad in grads)


@each_way
def test_only_the_gradients_asked_for_are_made(activation):
    case = plain.make_case(activation=activation)
    x, w1, b1, w2, b2, gates = case.leaves(torch.float32)
    full = torch.autograd.grad(
        ops.expert_mlp(x, w1, b1, w2, b2, gates, case.indices, activation=activation).sum(), (x, b2)
    )
    frozen = [t.detach() for t in (w1, b1, w2, gates)]
    y = ops.expert_mlp(x, *frozen[:3], b2, frozen[3], case.indices, activation=activation)
    for a, b in zip(torch.autograd.grad(y.sum(), (x, b2)), full, strict=True):
        assert torch.equal(a, b)


@each_way
@pytest.mark.parametrize("keep", ["nothing", *KEEPS])
def test_opcheck(keep, activation):
    case = plain.make_case(activation=activation)
    opcheck(torch.ops.dexcore.expert_mlp.default, (*case.experts, keep, activation, "ieee", "eager", torch.float32))


@each_way
@pytest.mark.parametrize("needs", [[True] * 6, [True, False, True, False, True, False]])
def test_opcheck_of_the_backward(needs, activation):
    case = plain.make_case(activation=activation)
    _, *kept = torch.ops.dexcore.expert_mlp(*case.experts, "z", activation, "ieee", "eager", torch.float32)
    opcheck(
        torch.ops.dexcore.expert_mlp_backward.default,
        (torch.ones_like(case.x), *case.experts, *kept, needs, activation, "ieee", "eager", *[torch.float32] * 3),
    )


@each_way
def test_compiles_without_a_graph_break_and_with_its_backward(activation):
    case = plain.make_case(activation=activation)
    leaves = case.leaves(torch.float32)
    compiled = torch.compile(
        lambda *a: ops.expert_mlp(*a, activation=activation).square(), fullgraph=True, backend="aot_eager"
    )
    y = compiled(*leaves, case.indices)
    expected = ops.expert_mlp(*leaves, case.indices, activation=activation).square()
    assert torch.equal(y, expected)
    for a, b in zip(torch.autograd.grad(y.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True):
        assert torch.equal(a, b)


def test_a_second_derivative_raises():
    case = plain.make_case()
    leaves = case.leaves(torch.float64)
    y = ops.expert_mlp(*leaves, case.indices).square().sum()
    (grad,) = torch.autograd.grad(y, leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="expert_mlp_backward"):
        torch.autograd.grad(grad.sum(), leaves[0])


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("x", torch.ones(3, 5, 12, dtype=torch.int64), TypeError, "x must be floating point"),
        ("x", torch.ones(3, 12), ValueError, r"x must have shape \[B, N, D\]"),
        ("x", torch.ones(3, 5, 11), ValueError, r"w1 must have shape \[R, H, 11\]"),
        ("w1", "weight", TypeError, "w1 must be a tensor, got str"),
        ("w2", torch.ones(4, 12, 19), ValueError, r"w2 must have shape \[4, 12, 20\], got \[4, 12, 19\]"),
        ("b1", torch.ones(4, 19), ValueError, "b1 must have shape"),
        ("b2", torch.ones(3, 12), ValueError, "b2 must have shape"),
        ("gates", torch.ones(2, 2), ValueError, r"gates must have shape \[3, k\]"),
        ("indices", torch.zeros(3, 1, dtype=torch.int64), ValueError, r"indices must have shape \[3, 2\]"),
        ("indices", torch.zeros(3, 2), TypeError, "indices must be int64 or int32"),
        ("indices", torch.full((3, 2), 4), IndexError, r"indices must lie in 0\.\.3 .* got 4"),
        ("indices", torch.full((3, 2), -1), IndexError, "got -1"),
        ("w1", torch.ones(4, 20, 12, device="meta"), ValueError, "w1 is on meta, expected cpu like x"),
        ("activation", "tanh", ValueError, "activation must be one of 'gelu'"),
        ("keep", "all", ValueError, "keep must be one of 'both'"),
        ("precision", "fp8", ValueError, "precision must be one of 'ieee'"),
        ("backend", "cuda", ValueError, "backend must be one of auto"),
    ],
)
def test_bad_arguments_are_named(argument, value, error, message):
    case = plain.make_case()
    arguments = dict(zip((*NAMES, "indices"), case.experts, strict=True)) | {argument: value}
    with pytest.raises(error, match=message):
        ops.expert_mlp(**arguments)


def test_a_gated_activation_wants_two_rows_a_hidden_unit():
    case = plain.make_case(hidden=20, activation="swiglu")
    x, w1, b1, w2, b2, gates, indices = case.experts
    with pytest.raises(ValueError, match=r"w2 must have shape \[4, 12, 10\], got \[4, 12, 20\]"):
        ops.expert_mlp(x, w1[:, :20], b1[:, :20], w2, b2, gates, indices, "swiglu")
    with pytest.raises(ValueError, match="w1 must have 2 rows a hidden unit with activation='swiglu', got 39"):
        ops.expert_mlp(x, w1[:, :39], b1[:, :39], w2, b2, gates, indices, "swiglu")
