"""``dexcore eval predict``: a fine-tuned model on a task's images, scored.

Heavy imports wait until the command runs.
"""

import argparse
from pathlib import Path
from typing import Any

_PREDICT = (
    "Predict a task's images by a fine-tuned model, save the predictions, and score them: a test set of another "
    "hospital, say, with the classes that the model learned. Images by themselves, without labels: dexcore predict."
)


def add_predict_task_command(commands: Any) -> None:
    """Add the command to those of ``dexcore eval``."""
    predict = commands.add_parser("predict", help="a fine-tuned model on a task's images", description=_PREDICT)
    add = predict.add_argument
    add("task", type=Path, metavar="TASK", help="the YAML of a task")
    add("model", metavar="MODEL", help="a fine-tuned model's folder, or its run's; or user/name on the Hub")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder of predictions and scores")
    add("--split", default="test", choices=("train", "val", "test"), help="default: test")
    add("--name", metavar="NAME", help="of the model, in tables (default: from the task that it learned)")
    add("--seed", type=int, metavar="N", help="which of several trainings the model is: tables join those of one name")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, mps (default: auto)")
    add("--batch-size", type=int, default=16, metavar="N", help="images a forward (default: 16)")
    predict.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dexcore.checks import check_whole
    from dexcore.engine.device import choose_device
    from dexcore.evaluate.finetuning.elsewhere import predict_task
    from dexcore.evaluate.prediction.predict import open_task_model
    from dexcore.evaluate.tasks import Task

    check_whole("--batch-size", arguments.batch_size, 1)
    if arguments.seed is not None:
        check_whole("--seed", arguments.seed, 0)
    task = Task.open(arguments.task)
    model = open_task_model(arguments.model)
    name = arguments.name or f"fine-tuned on {model.task.name}"
    device = choose_device(arguments.device)
    scores = predict_task(
        model.to(device),
        task,
        arguments.out,
        name,
        split=arguments.split,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
    )
    print("\n".join(scores.lines()))
    print(f"written to {arguments.out}")
    return 0
