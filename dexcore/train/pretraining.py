"""A run from its configuration to a trained model and its report: `pretrain`."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from dexcore.checks import check_kind
from dexcore.engine.config import ConfigError
from dexcore.engine.numerics import deterministic, tf32
from dexcore.engine.ranks import LostRankError, environment_rank, join_ranks
from dexcore.engine.stop import EXIT_STOPPED, Stopped, StopRequest
from dexcore.models.objective import Objective
from dexcore.train.config import PretrainConfig
from dexcore.train.dry_run import rehearse
from dexcore.train.finish import finish, save_averaged
from dexcore.train.loop import Pretraining
from dexcore.train.replay import replay
from dexcore.train.run.folder import open_run_folder

Transform = Callable[[Any], torch.Tensor]


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        folder: of the run.
        step: steps done, over all its resumptions.
        finished: False where a signal stopped it, in training or around it; it can be resumed. A dry run is finished
            after no step.
    """

    folder: Path
    step: int
    finished: bool

    @property
    def exit_code(self) -> int:
        """What a process should return: 0, or 75 where the run was stopped by a signal and can be resumed."""
        return 0 if self.finished else EXIT_STOPPED


def pretrain(
    config: PretrainConfig,
    dataset: Dataset[Any] | None = None,
    transform: Transform | None = None,
) -> RunResult:
    """Pre-train a model (a masked autoencoder, or a teacher's student) or go on with it, evaluate it, write the report.

    Under torchrun all processes call it; they share every batch, and the main one alone writes and speaks. Prints
    progress on stderr and, at the end, the summary on stdout. SIGTERM, SIGINT and SIGUSR1, to any of the processes or
    to their whole process group, end the run after the step in hand or the next, with a checkpoint. Before the first
    step and after the last there is no step to save: they end the run at once, and ``resume`` begins it, or goes on
    with its evaluation.

    With ``config.dry_run`` it prints how the run would go instead (`dexcore.train.dry_run`). A run that fails before
    its first step is done leaves nothing in ``config.out``, and a resumption that is refused takes nothing from it.

    Args:
        config: the run.
        dataset: any map-style torch Dataset of images, in place of a store; see `dexcore.data.feed.own.OwnImages` for
            what an item may be and what the data set may say of its images. Order, resumption and ranks are a store's.
        transform: makes the network's input of an item in training, in place of crop, flip, rotation and
            normalization: a float tensor [in_chans, image_size, image_size]. Python's, NumPy's and torch's global
            generators are seeded for each image and epoch, so that its draws are the same in every run. The evaluation
            shows the centre square, as without one.

    Raises:
        TypeError: ``config`` is no `PretrainConfig`, ``dataset`` no map-style data set, or ``transform`` gives no such
            tensor.
        ValueError: ``dataset`` is empty or says something else of its images than `OwnImages` takes.
        ConfigError: the configuration does not fit the machine, the images or the number of processes.
        MissingExtraError: a package of the extra ``train`` (or, for the sample images, ``samples``) is missing.
        UnreadableFileError: a sample image of an installed package cannot be read.
        RunFolderError: ``config.out`` cannot be used.
        StoreError: the images cannot be read.
        CheckpointError: a checkpoint cannot be written or read.
        TrainingError: the loss or its gradient is not finite in too many steps on end.
        NotEnoughMemoryError: a step does not fit into memory.
        MainRankError, LostRankError: another process cannot go on.
    """
    check_kind("config", config, PretrainConfig, "a PretrainConfig")
    with deterministic(config.run.deterministic, "run.deterministic"), tf32(config.run.tf32):
        return _done(config, dataset, transform)


def _done(config: PretrainConfig, dataset: Dataset[Any] | None, transform: Transform | None) -> RunResult:
    """The run, its rehearsal or its replay."""
    if config.dry_run:
        return _dry_run(config, dataset, transform)
    if config.replay:
        return _replay(config, dataset, transform)
    with StopRequest() as stop:
        try:
            return _run(config, stop, dataset, transform)
        except Stopped:
            if environment_rank()[0] == 0:
                print(
                    f"{stop.signal_name}: stopped before a step of this start; nothing is lost, --resume begins or "
                    f"goes on: --out {config.out}",
                    file=sys.stderr,
                    flush=True,
                )
        except LostRankError:
            if not stop:
                raise
        return RunResult(Path(config.out), 0, finished=False)


def _dry_run(config: PretrainConfig, dataset: Dataset[Any] | None, transform: Transform | None) -> RunResult:
    with join_ranks(config.run.device, field="run.device") as ranks:
        lines = rehearse(Pretraining(config, Path(config.out), ranks, dataset, transform))
        if ranks.main:
            print("\n".join(lines), flush=True)
    return RunResult(Path(config.out), 0, finished=True)


def _replay(config: PretrainConfig, dataset: Dataset[Any] | None, transform: Transform | None) -> RunResult:
    if (count := environment_rank()[1]) > 1:
        raise ConfigError(f"replay: expected one process, got {count}")
    with open_run_folder(config) as folder:
        run = Pretraining(config, folder, dataset=dataset, transform=transform)
        run.resume()
        print("\n".join(replay(run, Path(config.replay))), flush=True)
    return RunResult(folder, run.step_done, finished=True)


def _run(
    config: PretrainConfig, stop: StopRequest, dataset: Dataset[Any] | None, transform: Transform | None
) -> RunResult:
    with ExitStack() as held, ExitStack() as met:  # held: the main rank's hold on the folder
        with stop.at_once():
            ranks = met.enter_context(join_ranks(config.run.device, field="run.device"))
        with stop.at_once(ranks.main):
            folder = ranks.on_main(lambda: held.enter_context(open_run_folder(config)))
            run = Pretraining(config, folder, ranks, dataset, transform)
            run.resume()
        run.train(stop)
        if run.stopping:
            if ranks.count > 1:
                stop.ignore_further()  # torchrun's, to the ranks that leave last
            reason = stop.signal_name or "a signal to another rank"
            ranks.say(f"{reason}: stopped after step {run.step_done}; go on with --resume --out {folder}")
        else:
            save_averaged(run)
            model = run.parallel.whole()
            if ranks.main and not _finished(run, model, stop):
                return RunResult(folder, run.step_done, finished=False)
        return RunResult(folder, run.step_done, finished=not run.stopping)


def _finished(run: Pretraining, model: Objective, stop: StopRequest) -> bool:
    """Evaluate and report; False where a signal came before or meanwhile: --resume comes back here."""
    try:
        with stop.at_once():
            finish(run, model)
    except Stopped:
        run.ranks.say(
            f"{stop.signal_name}: stopped after the last step, before the report was done; make it with --resume "
            f"--out {run.folder}"
        )
        return False
    return True
