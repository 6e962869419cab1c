"""The memory checker against kernels that are wrong in one place."""

import pytest
import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from dexcore.kernels.launch import launch
from dexcore.kernels.plan import make_plan
from kernels.memory_check import Traffic, check_memory

BLOCK = 8


@triton.jit
def _copy_kernel(x_ptr, y_ptr, size, shift, OVERLAP: tl.constexpr, BLOCK: tl.constexpr):
    """y[i] = x[i + shift]; programs own BLOCK - OVERLAP elements, but write BLOCK."""
    offsets = tl.program_id(0) * (BLOCK - OVERLAP) + tl.arange(0, BLOCK)
    mask = offsets < size
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets + shift, mask=mask), mask=mask)


@triton.jit
def _copy_without_mask_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets))


@triton.jit
def _store_without_mask_kernel(y_ptr, BLOCK: tl.constexpr):
    tl.store(y_ptr + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.zeros((BLOCK,), tl.float32))


@triton.jit
def _lanes_collide_kernel(y_ptr, BLOCK: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, BLOCK) // 2, tl.zeros((BLOCK,), tl.float32))


@triton.jit
def _reads_its_neighbour_kernel(y_ptr, last):
    """In place, y[p] = 2 y[p + 1]: right only if the programs run in their order."""
    program = tl.program_id(0)
    value = tl.load(y_ptr + tl.minimum(program + 1, last))
    tl.store(y_ptr + program, 2 * value)


@triton.jit
def _read_after_another_wrote_kernel(y_ptr, z_ptr):
    program = tl.program_id(0)
    tl.store(y_ptr + program, 1.0)
    tl.store(z_ptr + program, tl.load(y_ptr))


@triton.jit
def _double_kernel(y_ptr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, 2 * tl.load(y_ptr + offsets))


@triton.jit
def _add_kernel(y_ptr):
    tl.atomic_add(y_ptr, 1.0)


@triton.jit
def _promises_kernel(y_ptr, n, MULTIPLE: tl.constexpr):
    n = tl.multiple_of(n, 4)
    tl.store(tl.multiple_of(y_ptr, MULTIPLE), n + 0.0)


@triton.jit
def _reads_halves_kernel(x_ptr, y_ptr):
    tl.store(y_ptr, tl.load(x_ptr.to(tl.pointer_type(tl.float16))).to(tl.float32))


@triton.jit
def _through_a_table_kernel(table_ptr, y_ptr, extra, BLOCK: tl.constexpr):
    x_ptr = tl.load(table_ptr + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + tl.program_id(0) * BLOCK + offsets, tl.load(x_ptr + offsets + extra))


@triton.jit
def _descriptor_copy_kernel(x, y_ptr, columns, BLOCK: tl.constexpr):
    tile = x.load([tl.program_id(0) * BLOCK, 0])
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    across = tl.arange(0, BLOCK)
    mask = (rows < 12)[:, None] & (across < columns)[None, :]
    tl.store(y_ptr + rows[:, None] * columns + across[None, :], tile, mask=mask)


def copy(size, *, x=None, y=None, shift=0, overlap=0, programs=None):
    x = torch.randn(size) if x is None else x
    y = torch.empty(size) if y is None else y
    programs = triton.cdiv(size, BLOCK - overlap) if programs is None else programs
    launch(_copy_kernel, (programs,), x, y, size, shift, overlap, BLOCK)
    return x, y


def test_a_right_kernel_passes_and_its_bytes_are_counted():
    with check_memory() as memory:
        x, y = copy(19)
        memory.assert_written(y)
    assert torch.equal(x, y)
    (only,) = memory.launches
    assert only.kernel == "_copy_kernel"
    assert only.grid == (3,)
    assert only.traffic == {
        "x_ptr": Traffic(issued_read=76, unique_read=76),
        "y_ptr": Traffic(issued_written=76, unique_written=76),
    }
    assert memory.unique_bytes == 152


