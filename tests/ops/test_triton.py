"""The Triton backend of every op, under the interpreter: agreement with float64, and what PyTorch asks of an op."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from assertions import assert_close
from dexcore import ops
from dexcore.ops import experts_triton, reference
from dexcore.ops.expert_mlp import KEEPS
from dexcore.ops.experts_triton import check_sizes
from dexcore.ops.mix_align import ALIGNS
from dexcore.ops.routing import POOLS
from ops import plain
from ops.agreement import check_dex_layer, check_dex_mlp, check_group_ema, check_route, layer_leaves

HALVES = (torch.float16, torch.bfloat16)
# The interpreter takes about a second a case; the kernels have their own drawn cases in tests/kernels.
few = settings(max_examples=8)


def run(case, dtype=torch.float32, keep="z"):
    """y, loss and the gradients by Triton."""
    leaves = case.leaves(dtype)
    director = [None if t is None else t.to(dtype) for t in case.director]
    y, loss = ops.dex_mlp(*leaves[:5], *director, leaves[5], case.indices, keep=keep, backend="triton")
    wanted = [leaf for leaf in leaves if leaf is not None]
    return y, loss, *torch.autograd.grad(y.float().square().mean() + loss, wanted)


@few
@given(plain.cases_and_activations(), st.sampled_from(ALIGNS), st.sampled_from(KEEPS))
def test_output_loss_and_all_gradients_agree_with_float64(case_and_activation, align, keep):
    case, activation = case_and_activation
    if not case.x.numel():
        return
    check_dex_mlp(case, torch.float32, activation, align, keep)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("keep", ["z", "none"])
def test_half_precision_is_as_good_as_plain_pytorch(dtype, keep):
    check_dex_mlp(plain.make_case(batch=4, tokens=9, width=64, hidden=96), dtype, keep=keep)


def test_bf16_with_all_kept_is_as_good_as_plain_pytorch():
    check_dex_mlp(plain.make_case(batch=4, tokens=9, width=48, hidden=64, bias=False), torch.bfloat16, "silu", "cosine")


@pytest.mark.parametrize("images", [0, 1])
def test_few_images(images):
    case = plain.make_case(batch=images)
    y, loss, *grads = run(case)
    if images:
        check_dex_mlp(case)
    else:
        assert y.shape == (0, 5, 12)
        assert loss == 0
        assert all((grad == 0).all() for grad in grads[1:5])


def test_all_images_on_one_expert():
    case = plain.make_case(batch=5, top_k=1)
    case.indices.fill_(2)
    check_dex_mlp(case)


def test_the_same_expert_twice_counts_twice():
    case = plain.make_case()
    case.indices[:, 1] = case.indices[:, 0]
    check_dex_mlp(case)


def test_a_gate_of_zero_has_the_right_gradient():
    case = plain.make_case()
    case.gates[:, 1] = 0
    check_dex_mlp(case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_twice_the_same_bits(dtype):
    case = plain.make_case(batch=4, tokens=9, width=32, hidden=48)
    for a, b in zip(run(case, dtype), run(case, dtype), strict=True):
        assert torch.equal(a, b)


def test_an_image_of_inf_stays_alone():
    case = plain.make_case(batch=4, tokens=9, top_k=2)
    clean = [None if t is None else t.detach() for t in run(case)]
    case.x[1] = torch.inf
    y, _, grad_x, *_ = run(case)
    others = [0, 2, 3]
    assert torch.equal(y[others], clean[0][others])
    assert not y[1].isfinite().all()
    assert grad_x[others].isfinite().all()


def test_gradients_of_stride_zero_and_transposed_inputs():
    case = plain.make_case(batch=3, tokens=6, width=20, hidden=24)
    x = case.x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    w1 = case.w1.transpose(1, 2).contiguous().transpose(1, 2)
    grads = []
    for inputs in ((x, w1), (x.detach().contiguous().requires_grad_(), case.w1)):
        y = ops.expert_mlp(*inputs, *case.experts[2:], backend="triton")
        grads.append(torch.autograd.grad(y.sum(), inputs[0])[0])
    assert torch.equal(*grads)


def test_only_what_is_asked_for_is_computed_and_is_the_same():
    case = plain.make_case()
    leaves = case.leaves(torch.float32)
    full = torch.autograd.grad(ops.expert_mlp(*leaves, case.indices, backend="triton").sum(), leaves)
    for i in range(6):
        alone = [leaf.detach().requires_grad_(j == i) for j, leaf in enumerate(leaves)]
        (grad,) = torch.autograd.grad(ops.expert_mlp(*alone, case.indices, backend="triton").sum(), alone[i])
        assert torch.equal(grad, full[i])


def test_autocast_computes_in_bf16_and_returns_float32_gradients():
    case = plain.make_case(batch=4, tokens=9, width=32, hidden=48)
    leaves = case.leaves(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, loss = ops.dex_mlp(*leaves[:5], *case.director, leaves[5], case.indices, backend="triton")
    assert (y.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    y64, _ = reference.dex_mlp(*leaves[:5], *case.director, leaves[5], case.indices)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_plain = plain.expert_mlp(*[t.bfloat16() for t in leaves[:5]], leaves[5], case.indices)
    assert_close(y, y64, plain=y_plain)
    assert all(grad.dtype == torch.float32 for grad in torch.autograd.grad(y.float().sum() + loss, leaves))


def test_float16_refuses_to_keep_gate_times_activation():
    case = plain.make_case()
    with pytest.raises(ValueError, match=r"keep='both' stores gate times activation.*use keep='z'"):
        run(case, torch.float16, keep="both")


def test_a_backward_gives_memory_back_before_it_takes_more(monkeypatch):
    alive = {}

    def watch(name, *made):
        """A launcher that notes which large tensors are alive at its call, and watches those that it makes."""
        launcher = getattr(experts_triton, name)

        def call(*arguments, **keywords):
            order.append((name, {tensor for tensor, reference in alive.items() if reference() is not None}))
            results = launcher(*arguments, **keywords)
            for tensor, result in zip(made, results if isinstance(results, tuple) else (results,), strict=False):
                alive[tensor] = weakref.ref(result)
            return results

        monkeypatch.setattr(experts_triton, name, call)

    case, order = plain.make_case(), []
    leaves = case.leaves(torch.float32)
    y = ops.expert_mlp(*leaves, case.indices, keep="none", backend="triton")
    watch("expert_up", "z")
    watch("expert_dact", "dz", "w a")
    watch("expert_dx", "dx")
    watch("expert_wgrad")
    torch.autograd.grad(y.sum(), leaves)
    assert order == [
        ("expert_up", set()),
        ("expert_dact", {"z"}),
        ("expert_dx", {"dz", "w a"}),  # these two may run side by side
        ("expert_wgrad", {"dz", "w a", "dx"}),
    ]


@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_index_out_of_range_is_an_error(wrong):
    case = plain.make_case(experts=4)
    case.indices[2, 1] = wrong
    with pytest.raises(IndexError, match=r"indices must lie in 0\.\.3"):
        ops.expert_mlp(*case.experts, backend="triton")


def test_more_rows_than_32_bits_can_number_are_refused_and_fewer_are_not():
    check_sizes(2**31 // 65, 65, 3072, 768)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*31 rows"):
        check_sizes(2**31 // 65 + 1, 65, 3072, 768)
    with pytest.raises(ValueError, match="weights of one expert's layer"):
        check_sizes(2, 65, 2**16, 2**15)


def test_views_that_start_between_16_byte_boundaries_are_right():
    case = plain.make_case(batch=3, tokens=6, width=16, hidden=32)
    shifted = torch.empty(case.x.numel() + 1)[1:].view(case.x.shape).copy_(case.x)
    assert shifted.data_ptr() % 16 != 0
    expected = ops.expert_mlp(*case.experts, backend="triton")
    assert torch.equal(ops.expert_mlp(shifted, *case.experts[1:], backend="triton"), expected)


@few
@given(plain.cases_and_activations(), st.sampled_from(ALIGNS), st.sampled_from(KEEPS), st.sampled_from(POOLS))
def test_a_layers_outputs_and_gradients_agree_with_float64(case_and_activation, align, keep, pool):
    case, activation = case_and_activation
    if not case.x.numel():
        return
    check_dex_layer(case, torch.float32, activation, align, keep, pool)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("pool", POOLS)
def test_a_layer_in_half_precision_is_as_good_as_plain_pytorch(dtype, pool):
    check_dex_layer(plain.make_case(batch=4, tokens=9, width=64, hidden=96), dtype, keep="z", pool=pool)


def test_a_layer_of_more_images_than_a_block_of_the_router():
    check_dex_layer(plain.make_case(batch=70, tokens=2, width=40, hidden=16, experts=9, top_k=3))


def test_a_layer_twice_has_the_same_bits():
    case = plain.make_case(batch=4, tokens=9, width=32, hidden=48)
    made = []
    for _ in range(2):
        leaves = layer_leaves(case, torch.float32)
        outputs = ops.dex_layer(*leaves, *case.director, 2, backend="triton")
        made.append([*outputs, *torch.autograd.grad(sum(t.sum() for t in outputs if t.requires_grad), leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("pool", POOLS)
def test_a_layer_without_images_trains_nothing(pool):
    leaves = layer_leaves(case := plain.make_case(batch=0), torch.float32)
    y, align, balance, *_ = ops.dex_layer(*leaves, *case.director, 2, pool=pool, backend="triton")
    assert align == balance == 0
    grads = torch.autograd.grad(y.sum() + align + balance, leaves)
    assert all((grad == 0).all() and grad.shape == leaf.shape for grad, leaf in zip(grads, leaves, strict=True))


def test_a_layers_gradients_are_the_same_whichever_are_asked_for():
    case = plain.make_case()
    leaves = layer_leaves(case, torch.float32)

    def grads(asked):
        given = [leaf.detach().requires_grad_(i in asked) for i, leaf in enumerate(leaves)]
        y, align, balance, *_ = ops.dex_layer(*given, *case.director, 2, backend="triton")
        return torch.autograd.grad(y.square().sum() + align + balance, [given[i] for i in asked])

    full = grads(range(6))
    for i in range(6):
        assert torch.equal(*grads([i]), full[i])
    for used in (2, 3, 5):  # balance loss, gates, probs: the experts take no part
        outputs = [ops.dex_layer(*leaves, *case.director, 2, backend=name)[used] for name in ("triton", "eager")]
        found, want = (torch.autograd.grad(t.square().sum(), [leaves[0], leaves[1]]) for t in outputs)
        for a, b in zip(found, want, strict=True):
            assert_close(a, b.double(), bound=1e-3)  # of float32 both


@few
@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 9),
    st.sampled_from(("cls", "mean")),
    st.data(),
)
def test_routing_agrees_with_float64(batch, tokens, width, experts, pool, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x, weight = (torch.randn(s, generator=generator) for s in ((batch, tokens, width), (experts, width)))
    noise = torch.randn(batch, experts, generator=generator) if data.draw(st.booleans()) else None
    check_route(x, weight, data.draw(st.integers(1, min(experts, 4))), noise, pool)


def test_ties_go_to_the_lower_index():
    gates, indices, _ = ops.route(torch.zeros(3, 2, 8), torch.randn(6, 8), 3, backend="triton")
    assert torch.equal(indices, torch.tensor([[0, 1, 2]] * 3))
    assert_close(gates, torch.full((3, 3), 1 / 3))


@pytest.mark.parametrize("kind", ALIGNS)
def test_mix_align_agrees_with_float64(kind):
    student, teacher = torch.randn(2, 3, 5, 40)
    results = []
    for function, dtype, keywords in (
        (ops.mix_align, torch.float32, {"backend": "triton"}),
        (reference.mix_align, torch.float64, {}),
    ):
        leaf = student.to(dtype).requires_grad_()
        loss = function(leaf, teacher.to(dtype), kind, **keywords)
        results.append((loss, *torch.autograd.grad(3 * loss, leaf)))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_group_ema_agrees_with_float64(dtype):
    shapes = [(17, 33), (5,), (40, 130), (1,)]
    check_group_ema(shapes, [[0.5, 0.0, 0.25, 0.25], [1.0, 0.0], [0.0, 0.0, 0.0], [0.3, 0.7]], dtype=dtype)


@pytest.mark.parametrize("keep", ["nothing", "z"])
def test_opcheck_of_forward_and_backward(keep):
    case = plain.make_case()
    x = case.x
    settings = ("gelu", "ieee", "triton", torch.float32)
    namespace = torch.ops.dexcore
    opcheck(namespace.expert_mlp.default, (*case.experts, keep, *settings))
    opcheck(namespace.dex_mlp.default, (*case.experts, *case.director, keep, "kd", *settings))
    if keep == "z":
        y, loss, *kept = namespace.dex_mlp(*case.experts, *case.director, keep, "kd", *settings)
        tail = ([True] * 6, *settings, torch.float32, torch.float32)
        opcheck(namespace.expert_mlp_backward.default, (torch.ones_like(x), *case.experts, *kept[:-1], *tail))
        grads = (torch.ones_like(y), torch.ones_like(loss))
        opcheck(namespace.dex_mlp_backward.default, (*grads, *case.experts, *kept, *tail))


def test_opcheck_of_the_other_ops():
    x, weight = torch.randn(3, 4, 8), torch.randn(5, 8)
    namespace = torch.ops.dexcore
    opcheck(namespace.route.default, (x, weight, torch.randn(3, 5), 2, 0.5, "cls", "triton"))
    gates, indices, probs = ops.route(x, weight, 2)
    grads = (torch.randn(3, 2), torch.randn(3, 5))
    opcheck(namespace.route_backward.default, (*grads, x, weight, gates, indices, probs, 0.5, "mean", "triton"))
    opcheck(namespace.mix_align.default, (x, torch.randn(3, 4, 8), "cosine", True, "triton"))
    opcheck(namespace.mix_align_backward.default, (torch.ones(()), x, "triton"))
    experts = [torch.randn(2, 4, 8)]
    opcheck(namespace.group_ema_.default, ([x[0].clone()], experts, [torch.tensor([0.5, 0.5])], 0.9, "triton"))


def test_compiles_without_a_graph_break_and_with_its_backward():
    case = plain.make_case()
    leaves = case.leaves(torch.float32)

    def step(*leaves):
        y, loss = ops.dex_mlp(*leaves[:5], *case.director, leaves[5], case.indices, backend="triton")
        return y.square().sum() + loss

    expected = torch.autograd.grad(step(*leaves), leaves)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves), leaves), expected, strict=True):
        assert_close(a, b)


def test_exports():
    case = plain.make_case()

    class Layer(torch.nn.Module):
        def forward(self, x, gates, indices):
            return ops.expert_mlp(x, *case.experts[1:5], gates, indices, backend="triton")

    program = torch.export.export(Layer(), (case.x, case.gates, case.indices))
    assert torch.equal(
        program.module()(case.x, case.gates, case.indices), ops.expert_mlp(*case.experts, backend="triton")
    )


def test_activation_checkpointing_gives_the_same_gradients():
    case = plain.make_case()
    leaves = case.leaves(torch.float32)

    def layer(*leaves):
        return ops.expert_mlp(*leaves, case.indices, backend="triton")

    expected = torch.autograd.grad(layer(*leaves).square().sum(), leaves)
    y = checkpoint(layer, *leaves, use_reentrant=False)
    for a, b in zip(torch.autograd.grad(y.square().sum(), leaves), expected, strict=True):
        assert torch.equal(a, b)


def test_gradcheck_in_float32_along_drawn_directions():
    case = plain.make_case(tokens=3, width=8, hidden=12)
    leaves = case.leaves(torch.float32)

    def loss(*leaves):
        return ops.expert_mlp(*leaves, case.indices, backend="triton").double().square().mean()

    grads = torch.autograd.grad(loss(*leaves), leaves)
    with torch.no_grad():
        for leaf, grad in zip(leaves, grads, strict=True):
            direction = torch.randn_like(leaf)
            moved = [[t + s * 2e-3 * direction if t is leaf else t for t in leaves] for s in (1, -1)]
            slope = (loss(*moved[0]) - loss(*moved[1])) / 4e-3
            assert_close((grad * direction).sum(), slope, bound=2e-2)


def test_what_gema_wrote_is_seen_by_autograd():
    director = torch.ones(2, 3)
    x = torch.ones(4, 2, requires_grad=True)
    y = (x @ director).sum()
    ops.group_ema_([director], [torch.zeros(2, 2, 3)], [torch.tensor([0.5, 0.5])], 0.0, backend="triton")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_experts_cut_into_parts_agree_with_float64():
    check_dex_mlp(plain.make_case(batch=60, tokens=9, width=8, hidden=16, experts=2, top_k=1))
