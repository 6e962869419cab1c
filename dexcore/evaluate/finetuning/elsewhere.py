"""A fine-tuned model on another task's images: another hospital's, or the same task's other split."""

from pathlib import Path

from dexcore.evaluate.finetuning.predictions import Predictor
from dexcore.evaluate.finetuning.run import MASKS_FOLDER, PREDICTIONS_FILE
from dexcore.evaluate.scores import Scores, score
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.evaluate.tasks.table import SplitName
from dexcore.models import TaskModel


def predict_task(
    model: TaskModel,
    task: Task,
    folder: Path,
    name: str,
    *,
    split: SplitName = "test",
    seed: int | None = None,
    precision: str = "auto",
    batch_size: int = 16,
    workers: int = 0,
) -> Scores:
    """Predict a task's images by a model that was fine-tuned on another, or on this one, and score them.

    Images are read as ``task`` says, and shown as the model was trained. ``folder`` gets ``predictions.parquet``, of
    masks a PNG each, and of the test split ``scores.json`` and ``scores.npz``, which tables read.

    Args:
        model: on the device where it runs.
        task: of the same kind and the same classes.
        folder: made where it is missing.
        name: of the model, in predictions and tables.
        split: whose images.
        seed: which of several trainings the model is: tables join those of one name; None: it was trained once.
        precision, batch_size, workers: of the forward; but for roundings they change nothing.

    Raises:
        TaskError: the model's kind or classes are others, the split has no image, or one cannot be read.
        OSError: the folder cannot be written.
    """
    learned = model.task
    for what, own, other in (("kind", learned.kind, task.kind), ("classes", learned.classes, task.classes)):
        if own != other:
            raise TaskError(
                f"task {task.name}: {what} {_told(other)}, but the model was fine-tuned on {learned.name} with "
                f"{_told(own)}: expected the same"
            )
    if not task.split(split):
        raise TaskError(f"task {task.name}: {task.spec.table} has no image of {split}")
    predictions = Predictor(model, task, precision, batch_size, workers).predict(
        split, folder / MASKS_FOLDER, name, seed
    )
    folder.mkdir(parents=True, exist_ok=True)
    predictions.save(folder / PREDICTIONS_FILE)
    scores = score(predictions, task, split)
    if split == "test":
        scores.save(folder)
    return scores


def _told(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
