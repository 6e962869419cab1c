"""Checkpoints that are there whole or not at all.

    checkpoints/
        step-00000200/      named by the steps done
            __0_0.distcp    tensors of model and optimizer, in the format of torch.distributed.checkpoint
            __1_0.distcp    of sharded ones each rank's in files of its own
            .metadata       its index
            state.json      step, order, configuration; sha256 of the other files, and of itself
        damaged-...         what did not verify at a resume, kept for people to look at

A checkpoint is written under a hidden temporary name, synced, and renamed; older ones are removed after that,
by a rename first. A kill at any moment leaves complete checkpoints and hidden folders, which the next save
removes. Only tensors are stored: learning rates and the like follow from the configuration and the step,
random draws from their keys.
"""

import contextlib
import hashlib
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
)

from dexcore.engine.checkpoint_index import METADATA, IndexReader
from dexcore.engine.ranks import ALONE, Ranks
from dexcore.files import sync_folder

_STATE = "state.json"
_FAILED = "failed: "  # in the place of a file's name: no digest could be had
_VERSION = 1
State = dict[str, dict[str, Any]]
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written or read; the message names it and says what to do."""


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: steps done, skipped ones included.
        skipped_in_a_row: how many of the last steps were skipped.
        order: the state of the sample order after them (`GlobalBatchSampler.state`), the store's fingerprint
        in it.
        config: the run's configuration, for people.
        rolled_back: how often the run went back to the weights of an earlier checkpoint.
    """

    step: int
    skipped_in_a_row: int
    order: dict[str, Any]
    config: dict[str, Any]
    rolled_back: int = 0


def save_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    keep: int,
) -> Path:
    """`write_checkpoint` of what a process alone holds now."""
    return write_checkpoint(folder, state_of(model, optimizer), progress, keep)


def state_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """What a checkpoint stores: parameters and buffers of the model, tensors of the optimizer; no copies of them."""
    # Asked for the state of an optimizer that has none, PyTorch would make it by a step.
    state = get_optimizer_state_dict(model, optimizer, options=_FLAT) if optimizer.state else {}
    return {"model": get_model_state_dict(model), "optimizer": _only_tensors(state)}


def write_checkpoint(folder: Path, state: State, progress: Progress, keep: int, ranks: Ranks = ALONE) -> Path:
    """Write a checkpoint, then remove all but the ``keep`` newest.

    Args:
        folder: of the run's checkpoints; made where it is missing. All ``ranks`` see it.
        state: as `state_of` gives it; nobody changes it meanwhile.
        progress: names the checkpoint.
        keep: at least 1.
        ranks: who hold the shards of a sharded model; each writes its own, and all call it. One process alone writes
            what is whole.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it cannot be written (a full disk, for example). The older ones are untouched.
        MainRankError: the main rank could not begin or end it.
    """
    final = folder / f"step-{progress.step:08d}"
    temporary = ranks.on_main(lambda: _begin(folder, final))
    if temporary is None:
        return final  # a run is a function of its step: this is what would be written
    try:
        _write_tensors(temporary, state, ranks)
        digests = ranks.merge(_own_digests(temporary, ranks))
        if failed := [name for name in digests if name.startswith(_FAILED)]:
            raise OSError(failed[0].removeprefix(_FAILED))
        ranks.on_main(lambda: _end(temporary, final, progress, digests))
    except (OSError, CheckpointException) as error:
        if ranks.main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise _not_written(final, state, error) from error
    ranks.on_main(lambda: _remove_all_but(folder, keep))
    return final


def _begin(folder: Path, final: Path) -> Path | None:
    """The hidden folder to write into, not made yet; None where the checkpoint is there."""
    if final.exists():
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
    except OSError as error:
        raise CheckpointError(f"{final}: the checkpoint cannot be written: {_reason(error)}") from error
    return folder / f".saving-{final.name}-{os.getpid()}"


def _own_digests(path: Path, ranks: Ranks) -> dict[str, str]:
    """Of what this rank has written: DCP's name of a file begins with its rank. Or why they cannot be had, which all
    ranks have to learn of."""
    try:
        files = [*path.glob(f"__{ranks.rank}_*"), *([path / METADATA] if ranks.main else [])]
        return {file.name: _digest(file, sync=True) for file in sorted(files)}
    except OSError as error:
        return {f"{_FAILED}rank {ranks.rank}: {_reason(error)}": ""}


def _end(temporary: Path, final: Path, progress: Progress, digests: dict[str, str]) -> None:
    _write_state(temporary, progress, digests)
    temporary.rename(final)
    sync_folder(final.parent)


def _remove_all_but(folder: Path, keep: int) -> None:
    for old in _checkpoints(folder)[keep:]:
        try:
            _remove(old)
        except OSError as error:
            raise CheckpointError(f"{old}: an older checkpoint cannot be removed: {_reason(error)}") from error


def _not_written(final: Path, state: State, error: BaseException) -> CheckpointError:
    why = _no_room(final.parent, state) or _reason(error)
    return CheckpointError(
        f"{final}: the checkpoint cannot be written: {why}; "
        "older checkpoints are untouched, go on from them when there is room"
    )


