"""What a person sees while a run goes on."""

import math
import sys
import time
from typing import TextIO

from dexcore.extras import require

_SECONDS_BETWEEN_LINES = 5.0


class ProgressDisplay:
    """A progress bar on a terminal, elsewhere a plain line every few seconds."""

    def __init__(self, first_step: int, total_steps: int, stream: TextIO | None = None) -> None:
        self.total_steps = total_steps
        self._stream = stream or sys.stderr
        self._bar = None
        if self._stream.isatty():
            tqdm = require("tqdm", "train").tqdm
            self._bar = tqdm(total=total_steps, initial=first_step, unit="step", file=self._stream)
        self._first_step, self._started = first_step, time.monotonic()
        self._last_line = -math.inf

    def update(self, step: int, loss: float, images_per_second: float) -> None:
        """Show that ``step`` steps are done."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}, {images_per_second:.0f} images/s", refresh=False)
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES or step == self.total_steps:
            self._last_line = now
            left = (now - self._started) / (step - self._first_step) * (self.total_steps - step)
            self.say(
                f"step {step}/{self.total_steps}  loss {loss:.4f}  {images_per_second:.0f} images/s  "
                f"{int(left) // 60}:{int(left) % 60:02d} left"
            )

    def say(self, message: str) -> None:
        """Print a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(message, file=self._stream)
        else:
            print(message, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
