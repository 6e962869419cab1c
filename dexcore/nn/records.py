"""What the forwards of DEX layers leave behind: one `Record` a layer, the single owner of it.

`DEXMlp` writes a forward's routing into its record; `aux_losses`, `record_load`, `update_directors` and the rest read
there. A record knows whether its forward was in training, whether it was counted or consumed, and when it was: a layer
that a later forward did not reach (an early exit, ``forward_intermediates(stop_early=True)``) is stale.

Every forward of a layer has a `_Stamp`. Eager forwards number theirs. Compiled code cannot count, since it would be
compiled anew for every number: there each stamp knows the one after it, and its age is the number of the next numbered
stamp less the steps to it. Example, with stamps in order of time:

    a1 a2 a3 of a compiled forward, then b1 of an eager one, numbered 8:   ages (8, -3) (8, -2) (8, -1) (8, 0)
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.module_tracker import ModuleTracker

from dexcore.ops.backend import Choice

_TRACKER = ModuleTracker()  # for is_bw alone: whether a backward is running


class Routing(NamedTuple):
    """What a DEX layer's last forward chose. With gradient in training until it is consumed; detached in eval."""

    gates: Tensor  # [B, k]
    indices: Tensor  # [B, k]
    probs: Tensor  # [B, R]
    align_loss: Tensor | None  # 0-dim; None where no losses were asked for (`dexcore.nn.set_aux`)
    balance_loss: Tensor | None  # 0-dim; None likewise

    def detach(self) -> "Routing":
        """Without gradient."""
        return Routing(*(None if tensor is None else tensor.detach() for tensor in self))  # type: ignore[arg-type]


class _Stamp:
    """One forward of one layer."""

    def __init__(self) -> None:
        self.age: tuple[int, int] | None = None
        self.next: _Stamp | None = None  # in compiled code, until the age is known
        self.counted = False  # by record_load, or consumed
        self.consumed = False  # by update_directors or discard_load
        self.overwrote = False  # one that was not counted
        self.fresh: bool | None = None  # as `judge_last_forward` found; None: it did not look


def _none_yet() -> _Stamp:
    """The stamp of a layer before its first forward."""
    stamp = _Stamp()
    stamp.age, stamp.counted, stamp.consumed = (0, 0), True, True
    return stamp


class _Clock:
    """The forwards of all layers in this process, in order."""

    def __init__(self) -> None:
        self.newest, self.number = _none_yet(), 0

    def stamp(self) -> _Stamp:
        """A new one; called in compiled code too, which reads no number here."""
        stamp = _Stamp()
        if torch.compiler.is_compiling():
            self.newest.next = stamp
        else:
            self.settle()
            self.number += 1
            stamp.age = self.number, 0
        self.newest = stamp
        return stamp

    def settle(self) -> None:
        """Give the newest stamp its age, and so one to all before it."""
        if self.newest.age is None:
            self.number += 1
            self.newest.age = self.number, 0

    def age(self, stamp: _Stamp) -> tuple[int, int] | None:
        """Of a stamp, once the newest one is settled; None where it is not known. It is kept and ends the chain."""
        steps, later = 0, stamp
        while later.age is None:
            if later.next is None:
                return None
            steps, later = steps + 1, later.next
        number, further = later.age
        stamp.age, stamp.next = (number, further - steps), None
        return stamp.age


_CLOCK = _Clock()
_RECORDS: "WeakSet[Record]" = WeakSet()  # all, so that none holds on to the stamps of compiled forwards


