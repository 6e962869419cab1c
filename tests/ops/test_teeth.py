"""The checks have teeth: each wrong kernel, one line away from the right one, is caught by them."""

import ast
import importlib.util
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from dexcore import ops
from dexcore.kernels import cast, expert_dact, expert_up, group_ema
from dexcore.kernels.configs import Gemm
from dexcore.kernels.expert_order import Input
from dexcore.kernels.plan import make_plan
from dexcore.ops import experts_triton  # noqa: F401  imported here, so that it can be mutated
from kernels.memory_check import check_memory
from ops import plain
from ops.agreement import check_dex_layer, check_dex_mlp, check_group_ema, check_route


def check_experts(tokens=9, **keywords):
    """k 2, an idle expert, rows of several tiles, ragged tails."""
    activation = keywords.get("activation", "gelu")
    check_dex_mlp(plain.make_case(batch=5, tokens=tokens, width=24, hidden=40, activation=activation), **keywords)


def check_described():
    """Operands of whole steps, which have descriptors."""
    check_dex_mlp(plain.make_case(batch=3, tokens=9, width=32, hidden=64))


def check_cut():
    """Experts whose weights' gradients are summed in parts."""
    check_dex_mlp(plain.make_case(batch=60, tokens=9, width=8, hidden=16, experts=2, top_k=1))


def check_narrow():
    """Where the kernels' tiles differ: a plan that is not theirs is refused."""
    try:
        check_dex_mlp(plain.make_case(batch=2, tokens=5, width=8, hidden=16))
    except ValueError as error:
        raise AssertionError("no kernel would take it") from error


def check_pads():
    """Zeros where rows have no token, whatever the weights and z are."""
    plan, _ = make_plan(torch.tensor([[0]]), 1, 5, 16)
    tile, rows, gates = Gemm(16, 16, 16, 4, 1), torch.zeros(16, 16), torch.zeros(16)
    weight = torch.full((1, 16, 16), torch.inf)
    shared = plan, "gelu", "ieee", tile
    _, up, _ = expert_up.expert_up(Input(rows, gates, None), weight, None, *shared, keep_z=False)
    dz, down, gate_parts = expert_dact.expert_dact(rows, weight, rows + torch.inf, gates, *shared, keep_a=True)
    for found in (up, dz, down, gate_parts.T):
        assert (found[5:] == 0).all()


def check_idle_weights():
    """NaN of an expert without images, whose weights lie behind another's, reaches nobody."""
    case = plain.make_case(batch=3, tokens=5, width=24, hidden=40)
    case.w1[3] = case.w2[3] = torch.nan
    x = case.x.requires_grad_()
    y = ops.expert_mlp(*case.experts, backend="triton")
    assert y.isfinite().all()
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()


def check_far_apart():
    """Outputs so far apart that kd's clamp acts."""
    case = plain.make_case(batch=3, tokens=5, width=24, hidden=40)
    case.w2 *= 12
    check_dex_mlp(case)


def check_ema():
    check_group_ema([(7, 9), (30,)], [[0.5, 0.0, 0.5], [0.25, 0.75]])


def check_idle_expert_of_nan():
    director, experts = torch.zeros(9), torch.ones(3, 9)
    experts[1] = torch.nan
    ops.group_ema_([director], [experts], [torch.tensor([0.5, 0.0, 0.5])], 0.5, backend="triton")
    assert torch.equal(director, torch.full((9,), 0.5))


def check_promises():
    """Tensors whose addresses, strides and lengths are multiples of 4, of 16 or of neither."""
    for length, stride in ((20, 32), (16, 48), (5, 7)):
        director, experts = torch.zeros(length), torch.ones(3, stride)[:, :length]
        with check_memory(director, experts):
            group_ema.group_ema([director], [experts], [torch.ones(3) / 3], 0.5)


