"""The folder of a run: who may write into it, and the files that grow in it.

config.yaml         the configuration
comparison.json     what a comparison with another run has to know (`dexcore.report.comparison`)
starts.jsonl        a line a beginning or resumption: command, versions, git state, machine, images, and the SHA-256 of
                    the file of weights that it begins with
metrics.jsonl       a line a step
similarity.jsonl    a line a moment at which the experts were compared, "step" being the steps done
probe.jsonl         a line a moment at which the model was probed (`dexcore.train.probe`), if it was
heldout.jsonl       a line a moment at which the held-out loss was measured (`dexcore.train.heldout`), if it was
skipped.jsonl       a line a step that was skipped, with its sample ids
checkpoints/        see `dexcore.engine.checkpoint`
model/              the trained model, for `from_pretrained` of its class
model-best/         the one of the least held-out loss, if that was measured
model-ema/          the one of the averaged weights, if they are kept
evaluation_step0.npz, analysis_step0.npz      what the model measures before its first step
evaluation.npz, analysis.npz, summary.json, report.html, report/      see `dexcore.report`
"""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from dexcore.engine.config_file import read_yaml, to_yaml
from dexcore.engine.folder import RunFolderError, hold, step_of
from dexcore.files import write_whole
from dexcore.report.comparison import Comparison
from dexcore.report.files import (
    CHECKPOINTS_FOLDER,
    COMPARISON_FILE,
    CONFIG_FILE,
    HELDOUT_FILE,
    LOCK_FILE,
    METRICS_FILE,
    MODEL_FOLDER,
    PROBE_FILE,
    SIMILARITY_FILE,
    SKIPPED_FILE,
    STARTS_FILE,
    STEP0_ANALYSIS_FILE,
    STEP0_EVALUATION_FILE,
)
from dexcore.train.changes import CHANGES_IF_ALLOWED, differences
from dexcore.train.config import PretrainConfig

_FIRST_FILES = frozenset(  # before any step
    {
        COMPARISON_FILE,
        CONFIG_FILE,
        STARTS_FILE,
        METRICS_FILE,
        SIMILARITY_FILE,
        PROBE_FILE,
        HELDOUT_FILE,
        SKIPPED_FILE,
        STEP0_EVALUATION_FILE,
        STEP0_ANALYSIS_FILE,
    }
)


@contextmanager
def open_run_folder(config: PretrainConfig) -> Iterator[Path]:
    """Make or reopen ``config.out`` and hold it, so that no second run writes into it.

    A run that fails before its first step is done leaves nothing of its own: what it has written is removed, and so
    is the folder where it was new.

    Raises:
        RunFolderError: the folder cannot be made or written, another run holds it, or it is not empty and
            ``config.resume`` is not set, or is set and what lies there is another run.
    """
    folder = Path(config.out)
    with _made(folder), _held(folder):
        _check_content(folder, config)
        yield folder


def write_config(folder: Path, config: PretrainConfig) -> None:
    """Write the configuration into the run's folder.

    Raises:
        RunFolderError: it cannot be written.
    """
    with _clear_errors(folder):
        write_whole(folder / CONFIG_FILE, to_yaml(replace(config, resume=False, allow_change="")).encode())


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Write comparison.json into the run's folder.

    Raises:
        RunFolderError: it cannot be written.
    """
    with _clear_errors(folder):
        write_whole(folder / COMPARISON_FILE, json.dumps(comparison.as_dict(), indent=1).encode() + b"\n")


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Have ``folder``; after an error what was made of it and its parents goes again where it is empty."""
    new: list[Path] = []
    try:
        with _clear_errors(folder):
            new += [path for path in (folder, *folder.parents) if not path.exists()]
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold ``folder``; after an error before the first step what was not there at the beginning is removed."""
    with _clear_errors(folder):
        before = {*os.listdir(folder)}
        lock = open(folder / LOCK_FILE, "a")  # noqa: SIM115
    with lock, hold(lock, folder, LOCK_FILE):
        try:
            yield
        except BaseException:
            if not _came_to_a_step(folder):
                for name in {LOCK_FILE, *_FIRST_FILES} - before:
                    with suppress(OSError):
                        (folder / name).unlink()
            raise


def _check_content(folder: Path, config: PretrainConfig) -> None:
    content = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if {*content} <= _FIRST_FILES and not _came_to_a_step(folder):
        return  # new, or begun and killed before it came to a step
    if not config.resume:
        raise RunFolderError(
            f"out: {folder} is not empty (it holds {content[0]}); go on with its run by --resume, or give another --out"
        )
    if CONFIG_FILE not in content:
        raise RunFolderError(f"out: {folder} holds {content[0]} but no {CONFIG_FILE}: it is no run to resume")
    changed = differences(read_yaml(folder / CONFIG_FILE, PretrainConfig()), config)
    refused = {name: line for name, line in changed.items() if name not in config.allowed}
    if refused:
        others = "begin another run in another --out"
        if refused.keys() <= CHANGES_IF_ALLOWED:
            others = f"change it by --allow-change {','.join(changed)}, or {others}"
        raise RunFolderError(
            f"out: the run in {folder} was begun with another configuration; resume it with its own, or {others}. "
            "What differs (then -> now):\n  " + "\n  ".join(refused.values())
        )


def allowed_changes(folder: Path, config: PretrainConfig) -> list[str]:
    """Lines ``run.epochs: 50 -> 80`` of what a resumed run has changed and may; before `write_config`."""
    if not (folder / CONFIG_FILE).is_file():
        return []
    return [*differences(read_yaml(folder / CONFIG_FILE, PretrainConfig()), config).values()]


def _came_to_a_step(folder: Path) -> bool:
    metrics = folder / METRICS_FILE
    return metrics.is_file() and metrics.stat().st_size > 0


@contextmanager
def _clear_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"out: cannot write into {folder}: {error.strerror or error}") from error


def check_not_begun(folder: Path, most: int) -> None:
    """Refuse to begin a run anew whose checkpoints are gone: what it wrote would be overwritten.

    Args:
        folder: of the run.
        most: steps that a run has done which was killed before its first checkpoint was there: the second one waits
            for it.

    Raises:
        RunFolderError: the run has done more steps, or has written its model.
    """
    metrics = folder / METRICS_FILE
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.is_file() else []
    done = int(max((step_of(line) + 1 for line in lines if step_of(line) < math.inf), default=0))
    if done > most or (folder / MODEL_FOLDER).exists():
        raise RunFolderError(
            f"out: the run in {folder} has done {done} steps, but its {CHECKPOINTS_FOLDER} are gone: it cannot be "
            "resumed; begin again in another --out"
        )
