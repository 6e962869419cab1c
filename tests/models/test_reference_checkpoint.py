"""Checkpoints in the layout of the method's authors."""

import argparse
import gc
import os
import re
import sys

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dexcore.models import (
    DEXVisionTransformer,
    MaskedAutoencoder,
    ModelFileError,
    load_reference_checkpoint,
    save_reference_checkpoint,
)

WIDTH, HIDDEN, DEPTH, EXPERTS = 16, 32, 2, (4, 3)
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": 2, "mlp_ratio": 2.0}


def encoder(**kwargs):
    return DEXVisionTransformer(**{**TINY, "num_experts": EXPERTS, "num_classes": 0, **kwargs})


def autoencoder(inner=None):
    return MaskedAutoencoder(inner or encoder(), decoder_dim=24, decoder_depth=1, decoder_heads=3)


def block(name, width, hidden):
    shapes = {
        f"{name}.norm1.weight": (width,), f"{name}.norm1.bias": (width,),
        f"{name}.attn.qkv.weight": (3 * width, width), f"{name}.attn.qkv.bias": (3 * width,),
        f"{name}.attn.proj.weight": (width, width), f"{name}.attn.proj.bias": (width,),
        f"{name}.norm2.weight": (width,), f"{name}.norm2.bias": (width,),
    }  # fmt: skip
    return shapes | (ffn(f"{name}.mlp", width, hidden) if name.startswith("decoder") else {})


def ffn(name, width, hidden):
    return {
        f"{name}.fc1.weight": (hidden, width), f"{name}.fc1.bias": (hidden,),
        f"{name}.fc2.weight": (width, hidden), f"{name}.fc2.bias": (width,),
    }  # fmt: skip


def authors_tensors():
    """A checkpoint of the whole autoencoder under the authors' names, by hand, with random numbers."""
    shapes = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, 17, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 8, 8), "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
        "mask_token": (1, 1, 24), "decoder_pos_embed": (1, 17, 24),
        "decoder_embed.weight": (24, WIDTH), "decoder_embed.bias": (24,),
        "decoder_norm.weight": (24,), "decoder_norm.bias": (24,),
        "decoder_pred.weight": (192, 24), "decoder_pred.bias": (192,),
        **block("decoder_blocks.0", 24, 96),
    }  # fmt: skip
    for i, experts in enumerate(EXPERTS):
        shapes |= block(f"blocks.{i}", WIDTH, HIDDEN) | ffn(f"blocks.{i}.DEX.director", WIDTH, HIDDEN)
        shapes[f"blocks.{i}.DEX.router.linear.weight"] = (experts, WIDTH)
        shapes[f"blocks.{i}.DEX.expert_activation_count"] = (experts,)
        for j in range(experts):
            shapes |= ffn(f"blocks.{i}.DEX.experts.{j}", WIDTH, HIDDEN)
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def checkpoint(tmp_path):
    """The tensors and a way to write them: edited, wrapped, or as safetensors."""
    tensors = authors_tensors()

    def write(wrap=lambda t: {"model": t}, suffix=".pth", **changes):
        content = {name: t for name, t in (tensors | changes).items() if t is not None}
        path = tmp_path / f"checkpoint{suffix}"
        save_file(content, path) if suffix == ".safetensors" else torch.save(wrap(content), path)
        return path

    return tensors, write


def assert_holds(state, tensors, prefix):
    """Every one of the authors' encoder tensors stands where it belongs."""
    assert torch.equal(state[f"{prefix}cls_token"], tensors["cls_token"])
    assert torch.equal(state[f"{prefix}pos_embed"], tensors["pos_embed"])
    for i, experts in enumerate(EXPERTS):
        ours, theirs = f"{prefix}blocks.{i}", f"blocks.{i}"
        assert torch.equal(state[f"{ours}.attn.qkv.weight"], tensors[f"{theirs}.attn.qkv.weight"])
        assert torch.equal(state[f"{ours}.mlp.router.weight"], tensors[f"{theirs}.DEX.router.linear.weight"])
        frequency = state[f"{ours}.mlp.router.activation_frequency"]
        assert torch.equal(frequency, tensors[f"{theirs}.DEX.expert_activation_count"])
        for parameter in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"):
            director = tensors[f"{theirs}.DEX.director.{parameter}"]
            assert torch.equal(state[f"{ours}.mlp.director.{parameter}"], director)
            for j in range(experts):
                expert = tensors[f"{theirs}.DEX.experts.{j}.{parameter}"]
                assert torch.equal(state[f"{ours}.mlp.experts.{parameter}"][j], expert)


@pytest.mark.parametrize(
    ("wrap", "suffix"),
    [
        (lambda t: {"model": t}, ".pth"),
        (lambda t: t, ".pt"),
        (lambda t: {"model": t, "epoch": 3, "args": argparse.Namespace(lr=1e-4, model="dex_vit")}, ".pth"),
        (None, ".safetensors"),
    ],
)
def test_a_checkpoint_loads_into_an_autoencoder_wherever_its_tensors_lie(checkpoint, wrap, suffix):
    tensors, write = checkpoint
    model = autoencoder()
    assert load_reference_checkpoint(model, write(wrap, suffix)) == []
    state = model.state_dict()
    assert_holds(state, tensors, "encoder.")
    for name in (name for name in tensors if name.startswith("decoder_") or name == "mask_token"):
        assert torch.equal(state[name], tensors[name]), name


