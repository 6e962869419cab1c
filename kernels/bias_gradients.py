"""Gradients of the gates and of the second bias: sums over tokens, tiles and slots, each in a fixed order.

Axes: b images, n tokens, d width, h hidden, r experts, k chosen; S = B k slots; rows: those of the plan.
All sums are in float32.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import rounded
from dexcore.kernels.plan import Plan

_COLUMNS = 128
_SUMMANDS = 32


def gate_and_bias_gradients(
    gate_parts: Tensor | None,
    token_sums: Tensor,
    b2: Tensor | None,
    gates: Tensor,
    plan: Plan,
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gates' gradient and the second bias's, in one launch.

    Args:
        gate_parts: [P, rows] (`expert_dact`); None where the gates' gradient is not asked for.
        token_sums: [B, D], the sums of dy over tokens (`gradient_rows`).
        b2: [R, D] or None.
        gates: [B, k], float32.
        plan: of the routing.
        bias_dtype: of the bias's gradient; None where it is not asked for.

    Returns:
        [B, k] float32: a slot's sum of gate_parts, plus <b2_e, token_sums[image]>; [R, D]: the sums over each expert's
        slots of gate * token_sums[image].
    """
    width = token_sums.shape[1]
    slots = plan.slots.numel()
    grad_gates = None if gate_parts is None else gates.new_empty(gates.shape)
    grad_b2 = None if bias_dtype is None else gates.new_empty((plan.num_experts, width), dtype=bias_dtype)
    gate_programs = 0 if grad_gates is None else slots
    bias_programs = 0 if grad_b2 is None else plan.num_experts * triton.cdiv(width, _COLUMNS)
    launch(
        _gate_and_bias_kernel,
        (gate_programs + bias_programs,),
        gate_parts,
        token_sums,
        None if grad_gates is None else b2,
        gates,
        grad_gates,
        grad_b2,
        plan.slots,
        plan.first_rows,
        plan.starts,
        plan.tiles,
        gate_programs,
        0 if gate_parts is None else gate_parts.shape[0],
        plan.rows,
        plan.tokens,
        D=width,
        TOP_K=plan.top_k,
        BLOCK_M=plan.block_m,
        PARTS=8,
        TOKENS=64,
        WIDTH=512,
        COLUMNS=_COLUMNS,
        SUMMANDS=_SUMMANDS,
        num_warps=4,
    )
    return grad_gates, grad_b2


