"""A fine-tuned model: encoder, head and task in one folder; it trains, comes back bit by bit, collapses, exports."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.export import Dim

from assertions import assert_close
from dexcore.models import (
    ClassificationHead,
    DEXVisionTransformer,
    FeaturePyramid,
    MaskedAutoencoder,
    ModelFileError,
    NotDescribableError,
    TaskDescription,
    TaskModel,
)
from dexcore.nn import DEXMlp, collapse, set_mode, upcycle

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
CLASSES = ("background", "nerve", "vein")


def task(kind="classification", **kwargs):
    crop = "whole" if "segmentation" in kind else "center"
    return TaskDescription(**{"name": "uns", "kind": kind, "classes": CLASSES, "modalities": ("Ultrasound",)}
                           | {"crop": crop} | kwargs)  # fmt: skip


def encoder(mode="experts", **kwargs):
    """Whose experts differ, as training leaves them."""
    torch.manual_seed(0)
    if mode == "dense":
        vit = VisionTransformer(**TINY | kwargs)
        vit.pretrained_cfg = timm.create_model("test_vit").pretrained_cfg
        return vit
    vit = DEXVisionTransformer(**TINY | kwargs, num_experts=3)
    vit.set_preprocessing([0.4] * vit.in_chans, [0.2] * vit.in_chans, {"Ultrasound": ["div255"]})
    for block in vit.blocks:
        for parameter in (*block.mlp.experts.parameters(), *block.mlp.director.parameters()):
            nn.init.normal_(parameter, std=0.2)
        nn.init.normal_(block.mlp.router.weight)
        block.mlp.router.activation_frequency.fill_(0.5)  # as if the directors had followed
    set_mode(vit, mode)
    return vit


def model(kind="classification", mode="experts", **kwargs):
    return TaskModel(encoder(mode), task(kind), **kwargs)


@torch.no_grad()
def logits(of, images=IMAGES):
    return of.eval()(images)


@pytest.mark.parametrize("kind", ["classification", "multilabel", "ordinal", "segmentation", "multilabel_segmentation"])
def test_logits_are_one_a_class_and_one_a_pixel_for_masks(kind):
    made = model(kind)
    found = logits(made)
    assert found.shape == ((3, 3, 16, 16) if "segmentation" in kind else (3, 3))
    probabilities = made.probabilities(found)
    assert torch.allclose(probabilities.sum(dim=1), torch.tensor(1.0)) == ("multilabel" not in kind)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("classification", "experts"), *(("segmentation", mode) for mode in ("experts", "director", "dense"))],
)
def test_every_parameter_that_is_trained_gets_a_gradient(kind, mode):
    """DDP waits for each; in director mode directors learn, experts and routers do not."""
    made = model(kind, mode).train()
    made(IMAGES).square().mean().backward()
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in made.named_parameters() if parameter.grad is not None} == trained
    assert any("experts" in name for name in trained) == (mode == "experts")
    assert any("director" in name for name in trained) == (mode == "director")


def test_masks_are_decoded_from_the_blocks_that_are_named():
    """An encoder whose block i outputs i: the decoder gets 3, 6, 9 and 12."""

    class Numbered(nn.Module):
        def __init__(self, number):
            super().__init__()
            self.number = number

        def forward(self, x):
            return torch.full_like(x, float(self.number))

    vit = VisionTransformer(**TINY | {"depth": 12}, reg_tokens=2)
    vit.blocks = nn.Sequential(*[Numbered(i + 1) for i in range(12)])
    made = TaskModel(vit, task("segmentation"))
    got = []
    made.head.register_forward_pre_hook(lambda _, given: got.append([one.unique().tolist() for one in given[1]]))
    made(IMAGES)
    assert got == [[[3.0], [6.0], [9.0], [12.0]]]


@pytest.mark.parametrize(
    ("kind", "settings", "mode"),
    [
        ("classification", {"pool": "mean", "drop_rate": 0.25}, "experts"),
        ("ordinal", {}, "dense"),
        ("segmentation", {"blocks": [2], "width": 5}, "director"),
        ("multilabel_segmentation", {}, "experts"),
        ("segmentation", {}, "dense"),
    ],
)
def test_a_saved_model_comes_back_bit_by_bit(kind, settings, mode, tmp_path):
    made = TaskModel(encoder(mode), task(kind, range=(0.0, 4095.0), units="HU", axis="axial"), **settings)
    made.save_pretrained(tmp_path)
    again = TaskModel.from_pretrained(tmp_path)
    assert not again.training
    assert torch.equal(logits(again), logits(made))
    assert {name: t.dtype for name, t in again.state_dict().items()} == {
        name: t.dtype for name, t in made.state_dict().items()
    }
    assert again.task == made.task
    assert again.describe() == made.describe()
    assert again.normalization == made.normalization
    assert {layer.mode for layer in again.modules() if isinstance(layer, DEXMlp)} == {mode} - {"dense"}
    said = again.encoder.pretrained_cfg
    assert {name: said[name] for name in ("mean", "std", "interpolation")} == {
        name: made.encoder.pretrained_cfg[name] for name in ("mean", "std", "interpolation")
    }


def test_the_encoder_in_a_saved_model_is_opened_by_itself(tmp_path):
    made = model()
    made.save_pretrained(tmp_path)
    alone = DEXVisionTransformer.from_pretrained(tmp_path)
    assert torch.equal(alone.forward_features(IMAGES), made.eval().encoder.forward_features(IMAGES))
    with_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert torch.equal(with_timm.forward_features(IMAGES), alone.forward_features(IMAGES))
    maps = FeaturePyramid(TaskModel.from_pretrained(tmp_path).encoder)(IMAGES)
    assert [one.shape for one in maps] == [(3, 16, 4, 4)] * 2


def test_an_upcycled_timm_model_is_saved_too(tmp_path):
    vit = VisionTransformer(**TINY)
    made = TaskModel(upcycle(vit, num_experts=2), task("segmentation"))
    made.save_pretrained(tmp_path)
    assert torch.equal(logits(TaskModel.from_pretrained(tmp_path)), logits(made))


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_collapsed_model_gives_the_logits_of_director_mode(kind, tmp_path):
    made = model(kind, "director")
    plain = collapse(made)
    assert not any(isinstance(module, DEXMlp) for module in plain.modules())
    assert torch.equal(logits(plain), logits(made))
    plain.save_pretrained(tmp_path)
    assert torch.equal(logits(TaskModel.from_pretrained(tmp_path)), logits(made))
    set_mode(made.encoder, "experts")
    assert not torch.equal(logits(plain), logits(made))  # so that the test can fail


def test_another_image_size_is_taken_at_loading_and_another_task_is_not(tmp_path):
    model("segmentation").save_pretrained(tmp_path)
    assert logits(TaskModel.from_pretrained(tmp_path, img_size=24), torch.randn(1, 3, 24, 24)).shape == (1, 3, 24, 24)
    with pytest.raises(ValueError, match="num_classes is 3 in a fine-tuned model, got 5"):
        TaskModel.from_pretrained(tmp_path, num_classes=5)


def test_the_card_says_the_task_and_how_to_use_the_model(tmp_path):
    model("segmentation").save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert "background, nerve, vein" in card
    assert "dexcore predict IMAGE --model" in card


def changed(folder, **changes):
    """A saved model whose config.json has other values, by dotted names; None removes."""
    model().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    for name, value in changes.items():
        *path, last = name.split("__")
        place = config
        for step in path:
            place = place[step]
        place.pop(last) if value is None else place.__setitem__(last, value)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"task": None}, "task"),
        ({"task": 3}, "task must be an object"),
        ({"head": []}, "head must be an object"),
        ({"task__kind": "guess"}, "kind must be one of .classification"),
        ({"task__classes": ["a", "a", "b"]}, "classes must be at least one, each another"),
        ({"task__classes": [1, 2, 3]}, "classes must be names"),
        ({"task__modalities": None}, "modalities"),
        ({"task__crop": "left"}, "crop must be one of .center"),
        ({"task__range": [0]}, "range must be the values of black and white"),
        ({"task__kind": "segmentation"}, "crop must be \\\\?\"whole\\\\?\" for masks"),
        ({"task__secret": 1}, "task has the field 'secret'"),
        ({"head__pool": "max"}, "pool must be one of .cls"),
        ({"head__width": 5}, "width is not for a task of kind classification"),
        ({"head__code": "import os"}, "code"),
        ({"task__classes": ["one", "two"]}, r"model.safetensors does not fit the TaskModel: of another shape: head"),
        ({"encoder__class": "Linear"}, "class must be one of .VisionTransformer"),
        ({"class": "nn.Linear"}, "config.json describes a nn.Linear around a DEXVisionTransformer, not a TaskModel"),
        ({"format_version": 99}, "format version 99"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_whole_is_refused_with_file_and_field(changes, told, tmp_path):
    changed(tmp_path, **changes)
    with pytest.raises(ModelFileError, match=told) as info:
        TaskModel.from_pretrained(tmp_path)
    assert str(tmp_path) in str(info.value)


def test_damaged_and_missing_weights_are_refused_by_name(tmp_path):
    model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    del tensors["head.linear.bias"]
    save_file(tensors, weights)
    with pytest.raises(ModelFileError, match=r"missing: head\.linear\.bias"):
        TaskModel.from_pretrained(tmp_path)
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ModelFileError, match=r"model\.safetensors is no whole safetensors file"):
        TaskModel.from_pretrained(tmp_path)


def test_a_pretrained_model_without_a_head_is_no_task_model(tmp_path):
    MaskedAutoencoder(encoder(), 8, 1, 2).save_pretrained(tmp_path)
    with pytest.raises(ModelFileError, match="describes a MaskedAutoencoder around a DEXVisionTransformer, not a Task"):
        TaskModel.from_pretrained(tmp_path)


def test_a_part_that_a_config_cannot_say_is_not_saved(tmp_path):
    made = model()
    made.encoder.blocks[0].mlp = nn.Identity()
    with pytest.raises(NotDescribableError, match="mlp_layer"):
        made.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"encoder": nn.Linear(2, 2)}, TypeError, "encoder must be a timm VisionTransformer"),
        ({"task": {"kind": "classification"}}, TypeError, "task must be a TaskDescription"),
        ({"blocks": [1]}, ValueError, "blocks is not for a task of kind classification"),
        ({"task": task("segmentation"), "pool": "cls"}, ValueError, "pool is not for a task of kind segmentation"),
        ({"encoder": VisionTransformer(**TINY, class_token=False, global_pool="avg"), "pool": "cls"}, ValueError,
         'pool="cls" needs an encoder with a class token; use pool="mean"'),
        ({"drop_rate": 2}, ValueError, "drop_rate must be a number from 0 to 1"),
        ({"encoder": VisionTransformer(**TINY | {"img_size": 4}), "task": task("segmentation")}, ValueError,
         "as one patch, masks need several"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(arguments, error, told):
    arguments = {"encoder": None, "task": task()} | arguments
    arguments["encoder"] = arguments["encoder"] or encoder()
    with pytest.raises(error, match=told):
        TaskModel(**arguments)


def test_the_head_takes_the_class_token_or_the_mean_of_patches_alone():
    tokens = torch.randn(2, 7, 16)
    for pool, expected in (("cls", tokens[:, 0]), ("mean", tokens[:, 3:].mean(dim=1))):
        head = ClassificationHead(16, 5, pool)
        torch.testing.assert_close(head(tokens, 3), head.linear(head.norm(expected)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
@pytest.mark.parametrize("mode", ["experts", "director"])
def test_onnxruntime_gives_the_same_logits_for_any_number_of_images(kind, mode, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    made = model(kind, mode).eval()
    path = tmp_path / "model.onnx"
    batch = ({0: Dim("batch", min=1, max=64)},)
    torch.onnx.export(made, (IMAGES[:2],), path, dynamo=True, dynamic_shapes=batch, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    reference = made.double()
    for count in (1, 3):
        (found,) = session.run(None, {session.get_inputs()[0].name: IMAGES[:count].numpy()})
        assert_close(torch.from_numpy(found), logits(reference, IMAGES[:count].double()), bound=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_an_exported_program_gives_the_same_logits(kind):
    made = model(kind).eval()
    program = torch.export.export(made, (IMAGES[:2],), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    assert torch.equal(program.module()(IMAGES), logits(made))
