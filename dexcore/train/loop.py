"""Pre-training, from a configuration to a trained model and its report.

The loop is `Pretraining.train`; one step is `Pretraining.step`. Everything random in a step is keyed on
(seed, epoch, sample), so a run that was killed and resumed computes the losses of one that was not.
"""

import itertools
import math
import sys
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from dexcore.data.dataset import PretrainView, ReplacementLimit
from dexcore.data.order import GlobalBatchSampler, GlobalOrder
from dexcore.extras import require
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder
from dexcore.nn import (
    aux_losses,
    discard_load,
    param_groups,
    set_noise_std,
    set_router_noise,
    update_directors,
)
from dexcore.nn.directors import expert_load
from dexcore.nn.mlp import dex_layers
from dexcore.ops.backend import BackendUnavailableError, resolve
from dexcore.report import build_report, run_files, summarize
from dexcore.report.files import EVALUATION_FILE, METRICS_FILE, MODEL_FOLDER
from dexcore.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from dexcore.train.config import ConfigError, ModelConfig, PretrainConfig
from dexcore.train.device import attention_kernel, autocast, choose_device
from dexcore.train.evaluate import evaluate
from dexcore.train.progress import ProgressDisplay
from dexcore.train.run_folder import (
    CHECKPOINTS_FOLDER,
    SKIPPED_FILE,
    LineFile,
    RunFolderError,
    open_run_folder,
)
from dexcore.train.sample_store import open_images
from dexcore.train.schedules import Schedule, StepValues
from dexcore.train.stop import EXIT_STOPPED, StopRequest, leave_signals_to_parent


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and where to look."""


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: of the run.
        step: steps done, over all its resumptions.
        finished: False where a signal stopped it; it can be resumed.
    """

    folder: Path
    step: int
    finished: bool

    @property
    def exit_code(self) -> int:
        """What a process should return: 0, or 75 where the run was stopped by a signal and can be resumed."""
        return 0 if self.finished else EXIT_STOPPED


def pretrain(config: PretrainConfig) -> RunResult:
    """Train a masked autoencoder, or go on with its training, then evaluate it and write the report.

    Prints progress on stderr and, at the end, the summary on stdout. SIGTERM, SIGINT and SIGUSR1 end it after
    the step in hand, with a checkpoint.

    Raises:
        ConfigError: the configuration does not fit the machine or the images.
        MissingExtraError: a package of the extra ``train`` (or, for the sample images, ``samples``) is missing.
        UnreadableFileError: a sample image of an installed package cannot be read.
        RunFolderError: ``config.out`` cannot be used.
        StoreError: the images cannot be read.
        CheckpointError: a checkpoint cannot be written or read.
        TrainingError: the loss or its gradient is not finite in too many steps on end.
    """
    with open_run_folder(config) as folder:
        with StopRequest() as stop:
            run = Pretraining(config, folder)
            run.resume()
            run.train(stop)
        if stop:
            say(f"{stop.signal_name}: stopped after step {run.step_done}; go on with --resume --out {folder}")
        else:
            run.finish()  # a signal now ends the process at once: nothing is lost, --resume comes back here
        return RunResult(folder, run.step_done, finished=not stop)


def build_model(config: ModelConfig) -> MaskedAutoencoder:
    """The autoencoder of a configuration, with weights from PyTorch's global generator."""
    encoder = DEXVisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=0,
        num_experts=config.num_experts,
        top_k=config.top_k,
        tau=config.tau,
        align=config.align,
        keep=config.keep,
        backend=config.backend,
    )
    model = MaskedAutoencoder(
        encoder,
        decoder_dim=config.decoder_dim,
        decoder_depth=config.decoder_depth,
        decoder_heads=config.decoder_heads,
        mask_ratio=config.mask_ratio,
        norm_pix_loss=config.norm_pix_loss,
    )
    model.set_grad_checkpointing(config.grad_checkpointing)
    return model


