"""What must be known of the numbers of a task, said once: of all models, of some, of some of their trainings."""

from collections import Counter
from collections.abc import Sequence
from typing import Protocol

NOT_BEATEN = "does not beat "  # begins a flag; after its colon stands by how much, which every training has its own of


class Flagged(Protocol):
    """Numbers of a model."""

    @property
    def model(self) -> str:
        """Its name."""

    @property
    def flags(self) -> Sequence[str]:
        """What a reader must know."""


def flags_of_task(task: str, found: Sequence[Flagged]) -> list[str]:
    """What the numbers of a task say: ``task: flag`` where all say it, else ``task, model, model: flag``.

    A model that was trained several times has a count where not all of its trainings say it:
    ``task, model (2 of 5 trainings): flag``.

    Args:
        task: the name that goes before; "" for none.
        found: all numbers of the task.
    """
    trainings = Counter(one.model for one in found)
    said: dict[str, Counter[str]] = {}
    for one in found:
        several = trainings[one.model] > 1
        shown = (_without_numbers(flag) if several else flag for flag in one.flags)
        for flag in dict.fromkeys(shown):
            said.setdefault(flag, Counter())[one.model] += 1
    told = []
    for flag, by in said.items():
        of = [] if by == trainings else [_counted(model, count, trainings[model]) for model, count in by.items()]
        told.append(": ".join(filter(None, (", ".join(filter(None, [task, *of])), flag))))
    return told


def _without_numbers(flag: str) -> str:
    return flag.partition(":")[0] if flag.startswith(NOT_BEATEN) else flag


def _counted(model: str, count: int, trainings: int) -> str:
    return model if count == trainings else f"{model} ({count} of {trainings} trainings)"
