"""What a fine-tuning is made of: one frozen dataclass, and the two presets.

The defaults are what is published of the paper's (AdamW, a rate of 1e-4, ten epochs of warm-up, a cosine, Dice +
cross-entropy) and, for the rest, which is not public, ours; each field says which. How a configuration is read from
the command line or a YAML file is `dexcore.commands.finetune`.
"""

import os
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from dexcore.data.feed.augment import Augmentation
from dexcore.engine.config import check_field, check_kinds, check_values
from dexcore.engine.schedules import learning_rate
from dexcore.report.files import MODEL_FOLDER

_EPOCHS, _FEWEST_STEPS, _MOST_STEPS = 100.0, 2_000, 20_000
_STATES = (MODEL_FOLDER, "best")  # of a fine-tuning's folder: the last state, and the best on val
_SEED = re.compile(r"seed-\d+")
_WARMUP_SHARE = 0.1  # of the steps: the most that a warm-up takes

_LEAST = {
    **{"img_size": 1, "batch_size": 1, "seeds": 1, "seed": 0, "steps": 0, "decoder_width": 0, "workers": -1},
    **{"validations": 0, "checkpoint_every": 1, "max_skipped": 1},
}
_MOST = {"img_size": 1 << 14, "batch_size": 1 << 20, "seeds": 1000, "seed": 2**32 - 1, "steps": 10**9, "workers": 1024}
_NOT_NEGATIVE = ("epochs", "min_lr", "warmup_epochs", "weight_decay", "lambda_align", "lambda_balance")
_SHARES = ("drop_path", "dropout", "flip", "cache")


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning of one model on one task, with one seed or several."""

    task: str = ""
    """The YAML of a task."""
    model: str = ""
    """A folder of dexcore's (a run's, or a saved model), or the name of a model of timm's."""
    out: str = "runs/finetune"
    """The folder of all results: OUT/NAME/MODE/TASK/seed-N."""
    weights: str = ""
    """Of a model of timm's: a file, pretrained (timm fetches them from the network) or random."""
    name: str = ""
    """Of the model, in folders and tables; empty: from MODEL."""
    mode: Literal["experts", "director", "scratch"] = "experts"
    """What of a model with experts is trained: experts and router, the director alone, or the experts of the same
    architecture drawn anew. A dense model has but its weights, or scratch."""
    seed: int = 0
    """Of the head, the order of images and their changes; the first of several."""
    seeds: int = 1
    """How many trainings, of the seeds from seed on; each has its folder, and is not run again when it is done."""
    img_size: int = 256
    """Side of the images in pixels (ours; the paper pre-trains at 256); positions are resampled."""
    batch_size: int = 16
    """Images a step, over all processes (ours)."""
    epochs: float = 0.0
    """Passes over the training images; 0: 100, or as many as make 2,000 steps, but at most 20,000 steps (ours)."""
    steps: int = 0
    """Steps in place of epochs; 0: by epochs."""
    lr: float = 1e-4
    """Learning rate at the end of the warm-up (published)."""
    min_lr: float = 0.0
    """Where the cosine ends (ours)."""
    warmup_epochs: float = 10.0
    """Epochs of linear rise (published), but at most a tenth of the steps (ours)."""
    weight_decay: float = 0.05
    """Of AdamW (ours); none on biases, norms and tokens."""
    layer_decay: float = 1.0
    """Factor on the rate from one block to the one before it; 1: none (ours)."""
    clip_norm: float = 1.0
    """Largest norm of the whole gradient (ours)."""
    drop_path: float = 0.0
    """How often the last block is skipped in training; the first ones less (ours: never)."""
    dropout: float = 0.0
    """Of the features before the linear layer of a classification (ours: none)."""
    pool: Literal["auto", "cls", "mean"] = "auto"
    """What a classification sees: the class token, or the mean of the patches; auto: the first where there is one."""
    decoder_width: int = 0
    """Channels of the UNETR's decoder at the image's resolution, up to eight times as many below; 0: 16, with narrow
    encoders fewer (ours)."""
    lambda_align: float = 0.0
    """Weight of the alignment between experts and director; 0: the director does not run (the published code's)."""
    lambda_balance: float = 0.0
    """Weight of the balance loss of the routers (0: the published code's)."""
    min_area: float = 0.5
    """The smallest random crop's share of an image's area (ours)."""
    flip: float = 0.5
    """How often left and right are mirrored (ours); 0 where a class is of one side."""
    rotation: float = 15.0
    """Largest rotation in degrees, of every second image (as in pre-training); 0: none."""
    intensity: float = 0.0
    """Every pixel is raised to the power of exp(u), u uniform in plus and minus this; 0: none."""
    workers: int = -1
    """Processes that prepare a training process's batches; -1: two fewer than it has cores, at most 8."""
    cache: float = 0.25
    """Share of the machine's memory that read images may take, all training processes on it together."""
    device: str = "auto"
    """auto: the accelerator where there is one, else cpu; or a device's name. Under torchrun each process gets one."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the device is fast at it, else fp32."""
    grad_checkpointing: bool = False
    """Recompute the encoder's activations in the backward: less memory, more time."""
    validations: int = 20
    """How often val is scored during a training, evenly; the best state is kept beside the last one. 0: never."""
    checkpoint_every: int = 200
    """Steps between two checkpoints."""
    max_skipped: int = 10
    """Steps in a row with a non-finite loss or gradient after which the training gives up."""
    dry_run: bool = False
    """Build everything, try some steps, tell memory, speed and time to finish, and leave; nothing is written."""

    def __post_init__(self) -> None:
        check_kinds(self)
        check_values(self)
        for name, least in _LEAST.items():
            check_field(getattr(self, name) >= least, name, f"at least {least}", getattr(self, name))
        for name, most in _MOST.items():
            check_field(getattr(self, name) <= most, name, f"at most {most}", getattr(self, name))
        for name in _NOT_NEGATIVE:
            check_field(getattr(self, name) >= 0, name, "at least 0", getattr(self, name))
        for name in _SHARES:
            check_field(0 <= getattr(self, name) <= 0.9, name, "a number from 0 to 0.9", getattr(self, name))
        check_field(self.lr > 0, "lr", "a number above 0", self.lr)
        check_field(self.min_lr <= self.lr, "min_lr", f"at most lr = {self.lr:g}", self.min_lr)
        check_field(0 < self.layer_decay <= 1, "layer_decay", "a number above 0, at most 1", self.layer_decay)
        check_field(self.clip_norm > 0, "clip_norm", "a number above 0", self.clip_norm)
        check_field(0 < self.min_area <= 1, "min_area", "a number above 0, at most 1", self.min_area)
        check_field(self.rotation <= 180 and self.rotation >= 0, "rotation", "0 to 180 degrees", self.rotation)
        check_field(0 <= self.intensity <= 4, "intensity", "a number from 0 to 4", self.intensity)
        check_field(self.out != "", "out", "the path of a folder", self.out)
        check_field(not (self.steps and self.epochs), "steps", "0 beside epochs", self.steps)
        check_field(
            self.mode == "experts" or not (self.lambda_align or self.lambda_balance) or self.mode == "scratch",
            "lambda_align, lambda_balance",
            "0 where the director alone is trained",
            (self.lambda_align, self.lambda_balance),
        )

    @property
    def augmentation(self) -> Augmentation:
        """How training images are changed at random."""
        return Augmentation(self.min_area, self.flip, self.rotation, self.intensity)

    @property
    def called(self) -> str:
        """The name of the model, in folders and tables: that of its folder; of one that was fine-tuned before with
        all that tells it from others, NAME-MODE-TASK-seed-N."""
        if self.name or not self.model:
            return self.name
        parts = Path(os.path.abspath(self.model)).parts
        last = parts[-2:] if parts[-1] in _STATES else parts[-1:]
        if _SEED.fullmatch(last[0]):
            last = parts[-3 - len(last) :]
        return "-".join(part for part in last if part != MODEL_FOLDER)


