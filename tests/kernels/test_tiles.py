"""Tiles by pointers and by descriptors: the same numbers, and nothing beyond the matrix."""

import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from dexcore.kernels.launch import launch
from dexcore.kernels.tiles import load_tile, matrix, store_tile
from kernels.memory_check import check_memory

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BLOCK = 16, 32


@triton.jit
def _load_kernel(
    source,
    out_ptr,
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
    tile = load_tile(source, row, column, rows, COLUMNS, ROW_TAIL, COLUMN_END, BLOCK_R, BLOCK_C, TRANSPOSED)
    r, c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    if TRANSPOSED:
        tl.store(out_ptr + c[:, None] * BLOCK_R + r[None, :], tile)
    else:
        tl.store(out_ptr + r[:, None] * BLOCK_C + c[None, :], tile)


@triton.jit
def _store_kernel(
    target,
    tile_ptr,
    row,
    column,
    COLUMNS: tl.constexpr,
    COLUMN_END: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    r, c = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_C)
    tile = tl.load(tile_ptr + r[:, None] * BLOCK_C + c[None, :])
    store_tile(target, row, column, tile, COLUMNS, COLUMN_END, BLOCK_R, BLOCK_C)


def load(source, row, column, *, described, transposed, rows=BLOCK[0], row_tail=False, end=40):
    """The tile, which must read nothing beyond the matrix."""
    shape = BLOCK[::-1] if transposed else BLOCK
    with check_memory():
        out = torch.empty(shape, dtype=source.dtype)
        given = matrix(source, BLOCK, described)
        tails = source.shape[-1], row_tail, end
        launch(_load_kernel, (1,), given, out, row, column, rows, *tails, *BLOCK, transposed)
    return out.T if transposed else out


def store(target, tile, row, column, *, described, end=40):
    with check_memory():
        given = matrix(target, BLOCK, described)
        launch(_store_kernel, (1,), given, tile, row, column, target.shape[-1], end, *BLOCK)


def expected_tile(source, row, column, rows=BLOCK[0]):
    """Zeros beyond the columns, and beyond that many rows."""
    flat = source.reshape(-1, source.shape[-1])
    tile = source.new_zeros(BLOCK)
    part = flat[row : row + min(rows, BLOCK[0]), column : column + BLOCK[1]]
    tile[: part.shape[0], : part.shape[1]] = part
    return tile


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("row", "column"), [(0, 0), (16, 32), (32, 32)], ids=["first", "tail of columns", "end of memory"]
)
def test_a_tile_is_read_alike_by_pointers_and_by_descriptor(dtype, transposed, row, column):
    source = torch.randn(48, 40).to(dtype)
    expected = expected_tile(source, row, column)
    for described in (False, True):
        assert torch.equal(load(source, row, column, described=described, transposed=transposed), expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("described", [False, True])
def test_whole_tiles_take_no_masks(transposed, described):
    source = torch.randn(48, 64)
    tile = load(source, 32, 32, described=described, transposed=transposed, end=0)
    assert torch.equal(tile, source[32:, 32:])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 16, 40])
@pytest.mark.parametrize("end", [0, 40])
def test_by_pointers_rows_end_where_it_is_said(transposed, rows, end):
    source = torch.randn(48, end or 64)
    source[16 + rows :] = float("inf")  # another expert's
    tile = load(source, 16, 32, described=False, transposed=transposed, rows=rows, row_tail=True, end=end)
    assert torch.equal(tile, expected_tile(source, 16, 32, rows))
    assert tile.isfinite().all()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_descriptor_ends_with_the_memory(transposed):
    """Where by pointers it is ROW_TAIL that ends it."""
    source = torch.randn(40, 40)
    tails = {"rows": 8, "row_tail": True, "transposed": transposed}
    expected = expected_tile(source, 32, 32)
    for described in (False, True):
        assert torch.equal(load(source, 32, 32, described=described, **tails), expected)


def test_matrices_that_lie_one_after_the_other_are_one():
    source = torch.randn(3, 16, 40)
    for described in (False, True):
        assert torch.equal(load(source, 32, 0, described=described, transposed=False), source[2, :, :32])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("row", "column"), [(0, 0), (16, 32), (32, 32)], ids=["first", "tail of columns", "end of memory"]
)
def test_a_tile_is_written_alike_rounded_to_nearest_and_nowhere_else(dtype, row, column):
    tile = torch.randn(BLOCK)
    for described in (False, True):
        target = torch.full((48, 40), 7.0, dtype=dtype)
        store(target, tile, row, column, described=described)
        expected = torch.full((48, 40), 7.0, dtype=dtype)
        expected[row : row + 16, column : column + 32] = tile.to(dtype)[:, : 40 - column]
        assert torch.equal(target, expected)


@pytest.mark.parametrize("described", [False, True])
def test_whole_tiles_are_written_without_masks(described):
    tile, target = torch.randn(BLOCK), torch.empty(48, 64)
    store(target, tile, 32, 32, described=described, end=0)
    assert torch.equal(target[32:, 32:], tile)
    assert target[:32].isnan().all()
    assert target[:, :32].isnan().all()


@pytest.mark.parametrize("transposed", [False, True])
def test_by_pointers_columns_may_end_within_the_matrix(transposed):
    """The gate's before the value's."""
    source, tile = torch.randn(48, 80), torch.randn(BLOCK)
    found = load(source, 16, 32, described=False, transposed=transposed, end=40)
    assert torch.equal(found, expected_tile(source[:, :40], 16, 32))
    target = torch.full((48, 80), 7.0)
    store(target, tile, 16, 32, described=False, end=40)
    assert torch.equal(target[16:32, 32:40], tile[:, :8])
    assert (target == 7).sum() == 48 * 80 - 16 * 8


def test_a_matrix_is_its_descriptor_or_itself():
    tensor = torch.randn(3, 16, 40)
    assert matrix(tensor, BLOCK, False) is tensor
    assert matrix(None, BLOCK, True) is None
    described = matrix(tensor, BLOCK, True)
    assert isinstance(described, TensorDescriptor)
    assert described.base is tensor
    assert (described.shape, described.strides, described.block_shape) == ([48, 40], [40, 1], [16, 32])


def test_an_empty_matrix_has_no_descriptor():
    empty = torch.empty(0, 40)
    assert matrix(empty, BLOCK, True) is empty
