"""Every launcher under the memory checker: inside its tensors, every output once, and exactly the bytes it says.

``pytest -s`` prints the table: unique bytes, which are what the docstrings promise, beside the issued ones, of which
the caches serve the repeats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import triton
from torch import Tensor

from dexcore.kernels import bias_gradients, mix_align, route
from dexcore.kernels.configs import Gemm
from dexcore.kernels.expert_dact import expert_dact, expert_dact_bytes
from dexcore.kernels.expert_down import expert_down, expert_down_bytes, expert_dx, expert_dx_bytes
from dexcore.kernels.expert_up import expert_up, expert_up_bytes
from dexcore.kernels.expert_wgrad import expert_wgrad, expert_wgrad_bytes
from dexcore.kernels.group_ema import group_ema, group_ema_bytes
from dexcore.kernels.plan import make_plan
from kernels.memory_check import check_memory

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TILE = Gemm(block_m=16, block_n=32, block_k=16, warps=4, stages=1)
ALIGN = {"teacher_temperature": 0.5, "smallest_probability": 1e-6, "cosine_eps": 1e-8}


@dataclass(frozen=True)
class Case:
    """A layer's sizes, and the experts that its images are spread over."""

    batch: int
    tokens: int
    width: int
    hidden: int
    experts: int
    top_k: int
    dtype: torch.dtype
    used: tuple[int, ...]


CASES = {
    "ragged": Case(3, 11, 24, 40, 4, 2, BF16, (0, 1, 2, 3)),
    "whole tiles": Case(2, 16, 32, 32, 2, 2, FP16, (0, 1)),
    "empty experts": Case(3, 7, 17, 33, 7, 3, FP32, (1, 2, 5)),
    "one image": Case(1, 5, 24, 40, 3, 2, FP16, (0, 2)),
    "one expert": Case(3, 7, 20, 24, 5, 1, FP32, (4,)),
    "no image": Case(0, 5, 24, 40, 3, 2, BF16, (0, 1)),
}


class Layer:
    """A case's tensors: parameters in float32, the rest in the compute dtype."""

    def __init__(self, case: Case) -> None:
        self.case, self.dtype = case, case.dtype
        self.batch, self.tokens, self.width, self.hidden = case.batch, case.tokens, case.width, case.hidden
        self.experts, self.top_k = case.experts, case.top_k
        chosen = torch.rand(case.batch, len(case.used)).argsort(-1)[:, : case.top_k]
        self.indices = torch.tensor(case.used)[chosen]
        self.plan = make_plan(self.indices, case.experts, case.tokens, TILE.block_m)
        self.counts = torch.bincount(self.indices.flatten(), minlength=case.experts).tolist()
        self.gates = torch.rand(case.batch, case.top_k)
        self.slots, self.rows, self.image_rows = self.indices.numel(), self.plan.rows, case.batch * case.tokens
        self.itemsize = self.dtype.itemsize

    def made(self, *shape: int) -> Tensor:
        return torch.randn(shape).to(self.dtype)

    @property
    def images(self) -> Tensor:
        return self.made(self.batch, self.tokens, self.width)

    @property
    def w1(self) -> Tensor:
        return self.made(self.experts, self.hidden, self.width)

    @property
    def w2(self) -> Tensor:
        return self.made(self.experts, self.width, self.hidden)


# What is called, and the bytes that it should move. The call returns what must be written completely.
Checked = tuple[Callable[[], tuple[Tensor | None, ...]], int]


def plan_call(layer: Layer, *, with_balance: bool) -> Checked:
    tables = 3 * layer.experts + 3 + layer.plan.tiles.numel()
    balance = route.Balance.of(torch.rand(layer.batch, layer.experts)) if with_balance else None
    # The kernel walks the indices twice.
    expected = layer.slots * (8 + 12) + 4 * tables + route.balance_bytes(balance)
    sums = balance[1:] if balance else ()
    return lambda: (*make_plan(layer.indices, layer.experts, layer.tokens, TILE.block_m, balance)[:8], *sums), expected


def route_forward_call(layer: Layer, *, pool: str, with_noise: bool, keep: bool) -> Checked:
    x, weight = layer.images, torch.randn(layer.experts, layer.width)
    noise = torch.randn(layer.batch, layer.experts) if with_noise else None
    kept = torch.empty(layer.batch, layer.width) if keep else None
    expected = route.route_forward_bytes(x, weight, noise, layer.top_k, pool, keep_feature=keep)
    return lambda: (*route.route_forward(x, weight, noise, layer.top_k, 0.5, pool, kept), kept), expected


