"""Pre-training as a command: what examples/pretrain_mvu.py runs."""

import sys
from collections.abc import Sequence

from dexcore.data.manifest import StoreError
from dexcore.data.readers import UnreadableFileError
from dexcore.extras import MissingExtraError
from dexcore.train.arguments import parse
from dexcore.train.checkpoint import CheckpointError
from dexcore.train.config import ConfigError
from dexcore.train.loop import TrainingError, pretrain
from dexcore.train.memory import keep_freed_memory
from dexcore.train.run_folder import RunFolderError

EXIT_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-train as a command line (default: this process's) says.

    Returns:
        What the process should return: 0; 2 after an error, told in a line on stderr; 75 where a signal
        stopped the run, which ``--resume`` goes on with.
    """
    keep_freed_memory()
    try:
        config = parse(argv)
        return 0 if config is None else pretrain(config).exit_code
    except (
        CheckpointError,
        ConfigError,
        MissingExtraError,
        RunFolderError,
        StoreError,
        TrainingError,
        UnreadableFileError,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
