"""How well copies are found: what is missed of made copies, and what neighbouring slices are taken for one.

    python -m bench.copies STORE [--hashes N]

STORE is any that `dexcore mvu build` made. Up to 40 images of each source, of at least 64 pixels, are changed in each
of the ways below and looked for (missed: beyond `RADIUS` bits, or below the threshold of similarity). All neighbours in
one file (slices of a volume, frames of a video) are compared as if they were of two patients, and of one; and all pairs
of images of different files and groups within the radius are counted by whether they are confirmed: those are to be
looked at. Prints a JSON line. With --hashes, times the search among so many random hashes with 1,000 planted ones too.

``python -m bench`` does the same with drawn images, whose counts say little of real ones, and 200,000 hashes.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from bench.command import Ceilings, Line, Options, Refused, table_row
from bench.contenders import WrongResultError
from bench.timing import machine
from dexcore.data.store import Store, write_store
from dexcore.data.store.copies import LEAST_SIMILAR, LEAST_SIMILAR_IN_GROUP, Pictures, copies_within
from dexcore.data.store.near import RADIUS, HashIndex, similarity
from dexcore.data.store.phash import perceptual_hash
from dexcore.data.synthetic import SyntheticMVU

_A_SOURCE, _LEAST_SIDE = 40, 64
_DRAWN, _QUICK_DRAWN = 40, 10  # images
_HASHES, _QUICK_HASHES = 200_000, 3_000
Image = np.ndarray


def _8_bit(image: Image) -> Image:
    return np.rint(image * (255.0 / np.iinfo(image.dtype).max)).astype(np.uint8)


def _jpeg(image: Image) -> Image:
    encoded = cv2.imencode(".jpg", _8_bit(image), [cv2.IMWRITE_JPEG_QUALITY, 75])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED))


def _rescaled(factor: float) -> Callable[[Image], Image]:
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return lambda image: np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=method))


def _windowed(image: Image) -> Image:
    low, high = np.percentile(image, [2, 98])
    return np.clip((image - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)


def _cropped(share: float) -> Callable[[Image], Image]:
    def crop(image: Image) -> Image:
        height, width = (round(length * share / 2) for length in image.shape[:2])
        return np.ascontiguousarray(image[height : image.shape[0] - height, width : image.shape[1] - width])

    return crop


CHANGES: dict[str, Callable[[Image], Image]] = {
    "8 bit": _8_bit,
    "JPEG quality 75": _jpeg,
    "half the size": _rescaled(0.5),
    "1.5 times the size": _rescaled(1.5),
    "half the size, JPEG quality 75": lambda image: _jpeg(_rescaled(0.5)(image)),
    "windowed at percentiles 2 and 98": _windowed,
    "cropped by 2 %": _cropped(0.02),
    "cropped by 2 %, half the size, JPEG quality 75": lambda image: _jpeg(_rescaled(0.5)(_cropped(0.02)(image))),
    "cropped by 5 %": _cropped(0.05),
}


def _bits(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(first ^ second).sum())


def missed(pictures: Pictures) -> dict[str, dict[str, int]]:
    """Of made copies: how many, and how many are not found, by change."""
    sources = pictures.sources.to_numpy(zero_copy_only=False)
    usable = pictures.shapes.min(axis=1) >= _LEAST_SIDE
    rng = np.random.default_rng(0)
    drawn: list[int] = []
    for source in sorted(set(sources)):
        known = np.flatnonzero((sources == source) & usable)
        drawn += rng.choice(known, min(_A_SOURCE, len(known)), replace=False).tolist()
    counts = {}
    for name, change in CHANGES.items():
        by_hash = by_pixels = 0
        for index in drawn:
            image = pictures.image(index)
            copy = change(image)
            if _bits(np.frombuffer(perceptual_hash(copy), np.uint8), pictures.hashes[index]) > RADIUS:
                by_hash += 1
            elif similarity(copy, image) < LEAST_SIMILAR:
                by_pixels += 1
        counts[name] = {"copies": len(drawn), "missed by the hash": by_hash, "missed by the pixels": by_pixels}
    return counts


def neighbours(pictures: Pictures) -> dict[str, int]:
    """Of neighbouring slices and frames: how many would be taken for copies, were they in two files."""
    usable = pictures.shapes.min(axis=1) >= _LEAST_SIDE
    pairs = [
        index
        for index in range(len(pictures) - 1)
        if pictures.files[index] == pictures.files[index + 1] and usable[index]
    ]
    near = [index for index in pairs if _bits(pictures.hashes[index], pictures.hashes[index + 1]) <= RADIUS]
    alike = [similarity(pictures.image(index), pictures.image(index + 1)) for index in near]
    return {
        "neighbours": len(pairs),
        "within the radius": len(near),
        "confirmed": sum(value >= LEAST_SIMILAR for value in alike),
        "confirmed as of one group": sum(value >= LEAST_SIMILAR_IN_GROUP for value in alike),
    }


def strangers(pictures: Pictures) -> dict[str, int]:
    """Of all images: those within the radius of one of another file and group, and what is found of copies."""
    pairs = 0
    for index, (near, _) in enumerate(HashIndex(pictures.hashes).near(pictures.hashes)):
        other = (pictures.files[near] != pictures.files[index]) & (pictures.groups[near] != pictures.groups[index])
        pairs += int((other & (near < index)).sum())
    count = len(pictures)
    found = len(copies_within(pictures))
    return {"images": count, "pairs": count * (count - 1) // 2, "within the radius": pairs, "found": found}


def search(count: int) -> dict[str, float]:
    """Look for all of ``count`` random hashes, the last 1,000 being 0 to 31 bits from others, among all."""
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    origins = rng.choice(count - 1000, 1000, replace=False)
    for number, origin in enumerate(origins):
        bits = np.unpackbits(hashes[origin])
        bits[rng.choice(256, number % (RADIUS + 1), replace=False)] ^= 1
        hashes[count - 1000 + number] = np.packbits(bits)
    HashIndex(hashes[:1000])  # what it imports is in memory
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    index = HashIndex(hashes)
    made = time.process_time()
    found = 0
    for number, (near, _) in enumerate(index.near(hashes)):
        found += number >= count - 1000 and origins[number - count + 1000] in near
    return {
        "hashes": count,
        "planted": 1000,
        "found": int(found),
        "seconds to index": round(made - start, 2),
        "seconds to search": round(time.process_time() - made, 2),
        "MiB": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
    }


def check(options: Options) -> Refused:
    """The search finds all hashes that were planted within the radius."""
    found = search(_QUICK_HASHES)
    if found["found"] != found["planted"]:
        raise WrongResultError(f"copies: {found['found']} of {found['planted']} planted hashes were found")
    return {}


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """A table of drawn images' changed copies, and the search."""
    with tempfile.TemporaryDirectory() as folder:
        made = SyntheticMVU(size=256)
        drawn = _QUICK_DRAWN if options.quick else _DRAWN
        write_store((made.record(index) for index in range(drawn)), Path(folder) / "store", name="drawn")
        line: Line = {"bench": "copies", **machine(), "of": "synthetic"}
        line |= counts(Pictures.of(Store(Path(folder) / "store")))
    print(table_row("changed copies of drawn images", "copies", "by hash", "by pixels", width=50))
    for name, found in line["missed"].items():
        print(table_row(name, *map(str, found.values()), width=50))
    line["search"] = search(_QUICK_HASHES if options.quick else _HASHES)
    print("search: " + ", ".join(f"{name} {value}" for name, value in line["search"].items()))
    return [line]


def counts(pictures: Pictures) -> dict[str, dict[str, object]]:
    """All that is counted of the images of a store."""
    return {
        "missed": {**missed(pictures)},
        "neighbours": {**neighbours(pictures)},
        "strangers": {**strangers(pictures)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--hashes", type=int, metavar="N")
    arguments = parser.parse_args()
    line: Line = {"bench": "copies", **counts(Pictures.of(Store(arguments.store)))}
    line |= {"search": search(arguments.hashes)} if arguments.hashes else {}
    print(json.dumps(line | {"machine": machine()}))


if __name__ == "__main__":
    main()
