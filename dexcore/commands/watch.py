"""``dexcore watch``: a run on the terminal, while it trains.

Heavy imports wait until the command runs.
"""

import argparse
import sys
from pathlib import Path

_WATCH = (
    "Follow a run from the files in its folder: progress, losses, the use of each block's experts, speed, time to the "
    "end, the last checkpoint, and warnings that say what to do. The run is not disturbed; it may be one of another "
    "machine on a shared disk. Ends with the run, or by Ctrl-C. Where the output is no terminal it prints once."
)


def add_watch_command(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dexcore watch`` to its parser."""
    parser.description = _WATCH
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the folder of a run (its --out)")
    add("--once", action="store_true", help="print where the run stands now, and end")
    add("--interval", type=_seconds, default=2.0, metavar="S", help="seconds between two looks (default: 2)")


def run_watch(arguments: argparse.Namespace) -> int:
    """Run ``dexcore watch``; the return value is the process's."""
    import time

    from dexcore.extras import require
    from dexcore.report.live import Follower, Standing, advise, screen

    console = require("rich.console", "train").Console()
    live = require("rich.live", "train").Live
    follower = Follower(arguments.run)

    def shown() -> object:
        course = follower.read()
        return screen(course, advise(course), console.width)

    if arguments.once or not sys.stdout.isatty():
        console.print(shown())
        return 0
    try:
        with live(shown(), console=console, auto_refresh=False, screen=True) as view:
            while follower.course.standing not in (Standing.FINISHED, Standing.STOPPED):
                time.sleep(arguments.interval)
                view.update(shown(), refresh=True)
    except KeyboardInterrupt:
        pass
    console.print(shown())  # what the terminal keeps
    return 0


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"expected seconds from 0.1 to 3600, got {text}")
    return value
