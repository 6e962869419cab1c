"""Which implementation runs, and what is said where it cannot."""

import logging

import pytest
import torch

from dexcore import ops
from dexcore.ops import backend


def tokens_and_weight():
    return torch.randn(2, 3, 4), torch.randn(5, 4)


def test_triton_where_it_cannot_run_says_why():
    with pytest.raises(ops.BackendUnavailableError, match="no Triton kernels"):
        ops.route(*tokens_and_weight(), 2, backend="triton")


def test_the_environment_overrides_auto_alone(monkeypatch):
    monkeypatch.setenv("DEXCORE_BACKEND", "triton")
    with pytest.raises(ops.BackendUnavailableError):
        ops.route(*tokens_and_weight(), 2)
    ops.route(*tokens_and_weight(), 2, backend="eager")
    monkeypatch.setenv("DEXCORE_BACKEND", "fast")
    with pytest.raises(ValueError, match="environment variable DEXCORE_BACKEND must be one of"):
        ops.route(*tokens_and_weight(), 2)


def test_auto_says_once_what_it_chose(monkeypatch, caplog):
    monkeypatch.setattr(backend, "_announced", set())
    with caplog.at_level(logging.INFO, logger="dexcore"):
        for _ in range(3):
            ops.route(*tokens_and_weight(), 2)
    assert [record.message for record in caplog.records] == [
        "backend: eager (plain PyTorch; this version has no Triton kernels)"
    ]
