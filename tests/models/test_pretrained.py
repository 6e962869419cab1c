"""Folders that save_pretrained writes and from_pretrained reads."""

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.layers import GluMlp, SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dexcore.models import DEXVisionTransformer, MaskedAutoencoder, ModelFileError, NotDescribableError
from dexcore.nn import DEXBlock, DEXMlp, set_mode
from dexcore.nn.upcycle import upcycle

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NOISE = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))


def dex(**kwargs):
    return DEXVisionTransformer(**{**TINY, "num_experts": [4, 3], "top_k": [1, 2], "num_classes": 0, **kwargs})


def autoencoder(encoder=None, **kwargs):
    arguments = {"decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 3, "mask_ratio": 0.6, **kwargs}
    return MaskedAutoencoder(encoder or dex(), **arguments, init_encoder=False)


def assert_same(model, again):
    """The same tensors, bit by bit and in the same dtype, and the same function."""
    state, expected = again.state_dict(), model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name
    arguments = (IMAGES, NOISE) if isinstance(model, MaskedAutoencoder) else (IMAGES,)
    with torch.no_grad():
        outputs = [m.eval()(*arguments) for m in (model, again)]
    pred, other = (o.pred if isinstance(model, MaskedAutoencoder) else o for o in outputs)
    assert torch.equal(pred, other)


def test_an_autoencoder_comes_back_bit_by_bit_and_can_be_trained(tmp_path):
    model = autoencoder(dex(tau=0.7, align="cosine", keep="none"), norm_pix_loss=False)
    model.save_pretrained(tmp_path / "new" / "model")
    again = MaskedAutoencoder.from_pretrained(tmp_path / "new" / "model")
    assert not again.training
    assert_same(model, again)
    assert (again.mask_ratio, again.norm_pix_loss, again.num_visible) == (0.6, False, model.num_visible)
    settings = [(m.num_experts, m.top_k, m.tau, m.align, m.keep) for m in again.modules() if isinstance(m, DEXMlp)]
    assert settings == [(4, 1, 0.7, "cosine", "none"), (3, 2, 0.7, "cosine", "none")]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trained
    again.train()
    again.encoder.blocks[1].mlp.noise_std = 0.5
    again(IMAGES, NOISE).loss.backward()
    assert again.encoder.blocks[0].mlp.experts.fc1.weight.grad.abs().sum() > 0
    assert sorted(path.name for path in (tmp_path / "new" / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 5, "reg_tokens": 2, "no_embed_class": True, "init_values": 0.1},
        {"num_classes": 5, "class_token": False, "global_pool": "avg", "pool": "mean"},
        {"num_classes": 5, "global_pool": "map", "qk_norm": True, "qkv_bias": False, "pre_norm": True},
        {"act_layer": partial(nn.GELU, approximate="tanh"), "norm_layer": partial(nn.LayerNorm, eps=1e-3)},
        {"mlp_ratio": 2.3, "in_chans": 3, "img_size": (32, 32), "drop_path_rate": 0.1, "drop_rate": 0.2},
        {
            "embed_dim": 30,
            "num_heads": 3,
            "mlp_ratio": 49.1 / 30,
            "final_norm": False,
            "dynamic_img_size": True,
        },
        {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU, "num_classes": 5},
        {"mlp_layer": partial(GluMlp, gate_last=True), "act_layer": nn.SiLU, "mlp_ratio": 2},
        {"mlp_layer": SwiGLU, "act_layer": nn.SiLU, "mlp_ratio": 2.66667},
        {"act_layer": "quick_gelu"},
        {"mode": "director", "proj_bias": False, "attn_drop_rate": 0.1, "pos_drop_rate": 0.1},
    ],
)
def test_a_vision_transformer_of_any_make_comes_back_bit_by_bit(tmp_path, arguments):
    model = dex(**arguments)
    model.save_pretrained(tmp_path)
    again = DEXVisionTransformer.from_pretrained(tmp_path)
    assert_same(model, again)
    for (name, module), other in zip(model.named_modules(), again.modules(), strict=True):
        if isinstance(module, nn.LayerNorm | nn.Dropout):
            assert module.extra_repr() == other.extra_repr(), name


