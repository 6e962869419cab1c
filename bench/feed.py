"""The feed on one core: images per second from the store to the collated batch, without a cache.

    DEXCORE_CORPUS=FOLDER python -m bench.feed

    dexcore     a store's encoded image: decoded, augmented, with the draws of a training step (PretrainView)
    usual       one PNG of level 1 a file: cv2.imread, to float32, crop, resize by INTER_AREA, flip, warpAffine
    floor       what dexcore does, with the image decoded already

To 256 x 256, float32, normalized, collated to batches: dexcore's by its collate, the usual ones by torch's. A batch is
one image in 16 draws, the same for all. Times are the processor's, of all threads of the process: what else runs on the
machine adds little. The files lie in the page cache. Of every kind of image there are 60 real ones as a build stores
them, by turns of the modalities that have the kind, the shorter side from 256 to 512 pixels: in smaller ones there is
less to decode than to draw.
Without DEXCORE_CORPUS, or with --quick, they are synthetic, and there are no goals.

Then the laptop preset's whole step on images of 512 pixels beside that on its sample images (`bench.preset`).
"""

import csv
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import default_collate

from bench.augment import one_thread, published_chain
from bench.command import Ceilings, Goal, Line, Options, Refused, judged, run, table_row
from bench.contenders import WrongResultError
from bench.preset import measure_store
from bench.timing import Timing, machine, summary
from dexcore.data.assemble.slices import slices
from dexcore.data.feed.augment import to_tensor
from dexcore.data.feed.dataset import MVUDataset, open_mvu
from dexcore.data.feed.keyed import Stream, generator
from dexcore.data.feed.pretrain_view import PretrainView, collate
from dexcore.data.modality import Modality
from dexcore.data.normalize import normalize
from dexcore.data.readers import UnreadableFileError, read_file
from dexcore.data.record import ImageRecord
from dexcore.data.store import Store, write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.extras import MissingExtraError, require

