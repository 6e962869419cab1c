"""The training loop of a run; `dexcore.train.pretraining` has what comes before and after it.

The loop is `Pretraining.train`; one step is `Pretraining.step`. Everything random in a step is keyed on
(seed, epoch, sample), so a run that was killed and resumed computes the losses of one that was not, and one on
several processes those of one on a single one.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from dexcore.data.feed.augment import Augmentation
from dexcore.data.feed.order import GlobalBatchSampler, GlobalOrder
from dexcore.data.feed.own import OwnImages
from dexcore.data.feed.pretrain_view import PretrainView, ReplacementLimit, collate
from dexcore.engine.averaging import AveragedAdamW
from dexcore.engine.checkpoint import Progress, has_checkpoint
from dexcore.engine.checkpoint_writer import CheckpointWriter
from dexcore.engine.clock import StepClock
from dexcore.engine.config import ConfigError
from dexcore.engine.device import check_backend, choose_device, choose_workers
from dexcore.engine.gradient_norm import clip_, gradient_norm, gradients_of
from dexcore.engine.ranks import ALONE, Ranks
from dexcore.engine.stop import StopRequest, leave_signals_to_parent, signals_held_back
from dexcore.engine.watchdog import Watchdog
from dexcore.evaluate.reconstruct import names_of
from dexcore.evaluate.similarity import alignment, expert_similarity, moments
from dexcore.extras import require
from dexcore.models.objective import Objective
from dexcore.models.precision import autocast
from dexcore.nn import (
    AuxLosses,
    aux_losses,
    discard_load,
    param_groups,
    record_load,
    route_by_rule,
    set_noise_std,
    set_router_noise,
    share_load,
    update_directors,
)
from dexcore.nn.mlp import DEXMlp
from dexcore.ops.backend import resolve
from dexcore.report.files import CHECKPOINTS_FOLDER, HELDOUT_FILE, PROBE_FILE
from dexcore.train.build import model_of_run
from dexcore.train.compiled import check_compiler, training_layers
from dexcore.train.config import OptimizerConfig, PretrainConfig
from dexcore.train.heldout import HeldOut
from dexcore.train.image_store import open_images
from dexcore.train.parallel import parallel_of
from dexcore.train.probe import TrainingProbe
from dexcore.train.run.comparison import comparison_of, order_digest
from dexcore.train.run.folder import allowed_changes, check_not_begun, write_comparison, write_config
from dexcore.train.run.journal import Journal
from dexcore.train.run.memory import MemoryWatch
from dexcore.train.run.profile import ProfileWindow
from dexcore.train.run.provenance import check_images, describe_images, record_start
from dexcore.train.run.sinks import check_sinks
from dexcore.train.schedules import Schedule, StepValues
from dexcore.train.step0 import measure_step0
from dexcore.train.teacher import check_teacher, open_teacher, shape_of, told_of

_OF_DEX = {"loss_align", "loss_balance", "momentum", "noise_std", "lambda_balance", "load"}  # of a step's line


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and where to look."""


