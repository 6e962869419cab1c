"""DEXVisionTransformer keeps timm's promises."""

import inspect
import math

import pytest
import timm
import torch
from timm.layers import GatedMlp, SwiGLU
from timm.models import group_parameters, save_for_hf
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer

import dexcore
from assertions import assert_close
from dexcore.models import DEXVisionTransformer, ModelFileError, load_dense_checkpoint
from dexcore.nn import DEXMlp, param_groups, set_mode

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
SIZES = {  # patch, width, depth, heads, pixels
    "dex_vit_tiny_patch16_224": (16, 192, 12, 3, 224),
    "dex_vit_small_patch16_224": (16, 384, 12, 6, 224),
    "dex_vit_base_patch16_224": (16, 768, 12, 12, 224),
    "dex_vit_base_patch16_256": (16, 768, 12, 12, 256),
    "dex_vit_large_patch16_224": (16, 1024, 24, 16, 224),
    "dex_vit_huge_patch14_224": (14, 1280, 32, 16, 224),
}


def create(**kwargs):
    """A small model through timm's factory."""
    return timm.create_model("dex_vit_tiny_patch16_224", **{**TINY, "num_experts": 3, **kwargs})


def layers(model):
    return [module for module in model.modules() if isinstance(module, DEXMlp)]


@pytest.mark.parametrize("name", SIZES)
def test_timm_builds_each_registered_model_in_its_size_with_eight_experts_of_which_two_act(name):
    patch, width, depth, heads, pixels = SIZES[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    assert isinstance(model, DEXVisionTransformer)
    assert model.patch_embed.patch_size == (patch, patch)
    assert model.patch_embed.img_size == (pixels, pixels)
    assert model.pretrained_cfg["input_size"] == (3, pixels, pixels)
    assert (model.embed_dim, len(model.blocks), model.blocks[0].attn.num_heads) == (width, depth, heads)
    assert [(layer.num_experts, layer.top_k) for layer in layers(model)] == [(8, 2)] * depth
    assert model.blocks[0].mlp.experts.fc1.weight.shape == (8, 4 * width, width)
    assert model.num_classes == 1000


def test_the_class_and_every_registered_model_have_their_names():
    assert set(timm.list_models("dex_vit*")) == {"dex_vit", *SIZES}
    assert dexcore.models.DEXVisionTransformer is DEXVisionTransformer


def test_pretrained_weights_that_do_not_exist_are_not_pretended():
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        create(pretrained=True)


def test_the_factory_passes_our_keywords_and_lists_vary_by_block():
    model = create(num_experts=[4, 3, 2], top_k=[1, 2, 2], tau=0.7, align="mse", keep="z", mode="director")
    assert [(m.num_experts, m.top_k) for m in layers(model)] == [(4, 1), (3, 2), (2, 2)]
    assert {(m.tau, m.align, m.keep, m.mode) for m in layers(model)} == {(0.7, "mse", "z", "director")}


def test_its_signature_is_timms_with_ours_behind():
    ours, timms = (list(inspect.signature(kind).parameters) for kind in (DEXVisionTransformer, VisionTransformer))
    assert ours == [
        *timms,
        "num_experts",
        "top_k",
        "tau",
        "pool",
        "align",
        "mode",
        "keep",
        "precision",
        "backend",
        "rule",
    ]


def test_timms_arguments_may_be_given_by_position():
    model = DEXVisionTransformer(32, 8, 1, 5, "token", 16, 2, 2, num_experts=3)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def test_every_expert_starts_as_a_copy_of_the_director():
    for mode in ("", "jax", "moco"):
        for layer in layers(create(weight_init=mode)):
            for experts, director in layer.expert_director_pairs():
                assert torch.equal(experts, director.expand_as(experts))


@pytest.mark.parametrize("mode", ["", "jax", "moco", "reset"])
def test_a_model_made_on_the_meta_device_is_complete_after_init_weights(mode):
    with torch.device("meta"):
        model = create()
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.fill_(math.nan)
    model.init_weights(mode)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.isfinite().all(), name
    for layer in layers(model):
        for experts, director in layer.expert_director_pairs():
            assert torch.equal(experts, director.expand_as(experts))
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_it_computes_what_timms_model_computes_while_all_experts_are_alike():
    dense = VisionTransformer(**TINY).eval()
    model = create().eval()
    state = dense.state_dict()
    for name in model.state_dict():
        if ".mlp.director." in name:
            state[name] = state.pop(name.replace(".director", ""))
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert all(".experts." in name or ".router." in name for name in missing)
    for layer in layers(model):
        layer.init_weights()
    images = torch.randn(2, 3, 32, 32)
    assert_close(model(images), dense(images).double(), bound=1e-4)


def test_a_classifier_can_be_exchanged():
    model = create()
    model.reset_classifier(7, "avg")
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 16)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"img_size": 48}, (2, 3, 48, 48)),
        ({"dynamic_img_size": True}, (2, 3, 40, 64)),
        ({"in_chans": 1}, (2, 1, 32, 32)),
        ({"reg_tokens": 4}, (2, 3, 32, 32)),
        ({"class_token": False, "global_pool": "avg", "pool": "mean"}, (2, 3, 32, 32)),
        ({"global_pool": "map"}, (2, 3, 32, 32)),
        ({"init_values": 1e-2, "drop_path_rate": 0.5}, (2, 3, 32, 32)),
        ({"act_layer": "silu"}, (2, 3, 32, 32)),
        ({"dtype": torch.float64}, (2, 3, 32, 32)),
    ],
)
def test_timms_options_work(arguments, shape):
    model = create(num_classes=5, **arguments)
    logits = model(torch.randn(shape, dtype=arguments.get("dtype", torch.float32)))
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(layer.experts.fc1.weight.grad.abs().sum() > 0 for layer in layers(model))


