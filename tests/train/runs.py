"""A small run for the tests: synthetic images of 64 pixels, a model of some thousand parameters."""

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from warm import WarmProcess

from dexcore.data.modality import Modality
from dexcore.data.record import ImageRecord
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.engine.config_file import to_yaml
from dexcore.report import page, pictures
from dexcore.report.history import MEASURED
from dexcore.train.config import (
    DataConfig,
    DexConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    RunConfig,
)

_SECTIONS = page._sections
_MODALITIES = (Modality.PET, Modality.OCT, Modality.ENDOSCOPY, Modality.PHOTO)
EXAMPLE = Path(__file__).parents[2] / "examples" / "pretrain_mvu.py"
STEPS = 40
SECONDS_UNTIL_STUCK = 600  # on a machine that is not idle two starts alone take a minute


@contextmanager
def one_thread():
    """Tensors this small only make two wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def coarse_pictures():
    """Else the drawing of a report takes longer than all that a run does before. tests/report looks at pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_sections", _SECTIONS)
        patch.setattr(pictures, "_DPI", 20)
        patch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda *_: None)
        yield


@contextmanager
def pages_without_pictures():
    """For tests of what comes before a report: summary and page are made, the drawing is left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "_sections", lambda numbers, summary: [])
        yield


def write_images(folder: Path, seed: int = 0, images: int = 24, one_heldout_in: int = 6, size: int = 64) -> Path:
    """A store of synthetic images, the last of every six held out."""
    synthetic = SyntheticMVU(_MODALITIES, size=size, seed=seed)
    records = []
    for index in range(images):
        sample = synthetic.sample(index)
        records.append(
            ImageRecord(
                image=sample.image,
                modality=sample.modality,
                source="SyntheticMVU",
                anatomy="none",
                normalization="div255",
                group=str(index),
                path=f"#{index}",
                synthetic=True,
                split="train" if (index + 1) % one_heldout_in else "heldout",
            )
        )
    write_store(records, folder, name="test")
    return folder


def tiny(store: Path, out: Path, **run: Any) -> PretrainConfig:
    """Forty steps of eight images, a checkpoint every five, epochs that end within batches."""
    return PretrainConfig(
        out=str(out),
        model=ModelConfig(
            image_size=32,
            patch_size=8,
            dim=16,
            depth=2,
            heads=2,
            num_experts=(4, 3),
            top_k=(2, 1),
            decoder_dim=16,
            decoder_depth=1,
            decoder_heads=2,
        ),
        data=DataConfig(store=str(store), batch_size=8, workers=0, epoch_size=20),
        optimizer=OptimizerConfig(base_lr=0.1, warmup_epochs=1, weight_decay=0.01),
        dex=DexConfig(),
        run=RunConfig(
            **{"epochs": STEPS * 8 / 20, "device": "cpu", "checkpoint_every": 5, "evaluate_images": 3, **run}
        ),
    )


def metrics(out: str | Path) -> list[dict[str, Any]]:
    """The steps of a run, without what a clock measured."""
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in lines]


def similarities(out: str | Path) -> list[dict[str, Any]]:
    """The moments of a run at which its experts were compared."""
    return [json.loads(line) for line in (Path(out) / "similarity.jsonl").read_text().splitlines()]


def start(config: PretrainConfig, folder: Path) -> WarmProcess:
    """The example in a process of its own, the first of a process group, with ``config`` in a file in ``folder``."""
    return _process([str(EXAMPLE), *flags(config, folder)], {}, group=0)


def flags(config: PretrainConfig, folder: Path) -> list[str]:
    """The command line of ``config``, written into a file in ``folder``."""
    file = folder / f"{Path(config.out).name}.yaml"
    file.write_text(to_yaml(replace(config, resume=False)))
    return ["--config", str(file), *(["--resume"] if config.resume else [])]


def start_ranks(count: int, arguments: list[str], fresh: bool = False) -> list[Any]:
    """``python arguments`` in ``count`` processes, a process group, with the environment that torchrun gives them.

    Args:
        fresh: interpreters that import everything themselves, each with a seed of its own for the order of sets.
    """
    shared = _meeting_place(count)
    processes: list[Any] = []
    for rank in map(str, range(count)):
        group = processes[0].pid if processes else 0
        environment = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        if fresh:
            command, pipe = [sys.executable, *arguments], subprocess.PIPE
            own = _environment({**environment, "PYTHONHASHSEED": rank})
            process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=own, process_group=group)
            processes.append(process)
        else:
            processes.append(_process(arguments, environment, group))
    return processes


def start_one_of_two(rank: int, arguments: list[str]) -> WarmProcess:
    """``python arguments`` as one of two ranks, the other of which never comes."""
    return _process(arguments, {**_meeting_place(2), "RANK": str(rank), "LOCAL_RANK": str(rank)}, group=0)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def _meeting_place(count: int) -> dict[str, str]:
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}


def _process(arguments: list[str], environment: dict[str, str], group: int) -> WarmProcess:
    return WarmProcess(arguments, _environment(environment), group)


def _environment(more: dict[str, str]) -> dict[str, str]:
    # The same number of threads as here: sums are cut by it.
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), **more}


def ends(processes: list[Any]) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, outputs and errors of processes, waited for; none is left behind."""
    try:
        told = [process.communicate(timeout=SECONDS_UNTIL_STUCK) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], [out for out, _ in told], [error for _, error in told]


def wait_for_steps(process: WarmProcess, out: Path, steps: int) -> None:
    """Until the process has done ``steps`` steps."""
    file = out / "metrics.jsonl"
    while not (file.is_file() and file.read_bytes().count(b"\n") >= steps):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A copy of all parameters and buffers."""
    return {name: value.detach().clone().numpy() for name, value in model.state_dict().items()}
