"""Checkpoints of dense vision transformers in their authors' layouts, loaded into DEX models."""

import argparse
import logging
import os
import re
import traceback
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from dexcore.models import DEXVisionTransformer, MaskedAutoencoder, ModelFileError, load_dense_checkpoint
from dexcore.nn import DEXMlp, set_mode, upcycle

WIDTH, HIDDEN = 16, 32
TINY = {
    "img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0,
    "num_classes": 0,
}  # fmt: skip
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def shake(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def dense(**kwargs):
    return shake(VisionTransformer(**{**TINY, **kwargs}))


def dex(**kwargs):
    pool = "cls" if kwargs.get("class_token", True) else "mean"
    return shake(DEXVisionTransformer(**{**TINY, "num_experts": 3, "pool": pool, **kwargs}))


def autoencoder(encoder, decoder_dim=24):
    return shake(MaskedAutoencoder(encoder, decoder_dim=decoder_dim, decoder_depth=1, decoder_heads=3))


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def renamed(tensors, *pairs):
    for old, new in pairs:
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def under(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def mae_file(state):
    decoder = {"mask_token": torch.ones(1, 1, 24), "decoder_embed.weight": torch.ones(24, WIDTH)}
    return {"model": state | decoder, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}


def dino_file(state):
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    head = {"head.mlp.0.weight": torch.ones(4, WIDTH), "head.last_layer.weight_g": torch.ones(4, 1)}
    return {
        "student": under("module.backbone.", other) | under("module.", head),
        "teacher": under("backbone.", state) | head,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(arch="vit_small"),
        "epoch": 100,
    }


def dinov2_file(state):
    """A backbone in FSDP's chunks, with a mask token of the encoder's width and the heads beside it."""
    backbone = renamed(state, ("blocks.", "blocks.0."), ("reg_token", "register_tokens"))
    backbone["mask_token"] = torch.ones(1, WIDTH)
    heads = {"dino_head.mlp.0.weight": torch.ones(4, WIDTH), "ibot_head.mlp.0.weight": torch.ones(4, WIDTH)}
    return {"teacher": under("backbone.", backbone) | heads}


LAYOUTS = {
    "timm": lambda state: state,
    "timm, trained by its script": lambda state: {"state_dict": under("module.", state), "arch": "x", "epoch": 1},
    "timm, with a moving average": lambda state: {
        "state_dict": {name: torch.zeros_like(tensor) for name, tensor in state.items()},
        "state_dict_ema": state,
    },
    "MAE": mae_file,
    "DINO": lambda state: state,
    "DINO, whole": dino_file,
    "DINOv2": dinov2_file,
    "DINOv2, while training": lambda state: {
        "model": under("student.backbone.", state) | under("teacher.backbone.", state)
    },
    "Lightning": lambda state: {"state_dict": under("model.backbone.", state), "hyper_parameters": {"lr": 0.1}},
    "queries, keys and values apart": lambda state: split_qkv(state, "q_proj", "k_proj", "v_proj"),
    "nn.MultiheadAttention": lambda state: renamed(state, ("qkv.", "in_proj_"), ("attn.proj.", "attn.out_proj.")),
}


def split_qkv(state, *names):
    result = {}
    for name, tensor in state.items():
        if ".qkv." in name:
            result |= {name.replace("qkv", n): t.clone() for n, t in zip(names, tensor.chunk(3), strict=True)}
        else:
            result[name] = tensor
    return result


@pytest.fixture
def write(tmp_path):
    def write(content, suffix=".pth"):
        path = tmp_path / f"checkpoint{suffix}"
        save_file(content, path) if suffix == ".safetensors" else torch.save(content, path)
        return path

    return write


def assert_computes(model, expected, images=IMAGES):
    """In director mode to the bit what the dense model does; and every expert is a copy of its director."""
    layers = [module for module in model.modules() if isinstance(module, DEXMlp)]
    assert layers
    for layer in layers:
        for experts, director in layer.expert_director_pairs():
            assert torch.equal(experts, director.expand_as(experts))
    set_mode(model, "director")
    assert torch.equal(model(images), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_computes_in_the_director_what_the_dense_model_did(write, layout):
    source = dense()
    model = dex()
    load = load_dense_checkpoint(model, write(LAYOUTS[layout](state_of(source))))
    assert_computes(model, source(IMAGES))
    assert not load.resampled


GATED = {"act_layer": nn.SiLU, "mlp_layer": SwiGLUPacked}


@pytest.mark.parametrize(
    ("mlp_layer", "names"),
    [
        (SwiGLUPacked, ()),
        (SwiGLUPacked, (("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3"))),  # DINOv2's giant
        (partial(GluMlp, gate_last=True), ()),
        (SwiGLU, ()),
    ],
)
def test_gated_mlps_load_into_gated_experts(write, mlp_layer, names):
    settings = {"act_layer": nn.SiLU, "mlp_layer": mlp_layer}
    source = dense(**settings)
    path = write(renamed(state_of(source), *names))
    model = dex(**settings)
    load_dense_checkpoint(model, path)
    assert_computes(model, source(IMAGES))
    encoder = autoencoder(dex(**settings))
    load_dense_checkpoint(encoder, path)
    assert_computes(encoder.encoder, source(IMAGES))


def test_gated_mlps_do_not_load_into_experts_with_gate_and_value_apart(write):
    path = write(state_of(dense(**GATED)))
    with pytest.raises(ModelFileError, match=r"missing: blocks.0.mlp.fc1_g.weight"):
        load_dense_checkpoint(dex(**GATED | {"mlp_layer": SwiGLU}), path)


def test_safetensors_load_into_an_upcycled_timm_model(write):
    source = dense(class_token=False, global_pool="avg", num_classes=5)
    model = upcycle(dense(class_token=False, global_pool="avg", num_classes=5), 3, pool="mean")
    load = load_dense_checkpoint(model, write(state_of(source), ".safetensors"))
    assert_computes(model, source(IMAGES))
    assert load.prefix == ""
    assert load.unused == {}
    assert {name.split(".mlp.")[-1] for name in load.kept} == {"router.weight", "router.activation_frequency"}


def test_a_model_stays_as_it_is_when_the_file_that_it_was_loaded_from_is_written_over(write):
    source, model = dense(), dex()
    path = write(state_of(source), ".safetensors")
    load_dense_checkpoint(model, path)
    with open(path, "r+b") as file:  # in place
        file.write(bytes(path.stat().st_size))
    assert_computes(model, source(IMAGES))


def test_a_dense_model_can_be_loaded_too(write):
    source, model = dense(init_values=1e-5), dense(init_values=1e-5)
    load = load_dense_checkpoint(model, write(LAYOUTS["DINO, whole"](state_of(source))))
    assert torch.equal(model(IMAGES), source(IMAGES))
    assert load.prefix == "teacher.backbone."
    assert load.kept == []


def test_deit3_names_its_layer_scale_otherwise_and_embeds_patches_alone(write):
    source = dense(init_values=0.1, no_embed_class=True)
    model = dex(init_values=0.1, no_embed_class=True)
    tensors = renamed(state_of(source), (".ls1.gamma", ".gamma_1"), (".ls2.gamma", ".gamma_2"))
    load_dense_checkpoint(model, write({"model": tensors}))
    assert_computes(model, source(IMAGES))


def test_keys_without_a_bias_have_zeros(write):
    source = dense()
    with torch.no_grad():
        for block in source.blocks:
            block.attn.qkv.bias[WIDTH : 2 * WIDTH] = 0
    tensors = split_qkv({n: t for n, t in state_of(source).items() if n.endswith("qkv.bias")}, "q", "k", "v")
    biases = {name.replace(".bias", "_bias"): t for name, t in tensors.items() if ".k." not in name}
    rest = {name: t for name, t in state_of(source).items() if not name.endswith("qkv.bias")}
    model = dex()
    load_dense_checkpoint(model, write(rest | biases))
    assert_computes(model, source(IMAGES))


def test_dinov2_registers_come_without_positions(write):
    """Its class token has a row of positions, its registers have none; timm's model embeds patches alone."""
    source = dense(reg_tokens=4, no_embed_class=True)
    tensors = state_of(source)
    tensors["cls_token"], row = torch.randn(1, 1, WIDTH), torch.randn(1, 1, WIDTH)
    tensors["pos_embed"] = torch.cat([row, tensors["pos_embed"]], dim=1)
    with torch.no_grad():
        source.cls_token.copy_(tensors["cls_token"] + row)
    path = write(dinov2_file(tensors))
    model = dex(reg_tokens=4, no_embed_class=True)
    load = load_dense_checkpoint(model, path)
    assert_computes(model, source(IMAGES))
    assert "row of pos_embed" in load.resampled["teacher.backbone.cls_token"]
    embedding = dex(reg_tokens=4)
    load_dense_checkpoint(embedding, path)
    assert torch.equal(embedding.pos_embed[:, :1], row)
    assert embedding.pos_embed[:, 1:5].eq(0).all()
    set_mode(embedding, "director")
    torch.testing.assert_close(embedding(IMAGES), source(IMAGES))


@pytest.mark.parametrize(
    "changed",
    [
        {"img_size": 48},
        {"patch_size": 16, "img_size": 64},
        {"patch_size": 4, "img_size": 48},
        {"img_size": (32, 64)},
        {"no_embed_class": True, "img_size": 48},
        {"class_token": False, "no_embed_class": True, "global_pool": "avg", "fc_norm": False, "img_size": 24},
    ],
)
def test_positions_and_patch_embedding_are_resampled_as_timm_does(write, changed):
    before = {name: value for name, value in changed.items() if name not in ("img_size", "patch_size")}
    source, target = dense(**before), dense(**changed)
    target.load_state_dict(checkpoint_filter_fn(state_of(source), target))
    model = dex(**changed)
    load = load_dense_checkpoint(model, write(state_of(source)))
    images = torch.randn(2, 3, *target.patch_embed.img_size)
    assert_computes(model, target(images), images)
    names = {"pos_embed"} if target.patch_embed.grid_size != (4, 4) else set()
    assert set(load.resampled) == names | ({"patch_embed.proj.weight"} if "patch_size" in changed else set())
    assert not names or f"4 x 4 patches to {target.patch_embed.grid_size[0]} x" in load.resampled["pos_embed"]


def test_a_class_token_that_the_model_does_not_have_is_left_out_with_its_row(write):
    source = dense()
    model = dex(class_token=False, global_pool="avg", fc_norm=False)
    load = load_dense_checkpoint(model, write(state_of(source)))
    assert torch.equal(model.pos_embed, source.pos_embed[:, 1:])
    assert load.unused == {"cls_token": "no place in the model"}
    assert load.resampled == {"pos_embed": "1 rows of tokens before the patches to 0"}


def test_tokens_that_the_file_does_not_have_stay_the_models_own(write):
    source = dense(class_token=False, global_pool="avg", fc_norm=False)
    model = dex(reg_tokens=2)
    before = state_of(model)
    load = load_dense_checkpoint(model, write(state_of(source)))
    assert torch.equal(model.pos_embed, torch.cat([before["pos_embed"][:, :3], source.pos_embed], dim=1))
    assert torch.equal(model.cls_token, before["cls_token"])
    assert {"cls_token", "reg_token"} <= set(load.kept)


def test_a_grid_that_is_no_square_is_the_models_own_or_given(write):
    source = dense(img_size=(32, 40))
    path = write(state_of(source))
    model = dex(img_size=(32, 40))
    load_dense_checkpoint(model, path)
    assert torch.equal(model.pos_embed, source.pos_embed)
    square = dex()
    with pytest.raises(ModelFileError, match=r"pos_embed \[1, 21, 16\] is not a square of patches.*say the rows"):
        load_dense_checkpoint(square, path)
    with pytest.raises(ModelFileError, match=r"pos_embed \[1, 21, 16\] is not 5 x 5 of patches"):
        load_dense_checkpoint(square, path, grid=(5, 5))
    load = load_dense_checkpoint(square, path, grid=(4, 5))
    assert load.resampled == {"pos_embed": "4 x 5 patches to 4 x 4"}


def test_a_grid_that_may_be_either_is_asked_for(write):
    source = dense(img_size=(16, 64))
    path = write(state_of(source))
    model = dex(img_size=(16, 64))
    with pytest.raises(ModelFileError, match=r"may be of 4 x 4 patches or of the model's 2 x 8: say which with grid="):
        load_dense_checkpoint(model, path)
    assert load_dense_checkpoint(model, path, grid=(2, 8)).resampled == {}
    assert torch.equal(model.pos_embed, source.pos_embed)


def test_numbers_are_copied_into_the_models_own_dtype(write):
    source = dense().bfloat16()
    model = dex()
    load_dense_checkpoint(model, write(state_of(source)))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.blocks[1].mlp.experts.fc2.weight[2], source.blocks[1].mlp.fc2.weight.float())


def without_prefix(state):
    return {name.removeprefix("encoder."): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("layout", [lambda state: {"model": without_prefix(state)}, lambda state: state])
def test_an_autoencoder_is_loaded_with_its_decoder(write, layout):
    source, model = autoencoder(dense()), autoencoder(dex())
    load = load_dense_checkpoint(model, write(layout(state_of(source))))
    noise = torch.rand(2, 16)
    set_mode(model, "director")
    assert torch.equal(model(IMAGES, noise).pred, source(IMAGES, noise).pred)
    assert load.unused == load.resampled == {}
    assert all(".router." in name for name in load.kept)


def test_an_autoencoders_positions_are_resampled_in_encoder_and_decoder(write):
    source, model = autoencoder(dense()), autoencoder(dex(img_size=48))
    load = load_dense_checkpoint(model, write({"model": without_prefix(state_of(source))}))
    told = "4 x 4 patches to 6 x 6"
    assert load.resampled == {"model.pos_embed": told, "model.decoder_pos_embed": told}
    assert torch.equal(model.decoder_pos_embed[:, :1], source.decoder_pos_embed[:, :1])
    assert not model.encoder.pos_embed.requires_grad


def test_an_autoencoder_keeps_its_decoder_where_the_file_has_none(write):
    source, model = dense(), autoencoder(dex())
    before = state_of(model)
    load = load_dense_checkpoint(model, write(dinov2_file(state_of(source))))
    after = state_of(model)
    assert torch.equal(after["encoder.blocks.1.attn.qkv.weight"], source.blocks[1].attn.qkv.weight)
    decoder = {name for name in before if name.startswith("decoder_") or name == "mask_token"}
    assert decoder <= set(load.kept)
    assert all(torch.equal(after[name], before[name]) for name in decoder)
    assert load.unused["teacher.backbone.mask_token"] == "no place in the model"


def test_a_classifier_is_used_where_it_has_as_many_classes_and_left_out_elsewhere(write):
    source = dense(num_classes=7)
    path = write(state_of(source))
    same, other = dex(num_classes=7), dex(num_classes=5)
    load_dense_checkpoint(same, path)
    assert torch.equal(same.head.weight, source.head.weight)
    before = state_of(other)
    load = load_dense_checkpoint(other, path)
    assert torch.equal(other.head.weight, before["head.weight"])
    why = "the model has another number of classes (5)"
    assert load.unused == {"head.weight": why, "head.bias": why}
    assert {"head.weight", "head.bias"} <= set(load.kept)


def test_the_final_norm_is_left_out_where_the_model_norms_after_pooling(write):
    source, model = dense(), dex(global_pool="avg", fc_norm=True)
    load = load_dense_checkpoint(model, write(state_of(source)))
    assert set(load.unused) == {"norm.weight", "norm.bias"}
    assert {"fc_norm.weight", "fc_norm.bias"} <= set(load.kept)
    fine_tuned, back = dense(global_pool="avg", fc_norm=True), dex()
    load = load_dense_checkpoint(back, write(state_of(fine_tuned)))
    assert set(load.unused) == {"fc_norm.weight", "fc_norm.bias"}
    assert {"norm.weight", "norm.bias"} <= set(load.kept)


@pytest.mark.parametrize("layout", ["MAE", "DINO, whole", "DINOv2"])
def test_the_list_accounts_for_every_tensor_of_file_and_model(write, caplog, layout):
    path = write(LAYOUTS[layout](state_of(dense(num_classes=7))))
    model = dex(img_size=48, num_classes=5)
    before = state_of(model)
    with caplog.at_level(logging.INFO, "dexcore"):
        load = load_dense_checkpoint(model, path)
    named = [*load.used, *load.resampled, *load.unused]
    inside = [name for name, _ in flat(torch.load(path, weights_only=False))]
    assert sorted(named) == sorted(inside)
    after = state_of(model)
    assert set(load.kept) == {name for name in before if torch.equal(before[name], after[name])}
    told = str(load)
    assert told in caplog.text
    assert told.startswith(f"{path}, {load.prefix}*: {len(load.used)} tensors used, 1 resampled")
    assert "resampled  " in told
    assert "head.weight: the model has another number of classes (5)" in told
    assert "kept       blocks.*.mlp.router.weight  (2 times)" in told


def flat(content, prefix=""):
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            yield prefix + name, value
        elif isinstance(value, dict) and name != "optimizer":
            yield from flat(value, f"{prefix}{name}.")


def changed(**changes):
    def change(state):
        return {name: t for name, t in (state | changes).items() if t is not None}

    return change


@pytest.mark.parametrize(
    ("source", "change", "words"),
    [
        (
            lambda: dense(mlp_ratio=3.0),
            None,
            r"of another shape: .*blocks.0.mlp.fc1.weight \[48, 16\], expected \[32, 16\]",
        ),
        (lambda: dense(embed_dim=24), None, r"cls_token \[1, 1, 24\], expected \[1, 1, 16\], pos_embed \[1, 17, 24\]"),
        (lambda: dense(in_chans=1), None, r"patch_embed.proj.weight \[16, 1, 8, 8\], expected \[16, 3, 8, 8\]"),
        (lambda: dense(depth=3), None, "unexpected: blocks.2.norm1.weight"),
        (lambda: dense(depth=1), None, "missing: blocks.1.norm1.weight"),
        (lambda: dense(init_values=1.0), None, "unexpected: blocks.0.ls1.gamma"),
        (lambda: dense(qk_norm=True), None, "unexpected: blocks.0.attn.q_norm.weight"),
        (lambda: dense(qkv_bias=False), None, "missing: blocks.0.attn.qkv.bias"),
        (lambda: dense(reg_tokens=2), None, "unexpected: reg_token"),
        (lambda: dense(pre_norm=True), None, "unexpected: norm_pre.weight"),
        (lambda: dense(mlp_layer=SwiGLU), None, r"blocks.0.mlp is a gated MLP \(SwiGLU"),
        (lambda: dense(mlp_layer=SwiGLUPacked), None, r"blocks.0.mlp is a gated MLP \(SwiGLU.*giant"),
        (
            lambda: dense(mlp_layer=SwiGLUPacked),
            lambda t: renamed(t, ("mlp.fc1", "mlp.w12"), ("mlp.fc2", "mlp.w3")),
            r"blocks.0.mlp is a gated MLP \(SwiGLU, as in DINOv2's giant\): blocks.0.mlp.w12.weight \[32, 16\]",
        ),
        (dex, None, "is not dense: blocks.0.mlp.experts.fc1.weight belongs to a DEX layer"),
        (dense, changed(**{"norm.weight": None}), "missing: norm.weight"),
        (
            lambda: dense(mlp_layer=SwiGLU),
            changed(pos_embed=None, **{"rope_embed.periods": torch.ones(4)}),  # DINOv3's plus
            r"rotary positions \(rope_embed.periods\).*upcycle timm's own",
        ),
        (
            lambda: Eva(
                32, 8, num_classes=0, embed_dim=16, depth=2, num_heads=2, swiglu_mlp=True, use_rot_pos_emb=True
            ),
            None,
            r"rotary positions \(blocks.0.attn.q_bias\).*EVA-02",
        ),
        (dense, changed(pos_embed=None), "missing: pos_embed"),
        (dense, changed(pos_embed=torch.zeros(3)), r"pos_embed \[3\], expected \[1, 17, 16\]"),
        (dense, changed(pos_embed=torch.zeros(1, 0, 16)), r"pos_embed \[1, 0, 16\] is not a square"),
        (dense, changed(**{"norm.bias": torch.zeros(16, dtype=torch.int64)}), "another kind of number: norm.bias"),
        (
            dense,
            changed(**{"patch_embed.proj.weight": torch.zeros(16, 3, 0, 8)}),
            r"patch_embed.proj.weight \[16, 3, 0, 8\], expected",
        ),
        (
            dense,
            lambda t: changed(**{"blocks.1.attn.k.weight": None})(split_qkv(t, "q", "k", "v")),
            "blocks.1.attn.qkv.weight needs q, k and v of one width",
        ),
        (dense, lambda t: {"a": t, "b": dict(t)}, r"several vision transformers: a\., b\."),
        (dense, lambda t: {"layer1.0.conv1.weight": torch.ones(2)}, "no patch_embed.proj.weight, but layer1"),
        (dense, lambda t: [t], "no tensor at all"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name_and_changes_nothing(write, source, change, words):
    state = state_of(source())
    model = dex()
    before = state_of(model)
    with pytest.raises(ModelFileError, match=rf"checkpoint.pth.*{words}"):
        load_dense_checkpoint(model, write(change(state) if change else state))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("make", [dex, lambda: autoencoder(dex()), dense])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_wrong_tensor_of_an_mlp_is_told_once_and_as_the_file_calls_it(write, make, prefix):
    """Although director and experts would both get it."""
    first, second = f"{prefix}blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc2.bias"
    state = under(prefix, state_of(dense()))
    state[first] = torch.zeros(48, WIDTH)
    del state[prefix + second]
    model = make()
    with pytest.raises(ModelFileError) as raised:
        load_dense_checkpoint(model, write(state))
    encoder = "encoder." if isinstance(model, MaskedAutoencoder) else ""
    _, _, told = str(raised.value).partition(" does not fit the ")
    assert told == (
        f"{type(model).__name__}: missing: {encoder}{second}; of another shape: {first} [48, 16], expected [32, 16]"
    )


@pytest.mark.parametrize("make", [dex, lambda: autoencoder(dex())])
@pytest.mark.parametrize(
    "name", ["blocks.0.mlp.fc1.weight", "blocks.1.attn.qkv.bias", "pos_embed", "cls_token", "decoder_embed.weight"]
)
@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name_and_change_nothing(write, make, name, number):
    content = state_of(autoencoder(dense()))
    content = without_prefix(content)
    content[name].view(-1)[-1] = number
    model, path = make(), write({"model": content})
    before = state_of(model)
    if name.startswith("decoder_") and not isinstance(model, MaskedAutoencoder):
        assert load_dense_checkpoint(model, path).unused[f"model.{name}"] == "the model has no decoder"
        return
    with pytest.raises(ModelFileError) as raised:
        load_dense_checkpoint(model, path)
    assert str(raised.value) == f"{path} holds numbers that are not finite: model.{name} (as torch.float32)"
    assert all(torch.equal(tensor, before[at]) for at, tensor in model.state_dict().items())


def test_numbers_that_the_models_dtype_cannot_hold_are_refused(write):
    content = state_of(dense())
    content["norm.weight"][0] = 1e6
    path = write(content)
    load_dense_checkpoint(dex(), path)
    with pytest.raises(ModelFileError, match=r"not finite: norm\.weight \(as torch\.float16\)$"):
        load_dense_checkpoint(dex().half(), path)


def test_what_the_model_needs_beyond_the_file_is_refused_by_name(write):
    path = write(state_of(dense()))
    with pytest.raises(ModelFileError, match=r"missing: blocks\.0\.ls1\.gamma"):
        load_dense_checkpoint(dex(init_values=1.0), path)
    small = write(state_of(autoencoder(dense(), decoder_dim=12)))
    with pytest.raises(ModelFileError, match=r"decoder_embed.weight \[12, 16\], expected \[24, 16\]"):
        load_dense_checkpoint(autoencoder(dex()), small)
    model = autoencoder(dex())
    load = load_dense_checkpoint(model.encoder, small)  # the encoder alone
    assert load.unused["decoder_embed.weight"] == "the model has no decoder"


class Harmful:
    """What a pickle could do to its reader."""

    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: torch.save({"model": Harmful()}, path),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no checkpoint"),
        lambda path: os.truncate(path, path.stat().st_size // 2),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_cannot_be_read_is_refused_by_name(write, spoil, suffix):
    path = write(state_of(dense()), suffix)
    spoil(path)
    with pytest.raises(
        ModelFileError, match=rf"checkpoint{suffix} (cannot be read with weights_only=True|is no whole)"
    ):
        load_dense_checkpoint(dex(), path)


class NotAllowed:
    """A class that no checkpoint needs."""


def save_script(path):
    torch.jit.script(nn.Linear(2, 2)).save(str(path))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize(
    ("save", "finding"),
    [
        (lambda path: torch.save({"model": NotAllowed()}, path), r"GLOBAL \S+NotAllowed was not an allowed global"),
        (lambda path: torch.save({"model": Harmful()}, path), r"GLOBAL posix\.abort whose module posix is blocked"),
        (lambda path: torch.save(nn.Linear(2, 2), path), r"GLOBAL \S+Linear was not an allowed global"),
        (save_script, "TorchScript archives"),
        (lambda path: path.write_bytes(b"no checkpoint"), "Unsupported operand"),
    ],
)
def test_the_reason_why_a_pickle_is_not_read_comes_without_advice_to_run_it(tmp_path, save, finding):
    path = tmp_path / "checkpoint.pth"
    save(path)
    with pytest.raises(ModelFileError, match=finding) as raised:
        load_dense_checkpoint(dex(), path)
    printed = "".join(traceback.format_exception(raised.value))
    for advice in ("`False`", "=False", "add_safe_globals", "Please", "In PyTorch 2.6"):
        assert advice not in printed


def test_a_dict_that_holds_itself_is_read_once(write):
    content = {"model": state_of(dense())}
    content["again"] = content
    assert load_dense_checkpoint(dex(), write(content)).prefix == "model."


def test_wrong_arguments_are_refused_by_name(tmp_path, write):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        load_dense_checkpoint(dex(), tmp_path / "none.pth")
    with pytest.raises(TypeError, match="model must be a MaskedAutoencoder or a VisionTransformer, got Linear"):
        load_dense_checkpoint(nn.Linear(2, 2), tmp_path / "none.pth")
    with pytest.raises(ValueError, match="grid must be at least 1, got 0"):
        load_dense_checkpoint(dex(), tmp_path / "none.pth", grid=(0, 4))
    with pytest.raises(TypeError, match=r"grid must be a whole number, got 4\.0"):
        load_dense_checkpoint(dex(), tmp_path / "none.pth", grid=(4.0, 4.0))
    with pytest.raises(TypeError, match=r"grid must be the rows and columns.*got 4"):
        load_dense_checkpoint(dex(), tmp_path / "none.pth", grid=4)
    with pytest.raises(ModelFileError, match=f"{tmp_path} is a folder; expected a file"):
        load_dense_checkpoint(dex(), tmp_path)
    hybrid = timm.create_model("vit_tiny_r_s16_p8_224", depth=1)
    with pytest.raises(TypeError, match="timm's PatchEmbed, got HybridEmbed"):
        load_dense_checkpoint(hybrid, tmp_path / "none.pth")
    with torch.device("meta"):
        model = DEXVisionTransformer(**TINY)
    with pytest.raises(ValueError, match="meta device"):
        load_dense_checkpoint(model, write(state_of(dense())))


@pytest.mark.parametrize("path", [None, 3, b"dense.pth", ["dense.pth"]])
def test_what_is_no_path_is_refused_by_its_name(path):
    words = rf"^path must be a path \(str or os.PathLike\), got {re.escape(repr(path))} \("
    with pytest.raises(TypeError, match=words):
        load_dense_checkpoint(dex(), path)
