"""Runs that are killed, stopped and resumed: the same samples, the same losses, bit for bit."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from runs import STEPS, metrics, similarities, start, tiny, wait_for_steps, write_images

from dexcore.engine.stop import EXIT_STOPPED, StopRequest
from dexcore.train import pretrain
from dexcore.train.loop import Pretraining
from dexcore.train.run.folder import RunFolderError, open_run_folder


def _resumed(config):
    return replace(config, resume=True)


def _train_on(config) -> None:
    """What `pretrain` does to resume, without the report, which takes seconds."""
    with open_run_folder(config) as folder, StopRequest() as stop:
        run = Pretraining(config, folder)
        run.resume()
        run.train(stop)


def _assert_same_run(one: str, other: str) -> None:
    """Bit for bit, in every step and at every moment."""
    assert metrics(one) == metrics(other)
    assert similarities(one) == similarities(other)


def _killed_after(config, folder: Path, steps: int) -> None:
    process = start(config, folder)
    wait_for_steps(process, Path(config.out), steps)
    process.kill()
    process.communicate()
    assert len(metrics(config.out)) < STEPS


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_nothing_had_been(store, whole_run, tmp_path):
    config = tiny(store, tmp_path / "killed")
    _killed_after(config, tmp_path, 3)  # before its first checkpoint
    _killed_after(_resumed(config), tmp_path, 12)
    result = pretrain(_resumed(config))
    assert (result.finished, result.step, result.exit_code) == (True, STEPS, 0)
    _assert_same_run(config.out, whole_run.out)


@pytest.mark.parametrize(
    "signals",
    [{"SIGTERM": 7}, pytest.param({"SIGTERM": 2, "SIGINT": 7, "SIGUSR1": 14}, marks=pytest.mark.slow)],
    ids=["one", "three"],
)
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(store, whole_run, tmp_path, signals):
    config = tiny(store, tmp_path / "stopped")
    for name, steps in signals.items():
        process = start(config, tmp_path)
        wait_for_steps(process, Path(config.out), steps)
        process.send_signal(getattr(signal, name))
        _, said = process.communicate()
        assert process.returncode == EXIT_STOPPED, said
        done = len(metrics(config.out))
        assert done < STEPS
        assert f"{name}: stopped after step {done}; go on with --resume --out {config.out}" in said
        assert (Path(config.out) / "checkpoints" / f"step-{done:08d}").is_dir()
        config = _resumed(config)
    _train_on(config)
    _assert_same_run(config.out, whole_run.out)


def test_a_damaged_newest_checkpoint_costs_the_steps_since_the_one_before(store, whole_run, tmp_path, capsys):
    config = tiny(store, tmp_path / "damaged")
    with open_run_folder(config) as folder, StopRequest() as stop:
        run = Pretraining(config, folder)
        step = run.step
        run.step = lambda *batch: step(*batch) if run.step_done < 12 else 1 / 0
        with pytest.raises(ZeroDivisionError):
            run.train(stop)
    newest = max((Path(config.out) / "checkpoints").glob("step-*"))
    data = newest / "__0_0.distcp"
    os.truncate(data, data.stat().st_size - 1)
    _train_on(_resumed(config))
    said = capsys.readouterr().err
    assert f"{newest} is damaged" in said
    before = int(newest.name.removeprefix("step-")) - 5
    assert f"resuming {config.out} after step {before} of {STEPS}" in said
    _assert_same_run(config.out, whole_run.out)


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew_over_what_it_wrote(whole_run, tmp_path, finished):
    out = Path(shutil.copytree(whole_run.out, tmp_path / "run"))
    shutil.rmtree(out / "checkpoints")
    if not finished:
        shutil.rmtree(out / "model")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match=rf"done {STEPS} steps, but its checkpoints are gone.* another --out"):
        pretrain(replace(whole_run, out=str(out), resume=True))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_data_workers_change_nothing(store, whole_run, tmp_path):
    config = tiny(store, tmp_path / "workers")
    _train_on(replace(config, data=replace(config.data, workers=2)))
    _assert_same_run(config.out, whole_run.out)


def test_a_finished_run_can_be_resumed_and_only_reports_again(own_run, capsys):
    before = metrics(own_run.out), similarities(own_run.out)
    assert pretrain(own_run).finished
    assert (metrics(own_run.out), similarities(own_run.out)) == before
    assert "Share of masked-patch variance explained" in capsys.readouterr().out


def test_another_configuration_is_refused_with_the_difference(whole_run):
    other = replace(whole_run, resume=True, model=replace(whole_run.model, tau=0.7))
    with pytest.raises(RunFolderError, match=r"model\.tau: 0\.5 -> 0\.7"):
        pretrain(other)


def test_other_images_are_refused(whole_run, tmp_path):
    other = write_images(tmp_path / "store", seed=1)
    with pytest.raises(RunFolderError, match=r"data\.store: the images are not those"):
        pretrain(replace(whole_run, resume=True, data=replace(whole_run.data, store=str(other))))


def test_the_same_images_elsewhere_are_accepted(own_run, store, tmp_path):
    moved = tmp_path / "moved"
    moved.symlink_to(store)
    _train_on(replace(own_run, data=replace(own_run.data, store=str(moved))))
