"""Which experts an image gets by rule, in the place of a router: the controls that routing is compared with."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from dexcore.checks import check_kind, check_whole
from dexcore.ops.checks import check_choice

RULES = ("fixed", "oracle")


@dataclass(frozen=True)
class RoutingRule:
    """How experts are chosen without a router.

    - ``"fixed"``: at random, once and for all: k of R in every layer, by a hash of the image's name and ``seed``. What
      the image shows takes no part.
    - ``"oracle"``: by the image's modality (`oracle_experts`), alike in all layers of one size.

    Attributes:
        kind: "fixed" or "oracle".
        seed: keys the hash of "fixed".
        modalities: the names that "oracle" knows, in the order in which they are given experts.

    Raises:
        TypeError, ValueError: a value is of another kind, or "oracle" has no modality.
    """

    kind: str
    seed: int = 0
    modalities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("rule", self.kind, RULES)
        check_whole("seed", self.seed, 0, 2**64 - 1)
        check_kind("modalities", self.modalities, tuple | list, "a list of names")
        for name in self.modalities:
            check_kind("modalities", name, str, "a list of names")
        object.__setattr__(self, "modalities", tuple(self.modalities))
        if (self.kind == "oracle") != bool(self.modalities):
            raise ValueError(f"modalities must be names with the rule oracle alone, got {self.modalities!r}")

    @classmethod
    def of(cls, value: Any) -> "RoutingRule":
        """A rule, or what `as_dict` gave of one."""
        if isinstance(value, cls):
            return value
        check_kind("rule", value, Mapping, "a RoutingRule, or a dict of its fields")
        return cls(**value)

    def as_dict(self) -> dict[str, Any]:
        """The rule in JSON's words."""
        own = {"seed": self.seed} if self.kind == "fixed" else {"modalities": list(self.modalities)}
        return {"kind": self.kind, **own}

    def choose(
        self, layers: Sequence[tuple[int, int]], names: Sequence[str], modalities: Sequence[str]
    ) -> list[np.ndarray]:
        """The experts of B images.

        Args:
            layers: experts R and chosen ones k of each layer.
            names: of the images, B of them; a name stands for the image wherever it comes.
            modalities: of the images, B names.

        Returns:
            int64 [B, k] a layer.

        Raises:
            ValueError: a modality that the rule does not know.
        """
        if self.kind == "oracle":
            places = [self._place(name) for name in modalities]
            return [oracle_experts(len(self.modalities), *layer)[places] for layer in layers]
        drawn = [self._ranks(name, sum(experts for experts, _ in layers)) for name in names]
        values = np.array(drawn).reshape(len(names), -1)
        ends = np.cumsum([experts for experts, _ in layers])
        cut = np.split(values, ends[:-1], axis=1)
        return [np.argsort(own, axis=1, kind="stable")[:, :k] for own, (_, k) in zip(cut, layers, strict=True)]

    def _place(self, modality: str) -> int:
        if modality not in self.modalities:
            raise ValueError(
                f"modality: {modality!r} is none of those whose experts the model has: {', '.join(self.modalities)} "
                "(it is routed by modality)"
            )
        return self.modalities.index(modality)

    def _ranks(self, name: str, numbers: int) -> np.ndarray:
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little"))).random(numbers)


@cache
def oracle_experts(modalities: int, experts: int, top_k: int) -> np.ndarray:
    """The experts of each modality: int64 [modalities, top_k], ascending.

    One modality after the other takes those that the fewest have so far; of these a set that no other has, of lowest
    numbers. With ten modalities, eight experts and two an image: 0 1, 2 3, 4 5, 6 7, then 0 2, 1 3, 4 6, 5 7, then
    0 3, 1 2: no two modalities have the same two, and no expert has more than one modality more than another.
    """
    shared, taken = [0] * experts, set[tuple[int, ...]]()
    found = []
    for _ in range(modalities):
        limit = sorted(shared)[top_k - 1]
        sure = [expert for expert in range(experts) if shared[expert] < limit]
        tied = [expert for expert in range(experts) if shared[expert] == limit]
        sets = (tuple(sorted((*sure, *some))) for some in combinations(tied, top_k - len(sure)))
        first = tuple(sorted((*sure, *tied[: top_k - len(sure)])))
        own = next((one for one in sets if one not in taken), first)
        taken.add(own)
        found.append(own)
        for expert in own:
            shared[expert] += 1
    return np.array(found, dtype=np.int64).reshape(modalities, top_k)
