"""What an op must satisfy, for any backend: agreement with float64, as good as plain PyTorch."""

import torch
import torch.nn.functional as F

from assertions import assert_close
from dexcore import ops
from dexcore.ops import reference
from ops import plain

NAMES = ("x", "w1", "b1", "w2", "b2", "gates")


def rounded64(leaves):
    """The leaves' values in float64, asking for gradients."""
    return [None if leaf is None else leaf.detach().double().requires_grad_() for leaf in leaves]


def outputs_and_gradients(function, leaves, director, indices, grad_y, grad_loss, *settings, **keywords):
    """y, loss and the gradients of all leaves that are there."""
    y, loss = function(*leaves[:5], *director, leaves[5], indices, *settings, **keywords)
    wanted = [leaf for leaf in leaves if leaf is not None]
    grads = torch.autograd.grad([y, loss], wanted, [grad_y.to(y.dtype), loss.new_tensor(grad_loss)])
    return y, loss, grads


def plain_dex_mlp(x, w1, b1, w2, b2, dw1, db1, dw2, db2, gates, indices, activation, align):
    y = plain.expert_mlp(x, w1, b1, w2, b2, gates, indices, activation)
    dw1, db1, dw2, db2 = (None if t is None else t.to(x.dtype) for t in (dw1, db1, dw2, db2))
    teacher = F.linear(plain.ACTIVATIONS[activation](F.linear(x, dw1, db1)), dw2, db2)
    return y, plain.mix_align(y, teacher, align)


def check_dex_mlp(case, dtype=torch.float32, activation="gelu", align="kd", keep="both", backend="triton"):
    """Output, loss and every gradient of `dex_mlp`, on the case's device."""
    leaves = case.leaves(dtype)
    director = [None if t is None else t.to(dtype) for t in case.director]
    grad_y = torch.randn(case.x.shape, generator=torch.Generator().manual_seed(1)).to(case.x.device, dtype)
    run = outputs_and_gradients
    # Large enough that the loss's gradient weighs as much as the other.
    arguments = (case.indices, grad_y, 0.5 * case.x.shape[:2].numel(), activation, align)
    y, loss, grads = run(ops.dex_mlp, leaves, director, *arguments, keep=keep, backend=backend)
    y64, loss64, grads64 = run(reference.dex_mlp, rounded64(leaves), rounded64(director), *arguments)
    y_plain, loss_plain, grads_plain = run(plain_dex_mlp, case.leaves(dtype), director, *arguments)
    assert y.dtype == dtype
    assert_close(y, y64, plain=y_plain, name="y")
    assert_close(loss, loss64, bound=1e-5 if dtype == torch.float32 else 2e-2, name="loss")
    assert_close(loss, loss64, plain=loss_plain, name="loss") if dtype == torch.float32 else None
    names = [name for name, leaf in zip(NAMES, leaves, strict=True) if leaf is not None]
    for name, grad, grad64, grad_plain in zip(names, grads, grads64, grads_plain, strict=True):
        assert grad.dtype == (torch.float32 if name == "gates" else dtype), name
        assert_close(grad, grad64, plain=grad_plain, name=f"gradient of {name}")


def plain_route(x, weight, indices, noise, pool):
    """Gates and probabilities in float32, of experts that are chosen already."""
    feature = x[:, 0].float() if pool == "cls" else x.float().mean(1)
    logits = F.linear(feature, weight.float())
    probs = ((logits if noise is None else logits + noise) / 0.5).softmax(-1)
    chosen = probs.gather(-1, indices)
    return chosen / chosen.sum(-1, keepdim=True), indices, probs


def check_route(x, weight, top_k, noise=None, pool="cls", backend="triton"):
    """Indices, gates, probabilities and the gradients of both inputs."""

    def run(function, dtype, *arguments, **keywords):
        leaves = [t.detach().to(dtype, copy=True).requires_grad_() for t in (x, weight)]
        gates, indices, probs = function(*leaves, *arguments, noise, pool, **keywords)
        generator = torch.Generator().manual_seed(2)
        coefficients = [torch.randn(t.shape, generator=generator).to(t.device, t.dtype) for t in (gates, probs)]
        return indices, [gates, probs, *torch.autograd.grad([gates, probs], leaves, coefficients)]

    indices, found = run(ops.route, x.dtype, top_k, 0.5, backend=backend)
    indices64, truth = run(reference.route, torch.float64, top_k, 0.5)
    _, by_plain = run(plain_route, x.dtype, indices64)
    assert torch.equal(indices, indices64)
    names = ("gates", "probs", "gradient of x", "gradient of weight")
    for name, mine, exact, theirs in zip(names, found, truth, by_plain, strict=True):
        assert_close(mine, exact, plain=theirs, name=name)


def check_group_ema(shapes, weights, momentum=0.9, dtype=torch.float32, backend="triton", device="cpu"):
    """Every director after one step, and the experts untouched."""
    generator = torch.Generator().manual_seed(3)
    directors = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    experts = [
        torch.randn(len(w), *shape, generator=generator).to(device, dtype)
        for shape, w in zip(shapes, weights, strict=True)
    ]
    before = [t.clone() for t in experts]
    weights = [torch.tensor(w, device=device) for w in weights]
    expected = [
        momentum * d.double() + (1 - momentum) * torch.tensordot(w.double(), e.double(), 1) if w.any() else d.double()
        for d, e, w in zip(directors, experts, weights, strict=True)
    ]
    ops.group_ema_(directors, experts, weights, momentum, backend=backend)
    for i, (director, truth) in enumerate(zip(directors, expected, strict=True)):
        assert_close(director, truth, plain=truth.to(dtype), name=f"director {i}")
    assert all(torch.equal(a, b) for a, b in zip(experts, before, strict=True))
