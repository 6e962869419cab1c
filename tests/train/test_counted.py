"""What is counted of a model before it is built is what a real one has."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dexcore.kernels.configs import INTERPRETER, layer_config
from dexcore.ops import copies
from dexcore.train import counted as counting
from dexcore.train.build import build_model
from dexcore.train.config import PRESETS, Checkpointing, ModelConfig
from dexcore.train.counted import kept_for_backward

SMALL = replace(PRESETS["laptop"].model, dim=96, decoder_dim=96, decoder_depth=3, num_experts=3)


def _kept_by_a_real_step(config: ModelConfig, images: int) -> int:
    """Bytes that were allocated in a forward and not freed, as PyTorch's profiler tells."""
    model = build_model(config).train()
    image = torch.rand(images, 3, config.image_size, config.image_size)
    noise = torch.rand(images, model.num_patches)
    autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
    with autocast, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = model(image, noise=noise, hidden_only=True).loss
    assert loss.isfinite()
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())


@pytest.mark.parametrize("mlp", ["dex", "dense-wide"])
def test_what_a_step_keeps_is_what_a_real_step_keeps(mlp):
    real, counted = dict[str, int](), dict[str, int]()
    for how in get_args(Checkpointing):
        config = replace(SMALL, mlp=mlp, grad_checkpointing=how)
        real[how] = _kept_by_a_real_step(config, 2) - _kept_by_a_real_step(config, 1)
        counted[how] = kept_for_backward(config, on_gpu=False)
    assert counted["none"] == pytest.approx(real["none"], rel=0.001)
    for kept in (real, counted):
        assert kept["none"] > 1.2 * kept["selective"] > 1.5 * kept["block"]
    for how in ("selective", "block"):  # and what one block keeps beyond it while it is run again
        assert real[how] < counted[how] < real[how] + (real["none"] - real[how]) / 3


@pytest.mark.parametrize("how", get_args(Checkpointing))
@pytest.mark.parametrize("keep", ["both", "z", "none"])
def test_what_a_gpu_keeps_is_what_the_op_by_triton_says(monkeypatch, how, keep):
    config = replace(SMALL, grad_checkpointing=how, keep=keep)
    tiles = layer_config(INTERPRETER, config.dim, int(config.dim * config.mlp_ratio), torch.bfloat16)
    monkeypatch.setattr(counting, "TILE", tiles.up.block_m)

    def kept(on_gpu: bool) -> tuple[float, float]:
        """An image's bytes, and those that are kept whatever the images."""
        few, many = (counting._kept_of(config, images, on_gpu) for images in (32, 64))
        return (many - few) / 32, 2 * few - many

    predicted, (_, eager) = kept(on_gpu=True)[0], kept(on_gpu=False)
    monkeypatch.setenv("DEXCORE_BACKEND", "triton")
    an_image, always = kept(on_gpu=False)
    assert predicted == pytest.approx(an_image, rel=1e-6)
    if how == "selective":  # else eager layers keep casts of their weights too
        filled = counting._filled(counting._empty(config), how)
        assert always - eager == pytest.approx(filled, rel=0.01)


@pytest.mark.usefixtures("no_shards")
def test_weights_that_are_copied_are_those_whose_copies_a_step_leaves(monkeypatch):
    counted = counting.count(SMALL)
    monkeypatch.setenv("DEXCORE_BACKEND", "triton")
    model = build_model(SMALL).train()
    image, noise = torch.rand(1, 3, SMALL.image_size, SMALL.image_size), torch.rand(1, model.num_patches)
    with torch.autocast("cpu", torch.bfloat16):
        model(image, noise=noise, hidden_only=True)
    parameters = {id(parameter) for parameter in model.parameters()}
    left = [kept.half.numel() for name, kept in copies._kept.items() if name in parameters and kept.half is not None]
    assert sum(left) == sum(counted.copied_units) > counted.experts * 0.99


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_the_rows_of_a_tile_are_those_of_the_published_models_kernels(architecture):
    for width in (PRESETS["paper"].model.dim, PRESETS["paper"].model.decoder_dim):
        assert layer_config(architecture, width, 4 * width, torch.bfloat16).up.block_m == counting.TILE


def test_the_page_says_what_the_published_model_keeps():
    page = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text()
    for how in get_args(Checkpointing):
        kept = kept_for_backward(replace(PRESETS["paper"].model, grad_checkpointing=how))
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{how}`")]
        assert f"| {kept / 1e6:.0f} MB" in row
    filled = counting.count(PRESETS["paper"].model).filled
    assert (
        f"add {filled['none'] / 1e6:.0f} MB at most, whatever the images (`block`: {filled['block'] / 1e6:.0f} MB)"
        in page
    )