class Pretraining:
    """A run in the making: model, optimizer, order of samples, and where it stands.

    Args:
        config: the run.
        folder: opened by `open_run_folder`.
        ranks: the processes that share the run; each makes its own `Pretraining`.
        dataset: the user's images, in place of a store's.
        transform: makes the network's input of an item in training, in place of the augmentation.

    Attributes:
        step_done: steps done, skipped ones included.
        stopping: one of the ranks was asked to stop, as all know since the last step.
        begun_from: the file of the weights that this start begins with; "" for new ones or a checkpoint's.
    """

    def __init__(
        self,
        config: PretrainConfig,
        folder: Path,
        ranks: Ranks = ALONE,
        dataset: Dataset[Any] | None = None,
        transform: Callable[[Any], torch.Tensor] | None = None,
    ) -> None:
        self.config, self.folder, self.ranks, self.transform = config, folder, ranks, transform
        check_sinks(config)
        require("matplotlib", "train")  # the report's, missed now rather than after hours of training
        self.device = choose_device(config.run.device, ranks.local_rank, "run.device")
        check_backend(config.model.backend, self.device)
        check_compiler(config.run, self.device)
        self.part_size = _part_size(config, ranks)
        self.images = open_images(config, ranks) if dataset is None else _own_images(config, dataset)
        self.rows = self.images.indices(split="train")
        if not len(self.rows):
            place = config.data.store or config.data.images or self.images.name
            raise ConfigError(f"data.{'images' if config.data.images else 'store'}: {place} holds no training image")
        self.workers = choose_workers(config.data.workers, ranks.local_count)
        config.data.mirrored(self.images.modality_names)  # a name that is none is refused before the first step
        self.order = GlobalOrder(
            self.images.modality[self.rows],
            config.run.seed,
            balance=config.data.balance,
            epoch_size=config.data.epoch_size or None,
        )
        self.schedule = Schedule(config, self.order.epoch_size)
        self.probe = TrainingProbe(config, self.schedule, folder, ranks) if config.run.probe_task else None
        self.profile = ProfileWindow(config, self.schedule.total_steps, folder, ranks)
        self.memory = MemoryWatch(config.run, folder, ranks, self.device, lambda: self.step_done)
        self.heldout = None
        if config.run.evaluate_every:
            self.heldout = HeldOut(config, self.schedule, self.images, self.rows, folder, ranks)
        self.begun_from = "" if self._goes_on() else config.model.init
        self.teacher = open_teacher(config, self.device)
        self.parallel = parallel_of(
            config,
            lambda begun: model_of_run(config, self.images, self.begun_from if begun else "", self.teacher),
            self.device,
            ranks,
        )
        self.model = self.parallel.model
        self.layers = [layer for layer in self.model.modules() if isinstance(layer, DEXMlp)]  # none of a dense twin
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = AveragedAdamW(
            _groups(self.model, config.optimizer),
            decay=config.run.ema_decay,
            lr=config.peak_lr,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            fused=True,
        )
        self.clock = StepClock(self.device)
        self.step_done = 0
        self.skipped_in_a_row = self.rolled_back = 0
        self.stopping = False

    def train(self, stop: StopRequest) -> None:
        """Train to the end, or until the ranks have agreed that one was asked to stop."""
        total, every = self.schedule.total_steps, self.config.run.checkpoint_every
        limit = ReplacementLimit(self.config.data.max_replaced)
        self.model.train()
        if self.ranks.main:
            changed = allowed_changes(self.folder, self.config) if self.step_done else []
            write_config(self.folder, self.config)
            described = describe_images(self.images, self.rows)
            told = {"total_steps": total, "batch_size": self.config.data.batch_size, "changed": changed}
            if self.teacher is not None:
                told |= told_of(self.teacher)
            record_start(self.folder, self.step_done, self.device, described, told, self.begun_from)
            for change in changed:
                self.ranks.say(f"changed: {change}")
            write_comparison(self.folder, comparison_of(self.config, self._order_digest(), shape_of(self.teacher)))
        if self.step_done == 0:
            measure_step0(self.folder, self.parallel.whole(), self.images, self.config, self.device, self.ranks)
        with (
            self.memory,
            Journal(self.folder, self.step_done, total, self.ranks, self.config, self._beside()) as journal,
            training_layers(self.config.run, self.model, self.device, self.ranks.say) as measuring,
            Watchdog(self.config.run.stuck_after, self.folder, self.ranks, "run.stuck_after") as watchdog,
            self.checkpoint_writer() as writer,
        ):
            with measuring():
                self.warm_up()
            with signals_held_back():
                batches = iter(self.batches(self.workers))  # workers begin while the model is measured
            with watchdog.paused(), measuring():
                self._measure(journal)
            started = asked = time.perf_counter()
            for batch in batches:
                self.clock.add("data", time.perf_counter() - asked)
                limit.update(batch["replaced"])
                self.profile.begin(self.step_done)
                line = self.step(batch, self.schedule.at(self.step_done), bool(stop) or writer.failed)
                self.profile.end(self.step_done, self.stopping)
                now = time.perf_counter()
                line["images_per_second"] = self.config.data.batch_size / (now - started)
                line |= {f"seconds_{part}": seconds for part, seconds in self.clock.read().items()}
                started = now
                skipped_ids = self.ranks.gather(batch["sample_id"]).tolist() if line["skipped"] else None
                journal.write(line, skipped_ids)
                with watchdog.paused(), measuring():
                    self._give_up_or_roll_back(writer, journal.skipped_path)
                    self._measure(journal)
                started += time.perf_counter() - now  # what is measured meanwhile is no training
                last = self.stopping or self.step_done == total
                # What is saved while steps are skipped would take the place of what a roll back asks for.
                troubled = self.config.run.roll_back and self.skipped_in_a_row
                if last or (self.step_done % every == 0 and not troubled):
                    with watchdog.paused():  # a large one on a slow disk takes its time, and so does the one before it
                        journal.sync()
                        self.save(writer, last)
                if self.stopping:
                    break
                watchdog.beat(self.step_done)
                asked = time.perf_counter()

    def warm_up(self) -> None:
        """On a GPU compile the kernels in parallel before the first step, which would look like a hang."""
        backend = resolve(self.config.model.backend, self.device, torch.float32)
        offloaded = self.config.parallel.offload  # shards are where no kernel runs
        if backend != "triton" or self.device.type == "cpu" or offloaded:
            return
        from dexcore.kernels import warm_up

        self.ranks.say("compiling the kernels; on a machine that has not done so it takes a minute or so")
        size = self.config.model.image_size
        route_by_rule(self.model, *names_of(self.images, self.rows[:1].repeat(self.part_size)))
        with autocast(self.device, self.config.run.precision):
            seconds = warm_up(self.model, (self.part_size, self.config.model.in_chans, size, size))
        self.ranks.say(f"the kernels were ready after {seconds:.0f} s")

    def step(self, batch: dict[str, Any], values: StepValues, stop: bool = False) -> dict[str, Any]:
        """One optimizer step, or, where loss or gradient is not finite on any rank, none.

        Args:
            batch: items of `PretrainView`, stacked: this rank's share of the step's.
            values: the step's scheduled values.
            stop: whether this rank was asked to stop; sets `stopping` on all.

        Returns:
            The step's line in metrics.jsonl, but for the speed; the same on all ranks.
        """
        config = self.config
        losses = self.gradients(batch, values)
        with self.clock.part("update"):
            gradients = gradients_of(self.parameters)
            own_norm = gradient_norm(gradients).to(self.device)  # they may be in host memory
        with self.clock.part("communication"):
            scalars, grad_norm, load, self.stopping = self._agree(losses, own_norm, stop)

        finite = all(math.isfinite(scalar) for scalar in scalars)
        if finite:
            with self.clock.part("update"):
                if scalars[-1] > 0.99 * config.optimizer.clip_norm:  # surely below it, all would be multiplied by 1
                    clip_(gradients, config.optimizer.clip_norm, grad_norm)
                self._update(values)
            self.skipped_in_a_row = 0
        else:
            if self.layers:
                discard_load(self.model)
            self.skipped_in_a_row += 1
        self.step_done += 1
        line = {
            "step": self.step_done - 1,
            "epoch": (self.step_done - 1) * config.data.batch_size // self.order.epoch_size,
            **dict(zip(("loss", "loss_self", "loss_align", "loss_balance", "grad_norm"), scalars, strict=True)),
            **asdict(values),
            "load": load,
            "skipped": not finite,
            **({"rolled_back": self.rolled_back} if self.rolled_back else {}),
        }
        return line if self.layers else {name: value for name, value in line.items() if name not in _OF_DEX}

    def gradients(self, batch: dict[str, Any], values: StepValues) -> torch.Tensor:
        """Leave a batch's gradients with the parameters; this rank's losses [4]: whole, self, align, balance."""
        if self.layers:
            set_noise_std(self.model, values.noise_std)
        with self.clock.part("update"):
            self.optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(4, device=self.device)
        for part, gradients_summed in self._parts(batch):
            with gradients_summed:
                losses += self._backward(part, values)
        return losses / self.config.data.accumulate

    def _update(self, values: StepValues) -> None:
        """Change the weights by their gradients, and the directors by the experts."""
        for group in self.optimizer.param_groups:
            group["lr"] = values.lr * group.get("lr_scale", 1.0)
        self.optimizer.step()
        if self.layers:
            update_directors(self.model, values.momentum)  # without a group: the recorded load is all ranks'

    def _parts(self, batch: dict[str, Any]) -> Iterator[tuple[dict[str, torch.Tensor], AbstractContextManager[Any]]]:
        """The batch in `data.accumulate` parts, each with the context of its forward and backward."""
        moved, kept = ("image", "mask_noise", "router_noise"), ("sample_id", "modality")
        split = [batch[name].split(self.part_size) for name in (*moved, *kept)]
        for number, tensors in enumerate(zip(*split, strict=True), start=1):
            part = dict(zip((*moved, *kept), tensors, strict=True))
            part |= {name: part[name].to(self.device, non_blocking=True) for name in moved}
            yield part, self.parallel.backward_of(last=number == self.config.data.accumulate)

    def _backward(self, part: dict[str, torch.Tensor], values: StepValues) -> torch.Tensor:
        """Add a part's gradient and record its use of experts; its losses [4]: whole, self, align, balance."""
        if self.layers:
            sizes = [layer.num_experts for layer in self.layers]
            set_router_noise(self.model, part["router_noise"].split(sizes, dim=1))
            if self.config.model.mlp != "dex":
                route_by_rule(self.model, *names_of(self.images, part["sample_id"].numpy()))
        with self.clock.part("forward"), autocast(self.device, self.config.run.precision):
            loss_self = self.parallel.wrapped(part["image"], noise=part["mask_noise"], hidden_only=True).loss
            zero = loss_self.new_zeros(())
            aux = aux_losses(self.model, self.ranks.group) if self.layers else AuxLosses(zero, zero)
        loss = loss_self + self.config.dex.lambda_align * aux.align + values.lambda_balance * aux.balance
        with self.clock.part("backward"):
            (loss / self.config.data.accumulate).backward()
        if self.layers:
            record_load(self.model)
        return torch.stack([loss, loss_self, aux.align, aux.balance]).detach()

    def _agree(
        self, losses: torch.Tensor, own_norm: torch.Tensor, stop: bool
    ) -> tuple[list[float], torch.Tensor, list[list[float]], bool]:
        """Bring the ranks to one mind by one all-reduce, and its result to the host by one transfer.

        Args:
            losses: [4], this rank's.
            own_norm: 0-dim, of what this rank holds of the gradient.
            stop: whether this rank was asked to stop.

        Returns:
            The losses of the whole batch and the gradient's norm; the norm on the device; the share of the batch's
            gates that each expert got, an entry a DEX block; whether a rank was asked to stop. The layers' recorded
            loads become the sum over all ranks.
        """
        summed = torch.cat([losses, losses.new_tensor([stop]), own_norm.square()[None]])
        loads = list[torch.Tensor]()
        if self.layers:
            summed, loads = share_load(self.model, summed, self.ranks.group)
        elif self.ranks.group is not None:
            dist.all_reduce(summed, group=self.ranks.group)
        shares = [load / load.sum() for load in loads]
        grad_norm = self.parallel.norm(own_norm, summed[5])
        told = torch.cat([summed[:4] / self.ranks.count, grad_norm[None], summed[4:5], *shares]).cpu()
        by_block = told[6:].split([len(share) for share in shares])
        load = [[round(share, 6) for share in block.tolist()] for block in by_block]
        return told[:5].tolist(), grad_norm, load, bool(told[5] > 0)

    def _order_digest(self) -> str:
        steps, own = self.schedule.total_steps, self.transform is not None
        return order_digest(self.order, self.rows, self.images.fingerprint, self.config, steps, own)

    def checkpoint_writer(self) -> CheckpointWriter:
        """To `save` with, once it is entered."""
        run, folder = self.config.run, self.folder / CHECKPOINTS_FOLDER
        return CheckpointWriter(
            folder, run.keep_checkpoints, self.ranks, self.parallel.in_shards, background=run.checkpoint_async
        )

    def save(self, writer: CheckpointWriter, last: bool = False) -> None:
        """Have a checkpoint written, of the run's end where it is the ``last``; all ranks call it."""
        progress = Progress(
            step=self.step_done,
            skipped_in_a_row=self.skipped_in_a_row,
            order=self._sampler().state(self.step_done, self.images.fingerprint),
            config=asdict(self.config),
            rolled_back=self.rolled_back,
        )
        writer.save(self.model, self.optimizer, progress, last)

    def _goes_on(self) -> bool:
        """Whether the weights will be a checkpoint's: then those to begin with are not asked for."""
        if not (self.config.resume and self.config.model.init):
            return False
        return self.ranks.on_main(lambda: has_checkpoint(self.folder / CHECKPOINTS_FOLDER))

    def resume(self) -> None:
        """Where the configuration asks for it, go back to the newest intact checkpoint.

        Raises:
            RunFolderError: the images are not those of the checkpoint, or a run's checkpoints are gone.
        """
        if not self.config.resume:
            return
        progress = self.parallel.load(self.folder / CHECKPOINTS_FOLDER, self.optimizer)
        if progress is None:
            self.ranks.on_main(lambda: check_not_begun(self.folder, 2 * self.config.run.checkpoint_every))
            self.ranks.say(f"{self.folder} holds no checkpoint yet: beginning at the first step")
            return
        check_images(self.folder, progress.order["fingerprint"], describe_images(self.images, self.rows))
        check_teacher(self.folder, self.teacher)
        self.step_done, self.skipped_in_a_row = progress.step, progress.skipped_in_a_row
        self.rolled_back = progress.rolled_back
        self.ranks.say(f"resuming {self.folder} after step {self.step_done} of {self.schedule.total_steps}")

    def _sampler(self, start_step: int | None = None) -> GlobalBatchSampler:
        return GlobalBatchSampler(
            self.order,
            self.config.data.batch_size,
            self.ranks.rank,
            self.ranks.count,
            start_step=self.step_done if start_step is None else start_step,
            total_steps=self.schedule.total_steps,
        )

    def batches(self, workers: int, start_step: int | None = None) -> DataLoader[dict[str, Any]]:
        """This rank's share of every step's batch from ``start_step`` (default: here) on, prepared by ``workers``
        processes."""
        data = self.config.data
        view = PretrainView(
            self.images,
            self.rows,
            self.config.model.image_size,
            self.config.run.seed,
            self.model.num_patches,
            [layer.num_experts for layer in self.layers],
            Augmentation(data.min_area, rotation=data.rotation, intensity=data.intensity),
            data.statistics,
            self.config.model.in_chans,
            data.mirrored(self.images.modality_names),
            self.transform,
        )
        return DataLoader(
            view,
            batch_sampler=self._sampler(start_step),
            collate_fn=collate,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
        )

    def _measure(self, journal: Journal) -> None:
        """At the moments for it, probe the model, measure its loss on held-out images, and have the main rank write
        down how alike the experts are."""
        step = self.step_done
        probe = self.probe if self.probe is not None and step in self.probe.moments else None
        heldout = self.heldout if self.heldout is not None and step in self.heldout.moments else None
        compared = bool(self.layers) and step in moments(self.schedule.total_steps)
        if not (probe or heldout or compared):
            return
        model = self.parallel.whole(main_only=probe is None)  # a probe is computed by all
        if probe:
            journal.write_beside(PROBE_FILE, probe.measure(model, step))
        if heldout:
            journal.write_beside(HELDOUT_FILE, heldout.measure(model, step, self.device))
        if compared and self.ranks.main:
            given = model, self.images, self.config.setting, self.device
            journal.write_similarity(step, expert_similarity(*given), alignment(*given))

    def _beside(self) -> list[str]:
        """Names of the files of what is measured meanwhile."""
        of = {PROBE_FILE: self.probe, HELDOUT_FILE: self.heldout}
        return [name for name, measured in of.items() if measured is not None]

    def _give_up_or_roll_back(self, writer: CheckpointWriter, skipped_path: Path) -> None:
        """After too many skipped steps on end go on with the weights of before them, or end; all ranks call it."""
        if self.skipped_in_a_row < self.config.run.max_skipped:
            return
        if self.rolled_back < self.config.run.roll_back:
            writer.wait()
            folder = self.folder / CHECKPOINTS_FOLDER
            before = self.parallel.load(folder, self.optimizer, lambda progress: not progress.skipped_in_a_row)
            if before is not None:
                self.ranks.say(
                    f"{self.skipped_in_a_row} steps on end were skipped: going on after step {self.step_done} with the "
                    f"weights of step {before.step}"
                )
                self.skipped_in_a_row = 0
                self.rolled_back += 1
                return
            self.ranks.say("no checkpoint of before these steps is there to go back to")
        raise TrainingError(
            f"the loss or its gradient was not finite in {self.skipped_in_a_row} steps on end; the ids "
            f"of their images are in {skipped_path}, and --resume --replay {skipped_path} tells which are affected. A "
            "skipped step changes no weight: the newest checkpoint holds those of before. Where every image is "
            f"affected, training has diverged: --resume --run.roll-back {self.rolled_back + 1} goes on with an earlier "
            "checkpoint's weights, if there is one; or begin again in another --out with a smaller --optimizer.base-lr"
        )


