"""Runs whose images are neighbouring slices: trained, measured, resumed and saved as such."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import metrics, tiny

from dexcore.cli import main
from dexcore.data import Modality, open_mvu
from dexcore.data.feed.augment import channel_statistics
from dexcore.data.record import ImageRecord
from dexcore.data.store import StoreError, write_store
from dexcore.engine.config import ConfigError
from dexcore.engine.folder import RunFolderError
from dexcore.evaluate.embedding import FeaturesError, FeatureTable, features
from dexcore.evaluate.modules.sample import setting_of
from dexcore.evaluate.reconstruct import batches, evaluate, image_losses
from dexcore.models import DEXVisionTransformer, MaskedAutoencoder
from dexcore.train import pretrain
from dexcore.train.config import ObjectiveConfig
from dexcore.train.run.export import export_model
from dexcore.view import evaluation_view

CPU = torch.device("cpu")


def volumes():
    """Two volumes of a patient to train on and one of another that is held out, six slices each; and six photos."""
    for number in range(24):
        volume, place = divmod(number, 6)
        photo = volume == 3
        rng = np.random.default_rng(number)
        yield ImageRecord(
            image=0.1 + 0.8 * rng.random((40, 44, 3) if photo else (40, 36), dtype=np.float32),
            modality=Modality.PHOTO if photo else Modality.CT,
            source="Made",
            anatomy="",
            normalization="div255",
            group=f"patient {volume // 2}" if not photo else f"photo {place}",
            path=f"{place}.png" if photo else f"scan-{volume}.nii#axial={place}",
            split="heldout" if volume == 2 or number == 23 else "train",
        )


@pytest.fixture(scope="module")
def volume_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("volumes") / "store"
    write_store(volumes(), folder, name="volumes")
    return folder


def of_slices(store, out, slices=5, **run):
    config = tiny(store, out, **{"epochs": 2.0, "checkpoint_every": 2, "evaluate_every": 1.0} | run)
    model, data = replace(config.model, in_chans=slices), replace(config.data, slices=slices)
    return replace(config, model=model, data=data)


@pytest.fixture(scope="module")
def run_config(volume_store, tmp_path_factory):
    """Of a run of five steps on five slices, done."""
    config = of_slices(volume_store, tmp_path_factory.mktemp("slices") / "run")
    assert pretrain(config).finished
    return config


def test_a_run_on_slices_is_the_same_with_workers_without_a_cache_and_resumed(run_config, tmp_path):
    whole = metrics(run_config.out)
    assert len(whole) == 5
    assert np.isfinite([line["loss"] for line in whole]).all()
    pretrain(replace(run_config, out=str(tmp_path / "two"), data=replace(run_config.data, workers=2, cache=0.0)))
    assert metrics(tmp_path / "two") == whole
    shutil.rmtree(tmp_path / "two" / "checkpoints" / "step-00000005")
    pretrain(replace(run_config, out=str(tmp_path / "two"), resume=True))
    assert metrics(tmp_path / "two") == whole
    weights = [Path(out) / "model" / "model.safetensors" for out in (run_config.out, tmp_path / "two")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_run_is_not_resumed_on_other_slices(volume_store, tmp_path):
    config = of_slices(volume_store, tmp_path / "run", slices=3, evaluate_every=0.0)
    pretrain(config)
    alone = replace(config, resume=True, data=replace(config.data, slices=1))
    with pytest.raises(RunFolderError, match=r"data\.slices: 3 -> 1"):
        pretrain(alone)
    pretrain(replace(alone, resume=False, out=str(tmp_path / "alone")))
    digests = [json.loads((tmp_path / run / "comparison.json").read_text())["order_sha256"] for run in ("run", "alone")]
    assert digests[0] != digests[1]
    assert metrics(tmp_path / "run") != metrics(tmp_path / "alone")
    renamed = [replace(record, path=f"{record.path}.png") for record in volumes()]
    write_store(renamed[:6] + list(volumes())[6:], tmp_path / "renamed", name="volumes")
    assert open_mvu(tmp_path / "renamed").fingerprint == open_mvu(volume_store).fingerprint
    with pytest.raises(RunFolderError, match=r"data\.store: the images are not those"):
        pretrain(replace(config, resume=True, data=replace(config.data, store=str(tmp_path / "renamed"))))


def test_the_model_is_measured_on_the_slices_that_it_was_trained_on(run_config, volume_store):
    images = open_mvu(volume_store, slices=5)
    alone = open_mvu(volume_store)
    model = MaskedAutoencoder.from_pretrained(Path(run_config.out) / "model")
    rows = np.arange(len(images))
    (batch,) = batches(images, rows, model, run_config.setting)
    names = {path: row for row, path in enumerate(images.path)}
    statistics = channel_statistics("imagenet", 1)
    for place, expected in {1: [0, 0, 1, 2, 3], 5: [3, 4, 5, 5, 5]}.items():
        seen = batch.images[names[f"scan-0.nii#axial={place}"]]
        slices = [alone.read(names[f"scan-0.nii#axial={one}"]) for one in expected]
        made = torch.cat([evaluation_view(one, 32, (0.449,), (0.226,)) for one in slices])
        assert (seen - made).abs().max() < 1e-3
        assert torch.equal(seen[2], evaluation_view(slices[2], 32, *statistics)[0])
    heldout = np.flatnonzero(images.split == "heldout")
    assert torch.equal(
        model.preprocess(images.read(names["scan-2.nii#axial=3"])), batch.images[names["scan-2.nii#axial=3"]]
    )
    told = [json.loads(line) for line in (Path(run_config.out) / "heldout.jsonl").read_text().splitlines()]
    shown = np.concatenate([heldout[images.modality[heldout] == one] for one in np.unique(images.modality[heldout])])
    shown = np.concatenate([shown[[0, 2, 5]], shown[6:]])
    losses = [
        image_losses(model, one, run_config.setting, CPU) for one in batches(images, shown, model, run_config.setting)
    ]
    assert told[-1]["loss"] == pytest.approx(float(np.concatenate(losses).mean()), rel=1e-5)
    with pytest.raises(ValueError, match="images must show slices = 5, as the model was trained, got 1"):
        next(batches(alone, rows, model, run_config.setting))


def test_the_report_shows_the_middle_slice(volume_store, tmp_path):
    config = of_slices(volume_store, tmp_path, slices=3)
    images = open_mvu(volume_store, slices=3)
    model = MaskedAutoencoder(
        DEXVisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2), 16, 1, 2
    )
    examples = evaluate(model, images, config.setting, CPU).examples
    middle = int(np.flatnonzero(images.path == "scan-2.nii#axial=2")[0])
    view = evaluation_view(open_mvu(volume_store).read(middle), 32, (0.0,), (1.0,))[0].numpy()
    assert np.abs(examples.input[0] - view[..., None]).max() < 1e-6


def test_the_saved_model_says_that_its_channels_are_slices(run_config, tmp_path):
    folder = Path(run_config.out) / "model"
    said = json.loads((folder / "config.json").read_text())
    assert (said["slices"], said["pretrained_cfg"]["input_size"]) == (5, [5, 32, 32])
    card = (folder / "README.md").read_text()
    assert "5 channels (so many neighbouring slices of a volume, the image's own in the middle)" in card
    assert "each [H, W, 5], slices of a volume:" in card
    for model in (MaskedAutoencoder, DEXVisionTransformer):
        assert setting_of(MaskedAutoencoder.from_pretrained(folder)).slices == 5
        assert model.from_pretrained(folder, img_size=64).vision_transformer.input_slices == 5
    export_model(Path(run_config.out), tmp_path / "early", step=4)
    for other in (Path(run_config.out) / "model-best", tmp_path / "early"):
        assert json.loads((other / "config.json").read_text())["slices"] == 5


def test_features_of_a_store_are_of_its_slices_and_single_images_are_refused(run_config, volume_store, tmp_path):
    folder, out = Path(run_config.out) / "model", tmp_path / "features.parquet"
    command = ["embed", str(volume_store), "--model", str(folder), "--out", str(out), "--device", "cpu"]
    assert main([*command, "--cache", str(tmp_path / "cache")]) == 0
    table, images = FeatureTable.load(out), open_mvu(volume_store, slices=5)
    model = DEXVisionTransformer.from_pretrained(folder)
    with torch.no_grad():
        tokens = model.forward_features(model.preprocess([images.read(row) for row in range(len(images))]))
    assert list(table.image) == images.path.tolist()
    assert np.abs(table.cls - tokens[:, 0].numpy()).max() < 1e-4
    assert np.array_equal(features(model, volume_store, cache=tmp_path / "cache").mean, table.mean)
    alone = open_mvu(volume_store)
    for given in (alone, [alone.read(0)]):
        with pytest.raises(FeaturesError, match=r"the images show slices = 1 of a volume, the model's channels are 5"):
            features(model, given, cache=tmp_path / "cache")
    single = DEXVisionTransformer.from_pretrained(folder, in_chans=1)
    repeated = np.repeat(alone.read(0)[..., None], 5, axis=2)
    with torch.no_grad():
        expected = model(model.preprocess(repeated)[None])
        assert torch.allclose(single(single.preprocess(alone.read(0))[None]), expected, atol=1e-5)
    with pytest.raises(FeaturesError, match=r"the images show slices = 5 of a volume, the model's channels are 1"):
        features(single, images, cache=tmp_path / "cache")


def test_a_teacher_sees_the_slices_that_the_run_shows(run_config, volume_store, tmp_path):
    config = of_slices(volume_store, tmp_path / "taught", slices=3, evaluate_every=0.0)
    encoder = DEXVisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=0)
    for slices in (1, 3):
        encoder.set_preprocessing((0.5,) * 3, (0.5,) * 3, slices=slices)
        encoder.save_pretrained(tmp_path / f"teacher-{slices}")
    teachers = {3: "teacher-3", 1: "teacher-1", 5: Path(run_config.out) / "model"}
    taught = {
        slices: replace(config, objective=ObjectiveConfig("distill", str(tmp_path / teacher)))
        for slices, teacher in teachers.items()
    }
    assert pretrain(taught[3]).finished
    for slices in (1, 5):
        words = rf"objective\.teacher: expected one whose channels are data\.slices = 3, got {slices}"
        with pytest.raises(ConfigError, match=words):
            pretrain(replace(taught[slices], out=str(tmp_path / "refused")))


@pytest.mark.parametrize(
    ("section", "fields", "words"),
    [
        ("data", {"slices": 4}, "data.slices: expected an odd number, at least 1, got 4"),
        ("data", {"slices": 0}, "data.slices: expected an odd number, at least 1, got 0"),
        ("data", {"slices": 3}, "model.in_chans: expected data.slices = 3, which are the images' channels, got 5"),
        ("model", {"in_chans": 1}, "model.in_chans: expected data.slices = 5, which are the images' channels, got 1"),
        ("run", {"probe_task": "task.yaml"}, "run.probe_task: expected none with data.slices above 1"),
    ],
)
def test_what_contradicts_slices_is_refused(volume_store, tmp_path, section, fields, words):
    config = of_slices(volume_store, tmp_path / "run")
    with pytest.raises(ConfigError, match=words):
        replace(config, **{section: replace(getattr(config, section), **fields)})


def test_images_that_are_no_slices_are_refused_before_the_first_step(store, tmp_path):
    with pytest.raises(StoreError, match="no two images are neighbouring slices of a volume, expected slices = 1"):
        pretrain(of_slices(store, tmp_path / "run"))
    config = of_slices("", tmp_path / "run")
    with pytest.raises(ConfigError, match=r"data\.slices: expected 1 beside a dataset, .*, got 5"):
        pretrain(config, [np.zeros((40, 40), np.uint8)])
    assert not (tmp_path / "run").exists()
