"""Every launcher under the memory checker: inside its tensors, every output once, and exactly the bytes it says.

``pytest -s`` prints the table: unique bytes, which are what the docstrings promise, beside the issued ones, of which
the caches serve the repeats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from dexcore.kernels import bias_gradients, mix_align, route
from dexcore.kernels.configs import Gemm
from dexcore.kernels.expert_dact import expert_dact, expert_dact_bytes
from dexcore.kernels.expert_down import expert_down, expert_down_bytes, expert_dx, expert_dx_bytes
from dexcore.kernels.expert_order import Input, gradient_rows, gradient_rows_bytes, input_rows, input_rows_bytes
from dexcore.kernels.expert_up import expert_up, expert_up_bytes
from dexcore.kernels.expert_wgrad import Product, Split, expert_wgrad, expert_wgrad_bytes
from dexcore.kernels.group_ema import group_ema, group_ema_bytes
from dexcore.kernels.plan import make_plan, make_plan_bytes
from kernels.expert_rows import counts_of, live
from kernels.memory_check import check_memory

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TILE = Gemm(block_m=16, block_n=32, block_k=16, warps=4, stages=1)
MULTIPROCESSORS = 4
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
    """A case's tensors: parameters in float32, the rest in the compute dtype. Described, of whole steps along K."""

    def __init__(self, case: Case, described: bool = False) -> None:
        self.case, self.dtype = case, case.dtype
        self.tile = TILE._replace(described=described)
        step = TILE.block_k if described else 1
        self.batch, self.tokens = case.batch, case.tokens
        self.width, self.hidden = (-(-size // step) * step for size in (case.width, case.hidden))
        self.experts, self.top_k = case.experts, case.top_k
        chosen = torch.rand(case.batch, len(case.used)).argsort(-1)[:, : case.top_k]
        self.indices = torch.tensor(case.used)[chosen]
        self.plan, _ = make_plan(self.indices, case.experts, case.tokens, TILE.block_m)
        self.counts = counts_of(self.indices, case.experts)
        self.gates, self.row_gates = torch.rand(case.batch, case.top_k), torch.rand(self.plan.rows)
        self.rows, self.image_rows = self.plan.rows, case.batch * case.tokens
        self.live = live(self.plan)  # others are neither written nor read, where nothing else is said
        self.tile_rows = -(-self.image_rows // TILE.block_m) * TILE.block_m  # of the director
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
    balance = route.Balance.of(torch.rand(layer.batch, layer.experts)) if with_balance else None
    expected = make_plan_bytes(layer.indices, layer.plan) + route.balance_bytes(balance)
    sums = balance[1:] if balance else ()

    def call() -> tuple[Tensor, ...]:
        plan, _ = make_plan(layer.indices, layer.experts, layer.tokens, TILE.block_m, balance)
        return *plan.tables, *sums

    return call, expected


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


def input_rows_call(layer: Layer, *, by_image: bool) -> Checked:
    x, dtype = torch.randn(layer.batch, layer.tokens, layer.width), layer.dtype
    expected = input_rows_bytes(x, layer.plan, dtype, by_image=by_image)
    return lambda: input_rows(x, layer.gates, layer.plan, dtype, by_image=by_image), expected


def gradient_rows_call(layer: Layer, *, with_grad_y: bool, with_loss: bool) -> Checked:
    grad_y = torch.randn(layer.batch, layer.tokens, layer.width) if with_grad_y else None
    gradient, grad_loss = (layer.images, torch.randn(())) if with_loss else (None, None)
    expected = gradient_rows_bytes(grad_y, layer.plan, layer.dtype, gradient)
    loss = {"grad_loss": grad_loss, "gradient": gradient}
    return lambda: gradient_rows(grad_y, layer.plan, layer.dtype, **loss), expected


def beyond(layer: Layer, columns: int) -> int:
    """Rows of weights of experts without slots that are read: by descriptors, where the last tile of the one before
    reaches into them.
    """
    pairs = zip(layer.counts, layer.counts[1:], strict=False)
    reached = sum(count > 0 and following == 0 for count, following in pairs)
    return reached * (-columns % layer.tile.block_n) if layer.tile.described else 0


def expert_up_call(
    layer: Layer, *, keep_z: bool, keep_a: bool, with_director: bool, with_bias: bool, activation: str = "gelu"
) -> Checked:
    glu = activation == "swiglu"
    columns = 2 * layer.hidden if glu else layer.hidden
    b1 = torch.randn(layer.experts, columns) if with_bias else None
    db1 = torch.randn(columns) if with_bias else None
    w1 = layer.made(layer.experts, columns, layer.width)
    images = layer.made(layer.tile_rows, layer.width) if with_director else None
    director = (layer.made(columns, layer.width), db1) if with_director else None
    x = Input(layer.made(layer.rows, layer.width), layer.row_gates, images)
    kept = {"keep_z": keep_z, "keep_a": keep_a}
    call = partial(expert_up, x, w1, b1, layer.plan, activation, "ieee", layer.tile, **kept, director=director)
    expected = expert_up_bytes(
        *(layer.counts, layer.plan, layer.width, layer.hidden, layer.itemsize),
        **kept,
        bias_itemsize=4 * with_bias,
        director=with_director,
        director_bias_itemsize=4 * with_bias,
        glu=glu,
    )
    return call, expected + (0 if glu else beyond(layer, layer.hidden) * layer.width * layer.itemsize)


def expert_down_call(layer: Layer, *, with_director: bool, with_bias: bool) -> Checked:
    b2 = torch.randn(layer.experts, layer.width) if with_bias else None
    db2 = torch.randn(layer.width) if with_bias else None
    director = layer.made(layer.tile_rows, layer.hidden), layer.made(layer.width, layer.hidden), db2
    wa, w2 = layer.made(layer.rows, layer.hidden), layer.w2

    def call() -> tuple[Tensor | None, ...]:
        arguments = wa, w2, b2, layer.row_gates, layer.plan, "ieee", layer.tile
        o, teacher = expert_down(*arguments, director=director if with_director else None)
        return o[: layer.live], teacher

    expected = expert_down_bytes(
        *(layer.counts, layer.plan, layer.width, layer.hidden, layer.itemsize),
        bias_itemsize=4 * with_bias,
        director=with_director,
        director_bias_itemsize=4 * with_bias,
    )
    return call, expected


def expert_dx_call(layer: Layer) -> Checked:
    dz, w1 = layer.made(layer.rows, layer.hidden), layer.w1
    expected = expert_dx_bytes(layer.counts, layer.plan, layer.width, layer.hidden, layer.itemsize)
    return lambda: (expert_dx(dz, w1, layer.plan, "ieee", layer.tile)[: layer.live],), expected


def expert_dact_call(layer: Layer, *, keep_a: bool, activation: str = "gelu") -> Checked:
    glu = activation == "swiglu"
    columns = 2 * layer.hidden if glu else layer.hidden
    dy, w2, z = layer.made(layer.rows, layer.width), layer.w2, layer.made(layer.rows, columns)

    def call() -> tuple[Tensor, ...]:
        arguments = dy, w2, z, layer.row_gates, layer.plan, activation, "ieee", layer.tile
        dz, wa, gate_parts = expert_dact(*arguments, keep_a=keep_a)
        return dz[: layer.live], wa[: layer.live], gate_parts[:, : layer.live]

    sizes = layer.counts, layer.plan, layer.width, layer.hidden, layer.itemsize, layer.tile
    return call, expert_dact_bytes(*sizes, keep_a=keep_a, glu=glu)


def expert_wgrad_call(layer: Layer, *, first: bool, second: bool, bias: bool, part: int) -> Checked:
    """Of both products or one; an expert of more than one part's tiles is cut."""
    products = [
        Product(layer.made(layer.rows, p), layer.made(layer.rows, q)) if wanted else None
        for wanted, p, q in ((first, layer.hidden, layer.width), (second, layer.width, layer.hidden))
    ]
    shapes = [product.shape for product in products if product is not None]
    tiles = layer.plan.tiles.numel()
    how = {"bias": bias, "split": Split(part, tiles // part) if part and tiles else Split(0, 0)}
    sizes = layer.counts, layer.plan, shapes, layer.dtype, FP32, layer.tile, MULTIPROCESSORS
    call = partial(expert_wgrad, *products, layer.plan, FP32, "ieee", layer.tile, MULTIPROCESSORS, **how)
    return call, expert_wgrad_bytes(*sizes, **how)


def mix_align_call(layer: Layer, *, kind: str, with_gradient: bool) -> Checked:
    o, teacher = layer.made(layer.rows, layer.width), layer.made(layer.tile_rows, layer.width)
    expected = mix_align.mix_align_forward_bytes(layer.plan, layer.width, layer.dtype, with_gradient=with_gradient)
    call = partial(mix_align.mix_align_forward, o, layer.plan, teacher, kind, with_gradient=with_gradient, **ALIGN)
    return call, expected


def align_call(layer: Layer, *, kind: str, with_gradient: bool) -> Checked:
    student, teacher = layer.made(layer.image_rows, layer.width), layer.made(layer.image_rows, layer.width)
    expected = mix_align.align_forward_bytes(student, teacher, with_gradient=with_gradient)
    return partial(mix_align.align_forward, student, teacher, kind, with_gradient=with_gradient, **ALIGN), expected


def align_backward_call(layer: Layer) -> Checked:
    loss, gradient = torch.randn(()), layer.made(layer.image_rows, layer.width)
    return lambda: (mix_align.align_backward(loss, gradient),), mix_align.align_backward_bytes(gradient)


def sum_slots_call(layer: Layer, *, pool: str | None) -> Checked:
    o = layer.made(layer.rows, layer.width)
    through = (torch.randn(layer.batch, layer.width), pool) if pool else ()
    expected = mix_align.sum_slots_bytes(o, layer.plan, layer.dtype, *through[:1])
    return lambda: (mix_align.sum_slots(o, layer.plan, layer.dtype, *through),), expected


def gate_and_bias_call(layer: Layer, *, with_gates: bool, with_b2: bool, with_bias: bool) -> Checked:
    parts = torch.randn(3, layer.rows) if with_gates else None
    b2 = layer.made(layer.experts, layer.width) if with_b2 else None
    sums, dtype = torch.randn(layer.batch, layer.width), FP32 if with_bias else None
    expected = bias_gradients.gate_and_bias_bytes(
        *(layer.counts, layer.plan, layer.width, 3 if with_gates else None),
        *(layer.itemsize if with_b2 else None, 4 if with_bias else None),
    )
    arguments = parts, sums, b2, layer.gates, layer.plan, dtype
    return lambda: bias_gradients.gate_and_bias_gradients(*arguments), expected


GEMMS = {
    "expert_up z wa director": partial(expert_up_call, keep_z=True, keep_a=True, with_director=True, with_bias=True),
    "expert_up wa": partial(expert_up_call, keep_z=False, keep_a=True, with_director=False, with_bias=True),
    "expert_up z": partial(expert_up_call, keep_z=True, keep_a=False, with_director=False, with_bias=False),
    "expert_down director": partial(expert_down_call, with_director=True, with_bias=True),
    "expert_down": partial(expert_down_call, with_director=False, with_bias=False),
    "expert_dx": expert_dx_call,
    "expert_dact": partial(expert_dact_call, keep_a=False),
    "expert_dact wa": partial(expert_dact_call, keep_a=True),
    "expert_up swiglu": partial(
        expert_up_call, keep_z=True, keep_a=True, with_director=True, with_bias=True, activation="swiglu"
    ),
    "expert_dact swiglu": partial(expert_dact_call, keep_a=True, activation="swiglu"),
    "expert_wgrad both": partial(expert_wgrad_call, first=True, second=True, bias=True, part=0),
    "expert_wgrad both split": partial(expert_wgrad_call, first=True, second=True, bias=True, part=1),
    "expert_wgrad 1": partial(expert_wgrad_call, first=True, second=False, bias=False, part=0),
    "expert_wgrad 2 split": partial(expert_wgrad_call, first=False, second=True, bias=False, part=1),
}
CALLS = {
    **GEMMS,
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
    "input_rows images": partial(input_rows_call, by_image=True),
    "input_rows": partial(input_rows_call, by_image=False),
    "gradient_rows grad_y loss": partial(gradient_rows_call, with_grad_y=True, with_loss=True),
    "gradient_rows grad_y": partial(gradient_rows_call, with_grad_y=True, with_loss=False),
    "gradient_rows loss": partial(gradient_rows_call, with_grad_y=False, with_loss=True),
    "mix_align_forward kd": partial(mix_align_call, kind="kd", with_gradient=True),
    "mix_align_forward cosine": partial(mix_align_call, kind="cosine", with_gradient=True),
    "mix_align_forward mse": partial(mix_align_call, kind="mse", with_gradient=False),
    "align_forward kd": partial(align_call, kind="kd", with_gradient=True),
    "align_backward": align_backward_call,
    "sum_slots": partial(sum_slots_call, pool=None),
    "sum_slots cls": partial(sum_slots_call, pool="cls"),
    "sum_slots mean": partial(sum_slots_call, pool="mean"),
    "gate_and_bias b2": partial(gate_and_bias_call, with_gates=True, with_b2=True, with_bias=True),
    "gate_and_bias": partial(gate_and_bias_call, with_gates=True, with_b2=False, with_bias=True),
    "gate alone": partial(gate_and_bias_call, with_gates=True, with_b2=True, with_bias=False),
    "bias alone": partial(gate_and_bias_call, with_gates=False, with_b2=True, with_bias=True),
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


def check(name: str, case: str, described: bool) -> None:
    call, expected = CALLS[name](Layer(CASES[case], described))
    with check_memory() as memory:
        memory.assert_written(*(output for output in call() if output is not None))
    _print_row(name, case, memory.launches, expected)
    assert memory.unique_bytes == expected
    if CASES[case].batch:
        assert memory.launches


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", CALLS)
def test_a_launcher_keeps_to_its_tensors_and_moves_the_bytes_that_it_says(name, case):
    check(name, case, described=False)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", GEMMS)
def test_by_descriptors_it_moves_the_bytes_that_it_says(name, case):
    check(name, case, described=True)


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