def test_what_changed_after_construction_is_what_is_saved(tmp_path):
    model = dex(num_classes=5)
    model.reset_classifier(3, "avg")
    model.set_input_size(img_size=(48, 32))
    set_mode(model, "director")
    model.save_pretrained(tmp_path)
    again = DEXVisionTransformer.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 48, 32)
    assert torch.equal(again(images), model.eval()(images))
    assert again.blocks[0].mlp.mode == "director"


def test_every_tensor_keeps_its_own_dtype(tmp_path):
    model = dex().bfloat16()
    model.norm.double()
    model.save_pretrained(tmp_path)
    again = DEXVisionTransformer.from_pretrained(tmp_path)
    assert again.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert again.norm.weight.dtype == torch.float64
    assert {name: t.dtype for name, t in again.state_dict().items()} == {
        name: t.dtype for name, t in model.state_dict().items()
    }


def test_no_buffer_is_left_unfilled(tmp_path):
    autoencoder().save_pretrained(tmp_path)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        model = MaskedAutoencoder.from_pretrained(tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert tensor.isfinite().all(), name


def test_a_saved_autoencoder_also_opens_as_its_encoder(tmp_path):
    model = autoencoder()
    model.save_pretrained(tmp_path)
    assert_same(model.encoder, DEXVisionTransformer.from_pretrained(tmp_path))


@pytest.mark.parametrize(
    ("encoder", "loaded_as"),
    [
        (lambda: VisionTransformer(**TINY, reg_tokens=1), VisionTransformer),
        (lambda: timm.create_model("vit_tiny_patch16_224", **TINY), VisionTransformer),
        (lambda: timm.create_model("dex_vit_tiny_patch16_224", **TINY), DEXVisionTransformer),
        (lambda: upcycle(VisionTransformer(**TINY), 3), DEXVisionTransformer),
        (lambda: VisionTransformer(**TINY, block_fn=partial(DEXBlock, num_experts=3)), DEXVisionTransformer),
        (lambda: VisionTransformer(**TINY, mlp_layer=partial(DEXMlp, num_experts=3)), DEXVisionTransformer),
    ],
)
def test_an_autoencoder_around_any_timm_encoder_comes_back(tmp_path, encoder, loaded_as):
    model = autoencoder(encoder())
    model.save_pretrained(tmp_path)
    again = MaskedAutoencoder.from_pretrained(tmp_path)
    assert type(again.encoder) is loaded_as
    assert_same(model, again)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: m.blocks.__setitem__(0, nn.Identity()), "block_fn.*got Identity"),
        (
            lambda m: setattr(m.blocks[1], "mlp", VisionTransformer(**TINY).blocks[0].mlp),
            "mlp_layer.*got Mlp",
        ),
        (lambda m: setattr(m.blocks[0], "norm1", nn.RMSNorm(16)), "norm_layer.*got RMSNorm"),
        (lambda m: setattr(m.blocks[1], "norm2", nn.LayerNorm(16, eps=1e-3)), "blocks.1.norm2"),
        (lambda m: setattr(m.blocks[1].mlp, "tau", 0.9), "blocks.1.mlp.*0.9"),
        (lambda m: setattr(m.blocks[1].attn, "num_heads", 4), "blocks.1.attn"),
        (lambda m: setattr(m, "head", nn.Sequential(nn.Linear(16, 4), nn.ReLU())), "head"),
        (lambda m: setattr(m.patch_embed, "norm", nn.LayerNorm(16)), "patch_embed.norm"),
    ],
)
def test_a_model_that_its_arguments_cannot_rebuild_is_refused_and_nothing_is_written(tmp_path, spoil, words):
    model = dex()
    spoil(model)
    with pytest.raises(NotDescribableError, match=words):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("num_classes", [0, 10, 1000])  # each puts the file's tensors at other addresses
