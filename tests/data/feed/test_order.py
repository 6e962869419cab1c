from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dexcore.data.feed.order import GlobalBatchSampler, GlobalOrder

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=5)
balances = st.sampled_from([0.0, 0.3, 1.0])


def modalities(sizes: list[int]) -> np.ndarray:
    """Labels that are neither sorted nor consecutive."""
    labels = np.repeat(np.arange(len(sizes)) * 3 + 1, sizes)
    return np.random.default_rng(0).permutation(labels)


def steps(order: GlobalOrder, batch_size: int, total_steps: int, **where: int) -> list[list[tuple[int, int]]]:
    sampler = GlobalBatchSampler(order, batch_size, total_steps=total_steps, **where)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


@given(sizes, st.integers(0, 5))
def test_without_balancing_an_epoch_is_every_sample_once(sizes, epoch):
    order = GlobalOrder(modalities(sizes), seed=1)
    keys = order.keys(epoch)
    assert sorted(order.epoch(epoch)) == list(range(sum(sizes)))
    assert (keys[:, 0] == epoch).all()


def test_epochs_and_seeds_have_orders_of_their_own():
    ids = modalities([50, 50])
    order = GlobalOrder(ids, seed=1)
    orders = [order.epoch(0), order.epoch(1), GlobalOrder(ids, seed=2).epoch(0), np.arange(100)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).mean() < 0.1
    assert order.epoch(0).dtype == np.int64
    assert np.array_equal(GlobalOrder(ids, seed=1).epoch(1), order.epoch(1))


@given(sizes, balances, st.integers(1, 40))
def test_all_images_of_a_modality_come_up_before_one_comes_up_again(sizes, balance, epoch_size):
    ids = modalities(sizes)
    order = GlobalOrder(ids, seed=3, balance=balance, epoch_size=epoch_size)
    seen: dict[int, list[list[int]]] = {}
    for epoch in range(6):
        keys = order.keys(epoch)
        assert keys.shape == (epoch_size, 2)
        for of_pass, position in sorted(keys.tolist()):
            passes = seen.setdefault(int(ids[position]), [[]])
            while len(passes) <= of_pass:
                passes.append([])
            passes[of_pass].append(position)
    for modality, passes in seen.items():
        members = np.flatnonzero(ids == modality).tolist()
        assert all(sorted(one) == members for one in passes[:-1])
        assert len(set(passes[-1])) == len(passes[-1])


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_shares_are_as_the_temperature_says(balance):
    sizes = np.array([1000, 100, 7])
    ids = np.repeat([0, 1, 2], sizes)
    order = GlobalOrder(ids, seed=0, balance=balance, epoch_size=101)
    weights = sizes.astype(float) ** (1 - balance)
    due = 101 * weights / weights.sum()
    counts = np.array([np.bincount(ids[order.epoch(epoch)], minlength=3) for epoch in range(50)])
    assert (np.abs(counts - due) < 1).all()
    assert np.abs(counts.sum(axis=0) - 50 * due).max() < 2  # fractions add up over the epochs


