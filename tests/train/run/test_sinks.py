"""Where a run's numbers go besides its folder, read back by the packages' own readers; no network, no account."""

import json
import math
import struct
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from runs import metrics, tiny

from dexcore.engine.config import ConfigError
from dexcore.extras import MissingExtraError
from dexcore.train import PretrainConfig, pretrain
from dexcore.train.config import RunConfig
from dexcore.train.run.sinks import Sinks

LINE = {"step": 3, "loss": 0.5, "loss_align": math.nan, "load": [[0.25, 0.75], [1.0, 0.0]], "skipped": False}
NUMBERS = {
    "skipped": 0.0,
    **{"load/block 01 least": 0.25, "load/block 01 most": 0.75, "load/block 02 least": 0.0, "load/block 02 most": 1.0},
}


@pytest.fixture(autouse=True)
def _nobodys_account(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def tensorboard(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    return {tag: {one.step: one.value for one in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def mlflow(folder: Path) -> dict[str, dict[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dexcore")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    assert run.data.params["run.seed"] == "0"
    return {
        name: {one.step: one.value for one in client.get_metric_history(run.info.run_id, name)}
        for name in run.data.metrics
    }


def wandb(folder: Path) -> dict[str, dict[int, float]]:
    """Of all parts of an offline run."""
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len({file.stem for file in files}) == 1  # one identity over all resumptions
    found: dict[str, dict[int, float]] = {}
    for file in files:
        until = time.monotonic() + 30  # a process of its own writes, for a moment after the run is finished
        while not any(record.WhichOneof("record_type") == "exit" for record in wandb_records(file)):
            assert time.monotonic() < until
            time.sleep(0.05)
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "history":
                item = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                for name, value in item.items():
                    if not name.startswith("_") and name != "step":
                        found.setdefault(name, {})[item["step"]] = value
    return found


def wandb_records(file: Path) -> list:
    """In the framing of LevelDB's log, which is what `wandb sync` reads."""
    from wandb.proto.wandb_internal_pb2 import Record

    records, data, place, text = [], file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        text += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4) and place <= len(data):  # whole, or the last part
            records.append(Record.FromString(text))
            text = b""
    return records


READERS = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb}


def config_of(name: str) -> PretrainConfig:
    return PretrainConfig(run=RunConfig(sinks=name))


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mlflow", "wandb")]


@pytest.mark.parametrize("name", ["tensorboard", *SLOW])
def test_what_is_written_is_read_back_as_one_run_also_where_it_went_back_to_its_checkpoint(tmp_path, name):
    folder = tmp_path / "the-run"
    folder.mkdir()
    with closing(Sinks(config_of(name), folder, 0, pytest.fail)) as sinks:
        sinks.write(0, {"step": 0, "loss": 2.5}, "heldout/")
        assert not any(folder.iterdir())  # a run that fails before its first step leaves nothing
        for step in (0, 1, 2, 3):
            sinks.write(step, LINE | {"step": step, "loss": 0.1 * step})
    time.sleep(1.1 if name == "wandb" else 0)  # which names its folders by the second
    with closing(Sinks(config_of(name), folder, 2, pytest.fail)) as sinks:
        for step in (2, 3, 4):
            sinks.write(step, LINE | {"step": step, "loss": 0.1 * step})
        sinks.write(4, {"step": 4, "loss": 1.5, "modalities": {"CT": [1.25, 7]}}, "heldout/")
    found = READERS[name](folder)
    assert found.pop("loss") == pytest.approx({step: 0.1 * step for step in range(5)})
    assert (found.pop("heldout/loss"), found.pop("heldout/CT")) == ({0: 2.5, 4: 1.5}, {4: 1.25})
    assert found == {tag: dict.fromkeys(range(5), value) for tag, value in NUMBERS.items()}  # no nan, no others


def test_a_sink_that_fails_is_told_once_and_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://nowhere")
    told: list[str] = []
    with closing(Sinks(config_of("mlflow,tensorboard"), tmp_path, 0, told.append)) as sinks:
        for step in range(3):
            sinks.write(step, {"loss": 1.0})
    (line,) = told
    assert line.startswith("run.sinks: mlflow failed (")
    assert "\n" not in line
    assert tensorboard(tmp_path)["loss"] == {0: 1.0, 1: 1.0, 2: 1.0}


def test_a_run_trains_the_same_with_sinks_and_they_hold_its_numbers(store, whole_run, tmp_path, capsys):
    config = tiny(store, tmp_path / "run", sinks="tensorboard", evaluate_every=100)
    assert pretrain(config).finished
    assert metrics(config.out) == metrics(whole_run.out)
    found = tensorboard(Path(config.out))
    for line in metrics(config.out):
        assert found["loss"][line["step"]] == pytest.approx(line["loss"])
        assert found["load/block 01 most"][line["step"]] == pytest.approx(max(line["load"][0]))
    assert found["heldout/loss"][0] > 0
    assert "failed" not in capsys.readouterr().err


def test_a_sink_whose_package_is_missing_is_refused_before_the_first_step(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny(store, tmp_path / "run", sinks="wandb")
    with pytest.raises(MissingExtraError, match=r"wandb is not installed.*dexcore\[sinks\]"):
        pretrain(config)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"run.sinks: expected names of tensorboard, mlflow, wandb.*got 'Paper'"):
        RunConfig(sinks="Paper")
    assert replace(config.run, sinks=" mlflow, wandb,mlflow").sink_names == ("mlflow", "wandb")
