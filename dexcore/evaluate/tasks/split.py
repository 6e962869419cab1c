"""Splits that are drawn: whole cases, by seed, with the shares of the classes kept."""

import hashlib
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

from dexcore.evaluate.tasks.spec import DrawnSplit
from dexcore.evaluate.tasks.table import SPLITS

_MOST_MISSED = 0.05  # of the images, between a share that is asked for and that which is drawn


def draw_split(groups: Sequence[str], strata: Sequence[str], drawn: DrawnSplit) -> list[str]:
    """The split of each row: the same for the same groups, strata and seed, in whatever order they stand.

    Each stratum's groups are ordered by a hash of their names and the seed, then dealt to the split that lacks most of
    its share of the images. Where there are enough of them, every split whose share is above 0 gets a group of every
    stratum; but not where that makes the shares miss: then the small strata are dealt as one.

    Args:
        groups: of each row: rows of one group stay together.
        strata: of each row, one or several with ";" between them, of which the rarest counts; of a group the one that
            most of its rows have.
        drawn: the shares, and the seed.

    Warns:
        UserWarning: a split misses its share by far: there are few groups, or some are large.
    """
    members: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for group, stratum in zip(groups, _rarest(groups, strata), strict=True):
        members[group][stratum] += 1
    sizes = {group: counts.total() for group, counts in members.items()}
    by_stratum: defaultdict[str, list[str]] = defaultdict(list)
    for group in sorted(members, key=lambda group: _hash(drawn.seed, group)):
        counts = members[group]
        by_stratum[min(counts, key=lambda stratum: (-counts[stratum], stratum))].append(group)
    parts = [by_stratum[stratum] for stratum in sorted(by_stratum)]
    split_of: dict[str, str] = {}
    for part in parts:
        split_of |= _dealt([part], sizes, drawn.fractions)
    if _missed(split_of, sizes, drawn.fractions):
        least = 1 / min(share for share in drawn.fractions if share > 0)  # groups that give each split one
        small = [group for part in parts if len(part) < least for group in part]
        pooled = [part for part in parts if len(part) >= least] + ([small] if small else [])
        split_of = _dealt(pooled, sizes, drawn.fractions)
    missed = _missed(split_of, sizes, drawn.fractions)
    if missed:
        warnings.warn(f"the split of {len(sizes)} cases that was drawn has {missed}", stacklevel=2)
    return [split_of[group] for group in groups]


def _rarest(groups: Sequence[str], strata: Sequence[str]) -> list[str]:
    """Of each row's strata that which fewest groups have."""
    parts = [sorted(set(map(str.strip, stratum.split(";")))) for stratum in strata]
    having: defaultdict[str, set[str]] = defaultdict(set)
    for group, names in zip(groups, parts, strict=True):
        for name in names:
            having[name].add(group)
    return [min(names, key=lambda name: len(having[name])) for names in parts]


def _dealt(
    parts: Sequence[Sequence[str]], sizes: dict[str, int], fractions: tuple[float, float, float]
) -> dict[str, str]:
    """The split of each group: part after part, what a split lacks in one is made up for in the next."""
    wanted = {split: share for split, share in zip(SPLITS, fractions, strict=True) if share > 0}
    lacking = dict.fromkeys(wanted, 0.0)
    split_of: dict[str, str] = {}
    for names in parts:
        total = sum(sizes[name] for name in names)
        for split, share in wanted.items():
            lacking[split] += share * total
        empty = [split for split in ("test", "train", "val") if split in wanted]
        for number, name in enumerate(names):
            split = max(wanted, key=lambda one: lacking[one])
            if empty and len(names) - number <= len(empty):  # the last ones go where nothing is
                split = empty[0]
            if split in empty:
                empty.remove(split)
            lacking[split] -= sizes[name]
            split_of[name] = split
    return split_of


def _missed(split_of: dict[str, str], sizes: dict[str, int], fractions: tuple[float, float, float]) -> str:
    """Which shares miss by more than some points and more than a few groups' size explains; empty where none does."""
    total = sum(sizes.values())
    held: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for group, split in split_of.items():
        held[split] += sizes[group]
    allowed = max(_MOST_MISSED * total, 2 * total / len(sizes))
    told = [
        f"{held[split] / total:.0%} of the images in {split}, asked were {share:.0%}"
        for split, share in zip(SPLITS, fractions, strict=True)
        if abs(held[split] - share * total) > allowed
    ]
    return "; ".join(told)


def _hash(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()