class Record:
    """What the last forwards of one DEX layer left behind.

    Attributes:
        routing: of the last forward; None before one.
        training: whether that was a training forward.
        pending: gates and indices [B, k] of the last training forward, until they are counted.
        recorded: gates that each expert received [R] in the micro-batches counted since the director's last update.
        shared: whether ``recorded`` is already the sum over the processes.
        skipped: updates in which the director stayed as it was since Omega was not finite; a 0-dim tensor, or None.
        updated: whether the director was updated since the layer was made, copied or loaded.
        chosen: the backend that ran the experts in the last forward, and why; None where none did.
    """

    routing: Routing | None
    chosen: Choice | None
    pending: tuple[Tensor, Tensor] | None
    recorded: Tensor | None
    skipped: Tensor | None

    def __init__(self) -> None:
        self.training = self.shared = self.updated = False
        self.routing = self.chosen = self.pending = self.recorded = self.skipped = None
        self._stamp = self._training_stamp = self._over = _none_yet()
        self._compiled = False  # the pending forward ran in compiled code
        self._learned = False  # it ran with gradient, of a layer that learns by gradient
        self._with_grad = False  # one since the last update did
        self._position = 0  # among the model's layers, in the order in which they run
        self._said_uncounted = self._said_left_out = False
        _RECORDS.add(self)

    def write(self, routing: Routing, training: bool, learns: bool) -> None:
        """Note a forward, in place of the one before. One that activation checkpointing repeats changes nothing.

        Args:
            routing: with gradient; in eval it is detached here.
            training: whether the layer is in training.
            learns: whether its router or experts do, by gradient.

        Raises:
            RuntimeError: the layer runs again in a backward and ran without gradient before: under
                ``use_reentrant=True``, which loses the gradients of the auxiliary losses.
        """
        compiled = torch.compiler.is_compiling()
        if not compiled and _TRACKER.is_bw:
            if training and not self._with_grad:
                raise RuntimeError(
                    "a DEX layer in training ran under activation checkpointing with use_reentrant=True, which loses "
                    "the gradients of the auxiliary losses; pass use_reentrant=False"
                )
            return
        self.training, self.routing = training, routing if training else routing.detach()
        if not training:  # of unknown age in compiled code: where all only evaluate, nothing would end the chain
            self._stamp = _Stamp() if compiled else _CLOCK.stamp()
            return
        before, stamp, with_grad = _CLOCK.newest, _CLOCK.stamp(), torch.is_grad_enabled()
        self._over, self._stamp, self._training_stamp = self._training_stamp, stamp, stamp
        if not compiled and not self._over.counted:
            stamp.overwrote = True
            # The layers after the first one would only say it again.
            if learns and with_grad and self._learned and not before.overwrote:
                self._say_uncounted()
        self.pending = routing.gates.detach(), routing.indices
        self._compiled, self._learned = compiled, learns and with_grad
        if with_grad:
            self._with_grad = True

    def forget_routing(self) -> None:
        """After a forward that chose no experts (director mode)."""
        self.routing = None

    def add(self, load: Tensor) -> None:
        """Count the last training forward: the gates [R] that experts received.

        Raises:
            RuntimeError: what was recorded is the processes' sum already.
        """
        if self.shared:
            raise RuntimeError(
                "the recorded loads were shared between processes already: call update_directors or discard_load "
                "before you record more"
            )
        self.recorded = load if self.recorded is None else self.recorded + load
        self._training_stamp.counted = True
        self.pending = None

    def share(self, load: Tensor) -> None:
        """Put the processes' sum [R] in place of what was recorded."""
        self.recorded, self.shared = load, True

    def consume(self, updated: bool = False) -> None:
        """Forget all use of experts; the routing stays to be looked at, but its losses are taken no more.

        Args:
            updated: whether the director followed.
        """
        self.updated = self.updated or updated
        self.pending = self.recorded = None
        if self.routing is not None:  # its graph may hold the model, through hooks: with FSDP2 neither would ever go
            self.routing = self.routing.detach()
        for stamp in (self._stamp, self._training_stamp):
            stamp.counted = stamp.consumed = True
        self.shared = self._with_grad = False

    def count_skipped(self, wrong: Tensor) -> None:
        """Count an update that left the director as it was where ``wrong`` (0-dim, bool) says so."""
        if self.skipped is None:
            self.skipped = wrong.new_zeros((), dtype=torch.int64)
        self.skipped = self.skipped.to(wrong.device)
        self.skipped += wrong  # in place: a CUDA graph counts on

    def _say_uncounted(self) -> None:
        if self._said_uncounted:
            return
        self._said_uncounted = True
        warnings.warn(
            "a second training forward of a DEX layer ran over one whose use of experts was not counted: "
            "update_directors sees the last one alone. With gradient accumulation call record_load(model) after each "
            "micro-batch; call update_directors(model, ...) once a step, or discard_load(model) where you skip one. Of "
            "a layer that runs several times in a forward the last run alone is counted",
            stacklevel=2,
        )

    def __deepcopy__(self, memo: dict[int, object]) -> "Record":
        """Without the live tensors of the last forward: they can be neither copied nor pickled."""
        return Record()

    def __reduce__(self) -> tuple[type["Record"], tuple[()]]:
        return Record, ()


