"""Pre-training as a command: what ``dexcore pretrain`` and examples/pretrain_mvu.py run."""

from collections.abc import Sequence

from dexcore.data.readers import UnreadableFileError
from dexcore.data.store.manifest import StoreError
from dexcore.engine.command_line import run_command
from dexcore.train.arguments import parse
from dexcore.train.config import PretrainConfig
from dexcore.train.loop import TrainingError
from dexcore.train.pretraining import pretrain
from dexcore.train.run.memory import LESS_MEMORY
from dexcore.train.run.provenance import repeat_command

_ERRORS = (StoreError, TrainingError, UnreadableFileError)


def main(argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Pre-train as a command line (default: this process's) says.

    Args:
        argv: the flags.
        program: what the help calls the command; the script's name by default.

    Returns:
        What the process should return: 0; 2 after an error, told in a line on stderr; 75 where a signal
        stopped the run, which ``--resume`` goes on with.
    """
    return run_command(lambda: parse(argv, program), _run, _ERRORS, LESS_MEMORY)


def _run(config: PretrainConfig, rank: int) -> int:
    result = pretrain(config)
    if rank == 0 and result.finished and not (config.dry_run or config.replay):
        print(f"Repeat it with  {repeat_command(config.out)}", flush=True)
    return result.exit_code
