"""Features are kept by content, computed once, and leave the model as it was."""

import hashlib
import logging
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import timm
import torch
from made_tasks import labelled, picture, save, write
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.weight_norm import WeightNorm

import dexcore
from dexcore.data import open_mvu
from dexcore.evaluate import Task
from dexcore.evaluate.embedding import (
    Features,
    FeaturesError,
    FeatureTable,
    Preprocessing,
    features,
    features_by_mode,
    open_model,
)
from dexcore.evaluate.embedding import cache as kept
from dexcore.evaluate.embedding import extract as extraction
from dexcore.evaluate.embedding.cache import features_key
from dexcore.evaluate.embedding.identity import model_hash
from dexcore.evaluate.embedding.view import declared_preprocessing
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder, ModelFileError, TaskDescription, TaskModel
from dexcore.nn import set_expert_mask

HALF = (0.5,) * 3


def dex(seed: int = 0, **keys) -> DEXVisionTransformer:
    torch.manual_seed(seed)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = DEXVisionTransformer(**arguments | keys)
    with torch.no_grad():  # experts apart from each other and from the director
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    model.set_preprocessing(HALF, HALF)
    return model


def pictures(count: int = 9, shape: tuple[int, ...] = (40, 36)) -> list[np.ndarray]:
    return [picture(seed, shape) for seed in range(count)]


class StopsError(RuntimeError):
    pass


class Counted:
    """Counts the forwards of a model, by a hook on all modules: one of its own would be a part of it."""

    hooks: ClassVar[list[Any]] = []

    def __init__(self, model: nn.Module) -> None:
        self.calls, self.part, self.stops = 0, model.patch_embed, -1
        self.hooks.append(register_module_forward_pre_hook(self._count))

    def _count(self, part: nn.Module, _: object) -> None:
        if part is self.part:
            if self.calls == self.stops:
                raise StopsError
            self.calls += 1


@pytest.fixture(autouse=True)
def _counts_no_longer():
    yield
    while Counted.hooks:
        Counted.hooks.pop().remove()


def close(a: np.ndarray, b: np.ndarray, share: float = 1e-4) -> bool:
    """Within what `features_by_mode` states."""
    return np.sqrt(np.square(a - b).max()) <= share * np.sqrt(np.square(b).mean())


def test_the_table_holds_what_timm_computes(tmp_path):
    model, images = dex(), pictures(3)
    found = features_by_mode(model, images, cache=tmp_path, tokens=True)
    shown = model.preprocess(images)
    for mode in ("experts", "director"):
        for layer in (block.mlp for block in model.blocks):
            layer.set_mode(mode)
        with torch.no_grad():
            tokens = model.eval().forward_features(shown).numpy()
        table = found[mode]
        assert close(table.cls, tokens[:, 0])
        assert close(table.mean, tokens[:, 1:].mean(1))
        assert np.abs(table.tokens([2, 0]) - tokens[[2, 0], 1:]).max() < 4e-3  # of float16
        assert (table.grid, table.mode, table.image) == ((4, 4), mode, ("0", "1", "2"))
    gates = found["experts"].gates
    assert gates.shape == (3, 2, 8)
    assert ((gates > 0).sum(2) == 2).all()
    assert np.allclose(gates.sum(2), 1)
    assert found["director"].gates is None
    assert not close(found["director"].cls, found["experts"].cls)


def test_a_hit_runs_no_model_and_gives_the_same_bytes(tmp_path):
    model, images = dex(), pictures()
    first = features(model, images, cache=tmp_path)
    counted = Counted(model)
    again = features(model, images[::-1], cache=tmp_path, batch_size=2)
    assert counted.calls == 0
    assert again.mean[::-1].tobytes() == first.mean.tobytes()
    assert again.gates[::-1].tobytes() == first.gates.tobytes()
    more = features(model, [*images, picture(77, (40, 36))], cache=tmp_path)
    assert counted.calls == 1
    assert more.mean[:-1].tobytes() == first.mean.tobytes()


