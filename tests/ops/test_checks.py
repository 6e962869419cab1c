"""Derivatives and traces that the ops do not have raise a named error."""

import pytest
import torch
from torch.autograd import forward_ad

from dexcore import ops
from ops import plain

CASE = plain.make_case()
OPS = {
    "route": lambda x: ops.route(x, torch.ones(3, 12), 2)[0],
    "expert_mlp": lambda x: ops.expert_mlp(x, *CASE.experts[1:]),
    "mix_align": lambda x: ops.mix_align(x, CASE.x),
    "dex_mlp": lambda x: ops.dex_mlp(x, *CASE.experts[1:5], *CASE.director, *CASE.experts[5:])[0],
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_forward_mode_and_transforms_raise(name, requires_grad):
    x, tangent = CASE.x.clone().requires_grad_(requires_grad), torch.ones_like(CASE.x)
    message = f"dexcore.ops.{name} supports neither"
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(OPS[name], (x,), (tangent,))
    with pytest.raises(NotImplementedError, match=message):
        torch.func.grad(lambda x: OPS[name](x).sum())(x)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=message):
        OPS[name](forward_ad.make_dual(x.detach(), tangent))


@pytest.mark.parametrize("name", OPS)
def test_vmap_without_gradient_maps(name):
    stacked = torch.stack([CASE.x, 2 * CASE.x])
    mapped = torch.func.vmap(OPS[name])(stacked)
    with pytest.raises(NotImplementedError, match=f"dexcore.ops.{name} supports neither"):
        torch.func.vmap(OPS[name])(stacked.requires_grad_())
    assert torch.allclose(mapped, torch.stack([OPS[name](x) for x in stacked]))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_torchscripts_tracer_is_refused_with_gradients_and_taken_without(name):
    x = CASE.x.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=rf"^torch\.jit\.trace .*dexcore\.ops\.{name}.*torch\.no_grad"):
        torch.jit.trace(OPS[name], x)
    with torch.no_grad():
        assert torch.equal(torch.jit.trace(OPS[name], x)(2 * x), OPS[name](2 * x))
