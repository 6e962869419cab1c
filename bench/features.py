"""Features of a store: images a second, beside the bare forward of the same model on a batch that is there.

    python -m bench.features

forward     timm's ViT-S at 224, a batch that lies on the device, without gradient
features    `dexcore.evaluate.features`: read from a store, made the model's view, run, checked and written

Both in float32 on a CPU and in bf16 on a GPU, on the same images, by turns. The model is hashed once in each call of
features, and that is counted. The images are synthetic, of 512 pixels, the largest that a store keeps by default.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from torch import nn

from bench.command import Ceilings, Goal, Line, Options, Refused, judged, run, table_row
from bench.contenders import WrongResultError
from bench.timing import machine, summary
from dexcore.data.feed.dataset import MVUDataset, open_mvu
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.evaluate.embedding import features
from dexcore.evaluate.embedding.view import declared_preprocessing
from dexcore.models.precision import autocast

GOAL = 0.85  # of the bare forward's images a second
_SIDE, _ROUNDS = 512, 5


def _model(options: Options) -> nn.Module:
    name = "test_vit" if options.quick else "vit_small_patch16_224"
    return timm.create_model(name, num_classes=0).eval().to(options.device)


def _store(options: Options, folder: Path) -> MVUDataset:
    images, side = (8, 64) if options.quick else (2048 if options.on_gpu else 256, _SIDE)
    source = SyntheticMVU(size=side)
    records = (source.record(index) for index in range(images))
    write_store(records, folder / "store", name="features", max_side=_SIDE)
    return open_mvu(folder / "store")


def _batch_size(options: Options) -> int:
    return 4 if options.quick else 256 if options.on_gpu else 32


def _precision(options: Options) -> str:
    return "bf16" if options.on_gpu else "fp32"


@torch.no_grad()
def _forward(model: nn.Module, batches: list[torch.Tensor], options: Options) -> torch.Tensor:
    """The class token and the mean of the patches of all batches, in the order of `features`."""
    made = []
    for batch in batches:
        with autocast(options.device, _precision(options)):
            tokens = model.forward_features(batch)
        made.append(tokens[:, 1:].float().mean(1))
    return torch.cat(made).cpu()


def _batches(model: nn.Module, dataset: MVUDataset, options: Options) -> list[torch.Tensor]:
    view = declared_preprocessing(model)
    images = torch.stack([view(dataset.read(index)) for index in range(len(dataset))])
    return [batch.to(options.device) for batch in images.split(_batch_size(options))]


def check(options: Options) -> Refused:
    """The features are those of the bare forward on the same view."""
    with tempfile.TemporaryDirectory() as folder:
        model, dataset = _model(options), _store(Options(options.device, quick=True), Path(folder))
        bare = _forward(model, _batches(model, dataset, options), options).numpy()
        found = features(model, dataset, precision=_precision(options), cache=Path(folder) / "cache").mean
        error = np.abs(found - bare).max() / np.sqrt(np.square(bare).mean())
        if not error <= (0.1 if options.on_gpu else 1e-3):
            raise WrongResultError(f"features are {error:.2g} of their size off the bare forward's")
    return {}


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """One table: both over the whole store, by turns; every call of features has a cache of its own."""
    with tempfile.TemporaryDirectory() as folder:
        model, dataset = _model(options), _store(options, Path(folder))
        batches, size = _batches(model, dataset, options), _batch_size(options)
        caches = (Path(folder) / f"cache{number}" for number in range(_ROUNDS + 1))

        def computed() -> None:
            features(model, dataset, precision=_precision(options), batch_size=size, cache=next(caches))

        calls: dict[str, Callable[[], object]] = {
            "forward": lambda: _forward(model, batches, options),
            "features": computed,
        }
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for number in range((2 if options.quick else _ROUNDS) + 1):  # the first warms up
            for name, call in calls.items():
                began = time.perf_counter()
                call()
                if number:
                    taken[name].append(time.perf_counter() - began)
    print(f"ViT-S at 224, {_precision(options)}, {len(dataset)} images of {_SIDE} pixels in batches of {size}")
    print(table_row("", "s", "p20", "p80", "images/s"))
    lines, times = [], {name: summary(seconds) for name, seconds in taken.items()}
    for name, timing in times.items():
        rate = len(dataset) / timing.median
        print(table_row(name, *(f"{seconds:.3f}" for seconds in vars(timing).values()), f"{rate:.1f}"), flush=True)
        line: Line = {"bench": "features", **machine(options.device), "contender": name, "batch": size}
        line |= {"images": len(dataset), "precision": _precision(options), **vars(timing), "images_per_second": rate}
        if name == "features":
            share = times["forward"].median / timing.median
            line |= judged(Goal("share of the bare forward's images a second", share, GOAL))
        lines.append(line)
    return lines


if __name__ == "__main__":
    run(__doc__, {"features": sys.modules[__name__]})
