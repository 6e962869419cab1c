"""A probe of the model while it trains: nearest neighbors on a labelled task, from features as they are now.

The masked loss says little of what features are worth to a task. Nothing of the training changes: weights, buffers,
modes and the generators of random numbers are afterwards what they were.
"""

import shutil
from pathlib import Path
from typing import Any

import torch

from dexcore.data.feed.augment import channel_statistics
from dexcore.engine.config import ConfigError
from dexcore.engine.ranks import Ranks
from dexcore.evaluate.embedding import FeaturesError, FeatureTable, Preprocessing, features_by_mode
from dexcore.evaluate.probes.knn import knn_on_val
from dexcore.evaluate.probes.run import layers_of
from dexcore.evaluate.probes.splits import Splits
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.models.objective import Objective
from dexcore.train.config import PretrainConfig
from dexcore.train.schedules import Schedule

_FEATURES_FOLDER = ".probe"  # of a moment's features, in the run's folder: removed after it


class TrainingProbe:
    """The probe of a run, at its moments.

    Args:
        config: the run, with a ``run.probe_task``.
        schedule: of the run.
        folder: of the run.
        ranks: who train: they share the computation of features.

    Attributes:
        moments: the numbers of steps done at which the model is probed: none, every so many epochs, and all.

    Raises:
        ConfigError: the task cannot be read or probed, or less than a step is between two probes.
    """

    def __init__(self, config: PretrainConfig, schedule: Schedule, folder: Path, ranks: Ranks) -> None:
        self.config, self.folder, self.ranks = config, folder, ranks
        try:
            self.task = Task.open(config.run.probe_task)
            Splits.of(self.task)
        except (TaskError, OSError) as error:
            raise ConfigError(f"run.probe_task: {error}") from error
        self.moments = schedule.moments(config.run.probe_every, "run.probe_every")

    def measure(self, model: Objective, steps_done: int) -> dict[str, Any]:
        """Probe the model; all ranks call it.

        Returns:
            The line in probe.jsonl; the same on all ranks. Where features of a later moment cannot be had, as of a
            model that has diverged, the line says why in the place of values.

        Raises:
            ConfigError: they cannot be had of the model before its first step: an image cannot be read, say.
            MainRankError: the main rank cannot go on.
        """
        line: dict[str, Any] = {
            "step": steps_done,
            "task": self.task.name,
            "fingerprint": self.task.fingerprint,
            "metric": self.task.spec.metric,
        }
        device = next(model.parameters()).device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):  # a DataLoader draws from it
                tables = self._features(model)
        except FeaturesError as error:
            if steps_done == 0:
                raise ConfigError(f"run.probe_task: {error}") from error
            return {**line, "modes": {}, "error": str(error)}
        finally:
            if self.ranks.main:
                shutil.rmtree(self.folder / _FEATURES_FOLDER, ignore_errors=True)
        return {**line, **self.ranks.on_main_for_long(lambda: self._values(tables))}

    def _features(self, model: Objective) -> dict[str, FeatureTable]:
        size, channels = self.config.model.image_size, self.config.model.in_chans
        mean, std = channel_statistics(self.config.data.statistics, channels)
        return features_by_mode(
            model,
            self.task,
            preprocessing=Preprocessing((size, size), mean, std),
            precision=self.config.run.precision,
            workers=0,
            cache=self.folder / _FEATURES_FOLDER,
        )

    def _values(self, tables: dict[str, FeatureTable]) -> dict[str, Any]:
        found = {mode: knn_on_val(self.task, layers_of(table, self.task)) for mode, table in tables.items()}
        first = next(iter(found.values()))
        about = {"measured_on": first.measured_on, "images": first.images, "cases": first.cases}
        return {
            **about,
            "majority": first.majority,
            "modes": {mode or "dense": list(one.tried) for mode, one in found.items()},
        }
