"""The frame of a command that trains: settings from a preset, YAML and flags; errors in a line; what it returns."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

from dexcore.engine.checkpoint import CheckpointError
from dexcore.engine.config import ConfigError
from dexcore.engine.config_file import to_yaml
from dexcore.engine.folder import RunFolderError
from dexcore.engine.memory import NotEnoughMemoryError, is_lack_of_memory, keep_freed_memory
from dexcore.engine.ranks import LostRankError, MainRankError, environment_rank
from dexcore.extras import MissingExtraError, require

EXIT_ERROR = 2
_ERRORS = (
    CheckpointError,
    ConfigError,
    LostRankError,
    MissingExtraError,
    NotEnoughMemoryError,
    RunFolderError,
    OSError,
)

C = TypeVar("C")  # a configuration


def run_command(
    parse: Callable[[], C | None],
    run: Callable[[C, int], int],
    errors: tuple[type[Exception], ...],
    less_memory: str,
) -> int:
    """Read a command line and do what it asks for.

    Args:
        parse: reads it; None where all is done. The main rank alone shows its help and errors.
        run: trains, told the configuration and this process's rank; gives what the process should return.
        errors: that end the command and are told in a line, beside those of every training.
        less_memory: what to do where memory does not suffice.

    Returns:
        What the process should return: that of ``run``; 0 where nothing was to be run; 2 after an error, told in a line
        on stderr.
    """
    keep_freed_memory()
    told: tuple[type[Exception], ...] = (*_ERRORS, *errors)
    rank = 0
    try:
        rank, _ = environment_rank()
        config = parse() if rank == 0 else _in_silence(parse)
        return 0 if config is None else run(config, rank)
    except MainRankError:  # which has told why
        return EXIT_ERROR
    except told as error:
        return _failed(rank, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        return _failed(rank, f"not enough memory ({str(error).strip().partition(chr(10))[0]}); {less_memory}")


def early_flags(argv: Sequence[str], presets: Iterable[str], more: dict[str, dict[str, Any]]) -> argparse.Namespace:
    """``--preset``, ``--config`` and more: what the other flags change has to be known before they are read.

    Args:
        argv: the command line.
        presets: names of them.
        more: flags beside these two, each with what ``add_argument`` takes.

    Returns:
        Their values, and their defaults where one is wrong: tyro meets the same mistake and explains it.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset", choices=sorted(presets))
    early.add_argument("--config", type=Path)
    for flag, settings in more.items():
        early.add_argument(flag, **settings)
    try:
        known, _ = early.parse_known_args(argv)
    except argparse.ArgumentError:
        known = early.parse_args([])
    return known


def read_flags(arguments: Callable[..., tuple[C, bool]], argv: Sequence[str], program: str | None) -> C | None:
    """The configuration that flags say, or None after it was shown for ``--print-config``.

    Args:
        arguments: tyro reads its parameters and its docstring; gives the configuration, and whether it is only shown.
        argv: the command line.
        program: the command's name in help and errors; the script's by default.

    Raises:
        ConfigError: a flag is wrong; the message names the field.
        SystemExit: ``--help`` was asked for, or a flag does not exist.
    """
    config, print_config = require("tyro", "train").cli(arguments, prog=program, args=argv)
    if print_config:
        print(to_yaml(config), end="")
        return None
    return config


def _in_silence(parse: Callable[[], C | None]) -> C | None:
    """As the main rank does, which alone shows help and errors."""
    try:
        with _silence():
            return parse()
    except ConfigError as error:
        raise MainRankError(str(error)) from error


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _failed(rank: int, reason: str) -> int:
    """Tell why, and give what the process should return."""
    print(f"error: {reason}" if rank == 0 else f"error on rank {rank}: {reason}", file=sys.stderr, flush=True)
    return EXIT_ERROR
