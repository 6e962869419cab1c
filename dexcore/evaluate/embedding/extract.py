"""Features of images: looked up, and what is missing computed, on one process or on several."""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dexcore.checks import check_whole
from dexcore.data.assemble.progress import Progress
from dexcore.evaluate.embedding.cache import FeatureCache, default_cache, features_key
from dexcore.evaluate.embedding.encode import Features, Model, encode, encoder_of, frozen, mode_now, modes_of
from dexcore.evaluate.embedding.identity import model_hash
from dexcore.evaluate.embedding.images import ImageSource, images_of
from dexcore.evaluate.embedding.models import open_model
from dexcore.evaluate.embedding.table import FeaturesError, FeatureTable
from dexcore.evaluate.embedding.together import Together
from dexcore.evaluate.embedding.view import Preprocessing, declared_preprocessing
from dexcore.models.inputs import slices_of
from dexcore.models.precision import uses_bf16
from dexcore.nn import route_by_rule, rule_of, set_routes
from dexcore.ops.checks import check_choice

_STREAM_ROWS, _STREAM_BYTES, _STREAM_SECONDS = 4096, 1 << 26, 10.0  # a stream is closed at the first of them
_log = logging.getLogger(__name__)


def features(
    model: Model | str | os.PathLike[str], images: Any, *, mode: str | None = None, **options: Any
) -> FeatureTable:
    """The features of images in one mode; `features_by_mode` has the arguments, and the rest.

    Args:
        model: as there.
        images: as there.
        mode: "experts" or "director" of a model with DEX layers; None: the mode that it is in.
        **options: as there.
    """
    if isinstance(model, str | os.PathLike):
        model = open_model(model)
    encoder = encoder_of(model)
    if mode is None:
        mode = mode_now(encoder)
    check_choice("mode", mode, modes_of(encoder))
    return features_by_mode(model, images, modes=(mode,), **options)[mode]


def features_by_mode(
    model: Model | str | os.PathLike[str],
    images: Any,
    *,
    modes: Sequence[str] | None = None,
    tokens: bool = False,
    crop: str = "center",
    preprocessing: Preprocessing | None = None,
    precision: str = "fp32",
    batch_size: int = 64,
    workers: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    key: str | None = None,
    name: str = "",
    skip_unreadable: bool = False,
    progress: bool = False,
) -> dict[str, FeatureTable]:
    """The features of images in several modes, in one pass over the images.

    What the cache holds is not computed: where it holds all, the model does not run. The model computes on the device
    where it is, in evaluation and without gradient; its tensors, its modes and its flags are afterwards as before.
    Where torch.distributed is initialized, every process computes its share, and all get the whole table; they share
    the disk.

    The features of an image do not depend on the batch or the order but for the rounding of sums: in float32 they agree
    within 1e-4 of their root mean square.

    Args:
        model: a folder of dexcore's (a run's, or `save_pretrained`'s), or a module: DEX or any of timm's; an
            autoencoder's encoder is taken. Or a callable, images [B, C, H, W] -> `Features`.
        images: a `Task`, a store, a map-style data set or a list of images; or the path of a task's YAML or a store.
        modes: "experts", "director", or both; None: all that the model has.
        tokens: keep the patch tokens too, in float16.
        crop: "center", as models are evaluated; "whole" squeezes the whole image into the input.
        preprocessing: in the place of what the model declares; ``crop`` is then not looked at.
        precision: "fp32"; "bf16"; "auto", which is bf16 where it is fast.
        batch_size: images a forward.
        workers: processes that read images; None: on a CPU a thread of this process, else up to eight.
        cache: folder; None: ``DEXCORE_CACHE``, else dexcore's folder in the user's folder of caches.
        key: stands for code that is neither torch's, timm's nor dexcore's: a module, function or hook with such code
            is refused without it; of a callable that is no module nothing is kept without it. Change it with the
            code, and with the weights of a callable; a module's are hashed as ever.
        name: of the model, for people.
        skip_unreadable: leave out images that cannot be read, with a warning, in place of an error.
        progress: show it on stderr.

    Returns:
        Mode -> table; the mode of a model without DEX layers is "".

    Raises:
        FeaturesError: an image cannot be read, or its features are not finite; the message names it. What was computed
            before is kept. Or the model does not say how its images are made, or needs a ``key``; or processes were
            given different models, settings or images.
        TypeError, ValueError: an argument is of another kind or out of its range.
        OSError: the cache cannot be written.
    """
    if isinstance(model, str | os.PathLike):
        name = name or str(model)
        model = open_model(model)
    encoder = encoder_of(model)
    modes = modes_of(encoder) if modes is None else tuple(modes)
    for mode in modes:
        check_choice("mode", mode, modes_of(encoder))
    check_choice("precision", precision, ("fp32", "bf16", "auto"))
    check_whole("batch_size", batch_size, 1)
    view = declared_preprocessing(encoder, crop) if preprocessing is None else preprocessing
    device = _device(encoder)
    if workers is None:
        workers = 0 if device.type == "cpu" else min(8, max(1, (os.cpu_count() or 2) - 1))
    check_whole("workers", workers, 0)
    used = "bf16" if uses_bf16(device, precision) else "fp32"
    with Together() as together:
        kept = key is not None or isinstance(encoder, nn.Module)
        not_kept = together.told(lambda: f"not kept {uuid.uuid4()}")
        identity = together.same("model", lambda: _identity(encoder, key) if kept else not_kept)
        folder = default_cache() if cache is None else Path(cache)
        caches = {mode: FeatureCache(folder, features_key(identity, mode, view, used, device)) for mode in modes}
        together.same("view, mode or precision", lambda: [tokens, [cache.key for cache in caches.values()]])
        source = images_of(images, len(view.mean), slices_of(encoder))
        work = _Work(encoder, source, view, used, device, caches, tokens, batch_size, workers, skip_unreadable)
        tables: dict[str, FeatureTable] = {}
        try:
            work.row_keys = together.same("images", lambda: [source.names, work.keys()])[1]
            missing = together.told(work.missing)
            together.done(lambda: work.compute(together.share(missing), progress and together.main))
            # All have read before one removes what is not kept.
            together.done(lambda: tables.update(work.tables(name or type(encoder).__name__)))
            return tables
        finally:
            if not kept:
                together.done(lambda: _remove(caches.values()))


