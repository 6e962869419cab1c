"""The model of a checkpoint as a folder that ``from_pretrained`` opens: of a run that is under way, stopped or done."""

from dataclasses import replace
from pathlib import Path

from dexcore.engine.checkpoint import find_checkpoint, load_model, read_progress
from dexcore.engine.config_file import read_yaml
from dexcore.engine.folder import RunFolderError
from dexcore.report.files import CHECKPOINTS_FOLDER, CONFIG_FILE
from dexcore.train.build import build_model, modalities_there
from dexcore.train.config import PretrainConfig
from dexcore.train.image_store import open_images
from dexcore.train.run.card import note_inputs
from dexcore.train.run.provenance import check_images, describe_images
from dexcore.train.teacher import shape_told


def export_model(run: Path, out: Path, step: int | None = None, store: Path | None = None) -> int:
    """Write the model that a run had at a checkpoint, as the run writes its last one; the run is left as it is.

    Args:
        run: its folder; it may be under way.
        out: the folder to write, which is new or empty.
        step: of the checkpoint, steps done; None: of the newest.
        store: of the run's images, where it lies elsewhere now.

    Returns:
        The step of the checkpoint.

    Raises:
        RunFolderError: ``run`` is no run's folder, its images are others now, or ``out`` holds something.
        CheckpointError: there is no such checkpoint, or it is damaged.
        ConfigError, StoreError: the run's configuration or its images cannot be read.
        OSError: the folder cannot be written.
    """
    if not (run / CONFIG_FILE).is_file():
        raise RunFolderError(f"{run}: expected the folder of a run, which holds {CONFIG_FILE}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunFolderError(f"{out}: expected a new or an empty folder")
    config = read_yaml(run / CONFIG_FILE, PretrainConfig())
    config = replace(config, model=replace(config.model, init=""))  # the weights are the checkpoint's
    if store is not None:
        config = replace(config, data=replace(config.data, store=str(store), images=""))
    checkpoint = find_checkpoint(run / CHECKPOINTS_FOLDER, step)
    progress = read_progress(checkpoint)
    images = open_images(config)
    rows = images.indices(split="train")
    check_images(run, progress.order["fingerprint"], describe_images(images, rows))
    model = build_model(config.model, config.run.seed, modalities_there(images), shape_told(run))
    load_model(checkpoint, model)
    note_inputs(model, images, rows, config)
    model.eval().save_pretrained(out)
    return progress.step
