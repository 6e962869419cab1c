"""``dexcore finetune TASK MODEL``: train a model on a task, predict its test images, score them.

Heavy imports wait until the command runs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dexcore.extras import require

if TYPE_CHECKING:
    from dexcore.evaluate import FinetuneConfig

_LESS_MEMORY = (
    "have fewer images a step (--batch-size) or a process (torchrun), or their activations recomputed "
    "(--grad-checkpointing)"
)


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Fine-tune as a command line (default: this process's) says.

    Returns:
        What the process should return: 0; 2 after an error, told in a line on stderr; 75 where a signal stopped it,
        which the same command goes on with.
    """
    from dexcore.engine.command_line import run_command
    from dexcore.evaluate.finetuning import FinetuneError

    return run_command(lambda: parse(argv, program), _run, (FinetuneError, ValueError), _LESS_MEMORY)


def _run(config: "FinetuneConfig", rank: int) -> int:
    from dexcore.evaluate import finetune

    result = finetune(config)
    if rank == 0 and result.finished and result.scores:
        print("\n".join(result.lines()), flush=True)
    return result.exit_code


def parse(argv: Sequence[str] | None = None, program: str | None = None) -> "FinetuneConfig | None":
    """Read a command line; None where it only asked for ``--print-config``.

    Raises:
        ConfigError: a file or a flag is wrong; the message names the field.
        SystemExit: ``--help`` was asked for, or a flag does not exist.
    """
    from dexcore.engine.command_line import read_flags
    from dexcore.evaluate import FinetuneConfig

    tyro = require("tyro", "train")
    argv = _with_names(list(sys.argv[1:] if argv is None else argv))
    base = _base(argv)

    def arguments(
        config_fields: Annotated[FinetuneConfig, tyro.conf.arg(name="")] = base,
        preset: Literal["paper", "laptop"] = "paper",
        config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
        print_config: bool = False,
    ) -> tuple[FinetuneConfig, bool]:
        """dexcore finetune TASK MODEL --out DIR: train a model on a task, predict the test images, score them.

        TASK and MODEL stand first, or behind --task and --model. Values: the preset's, then --config, then flags. See
        what it needs by --dry-run. A killed training goes on when it is called again; what is done is not run again.

        Args:
            config_fields: the fine-tuning.
            preset: where the other values come from: what is published of the paper's, or minutes on two CPU cores.
            config: a YAML file with fields to change, as --print-config writes it.
            print_config: show the resulting configuration as YAML and leave.
        """
        return config_fields, print_config

    return read_flags(arguments, argv, program)


def _with_names(argv: list[str]) -> list[str]:
    """TASK and MODEL, where they stand first, with their flags before them."""
    named = []
    for flag in ("--task", "--model"):
        if not argv or argv[0].startswith("-"):
            break
        named += [flag, argv.pop(0)]
    return [*named, *argv]


def _base(argv: Sequence[str]) -> "FinetuneConfig":
    """What the flags change."""
    from dexcore.engine.command_line import early_flags
    from dexcore.engine.config_file import read_yaml
    from dexcore.evaluate.finetuning import PRESETS

    known = early_flags(argv, PRESETS, {})
    base = PRESETS[known.preset or "paper"]
    return base if known.config is None else read_yaml(known.config, base)
