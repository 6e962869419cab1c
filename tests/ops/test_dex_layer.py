"""dex_layer is route, dex_mlp and the balance loss one after the other, in one op: to the bit in eager PyTorch."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.backends.debugging import aot_eager
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from assertions import assert_close
from dexcore import ops
from dexcore.kernels import route
from dexcore.ops import reference
from dexcore.ops.balance import balance_loss
from dexcore.ops.expert_mlp import KEEPS
from dexcore.ops.mix_align import ALIGNS
from dexcore.ops.routing import POOLS
from ops import plain
from ops.agreement import LAYER_NAMES, check_dex_layer, layer_leaves

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OUTPUTS = ("y", "align", "balance", "gates", "probs")


def composed(
    x, router_weight, w1, b1, w2, b2, dw1, db1, dw2, db2, top_k, tau, noise, pool, activation, align, **keywords
):
    gates, indices, probs = ops.route(x, router_weight, top_k, tau, noise, pool)
    experts = (x, w1, b1, w2, b2, dw1, db1, dw2, db2, gates, indices)
    y, loss = ops.dex_mlp(*experts, activation, align, **keywords)
    return y, loss, balance_loss(probs), gates, indices, probs


def all_of(function, leaves, director, *arguments, used=OUTPUTS, autocast=False, **keywords):
    """The outputs, and the leaves' gradients where those ``used`` have drawn ones; None where there is none."""
    leaves = [None if leaf is None else leaf.detach().requires_grad_(leaf.requires_grad) for leaf in leaves]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, align, balance, gates, indices, probs = function(*leaves, *director, *arguments, **keywords)
    outputs = dict(zip(OUTPUTS, (y, align, balance, gates, probs), strict=True))
    g = torch.Generator().manual_seed(1)
    drawn = {name: 3 * torch.randn(output.shape, generator=g).to(output.dtype) for name, output in outputs.items()}
    wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    grads = torch.autograd.grad(
        [outputs[name] for name in used], wanted, [drawn[name] for name in used], allow_unused=True
    )
    return [*outputs.values(), indices], grads


