"""What a GPU can tell in a few minutes, most worth knowing first.

    bash bench/gpu.sh [--minutes 5] [--out DIR]
    bash bench/gpu.sh --device cpu --minutes 1     # a rehearsal: tiny shapes, interpreted kernels, times mean nothing

Every stage is a process with a time limit of its own. What it finds is on disk at once, and the page of text is written
after every stage: whatever ends the run, what was done is there. In DIR: ``page.txt``, ``results.jsonl``, ``log.txt``,
and ``configs.json``, the tiles that tuning found. This file imports nothing that may be missing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "triton", "timm", "einops", "numpy", "safetensors")
_LIMITS_FOR = 5.0  # minutes that the stages' limits are given for
_TO_START = 15.0  # seconds that a process may take until it works, whatever the minutes
_LEAST_SECONDS = 3.0  # less is not worth a process


class Stage(NamedTuple):
    """A process of `bench.gpu_stages`, or pytest."""

    name: str
    seconds: float  # its limit once it works, of a run of five minutes
    tells: str
    packages: tuple[str, ...] = ()
    on_cpu: bool = True


STAGES = (
    Stage("environment", 10, "device, driver and versions"),
    Stage("compile", 30, "seconds to compile all kernels of a layer, in parallel, in three dtypes", on_cpu=False),
    Stage("kernels", 75, "every kernel of forward and backward against plain float64, in three dtypes"),
    Stage("ceilings", 20, "the largest GEMM and the largest copy"),
    Stage("layer", 45, "a layer's step against the published loop and its bare GEMMs"),
    Stage("graph", 30, "the same in a CUDA graph, without the host's part; the GEMMs' rate", on_cpu=False),
    Stage("memory", 30, "what a layer holds for its backward, against the published loop"),
    Stage("align", 30, "the alignment loss as a share of the largest copy"),
    Stage("ema", 30, "the directors' update as a share of the largest copy"),
    Stage("tests", 75, "pytest -m gpu", ("pytest", "hypothesis")),
    Stage("step", 60, "a whole ViT-B step against the published one", ("matplotlib", "pyarrow", "cv2")),
    Stage("tune", 120, "the fastest tiles for ViT-B's layer", on_cpu=False),
    Stage("tuned layer", 45, "the layer's step with those tiles", on_cpu=False),
)


class Goal(NamedTuple):
    """What a stage's line {"goal": key, "value": number} is read against."""

    key: str
    name: str
    target: float


GOALS = (
    Goal("gemm_share", "forward and backward, share of the largest GEMM's rate", 0.75),
    Goal("speedup", "a layer's step, times the published loop's speed", 2.5),
    Goal("align_share", "alignment loss, share of the largest copy's bandwidth", 0.85),
    Goal("ema_share", "directors' update, share of the largest copy's bandwidth", 0.90),
    Goal("memory_ratio", "memory held for the backward, the published loop's over dexcore's", 2.0),
)


