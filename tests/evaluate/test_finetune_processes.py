"""Fine-tuning in processes of their own: killed, stopped, on several ranks, as a command."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import asdict, replace
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from made_finetunings import losses, place_of_tasks, tiny
from runs import ends, start_ranks, wait_for_steps

from dexcore.cli import main
from dexcore.engine.ranks import Ranks
from dexcore.engine.stop import EXIT_STOPPED
from dexcore.evaluate import Predictions, finetune
from dexcore.evaluate.finetuning import FinetuneConfig
from dexcore.evaluate.finetuning.run import seed_folder
from dexcore.evaluate.tasks import Task

STEPS = 150
SAME = ("model/model.safetensors", "best/model.safetensors", "predictions.parquet", "choice.json", "scores.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a task of masks and one of labels, each with 21 images of test."""
    return place_of_tasks(tmp_path_factory.mktemp("processes"), images=42)


def config_of(place, out, task="spots", **changes):
    config = tiny(place / task / f"{task}.yaml", place / "mine", out, steps=STEPS, validations=4, checkpoint_every=10)
    return replace(config, **{"batch_size": 6} | changes)


def arguments(config: FinetuneConfig) -> list[str]:
    """The command of a configuration."""
    plain = asdict(FinetuneConfig())
    flags = [(name, value) for name, value in asdict(config).items() if value != plain[name]]
    return [
        "-m",
        "dexcore",
        "finetune",
        *(word for name, value in flags for word in (f"--{name.replace('_', '-')}", str(value))),
    ]


def folder_of(config):
    return seed_folder(config, "mine finetune-experts", Task.open(config.task), config.seed)


@pytest.fixture(scope="module")
def whole(place):
    """The folder of a training that nothing disturbed."""
    return finetune(config_of(place, place / "whole")).folders[0]


def assert_same(one, other):
    assert losses(one) == losses(other)
    for file in SAME:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file


@pytest.mark.slow
def test_one_that_was_killed_and_then_stopped_ends_as_if_nothing_had_been(place, whole, tmp_path):
    """SIGKILL before the first checkpoint, SIGKILL after some, SIGTERM; then to the end: the same bytes."""
    config = config_of(place, str(tmp_path))
    folder = folder_of(config)
    for number, steps in ((signal.SIGKILL, 2), (signal.SIGKILL, 33), (signal.SIGTERM, 71)):
        (process,) = start_ranks(1, arguments(config))
        wait_for_steps(process, folder, steps)
        os.kill(process.pid, number)
        (code,), _, (error,) = ends([process])
        assert len(losses(folder)) < STEPS
        if number == signal.SIGTERM:
            assert code == EXIT_STOPPED, error
            assert "SIGTERM: stopped after step" in error
    result = finetune(config)
    assert result.finished
    assert_same(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["spots", "sides"])
def test_two_and_three_ranks_have_one_ranks_losses_and_predict_each_of_21_images_once(place, tmp_path, task):
    changes = {"steps": 6, "validations": 2, "drop_path": 0.2}
    alone = finetune(config_of(place, str(tmp_path / "1"), task, **changes)).folders[0]
    known = Predictions.load(alone / "predictions.parquet")
    assert len(set(known.image)) == len(known) == 21
    for count in (2, 3) if task == "sides" else (2,):
        config = config_of(place, str(tmp_path / str(count)), task, **changes)
        codes, _, errors = ends(start_ranks(count, arguments(config)))
        assert codes == [0] * count, errors
        folder = folder_of(config)
        made_from = [json.loads((one / "finetune.json").read_text())["images"] for one in (folder, alone)]
        assert made_from[0] == made_from[1]
        for ours, theirs in zip(losses(folder), losses(alone), strict=True):
            for name in ("loss", "grad_norm"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4)
        found = Predictions.load(folder / "predictions.parquet")
        assert found.image == known.image
        routes, of_one = (json.loads((one / "routes.json").read_text()) for one in (folder, alone))
        assert routes["images"] == of_one["images"] == 21
        np.testing.assert_allclose(routes["gates"], of_one["gates"], atol=0.05)  # an image may be near two experts
        if task == "sides":
            np.testing.assert_allclose(found.values.astype(float), known.values.astype(float), atol=1e-2)
        else:
            differs = [(found.mask(row) != known.mask(row)).mean() for row in range(21)]
            assert max(differs) < 0.01


