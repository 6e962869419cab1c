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
from bench.routings import steer
from dexcore.kernels import (
    bias_gradients,
    cast,
    expert_dact,
    expert_down,
    expert_order,
    expert_up,
    expert_wgrad,
    group_ema,
    mix_align,
    route,
)
from dexcore.kernels.expert_wgrad import Product
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
    full, block_m = torch.float32, config.up.block_m
    generator = torch.Generator(device).manual_seed(6)

    def normal(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
        return (scale * torch.randn(shape, generator=generator, device=device)).to(dtype)

    shapes = ffn_shapes(problem)
    scales = (width**-0.5, 1.0, problem.hidden**-0.5, 1.0)
    director = [normal(*shape, scale=scale) for shape, scale in zip(shapes, scales, strict=True)]
    experts = [normal(EXPERTS, *shape, scale=scale) for shape, scale in zip(shapes, scales, strict=True)]
    (w1, b1, w2, b2), (dw1, db1, dw2, db2) = (_with_half_weights(tensors, dtype) for tensors in (experts, director))
    x, router = normal(*problem.shape), torch.empty(EXPERTS, width, device=device)
    steer(x, router, problem.routing, TOP_K, _TAU)
    grad_y, grad_loss = normal(batch, tokens, width, dtype=dtype), torch.full((), 0.01, device=device)
    grad_gates, grad_balance = normal(batch, TOP_K), torch.full((), float(batch), device=device)
    feature = torch.empty((batch, width), device=device)

    def route_there() -> tuple[Tensor, ...]:
        return route.route_forward(x, router, None, TOP_K, _TAU, "cls", feature)

    gates, indices, probs = route_there()
    balance = route.Balance.of(probs)

    def planned() -> Plan:
        return make_plan(indices, EXPERTS, tokens, block_m, balance)[0]

    plan = planned()

    def order() -> expert_order.Input:
        return expert_order.input_rows(x, gates, plan, dtype, by_image=True)

    given = order()

    def up() -> tuple[Tensor, ...]:
        return expert_up.expert_up(given, w1, b1, plan, "gelu", _PRECISION, config.up, keep_z=True, director=(dw1, db1))

    z, wa, director_a = up()

    def down() -> tuple[Tensor, ...]:
        return expert_down.expert_down(
            wa, w2, b2, given.gates, plan, _PRECISION, config.down, director=(director_a, dw2, db2)
        )

    o, teacher = down()

    def align() -> tuple[Tensor, ...]:
        return mix_align.mix_align_forward(o, plan, teacher, "kd", with_gradient=True, **KERNEL_CONSTANTS)

    y, _, gradient = align()

    def dy_order() -> tuple[Tensor, ...]:
        loss = {"grad_loss": grad_loss, "gradient": gradient.view(batch, tokens, width)}
        return expert_order.gradient_rows(grad_y, plan, dtype, **loss)

    dy, token_sums = dy_order()

    def dact() -> tuple[Tensor, ...]:
        return expert_dact.expert_dact(dy, w2, z, given.gates, plan, "gelu", _PRECISION, config.dact, keep_a=False)

    dz, _, gate_parts = dact()

    def gate_and_bias() -> tuple[Tensor, ...]:
        return bias_gradients.gate_and_bias_gradients(gate_parts, token_sums, b2, gates, plan, full)

    def route_back() -> tuple[Tensor, ...]:
        incoming = grad_gates, None, grad_balance
        forward = feature, router, gates, indices, probs, balance.importance
        return route.route_gradients(*incoming, *forward, _TAU)

    grad_feature, _ = route_back()

    def down_x() -> Tensor:
        return expert_down.expert_dx(dz, w1, plan, _PRECISION, config.dx)

    dx = down_x()

    def slots() -> Tensor:
        return mix_align.sum_slots(dx, plan, full, grad_feature, "cls")

    def wgrad() -> tuple[Tensor, ...]:
        products, multiprocessors = (Product(dz, given.rows), Product(dy, wa)), problem.multiprocessors
        return expert_wgrad.expert_wgrad(*products, plan, full, _PRECISION, config.wgrad, multiprocessors, bias=True)

    load = route.expert_load(gates, indices, EXPERTS)
    omega = [load / load.sum()] * len(experts)
    followed = [tensor.clone() for tensor in director]
    half = torch.bfloat16 if dtype == full else dtype
    # Of weights: biases are read as they are.
    half_director, half_experts = (
        [t.to(half) if i % 2 == 0 else None for i, t in enumerate(part)] for part in (director, experts)
    )
    halves = [tensor for tensor in half_experts + half_director if tensor is not None]
    weights = [tensor for i, tensor in enumerate(experts + director) if i % 2 == 0]

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

    def ema_with_copies() -> list[Tensor]:
        group_ema.group_ema(followed, experts, omega, MOMENTUM, half_director, half_experts)
        return halves

    def cast_all() -> list[Tensor]:
        cast.cast_all(weights, halves)
        return halves

    def copied(call: Callable[[], list[Tensor]]) -> list[Tensor]:
        for tensor in halves:
            tensor.fill_(torch.nan)
        return call()

    plain = PlainRows(indices, gates, EXPERTS, tokens, block_m)

    def in_whole_tiles(by_image: Tensor) -> Tensor:
        return F.pad(by_image.flatten(0, 1), (0, 0, 0, len(given.images) - batch * tokens))

    def plain_up() -> tuple[Tensor, ...]:
        expected = plain.by_expert(given.rows, lambda rows, e: rows @ w1[e].double().T + b1[e].double())
        expected_director = F.gelu(given.images.double() @ dw1.double().T + db1.double())
        return expected, plain.gate * F.gelu(expected), expected_director

    def plain_down() -> tuple[Tensor, ...]:
        expected = plain.by_expert(wa, lambda rows, e: rows @ w2[e].double().T)
        expected_teacher = director_a.double() @ dw2.double().T + db2.double()
        return expected + plain.gate * b2.double()[plain.experts], expected_teacher

    def plain_align() -> tuple[Tensor, ...]:
        student = y.double().unsqueeze(0).requires_grad_()
        loss = reference.mix_align(student, teacher[: len(y)].unsqueeze(0), "kd")
        loss.backward()
        return plain.slots_sum(o), loss.detach(), student.grad[0] * student.shape[1]

    def align_found() -> tuple[Tensor, ...]:
        found_y, losses, found_gradient = align()
        return found_y, losses.sum() / len(found_y), found_gradient

    def plain_dy() -> tuple[Tensor, ...]:
        expected = grad_y.double() + grad_loss.double() / len(y) * gradient.double().view(grad_y.shape)
        return plain.rows_of(expected), expected.to(dtype).double().sum(1)

    def plain_dact() -> tuple[Tensor, ...]:
        u = plain.by_expert(dy, lambda rows, e: rows @ w2[e].double())
        zd = z[plain.live].double()
        return plain.gate * torch.ops.aten.gelu_backward(u, zd), (F.gelu(zd) * u).sum(1)

    def dact_found() -> tuple[Tensor, ...]:
        found_dz, _, parts = dact()
        return found_dz[plain.live], parts.sum(0)[plain.live]

    def plain_gate_and_bias() -> tuple[Tensor, ...]:
        sums = token_sums.double().unsqueeze(1)  # [B, 1, D]
        expected = plain.by_flat_slot(gate_parts.sum(0)) + (b2.double()[indices] * sums).sum(2)
        bias = torch.zeros(b2.shape, dtype=torch.float64, device=device)
        return expected, bias.index_add_(0, indices.flatten(), (gates.double().unsqueeze(2) * sums).flatten(0, 1))

    def plain_wgrad() -> tuple[Tensor, ...]:
        pairs = plain.products_by_expert(dz, given.rows), plain.products_by_expert(dy, wa)
        return *pairs, torch.stack([part.sum(0) for part in plain.parts(dz)])

    def plain_route() -> tuple[Tensor, ...]:
        return *reference.route(x, router, TOP_K, _TAU), x[:, 0].double()

    def planned_found() -> list[Tensor]:
        return [*planned().tables, balance.importance, balance.loss]

    def plain_planned() -> list[Tensor]:
        return [*plain.tables(), probs.double().mean(0), reference.balance_loss(probs)]

    def plain_route_back() -> list[Tensor]:
        leaves = [x[:, :1].double().requires_grad_(), router.double().requires_grad_()]
        found_gates, _, found_probs = reference.route(*leaves, TOP_K, _TAU)
        losses = [found_gates, reference.balance_loss(found_probs)]
        torch.autograd.backward(losses, [grad_gates.double(), grad_balance.double()])
        return [leaves[0].grad[:, 0], leaves[1].grad]

    def plain_slots() -> Tensor:
        expected = plain.slots_sum(dx)
        expected[::tokens] += grad_feature.double()
        return expected

    def simple(call: Callable[[], object], truth: Callable[[], object], of_rows: int = 0) -> Case:
        """Of a kernel whose results are all compared, of the first ``of_rows`` the rows that it writes."""

        def found() -> list[Tensor]:
            results = _listed(call())
            return [result[plain.live] for result in results[:of_rows]] + results[of_rows:]

        return Case(call, found, lambda: _listed(truth()))

    return {
        "route_forward": Case(route_there, lambda: [*route_there(), feature], plain_route),
        "make_plan": Case(planned, planned_found, plain_planned),
        "input_rows": simple(order, lambda: (plain.rows_of(x), plain.gate[:, 0], in_whole_tiles(x)), of_rows=2),
        "expert_up": simple(up, plain_up, of_rows=2),
        "expert_down": simple(down, plain_down, of_rows=1),
        "mix_align_forward": Case(align, align_found, plain_align),
        "gradient_rows": simple(dy_order, plain_dy, of_rows=1),
        "expert_dact": Case(dact, dact_found, plain_dact),
        "gate_and_bias_gradients": simple(gate_and_bias, plain_gate_and_bias),
        "route_gradients": simple(route_back, plain_route_back),
        "expert_dx": simple(down_x, lambda: plain.by_expert(dz, lambda rows, e: rows @ w1[e].double()), of_rows=1),
        "sum_slots": simple(slots, plain_slots),
        "expert_wgrad": simple(wgrad, plain_wgrad),
        "expert_load": simple(
            lambda: route.expert_load(gates, indices, EXPERTS),
            lambda: gates.new_zeros(EXPERTS).double().index_add_(0, indices.flatten(), gates.flatten().double()),
        ),
        "group_ema": Case(ema, moved, should_move),
        "group_ema copies": Case(
            ema_with_copies, lambda: copied(ema_with_copies), lambda: [*experts[::2], *followed[::2]]
        ),
        "cast_all": Case(cast_all, lambda: copied(cast_all), lambda: weights),
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


def _with_half_weights(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """As the kernels are given a pool's or a director's tensors: biases stay as they are."""
    return [tensor.to(dtype) if i % 2 == 0 else tensor for i, tensor in enumerate(tensors)]


def _listed(results: object) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)  # type: ignore[call-overload]


class PlainRows:
    """Rows in expert order, by plain indexing and loops over experts, in float64.

    Only the rows of tiles that an expert has count, here "live" ones: nothing else is written.
    """

    def __init__(self, indices: Tensor, gates: Tensor, num_experts: int, tokens: int, block_m: int) -> None:
        flat, numbers = indices.flatten(), torch.arange(num_experts, device=indices.device)
        self.tokens, self.block_m = tokens, block_m
        self.counts = flat.bincount(minlength=num_experts)
        self.slots = flat.argsort(stable=True)
        self.starts = F.pad(self.counts.cumsum(0), (1, 0))
        tiles = -(-self.counts * tokens // block_m)
        self.tile_starts = F.pad(tiles.cumsum(0), (1, 0))
        self.first_rows = self.tile_starts[flat] * block_m
        self.first_rows += (self.slots.argsort() - self.starts[flat]) * tokens
        self.sizes = (tiles * block_m).tolist()
        self.live = torch.arange(sum(self.sizes), device=indices.device)
        self.experts = numbers.repeat_interleave(tiles * block_m)  # [live]
        token_rows = self.first_rows.unsqueeze(1) + torch.arange(tokens, device=indices.device)
        self.rows = token_rows.unflatten(0, indices.shape)  # [B, k, N]
        self.gate = self.rows_of(gates.unsqueeze(2).expand(*gates.shape, tokens).unsqueeze(3))  # [live, 1]

    def tables(self) -> list[Tensor]:
        """What `make_plan` makes."""
        tiles = self.experts[:: self.block_m]
        most = len(self.slots) * self.tokens // self.block_m + min(len(self.counts), len(self.slots))
        longest = self.counts.argsort(descending=True, stable=True)
        starts = self.starts, self.tile_starts
        padded = F.pad(tiles, (0, most - len(tiles)), value=-1)
        return [self.slots, self.first_rows, *starts, padded, longest, self.counts.new_ones(1)]

    def rows_of(self, of_tokens: Tensor) -> Tensor:
        """[B, N, .], or [B, k, N, .], to [live, .], float64; zeros where a row has no token."""
        columns = of_tokens.shape[-1]
        by_slot = of_tokens if of_tokens.dim() == 4 else of_tokens.unsqueeze(1).expand(*self.rows.shape, columns)
        result = torch.zeros((len(self.live), columns), dtype=torch.float64, device=of_tokens.device)
        result[self.rows.flatten()] = by_slot.double().flatten(0, 2)
        return result

    def parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Every expert's rows, float64."""
        return rows[self.live].double().split(self.sizes)

    def by_expert(self, rows: Tensor, function: Callable[[Tensor, int], Tensor]) -> Tensor:
        return torch.cat([function(part, e) for e, part in enumerate(self.parts(rows))])

    def products_by_expert(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.stack([a.T @ b for a, b in zip(self.parts(left), self.parts(right), strict=True)])

    def slots_sum(self, rows: Tensor) -> Tensor:
        """[rows, .] to [B*N, .], the sum over each image's slots."""
        return rows.double()[self.rows].sum(1).flatten(0, 1)

    def by_flat_slot(self, rows: Tensor) -> Tensor:
        """[rows] to [B, k], the sum over each slot's rows."""
        return rows.double()[self.rows].sum(2)