def _identity(model: Model, key: str | None) -> str:
    """What stands for the model in the key of its features."""
    return model_hash(model, key) if isinstance(model, nn.Module) else f"key {key}"


def _remove(caches: Iterable[FeatureCache]) -> None:
    for cache in caches:
        shutil.rmtree(cache.folder, ignore_errors=True)


def _device(model: Model) -> torch.device:
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


@dataclass
class _Work:
    """What is to be computed, and how."""

    model: Model
    source: ImageSource
    view: Preprocessing
    precision: str
    device: torch.device
    caches: dict[str, FeatureCache]
    tokens: bool
    batch_size: int
    workers: int
    skip_unreadable: bool
    row_keys: list[str] = field(default_factory=list)

    def keys(self) -> list[str]:
        """The row keys of all images, "" of those that cannot be read."""
        return [self._row_key(number) for number in range(len(self.source.names))]

    def missing(self) -> list[int]:
        """The numbers of the images whose features are to be computed."""
        for cache in self.caches.values():
            cache.look(self.tokens)
        first = {key: number for number, key in reversed(list(enumerate(self.row_keys)))}  # equal ones once
        lacking = (key for key in first if key and any(key not in cache for cache in self.caches.values()))
        return sorted(first[key] for key in lacking)

    def _row_key(self, number: int) -> str:
        try:
            return self._routed_key(self.source.row_key(number), number)
        except (OSError, ValueError, TypeError) as error:
            self._unreadable(number, error)
            return ""

    def _routed_key(self, key: str, number: int) -> str:
        """With what a routing rule is told of the image: features depend on it too."""
        rule = rule_of(self.model) if isinstance(self.model, nn.Module) else None
        if rule is None or self.caches.keys() <= {"director"}:
            return key
        told = self.source.names[number] if rule.kind == "fixed" else self.source.modality(number)
        return hashlib.sha256(json.dumps([key, told]).encode()).hexdigest()

    def _unreadable(self, number: int, error: Exception) -> None:
        if not self.skip_unreadable:
            raise FeaturesError(f"{self.source.names[number]}: {error}") from error
        _log.warning("left out: %s: %s", self.source.names[number], error)

    def compute(self, numbers: list[int], progress: bool) -> None:
        """Fill the caches with the features of these images."""
        for cache in self.caches.values():
            cache.look(self.tokens)
        writers = {mode: _Writer(cache, self.tokens) for mode, cache in self.caches.items()}
        batches = [numbers[at : at + self.batch_size] for at in range(0, len(numbers), self.batch_size)]
        shown: AbstractContextManager[Progress | None] = nullcontext()
        if progress and numbers:
            shown = Progress(len(numbers), "features of", unit="image")
        with frozen(self.model), shown as bar:
            try:
                for asked, images, unread in _loaded(self.source, self.view, batches, self.workers):
                    for number, error in unread:
                        self._unreadable(number, error)
                    if asked:
                        self._run(asked, images.to(self.device), writers)
                    if bar is not None:
                        bar.update(len(asked) + len(unread))
            finally:
                for writer in writers.values():
                    writer.flush()
                if isinstance(self.model, nn.Module) and rule_of(self.model) is not None:
                    set_routes(self.model, None)

    def _run(self, numbers: list[int], images: Tensor, writers: dict[str, "_Writer"]) -> None:
        keys = [self.row_keys[number] for number in numbers]
        if isinstance(self.model, nn.Module):
            modalities = [self.source.modality(number) for number in numbers]
            try:
                route_by_rule(self.model, [self.source.names[number] for number in numbers], modalities)
            except ValueError as error:
                raise FeaturesError(f"{self.source.names[numbers[0]]}: {error}") from error
        for mode, writer in writers.items():
            if all(key in self.caches[mode] for key in keys):
                continue
            found = encode(self.model, images, mode, self.precision)
            names = [name for name in ("mean", "cls", "gates") if getattr(found, name) is not None]
            finite = torch.stack([getattr(found, name).flatten(1).isfinite().all(1) for name in names]).all(0)
            if not bool(finite.all()):
                bad = [
                    self.source.names[number]
                    for number, sound in zip(numbers, finite.tolist(), strict=True)
                    if not sound
                ]
                raise FeaturesError(f"{bad[0]}: its features are not finite{_more(bad)}; precision is {self.precision}")
            writer.add(keys, found)

    def tables(self, name: str) -> dict[str, FeatureTable]:
        """A table a mode, of all images that could be read."""
        made = {}
        for mode, cache in self.caches.items():
            cache.look(self.tokens)
            rows = [number for number, key in enumerate(self.row_keys) if key and key in cache]
            keys = [self.row_keys[number] for number in rows]
            if not keys:
                raise FeaturesError(f"none of the {len(self.source.names)} images can be read: expected one at least")
            mean = cache.values("mean", keys)
            assert mean is not None
            made[mode] = FeatureTable(
                image=tuple(self.source.names[number] for number in rows),
                mean=mean,
                cls=cache.values("cls", keys),
                gates=cache.values("gates", keys),
                key=cache.key,
                row_key=tuple(keys),
                model=name,
                mode=mode,
                grid=cache.grid(keys) if self.tokens else None,
                crop=self.view.crop,
                _tokens=_TokensOf(cache, keys) if self.tokens else None,
                _token_rows=tuple(range(len(keys))) if self.tokens else (),
            )
        return made