def test_a_byte_that_is_read_twice_is_issued_twice_and_unique_once():
    @triton.jit
    def kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
        offsets = tl.arange(0, BLOCK)
        tl.store(y_ptr + tl.program_id(0) * BLOCK + offsets, tl.load(x_ptr + offsets))

    with check_memory() as memory:
        launch(
            kernel, (3,), torch.zeros(BLOCK, dtype=torch.float16), torch.empty(3 * BLOCK, dtype=torch.float16), BLOCK
        )
    assert memory.launches[0].traffic["x_ptr"] == Traffic(issued_read=6 * BLOCK, unique_read=2 * BLOCK)
    assert memory.unique_bytes == 8 * BLOCK


def test_launches_are_counted_one_by_one():
    with check_memory() as memory:
        copy(8)
        copy(5)
    assert [launch.traffic["y_ptr"].unique for launch in memory.launches] == [32, 20]
    assert memory.unique_bytes == 2 * 52


@pytest.mark.parametrize("shift", [1, -1, 1000])
def test_a_read_outside_its_tensor_is_found(shift):
    with check_memory(), pytest.raises(AssertionError, match=r"read outside x_ptr \(16,\)"):
        copy(16, shift=shift)


def test_a_read_outside_a_view_is_found_though_its_storage_has_the_bytes():
    storage = torch.randn(32)
    with (
        check_memory(),
        pytest.raises(AssertionError, match=r"read outside x_ptr \(16,\): 1 lanes, first at element 16"),
    ):
        copy(16, x=storage[:16], shift=1)


def test_a_tail_without_mask_is_found():
    with (
        check_memory(),
        pytest.raises(AssertionError, match=r"read outside x_ptr \(13,\): 3 lanes, first at element 13"),
    ):
        launch(_copy_without_mask_kernel, (2,), torch.randn(13), torch.empty(16), BLOCK)


def test_a_write_outside_its_tensor_is_found_and_not_carried_out():
    storage = torch.full((32,), 7.0)
    with check_memory(), pytest.raises(AssertionError, match=r"write outside y_ptr \(13,\)"):
        launch(_store_without_mask_kernel, (2,), storage[:13], BLOCK)
    assert (storage[13:] == 7).all()


def test_an_empty_tensor_may_not_be_touched():
    with check_memory(), pytest.raises(AssertionError, match="write outside y_ptr"):
        launch(_store_without_mask_kernel, (1,), torch.empty(0), BLOCK)


def test_an_element_written_by_two_programs_is_found():
    with check_memory(), pytest.raises(AssertionError, match=r"y_ptr \(16,\) is written twice"):
        copy(16, overlap=1)


def test_an_element_written_by_two_lanes_is_found():
    with check_memory(), pytest.raises(AssertionError, match=r"y_ptr \(8,\) is written twice"):
        launch(_lanes_collide_kernel, (1,), torch.empty(8), BLOCK)


def test_an_element_may_be_written_by_two_launches():
    with check_memory() as memory:
        y = copy(16)[1]
        copy(16, y=y)
        memory.assert_written(y)


def test_an_element_that_is_never_written_is_found():
    with check_memory() as memory:
        y = copy(16, programs=1)[1]
        with pytest.raises(AssertionError, match=r"8 elements never written, first at \[8\]"):
            memory.assert_written(y)
        memory.assert_written(y[:8])
        with pytest.raises(AssertionError, match="was never written"):
            memory.assert_written(torch.empty(3))


def test_a_row_that_is_never_written_is_found_in_a_view():
    with check_memory() as memory:
        y = torch.empty(4, 8)
        copy(16, y=y[1:3])
        memory.assert_written(y[1:3], torch.empty(0))
        with pytest.raises(AssertionError, match=r"8 elements never written, first at \[0, 0\]"):
            memory.assert_written(y[:2])


def test_programs_that_read_what_others_write_are_found():
    with check_memory(), pytest.raises(AssertionError, match="read by one program, written by another"):
        launch(_reads_its_neighbour_kernel, (4,), torch.ones(4), 3)
    with check_memory(), pytest.raises(AssertionError, match="read by one program, written by another"):
        launch(_read_after_another_wrote_kernel, (4,), torch.ones(4), torch.ones(4))


