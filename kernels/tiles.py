"""How the GEMM kernels read and write tiles of matrices: by tensor descriptors where a layer has them, or by pointers.

A matrix [rows, COLUMNS] lies row after row; several of one width that lie one after the other are one matrix, as are
the experts' weights [R, H, D] as [R*H, D]. Its columns are a constexpr, so that masks vanish where tiles fit.

With descriptors (sm_90, sm_100) a multiprocessor copies tiles by itself, and what lies beyond the matrix reads as zero
and is not written. `configs.can_describe` says when a layer may have them.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from dexcore.kernels.numerics import rounded


def matrix(tensor: Tensor | None, block: tuple[int, int], described: bool) -> Any:
    """What a kernel is given for ``tensor`` [..., columns], contiguous: its descriptor with tiles ``block``, or itself.

    A descriptor is made on the host: the kernel finds it among its arguments. Of nothing there is none.
    """
    if tensor is None or not described or not tensor.numel():
        return tensor
    columns = tensor.shape[-1]
    return TensorDescriptor(tensor, [tensor.numel() // columns, columns], [columns, 1], list(block))


@triton.jit
def load_tile(
    source,
    row,
    column,
    rows,
    COLUMNS: tl.constexpr,
    ROW_TAIL: tl.constexpr,
    COLUMN_END: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """The matrix's elements [BLOCK_R, BLOCK_C] from (row, column) on, or their transpose.

    Zero beyond its columns; by pointers from COLUMN_END on, where that is not 0, and with ROW_TAIL beyond ``rows`` of
    the tile's rows.
    """
    if isinstance(source, tl.tensor_descriptor):
        tile = source.load([row, column])
        return tile.T if TRANSPOSED else tile
    else:
        source += row.to(tl.int64) * COLUMNS + column
        r, c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
        # Not transposed in registers: only so is it copied asynchronously on sm_80 too.
        END: tl.constexpr = COLUMN_END if COLUMN_END > 0 else COLUMNS
        if TRANSPOSED:
            offsets = r[None, :] * COLUMNS + c[:, None]
            inside = (c < END - column)[:, None]
            if ROW_TAIL:
                inside = inside & (r < rows)[None, :]
        else:
            offsets = r[:, None] * COLUMNS + c[None, :]
            inside = (c < END - column)[None, :]
            if ROW_TAIL:
                inside = inside & (r < rows)[:, None]
        if ROW_TAIL or COLUMN_END > 0:
            return tl.load(source + offsets, mask=inside, other=0.0)
        else:
            return tl.load(source + offsets)


@triton.jit
def store_tile(
    target,
    row,
    column,
    tile,
    COLUMNS: tl.constexpr,
    COLUMN_END: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Round [BLOCK_R, BLOCK_C], float32, and write it from (row, column) on.

    But for what lies beyond the columns; by pointers from COLUMN_END on, where that is not 0.
    """
    if isinstance(target, tl.tensor_descriptor):
        target.store([row, column], rounded(tile, target.dtype))
    else:
        target += row.to(tl.int64) * COLUMNS + column
        r, c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
        offsets = r[:, None] * COLUMNS + c[None, :]
        tile = rounded(tile, target.dtype.element_ty)
        if COLUMN_END > 0:
            tl.store(target + offsets, tile, mask=(c < COLUMN_END - column)[None, :])
        else:
            tl.store(target + offsets, tile)
