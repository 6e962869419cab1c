"""Runs on images of the user's own, without a store."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import metrics, tiny

from dexcore.data.synthetic import SyntheticMVU
from dexcore.engine.config import ConfigError
from dexcore.train import pretrain
from dexcore.train.run.folder import RunFolderError


class Own(torch.utils.data.Dataset):
    """Synthetic images as a user's data set gives them: pairs of a tensor and a label."""

    def __init__(self, count=24, **attributes):
        self.source = SyntheticMVU(size=48)
        self.count = count
        self.__dict__.update(attributes)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        image = torch.from_numpy(self.source.sample(index).image)
        return (image if image.ndim == 2 else image.permute(2, 0, 1)), index % 3


def run_of(out, **changes):
    config = tiny("", out, epochs=2.0)
    return replace(config, **{name: replace(getattr(config, name), **fields) for name, fields in changes.items()})


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Of a run of five steps."""
    folder = tmp_path_factory.mktemp("own") / "run"
    pretrain(run_of(folder), Own())
    return folder


def test_any_dataset_trains_and_is_resumed_to_the_same_losses(run_folder, tmp_path):
    whole = metrics(run_folder)
    assert len(whole) == 5
    assert np.isfinite([line["loss"] for line in whole]).all()
    config = run_of(tmp_path / "resumed", run={"checkpoint_every": 2}, data={"workers": 2})

    class Broken(Own):
        def __getitem__(self, index):
            if self.asked is not None:
                self.asked += 1
                if self.asked > 8 * 3:
                    raise OSError("the disk went away")
            return super().__getitem__(index)

    broken = Broken(asked=0)
    broken.__class__.__name__ = "Own"
    with pytest.raises(OSError, match="the disk went away"):
        pretrain(replace(config, data=replace(config.data, workers=0)), broken)
    pretrain(replace(config, resume=True), Own())
    assert metrics(tmp_path / "resumed") == whole
    with pytest.raises(RunFolderError, match="images: 24 -> 25"):
        pretrain(replace(config, resume=True), Own(25))


def test_the_report_leaves_out_what_compares_modalities_where_there_are_none(run_folder):
    summary = json.loads((run_folder / "summary.json").read_text())
    assert [one["modality"] for one in summary["variance_explained"]["training"]["modalities"]] == ["images"]
    assert {block["nmi"] for block in summary["specialization"]} == {None}
    assert {one["modality"]["accuracy"] for one in summary["nearest_neighbors"]} == {None}
    assert summary["gradient_cosines"] == []
    assert (run_folder / "report.html").is_file()


@pytest.mark.parametrize("channels", [1, 5])
def test_a_model_of_other_channels_trains_and_is_saved_with_them(tmp_path, channels):
    class Stacked(Own):
        def __getitem__(self, index):
            return self.source.sample(index).image.mean(axis=2, keepdims=True).repeat(channels, axis=2)

    dataset = Stacked(source=SyntheticMVU(["Photo"], size=48))
    pretrain(run_of(tmp_path / "run", model={"in_chans": channels}), dataset)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["pretrained_cfg"]["input_size"] == [channels, 32, 32]
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_transform_takes_the_place_of_the_augmentation(run_folder, tmp_path):
    seen = []

    def transform(image):
        seen.append(image.shape)
        return torch.nn.functional.interpolate(image.expand(1, 3, -1, -1), size=(32, 32))[0] + torch.rand(())

    pretrain(run_of(tmp_path / "one"), Own(), transform)
    first, count = metrics(tmp_path / "one"), len(seen)
    assert count == 5 * 8
    pretrain(run_of(tmp_path / "two"), Own(), transform)
    assert metrics(tmp_path / "two") == first
    assert metrics(run_folder) != first


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"store": "somewhere"}}, "data.store: expected none beside a dataset, got 'somewhere'"),
        ({"data": {"flip": "Photos"}}, "data.flip: expected all, none, unsided, or some of images, got 'Photos'"),
    ],
)
def test_what_contradicts_a_dataset_is_refused_before_the_first_step(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        pretrain(run_of(tmp_path / "run", **changes), Own())
    assert not (tmp_path / "run").exists()
