"""The Triton backend on a GPU: real shapes, every dtype and precision, no host sync. `pytest -m gpu`, on its own."""

import subprocess
import sys

import pytest
import torch

from dexcore import ops
from dexcore.kernels.cast import cast_all
from dexcore.kernels.group_ema import group_ema
from dexcore.nn import DEXMlp, update_directors
from dexcore.ops.activation import ACTIVATIONS
from dexcore.ops.copies import half_copies
from dexcore.ops.mix_align import ALIGNS
from ops import plain
from ops.agreement import check_dex_mlp, check_group_ema, check_route

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device"),
]


def case(batch=16, tokens=65, width=384, hidden=1536, experts=8, **keywords):
    return plain.make_case(batch, tokens, width, hidden, experts, **keywords).to("cuda")


@pytest.mark.parametrize(
    ("dtype", "keep"),
    [(torch.float32, "both"), (torch.float16, "z"), (torch.bfloat16, "both"), (torch.bfloat16, "none")],
)
@pytest.mark.parametrize("align", ALIGNS)
def test_agrees_with_float64(dtype, keep, align):
    check_dex_mlp(case(), dtype, "gelu", align, keep)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 7, 30, 50), (5, 17, 192, 768), (64, 65, 768, 3072)])
def test_widths_that_fit_no_tile(shape):
    check_dex_mlp(case(*shape, experts=5), torch.bfloat16)


@pytest.mark.parametrize(("precision", "bound"), [("ieee", 2e-6), ("tf32x3", 2e-5), ("tf32", 5e-3)])
def test_the_precisions_of_float32_differ_as_they_should(precision, bound):
    given = case()
    y = ops.expert_mlp(*given.experts, precision=precision, backend="triton")
    truth = ops.expert_mlp(*(t.double() if t.is_floating_point() else t for t in given.experts), backend="eager")
    assert (y - truth).norm() / truth.norm() < bound


