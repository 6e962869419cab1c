"""``dexcore eval features`` and ``dexcore embed``: a frozen model's features of images, kept and written.

Heavy imports wait until a command runs.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from dexcore.data.feed.dataset import MVUDataset
    from dexcore.engine.ranks import Ranks
    from dexcore.evaluate.embedding import FeatureTable

_FEATURES = (
    "Compute the features of a task's images and keep them: what was computed of the same model, preprocessing and "
    "image before is not computed again. Of a model with experts, experts and director both, in one pass over the "
    "images. MODEL is a folder of dexcore's, or the name of one of timm's models with --weights. On several processes: "
    "torchrun --nproc-per-node 2 --no-python dexcore eval features ..."
)
_EMBED = (
    "Write the features of all images in a folder, or of a store, into a Parquet file: a row an image with its path, "
    "modality, group, class token, mean of patch tokens and the gates of the experts. A folder is read as `dexcore mvu "
    "build` reads it; what it would not take is left out, and counted. A killed run goes on when it is called again."
)


def add_features_command(commands: Any) -> None:
    """Add the command to those of ``dexcore eval``."""
    parser = commands.add_parser(
        "features", help="compute and keep a model's features of a task", description=_FEATURES
    )
    parser.add_argument("task", type=Path, metavar="TASK", help="the YAML of a task")
    parser.add_argument("model", metavar="MODEL", help="a folder of dexcore's, or the name of one of timm's models")
    parser.add_argument("--crop", choices=("center", "whole"), default="center", help="of an image (default: center)")
    parser.add_argument("--tokens", action="store_true", help="keep the patch tokens too, in float16")
    _add_options(parser)
    parser.set_defaults(run=_features)


def add_embed_command(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dexcore embed`` to its parser."""
    parser.description = _EMBED
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="any folder of images, or a store")
    parser.add_argument("--model", required=True, metavar="MODEL", help="a folder of dexcore's, or a model of timm's")
    parser.add_argument("--out", type=Path, required=True, metavar="PARQUET", help="the file to write")
    parser.add_argument("--modality", metavar="M", help="of files that do not say theirs, as X-ray")
    parser.add_argument("--min-side", type=int, metavar="PX", help="the smallest shorter side that is taken")
    _add_options(parser)
    parser.set_defaults(run=_embed)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--mode", choices=("experts", "director", "both"), help="of a model with experts")
    add("--weights", metavar="FILE", help="of a model of timm's: a file, or pretrained (from the network), or random")
    add("--seed", type=int, default=0, metavar="N", help="of random weights (default: 0)")
    add("--img-size", type=int, metavar="PX", help="of the model, in place of its own")
    add("--device", default="auto", metavar="D", help="auto, cpu, cuda, mps (default: auto)")
    add("--precision", choices=("fp32", "bf16", "auto"), default="fp32", help="default: fp32")
    add("--batch-size", type=int, default=64, metavar="N", help="images a forward (default: 64)")
    add("--workers", type=int, metavar="N", help="processes that read images (default: by device)")
    add("--cache", type=Path, metavar="DIR", help="where features are kept (default: DEXCORE_CACHE or your cache)")


def run_embed(arguments: argparse.Namespace) -> int:
    """Run ``dexcore embed``; the return value is the process's."""
    try:
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("stopped; call it again, and it goes on where it was", file=sys.stderr)
        return 130


def _features(arguments: argparse.Namespace) -> int:
    from dexcore.evaluate.tasks import Task

    with _ranks(arguments.device) as (ranks, device):
        task = Task.open(arguments.task)
        options = {"crop": arguments.crop, "tokens": arguments.tokens}
        model = _model(arguments, device)
        for table in _tables(arguments, model, task, arguments.mode or "both", options).values():
            if ranks.main:
                print(f"task {task.name}: {_told(table)}; key {table.key[:16]}")
    return 0


