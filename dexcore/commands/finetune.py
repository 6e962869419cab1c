"""``dexcore finetune TASK MODEL``: train a model on a task, predict its test images, score them.

Heavy imports wait until the command runs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from dexcore.extras import require

if TYPE_CHECKING:
    from dexcore.evaluate import FinetuneConfig


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Fine-tune as a command line (default: this process's) says.

    Returns:
        What the process should return: 0; 2 after an error, told in a line on stderr; 75 where a signal stopped it,
        which the same command goes on with.
    """
    from dexcore.engine.checkpoint import CheckpointError
    from dexcore.engine.failure import EXIT_ERROR, failed, is_lack_of_memory, silence
    from dexcore.engine.folder import RunFolderError
    from dexcore.engine.memory import keep_freed_memory
    from dexcore.engine.ranks import LostRankError, MainRankError, environment_rank
    from dexcore.evaluate.finetuning import FinetuneError, finetune
    from dexcore.extras import MissingExtraError

    keep_freed_memory()
    rank = 0
    try:
        rank, _ = environment_rank()
        if rank == 0:
            config = parse(argv, program)
        else:
            with silence():
                config = parse(argv, program)
        if config is None:
            return 0
        result = finetune(config)
        if rank == 0 and result.finished and result.scores:
            print("\n".join(result.lines()), flush=True)
        return result.exit_code
    except MainRankError:  # which has told why
        return EXIT_ERROR
    except (
        CheckpointError,
        FinetuneError,
        LostRankError,
        MissingExtraError,
        RunFolderError,
        OSError,
        ValueError,
    ) as error:
        return failed(rank, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        return failed(
            rank,
            f"not enough memory ({str(error).strip().partition(chr(10))[0]}); have fewer images a step (--batch-size) "
            "or a process (torchrun), or their activations recomputed (--grad-checkpointing)",
        )


def parse(argv: Sequence[str] | None = None, program: str | None = None) -> "FinetuneConfig | None":
    """Read a command line; None where it only asked for ``--print-config``.

    Raises:
        ConfigError: a file or a flag is wrong; the message names the field.
        SystemExit: ``--help`` was asked for, or a flag does not exist.
    """
    from dexcore.engine.config_file import to_yaml
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

    config, print_config = tyro.cli(arguments, prog=program, args=argv)
    if print_config:
        print(to_yaml(config), end="")
        return None
    return config


def _with_names(argv: list[str]) -> list[str]:
    """TASK and MODEL, where they stand first, with their flags before them."""
    named = []
    for flag in ("--task", "--model"):
        if not argv or argv[0].startswith("-"):
            break
        named += [flag, argv.pop(0)]
    return [*named, *argv]


def _base(argv: Sequence[str]) -> "FinetuneConfig":
    """What the flags change: it has to be known before they are read."""
    from dexcore.engine.config_file import read_yaml
    from dexcore.evaluate.finetuning import PRESETS

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", choices=sorted(PRESETS))
    early.add_argument("--config", type=Path)
    try:
        known, _ = early.parse_known_args(argv)
    except argparse.ArgumentError:
        return PRESETS["paper"]  # tyro meets the same mistake and explains it
    base = PRESETS[known.preset or "paper"]
    return base if known.config is None else read_yaml(known.config, base)
