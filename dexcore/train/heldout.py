"""The loss on held-out images while a model trains, and the best model by it.

Every moment shows the same images with the same masks. Nothing of the training changes: weights, buffers, modes and the
generators of random numbers are afterwards what they were.
"""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from dexcore.data.feed.pretrain_view import Images
from dexcore.engine.config import ConfigError
from dexcore.engine.folder import RunFolderError
from dexcore.engine.ranks import Ranks
from dexcore.evaluate.reconstruct import batches, chosen_rows, image_losses
from dexcore.files import write_whole
from dexcore.models.objective import Objective
from dexcore.report.files import BEST_FOLDER, HELDOUT_FILE
from dexcore.report.heldout_course import HeldOutCourse
from dexcore.train.config import PretrainConfig
from dexcore.train.run.card import note_inputs
from dexcore.train.schedules import Schedule

MOMENT_FILE = "moment.json"  # in the best model's folder: the line of heldout.jsonl that it was chosen by


class HeldOut:
    """The held-out loss of a run, at its moments; the model of the least one stays in ``model-best/``.

    Args:
        config: the run, with a ``run.evaluate_every``.
        schedule: of the run.
        images: of the run; up to ``run.evaluate_images`` held-out ones a modality are shown.
        rows: its training images, for what a saved model tells of them.
        folder: of the run.
        ranks: who train: the main one measures.

    Attributes:
        moments: the numbers of steps done at which the loss is measured: none, every so many epochs, and all.

    Raises:
        ConfigError: no image is held out, or less than a step is between two moments.
    """

    def __init__(
        self, config: PretrainConfig, schedule: Schedule, images: Images, rows: np.ndarray, folder: Path, ranks: Ranks
    ) -> None:
        self.config, self.images, self.rows, self.folder, self.ranks = config, images, rows, folder, ranks
        self.moments = schedule.moments(config.run.evaluate_every, "run.evaluate_every")
        self.shown = chosen_rows(images, config.run.evaluate_images, ("heldout",))
        if not len(self.shown):
            raise ConfigError(f"run.evaluate_every: {images.name} holds no held-out image, expected 0 (none)")

    def measure(self, model: Objective, steps_done: int, device: torch.device) -> dict[str, Any]:
        """Measure the loss, and keep the model where it is the best so far; all ranks call it.

        Returns:
            The line in heldout.jsonl, the same on all ranks: ``loss``, the mean over images, and of each modality its
            loss and the number of its images. Images that cannot be decoded are left out.

        Raises:
            RunFolderError: the best model cannot be written; the one before is untouched.
            MainRankError: the main rank cannot go on.
        """
        return self.ranks.on_main_for_long(lambda: self._measured(model, steps_done, device))

    def _measured(self, model: Objective, steps_done: int, device: torch.device) -> dict[str, Any]:
        losses, modalities = [np.zeros(0)], [np.zeros(0, np.int64)]
        training = model.training
        model.eval()
        try:
            for batch in batches(self.images, self.shown, model, self.config.setting):
                losses.append(image_losses(model, batch, self.config.setting, device))
                modalities.append(self.images.modality[batch.sample_id])
        finally:
            model.train(training)
        loss_n, modality_n = np.concatenate(losses), np.concatenate(modalities)
        of_modality = {
            self.images.modality_names[index]: [float(loss_n[modality_n == index].mean()), int(count)]
            for index, count in zip(*np.unique(modality_n, return_counts=True), strict=True)
        }
        loss = float(loss_n.mean()) if len(loss_n) else math.nan
        line = {"step": steps_done, "loss": loss, "modalities": of_modality}
        before = HeldOutCourse.read(self.folder / HELDOUT_FILE).best
        if steps_done and math.isfinite(loss) and (before is None or loss < before[1]):
            self._keep(model, line)
        return line

    def _keep(self, model: Objective, line: dict[str, Any]) -> None:
        """Have the model in the place of the best one before, which is there until this one is whole."""
        best, new, old = (self.folder / name for name in (BEST_FOLDER, f".{BEST_FOLDER}", f".{BEST_FOLDER}-before"))
        try:
            shutil.rmtree(new, ignore_errors=True)
            note_inputs(model, self.images, self.rows, self.config)
            model.save_pretrained(new)
            write_whole(new / MOMENT_FILE, json.dumps(line, indent=1).encode() + b"\n")
            shutil.rmtree(old, ignore_errors=True)
            if best.exists():
                os.replace(best, old)
            os.replace(new, best)
            shutil.rmtree(old, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            raise RunFolderError(f"{best}: the best model cannot be written: {error}") from error
