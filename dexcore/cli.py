"""The command ``dexcore``: stores of images, pre-training, and what is done with a run's folder, by name.

    dexcore pretrain [FLAGS]    pre-train, as examples/pretrain_mvu.py does
    dexcore mvu COMMAND         make a store of images from folders, check it, look at it
    dexcore eval COMMAND        tasks with labels: make and check them, score predictions
    dexcore finetune TASK MODEL train a model on a task, predict its test images, score them
    dexcore embed FOLDER        write a model's features of all images in a folder
    dexcore predict IMAGE       labels or masks of images, by a fine-tuned model
    dexcore export RUN          write the model of a run's checkpoint
    dexcore plan --gpus N       predict what a run on many GPUs takes
    dexcore watch RUN           follow a run on the terminal while it trains
    dexcore report RUN          make the report of a run again, from the numbers in its folder
    dexcore --version           the versions of dexcore, torch and triton

Under torchrun: ``torchrun --nproc-per-node 2 --no-python dexcore pretrain``. Returns 0 when done, 2 after an error,
told in a line on stderr, 75 where a signal stopped a training.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from dexcore.commands.eval import add_eval_commands, run_eval
from dexcore.commands.eval_features import add_embed_command, run_embed
from dexcore.commands.export import add_export_command, run_export
from dexcore.commands.mvu import add_commands, run_mvu
from dexcore.commands.plan import add_plan_command, run_plan
from dexcore.commands.predict import add_predict_command, run_predict
from dexcore.commands.report import add_report_command, run_report
from dexcore.commands.watch import add_watch_command, run_watch
from dexcore.extras import MissingExtraError

EXIT_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's); the return value is the process's."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["pretrain"]:  # its flags are not argparse's
        from dexcore.train.command import main as pretrain

        return pretrain(argv[1:], "dexcore pretrain")
    if "finetune" in argv[:1] or argv[:2] == ["eval", "finetune"]:
        from dexcore.commands.finetune import main as finetune

        return finetune(argv[argv.index("finetune") + 1 :], "dexcore finetune")
    arguments = _parser().parse_args(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # whoever reads has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        return 0
    except (MissingExtraError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "mvu":
        return run_mvu(arguments)
    if arguments.command == "eval":
        return run_eval(arguments)
    if arguments.command == "embed":
        return run_embed(arguments)
    if arguments.command == "predict":
        return run_predict(arguments)
    if arguments.command == "export":
        return run_export(arguments)
    if arguments.command == "plan":
        return run_plan(arguments)
    if arguments.command == "watch":
        return run_watch(arguments)
    return run_report(arguments)


def versions() -> str:
    """One line: what a bug report begins with."""
    import torch

    import dexcore

    try:
        import triton
    except ImportError:
        kernels = "no triton"
    else:
        kernels = f"triton {triton.__version__}"
    python = ".".join(map(str, sys.version_info[:3]))
    return f"dexcore {dexcore.__version__}, torch {torch.__version__}, {kernels}, python {python}"


class _Version(argparse.Action):
    """argparse's own action wants the text before anyone asked for it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(versions())
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dexcore", description="Director-Experts vision transformers.")
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="show the versions of dexcore, torch and triton, and exit"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser(
        "pretrain",
        help="pre-train a Director-Experts vision transformer on medical images",
        add_help=False,
    )
    commands.add_parser("finetune", help="train a model on a task, predict its test images, score them", add_help=False)
    mvu = commands.add_parser("mvu", help="make a store of images from folders, check it, look at it")
    add_commands(mvu)
    add_eval_commands(commands.add_parser("eval", help="tasks with labels: make and check them, score predictions"))
    add_embed_command(commands.add_parser("embed", help="write a model's features of all images in a folder"))
    add_predict_command(commands.add_parser("predict", help="labels or masks of images, by a fine-tuned model"))
    add_export_command(commands.add_parser("export", help="write the model of a run's checkpoint"))
    add_plan_command(commands.add_parser("plan", help="predict what pre-training on many GPUs takes"))
    add_watch_command(commands.add_parser("watch", help="follow a run on the terminal while it trains"))
    report = commands.add_parser("report", help="make a run's report again, from the numbers in its folder")
    add_report_command(report)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
