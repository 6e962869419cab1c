"""What a run's folder says about how it was made."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runs import EXAMPLE, metrics, start, tiny, write_images

import dexcore
from dexcore.data.feed.dataset import open_mvu
from dexcore.engine.folder import RunFolderError
from dexcore.train import pretrain
from dexcore.train.run import provenance

_LENGTH = {"total_steps": 10, "batch_size": 8}


def _starts(out: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(out) / "starts.jsonl").read_text().splitlines()]


def test_a_run_s_folder_tells_command_versions_machine_and_images(whole_run, store):
    begun = _starts(whole_run.out)[0]
    assert begun["step"] == 0
    assert begun["command"].startswith("python ")
    assert begun["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert begun["versions"]["dexcore"] == dexcore.__version__
    assert begun["machine"]["processes"] == 1
    assert (begun["machine"]["deterministic"], begun["machine"]["tf32"]) == (False, False)
    assert begun["images"]["fingerprint"] == open_mvu(store).fingerprint
    assert sum(begun["images"]["training"].values()) == 20


def test_no_environment_gets_into_a_run_s_folder(store, tmp_path, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hunter2-is-no-word")
    images = open_mvu(store)
    described = provenance.describe_images(images, images.indices("train"))
    provenance.record_start(tmp_path, 3, torch.device("cpu"), described, _LENGTH)
    (start,) = _starts(tmp_path)
    assert (start["step"], start["total_steps"], start["batch_size"]) == (3, 10, 8)
    assert "hunter2" not in (tmp_path / "starts.jsonl").read_text()


def test_every_resumption_is_a_line_more(store, tmp_path):
    images = open_mvu(store)
    described = provenance.describe_images(images, images.indices("train"))
    for step in (0, 0, 7):
        provenance.record_start(tmp_path, step, torch.device("cpu"), described, _LENGTH)
    assert [line["step"] for line in _starts(tmp_path)] == [0, 0, 7]


def test_the_git_state_is_that_of_the_code_and_names_changed_files(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    package = tmp_path / "dexcore" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(dexcore, "__file__", str(package))
    assert provenance._git_state() is None
    git("init", "-q")
    assert provenance._git_state() is None  # in a repository, and not of it: an environment inside one's project
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert provenance._git_state() == {"commit": commit, "changed": []}
    provenance._running_code.cache_clear()
    assert provenance._running_code() == {"commit": commit, "changed": []}
    package.write_text("changed = True\n")
    assert provenance._git_state() == {"commit": commit, "changed": ["dexcore/__init__.py"]}
    assert provenance._running_code() == {"commit": commit, "changed": []}  # what is edited later is not what runs
    provenance._running_code.cache_clear()


def test_other_images_are_refused_with_what_differs(whole_run, tmp_path):
    other = write_images(tmp_path / "store", images=30)
    config = replace(whole_run, resume=True, data=replace(whole_run.data, store=str(other)))
    with pytest.raises(RunFolderError) as refused:
        pretrain(config)
    lines = str(refused.value).splitlines()
    assert "data.store: the images are not those" in lines[0]
    assert "  images: 24 -> 30" in lines
    assert any(line.startswith("  training.") for line in lines)
    assert any(line.startswith("  fingerprint: ") for line in lines)


@pytest.mark.slow
def test_the_printed_command_repeats_the_run(store, tmp_path):
    config = tiny(store, tmp_path / "run", epochs=3)
    printed, said = start(config, tmp_path).communicate()
    (line,) = [line for line in printed.splitlines() if line.startswith("Repeat it with  ")]
    command = shlex.split(line.removeprefix("Repeat it with  "))
    assert command[:2] == ["python", str(EXAMPLE)], said
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as `start` gives: sums are cut by their number
    repeated = subprocess.run([sys.executable, *command[1:]], capture_output=True, env={**os.environ, **threads})
    assert repeated.returncode == 0
    assert metrics(tmp_path / "run-again") == metrics(tmp_path / "run")


def test_a_command_under_torchrun_names_processes_and_machines(monkeypatch):
    torchruns = {"WORLD_SIZE": "8", "RANK": "0", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
    for name, value in torchruns.items():
        monkeypatch.setenv(name, value)
    expected = "torchrun --nnodes 2 --nproc-per-node 4 train.py --out 'my run'"
    assert provenance.command(["-u", "train.py", "--out", "my run"]) == expected


@pytest.mark.parametrize(
    ("script", "ranks", "expected"),
    [
        ("train.py", 1, "python train.py"),
        ("/somewhere/bin/dexcore", 1, "dexcore pretrain"),
        (str(Path(dexcore.__file__).parent / "cli.py"), 1, "python -m dexcore pretrain"),
        ("/somewhere/bin/dexcore", 2, "torchrun --nproc-per-node 2 --no-python dexcore pretrain"),
        (str(Path(dexcore.__file__).parent / "__main__.py"), 2, "torchrun --nproc-per-node 2 -m dexcore pretrain"),
    ],
)
def test_the_command_that_repeats_a_run_is_the_one_that_began_it(script, ranks, expected, monkeypatch):
    torchruns = {"WORLD_SIZE": str(ranks), "RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
    for name, value in torchruns.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [script, "--anything"])
    assert provenance.repeat_command("runs/a") == f"{expected} --config runs/a/config.yaml --out runs/a-again"
