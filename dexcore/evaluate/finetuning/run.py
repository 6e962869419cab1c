"""A fine-tuning from its configuration to scores: `finetune`.

OUT/NAME/MODE/TASK/seed-N
    metrics.jsonl            a line a step; where val was scored its number too
    checkpoints/             while it trains
    model/                   the last state, a `TaskModel`; it predicts
    best/                    the state that was best on val, where there is a val split
    predictions.parquet      of the test images by the last state (masks: and a PNG each, in masks/)
    scores.json, scores.npz  as `dexcore eval score` writes them
    routes.json              where experts compute: what each of each layer received of the test images
    val/                     predictions and scores.json of val, by the last state
    choice.json              what was chosen, on what, by which numbers: no label of test decides a byte of it
    finetune.json            what all of it is made from, and whether it is finished: then nothing is computed again
"""

import json
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from dexcore.checks import check_kind
from dexcore.engine.config import check_field
from dexcore.engine.folder import RunFolderError, hold
from dexcore.engine.ranks import LostRankError, Ranks, environment_rank, join_ranks
from dexcore.engine.stop import EXIT_STOPPED, Stopped, StopRequest
from dexcore.evaluate.embedding.images import content_of
from dexcore.evaluate.finetuning.config import FinetuneConfig
from dexcore.evaluate.finetuning.dry_run import rehearse
from dexcore.evaluate.finetuning.training import (
    BEST_FOLDER,
    Finetuning,
    write_json,
)
from dexcore.evaluate.probes.run import ROUTES, safe, write_routes
from dexcore.evaluate.scores import Scores, over_seeds, score
from dexcore.evaluate.scores.compare import ComparisonError
from dexcore.evaluate.tasks import Task
from dexcore.evaluate.tasks.table import SplitName
from dexcore.extras import MissingExtraError
from dexcore.models.hub import CONFIG_FILE
from dexcore.report.files import CHECKPOINTS_FOLDER, LOCK_FILE, MODEL_FOLDER

FINISHED = "finished"  # in DONE_FILE
DONE_FILE, CHOICE_FILE, PREDICTIONS_FILE = "finetune.json", "choice.json", "predictions.parquet"
SCORES_FILE, MASKS_FOLDER, VAL_FOLDER = "scores.json", "masks", "val"
_SILENT_SECONDS = 5.0  # images are read sooner where they are few, or near


@dataclass(frozen=True)
class RunResult:
    """How a fine-tuning ended.

    Attributes:
        folders: of the seeds that are done, in their order.
        scores: of each, on test.
        finished: False where a signal stopped it; the same call goes on. A dry run is finished without scores.
    """

    folders: tuple[Path, ...]
    scores: tuple[Scores, ...]
    finished: bool

    @property
    def exit_code(self) -> int:
        """What a process should return: 0, or 75 where the run was stopped by a signal and can be gone on with."""
        return 0 if self.finished else EXIT_STOPPED

    def lines(self) -> list[str]:
        """Numbers with intervals, where all lies, and what can be done with it."""
        if not self.scores:
            return []
        first, folder = self.scores[0], self.folders[0]
        told = first.lines()
        if len(self.scores) > 1:
            for scores in self.scores[1:]:
                told.append(f"  seed {scores.seed}: {scores.metric}  {scores.primary}")
            told += _over_seeds(self.scores)
        place = folder.parent
        return [
            *told,
            f"all of it   {place}/seed-*: model, predictions, scores",
            f"a picture   dexcore predict IMAGE --model {quote(str(folder / MODEL_FOLDER))}",
            f"a table     dexcore eval table {quote(str(place.parents[2]))}",
            f"a pair      dexcore eval compare {quote(str(place.parent))} ANOTHER",
        ]


def _over_seeds(scores: Sequence[Scores]) -> list[str]:
    """The seeds summed up, for a terminal; why they cannot be, where all of them are trained and scored by now."""
    try:
        spread = over_seeds(scores)
    except (ComparisonError, MissingExtraError) as error:
        return [f"  note: {error}"]
    return [
        f"  {len(scores)} seeds: {spread.metric}  {spread.mean}, deviation over seeds "
        f"{spread.deviation_seeds:.4f}, over cases {spread.deviation_cases:.4f}",
        *(f"  note: {flag}" for flag in spread.flags),
    ]


