"""All numbers of a trained model that claims are made of, each part kept: a kill loses at most the part at work."""

from collections.abc import Callable, Sequence
from pathlib import Path

from dexcore.evaluate.claims.numbers import Measured
from dexcore.evaluate.claims.of_modules import module_numbers
from dexcore.evaluate.claims.of_run import run_numbers
from dexcore.evaluate.claims.of_tasks import task_numbers
from dexcore.evaluate.embedding.images import content_of
from dexcore.evaluate.kept import kept, key_of
from dexcore.evaluate.tasks import Task
from dexcore.report.files import MODEL_FOLDER

PROTOCOL = 5  # grows when a number would come out otherwise


def measure(
    run: Path,
    out: Path,
    name: str,
    store: Path,
    images: int,
    tasks: Sequence[Task],
    cache: Path,
    generated: Sequence[Task] = (),
) -> Measured:
    """Measure a finished run, or find what was measured before.

    Args:
        run: the trainer's folder.
        out: where parts are kept; a folder of this run alone.
        name: of the model.
        store: that it was trained on; its modules are looked at on the held-out images.
        images: most of a modality and a split.
        tasks: that it is probed on.
        cache: of features.
        generated: tasks that stand beside those, and take no part in their means: the names of their numbers end in
            ", generated".
    """
    model = run / MODEL_FOLDER
    parts: dict[str, tuple[list[str], Callable[[], Measured]]] = {
        "run": ([], lambda: Measured(run_numbers(run))),
        "modules": ([str(images)], lambda: Measured(module_numbers(model, store, images))),
        "tasks": (
            [known for task in tasks for known in (task.fingerprint, content_of(task))],
            lambda: task_numbers(model, tasks, out / "probes", cache, name),
        ),
    }
    if generated:
        parts["generated"] = (
            [known for task in generated for known in (task.fingerprint, content_of(task))],
            lambda: _called(task_numbers(model, generated, out / "probes", cache, name), "generated"),
        )
    found = [
        kept(out / f"numbers-{part}-{key_of(PROTOCOL, *made_of)}.npz", Measured.load, compute)
        for part, (made_of, compute) in parts.items()
    ]
    return Measured(
        {key: number for one in found for key, number in one.numbers.items()},
        tuple(dict.fromkeys(flag for one in found for flag in one.flags)),
    )


def _called(measured: Measured, what: str) -> Measured:
    return Measured({f"{key}, {what}": number for key, number in measured.numbers.items()}, measured.flags)