def assert_equal_bits(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                assert a.dtype == b.dtype
                assert torch.equal(a, b)


@settings(max_examples=40)
@given(
    case=plain.cases().filter(lambda case: case.x.numel() > 0),
    x_dtype=st.sampled_from(DTYPES),
    weight_dtype=st.sampled_from(DTYPES),
    router_dtype=st.sampled_from(DTYPES),
    pool=st.sampled_from(POOLS),
    align=st.sampled_from(ALIGNS),
    keep=st.sampled_from(KEEPS),
    used=st.sets(st.sampled_from(OUTPUTS), min_size=1).map(sorted),
    noisy=st.booleans(),
    autocast=st.booleans(),
)
def test_it_equals_its_parts_to_the_bit(
    case, x_dtype, weight_dtype, router_dtype, pool, align, keep, used, noisy, autocast
):
    leaves = layer_leaves(case, x_dtype, weight_dtype, router_dtype)
    noise = torch.randn(len(case.x), len(case.w1)) if noisy else None
    arguments = (case.gates.shape[1], 0.7, noise, pool, "gelu", align)
    found = all_of(ops.dex_layer, leaves, case.director, *arguments, keep=keep, used=used, autocast=autocast)
    expected = all_of(composed, leaves, case.director, *arguments, keep=keep, used=used, autocast=autocast)
    assert_equal_bits(found, expected)


@pytest.mark.parametrize("wanted", LAYER_NAMES)
def test_a_gradient_is_the_same_where_it_alone_is_asked_for(wanted):
    case = plain.make_case()
    leaves = layer_leaves(case, torch.float32)
    for name, leaf in zip(LAYER_NAMES, leaves, strict=True):
        leaf.requires_grad_(name == wanted)
    arguments = (2, 0.5, None, "cls", "gelu", "kd")
    used = OUTPUTS if wanted in ("x", "router_weight") else OUTPUTS[:2]
    found = all_of(ops.dex_layer, leaves, case.director, *arguments, used=used)
    assert_equal_bits(found, all_of(composed, leaves, case.director, *arguments, used=used))


@given(
    plain.cases().filter(lambda case: case.x.numel() and case.x.shape[2] > 1),
    st.sampled_from(tuple(plain.ACTIVATIONS)),
    st.sampled_from(ALIGNS),
    st.sampled_from(KEEPS),
    st.sampled_from(POOLS),
)
def test_outputs_and_all_gradients_agree_with_float64(case, activation, align, keep, pool):
    check_dex_layer(case, torch.float32, activation, align, keep, pool, backend="eager")


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("align", ALIGNS)
def test_gradcheck(align, pool):
    case = plain.make_case(tokens=2, width=3, hidden=4)
    case.dw1.zero_()  # the numeric derivative would see the target move with x
    director = [t.double() for t in case.director]

    def function(*leaves):
        y, loss, _, gates, _, probs = ops.dex_layer(*leaves, *director, 2, pool=pool, align=align)
        return y, loss, gates, probs  # the balance loss holds one factor still, which a numeric derivative does not

    assert torch.autograd.gradcheck(function, layer_leaves(case, torch.float64))


def test_losses_that_the_experts_take_no_part_in_give_them_no_gradient():
    leaves = layer_leaves(case := plain.make_case(), torch.float32)
    _, _, balance, *_ = ops.dex_layer(*leaves, *case.director, 2)
    grads = torch.autograd.grad(balance, leaves, allow_unused=True)
    assert [name for name, grad in zip(LAYER_NAMES, grads, strict=True) if grad is not None] == ["x", "router_weight"]


def test_gates_and_probs_ask_for_gradients_where_they_have_any():
    case = plain.make_case()
    for names, expected in ((LAYER_NAMES, True), (("w1", "b2"), False), (("router_weight",), True)):
        leaves = layer_leaves(case, torch.float32)
        for name, leaf in zip(LAYER_NAMES, leaves, strict=True):
            leaf.requires_grad_(name in names)
        y, align, *routed = ops.dex_layer(*leaves, *case.director, 2)
        assert y.requires_grad
        assert align.requires_grad
        assert [t.requires_grad for t in routed] == [expected, expected, False, expected]


def test_the_director_gets_no_gradient_even_when_it_asks():
    case = plain.make_case()
    director = [t.requires_grad_() for t in case.director]
    y, align, *_ = ops.dex_layer(*layer_leaves(case, torch.float32), *director, 2)
    (y.sum() + align).backward()
    assert all(t.grad is None for t in director)


def test_without_gradients_it_computes_the_same_and_keeps_nothing():
    case = plain.make_case()
    leaves = layer_leaves(case, torch.float32)
    made = ops.dex_layer(*leaves, *case.director, 2)
    with torch.no_grad():
        again = ops.dex_layer(*leaves, *case.director, 2)
    assert not any(t.requires_grad for t in again)
    assert_close(again[0], made[0].double())
    assert all(torch.equal(a, b) for a, b in zip(made[2:], again[2:], strict=True))
    kept = torch.ops.dexcore.dex_layer(*op_arguments(case, keep="nothing"))[7:]
    assert sum(t.numel() for t in kept) == 0


@pytest.mark.parametrize("pool", POOLS)
def test_no_image_is_no_error(pool):
    case = plain.make_case(batch=0)
    leaves = layer_leaves(case, torch.float32)
    y, align, balance, gates, indices, probs = ops.dex_layer(*leaves, *case.director, 2, pool=pool)
    assert y.shape == case.x.shape
    assert gates.shape == indices.shape == (0, 2)
    assert probs.shape == (0, 4)
    assert align == balance == 0
    grads = torch.autograd.grad(y.sum() + align + balance, leaves)
    assert all((grad == 0).all() and grad.shape == leaf.shape for grad, leaf in zip(grads, leaves, strict=True))


def op_arguments(case, keep="z", backend="eager", x_dtype=torch.float32, pool="cls"):
    """Of the op itself; computed in the weights' float32."""
    leaves = [t.detach() for t in layer_leaves(case, x_dtype, torch.float32, torch.float32)]
    x, router_weight, *weights = leaves
    cast_x = None if x_dtype == torch.float32 else x.float()
    noise = torch.randn(len(x), len(router_weight))
    router = (x, router_weight, noise, 2, 0.5, pool, backend)
    return (*router, cast_x, *weights, *case.director, keep, "kd", "gelu", "ieee", backend, torch.float32)


def backward_arguments(arguments, *, with_y=True, with_align=True, with_others=True):
    x, router_weight, _, _, tau, pool, router_backend, cast_x, *rest = arguments
    weights, settings = rest[:4], arguments[-4:]
    y, align, balance, gates, indices, probs, importance, feature, *kept = torch.ops.dexcore.dex_layer(*arguments)
    grads = torch.ones_like(y) if with_y else None, torch.ones_like(align) if with_align else None
    others = (torch.ones_like(t) if with_others else None for t in (balance, gates, probs))
    given = x if cast_x is None else cast_x, *weights, gates, indices
    router = router_weight, probs, importance, feature, tau, pool, router_backend
    needs = [True, *[with_y or with_align] * 4, True]
    return (*grads, *others, *given, *kept, *router, needs, *settings, x.dtype, torch.float32)


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("pool", POOLS)
def test_opcheck(backend, pool):
    case = plain.make_case()
    forward, backward = torch.ops.dexcore.dex_layer.default, torch.ops.dexcore.dex_layer_backward.default
    for keep, x_dtype in (("nothing", torch.float32), ("z", torch.float32), ("both", torch.bfloat16)):
        arguments = op_arguments(case, keep, backend, x_dtype, pool)
        opcheck(forward, arguments)
        if keep != "nothing":
            opcheck(backward, backward_arguments(arguments))
    for without in ({"with_y"}, {"with_align"}, {"with_y", "with_align"}, {"with_others"}):
        opcheck(backward, backward_arguments(arguments, **dict.fromkeys(without, False)))


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_compiles_without_a_graph_break_and_with_its_backward(backend, autocast):
    case = plain.make_case()
    leaves = layer_leaves(case, torch.float32)

    def step(*leaves):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, align, balance, gates, _, probs = ops.dex_layer(*leaves, *case.director, 2, backend=backend)
        return y.float().square().sum() + align + balance + gates[:, 0].sum() + probs.square().sum()

    expected = torch.autograd.grad(step(*leaves), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_compiled_once_it_takes_batches_of_any_size(backend):
    case, compilations = plain.make_case(), []
    x, *weights = layer_leaves(case, torch.float32)

    def step(x, *weights):
        y, align, balance, *_ = ops.dex_layer(x, *weights, *case.director, 2, backend=backend)
        return y.square().sum() + align + balance

    def backend_of_torch(graph, inputs):
        compilations.append(graph)
        return aot_eager(graph, inputs)

    compiled = torch.compile(step, fullgraph=True, backend=backend_of_torch)
    for images in (len(x), len(x) + 2):
        batch = torch.randn(images, *x.shape[1:], requires_grad=True)
        torch._dynamo.mark_dynamic(batch, 0)
        expected = torch.autograd.grad(step(batch, *weights), [batch, *weights])
        for a, b in zip(torch.autograd.grad(compiled(batch, *weights), [batch, *weights]), expected, strict=True):
            assert_close(a, b)
    assert len(compilations) == 1


@pytest.mark.parametrize("backend", ["eager", "triton"])
@pytest.mark.parametrize("function", [ops.dex_layer, composed])
def test_a_loss_that_nobody_uses_adds_nothing_not_even_of_a_director_that_overflows(function, backend):
    case = plain.make_case()
    leaves = layer_leaves(case, torch.float32)

    def gradients(director):
        y, *_ = function(*leaves, *director, 2, 0.5, None, "cls", "gelu", "mse", backend=backend)
        return torch.autograd.grad(y.square().sum(), leaves)

    dw1, db1, dw2, db2 = case.director
    overflowing = (dw1, db1, torch.full_like(dw2, torch.inf), db2)
    for a, b in zip(gradients(overflowing), gradients(case.director), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_exports(backend):
    case = plain.make_case()
    _, router_weight, *weights = [t.detach() for t in layer_leaves(case, torch.float32)]

    class Layer(torch.nn.Module):
        def forward(self, x):
            return ops.dex_layer(x, router_weight, *weights, *case.director, 2, backend=backend)

    with torch.no_grad():
        program = torch.export.export(Layer(), (case.x,))
        for a, b in zip(program.module()(case.x), Layer()(case.x), strict=True):
            assert torch.equal(a, b)


def test_activation_checkpointing_gives_the_same_gradients():
    case = plain.make_case()
    leaves = layer_leaves(case, torch.float32)

    def layer(*leaves):
        y, align, balance, *_ = ops.dex_layer(*leaves, *case.director, 2)
        return y.square().sum() + align + balance

    expected = torch.autograd.grad(layer(*leaves), leaves)
    found = torch.autograd.grad(checkpoint(layer, *leaves, use_reentrant=False), leaves)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_it_is_differentiable_once():
    case = plain.make_case()
    leaves = layer_leaves(case, torch.float32)
    y, *_ = ops.dex_layer(*leaves, *case.director, 2)
    (grad,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiable once only"):
        grad.sum().backward()


def test_torch_func_is_refused_by_name():
    case = plain.make_case()
    x, *others = (t.detach() for t in layer_leaves(case, torch.float32))
    with pytest.raises(NotImplementedError, match=r"dexcore\.ops\.dex_layer supports neither forward-mode"):
        torch.func.grad(lambda x: ops.dex_layer(x, *others, *case.director, 2)[0].sum())(x)


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("router_weight", torch.ones(4, 11), ValueError, r"router_weight must have shape \[R, 12\]"),
        ("router_weight", torch.ones(5, 12), ValueError, "w1 holds 4 experts, router_weight chooses among 5"),
        ("top_k", 5, ValueError, r"top_k must lie in 1\.\.4"),
        ("tau", 0.0, ValueError, "tau must be finite and > 0"),
        ("noise", torch.zeros(3, 5), ValueError, r"noise must have shape \[3, 4\]"),
        ("pool", "max", ValueError, "pool must be one of"),
        ("w2", torch.ones(4, 12, 19), ValueError, "w2 must have shape"),
        ("b1", torch.ones(4, 20, dtype=torch.int32), TypeError, "b1 must be floating point"),
        ("dw1", torch.ones(19, 12), ValueError, r"dw1 must have shape \[20, 12\]"),
        ("db2", torch.ones(12, device="meta"), ValueError, "db2 is on meta"),
        ("align", "l2", ValueError, "align must be one of 'kd'"),
        ("keep", "all", ValueError, "keep must be one of"),
        ("backend", "cuda", ValueError, "backend must be one of"),
    ],
)
def test_bad_arguments_are_named(argument, value, error, message):
    case = plain.make_case()
    names = (*LAYER_NAMES, "dw1", "db1", "dw2", "db2")
    good = dict(zip(names, (*layer_leaves(case, torch.float32), *case.director), strict=True))
    with pytest.raises(error, match=message):
        ops.dex_layer(**(good | {"top_k": 2} | {argument: value}))


def test_the_balance_loss_is_the_methods():
    case = plain.make_case(batch=7)
    x, router_weight, *rest = layer_leaves(case, torch.float64)
    _, _, balance, *_ = ops.dex_layer(x, router_weight, *rest, *case.director, 2)
    assert_close(balance, reference.balance_loss(reference.route(x, router_weight, 2)[2]))


def test_routing_has_the_backend_that_route_has_whatever_the_experts(monkeypatch):
    """In float32 a GPU's experts are eager, its routing is not: evaluation, by `route`, chooses as training does."""
    module = sys.modules["dexcore.ops.dex_layer"]
    monkeypatch.setattr(
        module, "resolve", lambda backend, device, dtype, precision=None: "eager" if precision else "triton"
    )
    case = plain.make_case()
    leaves = layer_leaves(case, torch.float32)
    seen, route_forward = [], route.route_forward
    monkeypatch.setattr(route, "route_forward", lambda *arguments: seen.append(1) or route_forward(*arguments))
    mixed = ops.dex_layer(*leaves, *case.director, 2)
    assert seen
    gates, indices, probs = ops.route(leaves[0], leaves[1], 2, backend="triton")
    for found, expected in zip(mixed[3:], (gates, indices, probs), strict=True):
        assert torch.equal(found, expected)
    y, align, balance, *_ = mixed
    grads = torch.autograd.grad(y.square().sum() + align + balance, leaves)
    monkeypatch.undo()
    y, align, balance, *_ = ops.dex_layer(*leaves, *case.director, 2, backend="eager")
    for found, expected in zip(grads, torch.autograd.grad(y.square().sum() + align + balance, leaves), strict=True):
        assert_close(found, expected, bound=1e-5)


@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_an_x_that_is_not_contiguous_gives_the_same(backend):
    case = plain.make_case()
    leaves = layer_leaves(case, torch.float32)
    x = leaves[0].detach().transpose(1, 2).contiguous().transpose(1, 2)
    assert not x.is_contiguous()
    for found, expected in zip(
        ops.dex_layer(x, *leaves[1:], *case.director, 2, backend=backend),
        ops.dex_layer(*leaves, *case.director, 2, backend=backend),
        strict=True,
    ):
        assert torch.equal(found, expected)
