"""DEXBlock in timm's own constructors."""

import inspect
from functools import partial

import pytest
import torch
from timm.layers import GatedMlp, Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from assertions import assert_close
from dexcore.nn import DEXBlock, DEXMlp, aux_losses, update_directors
from dexcore.ops import reference

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 2, "num_classes": 5}


def test_the_signature_begins_with_timms():
    ours, theirs = inspect.signature(DEXBlock).parameters, inspect.signature(Block).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(ours[name].default == theirs[name].default for name in theirs)
    assert all(p.kind is p.KEYWORD_ONLY for name, p in ours.items() if name not in theirs)
    assert inspect.signature(DEXBlock.forward) == inspect.signature(Block.forward)


def test_the_block_is_attention_and_then_the_layer():
    block = DEXBlock(24, 2, num_experts=4, init_values=0.1).train()
    x = torch.randn(3, 5, 24)
    y = block(x)
    after_attention = x + block.ls1(block.attn(block.norm1(x)))
    mlp = block.mlp
    experts = (mlp.experts.fc1.weight, mlp.experts.fc1.bias, mlp.experts.fc2.weight, mlp.experts.fc2.bias)
    inner = reference.expert_mlp(block.norm2(after_attention), *experts, mlp.routing.gates, mlp.routing.indices)
    assert_close(y, after_attention + block.ls2.gamma * inner)


@pytest.mark.parametrize(
    "way",
    [
        {"block_fn": partial(DEXBlock, num_experts=4, top_k=1)},
        {"mlp_layer": partial(DEXMlp, num_experts=4, top_k=1)},
        {"block_fn": partial(DEXBlock, num_experts=3), "mlp_layer": partial(DEXMlp, num_experts=4, top_k=1)},
    ],
)
def test_a_timm_vit_becomes_a_dex_vit_and_trains(way):
    model = VisionTransformer(**SIZES, **way)
    layers = [block.mlp for block in model.blocks]
    assert all(isinstance(layer, DEXMlp) for layer in layers)
    assert [(layer.num_experts, layer.top_k) for layer in layers] == [(4, 1)] * 3
    for layer in layers:  # timm drew the director anew after it was built
        for experts, director in layer.expert_director_pairs():
            assert torch.equal(experts, director.expand_as(experts))
    y = model(torch.randn(4, 3, 32, 32))
    losses = aux_losses(model)
    (y.square().sum() + losses.align + losses.balance).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    update_directors(model, 0.9)


@pytest.mark.parametrize("mode", ["jax", "moco", "reset"])
def test_every_initialization_of_timm_leaves_experts_equal_to_the_director(mode):
    model = VisionTransformer(**SIZES, block_fn=DEXBlock, weight_init=mode)
    for block in model.blocks:
        for experts, director in block.mlp.expert_director_pairs():
            assert torch.equal(experts, director.expand_as(experts))


def test_meta_construction_of_a_timm_vit():
    with torch.device("meta"):
        model = VisionTransformer(**SIZES, block_fn=DEXBlock)
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(float("nan"))
    model.init_weights()
    assert all(t.isfinite().all() for t in model.state_dict().values())
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("mlp_layer", [None, Mlp, DEXMlp])
def test_timms_mlp_means_a_dex_layer(mlp_layer):
    block = DEXBlock(24, 2, mlp_layer=mlp_layer, num_experts=3, keep="none")
    assert isinstance(block.mlp, DEXMlp)
    assert (block.mlp.num_experts, block.mlp.keep) == (3, "none")


@pytest.mark.parametrize("mlp_layer", [GatedMlp, partial(Mlp, bias=False), nn.Linear])
def test_another_mlp_is_an_error(mlp_layer):
    with pytest.raises(TypeError, match="mlp_layer must be None, timm's Mlp, SwiGLUPacked or SwiGLU, or DEXMlp"):
        DEXBlock(24, 2, mlp_layer=mlp_layer)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale_mlp_norm": True}, "scale_mlp_norm"),
        ({"proj_drop_rate": 0.1}, "proj_drop_rate"),
        ({"act_layer": nn.Tanh}, "act_layer"),
        ({"num_heads": -1}, "num_heads must be at least 1, got -1"),
        ({"mlp_ratio": 0.01}, r"mlp_ratio must be finite and at least 1 / 24 \(dim\), got 0.01"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be finite"),
        ({"drop_path_rate": -0.5}, "drop_path must be a number from 0 to 1"),
        ({"drop_path_rate": float("nan")}, "drop_path must be a number from 0 to 1"),
        ({"attn_drop_rate": 1.5}, "attn_drop must be a number from 0 to 1"),
        ({"init_values": float("inf")}, "init_values must be finite"),
    ],
)
def test_what_cannot_be_honored_is_refused_by_timms_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VisionTransformer(**{**SIZES, **kwargs}, block_fn=DEXBlock)


@pytest.mark.parametrize("argument", ["dim", "num_heads", "mlp_ratio", "proj_drop", "attn_drop", "drop_path"])
@pytest.mark.parametrize("value", [None, "3", [3]])
def test_a_size_that_is_no_number_is_refused_by_name(argument, value):
    with pytest.raises(TypeError, match=f"{argument} must be a (whole )?number"):
        DEXBlock(**{"dim": 24, "num_heads": 2, argument: value})


def test_fix_init_is_refused():
    with pytest.raises(AttributeError, match="fix_init=True"):
        VisionTransformer(**SIZES, block_fn=DEXBlock, fix_init=True)


def test_the_whole_model_compiles_with_its_losses():
    model = VisionTransformer(**SIZES, block_fn=partial(DEXBlock, num_experts=4))
    x = torch.randn(4, 3, 32, 32)
    results = []
    for forward in (torch.compile(model, fullgraph=True, backend="aot_eager"), model):
        model.zero_grad()
        y = forward(x)
        losses = aux_losses(model)
        (y.square().sum() + losses.align + losses.balance).backward()
        results.append([y, *losses, *(p.grad for p in model.parameters() if p.requires_grad)])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, bound=1e-4)


def test_grad_checkpointing_of_timm_gives_equal_gradients():
    results = []
    for enable in (False, True):
        torch.manual_seed(0)
        model = VisionTransformer(**SIZES, block_fn=partial(DEXBlock, num_experts=4))
        model.set_grad_checkpointing(enable)
        y = model(torch.randn(4, 3, 32, 32))
        losses = aux_losses(model)
        (y.square().sum() + losses.align + losses.balance).backward()
        update_directors(model, 0.5)
        results.append([*(p.grad for p in model.parameters() if p.requires_grad), *model.state_dict().values()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
