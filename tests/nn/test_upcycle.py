"""From dense timm models to DEX layers, and the three ways to a DEX vision transformer."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import GatedMlp, GluMlp, Mlp, SwiGLU, SwiGLUPacked
from timm.models import save_for_hf
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from assertions import assert_close
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder
from dexcore.nn import DEXBlock, DEXMlp, aux_losses, set_mode, update_directors
from dexcore.nn.upcycle import collapse, upcycle
from nn.tiny import IMAGES, TINY, dense, layers, shake


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


# Stock models, without weights: small ones whole, of large ones a few blocks on small images.
STOCK = [
    # AugReg and DeiT, at every patch size
    ("vit_tiny_patch16_224", {}),
    ("vit_small_patch32_224", {"depth": 3}),
    ("vit_small_patch8_224", {"img_size": 64, "depth": 3}),
    ("vit_huge_patch14_224", {"img_size": 56, "depth": 1}),
    ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 3}),
    # class and register tokens, LayerScale, positions of the patches alone
    ("deit3_small_patch16_224", {"img_size": 64, "depth": 3}),
    ("vit_small_patch14_dinov2", {"img_size": 56, "depth": 3}),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 56, "depth": 3}),
    # a norm before the blocks; no class token, pooling by mean or attention
    ("vit_xsmall_patch16_clip_224", {"img_size": 64, "depth": 3}),
    ("vit_large_patch14_clip_224", {"img_size": 56, "depth": 1}),
    ("vit_base_patch16_siglip_224", {"img_size": 64, "depth": 2}),
    ("vit_so400m_patch14_siglip_224", {"img_size": 56, "depth": 1}),
    ("vit_base_patch16_siglip_gap_224", {"img_size": 64, "depth": 1}),
    ("vit_wee_patch16_reg1_gap_256", {"img_size": 64, "depth": 3}),
    # other blocks and other models
    ("vit_small_patch16_18x2_224", {"img_size": 64, "depth": 2}),
    ("vit_base_patch16_rpn_224", {"img_size": 64, "depth": 1}),
    ("vit_relpos_small_patch16_224", {"img_size": 64, "depth": 2}),
    ("vit_dlittle_patch16_reg1_gap_256", {"img_size": 64, "depth": 1}),
    ("vit_small_patch16_dinov3", {"img_size": 64, "depth": 2}),
    ("beitv2_base_patch16_224", {"img_size": 64, "depth": 1}),
    # gated MLPs: packed, with gate and value apart, with rotary positions
    ("vit_giant_patch14_dinov2", {"img_size": 56, "depth": 2, "embed_dim": 48, "num_heads": 2}),
    ("vit_giant_patch14_reg4_dinov2", {"img_size": 56, "depth": 1, "embed_dim": 48, "num_heads": 2}),
    ("vit_small_plus_patch16_dinov3", {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 2}),
    ("eva02_tiny_patch14_224", {"img_size": 56, "depth": 2}),
    ("aimv2_large_patch14_224", {"img_size": 56, "depth": 1, "embed_dim": 48, "num_heads": 2}),
    # QuickGELU
    ("vit_base_patch16_clip_quickgelu_224", {"img_size": 64, "depth": 1, "embed_dim": 48, "num_heads": 2}),
    ("flexivit_small", {"img_size": 64, "depth": 2}),
    ("swin_tiny_patch4_window7_224", {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}),
]


@pytest.mark.parametrize(("name", "arguments"), STOCK, ids=[name for name, _ in STOCK])
@torch.no_grad()
def test_an_upcycled_model_still_computes_what_it_did(name, arguments):
    """To the bit, through two experts, with gradients and without, and through the director. Of several images an
    expert's GEMM has other rows than the dense one, by which some BLAS round differently.
    """
    model = shake(timm.create_model(name, **arguments), 0.05).eval()
    images = torch.randn(2, 3, *model.patch_embed.img_size)
    expected, expected_of_one = model(images), model(images[:1])
    with torch.enable_grad():  # by which relative positions choose another attention kernel
        expected_with_gradients = model(images[:1])
    mlps = {name: m for name, m in model.named_modules() if type(m) in (Mlp, GluMlp, SwiGLU)}
    pool = "cls" if getattr(model, "cls_token", None) is not None else "mean"
    assert upcycle(model, num_experts=3, pool=pool) is model
    upcycled = {name: m for name, m in model.named_modules() if isinstance(m, DEXMlp)}
    assert upcycled.keys() == {name for name in mlps if not any(word in name for word in ("attn_pool", "rel_pos"))}
    for place, layer in upcycled.items():
        dense_mlp = mlps[place].state_dict()
        assert layer.director.state_dict().keys() == dense_mlp.keys()
        assert all(torch.equal(tensor, dense_mlp[name]) for name, tensor in layer.director.state_dict().items())
        assert all(
            torch.equal(expert, director.expand_as(expert)) for expert, director in layer.expert_director_pairs()
        )
    assert_close(model(images), expected.double())
    if name != "vit_base_patch16_rpn_224":  # whose dense MLP is given a transposed view, and rounds otherwise
        assert torch.equal(model(images[:1]), expected_of_one)
        with torch.enable_grad():
            assert torch.equal(model(images[:1]), expected_with_gradients)
    set_mode(model, "director")
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("arguments", [{}, {"init_values": 0.1, "reg_tokens": 2}])
def test_through_one_expert_an_upcycled_model_is_the_dense_one_to_the_bit(arguments):
    model = dense(**arguments).eval()
    expected = model(IMAGES)
    assert torch.equal(upcycle(model, num_experts=3, top_k=1)(IMAGES), expected)


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


def frozen(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("mode", ["experts", "director"])
def test_what_was_frozen_stays_frozen(mode):
    """A whole model; one MLP of two; one tensor of an MLP."""
    model = upcycle(dense().requires_grad_(False), num_experts=3, mode=mode)
    assert frozen(model) == {name for name, _ in model.named_parameters()}
    set_mode(model, "experts")
    assert all(layer.router.weight.requires_grad for layer in layers(model))

    model = dense()
    model.blocks[0].mlp.requires_grad_(False)
    model.blocks[1].mlp.fc1.bias.requires_grad_(False)
    first, second = layers(upcycle(model, num_experts=3, mode=mode))
    idle = {name for name, _ in second.named_parameters() if ("director" in name) == (mode == "experts")}
    idle |= {"router.weight"} if mode == "director" else set()
    assert frozen(first) == {name for name, _ in first.named_parameters()}
    assert frozen(second) == idle | {"experts.fc1.bias", "director.fc1.bias"}


class OfTwo(nn.Module):
    """A model of a user's: two backbones of other sizes, each under a name of its own, and a head."""

    def __init__(self):
        super().__init__()
        self.fine = timm.create_model("vit_tiny_patch16_224", **TINY | {"num_classes": 0})
        self.gray = VisionTransformer(**TINY | {"img_size": 24, "in_chans": 1, "num_classes": 0, "reg_tokens": 2})
        self.head = nn.Linear(32, 5)

    def forward(self, images, gray):
        return self.head(torch.cat([self.fine(images), self.gray(gray)], dim=1))


