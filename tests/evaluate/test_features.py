"""Features are what the model computes, in whatever batches, and leave it as it was."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from made_models import HALF, Counted, close, dex, pictures
from made_tasks import labelled, write
from timm.models.vision_transformer import VisionTransformer

from dexcore.data import open_mvu
from dexcore.evaluate import Task
from dexcore.evaluate.embedding import (
    Features,
    FeaturesError,
    FeatureTable,
    Preprocessing,
    features,
    features_by_mode,
)
from dexcore.evaluate.modules.on_task import check_task_damage


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


def test_a_store_is_read_row_by_row(tmp_path, store):
    model, dataset = dex(), open_mvu(store)
    table = features(model, dataset, cache=tmp_path)
    assert len(table) == len(dataset) == len(set(table.image))
    assert table.row_key[3] == hashlib.sha256(dataset._store.encoded(3)).hexdigest()
    counted = Counted(model)
    assert features(model, Path(store), cache=tmp_path).mean.tobytes() == table.mean.tobytes()
    assert counted.calls == 0


def test_a_task_whose_images_are_single_is_refused_to_a_model_of_neighbouring_slices(tmp_path):
    model, task = dex(), Task.open(write(tmp_path, labelled(tmp_path, copies=1)))
    features(model, task, cache=tmp_path / "cache")
    model.set_preprocessing(HALF, HALF, slices=3)
    for given in (task, tmp_path / "made.yaml"):
        with pytest.raises(
            FeaturesError, match=r"show slices = 1 .* channels are 3: .* from_pretrained\(folder, in_chans=1"
        ):
            features(model, given, cache=tmp_path / "cache")
    with pytest.raises(FeaturesError, match="channels are 3"):
        check_task_damage({"model": model}, task)


def test_processes_that_read_give_the_same_features(tmp_path):
    rows = labelled(tmp_path, copies=1)
    task, model = Task.open(write(tmp_path, rows)), dex()
    alone = features(model, task, cache=tmp_path / "a", batch_size=5)
    assert features(model, task, cache=tmp_path / "b", batch_size=5, workers=1).mean.tobytes() == alone.mean.tobytes()
    (tmp_path / rows[3]["image"]).write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    with pytest.raises(FeaturesError, match=r"sound-3-0\.png.*line 5"):
        features(model, Task.open(tmp_path / "made.yaml"), cache=tmp_path / "c", workers=1)
