"""The kernels of a layer's training step, in their order: their calls, and their truths.

`calls` runs the step once, kernel after kernel, and keeps what each was given, so that every one can be called again
and held to plain formulas in float64 of the same inputs.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.contenders import EXPERTS, MOMENTUM, TOP_K, WrongResultError, relative_error
from bench.kernel_work import Problem, ffn_shapes
from bench.routings import routing, steer
from dexcore.kernels import (
    bias_gradients,
    expert_dact,
    expert_down,
    expert_up,
    expert_wgrad,
    group_ema,
    mix_align,
    route,
)
from dexcore.kernels.plan import Plan, make_plan
from dexcore.ops import reference
from dexcore.ops.mix_align import KERNEL_CONSTANTS

_TAU, _PRECISION = 0.5, "ieee"
# Over the root mean square, beyond twice what rounding the truth costs.
_LUCK = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 5e-3}


class Case(NamedTuple):
    """A kernel to call, and what of its results is compared with which truth."""

    call: Callable[[], object]
    found: Callable[[], Sequence[Tensor]]
    truth: Callable[[], Sequence[Tensor]]


def calls(problem: Problem, device: torch.device) -> dict[str, Case]:
    """The kernels of a step, each with the inputs that the ones before it left."""
    (batch, tokens, width), dtype, config = problem.shape, problem.dtype, problem.config
    block_m = config.up.block_m
    generator = torch.Generator().manual_seed(6)

    def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (scale * torch.randn(shape, generator=generator)).to(device, dtype)

    shapes = ffn_shapes(problem)
    scales = (width**-0.5, 1.0, problem.hidden**-0.5, 1.0)
    director = [normal(*shape, scale=scale) for shape, scale in zip(shapes, scales, strict=True)]
    experts = [normal(EXPERTS, *shape, scale=scale) for shape, scale in zip(shapes, scales, strict=True)]
    w1, b1, w2, b2 = (tensor.to(dtype) for tensor in experts)
    dw1, db1, dw2, db2 = (tensor.to(dtype) for tensor in director)
    x, router = torch.randn(problem.shape, generator=generator), torch.empty(EXPERTS, width)
    steer(x, router, problem.routing, TOP_K, _TAU)
    routed, x, router = x[:, :1].contiguous().to(device), x.to(device, dtype), router.to(device)
    loss_y, grad_loss = normal(batch * tokens, width, dtype=dtype), torch.full((), 0.01, device=device)
    grad_gates, grad_probs = normal(batch, TOP_K), normal(batch, EXPERTS)

    gates, indices = (t.to(device) for t in routing(problem.routing, batch, EXPERTS, TOP_K))
    plan = make_plan(indices, EXPERTS, tokens, block_m)

    def up() -> tuple[Tensor, ...]:
        return expert_up.expert_up(
            x, w1, b1, gates, plan, "gelu", _PRECISION, config.up, keep_z=True, director=(dw1, db1)
        )

    z, wa, director_a = up()

    def down() -> tuple[Tensor, ...]:
        return expert_down.expert_down(
            wa, w2, b2, gates, plan, _PRECISION, config.down, director=(director_a, dw2, db2)
        )

    o, teacher = down()

    def align() -> tuple[Tensor, ...]:
        return mix_align.mix_align_forward(o, plan, teacher, "kd", with_gradient=True, **KERNEL_CONSTANTS)

    y, _, gradient = align()

    def backward() -> Tensor:
        return mix_align.align_backward(grad_loss, gradient, loss_y, dtype)

    dy = backward().view(batch, tokens, width)
    sums = bias_gradients.token_sums(dy)

    def dact() -> tuple[Tensor, ...]:
        return expert_dact.expert_dact(dy, w2, z, gates, plan, "gelu", _PRECISION, config.dact, keep_a=False)

    dz, _, bias_parts, gate_parts = dact()

    def down_x() -> Tensor:
        return expert_down.expert_dx(dz, w1, plan, _PRECISION, config.dx)

    dx = down_x()
    flat_x, flat_dy = x.view(-1, width), dy.view(-1, width)
    load = route.expert_load(gates, indices, EXPERTS)
    omega = [load / load.sum()] * len(experts)
    followed = [tensor.clone() for tensor in director]

    def wgrad1() -> Tensor:
        return expert_wgrad.expert_wgrad(
            dz, flat_x, plan, torch.float32, _PRECISION, config.wgrad1, left_by_image=False, right_by_image=True
        )

    def wgrad2() -> Tensor:
        return expert_wgrad.expert_wgrad(
            flat_dy, wa, plan, torch.float32, _PRECISION, config.wgrad2, left_by_image=True, right_by_image=False
        )

    def ema() -> list[Tensor]:
        group_ema.group_ema(followed, experts, omega, MOMENTUM)
        return followed

    def moved() -> list[Tensor]:
        for tensor, start in zip(followed, director, strict=True):
            tensor.copy_(start)
        return [after - before for after, before in zip(ema(), director, strict=True)]

    def should_move() -> list[Tensor]:
        tensors = zip(director, experts, omega, strict=True)
        return [reference.group_ema(d, e, w, MOMENTUM) - d.double() for d, e, w in tensors]

    plain = _Plain(plan, gates)
    zd, dyd = z.double(), plain.rows_of(flat_dy)

    def plain_align() -> tuple[Tensor, ...]:
        student = y.double().unsqueeze(0).requires_grad_()
        loss = reference.mix_align(student, teacher.unsqueeze(0), "kd")
        loss.backward()
        return plain.slots_sum(o), loss.detach(), student.grad[0] * student.shape[1]

    def align_found() -> tuple[Tensor, ...]:
        found_y, losses, found_gradient = align()
        return found_y, losses.mean(), found_gradient

    def dact_found() -> tuple[Tensor, ...]:
        found_dz, _, bias, gate = dact()
        return found_dz, bias_gradients.bias1_gradient(bias, plan, torch.float32), gate.sum(0)

    def plain_dact() -> tuple[Tensor, ...]:
        u = plain.by_expert(dyd, lambda rows, e: rows @ w2[e].double())
        through = plain.gate * torch.ops.aten.gelu_backward(u, zd)
        return through, plain.sums_by_expert(through), (F.gelu(zd) * u).sum(1)

    def plain_route_backward() -> list[Tensor]:
        leaves = [routed.double().requires_grad_(), router.double().requires_grad_()]
        found_gates, _, found_probs = reference.route(*leaves, TOP_K, _TAU)
        torch.autograd.backward([found_gates, found_probs], [grad_gates.double(), grad_probs.double()])
        return [leaf.grad for leaf in leaves]

    chosen = route.route_forward(routed, router, None, TOP_K, _TAU, "cls")

    def route_back() -> tuple[Tensor, ...]:
        return route.route_backward(grad_gates, grad_probs, routed, router, *chosen, _TAU, "cls")

    def simple(call: Callable[[], object], truth: Callable[[], object]) -> Case:
        """Of a kernel whose results are all compared."""
        return Case(call, lambda: _listed(call()), lambda: _listed(truth()))

    rows_x = plain.rows_of(flat_x)
    return {
        "route_forward": simple(
            lambda: route.route_forward(routed, router, None, TOP_K, _TAU, "cls"),
            lambda: reference.route(routed, router, TOP_K, _TAU),
        ),
        "make_plan": simple(lambda: make_plan(indices, EXPERTS, tokens, block_m)[:4], lambda: _plain_plan(indices)),
        "expert_up": simple(
            up,
            lambda: (
                expected := plain.by_expert(rows_x, lambda rows, e: rows @ w1[e].double().T + b1[e].double()),
                plain.gate * F.gelu(expected),
                F.gelu(flat_x.double() @ dw1.double().T + db1.double()),
            ),
        ),
        "expert_down": simple(
            down,
            lambda: (
                plain.by_expert(wa.double(), lambda rows, e: rows @ w2[e].double().T)
                + plain.gate * b2.double()[plain.experts],
                director_a.double() @ dw2.double().T + db2.double(),
            ),
        ),
        "mix_align_forward": Case(align, align_found, plain_align),
        "align_backward": simple(
            backward, lambda: loss_y.double() + grad_loss.double() / (batch * tokens) * gradient.double()
        ),
        "token_sums": simple(lambda: bias_gradients.token_sums(dy), lambda: dy.double().sum(1)),
        "expert_dact": Case(dact, dact_found, plain_dact),
        "bias1_gradient": simple(
            lambda: bias_gradients.bias1_gradient(bias_parts, plan, torch.float32), lambda: plain_dact()[1]
        ),
        "bias2_gradient": simple(
            lambda: bias_gradients.bias2_gradient(sums, gates, plan, torch.float32),
            lambda: plain.sums_by_expert(plain.gate * dyd),
        ),
        "gate_gradient": simple(
            lambda: bias_gradients.gate_gradient(gate_parts, sums, b2, plan),
            lambda: plain.by_flat_slot(gate_parts.double().sum(0) + (dyd * b2.double()[plain.experts]).sum(1)),
        ),
        "expert_dx": simple(down_x, lambda: plain.by_expert(dz.double(), lambda rows, e: rows @ w1[e].double())),
        "sum_slots": simple(lambda: mix_align.sum_slots(dx, plan, torch.float32), lambda: plain.slots_sum(dx)),
        "expert_wgrad 1": simple(wgrad1, lambda: plain.products_by_expert(dz.double(), rows_x)),
        "expert_wgrad 2": simple(wgrad2, lambda: plain.products_by_expert(dyd, wa.double())),
        "route_backward": simple(route_back, plain_route_backward),
        "expert_load": simple(
            lambda: route.expert_load(gates, indices, EXPERTS),
            lambda: gates.new_zeros(EXPERTS).double().index_add_(0, indices.flatten(), gates.flatten().double()),
        ),
        "group_ema": Case(ema, moved, should_move),
    }


def check(problem: Problem, device: torch.device) -> None:
    """Hold every kernel to its truth; WrongResultError where it is off by more than twice a rounding."""
    for name, case in calls(problem, device).items():
        for i, (found, truth) in enumerate(zip(case.found(), case.truth(), strict=True)):
            if not found.dtype.is_floating_point:
                if not torch.equal(found.long(), truth.long()):
                    raise WrongResultError(f"{name}, {problem.routing}: result {i} differs")
                continue
            bound = 2 * relative_error(truth.to(found.dtype), truth) + _LUCK[problem.dtype]
            error = relative_error(found, truth)
            if found.shape != truth.shape or not error <= bound:
                raise WrongResultError(
                    f"{name}, {problem.routing}: result {i} is {error:.2g} off, allowed {bound:.2g} "
                    f"(shape {list(found.shape)}, expected {list(truth.shape)})"
                )


def _listed(results: object) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)  # type: ignore[call-overload]


def _plain_plan(indices: Tensor) -> list[Tensor]:
    flat = indices.flatten()
    slots = flat.argsort(stable=True)
    ends = flat.bincount(minlength=EXPERTS).cumsum(0)
    return [slots, slots // TOP_K, slots.argsort(), F.pad(ends, (1, 0))]


class _Plain:
    """Rows in expert order, by plain indexing and loops over experts, in float64."""

    def __init__(self, plan: Plan, gates: Tensor) -> None:
        self.plan, self.tokens = plan, plan.tokens
        self.slots = plan.slots.long()
        self.sizes = (plan.starts.long().diff() * plan.tokens).tolist()
        numbers = torch.arange(plan.num_experts, device=gates.device)
        self.experts = numbers.repeat_interleave(plan.starts.long().diff() * plan.tokens)  # [rows]
        self.gate = gates.flatten()[self.slots].repeat_interleave(plan.tokens).double().unsqueeze(1)  # [rows, 1]

    def rows_of(self, by_image: Tensor) -> Tensor:
        """[B*N, .] to [rows, .], float64."""
        images = by_image.view(-1, self.tokens, by_image.shape[1])
        return images[self.plan.images.long()].flatten(0, 1).double()

    def by_expert(self, rows: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
        return torch.cat([function(part, e) for e, part in enumerate(rows.split(self.sizes))])

    def sums_by_expert(self, rows: Tensor) -> Tensor:
        return torch.stack([part.sum(0) for part in rows.split(self.sizes)])

    def products_by_expert(self, left: Tensor, right: Tensor) -> Tensor:
        pairs = zip(left.split(self.sizes), right.split(self.sizes), strict=True)
        return torch.stack([a.T @ b for a, b in pairs])

    def slots_sum(self, rows: Tensor) -> Tensor:
        """[rows, .] to [B*N, .], the sum over each image's slots."""
        by_slot = rows.double().view(-1, self.plan.top_k, self.tokens, rows.shape[1])
        return (
            rows.double()
            .view(-1, self.tokens, rows.shape[1])[self.plan.places.long()]
            .view_as(by_slot)
            .sum(1)
            .flatten(0, 1)
        )

    def by_flat_slot(self, rows: Tensor) -> Tensor:
        """[rows] to [B, k], the sum over each slot's rows."""
        by_slot = rows.view(-1, self.tokens).sum(1)
        return by_slot[self.plan.places.long()].view(-1, self.plan.top_k)
