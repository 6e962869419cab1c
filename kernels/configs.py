"""Tile shapes of the GEMM kernels: a frozen table, never timed while a model trains."""

from typing import NamedTuple


class Gemm(NamedTuple):
    """A GEMM kernel's output tile, its step along K, and how Triton schedules it."""

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


class LayerConfig(NamedTuple):
    """The GEMM kernels of one layer. All that walk the experts' rows share one ``block_m``, the plan's."""

    up: Gemm
    down: Gemm
    dact: Gemm
    dx: Gemm
    wgrad1: Gemm
    wgrad2: Gemm
