"""Checkpoints: exact, whole or not there, and never the last good one lost."""

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dexcore.engine.checkpoint import CheckpointError, Progress, load_checkpoint, save_checkpoint


def _progress(step: int) -> Progress:
    return Progress(step=step, skipped_in_a_row=0, order={"consumed": 4 * step}, config={"out": "run"})


def _trained(steps: int, seed: int = 0) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A small model with a frozen layer and a buffer, after some optimizer steps."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 8))
    model[2].requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW([{"params": trained[:1]}, {"params": trained[1:], "weight_decay": 0.0}], fused=True)
    for _ in range(steps):
        _step(model, optimizer)
    return model, optimizer


def _step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.linspace(-1, 1, 32).reshape(4, 8).square()).square().sum().backward()
    optimizer.step()


def _load(folder: Path) -> tuple[torch.nn.Module, torch.optim.Optimizer, Progress | None, list[str]]:
    model, optimizer = _trained(0, seed=1)
    said: list[str] = []
    progress = load_checkpoint(folder, model, optimizer, said.append)
    return model, optimizer, progress, said


def _assert_same_state(model: torch.nn.Module, other: torch.nn.Module) -> None:
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("steps", [0, 3])
def test_a_loaded_run_goes_on_bit_for_bit(tmp_path, steps):
    model, optimizer = _trained(steps)
    save_checkpoint(tmp_path, model, optimizer, _progress(steps), keep=2)
    loaded, loaded_optimizer, progress, said = _load(tmp_path)
    assert progress == _progress(steps)
    assert said == []
    for _ in range(2):
        _assert_same_state(model, loaded)
        _step(model, optimizer)
        _step(loaded, loaded_optimizer)
    _assert_same_state(model, loaded)


def test_no_checkpoint_is_none(tmp_path):
    assert _load(tmp_path / "missing")[2] is None
    (tmp_path / ".saving-step-00000009-1").mkdir()
    assert _load(tmp_path)[2] is None


def test_only_the_newest_are_kept_and_leftovers_of_kills_are_removed(tmp_path):
    model, optimizer = _trained(1)
    (tmp_path / ".saving-step-00000009-1").mkdir()
    (tmp_path / ".removing-step-00000001").mkdir()
    for step in (5, 10, 100, 15):
        save_checkpoint(tmp_path, model, optimizer, _progress(step), keep=2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000015", "step-00000100"]


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_truncate, _flip, Path.unlink])
@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "state.json"])
def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_taken(tmp_path, damage, file):
    model, optimizer = _trained(1)
    save_checkpoint(tmp_path, model, optimizer, _progress(5), keep=2)
    at_5 = {name: value.clone() for name, value in model.state_dict().items()}
    _step(model, optimizer)
    damage(save_checkpoint(tmp_path, model, optimizer, _progress(10), keep=2) / file)
    loaded, _, progress, said = _load(tmp_path)
    assert progress == _progress(5)
    assert all(torch.equal(value, at_5[name]) for name, value in loaded.state_dict().items())
    assert len(said) == 1
    assert "step-00000010 is damaged" in said[0]
    # What is damaged no longer counts among the newest: the good one outlives the next saves' tidying.
    save_checkpoint(tmp_path, model, optimizer, _progress(10), keep=2)
    assert sorted(entry.name for entry in tmp_path.glob("step-*")) == ["step-00000005", "step-00000010"]


def test_when_all_are_damaged_it_says_so_and_begins_nothing(tmp_path):
    model, optimizer = _trained(1)
    _flip(save_checkpoint(tmp_path, model, optimizer, _progress(5), keep=2) / "__0_0.distcp")
    for _ in range(2):  # a queue that starts a failed run again
        with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
            _load(tmp_path)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    other = torch.nn.Linear(3, 3)
    save_checkpoint(tmp_path, other, torch.optim.AdamW(other.parameters()), _progress(5), keep=2)
    with pytest.raises(CheckpointError, match=r"step-00000005: does not fit this model"):
        _load(tmp_path)


