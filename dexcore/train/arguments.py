"""From a command line and YAML files to a `PretrainConfig`.

The last word wins: the preset (or, with ``--resume``, what the run's folder holds), then ``--config FILE``,
then the flags.
"""

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from dexcore.engine.command_line import early_flags, read_flags
from dexcore.engine.config_file import apply, load_yaml, read_yaml
from dexcore.extras import require
from dexcore.report.files import CONFIG_FILE
from dexcore.train.config import PRESETS, PretrainConfig


def parse(argv: Sequence[str] | None = None, program: str | None = None) -> PretrainConfig | None:
    """Read a command line (default: this process's); None where it only asked for ``--print-config``.

    ``program`` is the command's name in help and errors; the script's by default.

    Raises:
        ConfigError: a file or a flag is wrong; the message names the field.
        SystemExit: ``--help`` was asked for, or a flag does not exist.
    """
    tyro = require("tyro", "train")
    argv = _with_values(sys.argv[1:] if argv is None else argv)
    base = _base(argv)

    def arguments(
        config_fields: Annotated[PretrainConfig, tyro.conf.arg(name="")] = base,
        preset: Literal["laptop", "paper"] = "laptop",
        config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
        print_config: bool = False,
    ) -> tuple[PretrainConfig, bool]:
        """Pre-train a Director-Experts vision transformer on medical images.

        Values: the preset's (with --resume the run folder's), then --config, then flags.

        See what a run needs by --dry-run. Under torchrun several processes share it.

        Args:
            config_fields: the run.
            preset: where the other values come from: minutes on two CPU cores, or the paper's recipe.
            config: a YAML file with fields to change, as --print-config writes it.
            print_config: show the resulting configuration as YAML and leave.
        """
        return config_fields, print_config

    return read_flags(arguments, argv, program)


def _with_values(argv: Sequence[str]) -> list[str]:
    """The flags, of which ``--model.grad-checkpointing`` once took no value."""
    flag, words = "--model.grad-checkpointing", list[str]()
    for word, following in pairwise([*argv, "-"]):
        name = word.replace("_", "-")
        words += [flag, "none"] if name == "--model.no-grad-checkpointing" else [word]
        words += ["block"] if name == flag and following.startswith("-") else []
    return words


def _base(argv: Sequence[str]) -> PretrainConfig:
    """What the flags change."""
    known = early_flags(argv, PRESETS, {"--out": {"default": ""}, "--resume": {"action": "store_true"}})
    base = PRESETS[known.preset or "laptop"]
    changes = {} if known.config is None else load_yaml(known.config)
    out = known.out or (changes.get("out") if isinstance(changes, dict) else None) or base.out
    stored = Path(out if isinstance(out, str) else base.out) / CONFIG_FILE
    if known.resume and known.preset is None and stored.is_file():
        base = read_yaml(stored, PretrainConfig())  # a field that its version did not know: as that version did
    return base if known.config is None else apply(base, changes, known.config)