def finetune(config: FinetuneConfig) -> RunResult:
    """Fine-tune a model on a task, predict the test images and score them, with one seed or several.

    Under torchrun all processes call it; they share every batch and the images that are predicted. SIGTERM, SIGINT and
    SIGUSR1 end it after the step in hand, with a checkpoint; the same call goes on from there, and does not run a seed
    again that is done.

    Args:
        config: of the run.

    Returns:
        The folders and scores of the seeds. With ``config.dry_run`` it prints how the run would go instead.

    Raises:
        TypeError: ``config`` is no `FinetuneConfig`.
        ConfigError: the configuration does not fit the machine, the task, the model or the number of processes.
        TaskError, FeaturesError, ModelFileError: the task or the model cannot be used; the message names file and row.
        RunFolderError: the folder cannot be used: another run writes into it, it holds another fine-tuning, or the disk
            is full.
        CheckpointError: a checkpoint cannot be written or read.
        FinetuneError: the loss or its gradient is not finite in too many steps on end.
        MainRankError, LostRankError: another process cannot go on.
    """
    check_kind("config", config, FinetuneConfig, "a FinetuneConfig")
    for name, expected in (("task", "the YAML of a task"), ("model", "a folder of dexcore's or a name of timm's")):
        check_field(getattr(config, name) != "", name, expected, getattr(config, name))
    done: list[tuple[Path, Scores]] = []
    with StopRequest() as stop:
        try:
            finished = _run(config, stop, done)
        except Stopped:
            if environment_rank()[0] == 0:
                print(
                    f"{stop.signal_name}: stopped between steps; nothing is lost, the same command goes on",
                    file=sys.stderr,
                    flush=True,
                )
            finished = False
        except LostRankError:
            if not stop:
                raise
            finished = False
    return RunResult(tuple(folder for folder, _ in done), tuple(scores for _, scores in done), finished)


def _run(config: FinetuneConfig, stop: StopRequest, done: list[tuple[Path, Scores]]) -> bool:
    """Run the seeds; those that are done come into ``done``. False where a signal came."""
    with stop.at_once():
        task = Task.open(config.task)
    content = None
    with join_ranks(config.device) as ranks:
        for seed in range(config.seed, config.seed + config.seeds):
            with stop.at_once(ranks.main):
                training = Finetuning(config, seed, task, Path(), ranks)
                training.folder = seed_folder(config, training.name, task, seed)
            if config.dry_run:
                lines = rehearse(training)
                if ranks.main:
                    print("\n".join(lines), flush=True)
                return True
            if content is None:  # not sooner: what is wrong with model or task is said before they are read
                content = _content_of(task, ranks, stop)
            training.of_images(content)
            with _held(training, ranks):
                scores, trained = _read_done(training, ranks)
                if scores is None:
                    if trained:
                        training.take_trained(MODEL_FOLDER)
                    elif not training.resume():
                        _begin(training)
                    training.train(stop)
                    if training.stopping:
                        if ranks.count > 1:
                            stop.ignore_further()  # torchrun's, to the ranks that leave last
                        reason = stop.signal_name or "a signal to another rank"
                        ranks.say(f"{reason}: stopped after step {training.step_done}; the same command goes on")
                        return False
                    with stop.at_once():
                        scores = _finish(training, trained)
            done.append((training.folder, scores))
    return True


def _content_of(task: Task, ranks: Ranks, stop: StopRequest) -> str:
    """`content_of` a task, whose images the main rank reads for all."""

    def read() -> str:
        told = f"reading the {len(task.rows):,} images of task {task.name}, to know them again where the run goes on"
        teller = threading.Timer(_SILENT_SECONDS, ranks.say, [told])
        teller.daemon = True
        teller.start()
        try:
            with stop.at_once():
                return content_of(task)
        finally:
            teller.cancel()

    return ranks.on_main_for_long(read)


def seed_folder(config: FinetuneConfig, name: str, task: Task, seed: int) -> Path:
    """Where the training of a seed is written."""
    mode = name.rpartition(" ")[2]
    return Path(config.out) / safe(config.called) / mode / safe(task.name) / f"seed-{seed}"