def test_in_place_is_allowed_and_counts_both_ways():
    with check_memory() as memory:
        launch(_double_kernel, (2,), torch.ones(16), BLOCK)
    assert memory.launches[0].traffic["y_ptr"] == Traffic(64, 64, 64, 64)


def test_one_storage_through_two_arguments_is_one_storage():
    y = torch.ones(16)
    with check_memory(), pytest.raises(AssertionError, match="read by one program, written by another"):
        launch(_copy_kernel, (2,), y[1:], y[:15], 15, 0, 0, BLOCK)


def test_atomics_are_found():
    with check_memory(), pytest.raises(AssertionError, match="an atomic operation"):
        launch(_add_kernel, (2,), torch.zeros(1))


def test_a_promise_about_a_number_or_an_address_that_is_not_kept_is_found():
    y = torch.zeros(16)
    with check_memory():
        launch(_promises_kernel, (1,), y[4:], 12, 16)
    assert y[4] == 12
    with check_memory(), pytest.raises(AssertionError, match=r"a promise that \[13\] are multiples of 4"):
        launch(_promises_kernel, (1,), y, 13, 16)
    with check_memory(), pytest.raises(AssertionError, match="are multiples of 16"):
        launch(_promises_kernel, (1,), y[1:], 12, 16)


def test_another_width_than_the_elements_is_found():
    with check_memory(), pytest.raises(AssertionError, match="read of 2 bytes in x_ptr, whose elements have 4"):
        launch(_reads_halves_kernel, (1,), torch.zeros(1), torch.empty(1))


def test_tensors_behind_a_pointer_table_must_be_named_and_are_checked():
    xs = [torch.randn(BLOCK) for _ in range(3)]
    table = torch.tensor([x.data_ptr() for x in xs])
    with check_memory(*xs) as memory:
        y = torch.empty(3, BLOCK)
        launch(_through_a_table_kernel, (3,), table, y, 0, BLOCK)
    assert torch.equal(y, torch.stack(xs))
    assert memory.unique_bytes == 3 * 8 + 2 * 3 * 4 * BLOCK
    with check_memory(*xs[:2]), pytest.raises(AssertionError, match="no known tensor"):
        launch(_through_a_table_kernel, (3,), table, y, 0, BLOCK)
    with check_memory(*xs), pytest.raises(AssertionError, match="no known tensor"):
        launch(_through_a_table_kernel, (3,), table, y, 1, BLOCK)


def test_descriptors_are_counted_without_their_padding():
    x = torch.randn(12, 4)
    with check_memory() as memory:
        y = torch.empty(12, 4)
        launch(_descriptor_copy_kernel, (2,), TensorDescriptor(x, [12, 4], [4, 1], [BLOCK, BLOCK]), y, 4, BLOCK)
        memory.assert_written(y)
    assert torch.equal(x, y)
    assert memory.launches[0].traffic["x"] == Traffic(issued_read=192, unique_read=192)


def test_nothing_stays_patched():
    with pytest.raises(ZeroDivisionError), check_memory():
        raise ZeroDivisionError
    y = torch.zeros(1)
    launch(_add_kernel, (2,), y)
    assert y == 2


@pytest.mark.parametrize(
    ("batch", "experts", "tokens", "block_m"), [(5, 3, 7, 16), (1, 1, 1, 16), (70, 8, 5, 32), (0, 4, 3, 16)]
)
def test_the_plan_keeps_to_its_tensors_and_moves_the_bytes_that_it_says(batch, experts, tokens, block_m):
    indices = torch.rand(batch, experts).argsort(-1)[:, : min(2, experts)].contiguous()
    with check_memory() as memory:
        plan, _ = make_plan(indices, experts, tokens, block_m)
        memory.assert_written(*plan.tables)
    slots = indices.numel()
    tables = plan.tiles.numel() + 3 * experts + 3
    assert memory.unique_bytes == 8 * slots + 8 * slots + 4 * tables
