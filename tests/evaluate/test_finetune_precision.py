"""Fine-tuning in mixed precision, which is what `auto` takes on GPUs: here bfloat16 on the CPU."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_finetunings import begun, losses, sides, small_model, spots, tiny
from safetensors.torch import load_file

from dexcore.engine.stop import StopRequest
from dexcore.evaluate import Predictions, finetune

PRECISIONS = ("fp32", "bf16")
CLOSE = 0.02  # of a loss: a bfloat16 holds 8 bits


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, a task of masks and one of labels."""
    folder = tmp_path_factory.mktemp("precision")
    small_model(folder / "mine")
    spots(folder / "spots")
    sides(folder / "sides")
    return folder


def config_of(place, task, out, **changes):
    return replace(tiny(place / task / f"{task}.yaml", place / "mine", out, steps=6), **changes)


@pytest.mark.parametrize("task", ["spots", "sides"])
def test_in_bfloat16_it_trains_as_in_float32(place, tmp_path, task):
    full, low = (finetune(config_of(place, task, tmp_path / name, precision=name)).folders[0] for name in PRECISIONS)
    steps = list(zip(losses(full), losses(low), strict=True))
    assert len(steps) == 6
    for known, found in steps:
        assert not found["skipped"]
        assert math.isfinite(found["loss"])
        assert found["loss"] == pytest.approx(known["loss"], rel=CLOSE)
    assert any(found["loss"] != known["loss"] for known, found in steps)
    for state in ("model", "best"):
        tensors = load_file(low / state / "model.safetensors")
        assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {torch.float32}
    of_full, of_low = (Predictions.load(folder / "predictions.parquet") for folder in (full, low))
    assert of_low.image == of_full.image
    if task == "sides":
        np.testing.assert_allclose(of_low.values.astype(float), of_full.values.astype(float), atol=0.05)
    else:
        differs = [(of_low.mask(row) != of_full.mask(row)).mean() for row in range(len(of_low))]
        assert np.mean(differs) < 0.05


@pytest.mark.parametrize("precision", PRECISIONS)
def test_layers_compute_in_the_precision_and_weights_moments_and_logits_are_float32(place, tmp_path, precision):
    training = begun(config_of(place, "spots", tmp_path, precision=precision, validations=0, steps=2), tmp_path)
    seen = set()
    layer = training.model.encoder.blocks[0].attn.qkv
    layer.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
    training.train(StopRequest())
    logits = [one.dtype for _, one in training.predictor._logits(training.images)]
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    kinds = {parameter.dtype for parameter in training.model.parameters()}
    moments = [each for state in training.optimizer.state.values() for each in state.values()]
    assert {*kinds, *(moment.dtype for moment in moments), *logits} == {torch.float32}
    assert len(moments) > len(training.parameters)
    assert len(logits) == len(training.images.rows)