def test_an_index_that_would_run_code_is_refused(tmp_path, monkeypatch):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    model, optimizer = _trained(1)
    path = save_checkpoint(tmp_path / "run", model, optimizer, _progress(5), keep=2)
    (path / ".metadata").write_bytes(pickle.dumps(Attack()))
    monkeypatch.setattr("dexcore.engine.checkpoint._verified", lambda _: _progress(5))  # an attacker can hash
    with pytest.raises(CheckpointError, match="no checkpoint of ours holds"):
        _load(tmp_path / "run")
    assert not (tmp_path / "attacked").exists()


class _AsPython3112(pickle.Pickler):
    """Pickles an Enum's members as Python 3.11.2 does, which Debian 12 ships."""

    def reducer_override(self, value):
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def test_an_index_that_python_3_11_2_wrote_is_read(tmp_path):
    model, optimizer = _trained(2)
    path = save_checkpoint(tmp_path, model, optimizer, _progress(5), keep=2)
    index = pickle.loads((path / ".metadata").read_bytes())
    with open(path / ".metadata", "wb") as file:
        _AsPython3112(file, protocol=4).dump(index)
    assert b"getattr" in (path / ".metadata").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dexcore.engine.checkpoint._verified", lambda _: _progress(5))
        loaded, _, progress, _ = _load(tmp_path)
    assert progress == _progress(5)
    _assert_same_state(model, loaded)


def test_an_index_gives_no_attribute_of_what_is_no_enum(tmp_path, monkeypatch):
    class Attack:
        def __reduce__(self):
            return getattr, (Path, "home")

    model, optimizer = _trained(1)
    path = save_checkpoint(tmp_path, model, optimizer, _progress(5), keep=2)
    (path / ".metadata").write_bytes(pickle.dumps(Attack()))
    monkeypatch.setattr("dexcore.engine.checkpoint._verified", lambda _: _progress(5))
    with pytest.raises(CheckpointError, match="asks for an attribute of"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("free", "reason"), [(10**9, "File too large"), (0, r"no space left: it takes 0\.\d MB, 0\.0 MB are free")]
)
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path, monkeypatch, free, reason):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    model, optimizer = _trained(1)
    save_checkpoint(tmp_path, model, optimizer, _progress(5), keep=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # files end there as they do on a full disk
    try:
        with pytest.raises(CheckpointError, match=rf"step-00000010: the checkpoint cannot be written: .*{reason}"):
            save_checkpoint(tmp_path, model, optimizer, _progress(10), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000005"]
    assert _load(tmp_path)[2] == _progress(5)


_SAVE_FOR_EVER = """
import os
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_checkpoint import _progress, _trained
from dexcore.engine.checkpoint import save_checkpoint

def save(folder):
    print(os.getpid(), flush=True)
    model, optimizer = _trained(1)
    for step in range(1, 10**6):
        model[0].bias.data.fill_(step)
        save_checkpoint(Path(folder), model, optimizer, _progress(step), keep=1)
        print(step, flush=True)

for folder in sys.argv[2:]:
    child = os.fork()  # the imports take longer than all the rest
    if not child:
        save(folder)
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_a_kill_at_any_moment_of_saving_leaves_an_intact_checkpoint(tmp_path):
    folders = [tmp_path / str(attempt) for attempt in range(3)]
    arguments = [sys.executable, "-c", _SAVE_FOR_EVER, str(Path(__file__).parent), *map(str, folders)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for attempt, folder in enumerate(folders):
            saver = int(process.stdout.readline())
            assert process.stdout.readline() == "1\n"
            time.sleep(0.003 * attempt)
            os.kill(saver, signal.SIGKILL)
            saved = [1, *(int(line) for line in iter(process.stdout.readline, "dead\n"))]
            loaded, _, progress, said = _load(folder)
            assert said == []
            assert progress is not None
            assert progress.step - saved[-1] in (0, 1)  # killed before it could say so
            assert loaded[0].bias.tolist() == [progress.step] * 8
    assert process.returncode == 0
