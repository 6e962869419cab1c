"""Casts of many float32 tensors to half precision, in one launch.

    copy = source, rounded to nearest even

The kernel finds the sources in a table on the device (`dexcore.kernels.tables`), and the copies by their distance from
the first one: in new memory of the same layout they need no new table, within a CUDA graph neither.

Example: sources of 5,000 and 100 elements, blocks of 4,096. `blocks` is [0, 0, 1]: program 1 owns the last 904 elements
of tensor 0; row 1 of `tensors` says that its first block is 2.
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

_BLOCK = 4096  # elements that a program owns: eight 16-byte loads a thread
_WARPS = 4
_FIELDS = tl.constexpr(5)  # of a tensor's row in the table
_ALIGNMENT = tl.constexpr(16)  # bytes of addresses

_MOST_RECENT = 256  # lists: a deep model's layers

_TL_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


class _Cast(NamedTuple):
    """A tensor to cast: all that its row depends on."""

    source: int  # address
    distance: int  # bytes from the first copy to its copy
    length: int  # elements


class _Key(NamedTuple):
    """All that a table depends on."""

    casts: tuple[_Cast, ...]
    alignment: int  # of the first copy's address, modulo _ALIGNMENT
    device: torch.device


class _Table(NamedTuple):
    """What one launch works through."""

    tensors: Tensor  # [T, _FIELDS] int64: source, distance, length, first block, whether both addresses are aligned
    blocks: Tensor  # [programs] int32: the tensor that a program works on


def cast_all(sources: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    """Write the copies: one launch, whatever the lengths and alignments.

    Args:
        sources: float32, contiguous, any shapes, on one device.
        copies: for each source its copy, contiguous, of its shape; all float16 or all bfloat16. They overlap nothing.

    Raises:
        RuntimeError: a CUDA graph is being captured, and there was no call with the same sources, and copies that lie
            alike, before: see `is_known`.
    """
    key = _key(sources, copies)
    if not key.casts:
        return
    table = _tables.find(key, key.device)
    launch(
        _cast_all_kernel,
        (table.blocks.numel(),),
        table.tensors,
        table.blocks,
        copies[0].data_ptr(),
        DTYPE=_TL_DTYPES[copies[0].dtype],
        BLOCK=_BLOCK,
        num_warps=_WARPS,
    )


def is_known(sources: Sequence[Tensor], copies: Sequence[Tensor]) -> bool:
    """Whether `cast_all` has a table for them, so that a CUDA graph can capture it."""
    key = _key(sources, copies)
    return not key.casts or key in _tables


def cast_all_bytes(sources: Sequence[Tensor], copies: Sequence[Tensor]) -> int:
    """Unique bytes that `cast_all` reads and writes."""
    total = 0
    for source, copy in zip(sources, copies, strict=True):
        if source.numel():
            total += source.numel() * (source.element_size() + copy.element_size())
            total += 8 * _FIELDS.value + 4 * triton.cdiv(source.numel(), _BLOCK)
    return total


def _key(sources: Sequence[Tensor], copies: Sequence[Tensor]) -> _Key:
    first = copies[0].data_ptr() if copies else 0
    casts = tuple(
        _Cast(source.data_ptr(), copy.data_ptr() - first, source.numel())
        for source, copy in zip(sources, copies, strict=True)
        if source.numel()
    )
    return _Key(casts, first % _ALIGNMENT.value, sources[0].device if sources else torch.device("cpu"))


def _build(key: _Key) -> _Table:
    first_block = 0
    rows, counts = [], []
    for cast in key.casts:
        aligned = cast.source % _ALIGNMENT.value == 0 and (key.alignment + cast.distance) % _ALIGNMENT.value == 0
        rows.append((*cast, first_block, int(aligned)))
        counts.append(triton.cdiv(cast.length, _BLOCK))
        first_block += counts[-1]
    return _Table(torch.tensor(rows, dtype=torch.int64).to(key.device), tensor_of_block(counts, key.device))


_tables = Tables(
    _build,
    _MOST_RECENT,
    "a cast of many tensors builds its table of addresses at the first call with new ones, which a CUDA graph cannot "
    "capture: call it once with the same tensors before the capture",
)


@triton.jit(do_not_specialize=["first_copy"])
def _cast_all_kernel(tensors_ptr, blocks_ptr, first_copy, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """copy = rounded(source).

    Grid (sum over tensors of cdiv(length, BLOCK),): a program owns BLOCK elements of one tensor and writes their
    copies. Reads 40 bytes a tensor, 4 bytes a program, and 4 length bytes of a source; writes 2 length. No FLOPs.

    Whole blocks of aligned tensors are moved 16 bytes at a time; a tensor's last block, and all of one whose source or
    copy is not aligned, element by element.
    """
    program = tl.program_id(0)
    tensor_ptr = tensors_ptr + tl.load(blocks_ptr + program) * _FIELDS
    source = tl.load(tensor_ptr)
    copy = first_copy.to(tl.int64) + tl.load(tensor_ptr + 1)
    length = tl.load(tensor_ptr + 2)
    start = (program - tl.load(tensor_ptr + 3)) * BLOCK
    aligned = tl.load(tensor_ptr + 4) != 0
    offsets = start + tl.arange(0, BLOCK)
    # Pointers of each branch's own: a promise holds for the pointer that it is made of, wherever that is used.
    if aligned & (start + BLOCK <= length):
        source_ptr = tl.multiple_of(source.to(tl.pointer_type(tl.float32)), _ALIGNMENT)
        copy_ptr = tl.multiple_of(copy.to(tl.pointer_type(DTYPE)), _ALIGNMENT)
        tl.store(copy_ptr + offsets, rounded(tl.load(source_ptr + offsets), DTYPE))
    else:
        mask = offsets < length
        values = tl.load(source.to(tl.pointer_type(tl.float32)) + offsets, mask=mask, other=0.0)
        tl.store(copy.to(tl.pointer_type(DTYPE)) + offsets, rounded(values, DTYPE), mask=mask)
