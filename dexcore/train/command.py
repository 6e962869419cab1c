"""Pre-training as a command: what ``dexcore pretrain`` and examples/pretrain_mvu.py run."""

from collections.abc import Sequence

from dexcore.data.readers import UnreadableFileError
from dexcore.data.store.manifest import StoreError
from dexcore.engine.checkpoint import CheckpointError
from dexcore.engine.config import ConfigError
from dexcore.engine.failure import EXIT_ERROR, failed, is_lack_of_memory, silence
from dexcore.engine.folder import RunFolderError
from dexcore.engine.memory import keep_freed_memory
from dexcore.engine.ranks import LostRankError, MainRankError, environment_rank
from dexcore.extras import MissingExtraError
from dexcore.train.arguments import parse
from dexcore.train.config import PretrainConfig
from dexcore.train.loop import TrainingError
from dexcore.train.provenance import repeat_command
from dexcore.train.run import pretrain


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Pre-train as a command line (default: this process's) says.

    Args:
        argv: the flags.
        program: what the help calls the command; the script's name by default.

    Returns:
        What the process should return: 0; 2 after an error, told in a line on stderr; 75 where a signal
        stopped the run, which ``--resume`` goes on with.
    """
    keep_freed_memory()
    rank = 0
    try:
        rank, _ = environment_rank()
        config = parse(argv, program) if rank == 0 else _parse_in_silence(argv)
        if config is None:
            return 0
        result = pretrain(config)
        if rank == 0 and result.finished and not config.dry_run:
            print(f"Repeat it with  {repeat_command(config.out)}", flush=True)
        return result.exit_code
    except MainRankError:  # which has told why
        return EXIT_ERROR
    except (
        CheckpointError,
        ConfigError,
        LostRankError,
        MissingExtraError,
        RunFolderError,
        StoreError,
        TrainingError,
        UnreadableFileError,
        OSError,
    ) as error:
        return failed(rank, str(error))
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        return failed(
            rank,
            f"not enough memory ({str(error).strip().partition(chr(10))[0]}); have fewer images computed at once "
            "(--data.accumulate), their activations recomputed (--model.grad-checkpointing), or a smaller model",
        )


def _parse_in_silence(argv: Sequence[str] | None) -> PretrainConfig | None:
    """As the main rank does, which alone shows help and errors."""
    try:
        with silence():
            return parse(argv)
    except ConfigError as error:
        raise MainRankError(str(error)) from error
