"""What is counted of a model before it is built is what a real one has."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

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
        counted[how] = kept_for_backward(config)
    assert counted["none"] == pytest.approx(real["none"], rel=0.001)
    for kept in (real, counted):
        assert kept["none"] > 1.2 * kept["selective"] > 1.5 * kept["block"]
    for how in ("selective", "block"):  # and what one block keeps beyond it while it is run again
        assert real[how] < counted[how] < real[how] + (real["none"] - real[how]) / 3


def test_the_page_says_what_the_published_model_keeps():
    page = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text()
    for how in get_args(Checkpointing):
        kept = kept_for_backward(replace(PRESETS["paper"].model, grad_checkpointing=how))
        (row,) = [line for line in page.splitlines() if line.startswith(f"| `{how}`")]
        assert f"| {kept / 1e6:.0f} MB" in row
