"""The committed tables of what the compiled kernels take: true of the code as it is, and by its rules.

Each version of Triton has its own; the code is compared with that of the running one.

Compiling needs a process without the interpreter.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

ROOT = Path(__file__).parents[2]
TABLES = {
    table["triton"]: table["entries"]
    for table in (
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "bench" / "results").glob("resources-*.json"))
    )
}

# A GEMM in each precision of float32, and kernels that store half precisions.
IN_FLOAT32 = {precision: f"expert_dx sm_90 fp32-{precision} 192x768" for precision in ("ieee", "tf32", "tf32x3")}
HALVES = {
    "bf16": "align_backward sm_90 bf16 192x768",
    "f16": "align_backward sm_90 fp16 192x768",
}

# Small kernels of several files, and a GEMM for each architecture.
SAMPLE = (
    "expert_up sm_90 bf16 768x3072 gelu z wa director",
    "expert_dx sm_80 bf16 192x768",
    "expert_down gfx942 bf16 192x768 director",
    "expert_dx sm_100 bf16 192x768",
    "mix_align_forward sm_90 bf16 192x768 kd gradient",
    "group_ema sm_90 fp32-ieee 768x3072",
)


def run(*arguments, cache, timeout):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(cache)
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture(scope="module")
def matrix():
    """bench.matrix, which is not on a test's path."""
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "bench" / "matrix.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_both_ends_of_what_is_supported_have_a_table_in_a_file_of_its_name():
    assert {"3.6.0", "3.8.0"} <= TABLES.keys()
    assert all((ROOT / "bench" / "results" / f"resources-{version}.json").is_file() for version in TABLES)


@pytest.mark.parametrize("version", TABLES)
def test_a_table_holds_every_entry_of_the_matrix_in_its_order(matrix, version):
    assert matrix.entries() == list(TABLES[version])
    assert all(TABLES[version].values())


@pytest.mark.parametrize("version", TABLES)
def test_a_table_keeps_the_rules(matrix, version):
    broken = [
        (entry, record["kernel"], wrong)
        for entry, records in TABLES[version].items()
        for record in records
        for wrong in matrix.broken_rules(entry, record)
    ]
    assert not broken


@pytest.mark.parametrize(
    ("architecture", "changes", "complaint"),
    [
        ("sm_80", {"stack": 16}, "stack 16"),
        ("sm_90", {"spills": 4}, "spills 4"),
        ("sm_80", {"shared": 164 * 1024}, "167936 bytes of shared memory, 166912 allowed"),
        ("gfx942", {"shared": 65 * 1024}, "66560 bytes of shared memory, 65536 allowed"),
        ("sm_90", {"instructions": ["mma.sync"]}, "a dot of bf16 without wgmma"),
        ("sm_100", {"instructions": ["wgmma"]}, "a dot of bf16 without tcgen05"),
        ("gfx942", {"instructions": []}, "a dot of bf16 without v_mfma"),
        ("sm_90", {"registers": 136}, "136 registers, 128 for two programs at once"),
        ("sm_90", {"shared": 114 * 1024}, "116736 bytes of shared memory, 115712 for two programs at once"),
        ("sm_90", {"dots": ["ieee"]}, "wgmma though nothing multiplies in less than float32"),
        ("sm_90", {"dots": ["bf16", "tf32"]}, "a dot of tf32, where float32 is ieee"),
        ("sm_90", {"conversions": ["cvt.rn.bf16x2.f32", "cvt.rz.bf16.f32"]}, "cvt.rz.bf16.f32 truncates"),
        ("gfx942", {"conversions": ["arith.truncf", "rtz"]}, "rtz truncates"),
    ],
)
def test_a_broken_rule_is_named(matrix, architecture, changes, complaint):
    good = {"kernel": "k", "registers": 128, "stack": 0, "spills": 0, "shared": 65536, "dots": ["bf16"]}
    good["instructions"] = [matrix.TENSOR_INSTRUCTION[architecture]]
    entry = f"expert_up {architecture} bf16 768x3072 gelu z wa director"
    assert matrix.broken_rules(entry, good) == []
    assert matrix.broken_rules(entry, good | changes) == [complaint]


