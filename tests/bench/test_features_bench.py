"""The bench of features: it runs, says what it measured, and times nothing that is wrong."""

import pytest
import torch

from bench import features
from bench.command import Options
from bench.contenders import WrongResultError
from bench.timing import CPU

OPTIONS = Options(CPU, quick=True, seconds=0)


def test_it_runs_and_its_lines_say_what_they_measured():
    lines = features.measure(OPTIONS, {}, features.check(OPTIONS))
    assert [line["contender"] for line in lines] == ["forward", "features"]
    assert all(line["images"] == 8 and line["images_per_second"] > 0 for line in lines)
    assert lines[1]["goals"][0]["target"] == features.GOAL


def test_other_features_are_named_and_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(features, "_forward", lambda *_: torch.ones(8, 64))
    with pytest.raises(WrongResultError, match="off the bare forward's"):
        features.check(OPTIONS)