def test_a_checkpoint_loads_into_a_vision_transformer_which_says_that_it_has_no_decoder(checkpoint):
    tensors, write = checkpoint
    model = encoder(num_classes=5)
    head = model.head.weight.clone()
    left_out = load_reference_checkpoint(model, write())
    assert set(left_out) == {name for name in tensors if name.startswith("decoder_") or name == "mask_token"}
    assert_holds(model.state_dict(), tensors, "")
    assert torch.equal(model.head.weight, head)


def test_a_model_stays_as_it_is_when_the_file_that_it_was_loaded_from_is_written_over(checkpoint):
    tensors, write = checkpoint
    model, path = autoencoder(), write(suffix=".safetensors")
    load_reference_checkpoint(model, path)
    with open(path, "r+b") as file:  # in place
        file.write(bytes(path.stat().st_size))
    assert_holds(model.state_dict(), tensors, "encoder.")


def test_a_plain_mae_checkpoint_loads_into_a_dense_autoencoder(tmp_path, checkpoint):
    tensors, _ = checkpoint
    dense = {
        name.replace(".DEX.director.", ".mlp."): t
        for name, t in tensors.items()
        if ".DEX." not in name or ".DEX.director." in name
    }
    torch.save({"model": dense}, tmp_path / "mae.pth")
    model = autoencoder(VisionTransformer(**TINY, num_classes=0))
    load_reference_checkpoint(model, tmp_path / "mae.pth")
    assert torch.equal(model.encoder.blocks[1].mlp.fc2.bias, tensors["blocks.1.DEX.director.fc2.bias"])


@pytest.mark.parametrize("make", [autoencoder, encoder, lambda: encoder(num_classes=5)])
def test_what_is_saved_loads_again_bit_by_bit(tmp_path, make):
    model, again = make(), make()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.copy_(torch.randn_like(tensor))
    save_reference_checkpoint(model, tmp_path / "saved.pth")
    assert load_reference_checkpoint(again, tmp_path / "saved.pth") == []
    for (name, tensor), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(tensor, other), name
    assert [path.name for path in tmp_path.iterdir()] == ["saved.pth"]


def test_a_saved_file_has_the_authors_names_and_shapes(tmp_path):
    save_reference_checkpoint(autoencoder(), tmp_path / "saved.pth")
    content = torch.load(tmp_path / "saved.pth", weights_only=True)
    assert content.keys() == {"model"}
    found = {name: tuple(tensor.shape) for name, tensor in content["model"].items()}
    assert found == {name: tuple(tensor.shape) for name, tensor in authors_tensors().items()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"norm.weight": None}, "missing: encoder.norm.weight"),
        ({"blocks.1.DEX.router.linear.weight": None}, "missing: encoder.blocks.1.mlp.router.weight"),
        ({"decoder_pred.bias": None}, "missing: decoder_pred.bias"),
        ({"blocks.0.DEX.gate": torch.zeros(2)}, "unexpected: encoder.blocks.0.DEX.gate"),
        ({"optimizer_step": torch.zeros(1)}, "unexpected: encoder.optimizer_step"),
        (
            {"pos_embed": torch.zeros(1, 50, WIDTH)},
            r"encoder.pos_embed \[1, 50, 16\], expected \[1, 17, 16\]",
        ),
        (
            {f"blocks.0.DEX.experts.3.{p}": None for p in ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")},
            r"encoder.blocks.0.mlp.experts.fc1.weight \[3, 32, 16\], expected \[4, 32, 16\]",
        ),
        (
            {"blocks.0.DEX.experts.1.fc1.bias": None},
            "blocks.0.mlp.experts.fc1.bias must be numbered from 0 without gaps",
        ),
        ({"blocks.0.DEX.experts.1.fc1.bias": torch.zeros(5)}, r"one shape, got .*1: \[5\]"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name_and_changes_nothing(checkpoint, changes, words):
    _, write = checkpoint
    model = autoencoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelFileError, match=f"checkpoint.pth.*{words}"):
        load_reference_checkpoint(model, write(**changes))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_classifier_in_the_file_needs_its_place_in_the_model(checkpoint):
    _, write = checkpoint
    path = write(**{"head.weight": torch.ones(5, WIDTH), "head.bias": torch.ones(5)})
    model = encoder(num_classes=5)
    load_reference_checkpoint(model, path)
    assert model.head.weight.eq(1).all()
    with pytest.raises(ModelFileError, match=r"unexpected: encoder\.head\.weight"):
        load_reference_checkpoint(autoencoder(), path)


class Harmful:
    """What a pickle could do to its reader."""

    def __reduce__(self):
        return os.abort, ()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: torch.save({"model": Harmful()}, path), "cannot be read with weights_only=True"),
        (lambda path: path.write_bytes(b"not a checkpoint"), "cannot be read with weights_only=True"),
        (lambda path: path.write_bytes(b""), "cannot be read with weights_only=True"),
        (lambda path: path.write_bytes(b"hello, garbage"), "cannot be read.*KeyError"),
        (lambda path: path.write_bytes(bytes(range(256)) * 8), "cannot be read"),
        (lambda path: torch.save({"model": [torch.ones(2)]}, path), "must hold a dict of tensors"),
        (lambda path: torch.save({"model": {0: torch.ones(2)}}, path), "must hold a dict of tensors"),
        (lambda path: torch.save([1, 2], path), "must hold a dict of tensors"),
        (lambda path: torch.save({"model": {}}, path), "must hold a dict of tensors"),
        (
            lambda path: torch.save({"epoch": 3, "norm.weight": torch.ones(2)}, path),
            "must hold a dict of tensors",
        ),
        (lambda path: (torch.save(authors_tensors(), path), os.truncate(path, 3000)), "cannot be read"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path, write, words):
    path = tmp_path / "broken.pth"
    write(path)
    with pytest.raises(ModelFileError, match=f"broken.pth.*{words}"):
        load_reference_checkpoint(autoencoder(), path)