def _embed(arguments: argparse.Namespace) -> int:
    from dexcore.evaluate.embedding.cache import default_cache
    from dexcore.models.inputs import slices_of

    if arguments.mode == "both":
        raise ValueError("--mode is both, but a file holds the features of one: expected experts or director")
    if arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a folder: expected the file to write")
    with _ranks(arguments.device) as (ranks, device):
        cache = arguments.cache or default_cache()
        model = _model(arguments, device)
        dataset, left = _opened(arguments, cache, ranks, slices_of(model))
        (table,) = _tables(arguments, model, dataset, arguments.mode or "now", {"skip_unreadable": True}).values()
        if ranks.main:
            rows = {name: row for row, name in enumerate(_names(dataset))}
            places = [rows[name] for name in table.image]
            columns = {name: getattr(dataset, name)[places].tolist() for name in ("source", "group", "split")}
            columns["modality"] = [dataset.modality_names[dataset.modality[place]] for place in places]
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            table.save(arguments.out, columns)
            left += len(dataset) - len(table)
            print(f"{arguments.out}: {_told(table)}{f'; {left} left out' if left else ''}")
    return 0


def _names(dataset: "MVUDataset") -> tuple[str, ...]:
    from dexcore.evaluate.embedding.images import StoreImages

    return StoreImages(dataset).names


def _opened(arguments: argparse.Namespace, cache: Path, ranks: "Ranks", slices: int) -> tuple["MVUDataset", int]:
    """The store of the folder, itself or made of it in the cache, and how many of its files were left out."""
    from dexcore.data.feed.dataset import open_mvu
    from dexcore.data.store.manifest import MANIFEST

    folder = arguments.folder
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one of images, or a store")
    if (folder / MANIFEST).is_file():
        return open_mvu(folder, slices), 0
    store, left = ranks.on_main_for_long(lambda: _built(arguments, cache))
    return open_mvu(store, slices), left


def _built(arguments: argparse.Namespace, cache: Path) -> tuple[Path, int]:
    import hashlib

    from dexcore.data import build_store
    from dexcore.data.assemble.beside import REJECTS

    asked = f"{arguments.folder.resolve()}\n{arguments.modality}\n{arguments.min_side}"
    store = cache / "stores" / hashlib.sha256(asked.encode()).hexdigest()[:24]
    store.parent.mkdir(parents=True, exist_ok=True)
    build_store(arguments.folder, store, modality=arguments.modality, min_side=arguments.min_side)
    rejects = store / REJECTS
    return store, sum(1 for _ in rejects.open(encoding="utf-8")) if rejects.is_file() else 0


@contextmanager
def _ranks(device: str) -> Iterator[tuple["Ranks", "torch.device"]]:
    """The processes that share the work, and this one's device."""
    from dexcore.engine.device import choose_device
    from dexcore.engine.ranks import LostRankError, MainRankError, join_ranks

    try:
        with join_ranks(device) as ranks:
            yield ranks, choose_device(device, ranks.local_rank)
    except (LostRankError, MainRankError) as error:
        raise ValueError(str(error)) from error


def _model(arguments: argparse.Namespace, device: "torch.device") -> "nn.Module":
    from dexcore.evaluate.embedding import open_model

    return open_model(arguments.model, arguments.weights, img_size=arguments.img_size, seed=arguments.seed).to(device)


def _tables(
    arguments: argparse.Namespace, model: "nn.Module", images: Any, mode: str, options: dict[str, Any]
) -> dict[str, "FeatureTable"]:
    """The features in the modes that ``mode`` names: "both", "now" (as the model was saved) or one of them."""
    from dexcore.evaluate.embedding import features_by_mode
    from dexcore.evaluate.embedding.encode import mode_now, modes_of

    modes = {"both": modes_of(model), "now": (mode_now(model),)}.get(mode, (mode,))
    return features_by_mode(
        model,
        images,
        modes=modes,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        cache=arguments.cache,
        name=f"{arguments.model} {arguments.weights or ''}".strip(),
        progress=True,
        **options,
    )


def _told(table: "FeatureTable") -> str:
    parts = [f"mean {table.width}"]
    if table.cls is not None:
        parts.insert(0, f"class token {table.cls.shape[1]}")
    if table.gates is not None:
        parts.append(f"gates {table.gates.shape[1]} x {table.gates.shape[2]}")
    mode = f" ({table.mode})" if table.mode else ""
    return f"features of {len(table)} images{mode}: {', '.join(parts)}"
