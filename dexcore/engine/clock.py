"""The time of a step by its parts, measured without waiting for the device."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StepClock:
    """Adds up how long the parts of a step take.

    On an accelerator its own events stand at the borders of a part; they are read once the device has come to them, and
    so may be told with a later step. Elsewhere a part has taken its time when it returns.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._pending: list[tuple[str, Any, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done inside as ``name``."""
        if self._cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._pending.append((name, begin, end))
        else:
            begun = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begun

    def add(self, name: str, seconds: float) -> None:
        """Count what was measured elsewhere."""
        self._seconds[name] += seconds

    def read(self) -> dict[str, float]:
        """The seconds of each part since the last call, as far as they are known; none is told twice."""
        left = []
        for name, begin, end in self._pending:
            if end.query():
                self._seconds[name] += begin.elapsed_time(end) / 1000
            else:
                left.append((name, begin, end))
        self._pending = left
        found, self._seconds = dict(self._seconds), defaultdict(float)
        return found
