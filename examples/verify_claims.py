"""Put the claims of DEX to the test: train it and its twins, measure, and say which claims hold.

    python examples/verify_claims.py --out claims                     # generated images
    python examples/verify_claims.py --out claims --store STORE --tasks TASKS/*/*.yaml
    python examples/verify_claims.py --out claims --quick             # minutes: tests the road, decides nothing
    python examples/verify_claims.py --out claims --dry-run           # how long it would take

The story, from top to bottom: find the images; train short pilots and write down the smallest effects that the
experiment can show; train every arm with every seed; measure each model; judge, and write OUT/claims.html. All that is
done is kept in OUT and found again: after a kill the same command goes on. Needs the extra `eval`; `--quick` without
`--store` takes the sample images of the extra `samples`. Returns 0; 2 after an error; 75 when a signal stopped it.
"""

import argparse
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import timm
import torch

import dexcore
from dexcore.data import SyntheticMVU, open_mvu
from dexcore.data.readers import UnreadableFileError
from dexcore.data.store import write_store
from dexcore.data.store.manifest import StoreError
from dexcore.engine.checkpoint import CheckpointError
from dexcore.engine.config import ConfigError
from dexcore.engine.folder import RunFolderError
from dexcore.engine.memory import keep_freed_memory
from dexcore.evaluate.claims import Measured, findings, smallest_effects
from dexcore.evaluate.claims.effects import Trained, measured
from dexcore.evaluate.claims.known import CLAIMS, DENSE, DEX, FIXED, ORACLE, WIDE
from dexcore.evaluate.claims.of_model import measure
from dexcore.evaluate.embedding import FeaturesError
from dexcore.evaluate.tasks import Task, TaskError
from dexcore.evaluate.tasks.importers.synthetic import synthetic_tasks
from dexcore.extras import MissingExtraError
from dexcore.files import write_whole
from dexcore.measures.effects import ALPHA, POWER
from dexcore.report.claims import Experiment
from dexcore.report.claims_page import write_claims
from dexcore.report.comparison import KINDS, Comparison
from dexcore.report.files import COMPARISON_FILE
from dexcore.report.history import History
from dexcore.train.config import PRESETS, ModelConfig, PretrainConfig
from dexcore.train.image_store import sample_store
from dexcore.train.kept import Kept, StoppedError, is_done, run_folder, train_once
from dexcore.train.loop import TrainingError

