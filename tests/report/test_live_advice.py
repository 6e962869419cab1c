"""Advice on a run that trains: each is given where something is wrong, and not where nothing is."""

import re
from collections import deque

import numpy as np
import pytest
from made_courses import STEPS, apart, course, heldout, starving, waiting, with_losses

from dexcore.engine.config import flat
from dexcore.report.live import Standing, advise
from dexcore.train.config import PretrainConfig

FLAGS = {name.replace("_", "-") for name, _ in flat(PretrainConfig())}


def test_nothing_is_said_of_a_run_that_is_well(tmp_path):
    assert advise(course(tmp_path)) == []


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (lambda path: course(path, standing=Standing.QUIET), "no step was written for more than a minute"),
        (lambda path: course(path, skipped=2, last_skipped=7), "2 steps were skipped, the last 7"),
        (lambda path: with_losses(path, STEPS - 3, 0.9), r"the loss rose to 0.900 .* from 0.[45]"),
        (starving, r"less than a tenth of an even share \(block 1: 3\)"),
        (lambda path: apart(path, 400, 0.69), "the alignment loss does not fall: 0.690"),
        (
            lambda path: heldout(path, 0.9, 0.5, 0.52, 0.53, 0.6),
            "rises: 0.600, from 0.500 after step 100",
        ),
        (lambda path: waiting(path, 0.1), "waits for images 20 % of the time"),
    ],
)
def test_what_is_wrong_is_told_alone_with_flags_that_there_are(tmp_path, made, problem):
    (one,) = advise(made(tmp_path))
    assert re.search(problem, one.problem)
    assert set(re.findall(r"--([a-z]+\.[a-z-]+)", one.remedy)) <= FLAGS
    assert len(one.remedy) > 20


@pytest.mark.parametrize(
    "made",
    [
        lambda path: with_losses(path, STEPS - 3, 0.58),  # four deviations, and a sixth of the loss
        lambda path: with_losses(path, STEPS - 100, 0.9),  # long past
        lambda path: starving(path, mlp="fixed-routing"),  # a rule chooses
        lambda path: starving(path, mlp=""),
        lambda path: apart(path, 370, 0.69),  # too early: it rises while exploration is strong
        lambda path: heldout(path, 0.9, 0.5, 0.52, 0.53),  # two moments
        lambda path: heldout(path, 0.9, 0.5, 0.52, 0.505, 0.6),  # it came back
        lambda path: heldout(path, np.nan, np.nan),
        lambda path: waiting(path, 0.04),
        lambda path: course(path, scalars={}, load=deque(), similarity=None, steps=0),
    ],
)
def test_what_is_not_wrong_is_not_told(tmp_path, made):
    assert advise(made(tmp_path)) == []
