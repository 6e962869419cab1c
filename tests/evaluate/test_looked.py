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


def model(dense=False, kind="classification", head=None, **kwargs):
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
    return TaskModel(vit, TaskDescription("made", kind, ("sound", "ill"), ("X-ray",), crop=crop), **(head or {})).eval()


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"dense": True},
        {"kind": "segmentation"},
        {"dense": True, "kind": "segmentation", "head": {"blocks": (1, 2)}, "depth": 3},
        {"dense": True, "head": {"pool": "mean"}},
        {"dense": True, "class_token": False, "global_pool": "avg", "qk_norm": True},
    ],
)
def test_attention_is_that_of_what_the_head_reads(kwargs):
    made = model(**kwargs)
    prefix = made.encoder.num_prefix_tokens
    masks = made.task.is_segmentation
    attn, weights = made.encoder.blocks[1].attn, []
    attn.fused_attn = False  # so that timm computes the weights themselves
    attn.attn_drop.register_forward_hook(lambda _, given, out: weights.append(out.detach()))
    looked = look(made, IMAGE)
    own = weights[0][0].mean(dim=0)[:, prefix:]  # [tokens, patches]
    if masks:
        with torch.no_grad():
            share = (made(IMAGE[None]).argmax(1)[0].reshape(4, 4, 6, 4) == 1).float().mean(dim=(1, 3)).flatten()
        assert 0 < share.mean() < 1
        expected = share / share.sum() @ own[prefix:]
        assert looked.asking == "patches of the mask"
    elif made.head.pool == "cls":
        expected = own[0]
        assert looked.asking == "class token"
    else:
        expected = own[prefix:].mean(dim=0)
        assert looked.asking == "patches"
    assert looked.block == 2
    assert looked.attention.shape == (4, 6)
    np.testing.assert_allclose(looked.attention.ravel(), expected.numpy(), rtol=1e-4)
    assert looked.attention.std() > 0.001


@pytest.mark.parametrize("kwargs", [{"head": {"pool": "cls"}}, {"head": {"pool": "mean"}}, {"kind": "segmentation"}])
@pytest.mark.parametrize("token", ["class", "patch"])
def test_what_has_no_influence_on_the_answer_is_not_shown(token, kwargs):
    """What a token asks for in the last block is replaced by noise."""
    made = model(dense=True, **kwargs)
    head = made.head.linear if hasattr(made.head, "linear") else made.head.logits
    nn.init.normal_(head.weight)
    noise = torch.randn(16 // 2, generator=torch.Generator().manual_seed(1)) * 5
    where = 0 if token == "class" else made.encoder.num_prefix_tokens + 7

    def disturb(_, given, queries):
        queries = queries.clone()
        queries[:, :, where] = noise
        return queries

    with torch.no_grad():
        before, shown = made(IMAGE[None]), look(made, IMAGE)
        made.encoder.blocks[-1].attn.q_norm.register_forward_hook(disturb)
        after, then = made(IMAGE[None]), look(made, IMAGE)
    changed = not torch.equal(before, after)
    assert changed == ((token == "class") == (shown.asking == "class token"))
    assert (np.abs(then.attention - shown.attention).max() > 1e-4) == changed


def test_an_empty_mask_is_the_answer_of_all_patches():
    made = model(dense=True, kind="segmentation")
    with torch.no_grad():
        made.head.logits.bias.copy_(torch.tensor([100.0, 0.0]))
    looked = look(made, IMAGE)
    assert looked.asking == "patches"
    assert looked.attention.sum() == pytest.approx(looked.attention.size / 28, abs=0.2)


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


def test_blocks_that_the_head_does_not_read_have_no_part():
    made = model(kind="segmentation", head={"blocks": (1,)})
    assert look(made, IMAGE).gates.shape == (1, 5)
    made.encoder.blocks[0].mlp = nn.Identity()
    assert look(made, IMAGE).gates is None


def test_looking_leaves_nothing_behind():
    made = model()
    with torch.no_grad():
        before = made(IMAGE[None])
        look(made, IMAGE)
        assert torch.equal(made(IMAGE[None]), before)
    assert not made.encoder.blocks[-1].attn._forward_pre_hooks
