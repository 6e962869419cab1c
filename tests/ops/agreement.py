"""What an op must satisfy, for any backend: agreement with float64, as good as plain PyTorch."""

import torch
import torch.nn.functional as F

from assertions import assert_close
from dexcore import ops
from dexcore.ops import reference
from ops import plain

NAMES = ("x", "w1", "b1", "w2", "b2", "gates")
LAYER_NAMES = ("x", "router_weight", "w1", "b1", "w2", "b2")


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
    teacher = F.linear(plain.ALL_ACTIVATIONS[activation](F.linear(x, dw1, db1)), dw2, db2)
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


def layer_leaves(case, dtype, weight_dtype=None, router_dtype=None):
    """x, a drawn router weight and the experts' weights, asking for gradients; weights in x's dtype unless given."""
    x, *weights, _ = case.leaves(dtype, weight_dtype)
    experts, width = case.w1.shape[0], case.x.shape[2]
    drawn = 2 * torch.randn(experts, width, generator=torch.Generator().manual_seed(4)) / width**0.5
    return [x, drawn.to(x.device, router_dtype or weight_dtype or dtype).requires_grad_(), *weights]


def check_dex_layer(
    case, dtype=torch.float32, activation="gelu", align="kd", keep="both", pool="cls", backend="triton"
):
    """Outputs and every gradient of `dex_layer`; the router stays in float32, as in training."""
    top_k = case.gates.shape[1]
    leaves = layer_leaves(case, dtype, router_dtype=torch.float32)
    director = [None if t is None else t.to(dtype) for t in case.director]
    g = torch.Generator().manual_seed(1)
    device = case.x.device
    noise = torch.randn(len(case.x), len(case.w1), generator=g).to(device)

    def run(function, leaves, director, indices=None):
        made = function(leaves, director, indices)
        outputs = {name: made[name] for name in ("y", "align", "balance", "gates", "probs")}
        drawn = torch.Generator().manual_seed(2)
        # Large enough that the losses' gradients weigh as much as the other.
        scales = {"align": 0.5 * case.x.shape[:2].numel(), "balance": 5.0 * len(case.x)}
        grads = [
            scales.get(name, 1.0) * torch.randn(output.shape, generator=drawn).to(device, output.dtype)
            for name, output in outputs.items()
        ]
        wanted = [leaf for leaf in leaves if leaf is not None]
        return made["indices"], outputs, torch.autograd.grad(list(outputs.values()), wanted, grads)

    def ours(leaves, director, _):
        settings = (top_k, 0.7, noise, pool, activation, align, keep)
        y, loss, balance, gates, indices, probs = ops.dex_layer(*leaves, *director, *settings, backend=backend)
        return {"y": y, "align": loss, "balance": balance, "gates": gates, "probs": probs, "indices": indices}

    def exact(leaves, director, _):
        x, router_weight, *experts = leaves
        gates, indices, probs = reference.route(x, router_weight, top_k, 0.7, noise, pool)
        y, loss = reference.dex_mlp(x, *experts, *director, gates, indices, activation, align)
        balance = reference.balance_loss(probs)
        return {"y": y, "align": loss, "balance": balance, "gates": gates, "probs": probs, "indices": indices}

    def theirs(leaves, director, indices):
        x, router_weight, *experts = leaves
        gates, _, probs = plain_route(x, router_weight, indices, noise, pool, 0.7)
        y, loss = plain_dex_mlp(x, *experts, *director, gates, indices, activation, align)
        importance = probs.sum(0) / max(len(probs), 1)
        balance = len(importance) * (importance * importance.detach()).sum()
        return {"y": y, "align": loss, "balance": balance, "gates": gates, "probs": probs, "indices": indices}

    indices, found, grads = run(ours, leaves, director)
    indices64, truth, grads64 = run(exact, rounded64(leaves), rounded64(director))
    again = layer_leaves(case, dtype, router_dtype=torch.float32)
    _, by_plain, grads_plain = run(theirs, again, director, indices64)
    assert torch.equal(indices, indices64)
    for name, output in found.items():
        assert output.dtype == (dtype if name == "y" else torch.promote_types(dtype, torch.float32)), name
        if name == "align" and dtype != torch.float32:
            assert_close(output, truth[name], bound=2e-2, name=name)
        else:
            assert_close(output, truth[name], plain=by_plain[name], name=name)
    leaves = [(name, leaf) for name, leaf in zip(LAYER_NAMES, leaves, strict=True) if leaf is not None]
    for (name, leaf), grad, grad64, grad_plain in zip(leaves, grads, grads64, grads_plain, strict=True):
        assert grad.dtype == leaf.dtype, name
        if name == "router_weight" and len(case.w1) == 1:  # a softmax over one is constant: rounding alone
            assert grad.double().abs().max() <= 1e-2 * case.x.numel(), name
        else:
            assert_close(grad, grad64, plain=grad_plain, name=f"gradient of {name}")


def plain_route(x, weight, indices, noise, pool, tau=0.5):
    """Gates and probabilities in float32, of experts that are chosen already."""
    feature = x[:, 0].float() if pool == "cls" else x.float().mean(1)
    logits = F.linear(feature, weight.float())
    probs = ((logits if noise is None else logits + noise) / tau).softmax(-1)
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
