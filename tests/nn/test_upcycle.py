"""From dense timm models to DEX layers and back, and the three ways to a DEX vision transformer."""

import pickle
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from assertions import assert_close
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder
from dexcore.nn import DEXBlock, DEXMlp, aux_losses, set_mode, update_directors
from dexcore.nn.upcycle import collapse, upcycle

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def layers(model):
    return [module for module in model.modules() if isinstance(module, DEXMlp)]


def shake(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def dense(**kwargs):
    return shake(VisionTransformer(**{**TINY, **kwargs}))


@pytest.mark.parametrize(
    "make",
    [
        lambda: VisionTransformer(**TINY, block_fn=partial(DEXBlock, num_experts=3)),
        lambda: VisionTransformer(**TINY, mlp_layer=partial(DEXMlp, num_experts=3)),
        lambda: upcycle(timm.create_model("vit_tiny_patch16_224", **TINY), num_experts=3),
        lambda: timm.create_model("dex_vit_tiny_patch16_224", **TINY, num_experts=3),
        lambda: DEXVisionTransformer(**TINY, num_experts=3),
    ],
)
def test_each_way_in_gives_a_model_that_routes_and_trains(make):
    model = make()
    assert [(layer.num_experts, layer.top_k) for layer in layers(model)] == [(3, 2), (3, 2)]
    for layer in layers(model):
        for experts, director in layer.expert_director_pairs():
            assert torch.equal(experts, director.expand_as(experts))
    shake(model)
    logits, aux = model(IMAGES), aux_losses(model)
    (logits.square().mean() + aux.align + aux.balance).backward()
    for layer in layers(model):
        assert layer.router.weight.grad.abs().sum() > 0
        assert layer.experts.fc2.weight.grad.abs().sum() > 0
        assert layer.director.fc1.weight.grad is None
    before = layers(model)[0].director.fc1.weight.clone()
    update_directors(model, momentum=0.5)
    assert not torch.equal(layers(model)[0].director.fc1.weight, before)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", TINY),
        ("deit3_small_patch16_224", TINY),
        ("deit_tiny_distilled_patch16_224", TINY),
        ("beit_base_patch16_224", TINY),
        ("vit_small_patch14_reg4_dinov2", TINY),
        ("vit_base_patch16_siglip_224", TINY),
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
        ),
    ],
)
def test_an_upcycled_model_still_computes_what_it_did(name, arguments):
    model = timm.create_model(name, **arguments).eval()
    images = IMAGES if "img_size" in arguments else torch.randn(2, 3, 224, 224)
    expected = model(images)
    pool = "cls" if getattr(model, "cls_token", None) is not None else "mean"
    assert upcycle(model, num_experts=3, pool=pool) is model
    assert len(layers(model)) == len(model.blocks if hasattr(model, "blocks") else model.layers)
    assert_close(model(images), expected.double())
    set_mode(model, "director")
    assert torch.equal(model(images), expected)


def test_numbers_may_vary_by_block_and_settings_reach_every_layer():
    model = upcycle(dense(), [4, 3], [1, 2], tau=0.7, pool="mean", align="mse", mode="director", keep="none")
    assert [(m.num_experts, m.top_k) for m in layers(model)] == [(4, 1), (3, 2)]
    settings = {(m.tau, m.pool, m.align, m.mode, m.keep, m.backend) for m in layers(model)}
    assert settings == {(0.7, "mean", "mse", "director", "none", "auto")}