def test_its_input_size_can_be_changed():
    model = create(num_classes=5)
    model.set_input_size(img_size=(48, 64))
    assert model(torch.randn(2, 3, 48, 64)).shape == (2, 5)


def test_features_only_and_intermediates_give_the_blocks_outputs():
    images = torch.randn(2, 3, 32, 32)
    features = create(features_only=True, out_indices=(0, 2)).eval()
    assert features.feature_info.channels() == [16, 16]
    assert [f.shape for f in features(images)] == [(2, 16, 4, 4)] * 2
    model = create().eval()
    final, (first, last) = model.forward_intermediates(images, indices=[0, 2], output_fmt="NLC")
    tokens = model.patch_embed(images)
    expected = model.blocks[0](model._pos_embed(tokens))
    assert torch.equal(first, expected[:, 1:])
    assert torch.equal(model.norm(last), final[:, 1:])
    assert torch.equal(final, model.forward_features(images))


def test_gradient_checkpointing_gives_the_same_gradients():
    images, grads = torch.randn(2, 3, 32, 32), []
    model = create(num_classes=5)
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(images).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 30
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_a_model_saved_for_the_hub_opens_again_through_timm_also_at_another_size(tmp_path):
    model = create(num_experts=[4, 3, 2], top_k=[1, 2, 2], num_classes=5, reg_tokens=1).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert isinstance(again, DEXVisionTransformer)
    assert torch.equal(again(images), model(images))
    larger = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=48, num_classes=7)
    assert larger.pos_embed.shape == (1, 2 + 36, 16)
    assert torch.equal(larger.blocks[1].mlp.experts.fc1.weight, model.blocks[1].mlp.experts.fc1.weight)


@torch.no_grad()
def test_the_mode_that_timm_saves_is_the_layers_own_whoever_set_it(tmp_path):
    model = create(num_classes=5, mode="director").eval()
    for layer in layers(model):
        layer.set_mode("experts")
    for layer in layers(model):
        torch.nn.init.normal_(layer.experts.fc1.weight)
    save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    told = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, mode="director")
    assert {layer.mode for layer in layers(told)} == {"director"}
    layers(model)[0].set_mode("director")
    with pytest.raises(ValueError, match="'mode' is not serializable"):
        save_for_hf(model, tmp_path)


def dense(**kwargs):
    """A dense model of timm's with the size of `create`, and with biases that are not zeros."""
    model = timm.create_model("vit_tiny_patch16_224", **{**TINY, "num_classes": 5, **kwargs})
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def create_pretrained(path, state, **kwargs):
    torch.save(state, path)
    return create(pretrained=True, pretrained_cfg_overlay={"file": str(path), "num_classes": 5}, **kwargs)


@torch.no_grad()
@pytest.mark.parametrize("num_classes", [5, 7])  # timm is strict with the first only
def test_pretrained_weights_of_a_dense_model_go_into_the_director_and_every_expert(num_classes, tmp_path):
    plain = dense().eval()
    path = tmp_path / "dense.pth"
    model = create_pretrained(path, {"model": plain.state_dict()}, num_classes=num_classes, img_size=48).eval()
    other = create(num_classes=num_classes, img_size=48)
    load_dense_checkpoint(other, path)
    theirs = other.state_dict()
    for name, tensor in model.state_dict().items():
        if ".router." not in name and not (name.startswith("head.") and num_classes == 7):
            assert torch.equal(tensor, theirs[name]), name
    assert all(layer.router.weight.any() and not layer.router.activation_frequency.any() for layer in layers(model))
    same = create_pretrained(path, plain.state_dict(), num_classes=num_classes, mode="director").eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(same.forward_features(images), plain.forward_features(images))
    set_mode(same, "experts")
    assert_close(same.forward_features(images), plain.forward_features(images))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dense(depth=2), r"does not fit the DEXVisionTransformer: missing: blocks\.2\.norm1\.weight"),
        (lambda: dense(mlp_layer=SwiGLU), r"blocks\.0\.mlp does not fit the Mlp: missing: .*unexpected: fc1_g\.weight"),
        (lambda: dense(mlp_ratio=2), r"blocks\.0\.mlp does not fit the Mlp: of another shape: fc1\.weight \[32, 16\]"),
        (lambda: dense(scale_mlp_norm=True), r"blocks\.0\.mlp does not fit the Mlp: unexpected: norm\.weight"),
        (lambda: create(num_experts=4), r"of another shape: blocks\.0\.mlp\.experts\.fc1\.weight \[4, 64, 16\]"),
    ],
)
def test_pretrained_weights_of_other_blocks_are_refused_though_timm_would_only_warn(make, words, tmp_path):
    with pytest.raises(ModelFileError, match=words):
        create_pretrained(tmp_path / "other.pth", make().state_dict(), num_classes=7)


