"""``dexcore eval probe``: what frozen features are worth on a task.

Heavy imports wait until a command runs.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dexcore.evaluate.embedding import FeatureTable
    from dexcore.evaluate.tasks import Task

_PROBE = (
    "Probe the features of a frozen model on a task: nearest neighbors (knn), logistic regression (linear), a handful "
    "of images a class (fewshot), whether images of a class find each other (retrieval); of masks a linear head on "
    "patch tokens (dense). What is chosen is chosen on val. Beside it stand the most frequent class, the intensity "
    "histogram with a thumbnail, the same architecture with new weights, and the twins that are named. Results lie in "
    "OUT/MODEL/PROBE/TASK, a folder a seed or draw, where `dexcore eval compare`, `table` and `page` read them; what "
    "is there is not computed again."
)


def add_probe_command(commands: Any) -> None:
    """Add the command to those of ``dexcore eval``."""
    probe = commands.add_parser("probe", help="probe the features of a frozen model on a task", description=_PROBE)
    add = probe.add_argument
    add("task", type=Path, metavar="TASK", help="the YAML of a task")
    add(
        "model", metavar="MODEL", help="a folder of dexcore's, the name of a model of timm's, or a .parquet of features"
    )
    add("--out", type=Path, required=True, metavar="OUT", help="the folder of all results")
    add(
        "--probe",
        action="append",
        default=[],
        choices=("knn", "linear", "fewshot", "retrieval", "dense"),
        help="one of them; may be given again (default: all that suit the task)",
    )
    add("--weights", metavar="FILE", help="of a model of timm's: a file, pretrained or random")
    add("--mode", choices=("experts", "director"), help="of a model with DEX layers (default: the one it is in)")
    add("--img-size", type=int, metavar="PX", help="of the model's input (default: its own)")
    add("--cache", type=Path, metavar="DIR", help="of features (default: DEXCORE_CACHE, or the user's cache folder)")
    add("--name", metavar="NAME", help="of the model, in folders and tables (default: from MODEL and mode)")
    add(
        "--twin",
        type=_twin,
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="a model to be beaten, such as the dense twin: a folder of dexcore's or a .parquet; may be given again",
    )
    add("--draws", type=int, default=0, metavar="N", help="knn, linear: draw the training cases N times")
    add("--seeds", type=int, metavar="N", help="fewshot, dense: so many seeds (default: 1)")
    add("--training", type=int, metavar="N", help="which of several trainings of MODEL and its twins: tables join them")
    add("--no-baselines", action="store_true", help="leave out majority, histogram and new weights")
    probe.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dexcore.evaluate.probes.run import probes_of, run_majority, run_probe
    from dexcore.evaluate.tasks import Task

    for name, least in (("draws", 0), ("seeds", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"--{name} is {value}, expected {least} or more")
    task = Task.open(arguments.task)
    probes = probes_of(task, arguments.probe, arguments.draws, arguments.seeds, arguments.training)
    tables = _tables(arguments, task)
    command = shlex.join(["dexcore", *sys.argv[1:]])
    if not arguments.no_baselines:
        print("\n".join(run_majority(task, arguments.out, command).lines()))
    for model, table, beside in tables:
        for probe in probes:
            done = run_probe(task, table, model, probe, arguments.out, beside, command)
            print("\n".join(done.lines()))
    print(f"compare: dexcore eval table {arguments.out}")
    return 0


def _tables(arguments: argparse.Namespace, task: "Task") -> list[tuple[str, "FeatureTable", tuple[str, ...]]]:
    """The features of each model that is probed and the models it is flagged against, which stand before it."""
    from dexcore.evaluate.embedding import FeatureTable, features, open_model
    from dexcore.evaluate.probes.baselines import histogram_features, redrawn
    from dexcore.evaluate.scores.baselines import HISTOGRAM, MAJORITY, RANDOM

    masks = task.spec.is_segmentation
    given: dict[str, Any] = {
        "crop": "whole" if masks else "center",  # tokens must lie on all pixels
        "tokens": masks,
        "cache": arguments.cache,
        "progress": True,
    }
    beside: tuple[str, ...] = ()
    found: list[tuple[str, FeatureTable, tuple[str, ...]]] = []
    if not arguments.no_baselines:
        found.append((HISTOGRAM, histogram_features(task, cache=arguments.cache), ()))
        beside = (HISTOGRAM,)
    for twin, model in arguments.twin:
        table = FeatureTable.load(model) if model.endswith(".parquet") else features(open_model(model), task, **given)
        found.append((twin, table, beside))
    if arguments.model.endswith(".parquet"):
        for option in ("weights", "mode", "img_size"):
            if getattr(arguments, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')}: {arguments.model} holds features, no model runs")
        table, name = FeatureTable.load(arguments.model), arguments.name or Path(arguments.model).stem
    else:
        opened = open_model(arguments.model, arguments.weights, img_size=arguments.img_size)
        table = features(opened, task, mode=arguments.mode, **given)
        name = arguments.name or "-".join(filter(None, (_name(Path(arguments.model)), table.mode)))
        if not arguments.no_baselines:
            fresh = redrawn(getattr(opened, "encoder", opened))
            found.append((f"{name}{RANDOM}", features(fresh, task, mode=arguments.mode, **given), beside))
    found.append((name, table, (*beside, *(twin for twin, _ in arguments.twin))))
    names = [name for name, _, _ in found]
    if doubled := {one for one in names if names.count(one) > 1 or one == MAJORITY}:
        raise ValueError(f"--name, --twin: {doubled.pop()} is the name of another model: expected one each")
    return found


def _twin(text: str) -> tuple[str, str]:
    name, sign, model = text.partition("=")
    if not (name and sign and model):
        raise argparse.ArgumentTypeError(f"expected NAME=MODEL, got {text!r}")
    return name, model


def _name(model: Path) -> str:
    """Of a run its folder's, whose model is in RUN/model; else the last part."""
    if not model.is_dir():
        return model.name
    model = model.resolve()
    return model.parent.name if model.name == "model" else model.name