def test_dtype_activation_biases_and_training_mode_stay():
    model = VisionTransformer(**TINY, dtype=torch.bfloat16, act_layer=partial(nn.GELU, approximate="tanh"))
    model.eval()
    model.blocks[1].train()
    upcycle(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert [layer.activation for layer in layers(model)] == ["gelu_tanh"] * 2
    assert [layer.training for layer in layers(model)] == [False, True]
    assert not model.training
    assert model.blocks[1].attn.training
    biasless = upcycle(dense(proj_bias=False))
    assert layers(biasless)[0].experts.fc1.bias is None


def test_a_model_on_the_meta_device_can_be_upcycled():
    with torch.device("meta"):
        model = VisionTransformer(**TINY)
    upcycle(model)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: timm.create_model("mixer_s32_224"), "MlpMixer has no blocks with an MLP as .mlp"),
        (lambda: timm.create_model("eva02_tiny_patch14_224"), "Eva.blocks.0.mlp is a GluMlp"),
        (lambda: timm.create_model("vit_giant_patch14_dinov2"), "VisionTransformer.blocks.0.mlp is a GluMlp"),
        (lambda: timm.create_model("convnext_atto"), "ConvNeXt.stages.0.blocks.0.mlp uses convolutions"),
        (
            lambda: timm.create_model("convnext_tiny"),
            r"ConvNeXt.stages.0.blocks.0 gives .* \[2, 56, 56, 96\]",
        ),
        (lambda: timm.create_model("samvit_base_patch16"), 'VisionTransformerSAM.blocks.0.*use pool="mean"'),
        (
            lambda: timm.create_model("cait_xxs24_224"),
            'class token as first token.*Cait.blocks.0.*pool="mean"',
        ),
        (lambda: timm.create_model("resnet10t"), "ResNet has no blocks"),
        (lambda: dense(class_token=False, global_pool="avg"), 'use pool="mean"'),
        (lambda: dense(scale_mlp_norm=True), "blocks.0.mlp has a norm inside"),
        (lambda: dense(proj_drop_rate=0.1), "blocks.0.mlp has dropout"),
        (lambda: dense(act_layer="mish"), "blocks.0.mlp cannot be upcycled: act_layer"),
        (lambda: dense(mlp_layer=partial(Mlp, use_conv=True)), "blocks.0.mlp uses convolutions"),
        (lambda: DEXVisionTransformer(**TINY), "blocks.0.mlp is a DEXMlp"),
    ],
)
def test_models_that_cannot_be_upcycled_are_refused_by_name_and_left_as_they_were(make, words):
    with torch.device("meta"):
        model = make()
    before = str(model)
    training = [module.training for module in model.modules()]
    with pytest.raises(ValueError, match=words):
        upcycle(model)
    assert str(model) == before
    assert [module.training for module in model.modules()] == training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_mlp_with_one_bias_is_refused():
    model = dense()
    model.blocks[1].mlp.fc2.bias = None
    with pytest.raises(ValueError, match=r"blocks.1.mlp has a bias on one of its layers only"):
        upcycle(model)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"num_experts": [4]},
            ValueError,
            "num_experts must be one number or one for each of 2 blocks, got 1",
        ),
        ({"top_k": 9}, ValueError, "top_k must lie in 1..8"),
        ({"align": "huber"}, ValueError, "align must be one of"),
    ],
)
def test_wrong_arguments_are_refused_and_the_model_is_left_as_it_was(arguments, error, words):
    model = dense()
    with pytest.raises(error, match=words):
        upcycle(model, **arguments)
    assert not layers(model)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DEXVisionTransformer(**TINY, num_experts=3),
        lambda: VisionTransformer(**TINY, block_fn=partial(DEXBlock, num_experts=3)),
        lambda: upcycle(dense(), num_experts=3),
    ],
)
def test_a_collapsed_model_is_plain_timm_and_equals_the_director(make):
    model = shake(make())
    plain = collapse(model)
    assert len(layers(model)) == 2, "the model itself stays as it was"
    assert {type(m).__module__.partition(".")[0] for m in plain.modules()} <= {"timm", "torch"}
    assert type(plain) is VisionTransformer
    assert {type(block) for block in plain.blocks} == {Block}
    assert all(parameter.requires_grad for parameter in plain.parameters())
    shared = {p.data_ptr() for p in plain.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert not shared
    fresh = VisionTransformer(**TINY)
    fresh.load_state_dict(plain.state_dict())
    set_mode(model, "director")
    model.eval(), plain.eval(), fresh.eval()
    assert torch.equal(plain(IMAGES), model(IMAGES))
    assert torch.equal(fresh(IMAGES), model(IMAGES))


def test_upcycling_and_collapsing_gives_the_model_back():
    model = dense()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    again = collapse(upcycle(model)).state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


def test_a_collapsed_model_opens_without_dexcore(tmp_path):
    model = DEXVisionTransformer(**TINY, num_experts=3)
    model(IMAGES)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(collapse(model)))
    code = (
        "import pickle, sys, torch; m = pickle.load(open(sys.argv[1], 'rb')); "
        "assert m(torch.randn(1, 3, 32, 32)).shape == (1, 5); assert 'dexcore' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "plain.pkl")], check=True)


def test_a_masked_autoencoder_collapses_to_a_dense_one():
    model = MaskedAutoencoder(DEXVisionTransformer(**TINY, num_experts=3), 24, 1, 3)
    shake(model)
    plain = collapse(model)
    noise = torch.rand(3, 16)
    set_mode(model, "director")
    assert torch.equal(plain(IMAGES, noise).pred, model(IMAGES, noise).pred)
    assert not any(word in name for name in plain.state_dict() for word in ("expert", "director", "router"))


def test_what_cannot_be_collapsed_is_refused_by_name():
    with pytest.raises(ValueError, match="VisionTransformer has no DEX layer"):
        collapse(dense())
    with pytest.raises(ValueError, match="to must be \"director\", got 'experts'"):
        collapse(DEXVisionTransformer(**TINY), to="experts")