def judge_last_forward(records: Sequence[Record]) -> list[bool]:
    """Which layers' last forward belongs to the model's last one, for their losses; each notes it.

    Stale are a forward that was consumed, one older than that of a layer before it, and none at all.

    Args:
        records: of a model's layers, in the order of its modules. Where a complete forward was seen before, they are
            held to the order in which it ran.
    """
    _settle()
    stamps = [record._stamp for record in records]
    stale = _stale(records, stamps, all(record.training for record in records))
    uncounted = [
        record for record in records if record._stamp.fresh is None and record._over.fresh and not record._over.counted
    ]
    if uncounted and not any(record._said_uncounted for record in records):
        uncounted[0]._say_uncounted()  # compiled code could not
    fresh = []
    for record, stamp, old in zip(records, stamps, stale, strict=True):
        stamp.fresh = record.routing is not None and not stamp.consumed and not old
        fresh.append(stamp.fresh)
    return fresh


def countable(records: Sequence[Record]) -> list[bool]:
    """Which layers' last training forward belongs to the model's last one and was not counted yet.

    Where `judge_last_forward` looked, it has said so: in compiled code a repetition by activation checkpointing may
    have followed since, in the reverse order of layers. Without that word, order says nothing in compiled code.
    """
    _settle()
    stale = _stale(records, [record._training_stamp for record in records], True)
    found = []
    for record, old in zip(records, stale, strict=True):
        verdict = record._training_stamp.fresh
        if verdict is None and record._compiled:
            over = record._over
            verdict = True if over.fresh is None or over.counted else over.fresh
        found.append(record.pending is not None and (not old if verdict is None else verdict))
    return found


def say_left_out(by: str, records: Sequence[Record], kept: Sequence[bool]) -> None:
    """Warn once of a model's layers that the last forward did not reach."""
    left_out = [i for i, keep in enumerate(kept) if not keep]
    if all(records[i]._said_left_out for i in left_out):
        return
    for i in left_out:
        records[i]._said_left_out = True
    warnings.warn(
        f"{by} leaves out the DEX layers {left_out} (counted from 0): the last forward did not reach them (an early "
        "exit, forward_intermediates(stop_early=True)), and what an earlier one left there is not of this batch",
        stacklevel=3,
    )


def _settle() -> None:
    _CLOCK.settle()
    for record in list(_RECORDS):
        for stamp in (record._stamp, record._training_stamp, record._over):
            _CLOCK.age(stamp)


def _stale(records: Sequence[Record], stamps: Sequence[_Stamp], training: bool) -> list[bool]:
    """Whether each is older than one of a layer that runs before it."""
    ages = [stamp.age for stamp in stamps]
    known = [age for age in ages if age is not None]
    # All ran once since what they left was counted or consumed: a complete forward, which tells the order.
    once = [record._over.counted and not stamp.counted for record, stamp in zip(records, stamps, strict=True)]
    if training and all(once) and len(known) == len(records):
        for position, known_age in enumerate(sorted(known)):
            records[ages.index(known_age)]._position = position
        return [False] * len(records)
    stale = [False] * len(records)
    newest = (0, 0)
    for i in sorted(range(len(records)), key=lambda i: records[i]._position):
        age = ages[i]
        if age is not None:
            stale[i], newest = age < newest, max(age, newest)
    return stale
