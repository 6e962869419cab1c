"""``dexcore report``: the report of a run again, from the numbers in its folder.

Heavy imports wait until the command runs.
"""

import argparse
from pathlib import Path

_REPORT = (
    "Write report.html, its pictures and summary.json into a run's folder, from the numbers that the run left there: "
    "metrics.jsonl, similarity.jsonl, config.yaml, evaluation.npz, analysis.npz, and the last two of before training, "
    "evaluation_step0.npz and analysis_step0.npz. Needs no model, no image and no network. Of a run that is under way, "
    "was stopped or has diverged, it shows what there is."
)


def add_report_command(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dexcore report`` to its parser."""
    parser.description = _REPORT
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run (its --out)")


def run_report(arguments: argparse.Namespace) -> int:
    """Run ``dexcore report``; the return value is the process's."""
    from dexcore.report import build_report, is_unfinished, report_unfinished

    run: Path = arguments.run
    found = report_unfinished(run) if is_unfinished(run) else build_report(run)
    print("\n".join(found.lines()))
    return 0
