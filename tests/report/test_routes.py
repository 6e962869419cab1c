import numpy as np
import pytest
from made_runs import make_evaluation, one_hot

from dexcore.report.history import History
from dexcore.report.routes import flow, hunger


def history(*loads):
    steps = len(loads[0])
    return History(np.arange(steps), {}, tuple(np.asarray(load, dtype=float) for load in loads), np.zeros(steps, bool))


def test_an_expert_under_a_tenth_of_an_even_share_starves():
    (block,) = hunger(history(np.tile([0.024, 0.026, 0.45, 0.5], (20, 1))))
    assert block.starving == (1,)
    assert block.share_r == pytest.approx([0.096, 0.104, 1.8, 2.0])


def test_the_end_of_the_run_decides_and_the_course_shows_the_rest():
    load = np.tile([0.6, 0.4], (100, 1))
    load[:90] = [1, 0]  # starved, and over the whole run it still does
    (block,) = hunger(history(load), bins=10)
    assert block.starving == ()
    assert block.share_r == pytest.approx([1.2, 0.8])
    assert block.course.tolist() == [1] * 9 + [0]


def test_a_short_run_and_blocks_of_several_sizes():
    first, second = hunger(history([[1, 0, 0]], [[0.5, 0.5]]))
    assert (first.starving, second.starving) == ((2, 3), ())
    assert len(first.course) == 1
    assert hunger(History(np.arange(3), {}, (), np.zeros(3, bool))) == ()


def test_flow_follows_the_strongest_expert_and_modalities_weigh_the_same():
    # Three CT images, one MR image.
    gates = [one_hot([0, 0, 1, 2], 3), [[0.6, 0.4], [0.4, 0.6], [1, 0], [0, 1]]]
    way = flow(make_evaluation([0, 0, 0, 1], gates=gates))
    assert way.blocks == (1, 2)
    assert way.modalities.tolist() == [0, 1]
    np.testing.assert_allclose(way.mass_mr[0], [[1 / 3, 1 / 6, 0], [0, 0, 1 / 2]])
    np.testing.assert_allclose(way.mass_mr[1], [[1 / 3, 1 / 6], [0, 1 / 2]])
    (ribbons,) = way.ribbons_mrq
    np.testing.assert_allclose(ribbons[0], [[1 / 6, 1 / 6], [1 / 6, 0], [0, 0]])
    np.testing.assert_allclose(ribbons[1], [[0, 0], [0, 0], [0, 1 / 2]])


def test_what_flows_out_of_a_block_flows_into_the_next():
    rng = np.random.default_rng(0)
    way = flow(make_evaluation(gates=[rng.dirichlet(np.ones(r), 8) for r in (8, 3, 5)]))
    for number, ribbons in enumerate(way.ribbons_mrq):
        np.testing.assert_allclose(ribbons.sum(axis=2), way.mass_mr[number])
        np.testing.assert_allclose(ribbons.sum(axis=1), way.mass_mr[number + 1])
        assert ribbons.sum() == pytest.approx(1)


def test_deep_models_are_thinned_out_with_first_and_last_kept():
    way = flow(make_evaluation(gates=[np.ones((8, 2))] * 32), most=8)
    assert len(way.blocks) == 8
    assert (way.blocks[0], way.blocks[-1]) == (1, 32)


def test_without_blocks_or_images_nothing_flows():
    assert flow(make_evaluation()).blocks == ()
    assert len(flow(make_evaluation([], gates=[np.ones((0, 2))] * 2)).modalities) == 0
