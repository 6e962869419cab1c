"""Compile what a model needs before its first step, so that the step does not look like a hang."""

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import triton
from torch import Tensor, nn

from dexcore.checks import check_kind, check_whole
from dexcore.kernels.group_ema import group_ema
from dexcore.kernels.launch import compiling
from dexcore.kernels.route import expert_load
from dexcore.shards import own_share

_log = logging.getLogger("dexcore")


def warm_up(model: nn.Module, batch_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> float:
    """Compile in parallel every kernel of a model's step: forward, in training also backward and GEMA.

    The model runs once on zeros without launching a Triton kernel; its weights, gradients and records, and the
    generators of random numbers, are left as they were. Call it under the same `torch.autocast` as the training, on
    the model itself and not on a wrapper for distributed training. What it compiles does for other batch sizes too, but
    for the weight gradients, which are cut into parts where rows are many for the layer's width: so give the training's
    batch. Compiled kernels stay in Triton's cache on disk.

    Args:
        model: on a GPU; its DEX layers' backend "auto" or "triton". One without DEX layers needs nothing compiled.
        batch_shape: of the model's input, such as (B, 3, 256, 256).
        dtype: of the model's input.

    Returns:
        Seconds that it took; logged too (INFO).

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the shape holds a number below 1, or the model has no parameter, by which to know its device.
    """
    check_kind("model", model, nn.Module, "a torch.nn.Module")
    check_kind("batch_shape", batch_shape, Sequence, "a sequence of numbers, such as (B, 3, 256, 256)")
    for size in batch_shape:
        check_whole("batch_shape", size, 1)
    check_kind("dtype", dtype, torch.dtype, "a torch.dtype")
    began = time.perf_counter()
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ValueError(f"model must have parameters, by which to know its device, got {type(model).__name__}")
    device = parameter.device
    attributes = [(module, dict(vars(module))) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for module, before in attributes:
        if "record" in before:  # of a DEX layer: the step writes into one of its own
            module.record = type(before["record"])()
    kernels: list[Any] = []
    devices = [device] if device.type == "cuda" else []
    try:
        with (
            torch.random.fork_rng(devices),
            ThreadPoolExecutor(os.cpu_count()) as pool,
            triton.AsyncCompileMode(pool),
            compiling(kernels.append),
        ):
            _step(model, torch.zeros(*batch_shape, dtype=dtype, device=device))
    finally:
        for module, before in attributes:
            vars(module).clear()
            vars(module).update(before)
        for buffer, before in buffers:
            buffer.copy_(before)
    seconds = time.perf_counter() - began
    _log.info("%d kernels ready after %.1f s", len({id(kernel) for kernel in kernels}), seconds)
    return seconds


def _step(model: nn.Module, images: Tensor) -> None:
    if not model.training:
        with torch.no_grad():
            model(images)
        return
    total = images.new_zeros(())
    for tensor in _differentiable(model(images)):
        total = total + tensor.sum()
    pairs: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        if getattr(module, "routing", None) is not None:  # a DEX layer that ran its experts
            for tensor in _differentiable(module.routing):
                total = total + tensor.sum()
            gates, indices, *_ = module.routing
            expert_load(gates.detach().float(), indices, module.num_experts)
            pairs += module.expert_director_pairs()
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if total.requires_grad:
        torch.autograd.grad(total, wanted, allow_unused=True)
    experts = [own_share(expert.detach()) for expert, _ in pairs]
    directors = [own_share(director.detach()) for _, director in pairs]
    weights = [expert.new_zeros(len(expert), dtype=torch.float32) for expert in experts]
    group_ema(directors, experts, weights, 1.0)
    if torch.is_autocast_enabled(images.device.type):  # it writes the next forward's copies too
        half = torch.get_autocast_dtype(images.device.type)
        copies = [[torch.empty_like(tensor, dtype=half) for tensor in tensors] for tensors in (directors, experts)]
        group_ema(directors, experts, weights, 1.0, *copies)


def _differentiable(output: Any) -> Iterator[Tensor]:
    """All tensors with a gradient in what a module returned."""
    if isinstance(output, Tensor):
        if output.requires_grad:
            yield output
    elif isinstance(output, dict):
        yield from _differentiable(list(output.values()))
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _differentiable(part)