def check_copies():
    """Of directors and experts, an idle one of NaN among them."""
    director, experts = torch.randn(9), torch.randn(3, 9)
    experts[1], before = torch.nan, director.clone()
    copies = torch.empty(9).bfloat16(), torch.empty(3, 9).bfloat16()
    group_ema.group_ema([director], [experts], [torch.tensor([0.5, 0.0, 0.5])], 0.5, [copies[0]], [copies[1]])
    assert (director != before).all()
    for copy, tensor in zip(copies, (director, experts), strict=True):
        torch.testing.assert_close(copy, tensor.bfloat16(), rtol=0, atol=0, equal_nan=True)


def check_cast(first=0):
    """Longer than a block, with memory after it that is another's."""
    source, copy = torch.randn(5000)[first:4999], torch.ones(5000).half()[first:4999]
    with check_memory(source, copy):
        cast.cast_all([source], [copy])
    assert torch.equal(copy, source.half())


def check_routing(pool="cls"):
    generator = torch.Generator().manual_seed(0)
    x, weight, noise = (torch.randn(s, generator=generator) for s in ((5, 3, 12), (6, 12), (5, 6)))
    check_route(x, weight, 2, noise, pool)


def check_layer(batch=4, tokens=3, **keywords):
    """Routing and experts together."""
    check_dex_layer(plain.make_case(batch=batch, tokens=tokens, width=24, hidden=16), **keywords)


def check_ties():
    _, indices, _ = ops.route(torch.zeros(3, 2, 8), torch.ones(6, 8), 3, backend="triton")
    assert torch.equal(indices, torch.tensor([[0, 1, 2]] * 3))


def check_index_out_of_range():
    case = plain.make_case(batch=3, tokens=2, width=8, hidden=8)
    case.indices[1, 0] = len(case.w1)
    try:
        ops.expert_mlp(*case.experts, backend="triton")
    except IndexError:
        return
    raise AssertionError("an index out of range was taken")


class Mutant(NamedTuple):
    """A kernel file with one line changed, and the check that must see it.

    ``file`` is a module of dexcore.kernels, or with "ops." of dexcore.ops.
    """

    name: str
    file: str
    right: str
    wrong: str
    check: object = check_experts


