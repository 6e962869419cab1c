"""What the forwards of DEX layers leave behind: one `Record` a layer, the single owner of it.

`DEXMlp` writes a forward's routing into its record; `aux_losses`, `record_load`, `update_directors` and the rest read
there. A record knows whether its forward was in training, whether it was consumed, and whether a layer before it has
run again since (an early exit, ``forward_intermediates(stop_early=True)``): then it is stale.

Order is kept without a counter, which compiled code would have to be compiled anew for: every forward of a layer makes
a stamp, and the record notes the stamp that was the newest just before. Example, of layers 1 to 3:

    a forward of all      stamps a1 a2 a3    before them   -  a1 a2
    then of 1 and 2       stamps b1 b2 a3    before them  a3  b1 a2    a2 is not layer 2's newest: layer 3 is stale
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.module_tracker import ModuleTracker

from dexcore.checks import check_kind

_TRACKER = ModuleTracker()  # for is_bw alone: whether a backward is running


class Routing(NamedTuple):
    """What a DEX layer's last forward chose. With gradient in training; detached in eval."""

    gates: Tensor  # [B, k]
    indices: Tensor  # [B, k]
    probs: Tensor  # [B, R]
    align_loss: Tensor | None  # 0-dim; None where no losses were asked for (`dexcore.nn.set_aux`)
    balance_loss: Tensor | None  # 0-dim; None likewise


def balance_loss(probs: Tensor, global_importance: Tensor | None = None) -> Tensor:
    """R * sum_r I_r stopgrad(I_r) with I the mean of ``probs`` [B, R] (the method's step 9).

    ``global_importance`` [R] takes the place of the second factor where the batch spans several processes.
    """
    importance = mean_probs(probs)
    other = importance.detach() if global_importance is None else global_importance
    return probs.shape[1] * (importance * other).sum()


def mean_probs(probs: Tensor) -> Tensor:
    """I [R], the batch's mean of ``probs`` [B, R]; zeros without an image."""
    return probs.sum(0) / max(probs.shape[0], 1)


class _Stamp:
    """One forward of one layer."""

    def __init__(self, place: "_Place") -> None:
        self.place = place
        self.overwrote = False  # a forward that was not counted yet


class _Place:
    """A layer in a line of forwards: its newest stamp there, and the one just before it, mostly another layer's."""

    def __init__(self) -> None:
        self.newest = self.before = _Stamp(self)


class _Line:
    """Forwards of all layers of the process, one after the other."""

    def __init__(self) -> None:
        self.newest = _Stamp(_Place())

    def stamp(self, place: _Place) -> None:
        stamp = _Stamp(place)
        place.before, place.newest = self.newest, stamp
        self.newest = stamp


_FORWARDS, _TRAINING_FORWARDS = _Line(), _Line()