def test_a_rare_modality_is_mixed_into_the_whole_epoch():
    ids = np.repeat([0, 1], [900, 10])
    order = GlobalOrder(ids, seed=0, balance=1.0)
    places = np.flatnonzero(ids[order.epoch(0)] == 1)
    assert len(places) == 455
    quarters = np.bincount(places * 4 // 910)
    assert quarters.min() > 80


@given(sizes, balances, st.sampled_from([1, 2, 3]), st.integers(1, 5), st.integers(0, 12))
def test_a_resume_with_any_ranks_goes_on_where_the_whole_run_would(sizes, balance, ranks, share, start):
    order = GlobalOrder(modalities(sizes), seed=5, balance=balance)
    batch_size = 6 * share
    whole = steps(order, batch_size, 12)
    again = GlobalOrder(modalities(sizes), seed=5, balance=balance)
    parts = [steps(again, batch_size, 12, rank=rank, world_size=ranks, start_step=start) for rank in range(ranks)]
    joined = [list(chain(*batches)) for batches in zip(*parts, strict=True)]
    assert joined == whole[start:]
    assert all(len(batch) == batch_size // ranks for part in parts for batch in part)


@given(sizes, st.integers(1, 7))
def test_batches_run_across_the_ends_of_epochs_and_drop_nothing(sizes, batch_size):
    order = GlobalOrder(modalities(sizes), seed=2)
    total = sum(sizes)
    flat = list(chain(*steps(order, batch_size, 3 * total)))  # batch_size whole turns of three epochs
    for epoch in range(3 * batch_size):
        part = flat[epoch * total : (epoch + 1) * total]
        assert sorted(part) == [(epoch, position) for position in range(total)]


def test_the_state_says_where_the_order_stands():
    sampler = GlobalBatchSampler(GlobalOrder(np.zeros(10, int), seed=4), 4, total_steps=100)
    assert sampler.state(0, "f") == {"seed": 4, "epoch": 0, "consumed": 0, "fingerprint": "f"}
    assert sampler.state(5, "f") == {"seed": 4, "epoch": 2, "consumed": 20, "fingerprint": "f"}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("modality_ids", {"modality_ids": np.zeros(0, int)}),
        ("modality_ids", {"modality_ids": np.zeros(3)}),
        ("modality_ids", {"modality_ids": np.zeros((3, 1), int)}),
        ("seed", {"seed": -1}),
        ("balance", {"balance": 1.5}),
        ("balance", {"balance": float("nan")}),
        ("epoch_size", {"epoch_size": 0}),
    ],
)
def test_an_order_names_the_argument_it_refuses(name, change):
    with pytest.raises(ValueError, match=name):
        GlobalOrder(**{"modality_ids": np.zeros(3, int), "seed": 0, **change})


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 0.5), ("seed", None), ("balance", "0.5"), ("epoch_size", 2.0), ("epoch_size", True)],
)
def test_an_order_names_the_argument_of_another_kind(name, value):
    with pytest.raises(TypeError, match=f"{name} must be"):
        GlobalOrder(**{"modality_ids": np.zeros(3, int), "seed": 0, name: value})


@pytest.mark.parametrize(("epoch", "error"), [(-1, ValueError), (1.0, TypeError), ("0", TypeError)])
def test_an_epoch_that_is_none_is_refused(epoch, error):
    with pytest.raises(error, match="epoch must be"):
        GlobalOrder(np.zeros(3, int), seed=0).epoch(epoch)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("batch_size", {"batch_size": 0}),
        ("batch_size", {"batch_size": 5, "world_size": 2}),
        ("rank", {"rank": 2, "world_size": 2}),
        ("rank", {"rank": -1}),
        ("world_size", {"world_size": 0}),
        ("start_step", {"start_step": 11}),
        ("start_step", {"start_step": -1}),
        ("total_steps", {"total_steps": -1}),
    ],
)
def test_a_sampler_names_the_argument_it_refuses(name, change):
    order = GlobalOrder(np.zeros(3, int), seed=0)
    with pytest.raises(ValueError, match=name):
        GlobalBatchSampler(order, **{"batch_size": 4, "total_steps": 10, **change})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order", np.arange(3)),
        ("batch_size", 4.0),
        ("rank", "0"),
        ("world_size", None),
        ("start_step", 1.5),
        ("total_steps", "10"),
    ],
)
def test_a_sampler_names_the_argument_of_another_kind(name, value):
    arguments = {"order": GlobalOrder(np.zeros(3, int), seed=0), "batch_size": 4, "total_steps": 10}
    with pytest.raises(TypeError, match=f"{name} must be"):
        GlobalBatchSampler(**{**arguments, name: value})


@pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (2.5, TypeError)])
def test_a_state_after_no_step_is_refused(step, error):
    sampler = GlobalBatchSampler(GlobalOrder(np.zeros(3, int), seed=0), batch_size=4, total_steps=10)
    with pytest.raises(error, match="step must be"):
        sampler.state(step, "fingerprint")
