"""``dexcore eval modules``: whether a model is made of modules, beside its twins.

Heavy imports wait until a command runs.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from dexcore.models import MaskedAutoencoder

_MODULES = (
    "Measure whether the experts of a pre-trained model are modules: whether routing follows modalities, beside "
    "untrained routers and the images' intensities; what a modality loses without an expert; what is left of it with "
    "its own experts alone; whether a class is found across modalities; whether modalities pull shared weights apart. "
    "Each number stands beside its control and has an interval over cases. MODEL and each twin are folders of masked "
    "autoencoders (a run's, or its model). Writes OUT/modules.json, OUT/modules.html and its pictures. Each part is "
    "kept in OUT/parts as soon as it is measured: after a kill the same command goes on."
)


def add_modules_command(commands: Any) -> None:
    """Add the command to those of ``dexcore eval``."""
    modules = commands.add_parser("modules", help="measure whether a model's experts are modules", description=_MODULES)
    add = modules.add_argument
    add("model", type=Path, metavar="MODEL", help="the folder of a run, or of a masked autoencoder")
    add("store", type=Path, metavar="STORE", help="a store with training and held-out images of several modalities")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder of the page and the numbers")
    add("--twin", type=_named, action="append", default=[], metavar="NAME=MODEL", help="beside it; may be given again")
    add(
        "--other-seed",
        type=Path,
        action="append",
        default=[],
        metavar="MODEL",
        help="the same training from another seed, for the stability of experts; may be given again",
    )
    add("--task", type=Path, metavar="TASK", help="the YAML of a task: what its probe loses without an expert")
    add("--images", type=int, default=64, metavar="N", help="most of a modality and split (default: 64)")
    add(
        "--instead",
        choices=("reroute", "zero", "director"),
        default="reroute",
        help="what stands in for an expert that is knocked out (default: reroute)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of masks, draws and permutations (default: 0)")
    add("--name", metavar="NAME", help="of the model (default: from MODEL)")
    add("--cache", type=Path, metavar="DIR", help="of features (default: DEXCORE_CACHE, or the user's cache folder)")
    add("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda ... (default: auto)")
    modules.set_defaults(run=_run)


def _named(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise argparse.ArgumentTypeError(f"expected NAME=MODEL, got {text!r}")
    return name, Path(path)


def _run(arguments: argparse.Namespace) -> int:
    from dexcore.data.feed.dataset import open_mvu
    from dexcore.engine.device import choose_device
    from dexcore.evaluate.modules.run import Plan, measure_modules
    from dexcore.evaluate.tasks import Task
    from dexcore.extras import require
    from dexcore.files import write_whole
    from dexcore.models.inputs import slices_of
    from dexcore.report.modules_page import NUMBERS_FILE, build_modules_page

    require("matplotlib", "train")  # of the page, and else missed after all is measured
    device = choose_device(arguments.device)
    folder = arguments.model.resolve()
    name = arguments.name or (folder.parent.name if folder.name == "model" else folder.name)
    names = [name, *(twin for twin, _ in arguments.twin)]
    if len(set(names)) < len(names):
        raise ValueError(f"--twin: expected names that differ from each other and from {name}, got {', '.join(names)}")
    models = {one: _opened(path, device) for one, path in [(name, arguments.model), *arguments.twin]}
    plan = Plan(
        images=arguments.images,
        instead=arguments.instead,
        seed=arguments.seed,
        task=Task.open(arguments.task) if arguments.task else None,
        cache=str(arguments.cache) if arguments.cache else None,
        keep=arguments.out / "parts",
        progress=True,
    )
    numbers = measure_modules(
        models,
        open_mvu(arguments.store, slices_of(models[name].encoder)),
        device,
        plan,
        lambda line: print(line, file=sys.stderr, flush=True),
        [_opened(path, device) for path in arguments.other_seed],
    )
    write_whole(arguments.out / NUMBERS_FILE, (json.dumps(numbers, indent=1) + "\n").encode())
    print("\n".join(build_modules_page(arguments.out)))
    return 0


def _opened(path: Path, device: "torch.device") -> "MaskedAutoencoder":
    from dexcore.models import MaskedAutoencoder
    from dexcore.models.hub import model_folder

    return MaskedAutoencoder.from_pretrained(model_folder(path)).eval().to(device)
