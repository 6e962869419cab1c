"""Which hashes lie near each other, and whether two images show the same picture: the arithmetic of `copies`."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from dexcore.extras import require

RADIUS = 31  # bits of 256
# Of sixteen parts of 16 bits, one differs by at most a bit where 31 bits differ in all.
_PARTS, _PART_BITS = 16, 16
_FLIPS = np.array([0, *(1 << bit for bit in range(_PART_BITS))], np.uint16)
_QUERIES, _HASHES = 64, 512  # of a block, whose temporaries stay small
_FROM_HASHES = 20_000  # below it, all are compared faster than tables are made
_CANDIDATES = 1 << 14  # compared at a time
_SHARE = 16  # a query with more candidates than this part of all hashes is compared with all

_SIDE = 128  # pixels at which images are compared
_BORDER = 6  # what an alignment may move into the image
_FINE, _COARSE = 1.0, 4.0  # pixels: smaller details are noise, larger ones brightness
_HOPELESS = 0.2  # images of less correlation are not aligned
_STEPS, _PRECISION = 30, 1e-4  # of an alignment
_MAYBE_CUT = 0.8  # correlation of a piece with its place
_SMALLEST_CROP = 0.3  # of the side that was cut


class HashIndex:
    """Finds the hashes at most `RADIUS` bits away; it takes 64 bytes a hash beside them.

    Many hashes are sorted by each of their parts, and only those compared that share one with the query, but for a bit.

    Args:
        hashes: uint8 [n, 32].
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = np.ascontiguousarray(hashes)
        self._tables = _Tables(self._hashes) if len(hashes) >= _FROM_HASHES else None

    def near(self, queries: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Search for each of the queries, uint8 [q, 32].

        Yields:
            For each, in order: the numbers of the hashes near it, by distance, then by number; and the distances.
        """
        for start in range(0, len(queries), _QUERIES):
            block = np.ascontiguousarray(queries[start : start + _QUERIES])
            who, near, far = self._tables.search(block) if self._tables else _compared(block, self._hashes)
            order = np.lexsort((near, far, who))
            near, far = near[order], far[order].astype(np.int64)
            ends = np.searchsorted(who[order], np.arange(len(block) + 1))
            for first, last in pairwise(ends):
                yield near[first:last], far[first:last]


class _Tables:
    """The numbers of hashes, for each part in the order of its values.

    Args:
        hashes: uint8 [n, 32], contiguous.
    """

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = hashes
        parts = hashes.view(np.uint16)
        self._order = np.empty((_PARTS, len(hashes)), np.uint32)
        self._starts = np.zeros((_PARTS, (1 << _PART_BITS) + 1), np.uint32)  # in its order, of each value
        for part in range(_PARTS):
            self._order[part] = np.argsort(parts[:, part], kind="stable")
            np.cumsum(np.bincount(parts[:, part], minlength=1 << _PART_BITS), out=self._starts[part, 1:])

    def search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_compared`."""
        parts = np.arange(_PARTS)[:, None]
        values = queries.view(np.uint16)[:, :, None] ^ _FLIPS  # [queries, parts, flips]
        starts = self._starts[parts, values].astype(np.int64)
        counts = self._starts[parts, values.astype(np.int64) + 1] - starts
        starts += parts * len(self._hashes)
        each = counts.sum(axis=(1, 2))
        many = each > len(self._hashes) // _SHARE
        who, near, far = _compared(np.ascontiguousarray(queries[many]), self._hashes)
        found = [(np.flatnonzero(many)[who], near, far)]
        few = np.flatnonzero(~many)
        for block in np.split(few, np.flatnonzero(np.diff(np.cumsum(each[few]) // _CANDIDATES)) + 1):
            if len(block):
                found.append(self._candidates(queries, block, starts[block].ravel(), counts[block].ravel()))
        who, near, far = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return who, near, far

    def _candidates(
        self, queries: np.ndarray, block: np.ndarray, starts: np.ndarray, counts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the hashes in some ranges of all orders, as many for each query of a block, those near it."""
        ends = np.cumsum(counts)
        places = np.arange(ends[-1]) + np.repeat(starts - (ends - counts), counts)
        near = self._order.ravel()[places].astype(np.int64)
        who = np.repeat(block, counts.reshape(len(block), -1).sum(axis=1))
        far = np.bitwise_count(queries.view(np.uint64)[who] ^ self._hashes.view(np.uint64)[near]).sum(axis=1)
        fit = far <= RADIUS
        # One that shares several parts is met several times.
        pairs, first = np.unique(who[fit] * len(self._hashes) + near[fit], return_index=True)
        return pairs // len(self._hashes), pairs % len(self._hashes), far[fit][first]


def _compared(queries: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The numbers of queries, of hashes near them, and how many bits those differ in."""
    words = queries.view(np.uint64)
    found: list[tuple[np.ndarray, ...]] = [(np.zeros(0, np.int64),) * 3]
    for start in range(0, len(hashes), _HASHES):
        block = np.ascontiguousarray(hashes[start : start + _HASHES]).view(np.uint64)
        far = np.zeros((len(words), len(block)), np.uint16)
        for word in range(words.shape[1]):
            far += np.bitwise_count(words[:, word, None] ^ block[None, :, word])
        who, near = np.nonzero(far <= RADIUS)
        found.append((who, near + start, far[who, near]))
    who, near, far = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return who, near, far


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Tell how far two images show the same: the correlation of their details, after an affine alignment.

    Details are what lies between 1 and 4 pixels when both are scaled to 128 x 128; brightness and contrast do not
    count.

    Args:
        first, second: uint8 [H, W] or [H, W, 3], or uint16 [H, W]; of any sizes.

    Returns:
        -1 to 1; 0 where one of them is constant.
    """
    return _aligned(_square(_gray(first)), _square(_gray(second)))


def cut_similarity(first: np.ndarray, second: np.ndarray) -> float:
    """As `similarity`, where one image may be a piece of the other, cut across its full width or height.

    The piece is found by its correlation with each place of the whole.
    """
    cv2 = require("cv2", "train")
    first, second = _gray(first), _gray(second)
    by_width = [image.shape[0] / image.shape[1] for image in (first, second)]
    if by_width[0] > by_width[1]:
        first, second = second, first
    best = 0.0
    for turned in (False, True):  # cut in height; then in width, where the longer is the piece
        piece, whole = (second.T, first.T) if turned else (first, second)
        lengths = [max(1, round(_SIDE * image.shape[0] / image.shape[1])) for image in (piece, whole)]
        if lengths[0] < _SMALLEST_CROP * lengths[1] or lengths[1] > 8 * _SIDE:
            continue
        small, large = (
            cv2.resize(np.ascontiguousarray(image), (_SIDE, length), interpolation=cv2.INTER_AREA)
            for image, length in zip((piece, whole), lengths, strict=True)
        )
        # A quarter of the size says in a twentieth of the time of most pairs that they are none.
        if _best_match(*(cv2.resize(image, None, fx=0.25, fy=0.25) for image in (large, small)))[0] < _MAYBE_CUT:
            continue
        _, place = _best_match(_details(large), _details(small))
        best = max(best, _aligned(_square(small), _square(large[place : place + lengths[0]])))
    return best


def _best_match(whole: np.ndarray, piece: np.ndarray) -> tuple[float, int]:
    """The largest correlation of a piece with a place of the same width, and the place."""
    cv2 = require("cv2", "train")
    found = np.nan_to_num(cv2.matchTemplate(whole, piece, cv2.TM_CCOEFF_NORMED), nan=-1.0)
    return float(found.max()), int(np.argmax(found))


def _gray(image: np.ndarray) -> np.ndarray:
    """float32 in [0, 1], [H, W]."""
    cv2 = require("cv2", "train")
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image
    return gray.astype(np.float32) / np.float32(np.iinfo(image.dtype).max)


def _square(image: np.ndarray) -> np.ndarray:
    cv2 = require("cv2", "train")
    return cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)


def _details(image: np.ndarray) -> np.ndarray:
    cv2 = require("cv2", "train")
    return cv2.GaussianBlur(image, (0, 0), _FINE) - cv2.GaussianBlur(image, (0, 0), _COARSE)


def _aligned(first: np.ndarray, second: np.ndarray) -> float:
    cv2 = require("cv2", "train")
    plain = _correlation(first, second)
    if plain < _HOPELESS:
        return plain
    motion = np.eye(2, 3, dtype=np.float32)
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, _STEPS, _PRECISION)
    try:
        _, motion = cv2.findTransformECC(first, second, motion, cv2.MOTION_AFFINE, criteria, None, 5)
    except cv2.error:  # they do not come together
        return plain
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    moved = cv2.warpAffine(second, motion, (_SIDE, _SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return max(plain, _correlation(first, moved))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    inside = slice(_BORDER, -_BORDER)
    one, other = (_details(image)[inside, inside].astype(np.float64) for image in (first, second))
    one, other = one - one.mean(), other - other.mean()
    size = np.sqrt((one * one).sum() * (other * other).sum())
    return float((one * other).sum() / size) if size > 1e-9 else 0.0