@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3"])
def test_a_dot_of_float32_has_its_entrys_precision(matrix, precision):
    entry = f"expert_dx sm_90 fp32-{precision} 768x3072"
    record = {"stack": 0, "spills": 0, "shared": 0}
    for other in ("ieee", "tf32", "tf32x3"):
        complaints = matrix.broken_rules(
            entry, record | {"dots": [other], "instructions": ["wgmma"][: other != "ieee"]}
        )
        assert complaints == ([] if other == precision else [f"a dot of {other}, where float32 is {precision}"])
    if precision != "ieee":
        without = matrix.broken_rules(entry, record | {"dots": [precision], "instructions": []})
        assert without == [f"a dot of {precision} without a tensor-core instruction"]


def test_a_table_is_compared_by_what_it_was_told(matrix):
    committed = [{"kernel": "k", "registers": 32}]
    assert matrix.is_as_committed([{"kernel": "k", "registers": 32, "loop": 5}], committed)
    assert not matrix.is_as_committed([{"kernel": "k", "registers": 34, "loop": 5}], committed)
    assert not matrix.is_as_committed([{"kernel": "k"}], committed)
    assert not matrix.is_as_committed([], committed)


def test_a_stack_is_allowed_where_nothing_could_be_measured(matrix):
    record = {"stack": 16, "spills": 4, "shared": 0, "dots": [], "instructions": []}
    assert matrix.broken_rules("sum_slots sm_100 bf16 768x3072", record) == []


def compiled(folder, *entries):
    out = folder / "out.json"
    done = run("-m", "bench.compile_entry", str(out), *entries, cache=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert list(found) == list(entries)
    assert all(found.values())
    return found


def test_a_sample_compiles_to_what_is_committed(matrix, tmp_path):
    found = compiled(tmp_path, *SAMPLE)
    if triton.__version__ not in TABLES:
        pytest.skip(f"Triton {triton.__version__} has no table, only {', '.join(TABLES)}: compiled, and not compared")
    for entry, records in found.items():
        assert matrix.is_as_committed(records, TABLES[triton.__version__][entry]), entry


def test_float32_is_multiplied_as_asked_and_rounded_to_nearest(matrix, tmp_path):
    found = compiled(tmp_path, *IN_FLOAT32.values(), *HALVES.values())
    for precision, entry in IN_FLOAT32.items():
        assert [record["dots"] for record in found[entry]] == [[precision]]
    for half, entry in HALVES.items():
        (record,) = found[entry]
        assert record["conversions"]
        assert all(how.startswith("cvt.rn.") and half in how.split(".")[2] for how in record["conversions"])
    broken = [matrix.broken_rules(entry, record) for entry, records in found.items() for record in records]
    assert not any(broken)


def test_a_version_without_a_table_is_named(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT))
    resources = importlib.import_module("bench.resources")
    monkeypatch.setattr(resources, "table_file", lambda: ROOT / "no-such-file.json")
    assert resources.committed() is None
    assert f"no table of Triton {triton.__version__} is committed, only of 3.6.0" in capsys.readouterr().out


@pytest.mark.slow
def test_an_entry_whose_sources_are_not_known_is_compiled_again(tmp_path):
    entry = "expert_load gfx942 bf16 768x3072"
    arguments = ("-m", "bench.resources", "--build", str(tmp_path), "--only", entry)
    first = run(*arguments, cache=tmp_path, timeout=1200)
    assert first.returncode == 0, first.stderr
    (listed,) = tmp_path.glob("*.json.d")
    out = listed.with_suffix("")
    written = out.stat().st_mtime_ns
    for known in (True, False):
        if not known:
            listed.unlink()
        again = run(*arguments, cache=tmp_path, timeout=1200)
        assert again.returncode == 0, again.stderr
        assert (out.stat().st_mtime_ns == written) == known


@pytest.mark.slow
def test_everything_compiles_to_what_is_committed_by_the_rules(tmp_path):
    done = run("-m", "bench.resources", "--check", "--build", str(tmp_path), cache=tmp_path, timeout=7200)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
