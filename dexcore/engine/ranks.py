"""The processes that train together, as torchrun starts them, and what they tell each other.

A step has two small all-reduces beside the gradients': the routers' mean probabilities (`aux_losses`) and one vector
with all else that the ranks must agree on (`share_load`). With gradient accumulation the first comes once a part,
whose balance loss is its own. Rank 0, the main one, writes the run's folder and speaks to whoever watches; the others
compute.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dexcore.engine.config import ConfigError
from dexcore.engine.device import choose_device
from dexcore.engine.memory import NotEnoughMemoryError
from dexcore.engine.rendezvous import meet
from dexcore.engine.stop import Stopped

T = TypeVar("T")
_PATIENCE = timedelta(hours=24)
_CONNECTED = timedelta(seconds=20)  # ranks that are there connect sooner; gloo takes five times as long to give up
_SILENT_SECONDS = 15.0  # ranks of one start meet sooner
_ENDED_SECONDS = 1.0  # for the thread that waits for the others


class MainRankError(RuntimeError):
    """Another rank, mostly the main one, cannot go on, and says why; this one leaves with it."""


class LostRankError(RuntimeError):
    """Another rank ended in the middle of the run."""


@dataclass(frozen=True)
class Ranks:
    """All processes of a run, seen from one of them.

    Attributes:
        rank: of this process, from 0.
        count: of processes.
        local_rank: of this process among those of its machine, or None for a process alone.
        group: what collectives run on; None for a process alone.
    """

    rank: int = 0
    count: int = 1
    local_rank: int | None = None
    group: dist.ProcessGroup | None = None

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def local_count(self) -> int:
        """How many of the processes share this machine."""
        return environment_number("LOCAL_WORLD_SIZE", 1, self.count, self.count) if self.count > 1 else 1

    def say(self, message: str) -> None:
        """Tell whoever watches the run, once."""
        if self.main:
            print(message, file=sys.stderr, flush=True)

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's ``values`` [n], end to end in the order of ranks: [count * n], on the CPU."""
        if self.group is None:
            return values
        parts: list[Tensor | None] = [None] * self.count
        dist.all_gather_object(parts, values.cpu(), group=self.group)
        return torch.cat([part for part in parts if part is not None])

    def merge(self, own: dict[str, T]) -> dict[str, T]:
        """Every rank's entries together, on all."""
        if self.group is None:
            return own
        parts: list[dict[str, T] | None] = [None] * self.count
        dist.all_gather_object(parts, own, group=self.group)
        return {name: value for part in parts if part is not None for name, value in part.items()}

    def on_main(self, do: Callable[[], T]) -> T:
        """Have the main rank ``do`` something, and give what it returns to all; nobody goes on before.

        Raises:
            MainRankError: it failed there (where the error itself is raised).
            Stopped: a signal ended it there.
        """
        if self.group is None:
            return do()
        answer: list[tuple[str, T | None]] = [("failed", None)]
        try:
            if self.main:
                answer = [("done", do())]
        except Stopped:
            answer = [("stopped", None)]
            raise
        finally:
            dist.broadcast_object_list(answer, src=0, group=self.group)
        how, result = answer[0]
        if how == "stopped":
            raise Stopped
        if how == "failed":
            raise MainRankError("the main rank failed")
        return result  # type: ignore[return-value]  # T may be None

    def on_main_for_long(self, do: Callable[[], T]) -> T:
        """`on_main` for what may take hours: the collectives of training give up after minutes."""
        with self.patient() as ranks:
            return ranks.on_main(do)

    @contextmanager
    def patient(self, limit: timedelta = _PATIENCE) -> "Iterator[Ranks]":
        """The same ranks, whose collectives wait for a day, or for ``limit``; all enter together, before what takes
        them how long."""
        if self.group is None:
            yield self
            return
        dist.barrier(self.group)  # notices at once a rank that has died, for which `new_group` waits
        patient: Any = dist.new_group(backend="gloo", timeout=_CONNECTED)  # a group: every rank is a member
        _set_timeout(limit, patient)
        try:
            yield replace(self, group=patient)
        finally:
            dist.destroy_process_group(patient)


ALONE = Ranks()


def environment_rank() -> tuple[int, int]:
    """This process's rank and the number of processes, as torchrun puts them in the environment; else (0, 1).

    Raises:
        ConfigError: a variable holds something else, or others are missing beside it; the message names it.
    """
    count = environment_number("WORLD_SIZE", 1, 2**31, 1)
    if count == 1:
        return 0, 1
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"environment: WORLD_SIZE={count} says that {count} processes train together, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set; start them with torchrun, which sets all, or unset "
            "WORLD_SIZE to train alone"
        )
    environment_number("MASTER_PORT", 1, 65535)
    return environment_number("RANK", 0, count - 1), count


