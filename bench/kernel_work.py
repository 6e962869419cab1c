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
    expert_up,
    expert_wgrad,
    group_ema,
    mix_align,
    route,
)
from dexcore.kernels.configs import LayerConfig, layer_config
from dexcore.kernels.plan import Plan


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
    def counts(self) -> list[int]:
        return counts(self.routing, self.shape.images, EXPERTS, TOP_K)


class Work(NamedTuple):
    """Unique bytes that must move, and FLOPs of the dot products."""

    bytes: int
    flops: int = 0


def work(problem: Problem) -> dict[str, Work]:
    """Every kernel's bytes and FLOPs, from shapes and the experts' use alone."""
    (batch, tokens, width), hidden, config = problem.shape, problem.hidden, problem.config
    count, size, full = problem.counts, problem.dtype.itemsize, 4
    slots, block_m = batch * TOP_K, config.up.block_m
    rows = slots * tokens

    def meta(*shape: int, dtype: torch.dtype = problem.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    plan = _meta_plan(problem)
    routed = meta(batch, 1, width, dtype=torch.float32)
    o, images = meta(rows, width), meta(batch * tokens, width)
    router = meta(EXPERTS, width, dtype=torch.float32)
    gates, indices = meta(batch, TOP_K, dtype=torch.float32), meta(batch, TOP_K, dtype=torch.int64)
    pairs = [(meta(*s, dtype=torch.float32), meta(EXPERTS, *s, dtype=torch.float32)) for s in ffn_shapes(problem)]
    omega = torch.tensor(count) / slots
    return {
        "route_forward": Work(
            route.route_forward_bytes(routed, router, None, TOP_K, "cls"), 2 * batch * EXPERTS * width
        ),
        "make_plan": Work(indices.nbytes + sum(table.nbytes for table in plan[:8])),
        "expert_up": Work(
            expert_up.expert_up_bytes(
                count,
                batch,
                tokens,
                width,
                hidden,
                block_m,
                size,
                bias_itemsize=size,
                keep_z=True,
                director=True,
                director_bias_itemsize=size,
            ),
            expert_up.expert_up_flops(batch, tokens, width, hidden, TOP_K, director=True),
        ),
        "expert_down": Work(
            expert_down.expert_down_bytes(
                count,
                batch,
                tokens,
                width,
                hidden,
                block_m,
                size,
                bias_itemsize=size,
                director=True,
                director_bias_itemsize=size,
            ),
            expert_down.expert_down_flops(batch, tokens, width, hidden, TOP_K, director=True),
        ),
        "mix_align_forward": Work(mix_align.mix_align_forward_bytes(o, plan, images, with_gradient=True)),
        "align_backward": Work(mix_align.align_backward_bytes(images, images, problem.dtype)),
        "token_sums": Work(bias_gradients.token_sums_bytes(batch, tokens, width, size)),
        "expert_dact": Work(
            expert_dact.expert_dact_bytes(count, batch, tokens, width, hidden, size, config.dact, keep_a=False),
            expert_dact.expert_dact_flops(rows, width, hidden),
        ),
        "bias1_gradient": Work(bias_gradients.bias1_gradient_bytes(count, tokens, hidden, full, block_m)),
        "bias2_gradient": Work(bias_gradients.bias2_gradient_bytes(count, batch, width, full)),
        "gate_gradient": Work(
            bias_gradients.gate_gradient_bytes(
                count, batch, tokens, -(-hidden // config.dact.block_n), width, b2_itemsize=size
            )
        ),
        "expert_dx": Work(
            expert_down.expert_dx_bytes(count, tokens, width, hidden, block_m, size),
            expert_down.expert_dx_flops(batch, tokens, width, hidden, TOP_K),
        ),
        "sum_slots": Work(mix_align.sum_slots_bytes(o, plan, torch.float32)),
        "expert_wgrad 1": Work(
            _wgrad_bytes(problem, hidden, width, config.wgrad1, left=False),
            expert_wgrad.expert_wgrad_flops(rows, hidden, width),
        ),
        "expert_wgrad 2": Work(
            _wgrad_bytes(problem, width, hidden, config.wgrad2, left=True),
            expert_wgrad.expert_wgrad_flops(rows, width, hidden),
        ),
        "route_backward": Work(route.route_backward_bytes(routed, router, TOP_K, "cls"), 4 * batch * EXPERTS * width),
        "expert_load": Work(route.expert_load_bytes(gates, indices, EXPERTS)),
        "group_ema": Work(group_ema.group_ema_bytes(*zip(*pairs, strict=True), [omega] * len(pairs))),
    }


def _wgrad_bytes(problem: Problem, p: int, q: int, config: object, left: bool) -> int:
    batch, tokens, _ = problem.shape
    return expert_wgrad.expert_wgrad_bytes(
        problem.counts,
        batch,
        tokens,
        p,
        q,
        problem.dtype,
        torch.float32,
        config,
        left_by_image=left,
        right_by_image=not left,
    )


def ffn_shapes(problem: Problem) -> tuple[tuple[int, ...], ...]:
    width, hidden = problem.shape.width, problem.hidden
    return (hidden, width), (hidden,), (width, hidden), (width,)


def _meta_plan(problem: Problem) -> Plan:
    slots, block_m = problem.shape.images * TOP_K, problem.config.up.block_m
    tiles = slots * problem.shape.tokens // block_m + min(EXPERTS, slots)
    sizes = (slots, slots, slots, EXPERTS + 1, EXPERTS + 1, tiles, EXPERTS, 1)
    tables = (torch.empty(size, dtype=torch.int32, device="meta") for size in sizes)
    return Plan(*tables, num_experts=EXPERTS, tokens=problem.shape.tokens, top_k=TOP_K, block_m=block_m)
