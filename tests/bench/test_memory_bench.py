"""The bench of memory: every kind of volume becomes the same images, and what it says is what it measured."""

import sys

import numpy as np
import pytest

from bench import memory, volumes
from bench.command import Goal, Options
from bench.contenders import WrongResultError
from bench.timing import CPU

OPTIONS = Options(CPU, quick=True, seconds=0)


@pytest.mark.slow
def test_every_kind_of_volume_becomes_the_same_images():
    assert memory.check(OPTIONS) == {}


def test_a_wrong_image_is_named(monkeypatch):
    monkeypatch.setattr(memory, "planes", lambda shape: (plane + np.eye(64) for plane in volumes.planes(shape)))
    with pytest.raises(WrongResultError, match="memory, DICOM series: image 0 has other pixels than its volume"):
        memory.check(OPTIONS)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not say what a process holds")
def test_it_runs_and_its_lines_say_what_they_measured():
    lines = memory.measure(OPTIONS, {}, {})
    assert [line["kind"] for line in lines] == [*volumes.KINDS, "SyntheticMVU", "SyntheticMVU"]
    for line in lines[: len(volumes.KINDS)]:
        assert 0 < line["above_idle_mib"] < 500
        if line["kind"] == "NIfTI, resampled":
            assert 32 < line["images"] < 64  # sagittal ones; the outermost hold air alone, and are dropped
        else:
            assert line["images"] == 12
    assert [line["images"] for line in lines[-2:]] == [40, 200]
    assert all("goals" not in line for line in lines)  # small ones prove nothing


def test_a_goal_may_be_one_not_to_exceed():
    assert Goal("memory", 2.0, 2.5, at_most=True).met
    assert str(Goal("memory", 3.0, 2.5, at_most=True)) == "memory: 3.00 (goal at most 2.50, missed)"
