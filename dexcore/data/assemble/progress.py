"""What a person sees while a store is built: one line, on stderr."""

import sys
import time
from collections import Counter
from typing import TextIO

from dexcore.extras import require

_SECONDS_BETWEEN_LINES = 10.0
_MOST_REASONS = 3


class Progress:
    """Files or images done, rate, remaining time, those dropped by reason: a bar on a terminal, else a line at times.

    Args:
        total: of what is counted.
        verb: what is done to it.
        stream: stderr by default.
        unit: what is counted, if not files.
    """

    def __init__(self, total: int, verb: str, stream: TextIO | None = None, unit: str = "file") -> None:
        self._stream = stream or sys.stderr
        self._total, self._verb, self._unit, self._done = total, verb, unit, 0
        self._dropped: Counter[str] = Counter()
        self._began = self._last = time.monotonic()
        self._bar = None
        if self._stream.isatty():
            tqdm = require("tqdm", "train").tqdm
            self._bar = tqdm(total=total, desc=verb, unit=unit, file=self._stream, leave=False, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int = 1, dropped: Counter[str] | None = None) -> None:
        """Count what is done, and what of it was dropped."""
        self._done += done
        self._dropped.update(dropped or {})
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._dropped.most_common(_MOST_REASONS))
        reasons = f"dropped: {reasons}" if reasons else ""
        if self._bar is not None:
            self._bar.set_postfix_str(reasons, refresh=False)
            self._bar.update(done)
            return
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            rate = self._done / (now - self._began)
            left = int((self._total - self._done) / rate) if rate else 0
            counted = f"{self._done}/{self._total} {self._unit}s  {rate:.1f} {self._unit}s/s"
            line = f"{self._verb} {counted}  {left // 60}:{left % 60:02d} left"
            print(f"{line}  {reasons}".rstrip(), file=self._stream, flush=True)