def test_backbones_inside_a_module_are_upcycled_where_they_are():
    small = timm.create_model("vit_tiny_patch16_224", **TINY | {"num_classes": 0})
    for model, inputs in (
        (nn.Sequential(small, nn.Linear(16, 2)), [IMAGES]),
        (OfTwo(), [IMAGES, torch.randn(3, 1, 24, 24)]),
    ):
        shake(model).eval()
        expected = model(*inputs)
        count = sum(type(module) is Mlp for module in model.modules())
        assert upcycle(model, num_experts=3) is model
        assert len(layers(model)) == count
        assert_close(model(*inputs), expected.detach().double())
        collapsed = collapse(model)
        assert torch.equal(collapsed(*inputs), expected)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_reg4_dinov2"])
@pytest.mark.parametrize("size", [224, 56])
def test_a_features_only_model_is_upcycled_at_any_input_size(name, size):
    small = {"embed_dim": 16, "depth": 3, "num_heads": 2}
    model = shake(timm.create_model(name, features_only=True, out_indices=(0, 2), img_size=size, **small)).eval()
    images = torch.randn(1, 3, size, size)
    expected = model(images)
    upcycle(model, num_experts=3, top_k=1)
    assert len(layers(model)) == 3
    assert all(torch.equal(got, want) for got, want in zip(model(images), expected, strict=True))


def test_a_module_whose_backbone_has_no_class_token_is_refused_by_the_blocks_name():
    inner = VisionTransformer(**TINY, class_token=False, global_pool="avg")
    with pytest.raises(ValueError, match=r'which Sequential\.0\.blocks\.0 does not have; use pool="mean"'):
        upcycle(nn.Sequential(inner, nn.Linear(5, 2)))


