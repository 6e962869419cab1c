"""GEMA, the directors' update, of all layers of a model at once: time, and share of the largest copy's bandwidth.

    python -m bench.ema

    dexcore         dexcore.ops.group_ema_
    foreach         the experts' means by one matrix-vector product a tensor, then torch._foreach_lerp_
    published       a stacked copy of the experts' tensors, times Omega, summed; a new director

float32 parameters. What must be read and written at least are the experts that have a share, once, and the director
twice: (active + 2) times its bytes. The published loop is handed its experts as separate tensors, as it keeps them.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bench.command import Ceilings, Goal, Line, Options, Refused, capture_or_reason, judged, run, table_row
from bench.contenders import EXPERTS, MOMENTUM, TOP_K, WrongResultError, foreach_targets, relative_error
from bench.published import published_ema
from bench.routings import ROUTINGS, routing
from bench.timing import beside_ceilings, captured, interleaved, machine
from dexcore.nn.directors import expert_load
from dexcore.ops import group_ema_, reference

COPY_SHARE = 0.90  # the goal on an H100
_IMAGES = 224
MOVE_BOUND = 1e-3  # of how far the directors move: float32's roundings of the directors themselves


class Size(NamedTuple):
    """Layers and their width; the hidden layer is four times as wide."""

    layers: int
    width: int

    def __str__(self) -> str:
        return f"{self.layers} layers of width {self.width}"


def size_of(options: Options) -> Size:
    """ViT-B's twelve layers; fewer where a quarter of them fills the memory and the time of a CPU."""
    if options.quick:
        return Size(2, 32)
    return Size(12 if options.on_gpu else 3, 768)


class Model(NamedTuple):
    """The tensors of all layers' FFNs."""

    directors: list[Tensor]
    experts: list[Tensor]  # [R, *director.shape]
    weights: list[Tensor]  # [R], the same for all tensors of a layer


def make_model(size: Size, routing_name: str, device: torch.device) -> Model:
    """Random directors and experts, and the shares of a batch."""
    generator = torch.Generator(device).manual_seed(4)
    omega = expert_load(*routing(routing_name, _IMAGES, EXPERTS, TOP_K), EXPERTS)
    omega = (omega / omega.sum()).to(device)
    directors, experts = [], []
    hidden = 4 * size.width
    for _ in range(size.layers):
        for shape in ((hidden, size.width), (hidden,), (size.width, hidden), (size.width,)):
            directors.append(torch.randn(shape, generator=generator, device=device))
            experts.append(torch.randn(EXPERTS, *shape, generator=generator, device=device))
    return Model(directors, experts, [omega] * len(directors))


def contenders(model: Model) -> dict[str, Callable[[], object]]:
    """One update of all directors, which ``model.directors`` then holds; the first two work in place.

    A captured call goes on using the tensors that it was captured with: the closures keep them.
    """
    start = list(model.directors)
    separate = [tuple(expert.unbind(0)) for expert in model.experts]

    def foreach() -> None:
        torch._foreach_lerp_(start, foreach_targets(model.experts, model.weights[0]), 1 - MOMENTUM)

    def published() -> None:
        for i, (director, omega) in enumerate(zip(start, model.weights, strict=True)):
            model.directors[i] = published_ema(director, separate[i], omega, MOMENTUM)

    return {
        "dexcore": lambda: group_ema_(start, model.experts, model.weights, MOMENTUM),
        "foreach": foreach,
        "published": published,
    }


def moved_bytes(model: Model) -> int:
    """Experts that have a share, once, and the directors twice."""
    director = sum(tensor.numel() * tensor.element_size() for tensor in model.directors)
    return (int(model.weights[0].count_nonzero()) + 2) * director


def check(options: Options) -> Refused:
    """Hold every contender to the method in float64."""
    for routing_name in ROUTINGS:
        size = Size(1, size_of(options).width)
        start = make_model(size, routing_name, options.device)
        truth = [reference.group_ema(*tensors, MOMENTUM) for tensors in zip(*start, strict=True)]
        for name in contenders(start):
            model = make_model(size, routing_name, options.device)
            contenders(model)[name]()
            for before, after, expected in zip(start.directors, model.directors, truth, strict=True):
                error = relative_error(after.double() - before.double(), expected - before.double())
                if not error <= MOVE_BOUND:
                    raise WrongResultError(f"ema, {name}, {routing_name}: {error:.2g} off, allowed {MOVE_BOUND:.2g}")
    return {}


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """A table a routing. On a GPU from CUDA graphs, so that the host's part of the time is nobody's."""
    ceiling = ceilings[options.dtypes[0]]
    size, lines = size_of(options), []
    for routing_name in ROUTINGS:
        model = make_model(size, routing_name, options.device)
        calls = contenders(model)
        if options.on_gpu:
            for name, call in list(calls.items()):
                replay, reason = capture_or_reason(lambda call=call: captured(call))
                if replay is None:
                    print(f"{name} is timed with the host's part, since it cannot be captured: {reason}")
                else:
                    calls[name] = replay
        moved = moved_bytes(model)
        if options.on_gpu:
            times, ceiling = beside_ceilings(calls, options.seconds, options.dtypes[0], options.device, options.quick)
        else:
            times = interleaved(calls, options.seconds, options.device)
        print(f"{size}, {routing_name}: at least {moved / 1e6:.1f} MB")
        print(table_row("", "ms", "p20", "p80", "of copy", "x publ."))
        for name, time in times.items():
            share = moved / time.median / 1e9 / ceiling["copy_gbs"]
            speedup = times["published"].median / time.median
            cells = [f"{seconds * 1e3:.3f}" for seconds in (time.median, time.p20, time.p80)]
            print(table_row(name, *cells, f"{share:.2f}", f"{speedup:.2f}"), flush=True)
            line: Line = {"bench": "ema", **machine(options.device), **size._asdict(), "dtype": "float32"}
            line |= {"routing": routing_name, "contender": name, **vars(time), "bytes": moved, "copy_share": share}
            # A multiplication and an addition for every float32 that moves.
            line |= {"flops": 2 * moved // 4, "speedup": speedup, **ceiling}
            if name == "dexcore" and options.on_gpu:
                goal = Goal("share of the largest copy's bandwidth", share, COPY_SHARE)
                line |= judged(goal)
            lines.append(line)
    return lines


if __name__ == "__main__":
    run(__doc__, {"ema": sys.modules[__name__]})