MUTANTS = [
    Mutant(
        "a tile of the expert before",
        "plan",
        "(tile_ends[None, :] <= tile[:, None])",
        "(tile_ends[None, :] < tile[:, None])",
    ),
    Mutant(
        "an expert's last tile, which is partly filled, forgotten",
        "plan",
        "(counts * tokens + BLOCK_M - 1) // BLOCK_M",
        "(counts * tokens) // BLOCK_M",
    ),
    Mutant("gates swapped", "expert_order", "gates_ptr + owner * TOP_K + j)", "gates_ptr + owner * TOP_K + (j ^ 1))"),
    Mutant(
        "the loss's gradient without the loss's own",
        "expert_order",
        "mask=here, other=0.0).to(tl.float32) * scale",
        "mask=here, other=0.0).to(tl.float32)",
    ),
    Mutant(
        "rows without a token not zeroed",
        "expert_order",
        "zeros, mask=(row < end)[:, None] & (column < D)[None, :])",
        "zeros, mask=(row < begin)[:, None] & (column < D)[None, :])",
    ),
    Mutant(
        "sums of one block of tokens",
        "expert_order",
        "                total += value.to(tl.float32)",
        "                total = value.to(tl.float32)",
        partial(check_experts, tokens=40),
    ),
    Mutant("every expert gets the first one's bias", "expert_up", "b1_ptr + expert_row + columns", "b1_ptr + columns"),
    Mutant(
        "z kept with its gate",
        "expert_up",
        "store_tile(z, row, first, pre,",
        "store_tile(z, row, first, pre * gate[:, None],",
    ),
    Mutant("activation left out", "expert_up", 'activate(pre, "silu" if GLU else ACTIVATION) * gate', "pre * gate"),
    Mutant(
        "the gate alone takes rows without a token away",
        "expert_up",
        "activated = tl.where(has_token[:, None], activated, 0.0)",
        "activated += 0.0",
        check_pads,
    ),
    Mutant(
        "the value by the gate's weights",
        "expert_up",
        "load_tile(w1, weight_row + H, first",
        "load_tile(w1, weight_row + 0, first",
        partial(check_experts, activation="swiglu"),
    ),
    Mutant(
        "the gate's columns reach into the value's",
        "expert_up",
        "store_tile(z, row, first, pre, C, END,",
        "store_tile(z, row, first, pre, C, VALUE_END,",
        partial(check_experts, activation="swiglu", keep="z"),
    ),
    Mutant(
        "the value's gradient by the gate's slope",
        "expert_dact",
        "H + first, u * a * gate[:, None], C",
        "H + first, u * slope * gate[:, None], C",
        partial(check_experts, activation="swiglu"),
    ),
    Mutant(
        "the last column of x unread",
        "tiles",
        "            inside = (c < END - column)[None, :]",
        "            inside = (c < END - column - 1)[None, :]",
    ),
    Mutant(
        "a row read beyond an expert's weights",
        "tiles",
        "inside = inside & (r < rows)[:, None]",
        "inside = inside & (r < rows + 1)[:, None]",
        check_idle_weights,
    ),
    Mutant(
        "bias added k times",
        "expert_down",
        "parts[half] + gate[:, None] * bias[None, :]",
        "parts[half] + 2 * gate[:, None] * bias[None, :]",
    ),
    Mutant(
        "weights of the next expert",
        "expert_down",
        "weight_row = expert * (K if WEIGHT_BY_K else N)",
        "weight_row = (expert ^ 1) * (K if WEIGHT_BY_K else N)",
    ),
    Mutant(
        "both halves in the left one's columns",
        "expert_down",
        "first_column = column + half * HALF",
        "first_column = column + 0 * HALF",
    ),
    Mutant("GELU of the wrong operand", "expert_dact", "activate_both(z, ", "activate_both(u, "),
    Mutant("dz without its gate", "expert_dact", "first, u * slope * gate[:, None]", "first, u * slope"),
    Mutant("gate gradients of z", "expert_dact", "        return a * u\n", "        return z * u\n"),
    Mutant(
        "the gate alone takes z away where a row has no token",
        "expert_dact",
        "z, u = tl.where(inside, z, 0.0), tl.where(inside, u, 0.0)",
        "u = tl.where(inside, u, 0.0)",
        check_pads,
    ),
    Mutant(
        "zeros times W2's Inf where a row has no token",
        "expert_dact",
        "z, u = tl.where(inside, z, 0.0), tl.where(inside, u, 0.0)",
        "z = tl.where(inside, z, 0.0)",
        check_pads,
    ),
    Mutant(
        "an expert's last tile dropped",
        "expert_wgrad",
        "    end = tl.load(tile_starts_ptr + expert + 1)\n",
        "    end = tl.load(tile_starts_ptr + expert + 1) - 1\n",
    ),
    Mutant(
        "one expert's weight gradient unwritten",
        "expert_wgrad",
        "    mask = (p < rows)[:, None] & (q < columns)[None, :]\n",
        "    mask = (p < rows)[:, None] & (q < columns)[None, :] & (expert != 1)\n",
    ),
    Mutant(
        "the second product has the first one's tile",
        "expert_wgrad",
        "_tile_place(tile - first_tiles, P2, Q2,",
        "_tile_place(tile, P2, Q2,",
        check_described,
    ),
    Mutant(
        "sums of ones on the wrong programs",
        "expert_wgrad",
        "has_sums = (q == 0) & (tile < first_tiles)",
        "has_sums = (p == 0) & (tile < first_tiles)",
    ),
    Mutant(
        "sums of ones in the second product's programs",
        "expert_wgrad",
        "has_sums = (q == 0) & (tile < first_tiles)",
        "has_sums = (q == 0) & (tile >= first_tiles)",
        check_described,
    ),
    Mutant(
        "parts summed one short", "expert_wgrad", "for j in range(0, parts):", "for j in range(1, parts):", check_cut
    ),
    Mutant(
        "a part of the expert's beginning",
        "expert_wgrad",
        "        begin += i * share + ",
        "        begin += 0 * share + ",
        check_cut,
    ),
    Mutant(
        "slots summed unsorted",
        "mix_align",
        "source = (first_row + token)",
        "source = ((image * TOP_K + j) * tokens + token)",
    ),
    Mutant("the teacher's temperature forgotten", "mix_align", "teacher * inverse_temperature", "teacher"),
    Mutant(
        "the clamp passes a gradient",
        "mix_align",
        "kept = tl.where(log_q >= floor, p, 0.0)",
        "kept = p",
        check_far_apart,
    ),
    Mutant(
        "cosine against the unscaled teacher",
        "mix_align",
        "t = teacher * (1 / teacher_norm)[:, None]",
        "t = teacher",
        partial(check_experts, align="cosine"),
    ),
    Mutant("bias gradient without gates", "bias_gradients", "sums_sd += gate[:, None] * tl", "sums_sd += tl"),
    Mutant(
        "a gate's gradient from the other choice's rows",
        "bias_gradients",
        "first_row = tl.load(first_rows_ptr + program)",
        "first_row = tl.load(first_rows_ptr + (program ^ 1))",
    ),
    Mutant(
        "a gate's gradient without the bias's part",
        "bias_gradients",
        "grad += tl.sum(products, 0)",
        "grad += 0 * tl.sum(products, 0)",
    ),
    Mutant(
        "EMA of unnormalized weight",
        "group_ema",
        "director * momentum + mean * step",
        "director * momentum + mean",
        check_ema,
    ),
    Mutant(
        "experts of weight zero read",
        "group_ema",
        "end = tl.where(weight != 0, length, 0)",
        "end = tl.where(weight >= 0, length, 0)",
        check_idle_expert_of_nan,
    ),
    Mutant(
        "EMA of 16 bytes at a time where 4 elements are left",
        "group_ema",
        "n % _ALIGNMENT.value == 0",
        "n % 4 == 0",
        check_promises,
    ),
    Mutant(
        "a stride promised to be a multiple of 64",
        "group_ema",
        "stride = tl.multiple_of(stride, _ALIGNMENT)\n        length",
        "stride = tl.multiple_of(stride, 64)\n        length",
        check_promises,
    ),
    Mutant(
        "an idle expert's NaN reaches the director through its copy",
        "group_ema",
        "expert = tl.where(weight[:, None] != 0, expert, 0.0)",
        "expert = tl.where(weight[:, None] >= 0, expert, 0.0)",
        check_copies,
    ),
    Mutant(
        "the director's copy of before the move",
        "group_ema",
        "kept = tl.where(used, rounded(moved, DTYPE).to(tl.float32), director)",
        "kept = director",
        check_copies,
    ),
    Mutant(
        "copies of the experts in use alone",
        "group_ema",
        "end = tl.maximum(end, copy_end)",
        "end = tl.maximum(end, 0)",
        check_copies,
    ),
    Mutant(
        "a cast of 16 bytes at a time whatever the address",
        "cast",
        "int(aligned)",
        "1",
        partial(check_cast, first=1),
    ),
    Mutant("a cast past the end", "cast", "if aligned & (start + BLOCK <= length):", "if aligned:", check_cast),
    Mutant("ties to the higher index", "route", "(r[None, :] < r[:, None])", "(r[None, :] > r[:, None])", check_ties),
    Mutant(
        "a routing gradient without temperature",
        "route",
        "grad_logits = p * (q - tl.sum(q * p, 1)[:, None]) / tau",
        "grad_logits = p * (q - tl.sum(q * p, 1)[:, None])",
        check_routing,
    ),
    Mutant("GELU's slope of the other tail", "numerics", "below = tail - m * density", "below = tail + m * density"),
    Mutant("halves swapped", "numerics", "(ROWS, 2, COLUMNS // 2)), (0, 2, 1)", "(ROWS, COLUMNS // 2, 2)), (0, 1, 2)"),
    Mutant("sums that start anew", "numerics", "return acc + tl.dot(", "return tl.dot("),
    Mutant(
        "SiLU's slope without its product",
        "numerics",
        "return z * s, s * (1 + z * (1 - s))",
        "return z * s, s",
        partial(check_experts, activation="silu"),
    ),
    Mutant(
        "halves truncated",
        "numerics",
        "(bits + 0x7FFF + ((bits >> 16) & 1))",
        "(bits)",
        partial(check_experts, dtype=torch.bfloat16),
    ),
    Mutant(
        "indices unchecked",
        "ops.experts_triton",
        "if not plan.valid.item():",
        "if plan.valid.item() is None:",
        check_index_out_of_range,
    ),
    Mutant(
        "a plan of other tiles",
        "ops.experts_triton",
        "given.x.shape[1], config.up.block_m, balance)",
        "given.x.shape[1], config.wgrad.block_m, balance)",
        check_narrow,
    ),
    Mutant(
        "the activation kept as what was before it",
        "ops.experts_triton",
        "kept._replace(z=z, a=a",
        "kept._replace(z=a, a=a",
    ),
    Mutant(
        "the balance loss's gradient not scaled",
        "route",
        "tl.load(grad_balance_ptr) * experts_an_image",
        "tl.load(grad_balance_ptr)",
        partial(check_layer, batch=6),  # not as many as experts
    ),
    Mutant(
        "the sum of the probabilities for their mean",
        "route",
        "importance = tl.sum(total, 0) / tl.maximum(batch, 1)",
        "importance = tl.sum(total, 0)",
        check_layer,
    ),
    Mutant(
        "the router's gradient at the second token",
        "route",
        "(rows % tokens == 0)",
        "(rows % tokens == 1)",
        check_layer,
    ),
    Mutant(
        "the mean's gradient whole at every token",
        "route",
        "return grad if CLS else grad / tokens",
        "return grad",
        partial(check_layer, pool="mean"),
    ),
    Mutant(
        "the last images alone in the router's weight",
        "route",
        'total = dot(tl.trans(grad_logits), c, total, "ieee")',
        'total = dot(tl.trans(grad_logits), c, total * 0, "ieee")',
        partial(check_layer, batch=70, tokens=1),  # more than the router's gradient takes at once
    ),
]


