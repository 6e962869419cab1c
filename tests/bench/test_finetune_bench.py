"""The bench of a fine-tuning step: it runs, says what it measured, and times nothing that is wrong."""

import pytest
import torch

from bench import finetune
from bench.command import Options
from bench.contenders import WrongResultError
from bench.timing import CPU

pytestmark = pytest.mark.slow  # some seconds, most of them for drawing and decoding images
OPTIONS = Options(CPU, quick=True, seconds=0)


def test_it_runs_and_its_lines_say_what_they_measured():
    lines = finetune.measure(OPTIONS, {}, finetune.check(OPTIONS))
    assert [line["contender"] for line in lines] == ["bare", "dexcore"]
    assert all(line["batch"] == 4 and line["median"] > 0 for line in lines)
    (goal,) = lines[1]["goals"]
    assert (goal["target"], goal["at_most"]) == (1.15, True)


def test_another_loss_is_named_and_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(finetune, "_bare", lambda *_: lambda: torch.tensor(1.0))
    with pytest.raises(WrongResultError, match="the bare loop's 1"):
        finetune.check(OPTIONS)
