"""What of a run's configuration may be another when it is resumed."""

from typing import TYPE_CHECKING

from dexcore.engine.config import flat

if TYPE_CHECKING:  # which asks here what may be allowed
    from dexcore.train.config import PretrainConfig

# A run may be resumed with other values of these; a change of any other would be another run.
MAY_CHANGE_ON_RESUME = frozenset(
    {
        "out",
        "resume",
        "allow_change",
        "dry_run",
        "replay",
        "model.grad_checkpointing",  # what the memory of another machine asks for
        "data.store",  # its content is compared by fingerprint
        "data.images",
        "data.modality",
        "data.accumulate",
        "data.workers",
        "data.cache",
        "data.max_replaced",
        "objective.teacher",  # its weights are compared by their hash
        "objective.weights",
        "parallel.kind",  # but for the order of sums the same numbers
        "parallel.replicas",
        "parallel.offload",
        "run.compile",  # but for roundings the same numbers
        "run.deterministic",
        "run.checkpoint_every",
        "run.checkpoint_async",
        "run.keep_checkpoints",
        "run.max_skipped",
        "run.roll_back",
        "run.evaluate_images",
        "run.stuck_after",
        "run.profile",
        "run.memory_snapshot",
        "run.sinks",
        "run.evaluate_every",  # it looks on, and changes nothing, as do probes
        "run.probe_task",
        "run.probe_every",
    }
)

# And of these where ``allow_change`` names them: the weights and the order of images stay those of the run.
CHANGES_IF_ALLOWED = frozenset(
    {
        "optimizer.base_lr",
        "optimizer.min_lr",
        "optimizer.warmup_epochs",
        "optimizer.weight_decay",
        "optimizer.beta1",
        "optimizer.beta2",
        "optimizer.clip_norm",
        "optimizer.layer_decay",
        "dex.lambda_align",
        "dex.lambda_balance",
        "dex.balance_schedule",
        "dex.momentum_start",
        "dex.momentum_end",
        "dex.noise_start",
        "data.flip",
        "data.intensity",
        "data.min_area",
        "data.rotation",
        "run.device",
        "run.epochs",
        "run.precision",
        "run.tf32",
    }
)


def differences(before: "PretrainConfig", now: "PretrainConfig") -> dict[str, str]:
    """The fields that make ``now`` another run than ``before``, and lines ``model.dim: 768 -> 384`` of them."""
    old = dict(flat(before))
    return {
        name: f"{name}: {old[name]!r} -> {value!r}"
        for name, value in flat(now)
        if name not in MAY_CHANGE_ON_RESUME and value != old[name]
    }
