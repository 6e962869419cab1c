import numpy as np
import pytest

from dexcore.data import SyntheticMVU, build_store, open_mvu
from dexcore.data.sources.recipe import RecipeError
from dexcore.data.sources.schema import load_recipe
from dexcore.data.synthetic import stored_label

YAML = "name: SyntheticMVU\nsynthetic: {images: 70, size: 64, seed: 3, modalities: [CT, Photo]}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "dataset.yaml").write_text(YAML)
    return tmp_path / "drawn"


def test_generated_images_come_into_a_store_like_any_other_source(folder, tmp_path):
    manifest = build_store(folder, tmp_path / "one", jobs=2)
    images = open_mvu(tmp_path / "one")
    assert (len(images), set(images.split)) == (70, {"train", "heldout"})
    assert images.synthetic.all()
    mvu = SyntheticMVU(["CT", "Photo"], size=64, seed=3)
    for row in range(70):
        image = images[row]
        index = int(image["path"].rsplit("/", 1)[1])
        sample = mvu.sample(index)
        assert image["modality"] == sample.modality
        assert np.abs(image["image"] - sample.image).max() < 0.51 / 255
        assert stored_label(image["source"], image["group"]) == sample.label
    assert build_store(folder, tmp_path / "two", jobs=1).fingerprint == manifest.fingerprint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("synthetic: 20", r"line 1: synthetic is 20, expected \{images: 20000\}"),
        ("synthetic: {size: 64}", "line 1: synthetic lacks images"),
        ("synthetic: {images: 0}", "line 1: synthetic.images is 0, expected a whole number of at least 1"),
        ("synthetic: {images: 9, side: 8}", "line 1: synthetic.side is no key: expected one of images, size"),
        ("synthetic:\n  images: 9\n  modalities: [XR]", "line 3: synthetic.modalities is 'XR', expected one of CT"),
    ],
)
def test_a_drawing_that_cannot_be_is_told_with_its_line(tmp_path, text, words):
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(RecipeError, match=words):
        load_recipe(tmp_path / "dataset.yaml", "drawn")
