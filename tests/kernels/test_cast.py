"""Many tensors cast to half precision in one launch: as `Tensor.to` casts, and nothing beside them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dexcore.kernels import cast as module
from dexcore.kernels import tables
from dexcore.kernels.cast import cast_all, cast_all_bytes, is_known
from kernels.memory_check import check_memory

HALVES = (torch.bfloat16, torch.float16)
CANARY = 7.0


def hard_numbers():
    """Ties, subnormals and limits of both half dtypes and of float32, both signs, and what is not finite."""
    info = [torch.finfo(dtype) for dtype in (*HALVES, torch.float32)]
    numbers = [0.0, float("inf"), float("nan"), 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 65519.0, 65520.0]
    numbers += [n for i in info for n in (i.tiny, i.tiny / 2, i.max, i.smallest_normal * (1 - i.eps / 2))]
    numbers += [2**-24, 2**-25, 2**-25 * 1.001, 3 * 2**-25, 2**-133, 2**-134, 2**-134 * 1.001, 1e-45]
    some = torch.tensor(numbers, dtype=torch.float64).float()
    return torch.cat([some, -some])


def same(copy, expected):
    """Bits, but for which NaN it is."""
    numbers = ~expected.isnan()
    return copy.isnan().eq(~numbers).all() and torch.equal(
        copy[numbers].view(torch.int16), expected[numbers].view(torch.int16)
    )


def between_canaries(lengths, shifts, dtype):
    """Tensors of these lengths in one, each ``shift`` elements after the one before, and what is beside them."""
    whole = torch.full((sum(lengths) + sum(shifts) + 64,), CANARY, dtype=dtype)
    beside, tensors, first = torch.ones_like(whole, dtype=torch.bool), [], 0
    for length, shift in zip(lengths, shifts, strict=True):
        first += shift
        tensors.append(whole[first : first + length])
        beside[first : first + length] = False
        first += length
    return whole, beside, tensors


@given(
    tensors=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=5),
    dtype=st.sampled_from(HALVES),
)
def test_every_length_and_alignment_is_cast_as_by_torch_beside_canaries(tensors, dtype):
    lengths, gaps, copy_gaps = zip(*tensors, strict=True)
    sources = [source.normal_() for source in between_canaries(lengths, gaps, torch.float32)[2]]
    whole, beside, copies = between_canaries(lengths, copy_gaps, dtype)
    with check_memory(*sources, *copies) as memory:
        cast_all(sources, copies)
        memory.assert_written(*copies)
    assert len(memory.launches) == bool(sum(lengths))
    for source, copy in zip(sources, copies, strict=True):
        assert same(copy, source.to(dtype))
    assert (whole[beside] == CANARY).all()
    assert memory.unique_bytes == cast_all_bytes(sources, copies)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shift", [0, 1])
def test_whole_blocks_and_what_is_left_of_them_beside_canaries(dtype, shift):
    lengths, gaps = (module._BLOCK, 2 * module._BLOCK + 5, 3, module._BLOCK - 1), (16 + shift, 11, 24, 16)
    sources = [source.normal_() for source in between_canaries(lengths, gaps, torch.float32)[2]]
    whole, beside, copies = between_canaries(lengths, gaps, dtype)
    with check_memory(*sources, *copies) as memory:
        cast_all(sources, copies)
        memory.assert_written(*copies)
    assert all(same(copy, source.to(dtype)) for source, copy in zip(sources, copies, strict=True))
    assert (whole[beside] == CANARY).all()
    assert memory.unique_bytes == cast_all_bytes(sources, copies)


@pytest.mark.parametrize("dtype", HALVES)
def test_what_is_hard_to_round_is_cast_as_by_torch(dtype):
    # Once in a whole block, once in one that is not.
    source = hard_numbers().repeat(2 * module._BLOCK // len(hard_numbers()))
    copy = torch.empty_like(source, dtype=dtype)
    assert len(source) > module._BLOCK
    cast_all([source], [copy])
    assert same(copy, source.to(dtype))


def test_shapes_do_not_matter_and_nothing_is_nothing_to_do():
    sources = [torch.randn(3, 4, 5), torch.zeros(0, 7), torch.randn(())]
    copies = [torch.empty_like(source, dtype=torch.bfloat16) for source in sources]
    cast_all(sources, copies)
    assert all(torch.equal(copy, source.bfloat16()) for source, copy in zip(sources, copies, strict=True))
    with check_memory() as memory:
        cast_all([], [])
        cast_all([torch.zeros(0)], [torch.zeros(0, dtype=torch.float16)])
    assert not memory.launches


@pytest.fixture
def builds(monkeypatch):
    """What tables are built for, in order; none is there at first."""
    seen = []
    build = lambda key: seen.append(key) or module._build(key)  # noqa: E731
    monkeypatch.setattr(module, "_tables", tables.Tables(build, module._MOST_RECENT, module._tables._missing))
    return seen


def laid_out(sources, shift=0):
    """Copies in new memory, one after the other."""
    copies = torch.empty(sum(s.numel() for s in sources) + shift, dtype=torch.bfloat16)[shift:]
    return copies.split([s.numel() for s in sources])


def test_new_memory_of_the_same_layout_needs_no_new_table(builds):
    sources = [torch.randn(40), torch.randn(24)]
    alive = [laid_out(sources) for _ in range(3)]
    for copies in alive:
        cast_all(sources, copies)
        assert all(torch.equal(copy, source.bfloat16()) for source, copy in zip(sources, copies, strict=True))
    assert len(builds) == 1
    cast_all(sources, laid_out(sources, shift=1))  # aligned no more
    cast_all(sources[::-1], laid_out(sources[::-1]))
    cast_all([sources[0].clone(), sources[1]], laid_out(sources))
    assert len(builds) == 4


def test_a_capture_needs_a_call_before(builds, monkeypatch):
    known, new = [torch.randn(40), torch.randn(24)], [torch.randn(40)]
    cast_all(known, laid_out(known))
    monkeypatch.setattr(tables, "is_capturing", lambda device: True)
    copies = laid_out(known)
    assert is_known(known, copies)
    cast_all(known, copies)
    assert torch.equal(copies[1], known[1].bfloat16())
    assert not is_known(new, laid_out(new))
    with pytest.raises(RuntimeError, match="once with the same tensors before the capture"):
        cast_all(new, laid_out(new))
    assert len(builds) == 1