def changed(model: DEXVisionTransformer, name: str) -> None:
    with torch.no_grad():
        model.state_dict()[name].flatten()[-1] += 1e-3


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda model: changed(model, "blocks.1.mlp.router.weight"), {}),
        (lambda model: changed(model, "blocks.0.mlp.experts.fc2.bias"), {}),
        (lambda model: setattr(model.blocks[1].mlp, "top_k", 3), {}),
        (lambda model: setattr(model.blocks[0].norm1, "eps", 1e-3), {}),
        (lambda model: model.set_preprocessing(HALF, (0.4, 0.5, 0.5)), {}),
        (lambda model: setattr(model.blocks[0].norm1, "mode", "other"), {}),
        (lambda model: setattr(model.blocks[0].mlp.director, "keep", 2), {}),
        (lambda model: setattr(model.blocks[0].attn, "told", {"scale": 2}), {}),
        (lambda model: setattr(model.blocks[0].attn, "beside", [torch.ones(2)]), {}),
        (lambda model: WeightNorm.apply(model.blocks[0].norm1, "weight", 0), {}),
        (lambda model: set_expert_mask(model, [[i != 1 for i in range(8)]] * 2), {}),
        (lambda model: set_expert_mask(model, [[i != 1 for i in range(8)]] * 2, "zero"), {}),
        (lambda model: None, {"mode": "director"}),
        (lambda model: None, {"precision": "bf16"}),
        (lambda model: None, {"crop": "whole"}),
        (lambda model: None, {"preprocessing": Preprocessing((32, 32), HALF, HALF, "bicubic")}),
        (lambda model: None, {"preprocessing": Preprocessing((32, 32), HALF, HALF, "bilinear", crop_pct=0.9)}),
    ],
    ids=[
        "weight",
        "bias",
        "top_k",
        "eps",
        "std",
        "attribute",
        "keep",
        "dict",
        "tensor",
        "hook",
        "mask",
        "mask of zeros",
        "mode",
        "precision",
        "crop",
        "filter",
        "crop_pct",
    ],
)
def test_whatever_changes_a_feature_is_a_miss(tmp_path, change, options):
    model, images = dex(), pictures(2)
    before = features(model, images, cache=tmp_path)
    change(model)
    counted = Counted(model)
    after = features(model, images, cache=tmp_path, **options)
    assert counted.calls == 1
    assert after.key != before.key


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_functions_of_a_model_are_in_its_hash():
    def made(*activations):
        torch.manual_seed(0)
        return nn.Sequential(*(nn.TransformerEncoderLayer(4, 1, 4, activation=each) for each in activations))

    hashes = [
        model_hash(made(*pair))
        for pair in ((F.silu, F.elu), (F.elu, F.silu), (F.silu, F.silu), (partial(F.elu, alpha=2), F.silu))
    ]
    assert len(set(hashes)) == 4
    assert model_hash(made(F.silu, F.elu)) == hashes[0]


def test_a_dex_layers_mode_and_what_acts_in_training_alone_are_not_in_the_hash():
    model = dex()
    before = model_hash(model)
    for layer in (block.mlp for block in model.blocks):
        layer.set_mode("director")
        layer.aux, layer.keep, layer.align, layer.backend = "always", "none", "cosine", "eager"
    model.preprocess(pictures(1))
    model(torch.zeros(1, 3, 32, 32))
    assert model_hash(model) == before


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_convnext2", "test_mambaout"])
def test_a_model_of_timms_needs_no_key_and_keeps_its_hash(name):
    model = timm.create_model(name, num_classes=0).eval()
    before = model_hash(model)
    with torch.no_grad():
        model.forward_features(torch.zeros(1, *model.pretrained_cfg["input_size"]))
    assert model_hash(model) == before


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def test_code_of_others_needs_a_key_and_the_weights_still_count(tmp_path):
    def with_hook(model):
        model.blocks[0].register_forward_hook(lambda *given: given[-1] * 2)

    def with_module(model):
        model.norm = nn.Sequential(model.norm, Twice())

    def with_forward(model):
        model.norm.forward = lambda x: x

    for change in (with_hook, with_module, with_forward):
        model = dex()
        change(model)
        with pytest.raises(FeaturesError, match=r"test_features\..* expected key="):
            features(model, pictures(1), cache=tmp_path)
    model = dex()
    with_module(model)
    first = features(model, pictures(1), cache=tmp_path, key="twice")
    assert features(model, pictures(1), cache=tmp_path, key="other").key != first.key
    changed(model, "blocks.0.mlp.router.weight")
    assert features(model, pictures(1), cache=tmp_path, key="twice").key != first.key


def test_versions_and_how_torch_rounds_products_are_in_the_key(monkeypatch):
    view, cpu = Preprocessing((32, 32), HALF, HALF), torch.device("cpu")

    def key():
        return features_key("model", "", view, "fp32", cpu)

    keys = [key()]
    products = torch.backends.mkldnn.matmul
    before = products.fp32_precision
    try:
        products.fp32_precision = "bf16"
        keys.append(key())
    finally:
        products.fp32_precision = before
    assert key() == keys[0]
    for name in ("torch", "timm", "Pillow", "pydicom"):
        with monkeypatch.context() as patch:
            patch.setattr(kept, "package_version", lambda asked, name=name: "0" if asked == name else "1")
            keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(dexcore, "__version__", "0")
        keys.append(key())
    assert len(set(keys)) == len(keys)


