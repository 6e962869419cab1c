"""What a resumed run may have changed: by name, told and written down; all else is refused and leaves it as it was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from runs import STEPS, metrics, tiny

from dexcore.engine.config import ConfigError
from dexcore.engine.folder import RunFolderError
from dexcore.train import PretrainConfig, pretrain


def longer(config: PretrainConfig, allow: str) -> PretrainConfig:
    more = replace(config.run, epochs=config.run.epochs * (STEPS + 3) / STEPS)
    return replace(config, run=more, optimizer=replace(config.optimizer, clip_norm=0.5), allow_change=allow)


def test_a_finished_run_goes_on_for_more_epochs_where_that_is_allowed(own_run, whole_run, capsys):
    result = pretrain(longer(own_run, "run.epochs, optimizer.clip_norm"))
    assert (result.finished, result.step) == (True, STEPS + 3)
    assert metrics(own_run.out)[:STEPS] == metrics(whole_run.out)
    starts = [json.loads(line) for line in (Path(own_run.out) / "starts.jsonl").read_text().splitlines()]
    assert [start["total_steps"] for start in starts] == [STEPS, STEPS + 3]
    assert starts[0]["changed"] == []
    assert starts[1]["changed"][0] == "optimizer.clip_norm: 1.0 -> 0.5"
    assert starts[1]["changed"][1].startswith("run.epochs: ")
    assert "changed: optimizer.clip_norm: 1.0 -> 0.5" in capsys.readouterr().err
    # From now on it is the run's own configuration.
    assert pretrain(longer(own_run, "")).finished


def test_a_change_that_is_not_allowed_is_refused_and_the_message_says_how_to_allow_it(own_run):
    before = {path: path.read_bytes() for path in sorted(Path(own_run.out).rglob("*")) if path.is_file()}
    for allow in ("", "run.epochs"):
        with pytest.raises(RunFolderError) as refused:
            pretrain(longer(own_run, allow))
        assert "by --allow-change optimizer.clip_norm,run.epochs, or begin another run" in str(refused.value)
        assert "optimizer.clip_norm: 1.0 -> 0.5" in str(refused.value)
        assert ("run.epochs: " in str(refused.value)) is (allow == "")
    with pytest.raises(RunFolderError) as refused:
        pretrain(replace(own_run, run=replace(own_run.run, seed=7)))
    assert "allow-change" not in str(refused.value)
    assert {path: path.read_bytes() for path in sorted(Path(own_run.out).rglob("*")) if path.is_file()} == before


@pytest.mark.parametrize("name", ["model.dim", "run.seed", "data.batch_size", "epochs"])
def test_what_would_make_another_run_cannot_be_allowed(store, tmp_path, name):
    with pytest.raises(ConfigError, match=r"allow_change: expected some of data.flip, .*others would make another run"):
        replace(tiny(store, tmp_path / "run"), allow_change=name)