class Pretraining:
    """A run in the making: model, optimizer, order of samples, and where it stands.

    Args:
        config: the run.
        folder: opened by `open_run_folder`.
    """

    def __init__(self, config: PretrainConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        require("matplotlib", "train")  # the report's, missed now rather than after hours of training
        self.device = choose_device(config.run.device)
        _check_backend(config.model.backend, self.device)
        self.images = open_images(config.data.store)
        self.rows = self.images.indices(split="train")
        if not len(self.rows):
            raise ConfigError(f"data.store: {config.data.store} holds no training image")
        self.order = GlobalOrder(
            self.images.modality[self.rows],
            config.run.seed,
            balance=config.data.balance,
            epoch_size=config.data.epoch_size or None,
        )
        self.schedule = Schedule(config, self.order.epoch_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            self.model = build_model(config.model).to(self.device)
        self.layers = dex_layers(self.model)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            param_groups(self.model, config.optimizer.weight_decay),
            lr=config.peak_lr,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            fused=True,
        )
        self.step_done = 0
        self.skipped_in_a_row = 0

    def train(self, stop: StopRequest) -> None:
        """Train to the end, or to the end of the step in which a stop is requested."""
        total, every = self.schedule.total_steps, self.config.run.checkpoint_every
        limit = ReplacementLimit(self.config.data.max_replaced)
        self.model.train()
        with (
            closing(LineFile(self.folder / METRICS_FILE, self.step_done)) as metrics,
            closing(LineFile(self.folder / SKIPPED_FILE, self.step_done)) as skipped,
            closing(ProgressDisplay(self.step_done, total)) as display,
            attention_kernel(self.device, self.config.run.precision),
        ):
            self._warm_up()
            started = time.perf_counter()
            for batch in self._batches():
                limit.update(batch["replaced"])
                line = self.step(batch, self.schedule.at(self.step_done))
                now = time.perf_counter()
                line["images_per_second"] = len(batch["image"]) / (now - started)
                started = now
                metrics.write(line)
                if line["skipped"]:
                    skipped.write({"step": line["step"], "sample_ids": batch["sample_id"].tolist()})
                    display.say(f"step {line['step']} skipped: loss or gradient is not finite ({skipped.path})")
                    self._check_skipped(skipped.path)
                display.update(self.step_done, line["loss"], line["images_per_second"])
                if stop or self.step_done == total or self.step_done % every == 0:
                    metrics.sync()
                    skipped.sync()
                    self.save()
                if stop:
                    break

    def _warm_up(self) -> None:
        """On a GPU compile the kernels in parallel before the first step, which would look like a hang."""
        if resolve(self.config.model.backend, self.device, torch.float32) != "triton" or self.device.type == "cpu":
            return
        from dexcore.kernels import warm_up

        say("compiling the kernels; on a machine that has not done so it takes a minute or so")
        size = self.config.model.image_size
        with autocast(self.device, self.config.run.precision):
            seconds = warm_up(self.model, (self.config.data.batch_size, 3, size, size))
        say(f"the kernels were ready after {seconds:.0f} s")

    def step(self, batch: dict[str, Any], values: StepValues) -> dict[str, Any]:
        """One optimizer step, or, where loss or gradient is not finite, none.

        Args:
            batch: items of `PretrainView`, stacked.
            values: the step's scheduled values.

        Returns:
            The step's line in metrics.jsonl, but for the speed.
        """
        config = self.config
        images, mask_noise = (batch[name].to(self.device, non_blocking=True) for name in ("image", "mask_noise"))
        router_noise = batch["router_noise"].to(self.device, non_blocking=True)
        set_noise_std(self.model, values.noise_std)
        set_router_noise(self.model, router_noise.split([layer.num_experts for layer in self.layers], dim=1))

        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device, config.run.precision):
            loss_self = self.model(images, noise=mask_noise).loss
            aux = aux_losses(self.model)
        loss = loss_self + config.dex.lambda_align * aux.align + values.lambda_balance * aux.balance
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.optimizer.clip_norm)

        # One transfer from the device a step, which also says whether the step may be taken.
        scalars = torch.stack([loss, loss_self, aux.align, aux.balance, grad_norm]).tolist()
        finite = all(math.isfinite(scalar) for scalar in scalars)
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = values.lr
            self.optimizer.step()
            update_directors(self.model, values.momentum)
            self.skipped_in_a_row = 0
        else:
            discard_load(self.model)
            self.skipped_in_a_row += 1
        self.step_done += 1
        return {
            "step": self.step_done - 1,
            "epoch": (self.step_done - 1) * config.data.batch_size // self.order.epoch_size,
            **dict(zip(("loss", "loss_self", "loss_align", "loss_balance", "grad_norm"), scalars, strict=True)),
            **asdict(values),
            "load": self._load(),
            "skipped": not finite,
        }

    def save(self) -> None:
        """Write a checkpoint."""
        progress = Progress(
            step=self.step_done,
            skipped_in_a_row=self.skipped_in_a_row,
            order=self._sampler().state(self.step_done, self.images.fingerprint),
            config=asdict(self.config),
        )
        keep = self.config.run.keep_checkpoints
        save_checkpoint(self.folder / CHECKPOINTS_FOLDER, self.model, self.optimizer, progress, keep)

    def resume(self) -> None:
        """Where the configuration asks for it, go back to the newest intact checkpoint.

        Raises:
            RunFolderError: the images are not those of the checkpoint.
        """
        if not self.config.resume:
            return
        progress = load_checkpoint(self.folder / CHECKPOINTS_FOLDER, self.model, self.optimizer, say)
        if progress is None:
            say(f"{self.folder} holds no checkpoint yet: beginning at the first step")
            return
        if progress.order["fingerprint"] != self.images.fingerprint:
            raise RunFolderError(
                f"data.store: the images are not those that {self.folder} was begun with (fingerprint "
                f"{progress.order['fingerprint']}, now {self.images.fingerprint}); resume with the same store"
            )
        self.step_done, self.skipped_in_a_row = progress.step, progress.skipped_in_a_row
        say(f"resuming {self.folder} after step {self.step_done} of {self.schedule.total_steps}")

    def finish(self) -> None:
        """Save the model, evaluate it, write the report and print the summary.

        Raises:
            RunFolderError: the folder cannot be written (a full disk, for example); nothing trained is lost.
        """
        try:
            self.model.save_pretrained(self.folder / MODEL_FOLDER)
            say("evaluating")
            evaluation = evaluate(self.model, self.images, self.config, self.device)
            evaluation.save(self.folder / EVALUATION_FILE)
            build_report(self.folder)
        except (OSError, SafetensorError) as error:
            raise RunFolderError(
                f"{self.folder}: the training is done, its model and report cannot be written: {error}; "
                "go on with --resume when they can"
            ) from error
        print("\n".join(summarize(evaluation, run_files(self.folder)).lines()), flush=True)

    def _sampler(self) -> GlobalBatchSampler:
        return GlobalBatchSampler(
            self.order,
            self.config.data.batch_size,
            start_step=self.step_done,
            total_steps=self.schedule.total_steps,
        )

    def _batches(self) -> DataLoader[dict[str, Any]]:
        view = PretrainView(
            self.images,
            self.rows,
            self.config.model.image_size,
            self.config.run.seed,
            self.model.num_patches,
            [layer.num_experts for layer in self.layers],
            self.config.data.min_area,
            self.config.data.statistics,
        )
        return DataLoader(
            view,
            batch_sampler=self._sampler(),
            num_workers=self.config.data.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
        )

    def _load(self) -> list[list[float]]:
        """The share of the batch's gates that each expert got, an entry a DEX block."""
        shares: list[torch.Tensor] = []
        for layer in self.layers:
            assert layer.routing is not None  # a forward came before
            load = expert_load(layer.routing.gates.detach(), layer.routing.indices, layer.num_experts)
            shares.append(load / load.sum())
        joined = torch.cat(shares).tolist()  # one transfer from the device
        ends = list(itertools.accumulate(len(share) for share in shares))
        return [[round(s, 6) for s in joined[a:b]] for a, b in itertools.pairwise([0, *ends])]

    def _check_skipped(self, path: Path) -> None:
        if self.skipped_in_a_row >= self.config.run.max_skipped:
            raise TrainingError(
                f"the loss or its gradient was not finite in {self.skipped_in_a_row} steps on end; the ids "
                f"of their images are in {path}, the last good state is in the newest checkpoint"
            )


def _check_backend(backend: str, device: torch.device) -> None:
    try:
        resolve(backend, device, torch.float32)
    except (BackendUnavailableError, ValueError) as error:
        raise ConfigError(f"model.backend: {error}") from error


def say(message: str) -> None:
    """Tell whoever watches the run."""
    print(message, file=sys.stderr, flush=True)
