"""What a model looked at is what its last block computed, and the experts are those that its layers chose."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dexcore.evaluate.prediction.looked import look
from dexcore.models import DEXVisionTransformer, TaskDescription, TaskModel
from dexcore.nn import set_mode

IMAGE = torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(0))


def model(dense=False, kind="classification", **kwargs):
    torch.manual_seed(0)
    sizes = {
        "img_size": (16, 24),
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "reg_tokens": 3,
    } | kwargs
    vit = VisionTransformer(**sizes) if dense else DEXVisionTransformer(**sizes, num_experts=[5, 3])
    for block in vit.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=0.5)
    crop = "whole" if kind == "segmentation" else "center"
    return TaskModel(vit, TaskDescription("made", kind, ("sound", "ill"), ("X-ray",), crop=crop)).eval()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"dense": True},
        {"kind": "segmentation"},
        {"dense": True, "class_token": False, "global_pool": "avg", "qk_norm": True},
    ],
)
def test_attention_is_that_of_the_last_block_on_the_patches(kwargs):
    made = model(**kwargs)
    attn, weights = made.encoder.blocks[-1].attn, []
    attn.fused_attn = False  # so that timm computes the weights themselves
    attn.attn_drop.register_forward_hook(lambda _, given, out: weights.append(out.detach()))
    found = look(made, IMAGE).attention
    prefix = made.encoder.num_prefix_tokens
    asking = slice(0, 1) if made.encoder.has_class_token else slice(prefix, None)
    expected = weights[0][0].mean(dim=0)[asking].mean(dim=0)[prefix:]
    assert found.shape == (4, 6)
    np.testing.assert_allclose(found.ravel(), expected.numpy(), rtol=1e-4)
    assert found.std() > 0.001


def test_gates_are_those_of_each_block_and_experts_that_are_not_there_are_no_zeros():
    made = model()
    found = look(made, IMAGE).gates
    assert found.shape == (2, 5)
    for row, block in zip(found, made.encoder.blocks, strict=True):
        routing, experts = block.mlp.routing, block.mlp.num_experts
        expected = np.zeros(experts, np.float32)
        expected[routing.indices[0].numpy()] = routing.gates[0].numpy()
        np.testing.assert_array_equal(row[:experts], expected)
        assert np.isnan(row[experts:]).all()
    set_mode(made, "director")
    assert look(made, IMAGE).gates is None
    assert look(model(dense=True), IMAGE).gates is None


def test_looking_leaves_nothing_behind():
    made = model()
    with torch.no_grad():
        before = made(IMAGE[None])
        look(made, IMAGE)
        assert torch.equal(made(IMAGE[None]), before)
    assert not made.encoder.blocks[-1].attn._forward_pre_hooks
