"""The directors' moving average, of many tensors in one launch, against float64."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from assertions import assert_close
from dexcore.kernels import group_ema as module
from dexcore.kernels import tables
from dexcore.kernels.group_ema import group_ema, group_ema_bytes
from kernels.memory_check import check_memory

CANARY = 7.0
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def moved(director, experts, weights, momentum, dtype):
    """The formula, in ``dtype``."""
    mean = torch.einsum("r,r...->...", weights.to(dtype), experts.to(dtype))
    return momentum * director.to(dtype) + (1 - momentum) * mean


def make_tensors(shapes, experts, dtype, experts_dtype=None):
    directors = [torch.randn(shape).to(dtype) for shape in shapes]
    pools = [torch.randn(r, *shape).to(experts_dtype or dtype) for r, shape in zip(experts, shapes, strict=True)]
    weights = [torch.randn(r).softmax(0) for r in experts]
    return directors, pools, weights


@given(
    layers=st.lists(
        st.tuples(st.lists(st.integers(1, 50), min_size=1, max_size=2), st.integers(1, 11)), min_size=1, max_size=4
    ),
    momentum=st.sampled_from([0.0, 0.5, 0.996, 1.0]),
    dtype=st.sampled_from(DTYPES),
    experts_dtype=st.sampled_from(DTYPES),
)
def test_all_directors_move_as_in_float64(layers, momentum, dtype, experts_dtype):
    shapes, experts = zip(*layers, strict=True)
    directors, pools, weights = make_tensors(shapes, experts, dtype, experts_dtype)
    each = list(zip(directors, pools, weights, strict=True))
    want = [moved(*tensors, momentum, torch.float64) for tensors in each]
    plain = [moved(*tensors, momentum, torch.float32).to(dtype) for tensors in each]
    group_ema(directors, pools, weights, momentum)
    for i, director in enumerate(directors):
        assert_close(director, want[i], plain=plain[i], name=f"directors[{i}]")


@pytest.mark.parametrize("experts", [1, 8, 9, 64])
def test_tensors_of_several_blocks_with_many_experts(experts):
    directors, pools, weights = make_tensors([(33, 64), (5,), (1024,)], [experts] * 3, torch.float32)
    want = [moved(*each, 0.9, torch.float64) for each in zip(directors, pools, weights, strict=True)]
    group_ema(directors, pools, weights, 0.9)
    for director, expected in zip(directors, want, strict=True):
        assert_close(director, expected)


def test_an_expert_of_weight_zero_is_not_read():
    directors, pools, weights = make_tensors([(40,), (3, 5)], [3, 4], torch.float32)
    for pool, weight in zip(pools, weights, strict=True):
        pool[1], weight[1] = float("nan"), 0.0
    want = [
        moved(director, pool[weight != 0], weight[weight != 0], 0.9, torch.float64)
        for director, pool, weight in zip(directors, pools, weights, strict=True)
    ]
    group_ema(directors, pools, weights, 0.9)
    for director, expected in zip(directors, want, strict=True):
        assert_close(director, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_director_whose_weights_are_all_zero_keeps_its_bits(dtype):
    directors, pools, weights = make_tensors([(40,), (40,)], [3, 3], dtype)
    weights[0].zero_()
    pools[0].fill_(float("nan"))
    before = [director.clone() for director in directors]
    group_ema(directors, pools, weights, 0.5)
    assert torch.equal(directors[0], before[0])
    assert not torch.equal(directors[1], before[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_leaves_the_director_its_bits(dtype):
    directors, pools, weights = make_tensors([(40,), (40,), (40,)], [2, 2, 2], dtype)
    pools[0][1, 2], pools[0][0, 3] = float("nan"), float("-inf")
    weights[1][0] = float("nan")
    largest = torch.finfo(dtype).max
    directors[2][5], pools[2][:, 5] = largest, largest
    weights[2] *= 3  # the mean of the largest numbers overflows
    before = [director.clone() for director in directors]
    group_ema(directors, pools, weights, 0.5)
    assert all(director.isfinite().all() for director in directors)
    for i, kept in ((0, [2, 3]), (1, list(range(40))), (2, [5])):
        same = directors[i] == before[i]
        assert same[kept].all()
        assert not same[[n for n in range(40) if n not in kept]].any()


def test_twice_the_same_bits():
    directors, pools, weights = make_tensors([(70, 30), (9,)], [5, 3], torch.float32)
    others = [director.clone() for director in directors]
    group_ema(directors, pools, weights, 0.7)
    group_ema(others, pools, weights, 0.7)
    for director, other in zip(directors, others, strict=True):
        assert torch.equal(director, other)


def test_experts_may_be_strided_and_surround_their_director():
    pool = torch.randn(7, 20)
    director, experts = pool[2], pool[1::2]
    want = moved(director, experts, torch.ones(3) / 3, 0.5, torch.float64)
    group_ema([director], [experts], [torch.ones(3) / 3], 0.5)
    assert_close(pool[2], want)


def test_nothing_to_do():
    group_ema([], [], [], 0.5)
    empty = torch.zeros(0, 4)
    directors, pools, weights = make_tensors([(5,)], [2], torch.float32)
    want = moved(directors[0], pools[0], weights[0], 0.5, torch.float64)
    group_ema([empty, *directors], [torch.zeros(2, 0, 4), *pools], [weights[0], *weights], 0.5)
    assert_close(directors[0], want)


@pytest.fixture
def builds(monkeypatch):
    """What tables are built for, in order; none is there at first."""
    seen = []
    build = lambda pairs: seen.append(pairs) or module._build(pairs)  # noqa: E731
    monkeypatch.setattr(module, "_tables", tables.Tables(build, module._MOST_RECENT, module._tables._missing))
    return seen


def test_the_table_is_kept_until_an_address_a_shape_or_a_dtype_changes(builds):
    def built(directors, pools, weights):
        group_ema(directors, pools, weights, 0.5)
        return len(builds)

    directors, pools, weights = make_tensors([(6, 4), (5,)], [2, 2], torch.float32)
    assert built(directors, pools, weights) == 1
    assert built(list(directors), pools, [weight.clone() for weight in weights]) == 1
    assert built([directors[0].view(24), directors[1]], [pools[0].view(2, 24), pools[1]], weights) == 1
    assert built([directors[0], directors[1].clone()], pools, weights) == 2
    assert built([directors[0], directors[1][:4]], [pools[0], pools[1][:, :4]], weights) == 3
    half = directors[0].zero_().view(torch.float16).view(-1)[:24].view(6, 4)
    assert built([half, directors[1]], pools, weights) == 4


def test_of_many_models_the_tables_used_last_are_kept(builds):
    models = [make_tensors([(5,)], [2], torch.float32) for _ in range(module._MOST_RECENT + 1)]
    for model in (*models[:-1], models[0], models[-1], models[0]):
        group_ema(*model, 0.5)
    assert len(builds) == len(models)
    group_ema(*models[1], 0.5)
    assert len(builds) == len(models) + 1
    assert len(module._tables) == module._MOST_RECENT


def test_the_table_of_a_captured_graph_outlives_any_number_of_others(builds, monkeypatch):
    first, *others = (make_tensors([(5,)], [2], torch.float32) for _ in range(module._MOST_RECENT + 3))
    group_ema(*first, 0.5)
    with monkeypatch.context() as capture:
        capture.setattr(tables, "is_capturing", lambda device: True)
        group_ema(*first, 0.5)
        table = weakref.ref(module._tables.find(builds[0], torch.device("cpu"))[0].tensors)
        with pytest.raises(RuntimeError, match="once with the same contiguous tensors before the capture"):
            group_ema(*others[0], 0.5)
    for other in others:
        group_ema(*other, 0.5)
    assert table() is not None
    group_ema(*first, 0.5)
    assert len(builds) == len(others) + 1


def test_a_new_address_is_followed():
    directors, pools, weights = make_tensors([(6,)], [2], torch.float32)
    group_ema(directors, pools, weights, 0.5)
    directors, pools = [directors[0].clone()], [pools[0].clone()]
    want = moved(directors[0], pools[0], weights[0], 0.5, torch.float64)
    group_ema(directors, pools, weights, 0.5)
    assert_close(directors[0], want)


def test_one_launch_for_all_tensors_of_one_alignment():
    tensors = make_tensors([(48, 16), (48,), (16, 48), (16,)] * 3, [4] * 12, torch.float32)
    with check_memory(*tensors[0], *tensors[1]) as memory:
        group_ema(*tensors, 0.5)
    assert len(memory.launches) == 1
    tensors = make_tensors([(48, 16), (7,), (9,)], [4] * 3, torch.float32)
    with check_memory(*tensors[0], *tensors[1]) as memory:
        group_ema(*tensors, 0.5)
    assert len(memory.launches) == 2


def test_it_moves_the_bytes_it_says_and_writes_each_director_once():
    directors, pools, weights = make_tensors([(40, 64), (64,), (30,), (32,)], [9, 3, 3, 2], torch.bfloat16)
    weights[0][4] = weights[0][7] = 0
    weights[1].zero_()
    with check_memory(*directors, *pools) as memory:
        group_ema(directors, pools, weights, 0.5)
    memory.assert_written(directors[0], directors[2], directors[3])
    assert memory.unique_bytes == group_ema_bytes(directors, pools, weights)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("twice", r"directors\[2\] and directors\[0\] overlap"),
        ("partly", r"directors\[2\] and directors\[0\] overlap"),
        ("its own expert", r"experts\[1\]\[2\] and directors\[1\]|directors\[1\] and experts\[1\]\[2\]"),
        ("another's expert", r"directors\[2\] and experts\[0\]\[1\]"),
        ("an expert from its middle on", r"experts\[0\]\[0\] and directors\[2\]"),
    ],
)
def test_a_director_that_shares_memory_is_an_error_that_names_it(case, message):
    directors, pools, weights = make_tensors([(20,)] * 3, [3] * 3, torch.float32)
    if case == "twice":
        directors[2] = directors[0]
    elif case == "partly":
        whole = torch.randn(30)
        directors[0], directors[2] = whole[:20], whole[10:]
    elif case == "its own expert":
        directors[1] = pools[1][2]
    elif case == "another's expert":
        directors[2] = pools[0].view(-1)[30:50]
    else:
        whole = torch.randn(30)
        directors[2], pools[0], weights[0] = whole[:20], whole[None, 10:], torch.ones(1)
    before = [director.clone() for director in directors]
    with pytest.raises(ValueError, match=message):
        group_ema(directors, pools, weights, 0.5)
    for director, old in zip(directors, before, strict=True):
        assert torch.equal(director, old)


def spread(sizes, gap, dtype):
    """Tensors of these sizes in one, ``gap`` elements apart, beside what must stay as it is."""
    whole = torch.full((sum(sizes) + gap * (len(sizes) + 1) + 64,), CANARY, dtype=dtype)
    tensors, beside, first = [], torch.ones_like(whole, dtype=torch.bool), 0
    for size in sizes:
        first += gap
        tensors.append(whole[first : first + size])
        beside[first : first + size] = False
        first += size
    return tensors, whole, beside


@pytest.mark.parametrize("with_copies", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gap", [8, 16])
@pytest.mark.parametrize("length", [1, 4, 15, 16, 20, 32, 52, 64, 100])
def test_nothing_beside_a_director_and_its_copies_is_touched(length, gap, dtype, with_copies):
    """Lengths, distances and strides of every divisibility: what is promised to the compiler has to be so."""
    directors, whole, beside = spread([length] * 2, gap, dtype)
    pools = [torch.randn(3, length + extra)[:, :length].to(dtype) for extra in (0, 20)]
    pools[1] = torch.randn(3, length + gap, dtype=dtype)[:, :length]  # experts far apart
    weights = [torch.tensor([0.5, 0.0, 0.5]), torch.tensor([0.25, 0.25, 0.5])]
    for director in directors:
        director.copy_(torch.randn(length))
    want = [moved(*each, 0.9, torch.float64) for each in zip(directors, pools, weights, strict=True)]
    plain = [moved(*each, 0.9, torch.float32).to(dtype) for each in zip(directors, pools, weights, strict=True)]
    copies, half, half_beside = spread([length, length, 3 * length, 3 * length], gap, torch.float16)
    of_directors, of_experts = copies[:2], [copy.view(3, length) for copy in copies[2:]]
    with check_memory(*directors, *pools, *copies):
        group_ema(directors, pools, weights, 0.9, *((of_directors, of_experts) if with_copies else ()))
    for director, expected, by_plain in zip(directors, want, plain, strict=True):
        assert_close(director, expected, plain=by_plain)
    assert (whole[beside] == CANARY).all()
    assert (half[half_beside] == CANARY).all()
    if with_copies:
        for copy, tensor in zip([*of_directors, *of_experts], [*directors, *pools], strict=True):
            assert torch.equal(copy, tensor.half())
    else:
        assert (half == CANARY).all()


def make_copies(tensors, dtype):
    return [None if tensor is None else torch.empty(tensor.shape, dtype=dtype) for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_are_those_that_torch_would_cast_and_do_not_change_the_directors(dtype):
    directors, pools, weights = make_tensors([(33, 64), (5,), (1024,), (40,)], [9, 3, 2, 8], torch.float32)
    weights[0][4] = weights[2][0] = 0.0
    for pool in (pools[0][4], pools[2][0]):  # not in use
        pool[..., :3] = torch.tensor([float("nan"), float("inf"), 1e-40])
    pools[1][1, 2] = float("nan")
    weights[3].zero_()
    directors[3][:3] = torch.tensor([float("nan"), float("-inf"), 2**-25 * 1.001])
    plain = [director.clone() for director in directors]
    group_ema(plain, pools, weights, 0.9)
    copies = make_copies(directors, dtype), make_copies(pools, dtype)
    group_ema(directors, pools, weights, 0.9, *copies)
    for director, expected in zip(directors, plain, strict=True):
        assert torch.equal(director.view(torch.int32), expected.view(torch.int32))
    for copy, tensor in zip([*copies[0], *copies[1]], [*directors, *pools], strict=True):
        torch.testing.assert_close(copy, tensor.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_a_director_that_stays_as_it_is_is_copied_as_it_stays(weight):
    directors, pools, weights = make_tensors([(40,)], [3], torch.float32)
    weights[0].fill_(weight)
    before, copies = directors[0].clone(), make_copies(directors, torch.bfloat16)
    group_ema(directors, pools, weights, 0.5, copies, None)
    assert torch.equal(directors[0], before)
    assert torch.equal(copies[0], before.bfloat16())


def test_some_have_copies_and_others_none_in_one_launch():
    directors, pools, weights = make_tensors([(48,), (16, 4), (32,), (64,)], [4, 3, 2, 2], torch.float32)
    weights[1][1] = weights[3][0] = 0.0
    want = [moved(*each, 0.9, torch.float64) for each in zip(directors, pools, weights, strict=True)]
    of_directors = make_copies([directors[0], None, directors[2], None], torch.bfloat16)
    of_experts = make_copies([pools[0], pools[1], None, None], torch.bfloat16)
    written = [copy for copy in (*of_directors, *of_experts) if copy is not None]
    expected = group_ema_bytes(directors, pools, weights, of_directors, of_experts)
    with check_memory(*directors, *pools, *written) as memory:
        group_ema(directors, pools, weights, 0.9, of_directors, of_experts)
        memory.assert_written(*directors, *written)
    assert len(memory.launches) == 1
    assert memory.unique_bytes == expected
    for director, should in zip(directors, want, strict=True):
        assert_close(director, should)
    for copy, tensor in zip([*of_directors, *of_experts], [*directors, *pools], strict=True):
        assert copy is None or torch.equal(copy, tensor.bfloat16())


def test_copies_of_two_dtypes_and_copies_that_overlap_are_errors():
    directors, pools, weights = make_tensors([(16,), (16,)], [2, 2], torch.float32)
    copies = [torch.empty(16, dtype=dtype) for dtype in (torch.bfloat16, torch.float16)]
    with pytest.raises(ValueError, match=r"one dtype, got torch\.bfloat16 and torch\.float16"):
        group_ema(directors, pools, weights, 0.5, copies)
    whole = torch.empty(24, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"director_copies\[1\] and director_copies\[0\] overlap"):
        group_ema(directors, pools, weights, 0.5, [whole[:16], whole[8:]])
    with pytest.raises(ValueError, match=r"experts_copies\[0\] and experts\[0\]\[0\] overlap"):
        group_ema(directors, pools, weights, 0.5, None, [pools[0].view(torch.bfloat16)[:, 16:], None])


def test_experts_may_share_memory_with_one_another():
    directors, pools, _ = make_tensors([(6,)] * 2, [1] * 2, torch.float32)
    experts, weights = pools[0].expand(3, 6), torch.tensor([0.2, 0.3, 0.5])
    want = [moved(director, experts, weights, 0.5, torch.float64) for director in directors]
    group_ema(directors, [experts, experts], [weights, weights], 0.5)
    for director, expected in zip(directors, want, strict=True):
        assert_close(director, expected)
