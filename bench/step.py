"""A whole training step against the published one; and `bench.preset`: where the laptop preset's step spends its time.

    python -m bench.step

    dexcore         dexcore.train.loop.Pretraining.step: forward, losses, backward, clipping, fused AdamW, GEMA
    published       bench.published.PublishedTraining, with the same weights, images, masks and router noise
    published, fast layers
                    the same with dexcore's choice of kernels outside the DEX layers, where it is another than PyTorch's
                    (`dexcore.nn.fast_layers`): what that alone brings
    published, float32
                    the same without autocast, beside the bf16 steps on a CPU

A masked autoencoder of 256 pixels with MAE's decoder, in float32 and, on a CPU with bf16 instructions, where it is
dexcore's default, under bf16 autocast. "x publ." is against the published step in the same precision; on a CPU the
goals of both precisions are against the published step in float32. ViT-S has several batch sizes: the more images, the
more of a step is the dense decoder's GEMMs, nearly the same in all. Of ViT-B a quarter of the blocks, encoder and
decoder: two whole ones with their gradients and AdamW's moments are 18 GB. On a GPU it is whole. The router noise makes
every image of every block choose its experts far from a tie, so that no rounding changes a route.

Before anything is timed, with a few of the images and blocks, losses, clipped gradients, the directors' movement, and
what an update does to the loss are held to the published step in float64, from which dexcore may err twice as much as
the published step in the same precision, at its worst in any block. For that the first step has a learning rate of 0:
the published directors follow the experts of before the update, dexcore's those of after.

FLOPs are those of all GEMMs of a contender's step; dexcore predicts no visible patch. Bytes are what parameters,
gradients and moments must move at least, activations not.
"""

import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import dexcore.ops.flops  # noqa: F401  # teaches FlopCounterMode the DEX ops
from bench.command import Ceilings, Goal, Line, Options, Refused, dtype_name, run, table_row
from bench.contenders import WrongResultError, director, gradients, relative_error
from bench.ema import MOVE_BOUND
from bench.preset import measure_preset
from bench.published import PublishedTraining
from bench.routings import routing
from bench.timing import interleaved, machine
from dexcore.data.store import write_store
from dexcore.data.synthetic import SyntheticMVU
from dexcore.extras import MissingExtraError
from dexcore.models.precision import compute_dtype, fast_bf16
from dexcore.nn import fast_layers
from dexcore.nn.linear import faster_by_onednn
from dexcore.nn.mlp import DEXMlp
from dexcore.train.config import DataConfig, ModelConfig, PretrainConfig, RunConfig
from dexcore.train.loop import Pretraining
from dexcore.train.schedules import StepValues

GOALS = {torch.float32: 1.15, torch.bfloat16: 2.0}  # times the published step's speed in float32, on a CPU
IN_FLOAT32 = "published, float32"
_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
# Over the root mean square, allowed beyond twice the published step's own error.
_LUCK = {torch.float32: 1e-5, torch.bfloat16: 2e-3}
# Of how an update changes the loss: directors that follow before or after it differ by 1 - m of its way, and Adam
# takes full steps where a gradient is little but rounding.
_CHANGE_BOUND = 0.05
_VALUES = StepValues(lr=1e-4, momentum=0.99, noise_std=1.0, lambda_balance=0.001)
_ROUTER_STD, _UNUSED = 0.01, -4.0  # so that the noise alone decides

Batch = dict[str, Tensor]
Training = Pretraining | PublishedTraining


class Case(NamedTuple):
    """Images a step, and the autoencoder's encoder and decoder."""

    name: str
    images: int
    width: int
    heads: int
    layers: int
    decoder_layers: int
    image_size: int = 256
    decoder_width: int = 512

    @property
    def tokens(self) -> int:
        """That the encoder sees of an image: the class token and a quarter of the patches."""
        return 1 + (self.image_size // 16) ** 2 // 4

    def __str__(self) -> str:
        blocks = f"{self.layers} + {self.decoder_layers} blocks"
        return f"{self.name}, {blocks}, {self.images} x {self.tokens} x {self.width}"


SMALL = [Case("ViT-S", images, 384, 6, 12, 8) for images in (4, 8, 16)]
BASE, BASE_ON_GPU = Case("ViT-B, a quarter", 8, 768, 12, 3, 2), Case("ViT-B", 64, 768, 12, 12, 8)
QUICK = Case("tiny", 4, 32, 2, 2, 1, image_size=64, decoder_width=32)


def cases(options: Options) -> tuple[Case, ...]:
    if options.quick:
        return (QUICK,)
    return (BASE_ON_GPU,) if options.on_gpu else (*SMALL, BASE)


def dtypes(options: Options) -> list[torch.dtype]:
    """What is measured: bf16 only where there are instructions for it."""
    return [dtype for dtype in options.dtypes if dtype == torch.float32 or fast_bf16(options.device)]


def make_config(case: Case, dtype: torch.dtype, device: torch.device, store: str) -> PretrainConfig:
    model = ModelConfig(
        image_size=case.image_size,
        dim=case.width,
        heads=case.heads,
        depth=case.layers,
        decoder_dim=case.decoder_width,
        decoder_depth=case.decoder_layers,
    )
    run = RunConfig(device=str(device), precision=_PRECISIONS.get(dtype, "fp32"))  # type: ignore[arg-type]
    return PretrainConfig(model=model, data=DataConfig(store=store, batch_size=case.images, workers=0), run=run)


def make_training(contender: str, case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Training, Batch]:
    """A contender, "dexcore" or "published", with the weights that both share, and the batch of a step.

    ``dtype``: bfloat16 is autocast, with parameters in float32.
    """
    with tempfile.TemporaryDirectory() as folder:
        images = SyntheticMVU(size=case.image_size)
        write_store(map(images.record, range(case.images)), Path(folder) / "store", name="bench")
        training = Pretraining(make_config(case, dtype, device, f"{folder}/store"), Path(folder))
        batch = next(iter(training.batches(workers=0)))
    generator = torch.Generator(device).manual_seed(5)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=device).to(like)

    with torch.no_grad():
        for layer in training.layers:
            layer.router.weight.copy_(_ROUTER_STD * normal(layer.router.weight))
            for experts, _ in layer.expert_director_pairs():
                experts += 0.02 * normal(experts)
    batch["router_noise"] = torch.cat(
        [_steering(layer, case.images, turn) for turn, layer in enumerate(training.layers)], dim=1
    )
    training.model.train()
    if contender == "published":
        stored = torch.promote_types(dtype, torch.float32)
        return PublishedTraining(training.model, training.config, stored), batch
    return training, batch