def _part_size(config: PretrainConfig, ranks: Ranks) -> int:
    """Images that a rank computes at once."""
    batch_size, accumulate = config.data.batch_size, config.data.accumulate
    if batch_size % (ranks.count * accumulate):
        raise ConfigError(
            f"data.batch_size: expected a multiple of {ranks.count * accumulate}, the {ranks.count} processes times "
            f"data.accumulate = {accumulate}, got {batch_size}"
        )
    return batch_size // (ranks.count * accumulate)


def _groups(model: Objective, optimizer: OptimizerConfig) -> list[dict[str, Any]]:
    """The optimizer's groups: of the encoder's layers where their learning rates differ, and of all else."""
    groups = param_groups(model, optimizer.weight_decay)
    if optimizer.layer_decay == 1:
        return groups
    own = {*model.encoder.parameters()}
    for group in groups:
        group["params"] = [parameter for parameter in group["params"] if parameter not in own]
    groups = [group for group in groups if group["params"]]
    return [*groups, *param_groups(model.encoder, optimizer.weight_decay, optimizer.layer_decay)]


def _own_images(config: PretrainConfig, dataset: Dataset[Any]) -> OwnImages:
    for name in ("store", "images"):
        if getattr(config.data, name):
            raise ConfigError(f"data.{name}: expected none beside a dataset, got {getattr(config.data, name)!r}")
    if config.data.slices > 1:
        raise ConfigError(
            f"data.slices: expected 1 beside a dataset, whose images have model.in_chans, got {config.data.slices}"
        )
    return OwnImages(dataset, config.model.in_chans)
