"""The bench of scores: it runs, says what it measured, and times nothing that is wrong."""

import pytest

from bench import scores
from bench.command import Options
from bench.contenders import WrongResultError
from bench.timing import CPU

OPTIONS = Options(CPU, quick=True, seconds=0)


def test_it_runs_and_its_lines_say_what_they_measured(monkeypatch):
    monkeypatch.setattr(scores, "peak_memory", lambda *_: 1.0)  # a process of its own, which takes seconds to begin
    lines = scores.measure(OPTIONS, {}, scores.check(OPTIONS))
    assert [line["contender"] for line in lines] == [
        *("means", "macro AUROC", "scikit-learn", "neighbors", "linear probe")
    ]
    assert all(line["median"] > 0 for line in lines)
    assert (lines[0]["cases"], lines[3]["rows"]) == (200, 1000)


def test_another_number_is_named_and_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(scores, "_by_scikit_learn", lambda *_: 0.5)
    with pytest.raises(WrongResultError, match="a macro AUROC is not scikit-learn's"):
        scores.check(OPTIONS)
