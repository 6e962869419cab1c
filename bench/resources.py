"""What every kernel takes on every architecture, compiled ahead of time: no GPU is needed.

    python -m bench.resources            # build, print the table, write it into bench/results
    python -m bench.resources --check    # build and compare with the table in bench/results instead of writing it

Each version of Triton has a table of its own, bench/results/resources-VERSION.json. `bench.matrix` says what is
compiled. A ninja graph with an edge an entry builds it in build/aot, so that only what depends on a changed file is
compiled again. The command fails, and names the entry, where a kernel breaks a rule:

- a stack or a spill on sm_80 or sm_90;
- in half precision on sm_90 more registers or shared memory than leave room for two programs of the first layer, or of
  the activation's backward, on a multiprocessor;
- more shared memory than a block may have;
- a dot product without a tensor-core instruction, or, of half-precision operands, without the architecture's own.
  IEEE float32 has none on NVIDIA's;
- float32 operands in another precision than the entry's, or a half-precision result that is truncated.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import triton

from bench import matrix
from bench.compile_entry import layer_tiles

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
BUILD = ROOT / "build" / "aot"

Records = dict[str, list[dict[str, Any]]]


def table_file() -> Path:
    """Where the running Triton's table stands."""
    return RESULTS / f"resources-{triton.__version__}.json"


def committed() -> dict[str, Any] | None:
    """The entries of the running Triton's table; None, and a line that says so, where it has none."""
    file = table_file()
    if not file.is_file():
        known = sorted(path.stem.removeprefix("resources-") for path in RESULTS.glob("resources-*.json"))
        print(f"no table of Triton {triton.__version__} is committed, only of {', '.join(known)}: nothing is compared")
        return None
    entries: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["entries"]
    return entries


def build(entries: list[str], folder: Path, jobs: int) -> Records:
    """Compile the entries that are not up to date, and read them all."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {entry: f"{entry.split()[0]}-{hashlib.sha256(entry.encode()).hexdigest()[:12]}.json" for entry in entries}
    lines = [
        "rule compile",
        # Triton's version and the tiles stand in the command so that other ones are compiled anew.
        f"  command = cd {ROOT} && : triton {triton.__version__} tiles '$tiles' && "
        f"{sys.executable} -m bench.compile_entry $path '$entry'",
        "  description = $entry",
        # Without `deps`, which forgets a file that another build in the folder took: an entry without one is compiled.
        "  depfile = $path.d",
    ]
    for entry, name in outputs.items():
        path = folder / name
        tiles = " ".join(",".join(map(str, gemm)) for gemm in layer_tiles(entry))
        lines += [f"build {path}: compile", f"  path = {path}", f"  entry = {entry}", f"  tiles = {tiles}"]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n", encoding="utf-8")
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder / "triton")}
    environment.pop("TRITON_INTERPRET", None)
    ninja = shutil.which("ninja")
    if ninja is None:
        raise SystemExit("bench.resources needs ninja: pip install ninja")
    done = subprocess.run([ninja, "-C", str(folder), "-j", str(jobs), "-k", "0"], env=environment, check=False)
    if done.returncode:
        raise SystemExit("an entry does not compile")
    return {entry: json.loads((folder / name).read_text(encoding="utf-8"))[entry] for entry, name in outputs.items()}


def table(records: Records) -> str:
    """A line a kernel."""
    head = ("entry", "kernel", "registers", "stack", "spills", "shared", "instruction")
    rows = [
        (entry, record["kernel"], *(str(record[name]) for name in head[2:6]), " ".join(record["instructions"]) or "-")
        for entry, found in records.items()
        for record in found
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 2 <= i < 6 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    )


def text(records: Records) -> str:
    """The results file: an entry a line."""
    lines = ",\n".join(f"{json.dumps(entry)}: {json.dumps(found)}" for entry, found in records.items())
    return f'{{"triton": {json.dumps(triton.__version__)}, "entries": {{\n{lines}\n}}}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--build", type=Path, default=BUILD, help="folder of the build")
    parser.add_argument("--only", default="", help="entries that contain this; nothing is written")
    options = parser.parse_args()

    entries = [entry for entry in matrix.entries() if options.only in entry]
    records = build(entries, options.build.resolve(), options.jobs)
    print(table(records))
    complaints = [
        f"{entry}: {record['kernel']}: {wrong}"
        for entry, found in records.items()
        for record in found
        for wrong in matrix.broken_rules(entry, record)
    ]
    if options.check:
        expected = committed()
        complaints += [
            f"{entry}: differs from the committed results"
            for entry in entries
            if expected is not None and not matrix.is_as_committed(records[entry], expected.get(entry, []))
        ]
    elif not options.only:
        table_file().write_text(text(records), encoding="utf-8")
    if complaints:
        raise SystemExit("\n".join(["", *complaints]))


if __name__ == "__main__":
    main()
