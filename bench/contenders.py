"""The layers that are compared, their training step, and the check that they compute the same.

    dexcore     DEXMlp
    published   a loop over experts, a host check each (`bench.published`)
    loop        one GEMM an expert and layer over rows sorted by expert, one host check in all
    grouped     the same with torch.nn.functional.grouped_mm: no host check
    dense       a plain MLP of equal FLOPs: what no routing costs. It computes something else and is not checked

All but "dense" start from the same weights and are held to the published loop's outputs, losses, gradients and
directors in float64, from which they may err twice as much as the published loop itself in their dtype.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.published import PublishedLayer, published_align, published_copy
from bench.routings import steer
from bench.timing import CPU
from dexcore.nn import DEXMlp, update_directors
from dexcore.nn.directors import expert_load
from dexcore.ops.balance import balance_loss
from dexcore.ops.copies import kept_bytes

EXPERTS, TOP_K, MOMENTUM = 8, 2, 0.99
LAMBDA_ALIGN, LAMBDA_BALANCE = 0.01, 0.001
# Over the root mean square: a step against the published loop's, and what is allowed beyond twice its own error.
BOUND = {torch.float32: 1e-4, torch.bfloat16: 0.15}
_LUCK = {torch.float32: 1e-5, torch.bfloat16: 2e-3}

CONTENDERS = ("dexcore", "published", "loop", "grouped", "dense")


class Shape(NamedTuple):
    """Images, tokens an image, width; the hidden layer is four times as wide."""

    images: int
    tokens: int
    width: int

    def __str__(self) -> str:
        return " x ".join(map(str, self))


REFERENCE = Shape(224, 65, 768)


def step_flops(shape: Shape) -> int:
    """Of a step's GEMMs: the director's 2 over B*N rows, the experts' 2 + 4 over k*B*N."""
    rows = shape.images * shape.tokens
    return (2 + 6 * TOP_K) * rows * 2 * shape.width * 4 * shape.width


def step_bytes(shape: Shape, active: int, itemsize: int) -> int:
    """What any implementation must move at least: weights and activations as GEMM operands once each.

    The experts' two weights in forward and backward and their gradients (float32), the director's, x, y, dy, dx, and
    the hidden layer written once and read once. ``active``: experts that have images.
    """
    rows, weight = shape.images * shape.tokens, 4 * shape.width**2
    weights = 2 * weight * ((2 * active + 1) * itemsize + EXPERTS * 4)
    return weights + 4 * rows * shape.width * itemsize + 2 * TOP_K * rows * 4 * shape.width * itemsize


class Ours(nn.Module):
    """DEXMlp as the others are called."""

    def __init__(self, pool: DEXMlp) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.pool(x)
        routing = self.pool.routing
        return y, routing.align_loss, routing.balance_loss

    def update(self) -> None:
        update_directors(self.pool, MOMENTUM)


