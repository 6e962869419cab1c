"""The store's codec on one core: milliseconds to decode an image, and its bytes, beside PNG of the same pixels.

    DEXCORE_CORPUS=FOLDER python -m bench.codec

    store           TIFF, Zstandard, predictor: by imagecodecs, as stores are read with the extra train
    store, Pillow   the same bytes by Pillow, as any viewer reads them
    PNG, Pillow     level 1
    PNG, OpenCV     the same bytes, as the usual loader reads them

The images are `bench.feed`'s, from memory. Times are the processor's.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from bench import feed
from bench.augment import one_thread
from bench.command import Ceilings, Goal, Line, Options, Refused, judged, run, table_row
from bench.contenders import WrongResultError
from bench.timing import machine, summary
from dexcore.extras import require

BASELINE = "PNG, Pillow"
GOALS = {"store": 5.0, "store, Pillow": 2.0}  # times as fast as the baseline
_ROUNDS = 7

Decoder = Callable[[int], np.ndarray]


def decoders(contest: feed.Contest) -> dict[str, tuple[Decoder, int]]:
    """What decodes image i, and the bytes of all images."""
    cv2, pillow = require("cv2", "train"), require("PIL.Image", "train")
    stored = [bytes(contest.store.encoded(index)) for index in range(len(contest.files))]
    files = [path.read_bytes() for path in contest.files]

    def by_pillow(data: bytes) -> np.ndarray:
        with pillow.open(io.BytesIO(data)) as image:
            return np.array(image)

    def by_opencv(index: int) -> np.ndarray:
        pixels = cv2.imdecode(np.frombuffer(files[index], np.uint8), cv2.IMREAD_UNCHANGED)
        return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)

    sizes = sum(map(len, stored)), sum(map(len, files))
    return {
        "store": (contest.store.image, sizes[0]),
        "store, Pillow": (lambda index: by_pillow(stored[index]), sizes[0]),
        BASELINE: (lambda index: by_pillow(files[index]), sizes[1]),
        "PNG, OpenCV": (by_opencv, sizes[1]),
    }


def check(options: Options) -> Refused:
    """All decode the same pixels."""
    for kind in feed.GOALS:
        with tempfile.TemporaryDirectory() as folder:
            contest = feed.make_contest(options, kind, folder)
            for name, (decode, _) in decoders(contest).items():
                for index in range(len(contest.files)):
                    if not np.array_equal(decode(index), contest.store.image(index)):
                        raise WrongResultError(f"codec, {kind}: {name} decodes image {index} to other pixels")
    return {}


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """A table a kind of image; each image's time is the median of the rounds', the table's the images' median."""
    lines = []
    for kind in feed.GOALS:
        with tempfile.TemporaryDirectory() as folder, one_thread():
            contest = feed.make_contest(options, kind, folder)
            lines += _table(options, kind, contest)
    return lines


def _table(options: Options, kind: str, contest: feed.Contest) -> list[Line]:
    contenders = decoders(contest)
    count = len(contest.files)
    taken: dict[str, list[list[float]]] = {name: [[] for _ in range(count)] for name in contenders}
    for _ in range(_ROUNDS + 1):  # the first warms up
        for index in range(count):
            for name, (decode, _) in contenders.items():
                began = time.process_time()
                decode(index)
                taken[name][index].append(time.process_time() - began)
    times = {name: summary([statistics.median(rounds[1:]) for rounds in taken[name]]) for name in contenders}
    real = feed.corpus_of(options) is not None
    print(f"{kind}, {count} {'real' if real else 'synthetic'} images")
    print(table_row("", "ms", "p20", "p80", "KB", f"x {BASELINE}", width=18))
    lines = []
    for name, timing in times.items():
        size, speedup = contenders[name][1] / count, times[BASELINE].median / timing.median
        cells = [f"{seconds * 1e3:.3f}" for seconds in vars(timing).values()]
        print(table_row(name, *cells, f"{size / 1e3:.0f}", f"{speedup:.2f}", width=18), flush=True)
        line: Line = {"bench": "codec", **machine(), "kind": kind, "contender": name, **vars(timing)}
        line |= {"images": count, "of": "real" if real else "synthetic", "bytes": round(size), "speedup": speedup}
        if name in GOALS and real:
            goal = Goal(f"times as fast as {BASELINE}", speedup, GOALS[name])
            line |= judged(goal)
        lines.append(line)
    return lines


if __name__ == "__main__":
    run(__doc__, {"codec": sys.modules[__name__]})