def _more(names: list[str]) -> str:
    return f", and those of {len(names) - 1} more" if len(names) > 1 else ""


@dataclass(frozen=True)
class _TokensOf:
    """The patch tokens of a cache's rows, by number."""

    cache: FeatureCache
    row_keys: list[str]

    def __call__(self, rows: Sequence[int]) -> np.ndarray:
        found = self.cache.values("tokens", [self.row_keys[row] for row in rows])
        assert found is not None or not rows
        return np.empty((0,), np.float16) if found is None else found


class _Writer:
    """Rows of a mode, until they are a stream."""

    def __init__(self, cache: FeatureCache, tokens: bool) -> None:
        self.cache, self.tokens = cache, tokens
        self._clear()

    def _clear(self) -> None:
        self._keys: list[str] = []
        self._values: dict[str, list[np.ndarray]] = {}
        self._bytes, self._began = 0, time.monotonic()

    def add(self, keys: list[str], found: Features) -> None:
        """Take a batch: of rows that are there already nothing is written."""
        new = [row for row, key in enumerate(keys) if key not in self.cache]
        self._keys += [keys[row] for row in new]
        for name in ("mean", "cls", "gates", *(("tokens",) if self.tokens else ())):
            values = getattr(found, name)
            if values is None:
                if name == "tokens":
                    raise FeaturesError("tokens=True, but the model gives no patch tokens")
                continue
            rows = values[new].to(torch.float16 if name == "tokens" else torch.float32).cpu().numpy()
            self._values.setdefault(name, []).append(rows)
            self._bytes += rows.nbytes
        self._grid = found.grid
        full = len(self._keys) >= _STREAM_ROWS or self._bytes >= _STREAM_BYTES
        if full or time.monotonic() - self._began >= _STREAM_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was taken."""
        if self._keys:
            rows = {name: np.concatenate(parts) for name, parts in self._values.items()}
            self.cache.write(self._keys, rows, self._grid)
        self._clear()


_Loaded = tuple[list[int], Tensor, list[tuple[int, Exception]]]


class _Views(Dataset[tuple[int, Tensor | Exception]]):
    """The network's inputs by number; of an image that cannot be read the error, since workers would drop its kind."""

    def __init__(self, source: ImageSource, view: Preprocessing) -> None:
        self.source, self.view = source, view

    def __getitem__(self, number: int) -> tuple[int, Tensor | Exception]:
        try:
            return number, self.view(self.source.image(number))
        except (OSError, ValueError, TypeError) as error:
            return number, error


def _together(items: list[tuple[int, Tensor | Exception]]) -> _Loaded:
    sound = [(number, made) for number, made in items if isinstance(made, Tensor)]
    unread = [(number, made) for number, made in items if isinstance(made, Exception)]
    images = torch.stack([made for _, made in sound]) if sound else torch.empty(0)
    return [number for number, _ in sound], images, unread


def _loaded(source: ImageSource, view: Preprocessing, batches: list[list[int]], workers: int) -> Iterator[_Loaded]:
    """The batches, in order; the next one is read while the model computes."""
    loader: DataLoader[Any] = DataLoader(
        _Views(source, view), batch_sampler=batches, num_workers=workers, collate_fn=_together
    )
    batch = iter(loader)
    if workers:
        yield from batch
        return
    with ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(next, batch, None)
        while (loaded := ahead.result()) is not None:
            ahead = reader.submit(next, batch, None)
            yield loaded
