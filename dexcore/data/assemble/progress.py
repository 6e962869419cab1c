"""What a person sees while a store is built: one line, on stderr."""

import sys
import time
from collections import Counter
from typing import TextIO

from dexcore.extras import require

_SECONDS_BETWEEN_LINES = 10.0
_MOST_REASONS = 3


class Progress:
    """Files done, rate, remaining time, images kept and dropped by reason: a bar on a terminal, else a line at times.

    Args:
        total: files.
        verb: what is done to them.
        stream: stderr by default.
    """

    def __init__(self, total: int, verb: str, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._total, self._verb, self._done = total, verb, 0
        self._dropped: Counter[str] = Counter()
        self._began = self._last = time.monotonic()
        self._bar = None
        if self._stream.isatty():
            tqdm = require("tqdm", "train").tqdm
            self._bar = tqdm(total=total, desc=verb, unit="file", file=self._stream, leave=False, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, files: int, dropped: Counter[str] | None = None) -> None:
        """Count files that are done, and what of them was dropped."""
        self._done += files
        self._dropped.update(dropped or {})
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._dropped.most_common(_MOST_REASONS))
        reasons = f"dropped: {reasons}" if reasons else ""
        if self._bar is not None:
            self._bar.set_postfix_str(reasons, refresh=False)
            self._bar.update(files)
            return
        now = time.monotonic()
        if now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            rate = self._done / (now - self._began)
            left = int((self._total - self._done) / rate) if rate else 0
            line = (
                f"{self._verb} {self._done}/{self._total} files  {rate:.1f} files/s  {left // 60}:{left % 60:02d} left"
            )
            print(f"{line}  {reasons}".rstrip(), file=self._stream, flush=True)
