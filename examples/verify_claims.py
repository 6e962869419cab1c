"""Put the claims of DEX to the test: train it and its twins, measure, and say which claims hold.

    python examples/verify_claims.py --out claims                     # generated images
    python examples/verify_claims.py --out claims --store STORE --tasks TASKS/*/*.yaml
    python examples/verify_claims.py --out claims --quick             # minutes: tests the road, decides nothing
    python examples/verify_claims.py --out claims --dry-run           # how long it would take
    python examples/verify_claims.py --out claims --arm oracle-routing # and a control that must pass
    python examples/verify_claims.py --out claims --remedy wider.yaml # a changed DEX beside it

The story, from top to bottom: find the images, and see that they and the tasks will do; train short pilots and write
down, once, the smallest effects that the experiment can show; train every arm with every seed; measure each model;
judge, and write OUT/claims.html. All that is done is kept in OUT and found again: after a kill the same command goes
on. Needs the extra `eval`; `--quick` without `--store` takes the sample images of the extra `samples`. Returns 0; 2
after an error; 75 when a signal stopped it.
"""

import argparse
import math
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import timm
import torch

import dexcore
from dexcore.data import SyntheticMVU, open_mvu
from dexcore.data.readers import UnreadableFileError
from dexcore.data.store import write_store
from dexcore.data.store.manifest import StoreError
from dexcore.engine.checkpoint import CheckpointError
from dexcore.engine.config import ConfigError, flat
from dexcore.engine.config_file import read_yaml
from dexcore.engine.folder import RunFolderError
from dexcore.engine.memory import keep_freed_memory
from dexcore.evaluate.claims import Measured, findings, remedied, smallest_effects
from dexcore.evaluate.claims.before import (
    SMALLEST_FILE,
    ExperimentError,
    Written,
    check_images,
    check_tasks,
    settle,
    write_once,
)
from dexcore.evaluate.claims.effects import Trained
from dexcore.evaluate.claims.known import CLAIMS, DENSE, DEX, FIXED, ORACLE, WIDE
from dexcore.evaluate.claims.of_model import measure
from dexcore.evaluate.embedding import FeaturesError
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.evaluate.tasks.importers.synthetic import synthetic_tasks
from dexcore.extras import MissingExtraError, require
from dexcore.report.claims import Experiment
from dexcore.report.claims_page import write_claims
from dexcore.report.comparison import KINDS, Comparison
from dexcore.report.files import COMPARISON_FILE
from dexcore.report.history import History
from dexcore.train.config import PRESETS, ModelConfig, PretrainConfig
from dexcore.train.image_store import sample_store
from dexcore.train.loop import TrainingError
from dexcore.train.run.kept import Kept, StoppedError, code_of, is_done, run_folder, train_once

ARMS = (DEX, WIDE, FIXED)
MORE_ARMS = (DENSE, ORACLE)  # with --full, or one by one with --arm
PILOT_ARMS = (DEX, WIDE)  # those that effects are made of
PILOT_SEED = 1000  # and on: none of the experiment's
PILOT_NAME = "pilot-"  # begins theirs
COMPARED = tuple(
    f"model.{name}" for name in ("mlp", "image_size", "patch_size", "in_chans", "mask_ratio", "norm_pix_loss")
)
CHANGED = "Director-Experts, changed"
SIZE = 64  # pixels
STOPPED, ERROR = 75, 2
_TOLD = (
    *(CheckpointError, ConfigError, ExperimentError, FeaturesError, MissingExtraError, OSError),
    *(RunFolderError, StoreError, TaskError, TrainingError, UnreadableFileError),
)  # errors that say in a line what is wrong


@dataclass(frozen=True)
class Scale:
    """How large the experiment is.

    Attributes:
        seeds, epochs: of every arm.
        pilot_seeds, pilot_epochs: of the pilot's.
        evaluated: images a modality that a run is measured on, of either split.
        drawn, held_out: generated images of the store.
        labelled: generated images of the tasks.
        model: all but its MLPs.
    """

    seeds: int
    epochs: float
    pilot_seeds: int
    pilot_epochs: float
    evaluated: int
    drawn: int
    held_out: int
    labelled: int
    model: ModelConfig