def _steering(layer: DEXMlp, images: int, turn: int) -> Tensor:
    """Noise [B, R] that makes a router choose uniformly, with gates far from 0; other images in other blocks."""
    gates, indices = routing("uniform", images, layer.num_experts, layer.top_k)
    unused = torch.full((images, layer.num_experts), _UNUSED)
    return unused.scatter(1, indices, layer.tau * gates.log()).roll(turn, dims=0)


def take_step(training: Training, batch: Batch, values: StepValues, fast: bool = False) -> dict[str, Any]:
    """One step as its loop takes it; ``fast``: the published one with dexcore's choice of kernels (`fast_layers`)."""
    if fast or isinstance(training, Pretraining):
        with fast_layers(training.model, compute_dtype(training.device, training.config.run.precision)):
            return training.step(batch, values)
    return training.step(batch, values)


def results(training: Training, batch: Batch) -> dict[str, Tensor]:
    """All that three steps compute: the first without an update, then what the second's update does to the loss."""
    starts = [{name: tensor.clone() for name, tensor in director(layer).items()} for layer in training.layers]
    line = take_step(training, batch, replace(_VALUES, lr=0.0))
    names = ("loss", "loss_self", "loss_align", "loss_balance", "grad_norm")
    first = {name: torch.tensor(line[name], dtype=torch.float64) for name in names}
    found = dict(first)
    for name, parameter in training.model.named_parameters():
        if parameter.requires_grad and not (name.startswith("encoder.blocks.") and ".mlp." in name):
            found[f"gradient of {name}"] = parameter.grad.clone()
    for i, (layer, start) in enumerate(zip(training.layers, starts, strict=True)):
        # Clones, since the next backward or update may write into the same memory.
        found |= {f"block {i}: {name}": tensor.clone() for name, tensor in gradients(layer).items()}
        found |= {f"block {i}: {name}'s move": tensor - start[name] for name, tensor in director(layer).items()}
    take_step(training, batch, _VALUES)
    line = take_step(training, batch, _VALUES)
    return found | {f"{name}'s change": line[name] - first[name] for name in names[:2]}


def check_case(case: Case, precisions: Iterable[torch.dtype], device: torch.device) -> dict[torch.dtype, float]:
    """Hold dexcore's step to the published one in float64; returns its largest error, as a share of what is allowed.

    Raises:
        WrongResultError: something is further off than allowed.
    """
    truth = results(*make_training("published", case, torch.float64, device))
    worst = {}
    for dtype in precisions:
        published, ours = (results(*make_training(name, case, dtype, device)) for name in ("published", "dexcore"))
        if ours.keys() != truth.keys():
            raise WrongResultError(f"{case}: dexcore and published differ in {sorted(ours.keys() ^ truth.keys())}")
        worst[dtype] = 0.0
        # A single small tensor's largest error is luck: the published step's is taken over all blocks.
        own: dict[str, float] = {}
        for name, true in truth.items():
            own[_role(name)] = max(own.get(_role(name), 0.0), relative_error(published[name], true))
        for name, true in truth.items():
            luck = {"move": MOVE_BOUND, "change": _CHANGE_BOUND}.get(name.split("'s ")[-1], _LUCK[dtype])
            allowed = 2 * own[_role(name)] + luck
            error = relative_error(ours[name], true)
            if not error <= allowed:
                raise WrongResultError(f"{case} {dtype_name(dtype)}: {name} is {error:.2g} off, allowed {allowed:.2g}")
            worst[dtype] = max(worst[dtype], error / allowed)
    return worst


