"""Checkpoints in the background: the same bytes, one at a time, and an error that nobody misses."""

import os
import resource
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dexcore.engine import checkpoint_writer
from dexcore.engine.checkpoint import CheckpointError, Progress, read_progress
from dexcore.engine.checkpoint_index import IndexReader
from dexcore.engine.checkpoint_writer import CheckpointWriter
from dexcore.engine.ranks import ALONE

_fsync = os.fsync


def _progress(step: int) -> Progress:
    return Progress(step=step, skipped_in_a_row=0, order={}, config={})


def _trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    _step(model, optimizer)
    return model, optimizer


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 64)).square().sum().backward()
    optimizer.step()


def _writer(folder: Path, background: bool = True, keep: int = 2) -> CheckpointWriter:
    return CheckpointWriter(folder, keep, ALONE, together=False, background=background)


def _content(folder: Path) -> dict[str, tuple[object, ...]]:
    """Of each checkpoint the tensors' bytes, the index without the random name that PyTorch gives each save, and the
    state."""
    found = {}
    for path in folder.glob("step-*"):
        index = replace(IndexReader(path).read_metadata(), storage_meta=None)
        found[path.name] = (path / "__0_0.distcp").read_bytes(), index, read_progress(path)
    return found


class _HeldDisk:
    """A disk that takes nothing for good before `released` is set."""

    def __init__(self, monkeypatch):
        self.released = threading.Event()
        monkeypatch.setattr(os, "fsync", self._wait)

    def _wait(self, descriptor):
        assert self.released.wait(60)
        _fsync(descriptor)


@pytest.fixture
def disk(monkeypatch):
    return _HeldDisk(monkeypatch)


def test_what_is_written_meanwhile_is_to_the_byte_what_training_would_have_waited_for(tmp_path):
    for name, background in (("behind", True), ("waited", False)):
        model, optimizer = _trained()
        with _writer(tmp_path / name, background) as writer:
            for step in (5, 10, 15):
                writer.save(model, optimizer, _progress(step))
                _step(model, optimizer)  # into the same memory
    assert _content(tmp_path / "behind") == _content(tmp_path / "waited")
    assert sorted(_content(tmp_path / "behind")) == ["step-00000010", "step-00000015"]


def test_training_goes_on_while_the_disk_works_and_the_next_checkpoint_waits_for_it(tmp_path, disk):
    model, optimizer = _trained()
    with _writer(tmp_path) as writer:
        writer.save(model, optimizer, _progress(5))
        _step(model, optimizer)
        assert not writer.failed
        assert [*tmp_path.glob("step-*")] == []
        release = threading.Timer(0.3, disk.released.set)
        release.start()
        writer.save(model, optimizer, _progress(10))
        assert (tmp_path / "step-00000005").is_dir()
        writer.wait()
        assert (tmp_path / "step-00000010").is_dir()
        release.join()


def test_the_end_waits_for_the_checkpoint_in_flight_after_an_error_too(tmp_path, disk):
    def fails():
        with _writer(tmp_path) as writer:
            writer.save(*_trained(), _progress(5))
            threading.Timer(0.3, disk.released.set).start()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000005"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint")]


@pytest.mark.parametrize(("background", "last"), [(False, False), (True, True)])
def test_where_nothing_is_done_meanwhile_it_is_there_at_once_and_without_a_copy(
    tmp_path, monkeypatch, background, last
):
    monkeypatch.setattr(checkpoint_writer, "_copy", lambda state: pytest.fail("copied"))
    with _writer(tmp_path, background) as writer:
        writer.save(*_trained(), _progress(5), last)
        assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000005"]


def test_a_copy_that_the_memory_has_no_room_for_is_not_made_and_that_is_said_once(tmp_path, monkeypatch, capsys):
    model, optimizer = _trained()
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    needed = 3 * size + 2 * 4  # with two moments each, and two counts of steps
    monkeypatch.setattr(checkpoint_writer, "free_memory", lambda: 2 * needed - 1)
    monkeypatch.setattr(checkpoint_writer, "_copy", lambda state: pytest.fail("copied"))
    with _writer(tmp_path) as writer:
        for step in (5, 10):
            writer.save(model, optimizer, _progress(step))
            assert (tmp_path / f"step-{step:08d}").is_dir()
    said = capsys.readouterr().err
    assert said.count("training waits while a checkpoint is written: a copy of it (0.0 MB a process) would take") == 1
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint_writer, "free_memory", lambda: 2 * needed)
    with _writer(tmp_path) as writer:
        writer.save(model, optimizer, _progress(15))
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_seen_behind_and_raised_by_the_next_call_and_loses_nothing(tmp_path):
    model, optimizer = _trained()
    with _writer(tmp_path, keep=1) as writer:
        writer.save(model, optimizer, _progress(5), last=True)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # files end there as they do on a full disk
        try:
            writer.save(model, optimizer, _progress(10))
            while not writer.failed:
                time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        with pytest.raises(CheckpointError, match="step-00000010: the checkpoint cannot be written"):
            writer.save(model, optimizer, _progress(15))
        assert not writer.failed
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000005"]