def route_gradients_call(layer: Layer, *, with_probs: bool, with_balance: bool) -> Checked:
    feature, weight = torch.randn(layer.batch, layer.width), torch.randn(layer.experts, layer.width)
    gates, indices, probs = route.route_forward(feature.unsqueeze(1), weight, None, layer.top_k, 0.5, "cls")
    grad_probs = torch.randn_like(probs) if with_probs else None
    grads = torch.randn_like(gates), grad_probs, torch.randn(()) if with_balance else None
    arguments = *grads, feature, weight, gates, indices, probs, torch.rand(layer.experts), 0.5
    expected = route.route_gradients_bytes(
        feature, weight, layer.top_k, with_probs=with_probs, with_balance=with_balance
    )
    return lambda: route.route_gradients(*arguments), expected


def route_backward_call(layer: Layer, *, pool: str) -> Checked:
    x, weight = layer.images, torch.randn(layer.experts, layer.width)
    gates, indices, probs = route.route_forward(x, weight, None, layer.top_k, 0.5, pool)
    gradients = torch.randn_like(gates), torch.randn_like(probs)
    expected = route.route_backward_bytes(x, weight, layer.top_k, pool)
    return lambda: route.route_backward(*gradients, x, weight, gates, indices, probs, 0.5, pool), expected


def expert_load_call(layer: Layer) -> Checked:
    expected = route.expert_load_bytes(layer.gates, layer.indices, layer.experts)
    return lambda: (route.expert_load(layer.gates, layer.indices, layer.experts),), expected


def expert_up_call(layer: Layer, *, keep_z: bool, keep_a: bool, with_director: bool, with_bias: bool) -> Checked:
    b1 = torch.randn(layer.experts, layer.hidden) if with_bias else None
    db1 = torch.randn(layer.hidden) if with_bias else None
    director = (layer.made(layer.hidden, layer.width), db1) if with_director else None
    call = partial(
        expert_up,
        *(layer.images, layer.w1, b1, layer.gates, layer.plan, "gelu", "ieee", TILE),
        keep_z=keep_z,
        keep_a=keep_a,
        director=director,
    )
    expected = expert_up_bytes(
        *(layer.counts, layer.batch, layer.tokens, layer.width, layer.hidden, TILE.block_m, layer.itemsize),
        bias_itemsize=4 * with_bias,
        keep_z=keep_z,
        keep_a=keep_a,
        director=with_director,
        director_bias_itemsize=4 * with_bias,
    )
    return call, expected


def expert_down_call(layer: Layer, *, with_director: bool, with_bias: bool) -> Checked:
    b2 = torch.randn(layer.experts, layer.width) if with_bias else None
    db2 = torch.randn(layer.width) if with_bias else None
    director = layer.made(layer.image_rows, layer.hidden), layer.made(layer.width, layer.hidden), db2
    call = partial(
        expert_down,
        *(layer.made(layer.rows, layer.hidden), layer.w2, b2, layer.gates, layer.plan, "ieee", TILE),
        director=director if with_director else None,
    )
    expected = expert_down_bytes(
        *(layer.counts, layer.batch, layer.tokens, layer.width, layer.hidden, TILE.block_m, layer.itemsize),
        bias_itemsize=4 * with_bias,
        director=with_director,
        director_bias_itemsize=4 * with_bias,
    )
    return call, expected


def expert_dx_call(layer: Layer) -> Checked:
    dz, w1 = layer.made(layer.rows, layer.hidden), layer.w1
    sizes = layer.counts, layer.tokens, layer.width, layer.hidden, TILE.block_m, layer.itemsize
    return lambda: (expert_dx(dz, w1, layer.plan, "ieee", TILE),), expert_dx_bytes(*sizes)


def expert_dact_call(layer: Layer, *, keep_a: bool) -> Checked:
    dy, w2, z = layer.images, layer.w2, layer.made(layer.rows, layer.hidden)
    tiles = sum(triton.cdiv(count * layer.tokens, TILE.block_m) for count in layer.counts)

    def call() -> tuple[Tensor, ...]:
        arguments = dy, w2, z, layer.gates, layer.plan, "gelu", "ieee", TILE
        dz, wa, bias_parts, gate_parts = expert_dact(*arguments, keep_a=keep_a)
        return dz, wa, bias_parts[:tiles], gate_parts  # the tiles without an expert have no bias parts

    sizes = layer.counts, layer.batch, layer.tokens, layer.width, layer.hidden, layer.itemsize
    return call, expert_dact_bytes(*sizes, TILE, keep_a)


