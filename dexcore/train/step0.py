"""What the report measures, measured before the first step: training claims what differs from it, no more.

A random router already follows what images look like, and random features tell modalities apart. The model as it was
initialized is therefore run through the same code, on the same images and with the same masks, as at the end.
"""

from pathlib import Path

import torch

from dexcore.data.feed.pretrain_view import Images
from dexcore.engine.folder import RunFolderError
from dexcore.engine.ranks import Ranks
from dexcore.evaluate.analyze import analyze
from dexcore.evaluate.reconstruct import evaluate
from dexcore.models.objective import Objective
from dexcore.report.files import STEP0_ANALYSIS_FILE, STEP0_EVALUATION_FILE
from dexcore.train.config import PretrainConfig


def measure_step0(
    folder: Path,
    model: Objective,
    images: Images,
    config: PretrainConfig,
    device: torch.device,
    ranks: Ranks,
) -> None:
    """Have the main rank measure ``model`` before its first step and keep the numbers in ``folder``; the others wait.

    Changes no weight, draws nothing from the generators of training, and leaves the model in the mode it was in.

    Raises:
        StoreError: no image can be decoded.
        RunFolderError: the folder cannot be written.
        MainRankError: either happened on the main rank.
    """
    ranks.on_main_for_long(lambda: _measure(folder, model, images, config, device))


def _measure(folder: Path, model: Objective, images: Images, config: PretrainConfig, device: torch.device) -> None:
    training = model.training
    try:
        evaluation = evaluate(model, images, config.setting, device)
        analysis = analyze(model, images, evaluation, config.setting, device)
    finally:
        model.train(training)
    try:
        evaluation.save(folder / STEP0_EVALUATION_FILE)
        analysis.save(folder / STEP0_ANALYSIS_FILE)
    except OSError as error:
        raise RunFolderError(f"{folder}: what is measured before the first step cannot be written: {error}") from error