@pytest.mark.slow
def test_two_ranks_that_were_killed_end_as_two_that_nothing_disturbed(place, tmp_path):
    changes = {"steps": 60, "validations": 3, "drop_path": 0.2}
    whole, broken = (config_of(place, str(tmp_path / name), **changes) for name in ("whole", "broken"))
    codes, _, errors = ends(start_ranks(2, arguments(whole)))
    assert codes == [0, 0], errors
    folder = folder_of(broken)
    processes = start_ranks(2, arguments(broken))
    wait_for_steps(processes[0], folder, 33)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    codes, *_ = ends(processes)
    assert codes == [-signal.SIGKILL] * 2
    assert 33 <= len(losses(folder)) < 60
    codes, _, errors = ends(start_ranks(2, arguments(broken)))
    assert codes == [0, 0], errors
    assert "going on after step 30 of 60" in errors[0]
    assert_same(folder, folder_of(whole))


def late(rank: int, store: str) -> None:
    """One of two processes, whose group gives up after two seconds; the second one takes five to predict."""
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=2)
    )
    with Ranks(rank, 2, rank, dist.group.WORLD).patient() as ranks:
        time.sleep(5 * rank)
        found = ranks.gather(torch.tensor([float(rank)])).tolist()
    os._exit(0 if found == [0.0, 1.0] else 1)


@pytest.mark.slow
def test_a_process_that_has_predicted_waits_for_another_beyond_the_groups_patience(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=late, args=(rank, str(tmp_path / "store"))) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]


def test_the_command_trains_and_tells_where_all_lies(place, tmp_path, capsys):
    config = config_of(place, str(tmp_path), steps=2, validations=0)
    task, model = config.task, config.model
    flags = [*arguments(replace(config, task="", model=""))[3:]]
    assert main(["finetune", task, model, *flags, "--dry-run"]) == 0
    told = capsys.readouterr().out
    for word in ("dry run: nothing was written", "2 steps of 6 images", "trained parameters", "memory", "to finish"):
        assert word in told
    assert not list(tmp_path.iterdir())
    assert main(["eval", "finetune", task, model, *flags]) == 0
    told = capsys.readouterr().out
    assert "task spots, test: 21 cases, mine finetune-experts" in told
    assert f"dexcore eval table {tmp_path}" in told
    assert main(["eval", "table", str(tmp_path)]) == 0


def test_a_command_that_cannot_run_says_why_in_a_line(place, tmp_path, capsys):
    config = config_of(place, str(tmp_path))
    for words, told in (
        ([config.task], "error: model: expected a folder of dexcore's or a name of timm's"),
        ([str(tmp_path / "none.yaml"), config.model], "none.yaml"),
        ([config.task, "nobody"], "nobody: expected a folder of dexcore's"),
        ([config.task, "resnet18", "--weights", "random"], "resnet18: expected a vision transformer, whose img_size"),
        ([config.task, config.model, "--device", "no"], "error: device: expected auto or a device that is here"),
        ([config.task, config.model, "--lr", "-1"], "lr: expected a number above 0, got -1.0"),
    ):
        assert main(["finetune", *words, "--out", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert told in line


def test_a_preset_and_a_file_set_what_flags_do_not(place, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("lr: 0.5\nmode: director\n")
    assert (
        main(
            [
                "finetune",
                "a.yaml",
                "b",
                "--preset",
                "laptop",
                "--config",
                str(file),
                "--img-size",
                "96",
                "--print-config",
            ]
        )
        == 0
    )
    told = capsys.readouterr().out
    for line in ("task: a.yaml", "model: b", "lr: 0.5", "mode: director", "img_size: 96", "steps: 300"):
        assert f"{line}\n" in told
