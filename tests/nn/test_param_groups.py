"""Optimizer groups: what is decayed, and by which share of the learning rate."""

from functools import partial

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from dexcore.nn import DEXBlock, param_groups


@pytest.fixture
def model():
    block = partial(DEXBlock, num_experts=4)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=2, num_classes=5, block_fn=block
    )


def names_in(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: group for group in groups for p in group["params"]}


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_biases_norms_and_tokens_are_not_decayed(model, layer_decay):
    groups = names_in(model, param_groups(model, 0.1, layer_decay))
    assert set(groups) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, group in groups.items():
        free = name.endswith("bias") or "norm" in name or name in ("cls_token", "pos_embed")
        assert group["weight_decay"] == (0 if free else 0.1), name
    assert groups["blocks.0.mlp.experts.fc1.bias"]["weight_decay"] == 0
    assert groups["blocks.0.mlp.experts.fc1.weight"]["weight_decay"] == 0.1


def test_experts_decay_with_their_block(model):
    groups = names_in(model, param_groups(model, 0.1, 0.5))
    for i in range(3):
        scales = {group["lr_scale"] for name, group in groups.items() if name.startswith(f"blocks.{i}.")}
        assert len(scales) == 1
    assert groups["blocks.1.mlp.experts.fc1.weight"]["lr_scale"] == 2 * groups["blocks.0.mlp.router.weight"]["lr_scale"]


def test_an_optimizer_takes_them(model):
    optimizer = torch.optim.AdamW(param_groups(model, 0.1), lr=1e-3)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    before = model.blocks[0].mlp.experts.fc1.weight.clone()
    optimizer.step()
    assert not torch.equal(model.blocks[0].mlp.experts.fc1.weight, before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1.0,), ValueError, "weight_decay must be finite and >= 0"),
        ((float("inf"),), ValueError, "weight_decay must be finite"),
        (("0.1",), TypeError, "weight_decay must be a number, got '0.1'"),
        ((0.1, 0.0), ValueError, "layer_decay must be in"),
        ((0.1, 1.5), ValueError, "layer_decay must be in"),
        ((0.1, "0.5"), TypeError, "layer_decay must be a number"),
    ],
)
def test_bad_arguments_are_named(model, arguments, error, message):
    with pytest.raises(error, match=message):
        param_groups(model, *arguments)


def test_parameters_instead_of_a_model_are_refused_by_name(model):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        param_groups(list(model.parameters()), 0.1)