_LAPTOP = PRESETS["laptop"]
_SMALLER = replace(_LAPTOP.model, image_size=32, dim=64, depth=2, heads=2, decoder_dim=64, decoder_depth=1)
WHOLE = Scale(5, 52.0, 3, 8.0, 64, 3200, 640, 1200, _LAPTOP.model)
QUICK = Scale(1, 4.0, 2, 1.0, 8, 400, 100, 200, _SMALLER)


@dataclass(frozen=True)
class Run:
    """A training: which arm, which seed, for the pilot or for the experiment."""

    arm: str
    seed: int
    config: PretrainConfig
    pilot: bool

    @property
    def name(self) -> str:
        return f"{PILOT_NAME if self.pilot else ''}{self.arm}-{self.seed}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the experiment that the command line describes."""
    given = parse(argv)
    keep_freed_memory()
    try:
        return verify(given)
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        return STOPPED
    except _TOLD as error:
        print(f"error: {error}", file=sys.stderr)
        return ERROR


def verify(given: argparse.Namespace) -> int:
    """The story."""
    out: Path = given.out
    scale = QUICK if given.quick else WHOLE
    for module, extra in (("scipy.stats", "eval"), ("sklearn.linear_model", "eval"), ("matplotlib", "train")):
        require(module, extra)  # else missed after hours
    store = images(given, scale)
    opened = open_mvu(store)
    fingerprint = opened.fingerprint
    settle(out, {"scale": "quick" if given.quick else "whole", "images": fingerprint})
    tasks = labelled_images(given, scale)
    known = [*check_images(opened, scale.evaluated), *check_tasks(tasks.all, store), *tasks.flags]
    for flag in known:
        say(f"note: {flag}")
    more = tuple(arm for arm in MORE_ARMS if given.full or arm in given.arm)
    runs = plan(store, scale, ARMS + more, given.remedy)
    if given.dry_run:
        rehearse(runs, fingerprint, out, tasks)
        return 0

    # Before anything is trained for the experiment: what could it show?
    pilots, own = ([run for run in runs if run.pilot is pilot] for pilot in (True, False))
    pilot = train_all(pilots, fingerprint, out, tasks, later=own)
    written = write_once(out, smallest_effects(numbers_of(pilot), CLAIMS, scale.seeds), CLAIMS, begun(out))
    say_what_could_be_shown(written)

    trained = train_all(own, fingerprint, out, tasks)
    found = findings(numbers_of(trained), CLAIMS, written.shown)
    costs = costs_of(runs, fingerprint, out)
    codes = codes_of(runs, fingerprint, out)
    experiment = Experiment(
        name=opened.name,
        findings=found,
        seeds=scale.seeds,
        flags=(*flags(given, trained, costs, codes, scale), *written.flags, *known, *of_all(trained)),
        facts=facts(runs, trained, costs, fingerprint, tasks)
        | {"Smallest effects": f"{written.when} ({SMALLEST_FILE})", "Code": ", ".join(codes)},
        remedies=remedied(numbers_of(trained), changes_of(runs), DEX, CLAIMS),
    )
    page = write_claims(out, experiment)
    for one in found:
        print(f"{one.verdict:>12}  {one.claim.title}")
    print(page)
    return 0


def images(given: argparse.Namespace, scale: Scale) -> Path:
    """The store that all are trained on: the user's; with --quick the samples; else generated images."""
    if given.store:
        return given.store
    if given.quick:
        return sample_store()
    store = given.out / "synthetic"
    if not (store / "manifest.json").is_file():
        say(f"drawing {scale.drawn + scale.held_out} images")
        drawn = SyntheticMVU(size=SIZE)
        records = (
            drawn.record(index, "train" if index < scale.drawn else "heldout")
            for index in range(scale.drawn + scale.held_out)
        )
        write_store(records, store, name="SyntheticMVU")
    return store


@dataclass(frozen=True)
class Tasks:
    """What models are probed on.

    Attributes:
        asked: tasks that claims are judged on.
        beside: of generated images, where a user gives tasks: their numbers stand beside.
        flags: what must be known of the choice.
    """

    asked: list[Task]
    beside: list[Task]
    flags: list[str]

    @property
    def all(self) -> list[Task]:
        return [*self.asked, *self.beside]