@dataclass(frozen=True)
class Length:
    """A training's length in steps, and its rate at each.

    Args:
        config: of the training.
        images: an epoch.
    """

    config: FinetuneConfig
    images: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole training, at least 1."""
        if self.config.steps:
            return self.config.steps
        epoch = self.images / self.config.batch_size
        if self.config.epochs:
            return max(1, round(self.config.epochs * epoch))
        return min(max(round(_EPOCHS * epoch), _FEWEST_STEPS), _MOST_STEPS)

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        steps = round(self.config.warmup_epochs * self.images / self.config.batch_size)
        return min(steps, int(_WARMUP_SHARE * self.total_steps))

    def lr(self, step: int) -> float:
        """The rate of step ``step``, counted from 0."""
        return learning_rate(step, self.total_steps, self.warmup_steps, self.config.lr, self.config.min_lr)

    def validates(self, steps_done: int) -> bool:
        """Whether val is scored after so many steps: a given number of times, evenly, and at the end."""
        times, total = self.config.validations, self.total_steps
        return steps_done * times // total > (steps_done - 1) * times // total


PRESETS: dict[str, FinetuneConfig] = {
    "paper": FinetuneConfig(),
    # Small images, and a rate for small models: minutes on two CPU cores.
    "laptop": FinetuneConfig(img_size=64, steps=300, lr=1e-3, validations=6, checkpoint_every=100),
}

# A training goes on with other values of these; a change of any other would be another training.
MAY_CHANGE = frozenset(
    {
        *("task", "model", "weights", "out", "name", "seeds", "dry_run"),  # task and weights are compared by content
        *("workers", "cache", "device", "grad_checkpointing", "checkpoint_every", "max_skipped"),
    }
)


def decisive(config: FinetuneConfig, seed: int) -> dict[str, Any]:
    """All of a configuration that decides what comes out of the training with this seed."""
    own = replace(config, seed=seed)
    return {item.name: getattr(own, item.name) for item in fields(own) if item.name not in MAY_CHANGE}