@dataclass
class Run:
    """A run's folder, time and what became of its stages."""

    out: Path
    device: str
    minutes: float
    quick: bool

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.outcomes: dict[str, str] = {}
        self.child: subprocess.Popen[bytes] | None = None

    def seconds_left(self) -> float:
        return 60 * self.minutes - (time.monotonic() - self.began)

    def all_stages(self) -> None:
        self.write_page()
        for stage in STAGES:
            self.outcomes[stage.name] = "running"
            self.write_page()
            self.outcomes[stage.name] = self.outcome(stage)
            print(f"{stage.name}: {self.outcomes[stage.name]}", flush=True)
            self.write_page()

    def outcome(self, stage: Stage) -> str:
        """Run a stage; in words what became of it."""
        missing = [name for name in (*NEEDED, *stage.packages) if find_spec(name) is None]
        if self.device == "cpu" and not stage.on_cpu:
            return "left out: needs a GPU"
        if missing and stage.name != "environment":
            return f"left out: needs {', '.join(missing)}, which is not installed"
        if stage.name == "tuned layer" and not (self.out / "configs.json").is_file():
            return "left out: tuning found no tiles"
        limit = min(_TO_START + stage.seconds * self.minutes / _LIMITS_FOR, self.seconds_left())
        if limit < _LEAST_SECONDS:
            return "not reached"
        began = time.monotonic()
        code = self.process(stage, limit)
        seconds = f"{time.monotonic() - began:.0f} s"
        if code is None:
            return f"out of time after {seconds}; what it found until then counts"
        return f"done in {seconds}" if code == 0 else f"FAILED after {seconds}: {self.last_line()}"

    def process(self, stage: Stage, limit: float) -> int | None:
        """Its exit code, or None where it ran into its limit."""
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OPENBLAS_NUM_THREADS": "1"}
        environment.pop("TRITON_INTERPRET", None)
        if self.device == "cpu":
            environment["TRITON_INTERPRET"] = "1"
        command = [sys.executable, "-m", "bench.gpu_stages", stage.name, "--out", str(self.out)]
        command += ["--device", self.device, "--seconds", f"{limit:.0f}", *(["--quick"] if self.quick else [])]
        if stage.name == "tests":
            command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-p", "no:cacheprovider"]
            command += ["--ignore=tests/bench/test_goals.py", *(["--collect-only"] if self.device == "cpu" else [])]
        with (self.out / "log.txt").open("ab") as log:
            log.write(f"\n== {stage.name}\n".encode())
            log.flush()
            self.child = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                return self.child.wait(limit)
            except subprocess.TimeoutExpired:
                return None
            finally:
                self.end_child()

    def end_child(self) -> None:
        """With all that it started."""
        if self.child is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
            self.child = None

    def last_line(self) -> str:
        text = (self.out / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
        return text.splitlines()[-1][:160]

    def lines(self) -> list[dict[str, Any]]:
        """What the stages have found; a line that a kill cut in two is left out."""
        found = []
        file = self.out / "results.jsonl"
        for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                found.append(json.loads(text))
            except json.JSONDecodeError:
                continue
        return found

    def page(self) -> str:
        lines = self.lines()
        machine = next((line["said"] for line in lines if line["stage"] == "environment" and "said" in line), "unknown")
        values = {line["goal"]: line["value"] for line in lines if "goal" in line}
        text = [f"dexcore on {machine}", ""]
        if self.quick:
            text += ["A REHEARSAL on tiny shapes: it shows that everything runs. No value below means anything.", ""]
        text += [f"{'goal':68}{'target':>8}{'value':>8}"]
        for goal in GOALS:
            value = values.get(goal.key)
            met = "not reached" if value is None else "met" if value >= goal.target else "missed"
            if self.quick and value is not None:
                met = "means nothing"
            shown = "" if value is None else f"{value:.2f}"
            text.append(f"{goal.name:68}{goal.target:8.2f}{shown:>8}  {met}")
        text += ["", "stages"]
        for stage in STAGES:
            text.append(f"  {stage.name:12} {self.outcomes.get(stage.name, 'not reached')}")
            text += [f"      {line['said']}" for line in lines if line["stage"] == stage.name and "said" in line]
        text += ["", f"{time.monotonic() - self.began:.0f} s of {60 * self.minutes:.0f}"]
        text += ["all numbers are in results.jsonl, all that was printed in log.txt"]
        return "\n".join(text) + "\n"

    def write_page(self) -> None:
        partial = self.out / "page.tmp"
        partial.write_text(self.page(), encoding="utf-8")
        partial.replace(self.out / "page.txt")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="when to end, whatever is not done (default 5)")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder for the results (gpu-results)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal on tiny shapes")
    given = parser.parse_args(arguments)
    if not 0 < given.minutes < 1000:
        parser.error(f"--minutes must be above 0 and below 1000, got {given.minutes:g}")
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        parser.error(f"--out {given.out}: is there already and not an empty folder")
    return given


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    run = Run(given.out.resolve(), given.device, given.minutes, quick=given.device == "cpu")

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):  # a lost connection too: the stages are in sessions of their own
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:  # as nohup wants it
            signal.signal(getattr(signal, name), end)
    code = 0
    try:
        run.all_stages()
    except KeyboardInterrupt:
        run.end_child()
        for name, outcome in run.outcomes.items():
            if outcome == "running":
                run.outcomes[name] = "stopped by a signal; what it found until then counts"
        run.write_page()
        code = 75
    print(run.page(), end="")
    failed = any(outcome.startswith("FAILED") for outcome in run.outcomes.values())
    return code or int(failed)


if __name__ == "__main__":
    sys.exit(main())