def labelled_images(given: argparse.Namespace, scale: Scale) -> Tasks:
    """The user's tasks of classes; a task of generated images that no run has seen beside them, or in their place."""
    asked = [Task.open(path) for path in given.tasks]
    masks = [task.name for task in asked if task.spec.is_segmentation]
    asked = [task for task in asked if not task.spec.is_segmentation]
    if masks and not asked:
        raise ExperimentError(f"--tasks: {', '.join(masks)} are of masks, expected a task of classes")
    told = [f"Left out, since claims are judged on tasks of classes: {', '.join(masks)}."] if masks else []
    if given.store and not asked:
        told.append("No task is given: transfer and the shared space are of generated images, unlike the store's.")
    _, generated = synthetic_tasks(given.out / "tasks", scale.labelled, SIZE, fractions=(0.5, 0.1, 0.4))
    return Tasks(asked or [generated], [generated] if asked else [], told)


def plan(store: Path, scale: Scale, arms: Sequence[str], remedies: Sequence[Path] = ()) -> list[Run]:
    """All runs, pilots first; seed by seed, so that an experiment that is cut short has whole seeds."""
    names = [path.stem for path in remedies]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ExperimentError(f"--remedy: several files are called {', '.join(sorted(twice))}: names tell them apart")
    base = replace(_LAPTOP, data=replace(_LAPTOP.data, store=str(store)))
    runs = []
    for pilot, seeds, own_arms, epochs in (
        (True, range(PILOT_SEED, PILOT_SEED + scale.pilot_seeds), PILOT_ARMS, scale.pilot_epochs),
        (False, range(scale.seeds), arms, scale.epochs),
    ):
        for seed in seeds:
            for arm in own_arms:
                config = replace(
                    base,
                    model=replace(scale.model, mlp=arm),
                    optimizer=replace(base.optimizer, warmup_epochs=min(base.optimizer.warmup_epochs, epochs / 4)),
                    run=replace(base.run, epochs=epochs, seed=seed, evaluate_images=scale.evaluated),
                )
                runs.append(Run(arm, seed, config, pilot))
                if arm == DEX and not pilot:
                    runs += [Run(f"{DEX}-{path.stem}", seed, changed(config, path), pilot) for path in remedies]
    return runs


def changed(config: PretrainConfig, path: Path) -> PretrainConfig:
    """A DEX run with the fields of a remedy's file, which may change what is trained, not what it is compared on."""
    found = read_yaml(path, config)
    before = dict(flat(config))
    for name, value in flat(found):
        if value != before[name] and (name in COMPARED or name.partition(".")[0] not in ("model", "optimizer", "dex")):
            raise ExperimentError(f"{path}: {name}: a remedy is compared with DEX, and may not change it")
    return found


def changes_of(runs: Sequence[Run]) -> dict[str, str]:
    """What each remedy changed, by the name of its arm."""
    own = {run.arm: dict(flat(run.config)) for run in runs if not run.pilot and run.seed == 0}
    return {
        arm: ", ".join(f"{name} {value}" for name, value in fields.items() if value != own[DEX][name]) or "nothing"
        for arm, fields in own.items()
        if arm.startswith(f"{DEX}-")
    }


def train_all(
    runs: Sequence[Run], fingerprint: str, out: Path, tasks: Tasks, later: Sequence[Run] = ()
) -> dict[tuple[str, int], Measured]:
    """Train and measure each run, or find what is done; say which one is at work and how long all may take, with those
    that come later."""
    found = {}
    spent, done = 0.0, 0.0
    for place, run in enumerate(runs):
        rest = [other for other in (*runs[place:], *later) if not known_run(other, fingerprint, out)]
        left = sum(steps(other) for other in rest)
        about = f", about {spent / done * left / 60:.0f} min left" if done else ""
        say(f"run {place + 1} of {len(runs)}: {run.name}{about}")
        began = time.monotonic()
        kept = train_once(run.name, run.config, fingerprint, out / "runs")
        found[run.arm, run.seed] = measure_run(run, kept, out, tasks)
        if not kept.again:
            spent, done = spent + time.monotonic() - began, done + steps(run)
            say(f"  trained in {kept.seconds:.0f} s, measured in {time.monotonic() - began - kept.seconds:.0f} s")
    return found


