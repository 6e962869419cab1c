"""Which implementation runs, and what is said where it cannot."""

import importlib
import logging
import os
import subprocess
import sys

import pytest
import torch

from dexcore import ops
from dexcore.ops import backend


def tokens_and_weight():
    return torch.randn(2, 3, 4), torch.randn(5, 4)


def test_triton_on_cpu_tensors_wants_the_interpreter():
    code = (
        "import torch; from dexcore import ops\n"
        "try: ops.route(torch.randn(2, 3, 4), torch.randn(5, 4), 2, backend='triton')\n"
        "except ops.BackendUnavailableError as error: print(error)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert "backend='triton' cannot run: the tensors are on the CPU" in printed
    assert "TRITON_INTERPRET=1" in printed


def test_triton_without_its_package_says_so(monkeypatch):
    backend._device_obstacle.cache_clear()
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(ops.BackendUnavailableError, match="package triton is not installed"):
        ops.route(*tokens_and_weight(), 2, backend="triton")
    backend._device_obstacle.cache_clear()


def test_triton_refuses_float64_by_name():
    with pytest.raises(ops.BackendUnavailableError, match="not in float64"):
        ops.route(*(t.double() for t in tokens_and_weight()), 2, backend="triton")


def test_a_device_that_triton_does_not_know_is_named():
    with pytest.raises(ops.BackendUnavailableError, match="the tensors are on meta"):
        ops.route(*(t.to("meta") for t in tokens_and_weight()), 2, backend="triton")


def test_the_environment_overrides_auto_alone(monkeypatch):
    monkeypatch.setenv("DEXCORE_BACKEND", "triton")
    with pytest.raises(ops.BackendUnavailableError, match="float64"):
        ops.route(*(t.double() for t in tokens_and_weight()), 2)
    ops.route(*tokens_and_weight(), 2, backend="eager")
    monkeypatch.setenv("DEXCORE_BACKEND", "fast")
    with pytest.raises(ValueError, match="environment variable DEXCORE_BACKEND must be one of"):
        ops.route(*tokens_and_weight(), 2)


def test_auto_says_once_what_it_chose(monkeypatch, caplog):
    monkeypatch.setattr(backend, "_announced", set())
    with caplog.at_level(logging.INFO, logger="dexcore"):
        for _ in range(3):
            ops.route(*tokens_and_weight(), 2)
    assert [record.message for record in caplog.records] == ["backend: eager (the fast path on the CPU)"]


@pytest.fixture
def gpu(monkeypatch):
    """An NVIDIA GPU that the kernels are made for."""
    monkeypatch.setattr(backend, "_device_obstacle", lambda device: "")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.delenv("DEXCORE_BACKEND", raising=False)
    return torch.device("cuda", 0)


@pytest.mark.parametrize("dtype", backend.TRITON_DTYPES)
@pytest.mark.parametrize("precision", [None, "ieee", "tf32", "tf32x3"])
def test_on_a_gpu_auto_is_eager_for_experts_in_ieee_float32_alone(gpu, dtype, precision):
    expected = "eager" if dtype == torch.float32 and precision == "ieee" else "triton"
    assert backend.resolve("auto", gpu, dtype, precision) == expected


def test_matrix_cores_that_multiply_ieee_float32_keep_the_kernels(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert backend.resolve("auto", gpu, torch.float32, "ieee") == "triton"


def test_what_is_asked_for_overrides_auto_in_float32_too(gpu, monkeypatch):
    assert backend.choose("triton", gpu, torch.float32, "ieee") == ("triton", "asked for")
    monkeypatch.setenv("DEXCORE_BACKEND", "triton")
    assert backend.choose("auto", gpu, torch.float32, "ieee").backend == "triton"


def test_both_choices_of_a_layer_in_float32_are_said_once(gpu, monkeypatch, caplog):
    monkeypatch.setattr(backend, "_announced", set())
    with caplog.at_level(logging.INFO, logger="dexcore"):
        for _ in range(2):
            backend.resolve("auto", gpu, torch.float32)  # the routing
            backend.resolve("auto", gpu, torch.float32, "ieee")  # the experts
    routing, experts = (record.message for record in caplog.records)
    assert routing == "backend: triton (kernels for cuda)"
    assert experts.startswith("backend: eager (experts in float32 at precision 'ieee'")


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_the_ops_ask_with_their_precision(monkeypatch, precision):
    asked = []

    def resolve(*arguments):
        asked.append(arguments[3])
        raise RuntimeError

    experts = torch.randn(2, 3, 4), torch.randn(5, 6, 4), None, torch.randn(5, 4, 6), None
    director = torch.randn(6, 4), None, torch.randn(4, 6), None
    chosen = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64)
    for op, arguments in (("expert_mlp", (*experts, *chosen)), ("dex_mlp", (*experts, *director, *chosen))):
        monkeypatch.setattr(importlib.import_module(f"dexcore.ops.{op}"), "resolve", resolve)
        with pytest.raises(RuntimeError):
            getattr(ops, op)(*arguments, precision=precision)
    assert asked == [precision] * 2


def test_experts_that_run_eagerly_while_kernels_are_compiled_alone_read_indices_that_are_some():
    from dexcore.kernels.launch import compiling

    x, weight = tokens_and_weight()
    with torch.no_grad(), compiling(lambda kernel: None):
        _, indices, _ = ops.route(x, weight, 2, backend="triton")
    assert torch.equal(indices, torch.zeros_like(indices))  # conftest.py fills what is not written with the largest
