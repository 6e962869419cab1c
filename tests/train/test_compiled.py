"""Compiled blocks: the run of eager ones, compiled once, and eager where the model is measured."""

from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
import torch._dynamo
import torch._inductor.config
from runs import metrics, state
from several_ranks import FEW_STEPS, alone, assert_same_run, on_ranks, shared_run
from torch import nn
from torch._dynamo.utils import counters

from dexcore.engine.config import ConfigError
from dexcore.train import loop
from dexcore.train.config import ModelConfig, ParallelConfig, PretrainConfig, RunConfig


def _run(store: Path, out: Path, **run: bool | float) -> PretrainConfig:
    """Blocks of two kinds in the encoder and one in the decoder; the held-out loss is measured meanwhile."""
    config = shared_run(store, out, FEW_STEPS)
    model = replace(config.model, dim=24, decoder_depth=3)
    return replace(config, model=model, run=replace(config.run, evaluate_every=3.0, **run))


@pytest.fixture(scope="module")
def eager(store, tmp_path_factory) -> loop.Pretraining:
    return alone(_run(store, tmp_path_factory.mktemp("compiled") / "eager"))


@pytest.mark.parametrize("again", ["none", "block"])
def test_compiled_blocks_are_the_run_of_eager_ones_and_are_compiled_once(store, eager, tmp_path, monkeypatch, again):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr(loop, "check_compiler", lambda *_: None)  # which is inductor's
    torch._dynamo.reset()
    counters.clear()
    config = _run(store, tmp_path / "run", compile=True)
    run = alone(replace(config, model=replace(config.model, grad_checkpointing=again)))
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]
    assert_same_run(config.out, eager.folder)
    assert state(run.model).keys() == state(eager.model).keys()
    assert all(block._compiled_call_impl is None for block in run.model.modules())


def test_without_a_compiler_it_is_refused_before_the_first_step(store, tmp_path, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match=r"run\.compile: torch\.compile does not work here on cpu: .*no-such"):
        alone(_run(store, tmp_path / "run", compile=True))
    assert not (tmp_path / "run").exists()


def test_what_is_computed_again_is_chosen_once():
    with pytest.raises(ConfigError, match=r"run\.compile: expected false with model\.grad_checkpointing selective"):
        PretrainConfig(model=ModelConfig(grad_checkpointing="selective"), run=RunConfig(compile=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_several_ranks_compile_blocks_too(store, eager, tmp_path, kind):
    config = replace(_run(store, tmp_path / "run", compile=True), parallel=ParallelConfig(kind))
    on_ranks(2, config)
    assert_same_run(config.out, eager.folder)
    assert len(metrics(config.out)) == FEW_STEPS
