"""A run on any folder of images: its store is made in the user's cache, and found again."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from runs import metrics, tiny

from dexcore.data.feed.dataset import open_mvu
from dexcore.engine.config import ConfigError
from dexcore.train import pretrain
from dexcore.train.config import DataConfig
from dexcore.train.image_store import folder_store


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twelve films of 80 x 96 pixels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    films = tmp_path / "films"
    films.mkdir()
    for number in range(12):
        pixels = np.random.default_rng(number).integers(20, 250, (80, 96), np.uint8)
        Image.fromarray(pixels).save(films / f"{number}.png")
    return films


def run_on(folder, out, **data):
    config = tiny("", out, epochs=2.0)
    return replace(config, data=replace(config.data, images=str(folder), **data))


def test_a_folder_trains_in_one_command_and_its_store_is_found_again(folder, tmp_path):
    pretrain(run_on(folder, tmp_path / "one", modality="X-ray"))
    (store,) = (tmp_path / "cache" / "dexcore").iterdir()
    images = open_mvu(store)
    assert len(images) == 12
    assert set(images.modality) == {images.modality_names.index("X-ray")}
    shards = {path: path.stat().st_mtime_ns for path in store.glob("*.arrow")}
    pretrain(run_on(folder, tmp_path / "two", modality="X-ray"))
    assert {path: path.stat().st_mtime_ns for path in store.glob("*.arrow")} == shards
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")


def test_a_file_more_makes_it_another_store(folder, capsys):
    before = open_mvu(folder_store(str(folder), "X-ray")).fingerprint
    Image.fromarray(np.random.default_rng(99).integers(20, 250, (80, 96), np.uint8)).save(folder / "more.png")
    store = folder_store(str(folder), "X-ray")
    images = open_mvu(store)
    assert (len(images), images.fingerprint != before) == (13, True)
    assert "13 images kept" in (store / "report.html").read_text()
    assert str(store / "report.html") in capsys.readouterr().err


def test_images_that_do_not_say_their_modality_are_told_what_would_help(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.images: (.|\n)*12 PNG files have no modality"):
        pretrain(run_on(folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"store": "a", "images": "b"}, "data.images: expected none beside data.store, got 'b'"),
        ({"modality": "CT"}, "data.modality: expected none without data.images, got 'CT'"),
    ],
)
def test_what_contradicts_itself_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        DataConfig(**fields)
