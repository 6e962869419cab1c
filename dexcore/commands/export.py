"""``dexcore export``: the model of a run's checkpoint, as a folder of its own.

Heavy imports wait until the command runs.
"""

import argparse
from pathlib import Path

_EXPORT = (
    "Write the model that a run had at a checkpoint into a folder that from_pretrained, dexcore eval and dexcore embed "
    "open, as a run's own model. The run may be under way, stopped or done, and is left as it is. A run keeps its "
    "newest checkpoints (--run.keep-checkpoints) of every so many steps (--run.checkpoint-every). Its images must be "
    "there: how they were made is written beside the weights."
)


def add_export_command(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dexcore export`` to its parser."""
    parser.description = _EXPORT
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the folder of a run (its --out)")
    add("--out", type=Path, required=True, metavar="DIR", help="the folder of the model: new, or empty")
    add("--step", type=int, metavar="N", help="of the checkpoint: steps done (default: the newest)")
    add("--store", type=Path, metavar="STORE", help="the run's images, where they lie elsewhere now")


def run_export(arguments: argparse.Namespace) -> int:
    """Run ``dexcore export``; the return value is the process's."""
    from dexcore.data.store import StoreError
    from dexcore.engine.checkpoint import CheckpointError
    from dexcore.engine.folder import RunFolderError
    from dexcore.train.run.export import export_model

    try:
        step = export_model(arguments.run, arguments.out, arguments.step, arguments.store)
    except (CheckpointError, RunFolderError, StoreError) as error:
        raise ValueError(str(error)) from error  # told in a line, as all that a user can mend
    print(f"{arguments.out}: the model after {step} steps")
    return 0
