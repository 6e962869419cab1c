"""``dexcore plan``: what pre-training on many GPUs would take.

Heavy imports wait until the command runs.
"""

import argparse

_PLAN = (
    "Predict, for each kind of parallelism, a process's memory, the time of a step and of a whole run on GPUs that are "
    "not there: from counted FLOPs, bytes and messages and the data sheet of a card. Nothing is computed on a device."
)


def add_plan_command(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dexcore plan`` to its parser."""
    parser.description = _PLAN
    add = parser.add_argument
    add("--gpus", type=int, required=True, metavar="N", help="in all")
    add("--gpu", default="h100", choices=("a100", "h100", "h200", "b200"), help="which (default: h100)")
    add("--gpus-per-node", type=int, default=8, metavar="N", help="of a machine (default: 8)")
    add(
        "--model",
        default="base",
        choices=("base", "large", "huge"),
        help="ViT-B, -L or -H (default: base)",
    )
    add(
        "--batch-size",
        type=int,
        metavar="N",
        help="of a step (default: the paper's 448, or what all can share)",
    )
    add("--epochs", type=float, default=200.0, help="of the run (default: 200, the paper's)")
    add("--images", type=int, metavar="N", help="an epoch (default: 4,970,000, those of MVU)")
    add(
        "--grad-checkpointing",
        nargs="?",
        default="none",
        const="block",
        choices=("none", "block", "selective"),
        help="run blocks again in the backward, whole (the default where no value follows) or selectively",
    )
    add("--offload", action="store_true", help="shards of fsdp and hsdp in host memory")
    add("--efficiency", type=float, metavar="E", help="of the peak in matrix products (default: 0.4, assumed)")
    add("--price-per-gpu-hour", type=float, metavar="X", help="tell what the run costs")


def run_plan(arguments: argparse.Namespace) -> int:
    """Run ``dexcore plan``; the return value is the process's."""
    from dexcore.engine.config import check_field
    from dexcore.train import plan

    given = arguments
    machines = plan.Machines(
        given.gpus,
        plan.GPUS[given.gpu],
        given.gpus_per_node,
        plan.EFFICIENCY if given.efficiency is None else given.efficiency,
    )
    batch = plan.fitting_batch(plan.PRESETS["paper"].data.batch_size, given.gpus)
    batch = batch if given.batch_size is None else given.batch_size
    images = plan.MVU_IMAGES if given.images is None else given.images
    for flag, value in (("--epochs", given.epochs), ("--images", images), ("--batch-size", batch)):
        check_field(value > 0, flag, "a number above 0", value)
    price = given.price_per_gpu_hour
    check_field(price is None or price >= 0, "--price-per-gpu-hour", "at least 0", price)
    counted = plan.count(plan.MODELS[given.model])
    steps = given.epochs * images / batch
    plans = [
        plan.plan(counted, machines, kind, batch, given.grad_checkpointing, given.offload)
        for kind in plan.KINDS
        if kind != "hsdp" or given.gpus > given.gpus_per_node
    ]
    print("\n".join(plan.told(counted, machines, plans, batch, steps, price)))
    return 0