def test_masked_features_are_kept_apart_from_others(tmp_path):
    model, images = dex(), pictures(2)
    free = features(model, images, cache=tmp_path)
    keys = {free.key}
    for out in range(2):
        for instead in ("reroute", "zero", "director"):
            with set_expert_mask(model, [[i != out for i in range(8)]] * 2, instead):
                keys.add(features(model, images, cache=tmp_path).key)
    assert len(keys) == 7
    calls = Counted(model)
    assert np.array_equal(features(model, images, cache=tmp_path).mean, free.mean)
    assert calls.calls == 0


def test_one_pixel_is_a_miss_of_one_image(tmp_path):
    model = dex()
    task = Task.open(write(tmp_path, labelled(tmp_path, copies=1)))
    before = features(model, task, cache=tmp_path / "cache")
    changed_image = task.rows[4].image
    pixels = picture(4)
    pixels[0, 0] ^= 1
    save(tmp_path / changed_image, pixels)
    counted = Counted(model)
    after = features(model, task, cache=tmp_path / "cache", batch_size=1)
    assert counted.calls == 1
    differ = [name for row, name in enumerate(after.image) if after.row_key[row] != before.row_key[row]]
    assert differ == [changed_image]


def test_equal_images_are_computed_once(tmp_path):
    model = dex()
    counted = Counted(model)
    table = features(model, [picture(0), picture(1), picture(0)], cache=tmp_path, batch_size=1)
    assert counted.calls == 2
    assert np.array_equal(table.mean[0], table.mean[2])


def test_the_model_is_left_as_it_was_also_after_an_error(tmp_path):
    model = dex(drop_path_rate=0.5).train()
    model.blocks[0].eval()
    for layer in (block.mlp for block in model.blocks):
        layer.noise_std = 2.0

    def state():
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        digest = hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors.values()))
        flags = [(part.training, getattr(part, "mode", "")) for part in model.modules()]
        return digest.hexdigest(), flags, [parameter.requires_grad for parameter in model.parameters()]

    before = state()
    one = features_by_mode(model, pictures(4), cache=tmp_path / "a")
    two = features_by_mode(model, pictures(4), cache=tmp_path / "b")
    assert one["experts"].mean.tobytes() == two["experts"].mean.tobytes()  # neither noise nor stochastic depth
    assert state() == before
    with torch.no_grad():
        model.blocks[1].mlp.director.fc2.bias.fill_(float("inf"))
    before = state()
    with pytest.raises(FeaturesError, match="0: its features are not finite, and those of 3 more"):
        features(model, pictures(4), mode="director", cache=tmp_path / "a")
    assert state() == before


def test_batches_and_order_do_not_matter(tmp_path):
    model, images = dex(), pictures(9)
    whole = features(model, images, cache=tmp_path / "64", batch_size=64)
    for size in (1, 7):
        order = np.random.default_rng(size).permutation(len(images))
        part = features(model, [images[i] for i in order], cache=tmp_path / str(size), batch_size=size)
        for name in ("mean", "cls", "gates"):
            assert close(getattr(part, name), getattr(whole, name)[order])


def test_what_was_computed_before_an_error_is_kept_and_the_end_is_the_same(tmp_path, monkeypatch):
    model, images = dex(), pictures(9)
    whole = features(model, images, cache=tmp_path / "whole", batch_size=2)
    monkeypatch.setattr(extraction, "_STREAM_ROWS", 2)
    counted = Counted(model)
    counted.stops = 3
    with pytest.raises(StopsError):
        features(model, images, cache=tmp_path / "cut", batch_size=2)
    counted.stops = -1
    resumed = features(model, images, cache=tmp_path / "cut", batch_size=2)
    assert counted.calls == 3 + 2  # of 5 batches three were kept
    assert resumed.mean.tobytes() == whole.mean.tobytes()
    assert resumed.gates.tobytes() == whole.gates.tobytes()


def test_a_damaged_stream_is_a_miss(tmp_path, caplog):
    model, images = dex(), pictures(3)
    first = features(model, images, cache=tmp_path)
    (stream,) = tmp_path.rglob("*.arrow")
    stream.write_bytes(stream.read_bytes()[:-200])
    with caplog.at_level(logging.WARNING):
        again = features(model, images, cache=tmp_path)
    assert "is not used" in caplog.text
    assert again.mean.tobytes() == first.mean.tobytes()