def test_experts_are_grouped_with_their_block():
    model = create()
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    numbers = {i: {groups[n] for n, _ in model.named_parameters() if n.startswith(f"blocks.{i}.")} for i in range(3)}
    assert numbers == {0: {1}, 1: {2}, 2: {3}}
    dense = VisionTransformer(**TINY)
    assert model.no_weight_decay() == dense.no_weight_decay()
    assert model.group_matcher() == dense.group_matcher()


def test_layer_decay_scales_experts_with_their_block_and_decays_no_bias():
    model = create(num_classes=5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in param_groups(model, weight_decay=0.1, layer_decay=0.5):
        for name in (names[parameter] for parameter in group["params"]):
            if name.startswith("blocks."):
                assert group["lr_scale"] == 0.5 ** (4 - 1 - int(name.split(".")[1])), name
            expect_decay = name.endswith("weight") and "norm" not in name
            assert (group["weight_decay"] > 0) == expect_decay, name


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (
            {"num_experts": [4, 3]},
            ValueError,
            "num_experts must be one number or one for each of 3 blocks, got 2",
        ),
        ({"top_k": [1, 1, 1, 1]}, ValueError, "top_k must be one number or one for each of 3 blocks, got 4"),
        ({"top_k": 2.0}, TypeError, "top_k must be an int or a sequence with one for each block, got 2.0"),
        ({"num_experts": [4, 3, 1]}, ValueError, "top_k must lie in 1..1"),
        ({"class_token": False, "global_pool": "avg"}, ValueError, 'pool="mean"'),
        ({"fix_init": True}, ValueError, "fix_init must be False"),
        ({"proj_drop_rate": 0.1}, ValueError, "drop must be 0.*proj_drop_rate"),
        ({"scale_mlp_norm": True}, ValueError, "norm_layer inside the MLP"),
        ({"act_layer": "mish"}, ValueError, "act_layer must be one of"),
        ({"block_fn": ParallelScalingBlock}, TypeError, "block_fn must be timm's Block or DEXBlock"),
        ({"mlp_layer": SwiGLU}, ValueError, r"act_layer must be nn.SiLU in a gated MLP \(SwiGLU\), got GELU"),
        ({"mlp_layer": GatedMlp}, TypeError, "mlp_layer must be None, timm's Mlp, SwiGLUPacked or SwiGLU, or DEXMlp"),
        ({"pool": "max"}, ValueError, "pool must be one of"),
        ({"experts": 4}, TypeError, "experts"),
        ({"img_size": (32, -8)}, ValueError, "img_size must be at least 1, got -8"),
        ({"patch_size": "8"}, TypeError, "patch_size must be a whole number, got '8'"),
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"in_chans": 0}, ValueError, "in_chans must be at least 1, got 0"),
        ({"num_classes": float("nan")}, TypeError, "num_classes must be a whole number, got nan"),
        ({"reg_tokens": None}, TypeError, "reg_tokens must be a whole number, got None"),
        ({"drop_path_rate": float("nan")}, ValueError, "drop_path_rate must be a number from 0 to 1, got nan"),
        ({"num_heads": -1}, ValueError, "num_heads must be at least 1, got -1"),
        ({"pos_drop_rate": None}, TypeError, "pos_drop_rate must be a number, got None"),
        ({"drop_rate": "x"}, TypeError, "drop_rate must be a number, got 'x'"),
        ({"patch_drop_rate": -1}, ValueError, "patch_drop_rate must be a number from 0 to 1, got -1"),
        ({"attn_drop_rate": [0.1]}, TypeError, "attn_drop must be a number"),
        ({"init_values": "x"}, TypeError, "init_values must be a number, got 'x'"),
        ({"pos_embed": "sincos"}, ValueError, "pos_embed must be one of .*'learn'.* got 'sincos'"),
        ({"weight_init": None}, ValueError, "weight_init must be one of .*'moco'.* got None"),
        ({"global_pool": 3}, ValueError, "global_pool must be one of .*'avg'.* got 3"),
    ],
)
def test_what_cannot_be_honored_is_refused_by_name(arguments, error, words):
    with pytest.raises(error, match=words):
        DEXVisionTransformer(**{**TINY, **arguments})