class Record:
    """What the last forwards of one DEX layer left behind.

    Attributes:
        routing: of the last forward; None before one.
        training: whether that was a training forward.
        pending: gates and indices [B, k] of the last training forward, until they are counted.
        recorded: gates that each expert received [R] in the micro-batches counted since the director's last update.
        shared: whether ``recorded`` is already the sum over the processes.
        skipped: updates in which the director stayed as it was since Omega was not finite; a 0-dim tensor, or None.
    """

    routing: Routing | None
    pending: tuple[Tensor, Tensor] | None
    recorded: Tensor | None
    skipped: Tensor | None

    def __init__(self) -> None:
        self.training = self.shared = False
        self.routing = self.pending = self.recorded = self.skipped = None
        self._consumed = False
        self._without_grad = False  # the pending forward ran under no_grad
        self._compiled = False  # the pending forward ran in compiled code
        self._claimed: _Stamp | None = None  # the training forward whose losses were taken
        self._said_uncounted = self._said_left_out = False
        self._forwards, self._training_forwards = _Place(), _Place()

    def write(self, routing: Routing, training: bool) -> None:
        """Note a forward, in place of the one before. One that activation checkpointing repeats changes nothing.

        Raises:
            RuntimeError: the layer runs again in a backward and ran without gradient before: under
                ``use_reentrant=True``, which loses the gradients of the auxiliary losses.
        """
        compiled = torch.compiler.is_compiling()
        if not compiled and _TRACKER.is_bw:
            if training and self._without_grad:
                raise RuntimeError(
                    "a DEX layer in training ran under activation checkpointing with use_reentrant=True, which loses "
                    "the gradients of the auxiliary losses; pass use_reentrant=False"
                )
            return
        if not training:
            routing = Routing(*(None if t is None else t.detach() for t in routing))  # type: ignore[arg-type]
        self.training, self.routing, self._consumed = training, routing, False
        _FORWARDS.stamp(self._forwards)
        if not training:
            return
        overwrites = not compiled and self.pending is not None
        # The layers after the first one would only say it again.
        if overwrites and not _TRAINING_FORWARDS.newest.overwrote:
            self._say_uncounted()
        self.pending = routing.gates.detach(), routing.indices
        self._without_grad, self._compiled = not torch.is_grad_enabled(), compiled
        _TRAINING_FORWARDS.stamp(self._training_forwards)
        if overwrites:
            _TRAINING_FORWARDS.newest.overwrote = True

    def forget_routing(self) -> None:
        """After a forward that chose no experts (director mode)."""
        self.routing = None

    def add(self, load: Tensor) -> None:
        """Count the last training forward: the gates [R] that experts received."""
        self.recorded = load if self.recorded is None else self.recorded + load
        self.pending = self._claimed = None
        self.shared = False

    def share(self, load: Tensor) -> None:
        """Put the processes' sum [R] in place of what was recorded."""
        self.recorded, self.shared = load, True

    def consume(self) -> None:
        """Forget all use of experts; the routing stays to be looked at, but its losses are taken no more."""
        self.pending = self.recorded = self._claimed = None
        self.shared, self._consumed = False, True

    def count_skipped(self, wrong: Tensor) -> None:
        """Count an update that left the director as it was where ``wrong`` (0-dim, bool) says so."""
        if self.skipped is None:
            self.skipped = wrong.new_zeros((), dtype=torch.int64)
        self.skipped = self.skipped.to(wrong.device)
        self.skipped += wrong  # in place: a CUDA graph counts on

    def _claim(self, fresh: bool) -> bool:
        """Note whether the last forward's losses are taken: it is then the one to count.

        Returns:
            Whether another one, whose losses were taken too, was not counted.
        """
        before, newest = self._claimed, self._training_forwards.newest
        self._claimed = newest if fresh and self.training else None
        return None not in (before, self._claimed, self.pending) and before is not newest

    def _say_uncounted(self) -> None:
        if self._said_uncounted:
            return
        self._said_uncounted = True
        warnings.warn(
            "a second training forward ran over one whose use of experts was not counted: update_directors sees the "
            "last one alone. With gradient accumulation call record_load(model) after each micro-batch; call "
            "update_directors(model, ...) once a step, or discard_load(model) where you skip one",
            stacklevel=2,
        )

    def __deepcopy__(self, memo: dict[int, object]) -> "Record":
        """Without the live tensors of the last forward: they can be neither copied nor pickled."""
        return Record()

    def __reduce__(self) -> tuple[type["Record"], tuple[()]]:
        return Record, ()


def take_losses(records: Sequence[Record]) -> list[bool]:
    """Which layers' last forward belongs to the model's last one, for their losses.

    Stale are a forward that was consumed, one older than that of a layer before it, and none at all.

    Args:
        records: of a model's layers, in order of depth.
    """
    overtaken = _overtaken([record._forwards for record in records])
    fresh = [
        record.routing is not None and not record._consumed and not old
        for record, old in zip(records, overtaken, strict=True)
    ]
    uncounted = [record._claim(taken) for record, taken in zip(records, fresh, strict=True)]
    if any(uncounted) and not any(record._said_uncounted for record in records):
        records[uncounted.index(True)]._say_uncounted()  # compiled code could not
    return fresh


def countable(records: Sequence[Record]) -> list[bool]:
    """Which layers' last training forward belongs to the model's last one and was not counted yet.

    Where `take_losses` saw it, that says so: a repetition by activation checkpointing, in the reverse order of layers,
    may have followed. In compiled code such a repetition cannot be told, so that order says nothing there.
    """
    overtaken = _overtaken([record._training_forwards for record in records])
    return [
        record.pending is not None and (record._claimed is not None or record._compiled or not old)
        for record, old in zip(records, overtaken, strict=True)
    ]


def _overtaken(places: Sequence[_Place]) -> list[bool]:
    """Which of a model's layers, in order of depth, ran before a forward in which a layer before them ran again."""
    stale: dict[_Place, bool] = {}
    for place in places:
        before = place.before
        layer = before.place
        stale[place] = layer in stale and (stale[layer] or layer.newest is not before)
    return list(stale.values())


def say_left_out(by: str, records: Sequence[Record], kept: Sequence[bool]) -> None:
    """Warn once of a model's layers that the last forward did not reach."""
    left_out = [i for i, keep in enumerate(kept) if not keep]
    if left_out and not all(records[i]._said_left_out for i in left_out):
        for record in records:
            record._said_left_out = True
        warnings.warn(
            f"{by} leaves out the DEX layers {left_out} (counted from 0): the last forward did not reach them (an "
            "early exit, forward_intermediates(stop_early=True)), and what an earlier one left there is not of this "
            "batch",
            stacklevel=3,
        )


def process_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The processes that share a batch: ``group``, or torch.distributed's default one where that is initialized.

    Returns:
        None for a process alone, a group of one included.

    Raises:
        TypeError: ``group`` is no process group.
    """
    if group is not None:
        check_kind("group", group, dist.ProcessGroup, "a process group of torch.distributed or None")
    elif dist.is_available() and dist.is_initialized():
        group = dist.group.WORLD
    return group if group is not None and dist.get_world_size(group) > 1 else None
