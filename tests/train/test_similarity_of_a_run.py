"""How alike the experts are, over the time of a run."""

from pathlib import Path

import numpy as np
from runs import STEPS, metrics, similarities, tiny

from dexcore.engine.stop import StopRequest
from dexcore.evaluate.similarity import moments
from dexcore.report import Analysis
from dexcore.train.loop import Pretraining
from dexcore.train.run.folder import open_run_folder


def test_the_experts_part_and_the_last_moment_is_that_of_the_analysis(whole_run):
    lines = similarities(whole_run.out)
    assert [line["step"] for line in lines] == sorted(moments(STEPS))
    for block in lines[0]["blocks"]:
        np.testing.assert_allclose(block, 1, atol=1e-5)
    means = [np.mean(line["blocks"][0]) for line in lines]
    assert means[-1] < means[0] - 0.01
    analysis = Analysis.load(Path(whole_run.out) / "analysis.npz")
    assert [len(block) for block in lines[-1]["blocks"]] == [5, 4]
    for block, at_the_end in zip(lines[-1]["blocks"], analysis.expert_similarity, strict=True):
        np.testing.assert_allclose(block, at_the_end, atol=1e-4)  # in training some layers run by another kernel


def test_a_run_that_is_not_measured_is_the_same(store, whole_run, tmp_path, monkeypatch):
    monkeypatch.setattr("dexcore.train.loop.moments", lambda _: frozenset())
    config = tiny(store, tmp_path / "run")
    with open_run_folder(config) as folder, StopRequest() as stop:
        Pretraining(config, folder).train(stop)
    assert similarities(config.out) == []
    assert metrics(config.out) == metrics(whole_run.out)


def test_the_alignment_is_written_at_every_moment(whole_run):
    lines = similarities(whole_run.out)
    assert [len(line["align"]["loss"]) for line in lines] == [2] * len(lines)
    assert all(loss > floor for line in lines for loss, floor in zip(*list(line["align"].values())[1:], strict=True))