def expert_wgrad_call(layer: Layer, *, second: bool, split_k: int | None) -> Checked:
    by_image, by_row = layer.made(layer.image_rows, layer.width), layer.made(layer.rows, layer.hidden)
    left, right = (by_image, by_row) if second else (by_row, by_image)
    how = {"left_by_image": second, "right_by_image": not second, "split_k": split_k}
    expected = expert_wgrad_bytes(
        *(layer.counts, layer.batch, layer.tokens, left.shape[1], right.shape[1], layer.dtype, FP32, TILE), **how
    )
    return lambda: (expert_wgrad(left, right, layer.plan, FP32, "ieee", TILE, **how),), expected


def mix_align_call(layer: Layer, *, kind: str, with_gradient: bool) -> Checked:
    o, teacher = layer.made(layer.rows, layer.width), layer.made(layer.image_rows, layer.width)
    expected = mix_align.mix_align_forward_bytes(o, layer.plan, teacher, with_gradient=with_gradient)
    call = partial(mix_align.mix_align_forward, o, layer.plan, teacher, kind, with_gradient=with_gradient, **ALIGN)
    return call, expected


def align_call(layer: Layer, *, kind: str, with_gradient: bool) -> Checked:
    student, teacher = layer.made(layer.image_rows, layer.width), layer.made(layer.image_rows, layer.width)
    expected = mix_align.align_forward_bytes(student, teacher, with_gradient=with_gradient)
    return partial(mix_align.align_forward, student, teacher, kind, with_gradient=with_gradient, **ALIGN), expected


def align_backward_call(layer: Layer, *, with_grad_y: bool) -> Checked:
    loss, gradient = torch.randn(()), layer.made(layer.image_rows, layer.width)
    grad_y = layer.made(layer.image_rows, layer.width) if with_grad_y else None
    expected = mix_align.align_backward_bytes(gradient, grad_y, layer.dtype)
    return lambda: (mix_align.align_backward(loss, gradient, grad_y, layer.dtype),), expected


def sum_slots_call(layer: Layer, *, pool: str | None) -> Checked:
    o = layer.made(layer.rows, layer.width)
    through = (torch.randn(layer.batch, layer.width), pool) if pool else ()
    expected = mix_align.sum_slots_bytes(o, layer.plan, layer.dtype, *through[:1])
    return lambda: (mix_align.sum_slots(o, layer.plan, layer.dtype, *through),), expected


def token_sums_call(layer: Layer) -> Checked:
    dy = layer.images
    expected = bias_gradients.token_sums_bytes(layer.batch, layer.tokens, layer.width, layer.itemsize)
    return lambda: (bias_gradients.token_sums(dy),), expected


def bias1_call(layer: Layer) -> Checked:
    parts = torch.randn(layer.plan.tiles.numel(), layer.hidden)
    sizes = layer.counts, layer.tokens, layer.hidden, 4, TILE.block_m
    return lambda: (bias_gradients.bias1_gradient(parts, layer.plan, FP32),), bias_gradients.bias1_gradient_bytes(
        *sizes
    )


def bias2_call(layer: Layer) -> Checked:
    sums = torch.randn(layer.batch, layer.width)
    expected = bias_gradients.bias2_gradient_bytes(layer.counts, layer.batch, layer.width, 4)
    return lambda: (bias_gradients.bias2_gradient(sums, layer.gates, layer.plan, FP32),), expected


def gate_call(layer: Layer, *, with_bias: bool) -> Checked:
    parts, sums = torch.randn(3, layer.rows), torch.randn(layer.batch, layer.width)
    b2 = torch.randn(layer.experts, layer.width) if with_bias else None
    sizes = layer.counts, layer.batch, layer.tokens, 3, layer.width, 4 if with_bias else None
    call = partial(bias_gradients.gate_gradient, parts, sums, b2, layer.plan)
    return lambda: (call(),), bias_gradients.gate_gradient_bytes(*sizes)