@contextmanager
def _held(training: Finetuning, ranks: Ranks) -> Iterator[None]:
    """Hold the folder of a training, so that no second run writes into it."""

    def opened() -> Any:
        try:
            training.folder.mkdir(parents=True, exist_ok=True)
            lock = open(training.folder / LOCK_FILE, "a")  # noqa: SIM115
        except OSError as error:
            raise RunFolderError(f"out: cannot write into {training.folder}: {error.strerror or error}") from error
        held.enter_context(lock)
        held.enter_context(hold(lock, training.folder, LOCK_FILE))

    with ExitStack() as held:
        ranks.on_main(opened)
        yield


def _read_done(training: Finetuning, ranks: Ranks) -> tuple[Scores | None, bool]:
    """The scores of a training that is done, None where they are not there; and whether its model is.

    Raises:
        RunFolderError: the folder holds another one.
    """
    folder = training.folder

    def read() -> tuple[Scores | None, bool]:
        try:
            before = json.loads((folder / DONE_FILE).read_text(encoding="utf-8"))
            finished = before.pop(FINISHED, True)
        except (FileNotFoundError, ValueError, AttributeError):
            return None, False  # not begun, or damaged: a checkpoint says the rest
        training.check_same(before)
        if not finished:
            return None, False
        with suppress(FileNotFoundError, ValueError):
            scores = Scores.load(folder)
            if not (folder / SCORES_FILE).is_file():
                scores.save(folder)
            ranks.say(f"{folder}: is done, and not run again")
            return scores, True
        return None, (folder / MODEL_FOLDER / CONFIG_FILE).is_file()

    return ranks.on_main(read)


def _begin(training: Finetuning) -> None:
    """Say in the folder what is made there, before the first step; on all ranks."""

    def written() -> None:
        try:
            shutil.rmtree(training.folder / BEST_FOLDER, ignore_errors=True)  # of one that left no checkpoint
            write_json(training.folder / DONE_FILE, {FINISHED: False, **training.made_from})
        except OSError as error:
            raise RunFolderError(f"out: cannot write into {training.folder}: {error.strerror or error}") from error

    training.ranks.on_main(written)


def _finish(training: Finetuning, saved: bool) -> Scores:
    """Save the model, where it is not, predict, score; on all ranks."""
    ranks, task, folder = training.ranks, training.task, training.folder
    if not saved:
        ranks.on_main(lambda: training.save_model(MODEL_FOLDER))
    ranks.say("predicting the test images")
    try:
        scores = _scored(training, "test", folder)
        scores.save(folder) if ranks.main else None
        if task.split("val"):
            of_val = _scored(training, "val", folder / VAL_FOLDER)
            if ranks.main:  # not as an npz: a table would take it for another model's test
                write_json(folder / VAL_FOLDER / SCORES_FILE, of_val.as_json())
        if ranks.main:
            write_json(folder / CHOICE_FILE, _choice(training))
            write_json(folder / DONE_FILE, {FINISHED: True, **training.made_from})
            shutil.rmtree(folder / CHECKPOINTS_FOLDER, ignore_errors=True)
    except OSError as error:
        raise RunFolderError(
            f"{folder}: the training is done, its predictions and scores cannot be written: {error}; the same command "
            "goes on when they can"
        ) from error
    return scores


def _scored(training: Finetuning, split: SplitName, folder: Path) -> Scores:
    """Predict a split and score it, on all ranks; the main one writes."""
    predictions = training.predictor.predict(split, folder / MASKS_FOLDER, training.name, training.seed)

    def written() -> Scores:
        folder.mkdir(parents=True, exist_ok=True)
        predictions.save(folder / PREDICTIONS_FILE)
        if split == "test":
            write_routes(folder / ROUTES, training.predictor.gates)
        return score(predictions, training.task, split)

    return training.ranks.on_main_for_long(written)


def _choice(training: Finetuning) -> dict[str, Any]:
    """What was chosen, and on what."""
    best = training.best
    return {
        "finetune": training.name.rpartition(" ")[2],
        "chosen_on": "nothing is chosen: the last state predicts",
        "steps": training.step_done,
        "seed": training.seed,
        "best_on_val": None
        if best is None
        else {"metric": training.task.spec.metric, "value": best[0], "steps": best[1], "model": BEST_FOLDER},
    }
