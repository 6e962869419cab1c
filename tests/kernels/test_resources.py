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
        for wrong in matrix.broken_rules(entry, record, version)
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
        ("sm_90", {"dots": ["tf32x3"], "instructions": []}, "a dot of tf32x3 without a tensor-core instruction"),
        ("sm_90", {"dots": ["ieee"]}, "wgmma though nothing multiplies in less than float32"),
    ],
)
def test_a_broken_rule_is_named(matrix, architecture, changes, complaint):
    good = {"kernel": "k", "registers": 128, "stack": 0, "spills": 0, "shared": 65536, "dots": ["bf16"]}
    good["instructions"] = [matrix.TENSOR_INSTRUCTION[architecture]]
    entry = f"expert_up {architecture} bf16 768x3072 gelu z wa director"
    assert matrix.broken_rules(entry, good) == []
    assert matrix.broken_rules(entry, good | changes) == [complaint]


def test_a_stack_is_allowed_where_nothing_could_be_measured(matrix):
    record = {"stack": 16, "spills": 4, "shared": 0, "dots": [], "instructions": []}
    assert matrix.broken_rules("sum_slots sm_100 bf16 768x3072", record) == []


def test_a_sample_compiles_to_what_is_committed(tmp_path):
    out = tmp_path / "out.json"
    done = run("-m", "bench.compile_entry", str(out), *SAMPLE, cache=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert list(found) == list(SAMPLE)
    assert all(found.values())
    if triton.__version__ not in TABLES:
        pytest.skip(f"Triton {triton.__version__} has no table, only {', '.join(TABLES)}: compiled, and not compared")
    assert found == {entry: TABLES[triton.__version__][entry] for entry in SAMPLE}


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