CALLS = {
    "make_plan": partial(plan_call, with_balance=False),
    "make_plan balance": partial(plan_call, with_balance=True),
    "route_forward cls noise": partial(route_forward_call, pool="cls", with_noise=True, keep=False),
    "route_forward cls keep": partial(route_forward_call, pool="cls", with_noise=False, keep=True),
    "route_forward mean": partial(route_forward_call, pool="mean", with_noise=False, keep=False),
    "route_forward mean keep": partial(route_forward_call, pool="mean", with_noise=True, keep=True),
    "route_gradients probs balance": partial(route_gradients_call, with_probs=True, with_balance=True),
    "route_gradients balance": partial(route_gradients_call, with_probs=False, with_balance=True),
    "route_gradients": partial(route_gradients_call, with_probs=False, with_balance=False),
    "route_backward cls": partial(route_backward_call, pool="cls"),
    "route_backward mean": partial(route_backward_call, pool="mean"),
    "expert_load": expert_load_call,
    "expert_up z wa director": partial(expert_up_call, keep_z=True, keep_a=True, with_director=True, with_bias=True),
    "expert_up wa": partial(expert_up_call, keep_z=False, keep_a=True, with_director=False, with_bias=True),
    "expert_up z": partial(expert_up_call, keep_z=True, keep_a=False, with_director=False, with_bias=False),
    "expert_down director": partial(expert_down_call, with_director=True, with_bias=True),
    "expert_down": partial(expert_down_call, with_director=False, with_bias=False),
    "expert_dx": expert_dx_call,
    "expert_dact": partial(expert_dact_call, keep_a=False),
    "expert_dact wa": partial(expert_dact_call, keep_a=True),
    "expert_wgrad 1": partial(expert_wgrad_call, second=False, split_k=1),
    "expert_wgrad 1 split": partial(expert_wgrad_call, second=False, split_k=4),
    "expert_wgrad 2": partial(expert_wgrad_call, second=True, split_k=None),
    "mix_align_forward kd": partial(mix_align_call, kind="kd", with_gradient=True),
    "mix_align_forward cosine": partial(mix_align_call, kind="cosine", with_gradient=True),
    "mix_align_forward mse": partial(mix_align_call, kind="mse", with_gradient=False),
    "align_forward kd": partial(align_call, kind="kd", with_gradient=True),
    "align_backward grad_y": partial(align_backward_call, with_grad_y=True),
    "align_backward": partial(align_backward_call, with_grad_y=False),
    "sum_slots": partial(sum_slots_call, pool=None),
    "sum_slots cls": partial(sum_slots_call, pool="cls"),
    "sum_slots mean": partial(sum_slots_call, pool="mean"),
    "token_sums": token_sums_call,
    "bias1_gradient": bias1_call,
    "bias2_gradient": bias2_call,
    "gate_gradient bias": partial(gate_call, with_bias=True),
    "gate_gradient": partial(gate_call, with_bias=False),
}


def _print_row(name: str, case: str, launches: list, expected: int) -> None:
    traffic = [moved for launch in launches for moved in launch.traffic.values()]
    sums = (
        sum(getattr(moved, field) for moved in traffic)
        for field in ("unique_read", "unique_written", "issued_read", "issued_written")
    )
    read, written, issued_read, issued_written = sums
    print(
        f"\n{name:25s} {case:14s} unique {read:8d} read {written:7d} written = {expected:8d} said, "
        f"issued {issued_read:9d} read {issued_written:7d} written",
        end="",
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CALLS)
def test_a_launcher_keeps_to_its_tensors_and_moves_the_bytes_that_it_says(name, case):
    call, expected = CALLS[name](Layer(CASES[case]))
    with check_memory() as memory:
        memory.assert_written(*(output for output in call() if output is not None))
    _print_row(name, case, memory.launches, expected)
    assert memory.unique_bytes == expected
    if CASES[case].batch:
        assert memory.launches


@pytest.mark.parametrize("sizes", [(5000, 64, 7), (1,), (0, 3)], ids=str)
@pytest.mark.parametrize("shares", [(0.25, 0.75, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0)], ids=str)
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@pytest.mark.parametrize("copied", [(), ("directors",), ("experts",), ("directors", "experts")], ids=str)
def test_group_ema_reads_the_experts_in_use_alone_but_for_copies(sizes, shares, dtype, copied):
    directors = [torch.randn(size).to(dtype) for size in sizes]
    experts = [torch.randn(len(shares), size).to(dtype) for size in sizes]
    weights = [torch.tensor(shares) for _ in sizes]
    copies = [
        [tensor.to(torch.float16) for tensor in tensors] if name in copied else []
        for name, tensors in (("directors", directors), ("experts", experts))
    ]
    arguments = directors, experts, weights
    expected = group_ema_bytes(*arguments, *(part or None for part in copies))
    with check_memory(*directors, *experts, *copies[0], *copies[1]) as memory:
        group_ema(*arguments, 0.9, *(part or None for part in copies))
        memory.assert_written(*copies[0], *copies[1])
        if any(shares):
            memory.assert_written(*directors)
    elements, active = sum(sizes), sum(share != 0 for share in shares)
    of_tensors = elements * dtype.itemsize * ((active + 2) if active else 0)
    if "directors" in copied:
        of_tensors += elements * (2 + (0 if active else dtype.itemsize))
    if "experts" in copied:
        of_tensors += elements * (2 * len(shares) + (len(shares) - active) * dtype.itemsize)
    moved = sum(m.unique for launch in memory.launches for name, m in launch.traffic.items() if "reachable" in name)
    assert moved == of_tensors
    _print_row("group_ema", str(sizes), memory.launches, expected)
    assert memory.unique_bytes == expected
