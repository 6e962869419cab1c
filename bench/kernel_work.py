"""What every kernel of a layer's training step moves and computes: counted, so that no device is needed.

The counts are those of the functions beside the launchers, which the tests hold to the kernels' loads and stores.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from bench.contenders import EXPERTS, TOP_K, Shape
from bench.routings import counts
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
from dexcore.kernels.configs import MULTIPROCESSORS, LayerConfig, layer_config
from dexcore.kernels.plan import PlanShape, make_plan_bytes


class Problem(NamedTuple):
    """A layer's step under autocast.

    Parameters, the layer's input, and the gradients of both are float32; everything else is ``dtype``, the copies of
    weights that the experts' kernels are given among it. These copies are there: the step before wrote them.
    """

    shape: Shape
    dtype: torch.dtype
    routing: str
    architecture: str
    chip: int = 0  # multiprocessors of the device; 0: as many as the architecture's largest chip has

    @property
    def hidden(self) -> int:
        return 4 * self.shape.width

    @property
    def config(self) -> LayerConfig:
        return layer_config(self.architecture, self.shape.width, self.hidden, self.dtype)

    @property
    def multiprocessors(self) -> int:
        return self.chip or MULTIPROCESSORS[self.architecture]

    @property
    def counts(self) -> list[int]:
        return counts(self.routing, self.shape.images, EXPERTS, TOP_K)


class Work(NamedTuple):
    """Unique bytes that must move, and FLOPs of the dot products."""

    bytes: int
    flops: int = 0


def work(problem: Problem) -> dict[str, Work]:
    """Every kernel's bytes and FLOPs, from shapes and the experts' use alone."""
    (batch, tokens, width), hidden, config = problem.shape, problem.hidden, problem.config
    count, dtype, full = problem.counts, problem.dtype, torch.float32
    layer = batch, tokens, width, hidden, TOP_K

    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    shape = PlanShape(batch, TOP_K, EXPERTS, tokens, config.up.block_m)
    plan = shape.view(meta(shape.elements, dtype=torch.int32))
    gemm = count, plan, width, hidden, dtype.itemsize
    x, feature = meta(batch, tokens, width, dtype=full), meta(batch, width, dtype=full)
    narrow, images = meta(plan.rows, width), meta(batch, tokens, width)
    router, gates = meta(EXPERTS, width, dtype=full), meta(batch, TOP_K, dtype=full)
    indices, balance = meta(batch, TOP_K, dtype=torch.int64), route.Balance.of(meta(batch, EXPERTS, dtype=full))
    biases = {"bias_itemsize": full.itemsize, "director_bias_itemsize": full.itemsize, "director": True}
    products, shapes = ((hidden, width), (width, hidden)), ffn_shapes(problem)
    parameters = [[meta(*lead, *s, dtype=full) for s in shapes] for lead in ((), (EXPERTS,))]
    half = torch.bfloat16 if dtype == full else dtype
    halves = [[meta(*t.shape, dtype=half) if i % 2 == 0 else None for i, t in enumerate(part)] for part in parameters]
    weights = [tensor for part in parameters for tensor in part[::2]]
    omega = [torch.tensor(count) / (batch * TOP_K)] * len(shapes)
    return {
        "route_forward": Work(
            route.route_forward_bytes(x, router, None, TOP_K, "cls", keep_feature=True), 2 * batch * EXPERTS * width
        ),
        "make_plan": Work(make_plan_bytes(indices, plan) + route.balance_bytes(balance)),
        "input_rows": Work(expert_order.input_rows_bytes(x, plan, dtype, by_image=True)),
        "expert_up": Work(
            expert_up.expert_up_bytes(*gemm, keep_z=True, **biases), expert_up.expert_up_flops(*layer, director=True)
        ),
        "expert_down": Work(
            expert_down.expert_down_bytes(*gemm, **biases), expert_down.expert_down_flops(*layer, director=True)
        ),
        "mix_align_forward": Work(mix_align.mix_align_forward_bytes(plan, width, dtype, with_gradient=True)),
        "gradient_rows": Work(expert_order.gradient_rows_bytes(images, plan, dtype, images)),
        "expert_dact": Work(
            expert_dact.expert_dact_bytes(*gemm, config.dact, keep_a=False), expert_dact.expert_dact_flops(*layer)
        ),
        "gate_and_bias_gradients": Work(
            bias_gradients.gate_and_bias_bytes(
                count, plan, width, -(-hidden // config.dact.block_n), full.itemsize, full.itemsize
            )
        ),
        "route_gradients": Work(
            route.route_gradients_bytes(feature, router, TOP_K, with_probs=False, with_balance=True),
            4 * batch * EXPERTS * width,
        ),
        "expert_dx": Work(expert_down.expert_dx_bytes(*gemm), expert_down.expert_dx_flops(*layer)),
        "sum_slots": Work(mix_align.sum_slots_bytes(narrow, plan, full, feature)),
        "expert_wgrad": Work(
            expert_wgrad.expert_wgrad_bytes(
                count, plan, products, dtype, full, config.wgrad, problem.multiprocessors, bias=True
            ),
            sum(expert_wgrad.expert_wgrad_flops(batch, tokens, TOP_K, p, q) for p, q in products),
        ),
        "expert_load": Work(route.expert_load_bytes(gates, indices, EXPERTS)),
        "group_ema": Work(group_ema.group_ema_bytes(*parameters, omega)),
        "group_ema copies": Work(group_ema.group_ema_bytes(*parameters, omega, *halves)),
        "cast_all": Work(cast.cast_all_bytes(weights, [copy for part in halves for copy in part if copy is not None])),
    }


def ffn_shapes(problem: Problem) -> tuple[tuple[int, ...], ...]:
    width, hidden = problem.shape.width, problem.hidden
    return (hidden, width), (hidden,), (width, hidden), (width,)