def test_twice_the_same_bits():
    layer = DEXMlp(384, 1536, device="cuda", backend="triton").train()
    x = torch.randn(16, 65, 384, device="cuda", requires_grad=True)
    runs = []
    for _ in range(2):
        y = layer(x)
        runs.append(
            [y, *torch.autograd.grad(y.square().sum() + layer.routing.align_loss, [x, *layer.experts.parameters()])]
        )
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_step_never_waits_for_the_device():
    layer = DEXMlp(384, 1536, device="cuda", backend="triton").train()
    x = torch.randn(16, 65, 384, device="cuda", requires_grad=True)

    def step():
        y = layer(x)
        (y.square().mean() + layer.routing.align_loss + layer.routing.balance_loss).backward()
        update_directors(layer, 0.99)

    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (8, 1), (8, 3), (8, 4), (64, 2)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pools_of_every_size_and_every_activation(experts, top_k, activation):
    check_dex_mlp(case(batch=12, tokens=17, width=192, hidden=768, experts=experts, top_k=top_k), activation=activation)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_routing_agrees_with_float64(pool):
    x, weight, noise = (torch.randn(s, device="cuda") for s in ((224, 65, 768), (8, 768), (224, 8)))
    # Scaled, else the softmax saturates: float32's probabilities underflow, and what ties there does not in float64.
    check_route(x, weight * 768**-0.5, 2, noise, pool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gema_agrees_with_float64(dtype):
    weights = [0.5, 0.0, 0.25, 0.25]
    check_group_ema([(3072, 768), (3072,), (17, 33)], [weights] * 3, dtype=dtype, device="cuda")


def test_a_captured_gema_needs_a_call_before_and_outlives_those_of_other_models():
    def tensors():
        return [torch.zeros(40, device="cuda")], [torch.ones(2, 40, device="cuda")], [torch.full((2,), 0.5).cuda()]

    first, second, graph = tensors(), tensors(), torch.cuda.CUDAGraph()
    ops.group_ema_(*first, 0.5)
    with torch.cuda.graph(graph):
        ops.group_ema_(*first, 0.5)
    others = [tensors() for _ in range(12)]
    for other in others:
        ops.group_ema_(*other, 0.5)
    graph.replay()
    torch.testing.assert_close(first[0][0], torch.full((40,), 0.75, device="cuda"))
    with pytest.raises(RuntimeError, match="before the capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        ops.group_ema_(*second, 0.5)


HARD = (1 + 2**-9 + 2**-10, 1 + 2**-8, 1 + 3 * 2**-8, 2**-133, 1.4e-45, 2**-25 * 1.001, 65519.0, 65520.0, 3.4e38)


def equal(copy, tensor):
    expected = tensor.detach().to(copy.dtype)
    return torch.equal(copy.isnan(), expected.isnan()) and torch.equal(copy.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("first", [0, 1])
def test_casts_round_as_torch_and_write_nothing_beside_their_copies(dtype, first):
    lengths = [4096, 10001, 20, 3]
    sources = [torch.randn(first + length, device="cuda")[first:] for length in lengths]
    for source in sources:
        hard = torch.tensor([*HARD, float("nan"), -float("inf")], device="cuda")[: len(source)]
        source[: len(hard)] = hard
    whole = torch.full((sum(lengths) + 64 * len(lengths),), 7.0, device="cuda", dtype=dtype)
    parts = whole.split([length + 64 for length in lengths])
    copies = [part[first : first + length] for part, length in zip(parts, lengths, strict=True)]
    cast_all(sources, copies)
    for part, copy, source in zip(parts, copies, sources, strict=True):
        assert equal(copy, source)
        assert (part[:first] == 7).all()
        assert (part[first + len(source) :] == 7).all()


@pytest.mark.parametrize(("length", "stride"), [(20, 32), (36, 48), (64, 80), (64, 66), (100, 120)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gema_writes_nothing_beside_directors_and_copies(length, stride, dtype):
    director = torch.zeros(length + 64, device="cuda", dtype=dtype)
    copies = torch.full((4 * length + 64,), 7.0, device="cuda", dtype=torch.bfloat16)
    experts = torch.randn(3, stride, device="cuda", dtype=dtype)[:, :length]
    experts[1, 0] = float("nan")
    weights = torch.tensor([0.5, 0.0, 0.5], device="cuda")
    of_director, of_experts = copies[:length], copies[length : 4 * length].view(3, length)
    group_ema([director[:length]], [experts], [weights], 0.5, [of_director], [of_experts])
    assert (director[:length] != 0).all()
    assert (director[length:] == 0).all()
    assert equal(of_director, director[:length])
    assert equal(of_experts, experts)
    assert (copies[4 * length :] == 7).all()


def test_copies_are_kept_written_by_gema_and_cast_anew_by_graphs_and_other_streams():
    director = torch.nn.Parameter(torch.randn(3072, 768, device="cuda"), requires_grad=False)
    experts = torch.nn.Parameter(torch.randn(8, 3072, 768, device="cuda"))
    both, weights = [experts, director], [torch.full((8,), 0.125, device="cuda")]

    found = half_copies(both, torch.bfloat16)
    for waiting in ("default", "error"):  # the first call copies its table to the device
        with torch.no_grad():
            experts.add_(1)
        torch.cuda.set_sync_debug_mode(waiting)
        ops.group_ema_([director], [experts], weights, 0.9)
        again = half_copies(both, torch.bfloat16)
        torch.cuda.set_sync_debug_mode("default")
        assert all(a is b for a, b in zip(found, again, strict=True))
        assert all(equal(copy, tensor) for copy, tensor in zip(again, both, strict=True))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        others = half_copies(both, torch.bfloat16)
    torch.cuda.current_stream().wait_stream(stream)
    assert not any(a is b for a, b in zip(found, others, strict=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = half_copies(both, torch.bfloat16)
        experts.data.add_(1)
        ops.group_ema_([director], [experts], weights, 0.9)
    for _ in range(2):
        before = [tensor.detach().clone() for tensor in both]
        graph.replay()
        assert all(equal(copy, tensor) for copy, tensor in zip(captured, before, strict=True))
        assert all(equal(copy, tensor) for copy, tensor in zip(half_copies(both, torch.bfloat16), both, strict=True))


def test_no_images_give_gradients_of_zero():
    given = case(batch=0)
    leaves = given.leaves(torch.bfloat16)
    y, loss = ops.dex_mlp(*leaves[:5], *(t.bfloat16() for t in given.director), leaves[5], given.indices)
    grads = torch.autograd.grad(y.float().sum() + loss, leaves[1:5])
    assert y.shape == (0, 65, 384)
    assert all((grad == 0).all() for grad in grads)


def test_a_compiled_layer_under_autocast_is_the_layer():
    layer = DEXMlp(384, 1536, device="cuda").train()
    x = torch.randn(16, 65, 384, device="cuda", requires_grad=True)
    results = []
    for forward in (layer, torch.compile(layer)):
        with torch.autocast("cuda", torch.bfloat16):
            y = forward(x)
        results.append([y, *torch.autograd.grad(y.float().square().mean(), [x, layer.experts.fc1.weight])])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 1e-2 * a.norm()


def test_another_stream_computes_the_same():
    given = case()
    expected = ops.expert_mlp(*given.experts, backend="triton")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = ops.expert_mlp(*given.experts, backend="triton")
    stream.synchronize()
    assert torch.equal(y, expected)


def test_an_index_out_of_range_stops_the_program():
    code = (
        "import torch; from dexcore import ops\n"
        "w = torch.randn(4, 32, 16, device='cuda')\n"
        "ops.expert_mlp(torch.randn(2, 3, 16, device='cuda'), w, None, w.transpose(1, 2), None,\n"
        "               torch.ones(2, 1, device='cuda'), torch.tensor([[0], [4]], device='cuda'),\n"
        "               backend='triton')\n"
        "torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "assert" in done.stderr


def test_auto_takes_triton_on_a_gpu():
    from dexcore.ops.backend import resolve

    assert resolve("auto", torch.device("cuda", 0), torch.bfloat16) == "triton"
    assert resolve("auto", torch.device("cuda", 0), torch.float64) == "eager"


def test_a_layer_in_float32_is_eager_by_itself_and_says_so():
    layer = DEXMlp(32, 64, device="cuda")
    layer(torch.randn(2, 3, 32, device="cuda"))
    assert layer.chosen_backend.backend == ("triton" if torch.version.hip else "eager")