def environment_number(name: str, least: int, most: int, default: int | None = None) -> int:
    """A whole number from the environment.

    Raises:
        ConfigError: it is something else, or missing without a default.
    """
    text = os.environ.get(name, None if default is None else str(default))
    try:
        number = int(text or "")
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        got = "nothing" if text is None else repr(text)
        raise ConfigError(
            f"environment: {name} must be a whole number in {least}..{most}, as torchrun sets it, got {got}; unset "
            "WORLD_SIZE to train alone"
        )
    return number


@contextmanager
def join_ranks(device: str, patience: float = 300.0, field: str = "device") -> Iterator[Ranks]:
    """Meet the other processes that torchrun started, and part at the end. A process alone meets nobody.

    Args:
        device: the run's; it decides between gloo (CPU) and NCCL (CUDA).
        patience: seconds to wait for the others; that it waits is said after a few.
        field: what users know the device as.

    Raises:
        ConfigError: the device is not there, or the environment is not what torchrun sets.
        LostRankError: the others did not come, or one ended while this one waited for it.
        MainRankError: it ended for lack of memory, and says so; or both did, and it says so first.
    """
    rank, count = environment_rank()
    if count == 1:
        yield ALONE
        return
    local_rank = environment_number("LOCAL_RANK", 0, count - 1, rank)
    own = choose_device(device, local_rank, field)
    store = _meet(rank, count, patience)
    try:
        if own.type == "cpu":
            store.set_timeout(_CONNECTED)  # which gloo asks for the others' addresses
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=_CONNECTED)
            _set_timeout(dist.default_pg_timeout)
        else:
            torch.accelerator.set_device_index(own)
            backend = dist.get_default_backend_for_device(own)
            dist.init_process_group(backend, store=store, rank=rank, world_size=count, device_id=own)
        yield Ranks(rank, count, local_rank, dist.group.WORLD)
    except NotEnoughMemoryError as error:
        if _memory_told(store, by_this=True):
            raise MainRankError("another rank has no memory left either, and said so before") from error
        raise
    except RuntimeError as error:
        if not _says_lost(error):
            raise
        if _memory_told(store):
            raise MainRankError("another rank has no memory left") from error
        raise LostRankError(
            f"another rank has ended, which ends this one too ({str(error).splitlines()[0]}); its own message says "
            "why; the run can go on from its newest checkpoint"
        ) from error
    finally:
        if dist.is_initialized():  # not where a signal came first
            dist.destroy_process_group()


def _memory_told(store: dist.Store, by_this: bool = False) -> bool:
    """Whether another rank told that its memory does not suffice; ``by_this`` counts this one among those that do."""
    try:
        return store.add("dexcore/no memory left", int(by_this)) > int(by_this)
    except (dist.DistError, RuntimeError):  # the store went with the rank that held it
        return False


def _meet(rank: int, count: int, patience: float) -> dist.Store:
    """Wait until all processes are there, through the store that the environment names."""
    place = f"MASTER_ADDR:MASTER_PORT = {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    waits = f"rank {rank} waits for the other {count - 1} of {count} processes at {place}, {patience:.0f} s at most"
    teller = threading.Timer(min(_SILENT_SECONDS, patience / 2), print, [waits], {"file": sys.stderr, "flush": True})
    teller.daemon = True
    teller.start()
    met: Future[dist.Store] = Future()
    given_up = threading.Event()
    arguments = rank, count, timedelta(seconds=patience), given_up, met
    # C++ waits there without an ear for signals: not in the main thread, whose handlers could not run meanwhile.
    waiter = threading.Thread(target=_wait_for_all, args=arguments, daemon=True)
    waiter.start()
    try:
        store = met.result()
    except (dist.DistError, RuntimeError, OSError) as error:
        raise LostRankError(
            f"rank {rank} did not meet the other {count - 1} of {count} processes at {place} within {patience:.0f} s: "
            "start all of them, with the same address and port, each with a RANK of its own "
            f"({str(error).splitlines()[0]})"
        ) from error
    finally:
        teller.cancel()
        given_up.set()
        # A thread that asks the store as the process ends would end it by an abort. One that still connects does not.
        waiter.join(_ENDED_SECONDS)
    store.set_timeout(dist.default_pg_timeout)
    return store


def _wait_for_all(
    rank: int, count: int, limit: timedelta, given_up: threading.Event, met: "Future[dist.Store]"
) -> None:
    try:
        store = meet(rank, count, limit, given_up)
    except BaseException as error:  # the main thread's to raise
        met.set_exception(error)
    else:
        met.set_result(store)


def _set_timeout(limit: timedelta, group: dist.ProcessGroup | None = None) -> None:
    """How long collectives of a group wait from here on."""
    public = getattr(dist, "set_timeout", None)  # since PyTorch 2.14
    (public or dist.distributed_c10d._set_pg_timeout)(limit, group)


def _says_lost(error: RuntimeError) -> bool:
    """Whether a collective failed; gloo raises plain RuntimeErrors."""
    plain = type(error) is RuntimeError and ("gloo" in str(error) or "Connection closed by peer" in str(error))
    return plain or isinstance(error, dist.DistError)
