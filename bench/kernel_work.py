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

    Parameters, the layer's input, and the gradients of both are float32; everything else is ``dtype``, the copies that
    the experts' kernels are given among it.
    """

    shape: Shape
    dtype: torch.dtype
    routing: str
    architecture: str

    @property
    def hidden(self) -> int:
        return 4 * self.shape.width

    @property
    def config(self) -> LayerConfig:
        return layer_config(self.architecture, self.shape.width, self.hidden, self.dtype)

    @property
    def multiprocessors(self) -> int:
        return MULTIPROCESSORS[self.architecture]

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
    x, routed = meta(batch, tokens, width, dtype=full), meta(batch, 1, width, dtype=full)
    narrow, images = meta(plan.rows, width), meta(batch, tokens, width)
    router, gates = meta(EXPERTS, width, dtype=full), meta(batch, TOP_K, dtype=full)
    indices = meta(batch, TOP_K, dtype=torch.int64)
    biases = {"bias_itemsize": dtype.itemsize, "director_bias_itemsize": dtype.itemsize, "director": True}
    products = (hidden, width), (width, hidden)
    pairs = [(meta(*s, dtype=full), meta(EXPERTS, *s, dtype=full)) for s in ffn_shapes(problem)]
    omega = torch.tensor(count) / (batch * TOP_K)
    return {
        "route_forward": Work(
            route.route_forward_bytes(routed, router, None, TOP_K, "cls"), 2 * batch * EXPERTS * width
        ),
        "make_plan": Work(make_plan_bytes(indices, plan)),
        "input_rows": Work(expert_order.input_rows_bytes(count, x, plan, dtype, by_image=True)),
        "expert_up": Work(
            expert_up.expert_up_bytes(*gemm, keep_z=True, **biases), expert_up.expert_up_flops(*layer, director=True)
        ),
        "expert_down": Work(
            expert_down.expert_down_bytes(*gemm, **biases), expert_down.expert_down_flops(*layer, director=True)
        ),
        "mix_align_forward": Work(mix_align.mix_align_forward_bytes(plan, width, dtype, with_gradient=True)),
        "gradient_rows": Work(expert_order.gradient_rows_bytes(count, images, plan, dtype, images)),
        "expert_dact": Work(
            expert_dact.expert_dact_bytes(*gemm, config.dact, keep_a=False), expert_dact.expert_dact_flops(*layer)
        ),
        "expert_dx": Work(expert_down.expert_dx_bytes(*gemm), expert_down.expert_dx_flops(*layer)),
        "sum_slots": Work(mix_align.sum_slots_bytes(narrow, plan, full)),
        "gate_and_bias_gradients": Work(
            bias_gradients.gate_and_bias_bytes(
                count, plan, width, -(-hidden // config.dact.block_n), dtype.itemsize, full.itemsize
            )
        ),
        "expert_wgrad": Work(
            expert_wgrad.expert_wgrad_bytes(
                count, plan, products, dtype, full, config.wgrad, problem.multiprocessors, bias=True
            ),
            sum(expert_wgrad.expert_wgrad_flops(batch, tokens, TOP_K, p, q) for p, q in products),
        ),
        "route_backward": Work(route.route_backward_bytes(routed, router, TOP_K, "cls"), 4 * batch * EXPERTS * width),
        "expert_load": Work(route.expert_load_bytes(gates, indices, EXPERTS)),
        "group_ema": Work(group_ema.group_ema_bytes(*zip(*pairs, strict=True), [omega] * len(pairs))),
    }


def ffn_shapes(problem: Problem) -> tuple[tuple[int, ...], ...]:
    width, hidden = problem.shape.width, problem.hidden
    return (hidden, width), (hidden,), (width, hidden), (width,)
