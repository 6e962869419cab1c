"""Splits that are drawn: whole cases, by seed, with the shares of the classes kept."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from dexcore.evaluate.tasks.spec import DrawnSplit
from dexcore.evaluate.tasks.table import SPLITS


def draw_split(groups: Sequence[str], strata: Sequence[str], drawn: DrawnSplit) -> list[str]:
    """The split of each row: the same for the same groups, strata and seed, in whatever order they stand.

    Each stratum's groups are ordered by a hash of their names and the seed, then dealt to the split that lacks most of
    its share of the images. Where there are enough of them, every split whose share is above 0 gets a group of every
    stratum.

    Args:
        groups: of each row: rows of one group stay together.
        strata: of each row; of a group the one that most of its rows have counts.
        drawn: the shares, and the seed.
    """
    members: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, stratum in zip(groups, strata, strict=True):
        members[group][stratum] += 1
    by_stratum: defaultdict[str, list[str]] = defaultdict(list)
    for group, counts in members.items():
        by_stratum[min(counts, key=lambda stratum: (-counts[stratum], stratum))].append(group)
    split_of: dict[str, str] = {}
    for stratum in sorted(by_stratum):
        names = sorted(by_stratum[stratum], key=lambda group: _hash(drawn.seed, group))
        sizes = {group: members[group].total() for group in names}
        split_of |= _dealt(names, sizes, drawn.fractions)
    return [split_of[group] for group in groups]


def _dealt(names: Sequence[str], sizes: dict[str, int], fractions: tuple[float, float, float]) -> dict[str, str]:
    wanted = dict(zip(SPLITS, fractions, strict=True))
    total = sum(sizes.values())
    held = dict.fromkeys(SPLITS, 0)
    empty = [split for split in ("test", "train", "val") if wanted[split] > 0]
    split_of = {}
    for number, name in enumerate(names):
        left = len(names) - number
        lacking = {split: wanted[split] * total - held[split] for split in SPLITS if wanted[split] > 0}
        split = max(lacking, key=lambda one: lacking[one])
        if empty and left <= len(empty):  # the last ones go where nothing is
            split = empty[0]
        if split in empty:
            empty.remove(split)
        held[split] += sizes[name]
        split_of[name] = split
    return split_of


def _hash(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()