def test_a_truncated_checkpoint_is_refused_by_name_wherever_it_ends(tmp_path):
    path = tmp_path / "broken.pth"
    torch.save({"model": authors_tensors()}, path)
    size = path.stat().st_size
    for end in range(size - 1, 0, -size // 40):
        os.truncate(path, end)
        with pytest.raises(ModelFileError, match=r"broken\.pth cannot be read"):
            load_reference_checkpoint(encoder(), path)


def test_a_safetensors_file_that_is_none_is_refused_by_name(tmp_path):
    path = tmp_path / "broken.safetensors"
    for content in (b"", b"garbage", (2).to_bytes(8, "little") + b"[]"):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"broken\.safetensors is no whole safetensors file"):
            load_reference_checkpoint(encoder(), path)


def test_a_checkpoint_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    for place in (tmp_path / "gone" / "x.pth", tmp_path):
        with pytest.raises(OSError, match=f"{place}'$"):
            save_reference_checkpoint(encoder(), place)


def test_an_error_of_writing_is_collected_without_a_word(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with pytest.raises(OSError, match="gone") as caught:
        save_reference_checkpoint(encoder(), tmp_path / "gone" / "x.pth")
    caught.value.cycle = caught.value  # as whoever keeps an error in a frame of its traceback does
    del caught
    gc.collect()
    assert not said


def test_wrong_arguments_are_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        load_reference_checkpoint(encoder(), tmp_path / "none.pth")
    with pytest.raises(TypeError, match="model must be a MaskedAutoencoder or a VisionTransformer, got Linear"):
        load_reference_checkpoint(nn.Linear(2, 2), tmp_path / "none.pth")
    with pytest.raises(TypeError, match="got Linear"):
        save_reference_checkpoint(nn.Linear(2, 2), tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"path must not end in \.safetensors"):
        save_reference_checkpoint(encoder(), tmp_path / "none.safetensors")
    with pytest.raises(ModelFileError, match=f"{tmp_path} is a folder; expected a file"):
        load_reference_checkpoint(encoder(), tmp_path)


@pytest.mark.parametrize("use", [load_reference_checkpoint, save_reference_checkpoint])
@pytest.mark.parametrize("path", [None, 3, b"saved.pth", ["saved.pth"]])
def test_what_is_no_path_is_refused_by_its_name(use, path):
    words = rf"^path must be a path \(str or os.PathLike\), got {re.escape(repr(path))} \("
    with pytest.raises(TypeError, match=words):
        use(encoder(), path)


def test_a_model_on_the_meta_device_can_be_neither_filled_nor_written(tmp_path):
    save_reference_checkpoint(encoder(), tmp_path / "good.pth")
    with torch.device("meta"):
        model = encoder()
    with pytest.raises(ValueError, match="model must have memory"):
        load_reference_checkpoint(model, tmp_path / "good.pth")
    with pytest.raises(ValueError, match="model must have memory"):
        save_reference_checkpoint(model, tmp_path / "none.pth")
    assert not (tmp_path / "none.pth").exists()


@pytest.mark.parametrize("layer", [SwiGLUPacked, SwiGLU])
def test_a_gated_layer_which_the_layout_has_no_names_for_is_refused_by_name(tmp_path, checkpoint, layer):
    model = autoencoder(encoder(mlp_layer=layer, act_layer=nn.SiLU))
    _, write = checkpoint
    words = r"encoder\.blocks\.0\.mlp, whose director is (GluMlp|SwiGLU); the authors' layout has no names"
    with pytest.raises(ValueError, match=words):
        save_reference_checkpoint(model, tmp_path / "gated.pth")
    assert not (tmp_path / "gated.pth").exists()
    with pytest.raises(ValueError, match=words):
        load_reference_checkpoint(model, write())
