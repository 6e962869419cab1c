"""Which implementation runs, and what is said where it cannot."""

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