def test_a_table_is_read_as_it_was_written(tmp_path):
    table = features(dex(), pictures(3), cache=tmp_path)
    table.save(tmp_path / "features.parquet", {"modality": ["CT", "MR", "CT"]})
    read = FeatureTable.load(tmp_path / "features.parquet")
    assert (read.image, read.row_key, read.key) == (table.image, table.row_key, table.key)
    assert (read.mode, read.crop) == ("experts", "center")
    for name in ("mean", "cls", "gates"):
        assert np.array_equal(getattr(read, name), getattr(table, name))
    assert np.array_equal(read.of(["2", "0"]).mean, table.mean[[2, 0]])
    with pytest.raises(FeaturesError, match="features of 7 are not in the table of 3 images"):
        read.of(["1", "7"])
    with pytest.raises(FeaturesError, match="no patch tokens"):
        read.tokens([0])
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(FeaturesError, match=r"other\.parquet: holds no features"):
        FeatureTable.load(tmp_path / "other.parquet")


class Places(VisionTransformer):
    """Its tokens are the row and the column of their patch; what comes before them is -1."""

    def forward_features(self, x, *_, **__):
        rows, columns = self.patch_embed.grid_size
        place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
        patches = place.flatten(0, 1).float().expand(len(x), -1, -1)
        return torch.cat([-torch.ones(len(x), self.num_prefix_tokens, 2), patches], 1)


@pytest.mark.parametrize("registers", [0, 4])
def test_each_token_is_at_its_patch_also_with_registers_and_in_oblong_images(tmp_path, registers):
    model = Places(img_size=(24, 40), patch_size=8, embed_dim=2, depth=1, num_heads=1, reg_tokens=registers)
    view = Preprocessing((24, 40), HALF, HALF, "bilinear")
    table = features(model, pictures(2), preprocessing=view, tokens=True, cache=tmp_path, key="places")
    assert table.grid == (3, 5)
    tokens = table.tokens([1]).reshape(3, 5, 2)
    assert all(tuple(tokens[row, column]) == (row, column) for row in range(3) for column in range(5))
    assert (table.cls == -1).all()
    assert np.array_equal(table.mean[0], [1, 2])


def test_one_picture_of_8_bits_16_bits_and_floats_has_the_same_features(tmp_path):
    eight = picture(3, (50, 40))
    images = [eight, eight.astype(np.uint16) * 257, eight.astype(np.float32) / 255, torch.from_numpy(eight)]
    for view in (None, Preprocessing((32, 32), HALF, HALF, "bicubic", crop_pct=0.9)):
        table = features(dex(), images, preprocessing=view, cache=tmp_path)
        assert all(close(table.mean[row], table.mean[0]) for row in range(4))


def test_values_outside_the_range_are_refused(tmp_path):
    with pytest.raises(FeaturesError, match=r"item 1 .*must lie in"):
        features(dex(), [picture(0), picture(1).astype(np.float32)], cache=tmp_path)


@pytest.mark.parametrize("shape", [(50, 70, 3), (33, 31, 3)])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224.augreg_in21k", "resnet18.tv_in1k"])
def test_the_view_of_timms_models_is_timms(name, shape):
    model = timm.create_model(name, num_classes=0)
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    pixels = 64 + picture(1, shape) // 2  # Pillow cuts what overshoots 8 bits between its two passes
    ours, theirs = declared_preprocessing(model)(pixels), transform(Image.fromarray(pixels))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2 / 255 / 0.22  # timm's is rounded to 8 bits


def test_the_whole_image_can_be_asked_for(tmp_path):
    image = np.zeros((32, 64), np.uint8)
    image[:, :8] = 255  # outside the centre square
    blank = np.zeros((32, 64), np.uint8)
    model = dex()
    centre, whole = (features(model, [image, blank], crop=crop, cache=tmp_path) for crop in ("center", "whole"))
    assert close(centre.mean[0], centre.mean[1])
    assert not close(whole.mean[0], whole.mean[1])


