"""Several runs of one experiment, each kept by all that it is made of: what is done is not done again.

PLACE/NAME-KEY/
    run/         the trainer's folder, which a killed run goes on in
    summary.txt  what the run said at its end
    done.json    what it was made of and how long it took; written last
"""

import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dexcore
from dexcore.engine.config import flat
from dexcore.files import write_whole
from dexcore.report.starts import read_starts
from dexcore.train.changes import MAY_CHANGE_ON_RESUME
from dexcore.train.config import PretrainConfig
from dexcore.train.pretraining import pretrain
from dexcore.train.run.provenance import content_of_init

_DONE, _RUN, _SUMMARY = "done.json", "run", "summary.txt"


# Fields that came after runs were kept, at the values at which they do nothing: those are the runs that they were.
_NOTHING = {
    ("optimizer.layer_decay", 1.0),
    ("run.ema_decay", 0.0),
    ("run.tf32", False),
    ("objective.kind", "mae"),
    ("data.slices", 1),
}


@dataclass(frozen=True)
class Kept:
    """A run that is done.

    Attributes:
        folder: of the series' own files about it.
        seconds: that its last start took; of a run without a kill all of it.
        again: it was done before, and nothing was computed.
    """

    folder: Path
    seconds: float
    again: bool

    @property
    def run(self) -> Path:
        """The trainer's folder."""
        return self.folder / _RUN


class StoppedError(Exception):
    """A signal stopped a run; the same call goes on with it."""


def made_of(config: PretrainConfig, fingerprint: str) -> dict[str, Any]:
    """What decides a run's numbers: its configuration, the images, the weights it begins with and this version.

    Changes of the code within a version are not in it: `code_of` says by which a run was made.

    Raises:
        ConfigError: the file of ``model.init`` cannot be read.
    """
    fields = {name: value for name, value in flat(config) if name not in MAY_CHANGE_ON_RESUME}
    fields = {name: value for name, value in fields.items() if (name, value) not in _NOTHING}
    fields["model.grad_checkpointing"] = False  # changes no number, and was in the key of the first runs
    fields["run.evaluate_images"] = config.run.evaluate_images  # decides what is measured
    if config.objective.kind != "mae":
        fields |= {"objective.teacher": config.objective.teacher, "objective.weights": config.objective.weights}
    if config.model.init:
        fields["model.init"] = content_of_init(config.model.init)
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return {"images": fingerprint, "dexcore": dexcore.__version__, "config": plain}


@dataclass(frozen=True)
class Code:
    """By which code a run was made, start by start, and when it began.

    Attributes:
        began: time of its first start, ISO 8601, UTC; "" where it has not begun.
        states: of the code at its starts: the commit, with "and changes" where files differed from it, or the version
            where dexcore was installed.
    """

    began: str
    states: tuple[str, ...]


def code_of(run: Path) -> Code:
    """By which code the run in a trainer's folder was made; a folder that is not there has not begun."""
    starts = read_starts(run)
    states = dict.fromkeys(_state(start) for start in starts)
    return Code(str(starts[0].get("time", "")) if starts else "", tuple(states))


def _state(start: Mapping[str, Any]) -> str:
    git = start.get("git")
    if not git:
        return f"dexcore {start.get('versions', {}).get('dexcore', 'of a version that is not known')}"
    return f"commit {git['commit'][:12]}{' and changes' if git['changed'] else ''}"


def run_folder(name: str, config: PretrainConfig, fingerprint: str, place: Path) -> Path:
    """Where a run is kept: its name, and a hash of all that it is made of."""
    text = json.dumps(made_of(config, fingerprint), sort_keys=True)
    return place / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def is_done(name: str, config: PretrainConfig, fingerprint: str, place: Path) -> Kept | None:
    """A run that was done before; None where it was not."""
    folder = run_folder(name, config, fingerprint, place)
    try:
        done = json.loads((folder / _DONE).read_text(encoding="utf-8"))
        if done["made_of"] == made_of(config, fingerprint):
            return Kept(folder, float(done["seconds"]), again=True)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass  # not done, or the file is damaged: the trainer's folder still knows how far it came
    return None


def train_once(name: str, config: PretrainConfig, fingerprint: str, place: Path) -> Kept:
    """Train, go on with what was stopped or killed, or find what is done.

    Args:
        name: of the run, in its folder's name.
        config: its ``out`` is not looked at.
        fingerprint: of the images.
        place: the folder of the series.

    Raises:
        StoppedError: a signal stopped it.
        As `dexcore.train.run.pretrain`.
    """
    done = is_done(name, config, fingerprint, place)
    if done is not None:
        return done
    folder = run_folder(name, config, fingerprint, place)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with open(folder / _SUMMARY, "w", encoding="utf-8") as summary, redirect_stdout(summary):
        result = pretrain(replace(config, out=str(folder / _RUN), resume=True))
    if not result.finished:
        raise StoppedError(f"{name}: stopped after step {result.step}; the same command goes on")
    seconds = time.monotonic() - began
    text = json.dumps({"made_of": made_of(config, fingerprint), "seconds": round(seconds, 1)}, indent=1)
    write_whole(folder / _DONE, f"{text}\n".encode())
    return Kept(folder, seconds, again=False)
