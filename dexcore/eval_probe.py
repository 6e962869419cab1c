"""``dexcore eval probe``: what frozen features are worth on a task.

Heavy imports wait until a command runs.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dexcore.evaluate.embedding import FeatureTable
    from dexcore.evaluate.tasks import Task

_PROBE = (
    "Probe the features of a frozen model on a task: nearest neighbors (knn), logistic regression (linear), a handful "
    "of images a class (fewshot); of masks a linear head on patch tokens (dense). What is chosen is chosen on val. "
    "Beside it stand the most frequent class, the intensity histogram with a thumbnail, and the same architecture with "
    "new weights. Results lie in OUT/MODEL/PROBE/TASK, a folder a seed or draw, where `dexcore eval compare` and "
    "`table` read them; what is there is not computed again."
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
        choices=("knn", "linear", "fewshot", "dense"),
        help="one of them; may be given again (default: all that suit the task)",
    )
    add("--weights", metavar="FILE", help="of a model of timm's: a file, pretrained or random")
    add("--mode", choices=("experts", "director"), help="of a model with DEX layers (default: the one it is in)")
    add("--img-size", type=int, metavar="PX", help="of the model's input (default: its own)")
    add("--cache", type=Path, metavar="DIR", help="of features (default: DEXCORE_CACHE, or the user's cache folder)")
    add("--name", metavar="NAME", help="of the model, in folders and tables (default: from MODEL and mode)")
    add("--draws", type=int, default=0, metavar="N", help="knn, linear: draw the training cases N times")
    add("--seeds", type=int, metavar="N", help="fewshot, dense: so many seeds (default: 1)")
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
    probes = probes_of(task, arguments.probe, arguments.draws, arguments.seeds)
    tables = _tables(arguments, task)
    beside = "" if arguments.no_baselines else "histogram"
    if beside:
        print("\n".join(run_majority(task, arguments.out).lines()))
    for model, table in tables:
        for probe in probes:
            against = beside if model != beside else ""
            done = run_probe(task, table, model, probe, arguments.out, against)
            print("\n".join(done.lines()))
    print(f"compare: dexcore eval table {arguments.out}")
    return 0


def _tables(arguments: argparse.Namespace, task: "Task") -> list[tuple[str, "FeatureTable"]]:
    """The features of each model that is probed, the baselines first."""
    from dexcore.evaluate.embedding import FeatureTable, features, open_model
    from dexcore.evaluate.probes.baselines import HISTOGRAM, histogram_features, redrawn

    masks = task.spec.is_segmentation
    given: dict[str, Any] = {
        "crop": "whole" if masks else "center",  # tokens must lie on all pixels
        "tokens": masks,
        "cache": arguments.cache,
        "progress": True,
    }
    found = []
    if not arguments.no_baselines:
        found.append((HISTOGRAM, histogram_features(task, cache=arguments.cache)))
    if arguments.model.endswith(".parquet"):
        for name in ("weights", "mode", "img_size"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')}: {arguments.model} holds features, no model runs")
        table = FeatureTable.load(arguments.model)
        return [*found, (arguments.name or Path(arguments.model).stem, table)]
    model = open_model(arguments.model, arguments.weights, img_size=arguments.img_size)
    table = features(model, task, mode=arguments.mode, **given)
    name = arguments.name or "-".join(filter(None, (_name(Path(arguments.model)), table.mode)))
    if not arguments.no_baselines:
        fresh = redrawn(getattr(model, "encoder", model))
        found.append((f"{name}-random", features(fresh, task, mode=arguments.mode, **given)))
    return [*found, (name, table)]


def _name(model: Path) -> str:
    """Of a run its folder's, whose model is in RUN/model; else the last part."""
    if not model.is_dir():
        return model.name
    model = model.resolve()
    return model.parent.name if model.name == "model" else model.name
