"""The bench of the trainer: a step's parts add up to it, and what is not the model is told."""

import pytest
import torch

from bench import trainer
from bench.command import Options


def test_the_parts_of_a_real_runs_step_add_up_to_it():
    (line,) = trainer.measure(Options(torch.device("cpu"), quick=True), {}, {})
    parts = line["parts"]
    assert set(parts) == {"data", "forward", "backward", "communication", "update", "bookkeeping", "checkpoint"}
    assert all(seconds >= 0 for seconds in parts.values())
    assert min(parts["forward"], parts["backward"], parts["checkpoint"]) > 0
    assert sum(parts.values()) - parts["checkpoint"] >= 0.99 * line["step"]
    (goal,) = line["goals"]
    model = parts["forward"] + parts["backward"] + parts["update"]
    assert goal["value"] == pytest.approx(1 - model / (line["step"] + parts["checkpoint"]))
