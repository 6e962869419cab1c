"""A DEX layer's training step against its bare GEMMs and against the published loop.

    python -m bench.layer            # all shapes, float32 and bf16
    python -m bench.layer --save     # the same, and a JSON line a shape in bench/results/layer.jsonl

A step is routing, experts, director, both losses, backward and GEMA. Its bare GEMMs are 2 of the director and 2 + 4
of the experts, each one large matmul over k*B*N rows into memory that is there already. ("strict" counts the
director's over B*N rows, as they are: no layer can reach 1.00 of either, since R experts read and write R times the
weights.) The published loop passes the same check of outputs, losses, gradients and directors before it is timed.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bench.published import PublishedLayer
from bench.timing import ceilings, interleaved, machine, peak_memory, write_line
from dexcore.nn import DEXMlp, update_directors
from dexcore.train.memory import keep_freed_memory

EXPERTS, TOP_K, MOMENTUM = 8, 2, 0.99
LAMBDA_ALIGN, LAMBDA_BALANCE = 0.01, 0.001
# Largest difference over the root mean square of the published loop's result.
BOUND = {torch.float32: 1e-4, torch.bfloat16: 0.15}


class Shape(NamedTuple):
    """Images, tokens an image, width; the hidden layer is four times as wide."""

    images: int
    tokens: int
    width: int


SHAPES = (Shape(32, 65, 768), Shape(16, 65, 384), Shape(64, 17, 192))
GOALS = dict(zip(SHAPES, (1.15, 1.30, 1.50), strict=True))


def layers(shape: Shape) -> dict[str, DEXMlp | PublishedLayer]:
    """The two layers with the same weights, experts unlike one another."""
    torch.manual_seed(0)
    ours = DEXMlp(shape.width, 4 * shape.width, num_experts=EXPERTS, top_k=TOP_K)
    published = PublishedLayer(shape.width, 4 * shape.width, EXPERTS, TOP_K)
    published.momentum = MOMENTUM
    with torch.no_grad():
        ours.router.weight.normal_(std=shape.width**-0.5)
        for experts, director in ours.expert_director_pairs():
            experts += director.std() * torch.randn_like(experts)
        published.router.weight.copy_(ours.router.weight)
        for mine, theirs in zip((ours.director.fc1, ours.director.fc2), (0, 2), strict=True):
            published.director[theirs].load_state_dict(mine.state_dict())
        for e, expert in enumerate(published.experts):
            for mine, theirs in zip((ours.experts.fc1, ours.experts.fc2), (0, 2), strict=True):
                expert[theirs].weight.copy_(mine.weight[e])
                expert[theirs].bias.copy_(mine.bias[e])
    return {"dexcore": ours, "published": published}


def make_step(contender: str, shape: Shape, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    """One contender's training step: "dexcore" or "published"."""
    return step_of(layers(shape)[contender], shape, dtype)


def step_of(layer: DEXMlp | PublishedLayer, shape: Shape, dtype: torch.dtype) -> Callable[[], list[Tensor]]:
    """A layer's training step, which returns output, both losses and the input's gradient."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, requires_grad=True)
    grad_y = torch.randn(shape, generator=generator)
    leaves = [x, *layer.parameters()]

    def step() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            if isinstance(layer, DEXMlp):
                y = layer(x)
                align, balance = layer.routing.align_loss, layer.routing.balance_loss
            else:
                y, align, balance = layer(x)
        losses = LAMBDA_ALIGN * align + LAMBDA_BALANCE * balance
        torch.autograd.backward([y, losses], [grad_y.to(y.dtype), torch.ones_like(losses)])
        if isinstance(layer, DEXMlp):
            update_directors(layer, MOMENTUM)
        return [y, align, balance, x.grad]

    return step


def results(contender: str, shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    """All that a contender's first step computes; an expert without a gradient has one of zeros."""
    layer = layers(shape)[contender]
    found = dict(zip(("y", "align", "balance", "dx"), step_of(layer, shape, dtype)(), strict=True))
    found["drouter"] = layer.router.weight.grad
    for i, fc in ((0, "fc1"), (2, "fc2")):
        for kind in ("weight", "bias"):
            if isinstance(layer, DEXMlp):
                found[f"d{fc}.{kind}"] = getattr(getattr(layer.experts, fc), kind).grad
                found[f"director.{fc}.{kind}"] = getattr(getattr(layer.director, fc), kind).detach()
            else:
                tensors = [getattr(expert[i], kind) for expert in layer.experts]
                found[f"d{fc}.{kind}"] = torch.stack(
                    [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]
                )
                found[f"director.{fc}.{kind}"] = getattr(layer.director[i], kind)
    return found