class Composed(nn.Module):
    """A DEXMlp's parameters, used by plain PyTorch operations; ``experts`` computes the experts' output."""

    def __init__(self, pool: DEXMlp, experts: Callable[[DEXMlp, Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.pool, self.experts = pool, experts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # so that all layers choose the same experts
            probs = (F.linear(x[:, 0], self.pool.router.weight) / self.pool.tau).softmax(-1)
        chosen, indices = probs.topk(self.pool.top_k, dim=-1)
        gates = chosen / chosen.sum(-1, keepdim=True)
        y = self.experts(self.pool, x, gates, indices)
        with torch.no_grad():
            target = self.pool.director(x)
        self.last = gates.detach(), indices
        return y, published_align(y, target), balance_loss(probs)

    @torch.no_grad()
    def update(self) -> None:
        load = expert_load(*self.last, self.pool.num_experts)
        omega = load / load.sum()
        experts, directors = zip(*self.pool.expert_director_pairs(), strict=True)
        torch._foreach_lerp_(directors, foreach_targets(experts, omega), 1 - MOMENTUM)


def foreach_targets(experts: tuple[Tensor, ...], omega: Tensor) -> list[Tensor]:
    """The experts' weighted means, one matrix-vector product a tensor."""
    return [torch.mv(expert.flatten(1).t(), omega).view(expert.shape[1:]) for expert in experts]


class _Rows(NamedTuple):
    """The slots sorted by expert, and x's rows in that order [S*N, D]."""

    rows: Tensor
    experts: Tensor  # [S], a sorted slot's expert
    order: Tensor  # [S], a sorted slot's place in indices.reshape(-1)


def _sorted_rows(x: Tensor, indices: Tensor) -> _Rows:
    experts, order = indices.reshape(-1).sort(stable=True)
    return _Rows(x.flatten(1).index_select(0, order // indices.shape[1]).view(-1, x.shape[2]), experts, order)


def _mix(o: Tensor, order: Tensor, gates: Tensor, x: Tensor) -> Tensor:
    """sum_k gates o, from rows sorted by expert back to [B, N, D]."""
    by_slot = o.view(order.numel(), -1).index_select(0, order.argsort()).view(*gates.shape, -1)
    return (by_slot * gates.unsqueeze(-1)).sum(1).view(x.shape)


def loop_experts(pool: DEXMlp, x: Tensor, gates: Tensor, indices: Tensor) -> Tensor:
    """One GEMM an expert and layer."""
    rows, _, order = _sorted_rows(x, indices)
    sizes = [count * x.shape[1] for count in indices.flatten().bincount(minlength=pool.num_experts).tolist()]
    fc1, fc2 = pool.experts.fc1, pool.experts.fc2
    layers = zip(*(t.unbind(0) for t in (fc1.weight, fc1.bias, fc2.weight, fc2.bias)), strict=True)
    outputs = [
        F.linear(F.gelu(F.linear(part, w1, b1)), w2, b2)
        for part, (w1, b1, w2, b2) in zip(rows.split(sizes), layers, strict=True)
        if part.shape[0]
    ]
    return _mix(torch.cat(outputs), order, gates, x)


def grouped_experts(pool: DEXMlp, x: Tensor, gates: Tensor, indices: Tensor) -> Tensor:
    """Two grouped GEMMs; the biases by slot, since grouped_mm takes none."""
    on = torch.is_autocast_enabled(x.device.type)
    compute = torch.get_autocast_dtype(x.device.type) if on else x.dtype
    rows, experts, order = _sorted_rows(x.to(compute), indices)
    numbers = torch.arange(pool.num_experts, device=x.device)
    ends = ((indices.flatten() == numbers[:, None]).sum(1).cumsum(0) * x.shape[1]).int()
    for fc in (pool.experts.fc1, pool.experts.fc2):
        if fc is pool.experts.fc2:
            rows = F.gelu(rows)
        product = F.grouped_mm(rows, fc.weight.to(compute).transpose(1, 2), offs=ends)
        by_slot = product.view(order.numel(), x.shape[1], -1) + fc.bias.to(compute).index_select(0, experts)[:, None]
        rows = by_slot.flatten(0, 1)
    return _mix(rows, order, gates, x)


class Dense(nn.Module):
    """A plain MLP whose forward and backward have a step's FLOPs: k + 1/3 times the hidden width."""

    def __init__(self, width: int, device: torch.device = CPU) -> None:
        super().__init__()
        hidden = 4 * width * (3 * TOP_K + 1) // 3
        fc1, fc2 = nn.Linear(width, hidden, device=device), nn.Linear(hidden, width, device=device)
        self.mlp = nn.Sequential(fc1, nn.GELU(), fc2)

    def forward(self, x: Tensor) -> tuple[Tensor, None, None]:
        return self.mlp(x), None, None

    def update(self) -> None:
        pass


Layer = Ours | Composed | PublishedLayer | Dense


def make_layer(contender: str, shape: Shape, device: torch.device = CPU, keep: str = "both") -> Layer:
    """A contender with the weights that all share, experts unlike one another."""
    if contender not in CONTENDERS:
        raise ValueError(f"contender must be one of {', '.join(CONTENDERS)}, got {contender!r}")
    torch.manual_seed(0)
    if contender == "dense":
        return Dense(shape.width, device)
    # Drawn where it is used: a GPU draws at once what takes one thread of the host a second.
    pool = DEXMlp(shape.width, 4 * shape.width, num_experts=EXPERTS, top_k=TOP_K, keep=keep, device=device)
    with torch.no_grad():
        pool.router.weight.normal_(std=shape.width**-0.5)
        for experts, director in pool.expert_director_pairs():
            experts += director.std() * torch.randn_like(experts)
    if contender == "published":
        published = published_copy(pool)
        published.momentum = MOMENTUM
        return published.to(device)
    if contender == "dexcore":
        return Ours(pool).to(device)
    return Composed(pool, loop_experts if contender == "loop" else grouped_experts).to(device)


def make_step(
    contender: str,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device = CPU,
    routing: str | None = None,
    **settings: bool | str,
) -> Callable[[], list[Tensor]]:
    """One contender's training step on its own layer; ``settings`` are ``keep`` and those of `step_of`."""
    layer = make_layer(contender, shape, device, str(settings.pop("keep", "both")))
    return step_of(layer, shape, dtype, routing, **settings)


def step_of(
    layer: Layer, shape: Shape, dtype: torch.dtype, routing: str | None = None, update: bool = True
) -> Callable[[], list[Tensor]]:
    """A layer's training step, which returns output, both losses and the input's gradient.

    Args:
        layer: a contender.
        shape: of the input.
        dtype: bfloat16 runs under autocast, with the parameters and the input in float32.
        routing: one of `bench.routings`; None leaves the router's random weights.
        update: whether the directors follow (the published loop's always do).
    """
    forward, x, grad_y = _prepared(layer, shape, dtype, routing)
    # A model hands over the gradient in y's dtype. On the CPU the cast has always been part of the step.
    upstream = {} if x.device.type == "cpu" else {d: grad_y.to(d) for d in (x.dtype, dtype)}
    # The losses' gradients are there before the step too: what is measured is the layer.
    factors = {d: torch.tensor([LAMBDA_ALIGN, LAMBDA_BALANCE], dtype=d, device=x.device) for d in {x.dtype, dtype}}
    leaves = [x, *layer.parameters()]

    def step() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        y, align, balance = forward()
        grad = upstream[y.dtype] if upstream else grad_y.to(y.dtype)
        if align is None:
            y.backward(grad)
            torch.autograd.graph.increment_version(leaves)
            return [y, x.grad]
        of_losses = [factors[loss.dtype][i] for i, loss in enumerate((align, balance))]
        torch.autograd.backward([y, align, balance], [grad, *of_losses])
        # As an optimizer's step does, before the directors follow: copies in half precision are made within the step,
        # with the directors' update or in the next forward.
        torch.autograd.graph.increment_version(leaves)
        if update and not isinstance(layer, PublishedLayer):
            layer.update()
        return [y, align, balance, x.grad]

    return step


def _prepared(
    layer: Layer, shape: Shape, dtype: torch.dtype, routing: str | None
) -> tuple[Callable[[], tuple[Tensor, Tensor, Tensor]], Tensor, Tensor]:
    """A layer's forward, its input, and the gradient that y is given; the arguments are `step_of`'s."""
    stored = torch.promote_types(dtype, torch.float32)
    layer.to(stored)
    device = next(layer.parameters()).device
    generator = torch.Generator(device).manual_seed(1)
    x = torch.randn(shape, generator=generator, device=device)
    grad_y = torch.randn(shape, generator=generator, device=device).to(stored)
    if routing is not None and not isinstance(layer, Dense):
        router = layer.router if isinstance(layer, PublishedLayer) else layer.pool.router
        steer(x, router.weight, routing, TOP_K)
    x = x.to(stored).requires_grad_()

    def forward() -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            return layer(x)

    return forward, x, grad_y


def held_memory(layer: Layer, shape: Shape, dtype: torch.dtype, routing: str | None = None) -> float:
    """MB that autograd holds from a layer's forward to its backward: what it saved, beside parameters and input.

    The copies of the weights in the compute dtype count, those that dexcore keeps beside autograd too: all are held. On
    any device the same.
    """
    forward, x, _ = _prepared(layer, shape, dtype, routing)
    held: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return saved.detach()  # itself would be a cycle, where it is an output

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        results = forward()
    for leaf in (x, *layer.parameters()):
        held.pop(leaf.untyped_storage().data_ptr(), None)
    del results  # alive until here, so that no address was used twice
    return (sum(held.values()) + kept_bytes(layer.parameters())) / 2**20


def results(
    contender: str, shape: Shape, dtype: torch.dtype, device: torch.device = CPU, routing: str | None = None
) -> dict[str, Tensor]:
    """All that a contender's first step computes; an expert without a gradient has one of zeros."""
    layer = make_layer(contender, shape, device)
    found = dict(zip(("y", "align", "balance", "dx"), step_of(layer, shape, dtype, routing)(), strict=True))
    pool = layer if isinstance(layer, PublishedLayer) else layer.pool
    return found | gradients(pool) | director(pool)


def gradients(layer: PublishedLayer | DEXMlp) -> dict[str, Tensor]:
    """What a backward left in a layer, experts stacked; an expert without a gradient has one of zeros."""
    found = {"drouter": layer.router.weight.grad}
    for i, fc in ((0, "fc1"), (2, "fc2")):
        for kind in ("weight", "bias"):
            if isinstance(layer, PublishedLayer):
                tensors = [getattr(expert[i], kind) for expert in layer.experts]
                found[f"d{fc}.{kind}"] = torch.stack(
                    [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
                )
            else:
                found[f"d{fc}.{kind}"] = getattr(getattr(layer.experts, fc), kind).grad
    return found


def director(layer: PublishedLayer | DEXMlp) -> dict[str, Tensor]:
    """A layer's director."""
    fcs = layer.director[::2] if isinstance(layer, PublishedLayer) else (layer.director.fc1, layer.director.fc2)
    return {
        f"director.{name}.{kind}": getattr(fc, kind).detach()
        for name, fc in zip(("fc1", "fc2"), fcs, strict=True)
        for kind in ("weight", "bias")
    }


class WrongResultError(RuntimeError):
    """A contender does not compute what the published loop does."""


def check(
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device = CPU,
    routing: str | None = None,
    contender: str = "dexcore",
) -> float:
    """Largest relative difference between a contender's and the published loop's results.

    Raises:
        WrongResultError: it is too large.
    """
    theirs, published = (results(name, shape, dtype, device, routing) for name in (contender, "published"))
    worst = 0.0
    for name, truth in published.items():
        error = relative_error(theirs[name], truth)
        if not error <= BOUND[dtype]:
            raise WrongResultError(
                f"{contender}, {shape} {dtype}: {name} differs by {error:.2g}, allowed {BOUND[dtype]:.2g}"
            )
        worst = max(worst, error)
    return worst


def check_all(shape: Shape, dtype: torch.dtype, device: torch.device, routing: str) -> dict[str, str]:
    """Hold every contender but "dense" to the published loop in float64.

    Returns:
        contenders that must not be timed, and why: what this machine cannot run, and foreign ones with wrong results.

    Raises:
        WrongResultError: dexcore's are wrong.
    """
    truth = results("published", shape, torch.float64, device, routing)
    published = results("published", shape, dtype, device, routing)
    allowed = {name: 2 * relative_error(published[name], truth[name]) + _LUCK[dtype] for name in truth}
    refused = {}
    for contender in ("dexcore", "loop", "grouped"):
        try:
            found = results(contender, shape, dtype, device, routing)
            for name, bound in allowed.items():
                error = relative_error(found[name], truth[name])
                if not error <= bound:
                    raise WrongResultError(
                        f"{contender}, {shape} {dtype} {routing}: {name} is {error:.2g} off, allowed {bound:.2g}"
                    )
        except (RuntimeError, NotImplementedError) as error:
            if contender == "dexcore":
                raise
            refused[contender] = str(error).splitlines()[0]
    return refused


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """Largest difference over the truth's root mean square."""
    scale = truth.double().square().mean().sqrt()
    return ((actual.double() - truth.double()).abs().max() / scale).item()