GOALS = {"gray": 4.0, "gray, 16 bit": 4.0, "RGB": 3.0}  # times the images per second of the usual path
_IMAGES, _QUICK_IMAGES, _SIZE, _MAX_SIDE = 60, 4, 256, 512
_SEED, _BATCH, _ROUNDS = 133, 16, 5  # every image's batch is timed in each round
_PATCHES, _ROUTERS = (_SIZE // 16) ** 2, [8] * 12
_NORMALIZATIONS = {Modality.CT: "hu_window", Modality.MR: "percentile_minmax"}
_MODALITIES = {
    "gray": (Modality.XRAY, Modality.ULTRASOUND, Modality.OCT),
    "gray, 16 bit": (Modality.CT, Modality.MR),  # PET is smaller
    "RGB": (Modality.FUNDUS, Modality.PATHOLOGY, Modality.ENDOSCOPY, Modality.PHOTO),
}

Batch = dict[str, Any]
Contender = Callable[[list[tuple[int, int]]], Batch]  # of epochs and images


class _Decoded(MVUDataset):
    """A store whose images are decoded already."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._images = [MVUDataset.read(self, index) for index in range(len(self))]

    def read(self, index: int) -> np.ndarray:
        return self._images[index]


def corpus_records(folder: Path, kind: str, count: int) -> list[ImageRecord]:
    """The first images of a kind that a build would keep, by turns of its modalities."""
    turns = zip_longest(*(_records(folder, modality, kind) for modality in _MODALITIES[kind]))
    found = (record for record in chain.from_iterable(turns) if record is not None)
    records = [record for record, _ in zip(found, range(count), strict=False)]
    if len(records) < count:
        raise FileNotFoundError(f"{folder} has {len(records)} images of the kind {kind}, expected {count}")
    return records


def _records(folder: Path, modality: Modality, kind: str) -> Iterator[ImageRecord]:
    """The corpus's images of a modality, as its tables of labels list them, in an order that mixes their sources."""
    paths = []
    for table in sorted((folder / "labels").glob("*.csv")):
        with table.open(encoding="utf-8", newline="") as file:
            paths += [row["path"] for row in csv.DictReader(file) if row["path"].split("/")[0] == modality]
    method = _NORMALIZATIONS.get(modality, "div255")
    for place in np.random.default_rng(_SEED).permutation(len(paths)).tolist():
        try:
            scan = read_file(folder / paths[place])
        except UnreadableFileError:  # what lies beside the images: a slide, a kind that an extra reads
            continue
        pixels = normalize(scan.pixels, method, scan.levels)
        frames = list(slices(pixels, 2)) if scan.layout == "volume" else list(pixels)
        image = frames[len(frames) // 2]
        if image.ndim == 3 and (image == image[..., :1]).all():
            image = image[..., 0]
        if (image.ndim == 3) == (kind == "RGB") and min(image.shape[:2]) >= _SIZE:
            image = np.ascontiguousarray(image)
            yield ImageRecord(image, modality, "corpus", "", method, paths[place], paths[place])


def _synthetic_records(kind: str, count: int) -> list[ImageRecord]:
    source = SyntheticMVU(_MODALITIES[kind], size=_MAX_SIDE)
    return [source.record(index) for index in range(count)]


def corpus_of(options: Options) -> Path | None:
    """The corpus that the images are from; None: they are synthetic."""
    corpus = os.environ.get("DEXCORE_CORPUS")
    return Path(corpus) if corpus and not options.quick else None


class Contest:
    """The contenders over the same images: a store, and a folder of PNG files."""

    def __init__(self, folder: Path, records: list[ImageRecord]) -> None:
        cv2 = require("cv2", "train")
        write_store(records, folder / "store", name="feed", max_side=_MAX_SIDE)
        self.dataset, self.store = open_mvu(folder / "store"), Store(folder / "store")
        self.files = [folder / f"{index}.png" for index in range(len(self.dataset))]
        for index, file in enumerate(self.files):
            pixels = self.dataset.read(index)
            pixels = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(file), pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        arguments = (np.arange(len(self.dataset)), _SIZE, _SEED, _PATCHES, _ROUTERS)
        view, floor = PretrainView(self.dataset, *arguments), PretrainView(_Decoded(folder / "store"), *arguments)
        self.contenders: dict[str, Contender] = {
            "dexcore": lambda keys: collate(view.__getitems__(keys)),
            "usual": lambda keys: default_collate([self.usual(*key) for key in keys]),
            "floor": lambda keys: collate(floor.__getitems__(keys)),
        }

    def usual(self, epoch: int, index: int) -> dict[str, Any]:
        image = published_chain(self.read_png(index), _SIZE, generator(_SEED, epoch, index, Stream.AUGMENT))
        return {"image": to_tensor(image), "sample_id": index}

    def read_png(self, index: int) -> np.ndarray:
        cv2 = require("cv2", "train")
        pixels = cv2.imread(str(self.files[index]), cv2.IMREAD_UNCHANGED)
        return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def make_contest(options: Options, kind: str, folder: str) -> Contest:
    """The images of a kind, in a folder."""
    count, corpus = _QUICK_IMAGES if options.quick else _IMAGES, corpus_of(options)
    records = corpus_records(corpus, kind, count) if corpus else _synthetic_records(kind, count)
    return Contest(Path(folder), records)


def check(options: Options) -> Refused:
    """Both ways decode the same pixels, and make the same view of them but for how they shrink it."""
    with one_thread():
        for kind in GOALS:
            with tempfile.TemporaryDirectory() as folder:
                contest = make_contest(options, kind, folder)
                for index in range(len(contest.files)):
                    if not np.array_equal(contest.dataset.read(index), contest.read_png(index)):
                        raise WrongResultError(f"feed, {kind}: image {index} is decoded to other pixels than its PNG")
                    ours, usual, floor = (call([(0, index)])["image"] for call in contest.contenders.values())
                    error = float((ours - usual).abs().mean())
                    if not error <= 0.1 or not ours.equal(floor):  # of values whose standard deviation is about 1
                        raise WrongResultError(f"feed, {kind}: image {index} is {error:.2g} off, allowed 0.1")
    return {}


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """A table a kind of image; each image's time is the median of the rounds', the table's the images' median."""
    lines = []
    for kind in GOALS:
        with tempfile.TemporaryDirectory() as folder, one_thread():
            contest = make_contest(options, kind, folder)
            times = {name: summary(seconds) for name, seconds in _seconds(contest).items()}
            lines += _report(options, kind, contest, times)
    try:
        lines += measure_store(options)
    except MissingExtraError as error:
        print(f"skipped: the laptop preset, since {error}")
    return lines


def _seconds(contest: Contest) -> dict[str, list[float]]:
    """Seconds an image takes in its batch, for every image; the contenders take turns."""
    taken: dict[str, list[list[float]]] = {name: [[] for _ in contest.files] for name in contest.contenders}
    for _ in range(_ROUNDS + 1):  # the first warms up
        for index in range(len(contest.files)):
            keys = [(epoch, index) for epoch in range(_BATCH)]
            for name, call in contest.contenders.items():
                began = time.process_time()
                call(keys)
                taken[name][index].append((time.process_time() - began) / _BATCH)
    return {name: [statistics.median(rounds[1:]) for rounds in images] for name, images in taken.items()}


def _report(options: Options, kind: str, contest: Contest, times: dict[str, Timing]) -> list[Line]:
    count, corpus = len(contest.files), corpus_of(options)
    sizes = [contest.dataset.read(index).shape[:2] for index in range(count)]
    height, width = (int(statistics.median(side)) for side in zip(*sizes, strict=True))
    stored = sum(shard.size for shard in contest.store.manifest.shards) / count
    files = sum(file.stat().st_size for file in contest.files) / count
    of = "real" if corpus else "synthetic"
    print(
        f"{kind}, {count} {of} images, median {height} x {width} to {_SIZE}; KB an image: store {stored / 1e3:.0f}, "
        f"PNG {files / 1e3:.0f}"
    )
    print(table_row("", "ms", "p20", "p80", "images/s", "x usual"))
    lines = []
    for name, timing in times.items():
        speedup = times["usual"].median / timing.median
        cells = [f"{seconds * 1e3:.3f}" for seconds in vars(timing).values()]
        print(table_row(name, *cells, f"{1 / timing.median:.0f}", f"{speedup:.2f}"), flush=True)
        line: Line = {"bench": "feed", **machine(), "cv2": require("cv2", "train").__version__}
        line |= {"imagecodecs": require("imagecodecs", "train").__version__, "kind": kind, "images": count, "of": of}
        line |= {"height": height, "width": width, "size": _SIZE, "contender": name, **vars(timing)}
        line |= {"images_per_second": 1 / timing.median, "speedup": speedup}
        line |= {"store_bytes": round(stored), "png_bytes": round(files)}
        if name == "dexcore" and corpus:
            goal = Goal("times the images per second of the usual path", speedup, GOALS[kind])
            line |= judged(goal)
        lines.append(line)
    return lines


if __name__ == "__main__":
    run(__doc__, {"feed": sys.modules[__name__]})