def gate_and_bias_bytes(
    counts: Sequence[int],
    plan: Plan,
    width: int,
    parts: int | None,
    b2_itemsize: int | None,
    bias_itemsize: int | None,
) -> int:
    """Unique bytes of `gate_and_bias_gradients`.

    Args:
        counts: the experts' slots.
        plan: of the routing.
        width: D.
        parts: of gate_parts; None without the gates' gradient.
        b2_itemsize: of b2; None without it.
        bias_itemsize: of the bias's gradient; None where it is not asked for.
    """
    slots = plan.slots.numel()
    used = [e for e, count in enumerate(counts) if count]
    reads_sums = bias_itemsize is not None and slots
    total = 0
    if parts is not None and slots:
        total += 4 * (slots * plan.tokens * parts + 2 * slots)  # first_rows, the gradient
        if b2_itemsize is not None:
            reads_sums = True
            first_tiles = {_first_row(counts, e, i, plan) // plan.block_m for e in used for i in range(counts[e])}
            total += len(used) * width * b2_itemsize + 4 * len(first_tiles)
    if bias_itemsize is not None:
        total += len(counts) * width * bias_itemsize + 4 * (len(counts) + 1) + 8 * slots  # starts, slots, gates
    return total + (4 * plan.images * width if reads_sums else 0)


def _first_row(counts: Sequence[int], expert: int, i: int, plan: Plan) -> int:
    before = sum(triton.cdiv(count * plan.tokens, plan.block_m) for count in counts[:expert])
    return before * plan.block_m + i * plan.tokens


@triton.jit(do_not_specialize=["gate_programs", "num_rows"])
def _gate_and_bias_kernel(
    gate_parts_ptr,  # [P, rows] or None
    token_sums_ptr,  # [B, D]
    b2_ptr,  # [R, D] or None
    gates_ptr,  # [S]
    grad_gates_ptr,  # [S], None where gate_parts_ptr is
    grad_b2_ptr,  # [R, D] or None
    slots_ptr,
    first_rows_ptr,
    starts_ptr,
    tiles_ptr,
    gate_programs,
    parts,
    num_rows,
    tokens,
    D: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    PARTS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUMMANDS: tl.constexpr,
):
    """grad_gates[slot] = sum over p and n of gate_parts[p, first_rows[slot] + n], plus <b2_e, token_sums[image]>;
    grad_b2[e] = sum of gate * token_sums[image] over the slots of expert e, zeros without any.

    Grid (S + R ceil(D / COLUMNS),): a program writes one element of grad_gates, or COLUMNS of one expert's grad_b2.
    Bytes: 4 (P S N + 2 S), with b2 U D s more, U experts that have slots and s of b2's element, and the tiles in which
    slots begin, 4 each; of grad_b2 R D s + 4 (R + 1 + 2 S); token_sums 4 B D. FLOPs: P S N, 2 S D, 2 S D.
    """
    program = tl.program_id(0)
    if program < gate_programs:
        if gate_parts_ptr is not None:
            first_row = tl.load(first_rows_ptr + program)
            block_p = tl.arange(0, PARTS)
            block_n = tl.arange(0, TOKENS)
            sums_pn = tl.zeros((PARTS, TOKENS), tl.float32)
            for first_p in range(0, parts, PARTS):
                p = first_p + block_p
                row = p.to(tl.int64) * num_rows + first_row
                for first_n in range(0, tokens, TOKENS):
                    token = first_n + block_n
                    valid = (p < parts)[:, None] & (token < tokens)[None, :]
                    sums_pn += tl.load(gate_parts_ptr + row[:, None] + token[None, :], mask=valid, other=0.0)
            grad = tl.sum(tl.sum(sums_pn, 1), 0)
            if b2_ptr is not None:
                expert = tl.load(tiles_ptr + first_row // BLOCK_M).to(tl.int64)
                image = (program // TOP_K).to(tl.int64)
                block_d = tl.arange(0, WIDTH)
                products = tl.zeros((WIDTH,), tl.float32)
                for first_d in range(0, D, WIDTH):
                    d = first_d + block_d
                    bias = tl.load(b2_ptr + expert * D + d, mask=d < D, other=0.0).to(tl.float32)
                    products += bias * tl.load(token_sums_ptr + image * D + d, mask=d < D, other=0.0)
                grad += tl.sum(products, 0)
            tl.store(grad_gates_ptr + program, grad)
    elif grad_b2_ptr is not None:
        column_tiles: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
        of_expert = (program - gate_programs) // column_tiles
        columns = (program - gate_programs) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
        block_s = tl.arange(0, SUMMANDS)
        end = tl.load(starts_ptr + of_expert + 1)
        sums_sd = tl.zeros((SUMMANDS, COLUMNS), tl.float32)
        for first_s in range(tl.load(starts_ptr + of_expert), end, SUMMANDS):
            inside = first_s + block_s < end
            slot = tl.load(slots_ptr + first_s + block_s, mask=inside, other=0)
            gate = tl.load(gates_ptr + slot, mask=inside, other=0.0)
            rows = (slot // TOP_K).to(tl.int64) * D
            here = inside[:, None] & (columns < D)[None, :]
            sums_sd += gate[:, None] * tl.load(token_sums_ptr + rows[:, None] + columns[None, :], mask=here, other=0.0)
        grad_b2 = rounded(tl.sum(sums_sd, 0), grad_b2_ptr.dtype.element_ty)
        tl.store(grad_b2_ptr + of_expert.to(tl.int64) * D + columns, grad_b2, mask=columns < D)
