"""How well copies are found: what is missed of made copies, and what neighbouring slices are taken for one.

    python -m bench.copies STORE [--hashes N]

STORE is any that `dexcore mvu build` made. Its images are halved by patients (or volumes): on the images of one half
the thresholds are chosen, by the rules of `chosen`, and what comes out is printed; all counts are of the other half, at
the thresholds of dexcore.data.store.copies. Up to 40 images of each source, of at least 64 pixels, are changed in each
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
_MISSED_SHARE = 0.01
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


def of_half(pictures: Pictures, counted: bool) -> np.ndarray:
    """Whether each image is of the half that is counted, or of that on which the thresholds are chosen."""
    return np.asarray(pictures.groups % 2 == counted)


def made_copies(pictures: Pictures, half: np.ndarray) -> dict[str, np.ndarray]:
    """The similarity of each made copy to its image, by change; NaN where its hash is beyond the radius."""
    usable = pictures.shapes.min(axis=1) >= _LEAST_SIDE
    rng = np.random.default_rng(0)
    drawn: list[int] = []
    for source in range(len(pictures.source_names)):
        known = np.flatnonzero((pictures.sources == source) & usable)
        drawn += rng.choice(known, min(_A_SOURCE, len(known)), replace=False).tolist()
    found: dict[str, list[float]] = {name: [] for name in CHANGES}
    for index in drawn:
        if not half[index]:
            continue
        image = pictures.image(index)
        for name, change in CHANGES.items():
            copy = change(image)
            far = _bits(np.frombuffer(perceptual_hash(copy), np.uint8), pictures.hashes[index]) > RADIUS
            found[name].append(np.nan if far else similarity(copy, image))
    return {name: np.array(values) for name, values in found.items()}


def near_neighbours(pictures: Pictures, half: np.ndarray) -> tuple[int, np.ndarray]:
    """Neighbouring slices and frames: how many pairs, and the similarity of those within the radius."""
    usable = half & (pictures.shapes.min(axis=1) >= _LEAST_SIDE)
    pairs = [
        index
        for index in range(len(pictures) - 1)
        if pictures.files[index] == pictures.files[index + 1] and usable[index]
    ]
    near = [index for index in pairs if _bits(pictures.hashes[index], pictures.hashes[index + 1]) <= RADIUS]
    return len(pairs), np.array([similarity(pictures.image(index), pictures.image(index + 1)) for index in near])


def chosen(pictures: Pictures) -> dict[str, float | None]:
    """The thresholds by the half that is not counted.

    The largest hundredth below which at most 1 % of the made copies within the radius lie (without those cropped by
    5 %, which nobody promises); and, in a group, the smallest multiple of 0.005 above all neighbours.
    """
    half = of_half(pictures, False)
    copies = made_copies(pictures, half)
    promised = np.concatenate([values for name, values in copies.items() if name != "cropped by 5 %"])
    promised = promised[~np.isnan(promised)]
    fit = [step / 100 for step in range(100) if len(promised) and np.mean(promised < step / 100) <= _MISSED_SHARE]
    _, alike = near_neighbours(pictures, half)
    in_group = (int(alike.max() * 200) + 1) / 200 if len(alike) else None
    return {"all": max(fit, default=None), "in a group": in_group}


def missed(pictures: Pictures) -> dict[str, dict[str, int]]:
    """Of made copies: how many, and how many are not found, by change."""
    return {
        name: {
            "copies": len(values),
            "missed by the hash": int(np.isnan(values).sum()),
            "missed by the pixels": int((values < LEAST_SIMILAR).sum()),
        }
        for name, values in made_copies(pictures, of_half(pictures, True)).items()
    }


def neighbours(pictures: Pictures) -> dict[str, int]:
    """Of neighbouring slices and frames: how many would be taken for copies, were they in two files."""
    pairs, alike = near_neighbours(pictures, of_half(pictures, True))
    return {
        "neighbours": pairs,
        "within the radius": len(alike),
        "confirmed": int((alike >= LEAST_SIMILAR).sum()),
        "confirmed as of one group": int((alike >= LEAST_SIMILAR_IN_GROUP).sum()),
    }


def strangers(pictures: Pictures) -> dict[str, int]:
    """Of all images: those within the radius of one of another file and group, and what is found of copies."""
    pairs, half = 0, of_half(pictures, True)
    for index, (near, _) in enumerate(HashIndex(pictures.hashes).near(pictures.hashes)):
        other = (pictures.files[near] != pictures.files[index]) & (pictures.groups[near] != pictures.groups[index])
        pairs += int((other & (near < index) & half[near]).sum()) if half[index] else 0
    count = int(half.sum())
    found = sum(bool(half[copy.index] and half[copy.of]) for copy in copies_within(pictures))
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
        "chosen on the other half": {**chosen(pictures)},
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