def right_module(mutant):
    return sys.modules[f"dexcore.{mutant.file if '.' in mutant.file else f'kernels.{mutant.file}'}"]


def mutated(mutant, folder):
    """The mutant's module: a complete file, one line away from the right one."""
    right = right_module(mutant)
    source = Path(right.__file__).read_text(encoding="utf-8")
    assert source.count(mutant.right) == 1, (
        f"{mutant.file}.py holds {mutant.right!r} {source.count(mutant.right)} times"
    )
    wrong = source.replace(mutant.right, mutant.wrong)
    changed = sum(a != b for a, b in zip(source.splitlines(), wrong.splitlines(), strict=True))
    assert changed == 1
    path = folder / f"{mutant.file}.py"
    path.write_text(wrong, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"mutant_{mutant.file}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def put_in_place(monkeypatch, module, right):
    """Wherever dexcore holds one of the right file's functions, kernels among them, it holds the mutant's."""
    places = [place for name, place in sys.modules.items() if name.partition(".")[0] == "dexcore"]
    for node in ast.parse(Path(right.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            function = getattr(right, node.name)
            for place in places:
                if vars(place).get(node.name) is function:
                    monkeypatch.setattr(place, node.name, getattr(module, node.name))


@pytest.mark.parametrize(
    "check",
    [
        check_experts,
        check_far_apart,
        check_described,
        check_cut,
        check_narrow,
        check_pads,
        check_idle_weights,
        check_ema,
        check_idle_expert_of_nan,
        check_promises,
        check_copies,
        check_cast,
        check_routing,
        check_layer,
        check_ties,
        check_index_out_of_range,
        partial(check_experts, activation="silu"),
        partial(check_experts, activation="swiglu"),
        partial(check_experts, dtype=torch.bfloat16),
        partial(check_experts, tokens=40),
    ],
)
def test_the_right_kernels_pass(check):
    check()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_wrong_kernel_is_caught(mutant, monkeypatch, tmp_path):
    put_in_place(monkeypatch, mutated(mutant, tmp_path), right_module(mutant))
    with pytest.raises(AssertionError):
        mutant.check()
