"""Group EMA: one launch moves all directors' tensors towards their experts' weighted mean, in place.

    director <- m director + (1 - m) sum_r weights_r experts_r,   but where that is not finite: as it was

The kernel finds the tensors in a table on the device. The table is a function of addresses, shapes, strides and
dtypes alone and holds no tensor. The tables used last are kept, and those that a CUDA graph reads for good: nobody
says when a graph goes.

Example: two directors of 2,500 and 100 elements, blocks of 1,024. `blocks` is [0, 0, 0, 1]: program 2 owns the last
452 elements of tensor 0; row 1 of `tensors` says that its first block is 3.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import rounded

_BLOCK_BYTES = 4096  # of an expert: two 16-byte loads a thread of four warps
_WARPS = 4
_MOST_EXPERTS_AT_ONCE = 8  # loads in flight
_FIELDS = tl.constexpr(7)  # of a tensor's row in the table
_ALIGNMENT = tl.constexpr(16)  # bytes of addresses, elements of strides and lengths

_MOST_RECENT = 8

_TL_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class _Pair(NamedTuple):
    """A director's tensor and its experts': all that the table depends on."""

    director: int  # address
    experts: int  # address of the first
    stride: int  # elements between experts
    length: int  # elements of one
    num_experts: int
    dtype: torch.dtype
    experts_dtype: torch.dtype
    device: torch.device

    @property
    def aligned(self) -> bool:
        return all(n % _ALIGNMENT.value == 0 for n in self[:4])

    @property
    def block(self) -> int:
        """Elements that a program owns."""
        scalar_loads_are_many = 1 if self.aligned else 4
        return _BLOCK_BYTES // self.experts_dtype.itemsize // scalar_loads_are_many


class _Table(NamedTuple):
    """What one launch works through."""

    tensors: Tensor  # [T, _FIELDS] int64: director, experts, stride, length, first block, first weight, R
    blocks: Tensor  # [programs] int32: the tensor that a program works on
    members: tuple[int, ...]  # the tensors' places in the lists
    pair: _Pair  # the first: dtypes, alignment and block are common to all
    most_experts: int


_recent: dict[tuple[_Pair, ...], tuple[_Table, ...]] = {}  # by what they were built for, the last used last
_captured: dict[tuple[_Pair, ...], tuple[_Table, ...]] = {}


def group_ema(
    directors: Sequence[Tensor], experts: Sequence[Tensor], weights: Sequence[Tensor], momentum: float
) -> None:
    """Move the directors in place. One launch for each pair of dtypes and alignment, so normally one.

    Args:
        directors: contiguous, any shapes.
        experts: for each director [R, *director.shape], each expert contiguous.
        weights: for each director [R], on its device. An expert of weight 0 is not read; a director whose weights
            are all 0 is neither read nor written. Where an expert in use, a weight or the result is not finite, an
            element of the director keeps its bits.
        momentum: m.

    Raises:
        ValueError: a director overlaps another director or an expert.
        RuntimeError: a CUDA graph is being captured, and there was no call with the same tensors before: the table
            cannot be copied to the device within.
    """
    for table in _tables(_pairs(directors, experts)):
        weight = torch.cat([weights[i].to(torch.float32) for i in table.members])
        launch(
            _group_ema_kernel,
            (table.blocks.numel(),),
            table.tensors,
            table.blocks,
            weight,
            momentum,
            1 - momentum,
            DTYPE=_TL_DTYPES[table.pair.dtype],
            EXPERTS_DTYPE=_TL_DTYPES[table.pair.experts_dtype],
            ALIGNED=table.pair.aligned,
            R_BLOCK=triton.next_power_of_2(table.most_experts),
            AT_ONCE=min(triton.next_power_of_2(table.most_experts), _MOST_EXPERTS_AT_ONCE),
            BLOCK=table.pair.block,
            num_warps=_WARPS,
        )


def group_ema_bytes(directors: Sequence[Tensor], experts: Sequence[Tensor], weights: Sequence[Tensor]) -> int:
    """Unique bytes that `group_ema` reads and writes; it looks at the weights."""
    total = 0
    for pair, weight in zip(_pairs(directors, experts), weights, strict=True):
        active = int(weight.count_nonzero())
        if active:
            total += pair.length * (2 * pair.dtype.itemsize + active * pair.experts_dtype.itemsize)
        if pair.length:
            total += 8 * _FIELDS.value + 4 * triton.cdiv(pair.length, pair.block) + 4 * pair.num_experts
    return total


def _pairs(directors: Sequence[Tensor], experts: Sequence[Tensor]) -> tuple[_Pair, ...]:
    return tuple(
        _Pair(
            director.data_ptr(),
            expert.data_ptr(),
            expert.stride(0),
            director.numel(),
            expert.shape[0],
            director.dtype,
            expert.dtype,
            director.device,
        )
        for director, expert in zip(directors, experts, strict=True)
    )


def _tables(pairs: tuple[_Pair, ...]) -> tuple[_Table, ...]:
    """Those kept for ``pairs``, or new ones."""
    found = _recent.pop(pairs, _captured.get(pairs))
    if pairs and _is_capturing(pairs[0].device):
        if found is None:
            raise RuntimeError(
                "group EMA builds its table of addresses at the first call with new tensors, which a CUDA graph cannot "
                "capture: call it (update_directors, group_ema_) once with the same contiguous tensors before the "
                "capture"
            )
        _captured[pairs] = found
    found = _build(pairs) if found is None else found
    _recent[pairs] = found
    if len(_recent) > _MOST_RECENT:
        _recent.pop(next(iter(_recent)))
    return found


def _is_capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _build(pairs: tuple[_Pair, ...]) -> tuple[_Table, ...]:
    _check_overlaps(pairs)
    groups: dict[tuple, list[int]] = {}
    for i, pair in enumerate(pairs):
        if pair.length:
            groups.setdefault((pair.device, pair.dtype, pair.experts_dtype, pair.aligned), []).append(i)
    return tuple(_table(tuple(members), pairs) for members in groups.values())


def _table(members: tuple[int, ...], pairs: tuple[_Pair, ...]) -> _Table:
    first_block = first_weight = 0
    rows, counts = [], []
    for i in members:
        pair = pairs[i]
        rows.append((*pair[:4], first_block, first_weight, pair.num_experts))
        counts.append(triton.cdiv(pair.length, pair.block))
        first_block += counts[-1]
        first_weight += pair.num_experts
    device = pairs[members[0]].device
    blocks = torch.arange(len(members), dtype=torch.int32).repeat_interleave(torch.tensor(counts))
    return _Table(
        tensors=torch.tensor(rows, dtype=torch.int64).to(device),
        blocks=blocks.to(device),
        members=members,
        pair=pairs[members[0]],
        most_experts=max(pairs[i].num_experts for i in members),
    )


def _check_overlaps(pairs: tuple[_Pair, ...]) -> None:
    """Nothing may share memory with a director; experts may share it with experts."""
    spans: dict[torch.device, list[tuple[int, int, bool, str]]] = {}
    for i, pair in enumerate(pairs):
        if not pair.length:
            continue
        on_device = spans.setdefault(pair.device, [])
        on_device.append((pair.director, pair.director + pair.length * pair.dtype.itemsize, True, f"directors[{i}]"))
        size = pair.experts_dtype.itemsize
        for r in range(pair.num_experts):
            start = pair.experts + r * pair.stride * size
            on_device.append((start, start + pair.length * size, False, f"experts[{i}][{r}]"))
    for on_device in spans.values():
        last = last_director = (0, 0, False, "")  # of those so far, the one that ends last
        for span in sorted(on_device):
            other = last if span[2] else last_director
            if span[0] < other[1]:
                raise ValueError(f"{span[3]} and {other[3]} overlap in memory: a director is updated in place")
            last = max(last, span, key=lambda s: s[1])
            if span[2]:
                last_director = max(last_director, span, key=lambda s: s[1])


@triton.jit
def _group_ema_kernel(
    tensors_ptr,
    blocks_ptr,
    weights_ptr,
    momentum,
    step,
    DTYPE: tl.constexpr,
    EXPERTS_DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    R_BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """director = momentum director + step sum_r weight_r expert_r, in float32, in one order; where not finite, itself.

    Grid (sum over tensors of cdiv(length, BLOCK),): a program owns BLOCK elements of one director and writes them.
    Reads 56 bytes and its 4 R of weights a tensor, 4 bytes a program. Of a director with a weight other than 0 it
    reads the director and R_active experts, and writes the director: (R_active + 2) length elements; FLOPs
    2 (R_active + 1) length. Of another it touches nothing.
    """
    program = tl.program_id(0)
    tensor_ptr = tensors_ptr + tl.load(blocks_ptr + program) * _FIELDS
    director_ptr = tl.load(tensor_ptr).to(tl.pointer_type(DTYPE))
    experts_ptr = tl.load(tensor_ptr + 1).to(tl.pointer_type(EXPERTS_DTYPE))
    stride = tl.load(tensor_ptr + 2)
    length = tl.load(tensor_ptr + 3)
    first_block = tl.load(tensor_ptr + 4)
    weights_ptr += tl.load(tensor_ptr + 5)
    num_experts = tl.load(tensor_ptr + 6).to(tl.int32)
    r_block = tl.arange(0, R_BLOCK)
    weights = tl.load(weights_ptr + r_block, mask=r_block < num_experts, other=0.0)
    length = tl.where(tl.max((weights != 0).to(tl.int32), 0) != 0, length, 0)  # all weights 0: nothing is touched
    if ALIGNED:  # else the loads are scalar
        director_ptr = tl.multiple_of(director_ptr, _ALIGNMENT)
        experts_ptr = tl.multiple_of(experts_ptr, _ALIGNMENT)
        stride = tl.multiple_of(stride, _ALIGNMENT)
        length = tl.multiple_of(length, _ALIGNMENT)

    offsets = (program - first_block) * BLOCK + tl.arange(0, BLOCK)
    director = tl.load(director_ptr + offsets, mask=offsets < length, other=0.0).to(tl.float32)
    mean = tl.zeros((BLOCK,), tl.float32)
    # A tile of experts, rather than one after the other, so that all loads are under way before the first is used.
    for first in range(0, num_experts, AT_ONCE):
        r = first + tl.arange(0, AT_ONCE)
        weight = tl.load(weights_ptr + r, mask=r < num_experts, other=0.0)
        end = tl.where(weight != 0, length, 0)
        if ALIGNED:
            end = tl.multiple_of(end, _ALIGNMENT)
        pointers = experts_ptr + (r * stride)[:, None] + offsets[None, :]
        expert = tl.load(pointers, mask=offsets[None, :] < end[:, None], other=0.0).to(tl.float32)
        mean += tl.sum(expert * weight[:, None], 0)
    moved = director * momentum + mean * step
    moved = tl.where(tl.abs(rounded(moved, DTYPE).to(tl.float32)) < float("inf"), moved, director)
    tl.store(director_ptr + offsets, rounded(moved, DTYPE), mask=offsets < length)
