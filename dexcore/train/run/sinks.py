"""Where a run's numbers go besides its own files: TensorBoard, MLflow, Weights & Biases.

The run's files are the truth, and hold all; a sink is for people. One that fails is told once and left out: it ends no
run. All of them work without a network and without an account, in the run's folder, unless their own environment
variables (MLFLOW_TRACKING_URI, WANDB_MODE) say otherwise.
"""

import json
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from dexcore.engine.config import ConfigError, flat
from dexcore.extras import require
from dexcore.files import write_whole
from dexcore.report.probe_course import DRAWN
from dexcore.train.config import PretrainConfig

_IDENTITY_FILE = "sinks.json"  # by which MLflow and Weights & Biases know a run again
_PROJECT = "dexcore"
_STEPS_AT_ONCE = 50  # to MLflow, which commits what it is given
_MOST_PARAMETERS = 100  # of a call to MLflow


class Sink(Protocol):
    """One that takes numbers."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take the numbers of a step, or of a moment after so many steps."""

    def close(self) -> None:
        """Bring all to its place."""


class Sinks:
    """The sinks of a run; the main rank's alone. They are opened with the first step.

    Args:
        config: the run, with its ``run.sinks``.
        folder: of the run.
        first_step: steps done; TensorBoard forgets later ones of a run that was killed.
        say: tells whoever watches the run.
    """

    def __init__(self, config: PretrainConfig, folder: Path, first_step: int, say: Callable[[str], None]) -> None:
        self._given, self._say = (config, folder, first_step), say
        self._missing = list(config.run.sink_names)
        self._early: list[tuple[int, Mapping[str, Any], str]] = []
        self._open: dict[str, Sink] = {}

    def write(self, step: int, line: Mapping[str, Any], prefix: str = "") -> None:
        """Give all sinks the numbers of a line: of a step's, or of what was measured meanwhile, with a ``prefix``."""
        if self._missing and prefix:  # before the first step, and a run that fails before it leaves nothing
            self._early.append((step, line, prefix))
            return
        while self._missing:
            self._try(self._missing.pop(0), self._begin)
        early, self._early = self._early, []
        for each in (*early, (step, line, prefix)):
            self._give(*each)

    def _give(self, step: int, line: Mapping[str, Any], prefix: str) -> None:
        numbers = dict(_numbers(line, prefix))
        for name in tuple(self._open):
            self._try(name, lambda of: self._open[of].write(step, numbers))

    def close(self) -> None:
        """Close them all."""
        for name in tuple(self._open):
            self._try(name, lambda of: self._open[of].close())

    def _begin(self, name: str) -> None:
        self._open[name] = _KINDS[name](*self._given)

    def _try(self, name: str, do: Callable[[str], None]) -> None:
        try:
            do(name)
        except Exception as error:  # whatever a foreign package raises
            self._open.pop(name, None)
            told = str(error).partition("\n")[0]
            self._say(f"run.sinks: {name} failed ({told}); the run goes on without it, its own files hold all numbers")


def check_sinks(config: PretrainConfig) -> None:
    """Miss a sink's package now, and not after the first step.

    Raises:
        MissingExtraError: it is not installed.
    """
    for name in config.run.sink_names:
        for module in _PACKAGES[name]:
            require(module, "sinks")


def _numbers(line: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """The finite numbers of a line by name; of the experts' load the least and the greatest share of each block."""
    found: list[tuple[str, Any]] = [(prefix + name, value) for name, value in line.items() if name != "step"]
    for number, shares in enumerate(line.get("load", ()), start=1):
        found += [(f"load/block {number:02d} least", min(shares)), (f"load/block {number:02d} most", max(shares))]
    found += [(f"{prefix}{name}", loss) for name, (loss, _) in line.get("modalities", {}).items()]
    for mode, tried in line.get("modes", {}).items():
        drawn = [one for one in tried if (one["k"], one["votes"]) == DRAWN]
        found += [(f"{prefix}{mode} {one['layer']}", one["value"]) for one in drawn]
    for name, value in found:
        if isinstance(value, int | float) and math.isfinite(value):
            yield name, float(value)


class _TensorBoard:
    def __init__(self, config: PretrainConfig, folder: Path, first_step: int) -> None:
        writer = require("torch.utils.tensorboard", "sinks").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    def __init__(self, config: PretrainConfig, folder: Path, first_step: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        mlflow = require("mlflow", "sinks")
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        self._metric, self._parameter = mlflow.entities.Metric, mlflow.entities.Param
        self._client = mlflow.MlflowClient(place)
        self._waiting: list[Any] = []
        self._run = _identity(folder).get("mlflow", "")
        if not self._run:
            experiment = self._client.get_experiment_by_name(_PROJECT)
            number = experiment.experiment_id if experiment else self._client.create_experiment(_PROJECT)
            self._run = self._client.create_run(number, run_name=folder.name).info.run_id
            fields = [self._parameter(name, str(value)) for name, value in flat(config)]
            for start in range(0, len(fields), _MOST_PARAMETERS):
                self._client.log_batch(self._run, params=fields[start : start + _MOST_PARAMETERS])
            _remember(folder, "mlflow", self._run)
        self._client.update_run(self._run, status="RUNNING")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        now = round(1000 * time.time())
        self._waiting += [self._metric(name, value, now, step) for name, value in numbers.items()]
        if len(self._waiting) >= _STEPS_AT_ONCE * len(numbers):
            self._send()

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), 1000):  # the most that a server takes
            self._client.log_batch(self._run, metrics=waiting[start : start + 1000])

    def close(self) -> None:
        self._send()
        self._client.set_terminated(self._run)


class _WandB:
    def __init__(self, config: PretrainConfig, folder: Path, first_step: int) -> None:
        wandb = require("wandb", "sinks")
        identity = _identity(folder).get("wandb") or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.name,
            id=identity,
            resume="allow",
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=dict(flat(config)),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        # Its own step only rises; ours goes back where a killed run is resumed.
        self._run.define_metric("*", step_metric="step")
        _remember(folder, "wandb", identity)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log({"step": step, **numbers})

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[str, Callable[[PretrainConfig, Path, int], Sink]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _MLflow,
    "wandb": _WandB,
}
_PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic"), "wandb": ("wandb",)}


def _identity(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / _IDENTITY_FILE).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(f"{folder / _IDENTITY_FILE}: damaged, expected JSON ({error})") from error
    return found if isinstance(found, dict) else {}


def _remember(folder: Path, name: str, identity: str) -> None:
    write_whole(folder / _IDENTITY_FILE, json.dumps({**_identity(folder), name: identity}, indent=1).encode() + b"\n")
