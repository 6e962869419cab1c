"""The training of a fine-tuning: one seed, from where it stands to its last step.

The loop is `Finetuning.train`; one step is `Finetuning.step`. Everything random in a step is keyed on (seed, epoch,
image), or, what is dropped, on (seed, step) and the image's place in the batch. So a training that was killed and goes
on computes the losses of one that was not, and one on several processes those of one on a single one.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from dexcore.data.feed.cache import memory_share
from dexcore.data.feed.keyed import Stream, generator
from dexcore.data.feed.order import GlobalBatchSampler, GlobalOrder
from dexcore.engine.checkpoint import Progress, load_checkpoint, save_checkpoint
from dexcore.engine.config import ConfigError
from dexcore.engine.device import choose_device, choose_workers
from dexcore.engine.folder import LineFile, RunFolderError
from dexcore.engine.gradient_norm import gradient_norm
from dexcore.engine.progress import ProgressDisplay
from dexcore.engine.ranks import ALONE, Ranks
from dexcore.engine.stop import StopRequest, leave_signals_to_parent, signals_held_back
from dexcore.evaluate.finetuning.build import build_model, has_experts, open_encoder, route_rows
from dexcore.evaluate.finetuning.config import FinetuneConfig, Length, decisive
from dexcore.evaluate.finetuning.data import TaskImages, TrainingView, collate, sorted_rows, sound
from dexcore.evaluate.finetuning.predictions import Predictor
from dexcore.evaluate.losses import label_loss, segmentation_losses
from dexcore.evaluate.prediction.images import input_of
from dexcore.evaluate.scores import score
from dexcore.evaluate.tasks import Row, Task, TaskError
from dexcore.files import write_whole
from dexcore.models import TaskModel
from dexcore.models.precision import autocast, compute_dtype
from dexcore.models.pretrained import load_exactly
from dexcore.nn import aux_losses, discard_load, fast_layers, param_groups
from dexcore.report.files import CHECKPOINTS_FOLDER, METRICS_FILE

PROTOCOL = 1  # grows when a training would come out otherwise
BEST_FOLDER = "best"
_KEEP = 2
_DRAWS = 2  # resamples of a number of val whose interval nobody reads
_NAMED = 3  # images in a message


class FinetuneError(RuntimeError):
    """A fine-tuning cannot go on; the message says why, and names task, file and row."""


class Finetuning:
    """A fine-tuning in the making: model, optimizer, order of images, and where it stands.

    Args:
        config: of all seeds.
        seed: of this one.
        task: that is learned.
        folder: of this seed.
        ranks: the processes that share it; each makes its own `Finetuning`.

    Attributes:
        step_done: steps done, skipped ones included.
        stopping: one of the ranks was asked to stop, as all know since the last step.
        best: the best number of val so far, and the steps done then; None before the first.
        made_from: all that decides what comes out; of the images only once `of_images` was told.
    """

    def __init__(self, config: FinetuneConfig, seed: int, task: Task, folder: Path, ranks: Ranks = ALONE) -> None:
        self.config, self.seed, self.task, self.folder, self.ranks = config, seed, task, folder, ranks
        self.device = choose_device(config.device, ranks.local_rank)
        if config.batch_size % ranks.count:
            raise ConfigError(
                f"batch_size: expected a multiple of the {ranks.count} processes, got {config.batch_size}"
            )
        rows = sorted_rows(task, "train")
        if not rows or not task.split("test"):
            raise TaskError(f"task {task.name}: {task.spec.table} has no image of train or of test: expected both")
        for name in classes_without_images(task, rows):
            ranks.say(f"note: task {task.name}: train has no image of class {name}: it cannot be learned")
        memory = memory_share(config.cache, ranks.local_count)
        of_val = len(task.split("val")) if config.validations else 0
        of_train = memory * len(rows) // (len(rows) + of_val)
        self.images = TaskImages(task, rows, of_train)
        self.length = Length(config, len(rows))
        self.workers = choose_workers(config.workers, ranks.local_count)
        encoder, source = open_encoder(config, seed)
        self.experts = has_experts(encoder)
        self.model = build_model(config, task, encoder, seed, ranks).to(self.device)
        self.made_from = {
            "protocol": PROTOCOL,
            "task": task.fingerprint,
            "images": None,
            "model": source,
            **decisive(config, seed),
        }
        self.order = GlobalOrder(np.zeros(len(rows), np.int64), seed)
        self.wrapped: torch.nn.Module = self.model
        if ranks.group is not None:
            self.wrapped = DistributedDataParallel(self.model, gradient_as_bucket_view=True)
            self.wrapped.broadcast_buffers = False  # as an argument it is deprecated
        decay = None if config.layer_decay == 1 else config.layer_decay
        groups = param_groups(self.model.encoder, config.weight_decay, decay)
        groups += param_groups(self.model.head, config.weight_decay)
        self.parameters = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        own = max(1, config.batch_size // ranks.count)
        self.predictor = Predictor(self.model, task, config.precision, own, self.workers, ranks, kept=memory - of_train)
        self.step_done = self.skipped_in_a_row = 0
        self.stopping = False
        self.best: tuple[float, int] | None = None

    def of_images(self, content: str) -> None:
        """Be told the images that are learned (`content_of`), before anything is kept or gone on with."""
        self.made_from["images"] = content

    @property
    def name(self) -> str:
        """What predictions and tables call the model."""
        return f"{self.config.called} {finetuned(self.config, self.experts)}"

    def train(self, stop: StopRequest) -> None:
        """Train to the end, or until the ranks have agreed that one was asked to stop."""
        total = self.length.total_steps
        validates = self.config.validations > 0 and bool(self.task.split("val"))
        self.model.train()
        with (
            _Journal(self.folder, self.step_done, total, self.ranks) as journal,
            fast_layers(self.model, compute_dtype(self.device, self.config.precision)),
            self._own_draws(),
        ):
            with signals_held_back():
                batches = iter(self.batches(self.workers))
            started = time.perf_counter()
            for batch in sound(batches):
                waited = time.perf_counter() - started
                line = self.step(batch, bool(stop))
                line["images_per_second"] = self.config.batch_size / (time.perf_counter() - started)
                line["seconds_data"] = waited
                if line["skipped"]:
                    journal.say(f"step {line['step']} skipped: loss or gradient is not finite ({self._named(batch)})")
                    self._check_skipped(batch)
                if validates and self.length.validates(self.step_done):
                    line[f"val_{self.task.spec.metric}"] = self.validate()
                    journal.say(self._told(line))
                journal.write(line)
                if self.stopping or self.step_done == total or self.step_done % self.config.checkpoint_every == 0:
                    journal.sync()
                    self.save()
                if self.stopping:
                    break
                started = time.perf_counter()

    def step(self, batch: dict[str, Any], stop: bool = False) -> dict[str, Any]:
        """One optimizer step, or, where loss or gradient is not finite on any rank, none.

        Args:
            batch: items of `TrainingView`, stacked: this rank's share of the step's.
            stop: whether this rank was asked to stop; sets `stopping` on all.

        Returns:
            The step's line in metrics.jsonl, but for the speed; the same on all ranks.
        """
        lr = self.length.lr(self.step_done)
        if self.config.drop_path or self.config.dropout:
            keyed = generator(self.seed, self.step_done, 0, Stream.DROP)  # drawn for all ranks' images on each
            torch.manual_seed(int(keyed.integers(2**63)))
        self.optimizer.zero_grad(set_to_none=True)
        route_rows(self.model, [self.images.rows[number] for number in batch["number"].tolist()])
        losses = self._backward(batch["image"], batch["target"])
        grad_norm = gradient_norm([p.grad for p in self.parameters if p.grad is not None])
        told = torch.cat([losses, losses.new_tensor([stop])])
        if self.ranks.group is not None:
            torch.distributed.all_reduce(told, group=self.ranks.group)
        *summed, stops, norm = torch.cat([told, grad_norm[None]]).tolist()
        scalars = [each / self.ranks.count for each in summed]
        self.stopping = stops > 0
        finite = math.isfinite(norm) and all(map(math.isfinite, scalars))
        if finite:
            if norm > 0.99 * self.config.clip_norm:  # surely below it, all gradients would be multiplied by 1
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, grad_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            self.optimizer.step()
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.step_done += 1
        return {
            "step": self.step_done - 1,
            "epoch": (self.step_done - 1) * self.config.batch_size // self.order.epoch_size,
            **dict(zip(("loss", "loss_entropy", "loss_dice"), scalars, strict=True)),
            "grad_norm": norm,
            "lr": lr,
            "skipped": not finite,
        }

    def _backward(self, images: Tensor, target: Tensor) -> Tensor:
        """Make the gradient of this rank's images; their losses [3]: whole, cross-entropy, Dice (0 of labels)."""
        images, target = (tensor.to(self.device, non_blocking=True) for tensor in (images, target))
        with autocast(self.device, self.config.precision):
            logits = self.wrapped(images)
        logits = logits.float()
        if self.task.spec.is_segmentation:
            entropy, dice = (losses.mean() for losses in segmentation_losses(logits, target))
        else:
            entropy = label_loss(logits, target).mean()
            dice = torch.zeros_like(entropy)
        loss = entropy + dice
        if self.config.lambda_align or self.config.lambda_balance:
            aux = aux_losses(self.model, self.ranks.group)
            loss = loss + self.config.lambda_align * aux.align + self.config.lambda_balance * aux.balance
        loss.backward()
        if self.experts and self.config.mode != "director":
            discard_load(self.model)  # directors stay: nobody counts
        return torch.stack([loss, entropy, dice]).detach()

    def validate(self) -> float:
        """The task's number of val, and the best state is kept; the same on all ranks."""
        predictions = self.predictor.count("val", self.name, self.seed)
        value = score(predictions, self.task, "val", draws=_DRAWS).primary.value
        if math.isfinite(value) and (self.best is None or value > self.best[0]):
            self.best = (value, self.step_done)
            self.ranks.on_main(lambda: self.save_model(BEST_FOLDER))
        return value

    def save_model(self, name: str) -> None:
        """Write the model into a folder of this name; the main rank's alone.

        Raises:
            RunFolderError: it cannot be written.
        """
        try:
            self.model.save_pretrained(self.folder / name)
        except OSError as error:
            raise RunFolderError(
                f"{self.folder / name}: the model cannot be written: {error}; the newest checkpoint is untouched, "
                "the same command goes on from there"
            ) from error

    def save(self) -> None:
        """Have the main rank write a checkpoint; the others wait for it."""
        order = self._sampler().state(self.step_done, self.task.fingerprint)
        progress = Progress(self.step_done, self.skipped_in_a_row, order, self.made_from)
        place = self.folder / CHECKPOINTS_FOLDER
        self.ranks.on_main(lambda: save_checkpoint(place, self.model, self.optimizer, progress, _KEEP))

    def resume(self) -> bool:
        """Go back to the newest intact checkpoint, where there is one; else False.

        Raises:
            RunFolderError: it is of another training; the message says what differs.
        """
        place = self.folder / CHECKPOINTS_FOLDER
        progress = load_checkpoint(place, self.model, self.optimizer, self.ranks.say, self.ranks)
        if progress is None:
            return False
        self.check_same(progress.config)
        self._stand_at(progress.step, progress.skipped_in_a_row)
        self.ranks.say(f"{self.folder}: going on after step {self.step_done} of {self.length.total_steps}")
        return True

    def take_trained(self, name: str) -> None:
        """Stand after the last step, with the weights of the model in the folder of this name.

        Raises:
            ModelFileError: it cannot be read, or is another model's.
        """
        trained = TaskModel.from_pretrained(self.folder / name)
        load_exactly(self.model, trained.state_dict(), str(self.folder / name))
        self._stand_at(self.length.total_steps, 0)
        self.ranks.say(f"{self.folder}: is trained, and predicts again: its scores are not there")

    def _stand_at(self, step: int, skipped: int) -> None:
        self.step_done, self.skipped_in_a_row = step, skipped
        self.best = _best(self.folder / METRICS_FILE, f"val_{self.task.spec.metric}", step)

    def check_same(self, before: dict[str, Any]) -> None:
        """Refuse a folder whose training is another one.

        Raises:
            RunFolderError: the message says what differs.
        """
        own = json.loads(json.dumps(self.made_from))
        names = [name for name in {**before, **own} if before.get(name) != own.get(name)]
        if names:
            told = "\n  ".join(f"{name}: {before.get(name)} -> {own.get(name)}" for name in names)
            raise RunFolderError(
                f"out: {self.folder} holds another fine-tuning: go on with its own configuration, or give another "
                f"--out or --name. What differs (then -> now):\n  {told}"
            )

    def batches(self, workers: int) -> DataLoader[dict[str, Any]]:
        """This rank's share of every step's batch from here on, prepared by ``workers`` processes."""
        view = input_of(self.model.encoder, self.model.task)
        return DataLoader(
            TrainingView(self.images, view, self.seed, self.config.augmentation),
            batch_sampler=self._sampler(),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
        )

    def _sampler(self) -> GlobalBatchSampler:
        return GlobalBatchSampler(
            self.order,
            self.config.batch_size,
            self.ranks.rank,
            self.ranks.count,
            start_step=self.step_done,
            total_steps=self.length.total_steps,
        )

    @contextmanager
    def _own_draws(self) -> Iterator[None]:
        """Leave torch's generators as they were."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield

    def _named(self, batch: dict[str, Any]) -> str:
        """The images of a batch on this rank, for a message."""
        rows = [self.images.rows[number] for number in batch["number"].tolist()]
        told = ", ".join(f"{row.image} (line {row.line})" for row in rows[:_NAMED])
        return f"task {self.task.name}, {self.task.spec.table}: {told}{' and others' if len(rows) > _NAMED else ''}"

    def _check_skipped(self, batch: dict[str, Any]) -> None:
        if self.skipped_in_a_row >= self.config.max_skipped:
            raise FinetuneError(
                f"{self._named(batch)}: the loss or its gradient was not finite in {self.skipped_in_a_row} steps on "
                "end. A skipped step changes no weight: the newest checkpoint holds those of before. Where every image "
                "is affected, training has diverged: begin again in another --out with a smaller --lr"
            )

    def _told(self, line: dict[str, Any]) -> str:
        metric = self.task.spec.metric
        best = f", best {self.best[0]:.4f} after step {self.best[1]}" if self.best else ""
        return f"step {self.step_done}  loss {line['loss']:.4f}  val {metric} {line[f'val_{metric}']:.4f}{best}"


def finetuned(config: FinetuneConfig, experts: bool) -> str:
    """The mode of a fine-tuning as a name: a dense model has none but from scratch."""
    return f"finetune-{config.mode}" if experts or config.mode == "scratch" else "finetune"


def classes_without_images(task: Task, rows: Sequence[Row]) -> list[str]:
    """The classes that none of the rows has. Of masks none is told: they would all have to be read.

    Raises:
        TaskError: a row has no label, or one of no class.
    """
    if task.spec.is_segmentation:
        return []
    labels = np.array([task.label(row) for row in rows])
    held = np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else labels
    return [name for index, name in enumerate(task.classes) if index not in held]


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def _best(metrics: Path, name: str, steps_done: int) -> tuple[float, int] | None:
    """The best number of val in the lines of these steps, and after how many it was measured."""
    found: tuple[float, int] | None = None
    for text in metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []:
        try:
            line = json.loads(text)
            step, value = int(line["step"]), line.get(name)
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill
        if step < steps_done and value is not None and (found is None or value > found[0]):
            found = (value, step + 1)
    return found


class _Journal:
    """The lines of metrics.jsonl and the display; on other ranks than the main one it does nothing."""

    def __init__(self, folder: Path, first_step: int, total_steps: int, ranks: Ranks) -> None:
        self._writes = ranks.main
        if not self._writes:
            return
        with ExitStack() as opened:
            self._metrics = opened.enter_context(closing(LineFile(folder / METRICS_FILE, first_step)))
            self._display = opened.enter_context(closing(ProgressDisplay(first_step, total_steps)))
            self._opened = opened.pop_all()

    def write(self, line: dict[str, Any]) -> None:
        """Write and show a step."""
        if self._writes:
            self._metrics.write(line)
            self._display.update(line["step"] + 1, line["loss"], line["images_per_second"])

    def say(self, message: str) -> None:
        """Print a line."""
        if self._writes:
            self._display.say(message)

    def sync(self) -> None:
        """Have what was written survive a power cut."""
        if self._writes:
            self._metrics.sync()

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            self._opened.close()