def test_a_model_of_real_width_computes_the_same_bits_on_one_image(tmp_path, num_classes):
    model = timm.create_model("dex_vit_tiny_patch16_224", depth=2, num_classes=num_classes).eval()
    model.save_pretrained(tmp_path)
    again = DEXVisionTransformer.from_pretrained(tmp_path)
    images = torch.randn(4, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for image in images.split(1):
            assert torch.equal(model(image), again(image))


@pytest.mark.parametrize("kind", [MaskedAutoencoder, DEXVisionTransformer])
def test_a_loaded_model_stays_as_it_is_when_its_file_is_written_over(tmp_path, kind):
    model = autoencoder()
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    with open(weights, "r+b") as file:  # in place
        file.write(bytes(weights.stat().st_size))
    assert_same(model if kind is MaskedAutoencoder else model.encoder, again)


_CUT_AND_COMPUTE = """
import os, sys, torch
from dexcore.models import DEXVisionTransformer
model = DEXVisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_experts=3).eval()
model.save_pretrained(sys.argv[1])
again = DEXVisionTransformer.from_pretrained(sys.argv[1])
os.truncate(os.path.join(sys.argv[1], "model.safetensors"), 0)
images = torch.randn(2, 3, 32, 32)
with torch.no_grad():
    assert torch.equal(model(images), again(images))
"""


def test_a_loaded_model_computes_on_when_its_file_is_cut(tmp_path):
    # In another process: to read from a file what is cut off ends it by a bus error.
    assert subprocess.run([sys.executable, "-c", _CUT_AND_COMPUTE, tmp_path], check=False).returncode == 0


@pytest.fixture
def saved(tmp_path):
    autoencoder().save_pretrained(tmp_path)
    return tmp_path


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_encoder(folder, **changes):
    encoder = json.loads((folder / "config.json").read_text())["encoder"]
    edit_config(folder, encoder={**encoder, "arguments": encoder["arguments"] | changes})


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (lambda f: os.remove(f / "config.json"), FileNotFoundError, "config.json: no such file"),
        (lambda f: os.remove(f / "model.safetensors"), FileNotFoundError, "model.safetensors: no such file"),
        (
            lambda f: (f / "config.json").write_text("{"),
            ModelFileError,
            "config.json is no config.json of dexcore",
        ),
        (
            lambda f: (f / "config.json").write_text("[1]"),
            ModelFileError,
            "config.json is no config.json of dexcore",
        ),
        (lambda f: edit_config(f, format_version="1"), ModelFileError, 'config.json.*"format_version"'),
        (lambda f: edit_config(f, format_version=True), ModelFileError, 'config.json.*"format_version"'),
        (lambda f: edit_config(f, format_version=0), ModelFileError, 'config.json.*"format_version"'),
        (lambda f: edit_encoder(f, norm_eps="x"), ModelFileError, "config.json.*norm_eps must be a number, got 'x'"),
        (lambda f: edit_encoder(f, norm_eps=-1), ModelFileError, "config.json.*norm_eps must be a number from 0 to 1"),
        (lambda f: edit_encoder(f, class_token="x"), ModelFileError, "config.json.*class_token must be True or False"),
        (lambda f: edit_config(f, encoder=3), ModelFileError, 'config.json.*"class", got 3'),
        (lambda f: edit_config(f, encoder={"class": 3}), ModelFileError, 'config.json.*"class", got {'),
        (lambda f: edit_config(f, **{"class": None}), ModelFileError, 'config.json.*"class", got {'),
        (lambda f: edit_config(f, arguments=3), ModelFileError, "config.json does not describe a Masked"),
        (
            lambda f: edit_encoder(f, num_heads=5),
            ModelFileError,
            "config.json does not describe a MaskedAutoencoder: AssertionError",
        ),
        (lambda f: edit_config(f, format_version=99), ModelFileError, "format version 99.*reads up to 1"),
        (
            lambda f: edit_config(f, **{"class": "UNet"}),
            ModelFileError,
            "describes a UNet.*not a MaskedAutoencoder",
        ),
        (
            lambda f: edit_config(f, arguments={"depth": 3}),
            ModelFileError,
            "does not describe a Masked.*depth",
        ),
        (
            lambda f: edit_config(f, encoder={"class": "X"}),
            ModelFileError,
            "does not describe a Masked.*class must be one of .*, got .*X",
        ),
        (
            lambda f: edit_config(f, encoder={"class": "VisionTransformer"}),
            ModelFileError,
            "does not describe a Masked.*arguments",
        ),
        (lambda f: os.truncate(f / "model.safetensors", 5000), ModelFileError, "no whole safetensors file"),
        (lambda f: edit_weights(f, lambda t: t.pop("mask_token")), ModelFileError, "missing: mask_token"),
        (
            lambda f: edit_weights(f, lambda t: t.update(more=torch.zeros(1))),
            ModelFileError,
            "model.safetensors does not fit the MaskedAutoencoder: unexpected: more",
        ),
        (
            lambda f: edit_weights(f, lambda t: t.update(mask_token=torch.zeros(1, 1, 8))),
            ModelFileError,
            r"of another shape: mask_token \[1, 1, 8\], expected \[1, 1, 24\]",
        ),
        (
            lambda f: edit_weights(f, lambda t: t.update(mask_token=t["mask_token"].int())),
            ModelFileError,
            "model.safetensors does not fit.*mask_token torch.int32, expected torch.float32",
        ),
        (
            lambda f: edit_weights(f, lambda t: [t.pop(name) for name in list(t) if "decoder_blocks" in name]),
            ModelFileError,
            "missing: decoder_blocks.0.norm1.weight.* and 4 more",
        ),
    ],
)
def test_a_damaged_folder_is_refused_with_the_file_and_what_is_wrong(saved, damage, error, words):
    damage(saved)
    with pytest.raises(error, match=words):
        MaskedAutoencoder.from_pretrained(saved)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_in_a_file_s_place_is_refused_by_its_name(saved, file):
    (saved / file).unlink()
    (saved / file).mkdir()
    with pytest.raises(ModelFileError, match=file):
        MaskedAutoencoder.from_pretrained(saved)