def has_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint: `load_checkpoint` then takes one, or refuses."""
    return bool(_checkpoints(folder))


def load_checkpoint(
    folder: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    say: Callable[[str], None],
    ranks: Ranks = ALONE,
    wanted: Callable[[Progress], bool] = lambda progress: True,
) -> Progress | None:
    """Load the newest intact checkpoint into ``model`` and ``optimizer``, in place.

    A damaged one is renamed to ``damaged-...`` and the one before is taken; ``say`` is told so.

    Args:
        folder: of the run's checkpoints.
        model, optimizer: as at the save.
        say: takes a message for people.
        ranks: who load together: the main one chooses the checkpoint, all read it.
        wanted: what the run's standing has to be; others are passed over.

    Returns:
        Where the run stood, or None where ``folder`` holds no checkpoint that is ``wanted``.

    Raises:
        CheckpointError: all are damaged, or the checkpoint does not fit the model.
    """
    found = ranks.on_main(lambda: _newest_intact(folder, say, wanted))
    if found is None:
        return None
    path, progress = found
    with _told_as_misfit(path):
        _read_tensors(path, model, optimizer)
    return progress


def find_checkpoint(folder: Path, step: int | None = None) -> Path:
    """The checkpoint of a step, or the newest.

    Args:
        folder: of the run's checkpoints.
        step: steps done; None for the newest.

    Raises:
        CheckpointError: there is none; the message lists those that are there.
    """
    found = _checkpoints(folder)
    for path in found:
        if step is None or _step_of(path) == step:
            return path
    there = ", ".join(str(_step_of(path)) for path in reversed(found)) or "none"
    wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
    raise CheckpointError(f"{folder}: expected {wanted}; steps that are there: {there}")


def read_progress(checkpoint: Path) -> Progress:
    """Where a run stood at a checkpoint, each of whose files is read and compared with its hash.

    Raises:
        CheckpointError: it is damaged, or was removed meanwhile; it is left as it is.
    """
    try:
        return _verified(checkpoint)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint}: is damaged or gone ({error})") from error


def load_model(checkpoint: Path, model: torch.nn.Module) -> None:
    """Load the model alone from a checkpoint, in place.

    Raises:
        CheckpointError: it does not fit the model.
    """
    _expect_one_process()
    with _told_as_misfit(checkpoint):
        tensors = {"model": get_model_state_dict(model)}
        dcp.load(tensors, storage_reader=IndexReader(checkpoint), no_dist=True)


@contextlib.contextmanager
def _told_as_misfit(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except (CheckpointException, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{checkpoint}: does not fit this model or this PyTorch: {_reason(error)}") from error


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _newest_intact(
    folder: Path, say: Callable[[str], None], wanted: Callable[[Progress], bool]
) -> tuple[Path, Progress] | None:
    intact = False
    for path in _checkpoints(folder):
        try:
            progress = _verified(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            path.rename(path.with_name(f"damaged-{path.name}-{os.getpid()}"))
            say(f"{path} is damaged ({error}): put aside, trying the one before it")
            continue
        if wanted(progress):
            return path, progress
        intact = True
    if not intact and any(folder.glob("damaged-*")):
        raise CheckpointError(f"{folder}: every checkpoint is damaged; begin again in another --out")
    return None


def _checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _write_tensors(path: Path, state: State, ranks: Ranks) -> None:
    _expect_one_process()
    # Tensor by tensor: PyTorch's copying ahead of a GPU's waits for the thread's current GPU, whatever theirs is.
    writer = dcp.FileSystemWriter(path, per_thread_copy_ahead=0)
    dcp.save(state, storage_writer=writer, process_group=ranks.group, no_dist=ranks.group is None)


def _read_tensors(path: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    reader = IndexReader(path)
    stepped = any(name.startswith("optimizer.") for name in reader.read_metadata().state_dict_metadata)
    if stepped:
        model_state, optimizer_state = get_state_dict(model, optimizer, options=_FLAT)  # makes the empty moments
    else:
        model_state, optimizer_state = get_model_state_dict(model), {}
    tensors = {"model": model_state, "optimizer": _only_tensors(optimizer_state)}
    _expect_one_process()
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    if stepped:
        moments = {**optimizer_state, **tensors["optimizer"]}
        set_optimizer_state_dict(model, optimizer, moments, options=_FLAT)


def _only_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _write_state(path: Path, progress: Progress, digests: dict[str, str]) -> None:
    state = {"version": _VERSION, **asdict(progress), "files": dict(sorted(digests.items()))}
    with open(path / _STATE, "w", encoding="utf-8") as file:
        json.dump({"sha256": _digest_of(state), "state": state}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path)


def _verified(path: Path) -> Progress:
    """Read ``state.json`` and compare every file with what it says; ValueError where one differs."""
    stored = json.loads((path / _STATE).read_text(encoding="utf-8"))
    state = stored["state"]
    if stored["sha256"] != _digest_of(state):
        raise ValueError(f"{_STATE} is not as it was written")
    if state["version"] != _VERSION:
        raise CheckpointError(f"{path}: has version {state['version']}, this dexcore reads version {_VERSION}")
    for name, expected in state["files"].items():
        if _digest(path / name) != expected:
            raise ValueError(f"{name} is not as it was written")
    return Progress(**{item.name: state[item.name] for item in fields(Progress) if item.name in state})


def _digest(path: Path, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(state: object) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    """Remove a checkpoint; a kill in the middle leaves a hidden folder and no half checkpoint."""
    doomed = path.with_name(f".removing-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _remove_leftovers(folder: Path) -> None:
    for pattern in (".saving-*", ".removing-*"):
        for leftover in folder.glob(pattern):
            shutil.rmtree(leftover)


def _no_room(folder: Path, state: State) -> str:
    """Where the disk has no room for a checkpoint, what is missing: PyTorch's error then speaks of its own files."""
    needed = sum(tensor.nbytes for tensors in state.values() for tensor in tensors.values())
    free = shutil.disk_usage(folder).free if folder.is_dir() else needed
    return f"no space left: it takes {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free" if free < needed else ""


def _reason(error: BaseException) -> str:
    """What went wrong, in a line; a CheckpointException holds it by rank."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.strip().splitlines()[-1]


def _expect_one_process() -> None:
    """No remark that there is one; for good, since `warnings.catch_warnings` is not for threads."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