ARMS = (DEX, WIDE, FIXED)
MORE_ARMS = (DENSE, ORACLE)  # with --full
PILOT_ARMS = (DEX, WIDE)  # those that effects are made of
PILOT_SEED = 1000  # and on: none of the experiment's
SIZE = 64  # pixels
STOPPED, ERROR = 75, 2
_TOLD = (
    *(CheckpointError, ConfigError, FeaturesError, MissingExtraError, OSError),
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
        return f"{'pilot-' if self.pilot else ''}{self.arm}-{self.seed}"


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
    store = images(given, scale)
    fingerprint = open_mvu(store).fingerprint
    tasks = labelled_images(given, scale)
    runs = plan(store, scale, ARMS + (MORE_ARMS if given.full else ()))
    if given.dry_run:
        rehearse(runs, fingerprint, out, tasks)
        return 0

    # Before anything is trained for the experiment: what could it show?
    pilot = train_all([run for run in runs if run.pilot], fingerprint, out, tasks)
    smallest = smallest_effects(numbers_of(pilot), CLAIMS, scale.seeds)
    written = write_down(smallest, out)

    trained = train_all([run for run in runs if not run.pilot], fingerprint, out, tasks)
    found = findings(numbers_of(trained), CLAIMS, smallest)
    costs = costs_of(runs, fingerprint, out)
    experiment = Experiment(
        name=open_mvu(store).name,
        findings=found,
        seeds=scale.seeds,
        flags=flags(given, trained, pilot, costs, scale),
        facts=facts(runs, trained, costs, fingerprint, tasks) | {"Smallest effects": written},
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


def labelled_images(given: argparse.Namespace, scale: Scale) -> list[Task]:
    """Tasks of generated images that no run has seen, always, and the user's."""
    _, findings_task = synthetic_tasks(given.out / "tasks", scale.labelled, SIZE, fractions=(0.5, 0.1, 0.4))
    return [findings_task, *(Task.open(path) for path in given.tasks)]


def plan(store: Path, scale: Scale, arms: Sequence[str]) -> list[Run]:
    """All runs, pilots first; seed by seed, so that an experiment that is cut short has whole seeds."""
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
    return runs


def train_all(
    runs: Sequence[Run], fingerprint: str, out: Path, tasks: Sequence[Task]
) -> dict[tuple[str, int], Measured]:
    """Train and measure each run, or find what is done; say which one is at work and how long the rest may take."""
    found = {}
    spent, done = 0.0, 0.0
    for place, run in enumerate(runs):
        left = sum(steps(other) for other in runs[place:])
        about = f", about {spent / done * left / 60:.0f} min left" if done else ""
        say(f"run {place + 1} of {len(runs)}: {run.name}{about}")
        began = time.monotonic()
        kept = train_once(run.name, run.config, fingerprint, out / "runs")
        found[run.arm, run.seed] = measure_run(run, kept, out, tasks)
        if not kept.again:
            spent, done = spent + time.monotonic() - began, done + steps(run)
            say(f"  trained in {kept.seconds:.0f} s, measured in {time.monotonic() - began - kept.seconds:.0f} s")
    return found


def measure_run(run: Run, kept: Kept, out: Path, tasks: Sequence[Task]) -> Measured:
    """All numbers of a trained model, or those that were measured before."""
    return measure(
        kept.run,
        kept.folder,
        run.name,
        store=Path(run.config.data.store),
        images=run.config.run.evaluate_images,
        tasks=tasks,
        cache=out / "features",
    )


def numbers_of(trained: dict[tuple[str, int], Measured]) -> Trained:
    return {key: one.numbers for key, one in trained.items()}


def steps(run: Run) -> float:
    data = run.config.data
    return run.config.run.epochs * data.epoch_size / data.batch_size


def write_down(smallest: dict[str, float], out: Path) -> str:
    """Keep the smallest effects before the first run of the experiment; when they were written, as text."""
    path = out / "smallest_effects.json"
    told = {name: value if math.isfinite(value) else None for name, value in smallest.items()}
    content = {"alpha": ALPHA, "power": POWER, "claims": len(CLAIMS), "smallest": told}
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    written = before.pop("written", "")
    if before != content:
        written = datetime.now(UTC).isoformat(timespec="seconds")
        write_whole(path, (json.dumps(content | {"written": written}, indent=1) + "\n").encode())
    say(f"smallest effects that can be shown, written {written}: {path}")
    for name, value in told.items():
        say(f"  {name}: " + ("not known" if value is None else f"{value:.3f}"))
    return f"{written} ({path.name}), from pilots that were done before"


def shortened(config: PretrainConfig) -> PretrainConfig:
    """The same run for one epoch."""
    return replace(
        config,
        optimizer=replace(config.optimizer, warmup_epochs=0.25),
        run=replace(config.run, epochs=1.0),
    )


def rehearse(runs: Sequence[Run], fingerprint: str, out: Path, tasks: Sequence[Task]) -> None:
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
    left = [run for run in runs if not is_done(run.name, run.config, fingerprint, out / "runs")]
    minutes = sum(of_rest[run.arm] + of_step[run.arm] * steps(run) for run in left) / 60
    print(f"{len(runs)} runs with the pilots, {len(runs) - len(left)} of them done: about {minutes:.0f} min to go")


def flags(
    given: argparse.Namespace,
    trained: dict[tuple[str, int], Measured],
    pilot: dict[tuple[str, int], Measured],
    costs: dict[tuple[str, int], Comparison],
    scale: Scale,
) -> tuple[str, ...]:
    """What must be read before a verdict is."""
    told = []
    if given.quick:
        told.append("A quick run tests the road: one seed, a few steps. It decides nothing.")
    for arm in (ORACLE, FIXED):
        if arm not in {name for name, _ in trained}:
            told.append(f"The control {arm} was not run; with the flag full it is.")
    for seed in range(scale.seeds):
        if len({costs[key].order_sha256 for key in costs if key[1] == seed}) > 1:
            told.append(f"The arms of seed {seed} did not see the same images in the same order: nothing is paired.")
    for one in CLAIMS:
        before, after = (measured(numbers_of(group), one.terms()) for group in (pilot, trained))
        if before and after and after.deviation_seeds > 2 * before.deviation_seeds > 0:
            times = after.deviation_seeds / before.deviation_seeds
            told.append(
                f"{one.claim.title}: seeds differ {times:.1f} times as much as in the pilot, so the smallest effect "
                "that was computed from it is too small."
            )
    return (*told, *of_all(trained))


def of_all(trained: dict[tuple[str, int], Measured]) -> list[str]:
    """What must be known of every model: of the tasks, then, and not of a solver that stumbled once."""
    first, *others = trained.values()
    return [flag for flag in first.flags if all(flag in other.flags for other in others)]


def of_some(trained: dict[tuple[str, int], Measured]) -> list[str]:
    """What must be known of single models."""
    common = of_all(trained)
    return [f"{arm} {seed}: {flag}" for (arm, seed), one in trained.items() for flag in one.flags if flag not in common]


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
    tasks: Sequence[Task],
) -> dict[str, str]:
    """What was run, for people who want to do it again."""
    longest = runs[-1]
    versions = {"dexcore": dexcore.__version__, "torch": torch.__version__, "timm": timm.__version__}
    return {
        "Command": shlex.join(["python", *sys.argv]),
        **{arm: f"{KINDS[arm]}. {one.costs()}." for (arm, seed), one in costs.items() if seed == 0},
        "Runs": f"{len([run for run in runs if not run.pilot])} of {steps(longest):.0f} steps, after "
        f"{len([run for run in runs if run.pilot])} pilots of {steps(runs[0]):.0f}",
        "Store": fingerprint,
        "Tasks": ", ".join(f"{task.name} {task.fingerprint[:12]}" for task in tasks),
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
    add("--tasks", type=Path, nargs="+", default=[], metavar="YAML", help="tasks of classes beside the generated one")
    add("--full", action="store_true", help=f"train {' and '.join(MORE_ARMS)} too")
    add("--quick", action="store_true", help="one seed, a few steps: tests the road, decides nothing")
    add("--dry-run", action="store_true", help="train a short run of each arm and say how long all would take")
    return parser.parse_args(argv)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
