"""A run that has diverged goes on with the weights of before, as often as it may, and ends then."""

import math
from dataclasses import replace

import numpy as np
import pytest
from runs import metrics, state, tiny

from dexcore.engine.config import ConfigError
from dexcore.engine.stop import StopRequest
from dexcore.train.config import RunConfig
from dexcore.train.loop import Pretraining, TrainingError
from dexcore.train.run.folder import open_run_folder


class Diverging(Pretraining):
    """A run with a NaN in an image of some steps.

    Attributes:
        bad: these steps, from 0.
        until: the run is stopped after so many steps.
        weights: before each step.
    """

    bad: tuple[int, ...] = ()
    until = 0

    def batches(self, workers, start_step=None):
        for step, batch in enumerate(super().batches(workers, start_step), start=self.step_done):
            if step in self.bad:
                batch["image"][0, 0, 3, 3] = math.nan
            yield batch

    def step(self, batch, values, stop=False):
        self.weights[self.step_done] = state(self.model)
        return super().step(batch, values, stop or self.step_done + 1 == self.until)


def train(config, bad, until=0) -> Diverging:
    with open_run_folder(config) as folder, StopRequest() as stop:
        run = Diverging(config, folder)
        run.bad, run.until, run.weights = bad, until, {}
        run.resume()
        run.train(stop)
    return run


def config_of(store, out, **more):
    return tiny(store, out, epochs=24 * 8 / 20, max_skipped=3, **{"roll_back": 1, **more})


def same(one, other) -> bool:
    return all(np.array_equal(value, other[name]) for name, value in one.items())


def test_it_goes_on_with_the_weights_of_before_the_trouble_and_with_the_next_images(store, tmp_path, capsys):
    config = config_of(store, tmp_path / "run")
    run = train(config, bad=(12, 13, 14))
    weights = run.weights
    assert not same(weights[12], weights[10])
    assert same(weights[15], weights[10])  # the newest checkpoint's
    assert not same(weights[16], weights[15])
    assert "going on after step 15 with the weights of step 10" in capsys.readouterr().err
    lines = metrics(config.out)
    assert [line["step"] for line in lines] == list(range(24))
    assert [line["step"] for line in lines if line["skipped"]] == [12, 13, 14]
    assert [line["step"] for line in lines if line.get("rolled_back") == 1] == list(range(15, 24))


def test_no_checkpoint_of_the_trouble_takes_the_place_of_the_one_from_before(store, tmp_path):
    run = train(config_of(store, tmp_path / "run", keep_checkpoints=1), bad=(13, 14, 15))
    assert same(run.weights[16], run.weights[10])


def test_one_that_was_stopped_meanwhile_ends_as_one_that_was_not(store, tmp_path):
    bad = (12, 13, 14)
    whole = config_of(store, tmp_path / "whole")
    cut = config_of(store, tmp_path / "cut")
    undisturbed = train(whole, bad)
    for until in (14, 17):
        train(replace(cut, resume=until > 14), bad, until)
    resumed = train(replace(cut, resume=True), bad)
    assert resumed.rolled_back == 1
    assert metrics(cut.out) == metrics(whole.out)
    assert same(state(resumed.model), state(undisturbed.model))


@pytest.mark.parametrize(
    ("bad", "more"),
    [
        ((12, 13, 14, 18, 19, 20), {}),  # too often
        ((0, 1, 2), {}),  # no checkpoint yet
        ((12, 13, 14), {"roll_back": 0}),
    ],
)
def test_where_nothing_is_left_to_go_back_to_it_ends(store, tmp_path, bad, more):
    with pytest.raises(TrainingError, match="not finite in 3 steps on end"):
        train(config_of(store, tmp_path / "run", **more), bad)


def test_a_number_below_0_is_refused():
    with pytest.raises(ConfigError, match=r"run\.roll_back: expected at least 0, got -1"):
        RunConfig(roll_back=-1)