def known_run(run: Run, fingerprint: str, out: Path) -> bool:
    return is_done(run.name, run.config, fingerprint, out / "runs") is not None


def measure_run(run: Run, kept: Kept, out: Path, tasks: Tasks) -> Measured:
    """All numbers of a trained model, or those that were measured before."""
    return measure(
        kept.run,
        kept.folder,
        run.name,
        store=Path(run.config.data.store),
        images=run.config.run.evaluate_images,
        tasks=tasks.asked,
        generated=tasks.beside,
        cache=out / "features",
    )


def numbers_of(trained: dict[tuple[str, int], Measured]) -> Trained:
    return {key: one.numbers for key, one in trained.items()}


def steps(run: Run) -> float:
    data = run.config.data
    return run.config.run.epochs * data.epoch_size / data.batch_size


def begun(out: Path) -> str:
    """When the first run of the experiment began, that is no pilot; "" where none has."""
    folders = (out / "runs").glob("*/run")
    times = [code_of(folder).began for folder in folders if not folder.parent.name.startswith(PILOT_NAME)]
    return min((time for time in times if time), default="")


def say_what_could_be_shown(written: Written) -> None:
    say(f"smallest effects, and in how many studies the margin would be called supported; written {written.when}:")
    for name, shown in written.shown.items():
        known = math.isfinite(shown.smallest)
        say(f"  {name}: " + (f"{shown.smallest:.3f}, {100 * shown.power:.0f} of 100" if known else "not known"))


def shortened(config: PretrainConfig) -> PretrainConfig:
    """The same run for one epoch."""
    return replace(
        config,
        optimizer=replace(config.optimizer, warmup_epochs=0.25),
        run=replace(config.run, epochs=1.0),
    )


