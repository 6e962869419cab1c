"""Memory that a build takes: of a worker that reads a large volume, and of a build of many images.

    python -m bench.memory

A volume, int16 512 x 512 x 1000, in every kind of file that holds one (bench/volumes.py), each read by a worker process
of the assembler's own pool, fresh for it. "idle" is what the process holds before its task, its modules imported;
"above" the most that it ever held beyond. Then SyntheticMVU, 2,000 and 20,000 images of 256 pixels, by one worker: how
many a second of all processes' time (reading, hashing, searching for copies, packing), and the most that the worker and
the driver held above idle. Goals: 1,024 MiB a volume; no more for 20,000 images than 1.1 times what 2,000 take.

Linux alone says what a process holds. Needs 1 GB of disk in the folder for temporary files. Some twelve minutes; with
--quick a small volume, 40 and 200 images, and no goals.
"""

import os
import sys
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from bench.command import Ceilings, Goal, Line, Options, Refused, judged, run, table_row
from bench.contenders import WrongResultError
from bench.timing import machine, status_mib
from bench.volumes import KINDS, Shape, planes, write
from dexcore.data import build_store, open_mvu
from dexcore.data.assemble.processes import WorkerProcesses
from dexcore.data.normalize import normalize

A_WORKER, GROWTH = 1024.0, 1.1  # the goals: MiB, and times
_SHAPE, _QUICK_SHAPE = (1000, 512, 512), (12, 64, 64)
_IMAGES, _QUICK_IMAGES = (2_000, 20_000), (40, 200)


def _build(kind: str, shape: Shape, folder: Path, executor: Executor) -> Path:
    write(kind, folder / "images", shape)
    build_store(folder / "images", folder / "store", executor=executor, key=_key(folder))
    return folder / "store"


def _key(folder: Path) -> Path:
    path = folder / "key"
    path.write_bytes(bytes(32))
    return path


def check(options: Options) -> Refused:
    """A small volume in every kind becomes the same images, those of the normalization's own formula."""
    volume = np.stack(list(planes(_QUICK_SHAPE))).astype(np.float64)
    expected = normalize(volume, "percentile_minmax")
    for kind in KINDS:
        if kind == "NIfTI, resampled":
            continue
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as executor:
            images = open_mvu(_build(kind, _QUICK_SHAPE, Path(folder), executor))
            if len(images) != len(expected):
                raise WrongResultError(f"memory, {kind}: {len(images)} images, expected {len(expected)}")
            for index, plane in enumerate(expected):
                if not np.array_equal(images.read(index), np.rint(plane * np.float32(65535))):
                    raise WrongResultError(f"memory, {kind}: image {index} has other pixels than its volume")
    return {}


def measure(options: Options, ceilings: Ceilings, refused: Refused) -> list[Line]:
    """A table of volumes, and one of SyntheticMVU."""
    if not sys.platform.startswith("linux"):
        print("not measured: this system does not say what a process holds")
        return []
    return [*_volumes(options), *_drawn(options)]


def _volumes(options: Options) -> list[Line]:
    shape = _QUICK_SHAPE if options.quick else _SHAPE
    print(f"a worker that reads int16 {shape[1]} x {shape[2]} x {shape[0]}")
    print(table_row("", "idle MiB", "above", "seconds"))
    lines = []
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder, WorkerProcesses(1) as pool:
            worker, idle = _fresh(pool)
            began = time.perf_counter()
            images = len(open_mvu(_build(kind, shape, Path(folder), pool)))
            seconds = time.perf_counter() - began
            above = status_mib("VmHWM", worker) - idle
        print(table_row(kind, f"{idle:.0f}", f"{above:.0f}", f"{seconds:.0f}"), flush=True)
        line: Line = {"bench": "memory", **machine(), "kind": kind, "shape": shape, "images": images}
        line |= {"idle_mib": round(idle), "above_idle_mib": round(above)}
        if not options.quick:
            line |= judged(Goal("MiB above idle", above, A_WORKER, at_most=True))
        lines.append(line)
    return lines


def _fresh(pool: Executor) -> tuple[int, float]:
    """Start the one process of a pool: its number, and the MiB it holds."""
    worker = pool.submit(os.getpid).result()
    return worker, status_mib("VmRSS", worker)


def _drawn(options: Options) -> list[Line]:
    print("\nSyntheticMVU by one worker, images of 256 pixels")
    print(table_row("", "images/s", "worker MiB", "driver MiB"))
    lines: list[Line] = []
    for images in _QUICK_IMAGES if options.quick else _IMAGES:
        with (
            tempfile.TemporaryDirectory() as folder,
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as driver,
        ):
            found = driver.submit(_draw, folder, images).result()
        cells = [f"{found[name]:.{digits}f}" for name, digits in (("rate", 1), ("worker_mib", 0), ("driver_mib", 0))]
        print(table_row(f"{images}", *cells), flush=True)
        line: Line = {"bench": "memory", **machine(), "kind": "SyntheticMVU", "images": images, **found}
        if lines and not options.quick:
            growth = max(found[name] / lines[0][name] for name in ("worker_mib", "driver_mib"))
            line |= judged(Goal("times the memory of the smaller build", growth, GROWTH, at_most=True))
        lines.append(line)
    return lines


def _draw(folder: str, images: int) -> dict[str, float]:
    """Build in this process and one worker: images a second of both's time, and the most that each held above idle."""
    (source := Path(folder) / "images").mkdir()
    recipe = f"name: SyntheticMVU\nsynthetic: {{images: {images}, size: 256}}\n"
    (source / "dataset.yaml").write_text(recipe, encoding="utf-8")
    with WorkerProcesses(1) as pool:
        worker, idle = _fresh(pool)
        own, began = status_mib("VmRSS"), time.process_time()
        build_store(source, Path(folder) / "store", executor=pool, key=_key(Path(folder)))
        seconds = time.process_time() - began + _seconds(worker)
        return {
            "rate": images / seconds,
            "worker_mib": status_mib("VmHWM", worker) - idle,
            "driver_mib": status_mib("VmHWM") - own,
        }


def _seconds(process: int) -> float:
    """Of a processor, that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    run(__doc__, {"memory": sys.modules[__name__]})
