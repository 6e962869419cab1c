"""The Triton backend on a GPU: real shapes, every dtype and precision, no host sync. `pytest -m gpu`, on its own."""

import pytest
import torch

from dexcore import ops
from dexcore.nn import DEXMlp, update_directors
from dexcore.ops.mix_align import ALIGNS
from ops import plain
from ops.agreement import check_dex_mlp

pytestmark = pytest.mark.gpu


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
    layer = DEXMlp(384, 1536, device="cuda").train()
    x = torch.randn(16, 65, 384, device="cuda", requires_grad=True)
    runs = []
    for _ in range(2):
        y = layer(x)
        runs.append(
            [y, *torch.autograd.grad(y.square().sum() + layer.routing.align_loss, [x, *layer.experts.parameters()])]
        )
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_a_step_never_waits_for_the_device():
    layer = DEXMlp(384, 1536, device="cuda").train()
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


def test_auto_takes_triton_on_a_gpu():
    from dexcore.ops.backend import resolve

    assert resolve("auto", torch.device("cuda", 0), torch.bfloat16) == "triton"
    assert resolve("auto", torch.device("cuda", 0), torch.float64) == "eager"