def test_a_callable_gives_features_and_is_kept_by_its_key_alone(tmp_path):
    calls = []

    def model(images):
        calls.append(len(images))
        return Features(tokens=images.flatten(2).transpose(1, 2))

    ask = partial(features, model, pictures(3), preprocessing=Preprocessing((4, 4), HALF, HALF), cache=tmp_path)
    table = ask(tokens=True)
    assert table.mean.shape == (3, 3)
    assert table.grid == (4, 4)
    assert table.cls is None
    assert not list(tmp_path.rglob("*.arrow"))  # nothing is left that nobody would find again
    ask(key="v1")
    ask(key="v1")
    assert calls == [3, 3]
    ask(key="v2")
    assert calls == [3, 3, 3]
    with pytest.raises(TypeError, match="must be Features"):
        features(lambda images: images, pictures(1), preprocessing=Preprocessing((4, 4), HALF, HALF), cache=tmp_path)
    with pytest.raises(FeaturesError, match="does not say how its images are made"):
        features(model, pictures(1), cache=tmp_path)


def test_an_unreadable_image_is_named_or_left_out(tmp_path, caplog):
    task_rows = labelled(tmp_path, copies=1)
    (tmp_path / task_rows[3]["image"]).write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    task = Task.open(write(tmp_path, task_rows))
    with pytest.raises(FeaturesError, match=r"sound-3-0\.png.*line 5"):
        features(dex(), task, cache=tmp_path / "cache")
    table = features(dex(), task, cache=tmp_path / "cache", skip_unreadable=True)
    assert len(table) == len(task_rows) - 1
    assert "left out: sound-3-0.png" in caplog.text


def test_a_model_is_opened_by_its_folder_or_its_name(tmp_path):
    model = dex()
    model.save_pretrained(tmp_path / "run" / "model")
    MaskedAutoencoder(dex(), decoder_dim=16, decoder_depth=1, decoder_heads=2).save_pretrained(tmp_path / "mae")
    dense = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=0)
    MaskedAutoencoder(dense, decoder_dim=16, decoder_depth=1, decoder_heads=2).save_pretrained(tmp_path / "dense")
    found = features(tmp_path / "run", pictures(2), cache=tmp_path)
    assert found.mean.tobytes() == features(model, pictures(2), cache=tmp_path / "b").mean.tobytes()
    assert isinstance(open_model(tmp_path / "mae"), DEXVisionTransformer)
    assert type(open_model(tmp_path / "dense")) is VisionTransformer
    about = TaskDescription("made", "classification", ("sound", "ill"), ("X-ray",))
    TaskModel(MaskedAutoencoder.from_pretrained(tmp_path / "dense").encoder, about).save_pretrained(tmp_path / "tuned")
    assert type(open_model(tmp_path / "tuned")) is VisionTransformer
    with pytest.raises(FeaturesError, match="expected weights beside it"):
        open_model("vit_tiny_patch16_224")
    with pytest.raises(FeaturesError, match="no_such: expected a folder"):
        open_model("no_such")
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        open_model("vit_tiny_patch16_224", tmp_path / "none.pth")


def test_weights_of_a_file_are_loaded_and_others_refused(tmp_path):
    one = timm.create_model("test_vit", num_classes=5)
    torch.save({"model": one.state_dict()}, tmp_path / "vit.pth")
    loaded = open_model("test_vit", tmp_path / "vit.pth")
    assert torch.equal(loaded.blocks[0].mlp.fc1.weight, one.blocks[0].mlp.fc1.weight)
    net = timm.create_model("test_resnet")
    torch.save(net.state_dict(), tmp_path / "net.pth")
    loaded = open_model("test_resnet", tmp_path / "net.pth")
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    with pytest.raises(ModelFileError, match="does not fit"):
        open_model("test_resnet", tmp_path / "vit.pth")
    drawn = [open_model("test_vit", "random", seed=seed).blocks[0].mlp.fc1.weight for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_store_is_read_row_by_row(tmp_path, store):
    model, dataset = dex(), open_mvu(store)
    table = features(model, dataset, cache=tmp_path)
    assert len(table) == len(dataset) == len(set(table.image))
    assert table.row_key[3] == hashlib.sha256(dataset._store.encoded(3)).hexdigest()
    counted = Counted(model)
    assert features(model, Path(store), cache=tmp_path).mean.tobytes() == table.mean.tobytes()
    assert counted.calls == 0


def test_processes_that_read_give_the_same_features(tmp_path):
    rows = labelled(tmp_path, copies=1)
    task, model = Task.open(write(tmp_path, rows)), dex()
    alone = features(model, task, cache=tmp_path / "a", batch_size=5)
    assert features(model, task, cache=tmp_path / "b", batch_size=5, workers=1).mean.tobytes() == alone.mean.tobytes()
    (tmp_path / rows[3]["image"]).write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    with pytest.raises(FeaturesError, match=r"sound-3-0\.png.*line 5"):
        features(model, Task.open(tmp_path / "made.yaml"), cache=tmp_path / "c", workers=1)
