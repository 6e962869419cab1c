"""Which implementation runs: eager PyTorch everywhere, Triton where its kernels exist."""

import logging
import os

import torch

_log = logging.getLogger("dexcore")
_announced: set[str] = set()

BACKENDS = ("auto", "triton", "eager")


class BackendUnavailableError(RuntimeError):
    """The backend asked for cannot run here; the message says why."""


def resolve(backend: str) -> str:
    """The backend that runs: "eager" or "triton".

    The environment variable DEXCORE_BACKEND takes the place of "auto". What "auto" chose is logged once (INFO).

    Raises:
        ValueError: no such backend.
        BackendUnavailableError: "triton" was asked for and cannot run.
    """
    asked = backend
    if backend == "auto":
        asked = os.environ.get("DEXCORE_BACKEND", "auto")
    if asked not in BACKENDS:
        where = "backend" if asked == backend else "the environment variable DEXCORE_BACKEND"
        raise ValueError(f"{where} must be one of {', '.join(BACKENDS)}, got {asked!r}")
    if asked == "triton":
        raise BackendUnavailableError(
            "backend='triton' cannot run: this version of dexcore has no Triton kernels; use 'eager' or 'auto'"
        )
    if asked == "auto" and not torch.compiler.is_compiling() and "eager" not in _announced:
        _announced.add("eager")
        _log.info("backend: eager (plain PyTorch; this version has no Triton kernels)")
    return "eager"
