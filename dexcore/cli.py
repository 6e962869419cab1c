"""The command ``dexcore``: what is done with a run's folder, by name.

    dexcore report RUN      make the report of a run again, from the numbers in its folder

Pre-training itself is ``python examples/pretrain_mvu.py``. Returns 0 when done, 2 after an error, told in a line on
stderr.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dexcore.extras import MissingExtraError

EXIT_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's); the return value is the process's."""
    parser = argparse.ArgumentParser(prog="dexcore", description="Director-Experts vision transformers.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    report = commands.add_parser(
        "report",
        help="make a run's report again, from the numbers in its folder",
        description="Write report.html, its pictures and summary.json into a run's folder, from the numbers that the "
        "run left there: metrics.jsonl, similarity.jsonl, config.yaml, evaluation.npz, analysis.npz. Needs no model, "
        "no image and no network. Of a run that is under way, was stopped or has diverged, it shows what there is.",
    )
    report.add_argument("run", type=Path, metavar="RUN", help="the folder of a run (its --out)")
    arguments = parser.parse_args(argv)
    try:
        return _report(arguments.run)
    except (MissingExtraError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR


def _report(run: Path) -> int:
    from dexcore.report import build_report, is_unfinished, report_unfinished

    found = report_unfinished(run) if is_unfinished(run) else build_report(run)
    print("\n".join(found.lines()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