def test_a_model_without_data_is_not_saved(tmp_path):
    with torch.device("meta"):
        model = DEXVisionTransformer(**TINY)
    with pytest.raises(ValueError, match="model must have memory: on the meta device"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_folder_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        MaskedAutoencoder.from_pretrained(tmp_path / "nowhere")


def test_a_file_in_the_folder_s_place_is_an_error_that_names_it(saved):
    with pytest.raises(ModelFileError, match=r"model\.safetensors is a file; expected a folder"):
        MaskedAutoencoder.from_pretrained(saved / "model.safetensors")


@pytest.mark.parametrize("folder", [None, 3, b"model", ["model"]])
def test_a_folder_that_is_no_path_is_refused_by_its_name(folder):
    words = rf"^folder must be a path \(str or os.PathLike\), got {re.escape(repr(folder))} \("
    with pytest.raises(TypeError, match=words):
        MaskedAutoencoder.from_pretrained(folder)
    with pytest.raises(TypeError, match=words):
        dex().save_pretrained(folder)


def test_a_folder_may_be_a_text_or_what_stands_for_one(tmp_path):
    model = dex()
    model.save_pretrained(str(tmp_path / "model"))
    with os.scandir(tmp_path) as entries:
        assert_same(model, DEXVisionTransformer.from_pretrained(next(entries)))
    with os.scandir(os.fsencode(tmp_path)) as entries, pytest.raises(TypeError, match=r"^folder must be a path"):
        DEXVisionTransformer.from_pretrained(next(entries))


def test_a_dense_autoencoder_does_not_open_as_a_dex_vision_transformer(tmp_path):
    autoencoder(VisionTransformer(**TINY)).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="a MaskedAutoencoder around a VisionTransformer, not a DEXVisionTr"):
        DEXVisionTransformer.from_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        dex().save_pretrained(tmp_path / "file")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(OSError, match=r"model\.safetensors'$"):
        dex().save_pretrained(tmp_path)


_SAVE_FOREVER = """
import sys, torch
from dexcore.models import DEXVisionTransformer
models = [DEXVisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=d, num_heads=2, num_experts=e)
          for d, e in ((2, 3), (1, 8))]
for model, value in zip(models, (1.0, 2.0)):
    for parameter in model.parameters():
        parameter.data.fill_(value)
models[0].save_pretrained(sys.argv[1])
print("ready", flush=True)
while True:
    for model in models:
        model.save_pretrained(sys.argv[1])
"""


def test_a_killed_save_never_leaves_a_mix_of_two_models(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", _SAVE_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if not (tmp_path / "config.json").exists():
        with pytest.raises(FileNotFoundError, match=r"config\.json"):
            DEXVisionTransformer.from_pretrained(tmp_path)
        return
    model = DEXVisionTransformer.from_pretrained(tmp_path)
    value = {2: 1.0, 1: 2.0}[len(model.blocks)]
    assert all(parameter.eq(value).all() for parameter in model.parameters())