def bare_gemms(shape: Shape, dtype: torch.dtype, director_rows: int) -> Callable[[], object]:
    """The layer's GEMMs alone, each as one, into memory that is there already."""
    rows, width, hidden = TOP_K * shape.images * shape.tokens, shape.width, 4 * shape.width
    x, y = torch.randn(rows, width).to(dtype), torch.empty(rows, width, dtype=dtype)
    h, u = torch.empty(rows, hidden, dtype=dtype), torch.empty(rows, hidden, dtype=dtype)
    w1, w2 = torch.randn(hidden, width).to(dtype), torch.randn(width, hidden).to(dtype)
    dw1, dw2 = torch.empty_like(w1), torch.empty_like(w2)
    d = director_rows

    def call() -> None:
        torch.mm(x[:d], w1.t(), out=h[:d])
        torch.mm(h[:d], w2.t(), out=y[:d])
        torch.mm(x, w1.t(), out=h)
        torch.mm(h, w2.t(), out=y)
        torch.mm(x.t(), h, out=dw2)
        torch.mm(x, w2, out=u)
        torch.mm(u.t(), x, out=dw1)
        torch.mm(u, w1, out=y)

    return call


def check(shape: Shape, dtype: torch.dtype) -> float:
    """Largest relative difference between the two steps' results; RuntimeError where it is too large."""
    ours, published = (results(name, shape, dtype) for name in ("dexcore", "published"))
    worst = 0.0
    for name, theirs in published.items():
        scale = theirs.double().square().mean().sqrt().item()
        error = (ours[name].double() - theirs.double()).abs().max().item() / scale
        if not error <= BOUND[dtype]:
            raise RuntimeError(f"{shape} {dtype}: {name} differs by {error:.2g}, allowed {BOUND[dtype]:.2g}")
        worst = max(worst, error)
    return worst


def row(name: str, *cells: str) -> str:
    """A line of the table."""
    return f"{name:26}" + "".join(f"{cell:>10}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="add the results to bench/results/layer.jsonl")
    parser.add_argument("--seconds", type=float, default=12.0, help="about how long to measure a shape (default 12)")
    options = parser.parse_args()
    torch.set_num_threads(2)
    kept = keep_freed_memory()
    print(f"{machine()}; freed memory is {'kept' if kept else 'given back'}")
    print(
        row(
            "images x tokens x width", "step ms", "/ bare", "goal", "/ strict", "/ publ.", "MB", "MB publ.", "differ by"
        )
    )
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            difference = check(shape, dtype)
            rows = shape.images * shape.tokens
            against_gemms = interleaved(
                {
                    "bare": bare_gemms(shape, dtype, TOP_K * rows),
                    "strict": bare_gemms(shape, dtype, rows),
                    "dexcore": make_step("dexcore", shape, dtype),
                },
                options.seconds / 2,
            )
            against_loop = interleaved(
                {name: make_step(name, shape, dtype) for name in ("published", "dexcore")}, options.seconds / 2
            )
            times = {"published": against_loop["published"]} | against_gemms
            memory = {name: peak_memory(make_step, name, shape, dtype) for name in ("dexcore", "published")}
            ratios = {name: times["dexcore"].median / times[name].median for name in ("bare", "strict")}
            ratios["published"] = against_loop["dexcore"].median / against_loop["published"].median
            goal = f"{GOALS[shape]:.2f}" if dtype == torch.float32 else ""
            name = str(dtype).removeprefix("torch.")
            cells = [f"{times['dexcore'].median * 1e3:.1f}", f"{ratios['bare']:.2f}", goal, f"{ratios['strict']:.2f}"]
            cells += [f"{ratios['published']:.2f}", f"{memory['dexcore']:.0f}", f"{memory['published']:.0f}"]
            print(row(f"{' x '.join(map(str, shape))} {name}", *cells, f"{difference:.1e}"), flush=True)
            if options.save:
                line = {"bench": "layer", **machine(), **shape._asdict(), "dtype": name, **times, "ratios": ratios}
                write_line("layer", line | {"peak_mb": memory, "difference": difference, **ceilings(dtype)})


if __name__ == "__main__":
    main()
