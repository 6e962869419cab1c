"""The Triton backend on a GPU: real shapes, every dtype and precision, no host sync. `pytest -m gpu`, on its own."""

import subprocess
import sys

import pytest
import torch

from dexcore import ops
from dexcore.nn import DEXMlp, update_directors
from dexcore.ops.activation import ACTIVATIONS
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