def test_an_autoencoder_around_a_stock_encoder_is_told_to_upcycle_the_encoder():
    model = MaskedAutoencoder(VisionTransformer(**TINY), 24, 1, 3)
    with pytest.raises(ValueError, match=r"MaskedAutoencoder\.decoder_blocks\.0 does not.*upcycle an inner model"):
        upcycle(model)
    assert not layers(model)
    model.encoder = upcycle(model.encoder, num_experts=3)
    assert len(layers(model)) == TINY["depth"]
    assert model(IMAGES).loss.isfinite()
    whole = MaskedAutoencoder(VisionTransformer(**TINY, in_chans=1), 24, 1, 3)
    assert len(layers(upcycle(whole, num_experts=3, pool="mean"))) == TINY["depth"] + 1


class Unused(nn.Module):
    """Blocks that its forward does not run."""

    def __init__(self):
        super().__init__()
        self.blocks = dense().blocks

    def forward(self, images):
        return images


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(*dense().blocks), r"Sequential cannot be run on images \[2, 3, 224, 224\]"),
        (lambda: nn.ModuleDict({"vit": dense().blocks}), r"upcycle the inner model .* model\.backbone = upcycle\("),
        (Unused, r"Unused\.blocks\.0 is not run in a forward of its Unused"),
    ],
)
def test_a_module_that_cannot_be_tried_is_refused_with_the_way_out(make, words):
    model = make()
    before = str(model)
    with pytest.raises(ValueError, match=words):
        upcycle(model)
    assert str(model) == before
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_what_timm_saves_of_an_upcycled_model_opens_as_documented(tmp_path):
    model = upcycle(timm.create_model("vit_tiny_patch16_224", **TINY), num_experts=4)
    save_for_hf(shake(model).eval(), tmp_path)
    with pytest.raises(RuntimeError, match=r"blocks\.0\.mlp\.experts"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    mlp_layer = partial(DEXMlp, num_experts=4)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, mlp_layer=mlp_layer).eval()
    assert torch.equal(again(IMAGES), model(IMAGES))
    other = upcycle(timm.create_model("vit_tiny_patch16_224", **TINY), num_experts=4).eval()
    other.load_state_dict(again.state_dict())
    assert torch.equal(other(IMAGES), model(IMAGES))


def test_a_model_on_the_meta_device_can_be_upcycled():
    with torch.device("meta"):
        model = VisionTransformer(**TINY)
    upcycle(model)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: timm.create_model("mixer_s32_224"), r"MlpMixer has no blocks with an MLP as .mlp \(but MixerBlock\)"),
        (lambda: timm.create_model("resmlp_12_224"), r"MlpMixer has no blocks with an MLP as .mlp \(but ResBlock\)"),
        (
            lambda: timm.create_model("vit_pwee_patch16_reg1_gap_256"),
            r"VisionTransformer has no .* \(but ParallelScalingBlock\)",
        ),
        (lambda: timm.create_model("eva02_base_patch14_224"), "Eva.blocks.0.mlp has a norm inside"),
        (
            lambda: dense(mlp_layer=SwiGLU),
            r"act_layer must be nn.SiLU in a gated MLP \(SwiGLU\), got GELU",
        ),
        (
            lambda: dense(mlp_layer=GatedMlp),
            "VisionTransformer.blocks.0.mlp is a GatedMlp: only timm's plain Mlp",
        ),
        (lambda: dense(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, proj_drop_rate=0.1), "blocks.0.mlp has dropout"),
        (lambda: timm.create_model("pvt_v2_b0"), "stages.0.blocks.0.mlp is a MlpWithDepthwiseConv"),
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


def test_a_layer_that_only_looks_linear_is_refused():
    class LowRankLinear(nn.Linear):
        """As adapters are: more in it than weight and bias."""

    model = dense()
    model.blocks[1].mlp.fc2 = LowRankLinear(64, 16)
    with pytest.raises(ValueError, match=r"blocks.1.mlp has a LowRankLinear for a linear layer"):
        upcycle(model)


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


@pytest.mark.parametrize("function", [upcycle, collapse])
def test_what_is_no_model_is_refused_by_name(function):
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got 'vit' \(str\)"):
        function("vit")