def _role(name: str) -> str:
    """A result's name without its block's number."""
    return re.sub(r"(blocks?[ .])\d+", r"\1*", name)


def check(options: Options) -> Refused:
    """Hold dexcore's step to the published one, with a few of the images and blocks that are timed."""
    smaller = [
        case._replace(images=4, layers=min(case.layers, 3), decoder_layers=min(case.decoder_layers, 2))
        for case in cases(options)
    ]
    for fewer in dict.fromkeys(smaller):
        for dtype, worst in check_case(fewer, dtypes(options), options.device).items():
            print(f"{fewer} {dtype_name(dtype)}: errors reach {worst:.2f} of what is allowed", flush=True)
    return {}


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """A table a size and precision; on a CPU the goals, and the laptop preset's table."""
    lines = []
    for case in cases(options):
        for dtype in dtypes(options):
            lines += measure_case(case, dtype, options, ceilings)
    if options.on_gpu:
        return lines  # a host's clock tells little of the parts there
    if not fast_bf16(options.device):
        print("bf16 is not timed: this CPU has no instructions for it, and trains in float32")
    try:
        lines += measure_preset(options)
    except MissingExtraError as error:
        print(f"skipped: the laptop preset, since {error}")
    return lines


def measure_case(case: Case, dtype: torch.dtype, options: Options, ceilings: Ceilings) -> list[Line]:
    """The contenders' steps in turn."""
    steps: dict[str, Callable[[], object]] = {}
    flops = {}
    for contender in ("dexcore", "published"):
        training, batch = make_training(contender, case, dtype, options.device)
        steps[contender] = partial(take_step, training, batch, _VALUES)
        flops[contender] = step_flops(training, batch)
        if isinstance(training, Pretraining):
            moved = least_bytes(training)
            continue
        in_bf16 = dtype == torch.bfloat16 and not options.on_gpu
        if in_bf16 or faster_by_onednn(options.device):
            steps["published, fast layers"] = partial(take_step, training, batch, _VALUES, fast=True)
        if in_bf16:
            training, batch = make_training("published", case, torch.float32, options.device)
            steps[IN_FLOAT32] = partial(take_step, training, batch, _VALUES)
    times = interleaved(steps, options.seconds, options.device)

    print(
        f"{case} {dtype_name(dtype)}: {flops['dexcore'] / 1e9:.3g} GFLOP, published {flops['published'] / 1e9:.3g}; "
        f"at least {moved / 1e6:.4g} MB of parameters"
    )
    print(table_row("", "step ms", "p20", "p80", "of GEMM", "of copy", "x publ.", width=31))
    lines = []
    for name, taken in times.items():
        ceiling = ceilings[torch.float32 if name == IN_FLOAT32 else dtype]
        computed = flops[name.partition(",")[0]]
        shares = {
            "gemm_share": computed / taken.median / 1e9 / ceiling["gemm_gflops"],
            "copy_share": moved / taken.median / 1e9 / ceiling["copy_gbs"],
            "speedup": times["published"].median / taken.median,
        }
        cells = [f"{seconds * 1e3:.1f}" for seconds in vars(taken).values()]
        print(table_row(name, *cells, *(f"{share:.2f}" for share in shares.values()), width=31), flush=True)
        line: Line = {"bench": "step", **machine(options.device), "kind": case.name, "contender": name}
        line |= {"images": case.images, "tokens": case.tokens, "width": case.width, "layers": case.layers}
        line |= {"decoder_layers": case.decoder_layers, "dtype": dtype_name(dtype), **vars(taken)}
        line |= {"flops": computed, "bytes": moved, **shares, **ceiling}
        if name == "dexcore" and not (options.on_gpu or options.quick):
            goal = Goal(
                "times the speed of the published step in float32",
                times.get(IN_FLOAT32, times["published"]).median / taken.median,
                GOALS[dtype],
            )
            line["goals"] = [goal.record]
        lines.append(line)
        for goal_line in line.get("goals", []):
            print(f"  {Goal(*list(goal_line.values())[:3])}")
    return lines


def step_flops(training: Training, batch: Batch) -> int:
    """Of all GEMMs of a step, which this takes.

    With the kernels of bf16 on a CPU, in either precision: the counter knows the parts of attention, but not the fused
    one there.
    """
    with FlopCounterMode(display=False) as counter, fast_layers(training.model, torch.bfloat16):
        training.step(batch, _VALUES)
    return counter.get_total_flops()


def least_bytes(training: Pretraining) -> int:
    """What parameters must move at least, in float32 numbers.

    A trained one 11: read by forward and backward, its gradient written, read for the norm and again by the optimizer,
    which reads and writes parameter and two moments. An expert's one more for GEMA, and a director's 3: read by the
    forward, read and written by GEMA.
    """
    trained = sum(parameter.numel() for parameter in training.parameters)
    pairs = [pair for layer in training.layers for pair in layer.expert_director_pairs()]
    return 4 * (11 * trained + sum(experts.numel() + 3 * director.numel() for experts, director in pairs))


if __name__ == "__main__":
    run(__doc__, {"step": sys.modules[__name__]})
