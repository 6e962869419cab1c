"""Signals to a whole process group, as Slurm, Docker, Kubernetes and ``timeout`` send them: 75, and nothing is lost."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runs import EXAMPLE, ends, flags, metrics, start, start_one_of_two, start_ranks, tiny, wait_for_steps
from torch.utils.data import DataLoader, Dataset

from dexcore.engine.stop import EXIT_STOPPED, Stopped, StopRequest, leave_signals_to_parent, signals_held_back
from dexcore.train import PretrainConfig

SIGNALS = ["SIGTERM", "SIGINT", "SIGUSR1"]
MANY_STEPS = 2000


def _run(store: Path, out: Path, workers: int, steps: int = MANY_STEPS) -> PretrainConfig:
    config = tiny(store, out, epochs=steps * 8 / 20, checkpoint_every=steps)
    return replace(config, data=replace(config.data, workers=workers))


def _wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    while not any(path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def _read_until(process: subprocess.Popen[str], words: str) -> None:
    for line in process.stderr:
        if words in line:
            return
    raise AssertionError(f"ended without a word of {words!r}: {process.communicate()}")


def _assert_saved(out: Path) -> None:
    """Every step that was written down is in the newest checkpoint."""
    newest = max((out / "checkpoints").glob("step-*"))
    assert newest.name == f"step-{len(metrics(out)):08d}"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_to_the_group_of_a_run_with_data_workers_ends_it_with_a_checkpoint(store, tmp_path, workers):
    config = _run(store, tmp_path / "run", workers)
    for steps, name in zip((1, 50, 100), SIGNALS, strict=True):
        process = start(config, tmp_path)
        wait_for_steps(process, Path(config.out), steps)
        os.killpg(process.pid, getattr(signal, name))
        (code,), _, (said,) = ends([process])
        assert code == EXIT_STOPPED, said
        assert f"{name}: stopped after step" in said
        assert "killed by signal" not in said
        _assert_saved(Path(config.out))
        config = replace(config, resume=True)


@pytest.mark.slow
def test_a_signal_to_the_group_of_two_ranks_with_data_workers_ends_both_with_a_checkpoint(store, tmp_path):
    config = _run(store, tmp_path / "run", workers=1)
    for steps, name in zip((1, 50, 100), SIGNALS, strict=True):
        processes = start_ranks(2, [str(EXAMPLE), *flags(config, tmp_path)])
        wait_for_steps(processes[0], Path(config.out), steps)
        os.killpg(processes[0].pid, getattr(signal, name))
        codes, _, said = ends(processes)
        assert codes == [EXIT_STOPPED] * 2, said
        _assert_saved(Path(config.out))
        config = replace(config, resume=True)


@pytest.mark.slow
def test_torchrun_and_its_group_stopped_together_leave_a_checkpoint(store, tmp_path):
    config = _run(store, tmp_path / "run", workers=1)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLE)]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(
            [*command, *flags(config, tmp_path)], stderr=said, stdout=said, text=True, start_new_session=True
        )
        wait_for_steps(process, Path(config.out), 3)
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(120)
    told = (tmp_path / "said").read_text()
    assert "SIGTERM: stopped after step" in told
    assert "killed by signal" not in told
    _assert_saved(Path(config.out))


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_before_the_first_step_leaves_nothing_and_resume_begins(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "run"
    config = tiny(Path(), out)
    config = replace(config, data=replace(config.data, store=""))
    process = start(config, tmp_path)
    _read_until(process, "building the sample images' store")
    os.killpg(process.pid, getattr(signal, name))
    (code,), _, (said,) = ends([process])
    assert code == EXIT_STOPPED, said
    assert f"{name}: stopped before a step" in said
    assert not out.exists()
    assert not [*(tmp_path / "cache").rglob("*.arrow")]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_while_a_rank_waits_for_the_others_ends_it_within_seconds(store, tmp_path, rank):
    config = _run(store, tmp_path / "run", workers=0)
    process = start_one_of_two(rank, [str(EXAMPLE), *flags(config, tmp_path)])
    _read_until(process, f"rank {rank} waits for the other 1 of 2 processes")
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    (code,), _, (said,) = ends([process])
    assert time.monotonic() - began < 20
    assert code == EXIT_STOPPED, said
    assert ("SIGTERM: stopped before a step" in said) == (rank == 0)
    assert not Path(config.out).exists()


@pytest.mark.slow
def test_a_signal_while_the_report_is_made_ends_with_75_and_resume_makes_it(store, tmp_path):
    config = _run(store, tmp_path / "run", workers=2, steps=3)
    process = start(config, tmp_path)
    _read_until(process, "evaluating")
    os.killpg(process.pid, signal.SIGTERM)
    (code,), _, (said,) = ends([process])
    assert code == EXIT_STOPPED, said
    assert "stopped after the last step, before the report was done" in said
    assert not (tmp_path / "run" / "report.html").exists()
    (code,), _, (said,) = ends([start(replace(config, resume=True), tmp_path)])
    assert code == 0, said
    assert (tmp_path / "run" / "report.html").is_file()
    assert len(metrics(config.out)) == 3


@pytest.mark.slow
def test_a_signal_while_a_checkpoint_is_written_leaves_it_whole(store, tmp_path):
    config = _run(store, tmp_path / "run", workers=2)
    config = replace(config, run=replace(config.run, checkpoint_every=1))
    for _ in range(3):
        process = start(config, tmp_path)
        wait_for_steps(process, Path(config.out), 1)
        _wait_for(Path(config.out), "checkpoints/.saving-*", process)
        os.killpg(process.pid, signal.SIGTERM)
        (code,), _, (said,) = ends([process])
        assert code == EXIT_STOPPED, said
        _assert_saved(Path(config.out))
        assert not [*Path(config.out).glob("checkpoints/.saving-*")]
        config = replace(config, resume=True)


class _Slow(Dataset):
    """Says who prepares an item; the second one never comes."""

    def __getitem__(self, index):
        if index:
            time.sleep(600)
        return os.getpid()

    def __len__(self):
        return 2


def _loader():
    with signals_held_back():
        return iter(DataLoader(_Slow(), batch_size=None, num_workers=1, worker_init_fn=leave_signals_to_parent))


@pytest.mark.parametrize("name", SIGNALS)
def test_a_data_worker_outlives_a_strangers_signal_and_ends_by_its_own_process(name):
    batches = _loader()
    (worker,) = batches._workers
    subprocess.run(["kill", f"-{name.removeprefix('SIG')}", str(worker.pid)], check=True)
    assert next(batches) == worker.pid
    subprocess.run(["kill", f"-{name.removeprefix('SIG')}", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    worker.terminate()  # as PyTorch does with one that hangs
    worker.join(10)
    assert worker.exitcode == 0


def test_signals_are_held_back_from_workers_while_they_start_and_not_lost_for_the_parent():
    with StopRequest() as stop:
        with signals_held_back():
            held = signal.pthread_sigmask(signal.SIG_BLOCK, [])  # what a child inherits
            assert {getattr(signal, name) for name in SIGNALS} <= held
            os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []).isdisjoint({signal.SIGTERM, signal.SIGINT})
        time.sleep(0.1)  # another thread may have been told
        assert stop.signal_name == "SIGUSR1"


def test_where_no_step_is_under_way_a_signal_stops_at_once():
    with StopRequest() as stop, pytest.raises(Stopped), stop.at_once():
        signal.raise_signal(signal.SIGTERM)
    assert stop.signal_name == "SIGTERM"


def test_a_signal_that_came_before_stops_what_would_begin():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        with stop.at_once(here=False):
            pass
        with pytest.raises(Stopped), stop.at_once():
            pass
