"""Switches of PyTorch's arithmetic: set inside, and as they were after it, by an error too."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from dexcore.engine.config import ConfigError
from dexcore.engine.numerics import deterministic, numerics, tf32

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def _state():
    products = [backend.matmul.fp32_precision for backend in (torch.backends.cuda, torch.backends.mkldnn)]
    precision = torch.get_float32_matmul_precision()
    return numerics(), products, precision, torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)


@contextmanager
def _ends(kind: type[Exception], words: str | None = None) -> Iterator[None]:
    """With an error of this kind, at the last line inside."""
    with pytest.raises(kind, match=words):
        yield


@pytest.mark.parametrize("given", [None, ":16:8", ":0:0"])
def test_inside_all_is_deterministic_and_after_an_error_all_is_as_before(given, monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    if given is not None:
        monkeypatch.setenv(WORKSPACE, given)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = _state()
    with _ends(RuntimeError, "put_ does not have a deterministic implementation"), deterministic(True):
        assert (numerics()["deterministic"], torch.backends.cudnn.benchmark) == (True, False)
        assert os.environ[WORKSPACE] == (":16:8" if given == ":16:8" else ":4096:8")
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert _state() == before
    with deterministic(False):
        assert _state() == before


def test_where_cuda_was_used_before_it_asks_for_the_variable(monkeypatch):
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    message = r"run\.deterministic: expected CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment .* got None"
    with pytest.raises(ConfigError, match=message), deterministic(True, "run.deterministic"):
        pass
    monkeypatch.setenv(WORKSPACE, ":4096:8")
    with deterministic(True):
        assert numerics()["deterministic"]
    assert not numerics()["deterministic"]


@pytest.mark.parametrize("before", ["highest", "medium"])
def test_tf32_is_on_inside_and_as_before_after_an_error(before):
    torch.set_float32_matmul_precision(before)
    state = _state()
    with _ends(ZeroDivisionError), tf32(True):
        assert numerics()["tf32"]
        assert torch.get_float32_matmul_precision() == "high"
        raise ZeroDivisionError
    assert _state() == state
    with tf32(False):
        assert _state() == state
    torch.set_float32_matmul_precision("highest")
