"""Group EMA: one launch moves all directors' tensors towards their experts' weighted mean, in place.

    director <- m director + (1 - m) sum_r weights_r experts_r,   but where that is not finite: as it was

The kernel finds the tensors in a table on the device (`dexcore.kernels.tables`). It reads every expert in use anyway,
so it can write half-precision copies of experts and directors on the way, for the next forward.

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
from dexcore.kernels.tables import Tables, tensor_of_block

_BLOCK_BYTES = 4096  # of an expert: two 16-byte loads a thread of four warps
_WARPS = 4
_MOST_EXPERTS_AT_ONCE = 8  # loads in flight
_FIELDS = tl.constexpr(9)  # of a tensor's row in the table; without copies the last two are not read
_ALIGNMENT = tl.constexpr(16)  # bytes of addresses, elements of strides and lengths

_MOST_RECENT = 8

_TL_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class _Pair(NamedTuple):
    """A director's tensor and its experts': all that the table depends on."""

    director: int  # address
    experts: int  # address of the first
    stride: int  # elements between experts
    length: int  # elements of one
    director_copy: int  # address, 0 without
    experts_copy: int  # address, 0 without
    num_experts: int
    dtype: torch.dtype
    experts_dtype: torch.dtype
    copies_dtype: torch.dtype | None
    device: torch.device

    @property
    def aligned(self) -> bool:
        return all(n % _ALIGNMENT.value == 0 for n in self[:6])

    @property
    def block(self) -> int:
        """Elements that a program owns."""
        scalar_loads_are_many = 1 if self.aligned else 4
        return _BLOCK_BYTES // self.experts_dtype.itemsize // scalar_loads_are_many


class _Table(NamedTuple):
    """What one launch works through."""

    tensors: Tensor  # [T, _FIELDS] int64: director, experts, stride, length, first block, first weight, R, both copies
    blocks: Tensor  # [programs] int32: the tensor that a program works on
    members: tuple[int, ...]  # the tensors' places in the lists
    pair: _Pair  # the first: dtypes, alignment and block are common to all
    copies_dtype: torch.dtype | None  # None: the table holds no copies
    most_experts: int


def group_ema(
    directors: Sequence[Tensor],
    experts: Sequence[Tensor],
    weights: Sequence[Tensor],
    momentum: float,
    director_copies: Sequence[Tensor | None] | None = None,
    experts_copies: Sequence[Tensor | None] | None = None,
) -> None:
    """Move the directors in place. One launch for each pair of dtypes and alignment, so normally one.

    Args:
        directors: contiguous, any shapes.
        experts: for each director [R, *director.shape], each expert contiguous.
        weights: for each director [R], on its device. An expert of weight 0 is not read; a director whose weights
            are all 0 is neither read nor written. Where an expert in use, a weight or the result is not finite, an
            element of the director keeps its bits.
        momentum: m.
        director_copies: for each director room for its copy after the move, or None: contiguous, of its shape, all of
            one half-precision dtype. A director that stays as it is is copied as it stays.
        experts_copies: for each director room for the copy of its experts, or None: contiguous, of their shape. Here
            experts of weight 0 are read too; what they hold still does not matter to the director.

    Raises:
        ValueError: what is written overlaps what another tensor holds; copies of two dtypes.
        RuntimeError: a CUDA graph is being captured, and there was no call with the same tensors before: the table
            cannot be copied to the device within.
    """
    pairs = _pairs(directors, experts, director_copies, experts_copies)
    if not pairs:
        return
    if pairs not in _tables and any(pair.copies_dtype for pair in pairs):
        _tables.find(_pairs(directors, experts, None, None), pairs[0].device)  # for a capture, which writes no copies
    for table in _tables.find(pairs, pairs[0].device):
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
            COPIES_DTYPE=None if table.copies_dtype is None else _TL_DTYPES[table.copies_dtype],
            ALIGNED=table.pair.aligned,
            R_BLOCK=triton.next_power_of_2(table.most_experts),
            AT_ONCE=min(triton.next_power_of_2(table.most_experts), _MOST_EXPERTS_AT_ONCE),
            BLOCK=table.pair.block,
            num_warps=_WARPS,
        )


def group_ema_bytes(
    directors: Sequence[Tensor],
    experts: Sequence[Tensor],
    weights: Sequence[Tensor],
    director_copies: Sequence[Tensor | None] | None = None,
    experts_copies: Sequence[Tensor | None] | None = None,
) -> int:
    """Unique bytes that `group_ema` reads and writes; it looks at the weights."""
    total = 0
    pairs = _pairs(directors, experts, director_copies, experts_copies)
    for members in _groups(pairs):
        fields = _FIELDS.value if _copies_dtype(members, pairs) else _FIELDS.value - 2
        for i in members:
            pair, active = pairs[i], int(weights[i].count_nonzero())
            director_copy = director_copies[i] if director_copies else None
            experts_copy = experts_copies[i] if experts_copies else None
            total += 8 * fields + 4 * triton.cdiv(pair.length, pair.block) + 4 * pair.num_experts
            touched = bool(active or director_copy is not None) + bool(active)  # the director: read, written
            read = active if experts_copy is None else pair.num_experts
            total += pair.length * (touched * pair.dtype.itemsize + read * pair.experts_dtype.itemsize)
            total += sum(copy.nbytes for copy in (director_copy, experts_copy) if copy is not None)
    return total


def _pairs(
    directors: Sequence[Tensor],
    experts: Sequence[Tensor],
    director_copies: Sequence[Tensor | None] | None,
    experts_copies: Sequence[Tensor | None] | None,
) -> tuple[_Pair, ...]:
    nothing = [None] * len(directors)
    each = zip(directors, experts, director_copies or nothing, experts_copies or nothing, strict=True)
    return tuple(
        _Pair(
            director.data_ptr(),
            expert.data_ptr(),
            expert.stride(0),
            director.numel(),
            0 if director_copy is None else director_copy.data_ptr(),
            0 if experts_copy is None else experts_copy.data_ptr(),
            expert.shape[0],
            director.dtype,
            expert.dtype,
            next((copy.dtype for copy in (director_copy, experts_copy) if copy is not None), None),
            director.device,
        )
        for director, expert, director_copy, experts_copy in each
    )


def _groups(pairs: tuple[_Pair, ...]) -> list[tuple[int, ...]]:
    """The places of the pairs that one launch moves, for each launch."""
    groups: dict[tuple, list[int]] = {}
    for i, pair in enumerate(pairs):
        if pair.length:
            groups.setdefault((pair.device, pair.dtype, pair.experts_dtype, pair.aligned), []).append(i)
    return [tuple(members) for members in groups.values()]


def _copies_dtype(members: tuple[int, ...], pairs: tuple[_Pair, ...]) -> torch.dtype | None:
    dtypes = {pairs[i].copies_dtype for i in members} - {None}
    if len(dtypes) > 1:
        raise ValueError(f"copies must have one dtype, got {' and '.join(sorted(map(str, dtypes)))}")
    return dtypes.pop() if dtypes else None


def _build(pairs: tuple[_Pair, ...]) -> tuple[_Table, ...]:
    _check_overlaps(pairs)
    return tuple(_table(members, pairs) for members in _groups(pairs))


def _table(members: tuple[int, ...], pairs: tuple[_Pair, ...]) -> _Table:
    first_block = first_weight = 0
    rows, counts = [], []
    for i in members:
        pair = pairs[i]
        copies = pair.director_copy, pair.experts_copy
        rows.append((*pair[:4], first_block, first_weight, pair.num_experts, *copies))
        counts.append(triton.cdiv(pair.length, pair.block))
        first_block += counts[-1]
        first_weight += pair.num_experts
    device = pairs[members[0]].device
    return _Table(
        tensors=torch.tensor(rows, dtype=torch.int64).to(device),
        blocks=tensor_of_block(counts, device),
        members=members,
        pair=pairs[members[0]],
        copies_dtype=_copies_dtype(members, pairs),
        most_experts=max(pairs[i].num_experts for i in members),
    )


_tables = Tables(
    _build,
    _MOST_RECENT,
    "group EMA builds its table of addresses at the first call with new tensors, which a CUDA graph cannot capture: "
    "call it (update_directors, group_ema_) once with the same contiguous tensors before the capture",
)


def _check_overlaps(pairs: tuple[_Pair, ...]) -> None:
    """Nothing may share memory with a director or a copy; experts may share it with experts."""
    spans: dict[torch.device, list[tuple[int, int, bool, str]]] = {}
    for i, pair in enumerate(pairs):
        if not pair.length:
            continue
        written = [(pair.director, pair.length * pair.dtype.itemsize, f"directors[{i}]")]
        if pair.copies_dtype is not None:
            size = pair.length * pair.copies_dtype.itemsize
            written.append((pair.director_copy, size, f"director_copies[{i}]"))
            written.append((pair.experts_copy, size * pair.num_experts, f"experts_copies[{i}]"))
        on_device = spans.setdefault(pair.device, [])
        on_device += [(start, start + size, True, name) for start, size, name in written if start]
        size = pair.experts_dtype.itemsize
        for r in range(pair.num_experts):
            start = pair.experts + r * pair.stride * size
            on_device.append((start, start + pair.length * size, False, f"experts[{i}][{r}]"))
    for on_device in spans.values():
        last = last_written = (0, 0, False, "")  # of those so far, the one that ends last
        for span in sorted(on_device):
            other = last if span[2] else last_written
            if span[0] < other[1]:
                raise ValueError(f"{span[3]} and {other[3]} overlap in memory: a director is updated in place")
            last = max(last, span, key=lambda s: s[1])
            if span[2]:
                last_written = max(last_written, span, key=lambda s: s[1])


@triton.jit
def _group_ema_kernel(
    tensors_ptr,
    blocks_ptr,
    weights_ptr,
    momentum,
    step,
    DTYPE: tl.constexpr,
    EXPERTS_DTYPE: tl.constexpr,
    COPIES_DTYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    R_BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """director = momentum director + step sum_r weight_r expert_r, in float32, in one order; where not finite, itself.

    Grid (sum over tensors of cdiv(length, BLOCK),): a program owns BLOCK elements of one director, of its copy and of
    the copies of its experts, and writes them. Reads 56 bytes (with COPIES_DTYPE 72) and its 4 R of weights a tensor,
    4 bytes a program. Of a director with a weight other than 0 it reads the director and R_active experts, and writes
    the director: (R_active + 2) length elements; FLOPs 2 (R_active + 1) length. Of another it touches nothing.

    COPIES_DTYPE None: no copies. Else a row's last two fields are their addresses, 0 for none. With one for the
    director, it is read whatever the weights, and its new value is written in COPIES_DTYPE too: length elements. With
    one for the experts, all R of them are read, and written: R length elements.
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
    used = tl.max((weights != 0).to(tl.int32), 0) != 0
    if COPIES_DTYPE is not None:
        director_copy = tl.load(tensor_ptr + 7)
        experts_copy = tl.load(tensor_ptr + 8)
        director_copy_ptr = director_copy.to(tl.pointer_type(COPIES_DTYPE))
        experts_copy_ptr = experts_copy.to(tl.pointer_type(COPIES_DTYPE))
        copy_stride = length
        read = tl.where(used | (director_copy != 0), length, 0)
        copied = tl.where(director_copy != 0, length, 0)
        experts_copied = tl.where(experts_copy != 0, length, 0)
        if ALIGNED:
            director_copy_ptr = tl.multiple_of(director_copy_ptr, _ALIGNMENT)
            experts_copy_ptr = tl.multiple_of(experts_copy_ptr, _ALIGNMENT)
            copy_stride = tl.multiple_of(copy_stride, _ALIGNMENT)
            read = tl.multiple_of(read, _ALIGNMENT)
            copied = tl.multiple_of(copied, _ALIGNMENT)
    length = tl.where(used, length, 0)  # all weights 0: nothing is moved
    if ALIGNED:  # else the loads are scalar
        director_ptr = tl.multiple_of(director_ptr, _ALIGNMENT)
        experts_ptr = tl.multiple_of(experts_ptr, _ALIGNMENT)
        stride = tl.multiple_of(stride, _ALIGNMENT)
        length = tl.multiple_of(length, _ALIGNMENT)

    offsets = (program - first_block) * BLOCK + tl.arange(0, BLOCK)
    if COPIES_DTYPE is None:
        director = tl.load(director_ptr + offsets, mask=offsets < length, other=0.0).to(tl.float32)
    else:
        director = tl.load(director_ptr + offsets, mask=offsets < read, other=0.0).to(tl.float32)
    mean = tl.zeros((BLOCK,), tl.float32)
    # A tile of experts, rather than one after the other, so that all loads are under way before the first is used.
    for first in range(0, num_experts, AT_ONCE):
        r = first + tl.arange(0, AT_ONCE)
        weight = tl.load(weights_ptr + r, mask=r < num_experts, other=0.0)
        end = tl.where(weight != 0, length, 0)
        if COPIES_DTYPE is not None:
            copy_end = tl.where(r < num_experts, experts_copied, 0)
            end = tl.maximum(end, copy_end)
        if ALIGNED:
            end = tl.multiple_of(end, _ALIGNMENT)
        pointers = experts_ptr + (r * stride)[:, None] + offsets[None, :]
        expert = tl.load(pointers, mask=offsets[None, :] < end[:, None], other=0.0).to(tl.float32)
        if COPIES_DTYPE is not None:
            if ALIGNED:
                copy_end = tl.multiple_of(copy_end, _ALIGNMENT)
            copy_pointers = experts_copy_ptr + (r * copy_stride)[:, None] + offsets[None, :]
            tl.store(copy_pointers, rounded(expert, COPIES_DTYPE), mask=offsets[None, :] < copy_end[:, None])
            expert = tl.where(weight[:, None] != 0, expert, 0.0)  # 0 NaN is not 0
        mean += tl.sum(expert * weight[:, None], 0)
    moved = director * momentum + mean * step
    moved = tl.where(tl.abs(rounded(moved, DTYPE).to(tl.float32)) < float("inf"), moved, director)
    tl.store(director_ptr + offsets, rounded(moved, DTYPE), mask=offsets < length)
    if COPIES_DTYPE is not None:
        kept = tl.where(used, rounded(moved, DTYPE).to(tl.float32), director)
        tl.store(director_copy_ptr + offsets, rounded(kept, COPIES_DTYPE), mask=offsets < copied)