def rehearse(runs: Sequence[Run], fingerprint: str, out: Path, tasks: Tasks) -> None:
    """Tell how long the experiment will take: an epoch of each arm, evaluated and measured as all are."""
    of_step, of_rest = {}, {}
    for arm in dict.fromkeys(run.arm for run in runs):
        run = next(run for run in runs if run.arm == arm)
        config = shortened(run.config)
        short = Run(arm, run.seed, config, pilot=True)
        began = time.monotonic()
        kept = train_once(f"dry-run-{arm}", config, fingerprint, out / "dry-run")
        measure_run(short, kept, out, tasks)
        seconds = kept.seconds + time.monotonic() - began if kept.again else time.monotonic() - began
        speed = History.read(kept.run / "metrics.jsonl").scalars["images_per_second"]
        of_step[arm] = config.data.batch_size / float(sorted(speed)[len(speed) // 2])
        of_rest[arm] = max(0.0, seconds - steps(short) * of_step[arm])
        whole = of_rest[arm] + steps(runs[-1]) * of_step[arm]
        print(f"{arm:16} {of_step[arm]:.3f} s a step, {of_rest[arm]:.0f} s to measure: {whole / 60:.1f} min a run")
    left = [run for run in runs if not known_run(run, fingerprint, out)]
    minutes = sum(of_rest[run.arm] + of_step[run.arm] * steps(run) for run in left) / 60
    print(f"{len(runs)} runs with the pilots, {len(runs) - len(left)} of them done: about {minutes:.0f} min to go")


def flags(
    given: argparse.Namespace,
    trained: dict[tuple[str, int], Measured],
    costs: dict[tuple[str, int], Comparison],
    codes: Sequence[str],
    scale: Scale,
) -> list[str]:
    """What must be read before a verdict is: of how the experiment was made."""
    told = []
    if given.quick:
        told.append("A quick run tests the road: one seed, a few steps. It decides nothing.")
    for arm in (ORACLE, FIXED):
        if arm not in {name for name, _ in trained}:
            told.append(f"The control {arm} was not run; with --arm {arm} it is.")
    for seed in range(scale.seeds):
        if len({costs[key].order_sha256 for key in costs if key[1] == seed}) > 1:
            told.append(f"The arms of seed {seed} did not see the same images in the same order: nothing is paired.")
    if len(codes) > 1:
        told.append(f"Runs were trained by different code, and may differ by that: {'; '.join(codes)}.")
    elif any("and changes" in code for code in codes):
        told.append("The code had changes that no commit holds: these numbers cannot be made again from a commit.")
    return told


def codes_of(runs: Sequence[Run], fingerprint: str, out: Path) -> list[str]:
    """By which states of the code the runs were trained, and how many by each."""
    count: Counter[str] = Counter()
    for run in runs:
        count.update(code_of(run_folder(run.name, run.config, fingerprint, out / "runs") / "run").states)
    return [f"{state} ({number} runs)" for state, number in count.items()]


def of_all(trained: dict[tuple[str, int], Measured]) -> list[str]:
    """What must be known of every model: of the tasks, then, and not of a solver that stumbled once."""
    first, *others = trained.values()
    return [flag for flag in first.flags if all(flag in other.flags for other in others)]


def of_some(trained: dict[tuple[str, int], Measured]) -> list[str]:
    """What must be known of single models, and of which."""
    common = of_all(trained)
    found: dict[str, list[str]] = {}
    for (arm, seed), one in trained.items():
        for flag in one.flags:
            if flag not in common:
                found.setdefault(flag, []).append(f"{arm} {seed}")
    return [f"{flag} ({', '.join(models)})" for flag, models in found.items()]


def costs_of(runs: Sequence[Run], fingerprint: str, out: Path) -> dict[tuple[str, int], Comparison]:
    """What each model costs and which images it was shown when, as the trainer counted."""
    found = {}
    for run in runs:
        told = Comparison.read(run_folder(run.name, run.config, fingerprint, out / "runs") / "run" / COMPARISON_FILE)
        if told is not None and not run.pilot:
            found[run.arm, run.seed] = told
    return found


def facts(
    runs: Sequence[Run],
    trained: dict[tuple[str, int], Measured],
    costs: dict[tuple[str, int], Comparison],
    fingerprint: str,
    tasks: Tasks,
) -> dict[str, str]:
    """What was run, for people who want to do it again."""
    longest = runs[-1]
    versions = {"dexcore": dexcore.__version__, "torch": torch.__version__, "timm": timm.__version__}
    return {
        "Command": shlex.join(["python", *sys.argv]),
        **{arm: f"{KINDS.get(arm, CHANGED)}. {one.costs()}." for (arm, seed), one in costs.items() if seed == 0},
        "Runs": f"{len([run for run in runs if not run.pilot])} of {steps(longest):.0f} steps, after "
        f"{len([run for run in runs if run.pilot])} pilots of {steps(runs[0]):.0f}",
        "Store": fingerprint,
        "Tasks": ", ".join(f"{task.name} {task.fingerprint[:12]}" for task in tasks.asked),
        **(
            {"Tasks beside": ", ".join(f"{one.name} {one.fingerprint[:12]}" for one in tasks.beside)}
            if tasks.beside
            else {}
        ),
        "Flags of single models": "; ".join(of_some(trained)) or "none",
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items())
        + f", Python {platform.python_version()}",
        "Machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="the folder of all that is made; found again there")
    add("--store", type=Path, metavar="STORE", help="images to train on (default: generated ones)")
    add(
        "--tasks",
        type=Path,
        nargs="+",
        default=[],
        metavar="YAML",
        help="tasks of classes, in place of the generated one",
    )
    add("--remedy", type=Path, nargs="+", default=[], metavar="YAML", help="fields of a changed DEX, tried beside it")
    add("--arm", action="append", default=[], choices=MORE_ARMS, help="train this twin too; may be given again")
    add("--full", action="store_true", help="train them all")
    add("--quick", action="store_true", help="one seed, a few steps: tests the road, decides nothing")
    add("--dry-run", action="store_true", help="train a short run of each arm and say how long all would take")
    return parser.parse_args(argv)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
