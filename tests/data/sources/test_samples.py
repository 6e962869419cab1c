"""The sample images of installed packages: all there, rightly split, and the same store every time."""

import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from dexcore.data import Modality
from dexcore.data.assemble.build import build
from dexcore.data.assemble.options import Options
from dexcore.data.feed.dataset import open_mvu
from dexcore.data.sources.samples import link_packages, sample_recipes
from dexcore.extras import MissingExtraError

_REAL = {Modality.CT, Modality.MR, Modality.XRAY, Modality.ULTRASOUND, Modality.FUNDUS, Modality.PATHOLOGY}


def few(recipe):
    return (
        recipe if recipe.synthetic is None else replace(recipe, synthetic=replace(recipe.synthetic, images=24, size=64))
    )


def build_samples(folder, packages):
    with ThreadPoolExecutor(1) as executor:
        options = Options(name="samples", sources=tuple(map(few, sample_recipes())))
        return build(packages, folder, options, executor=executor).manifest


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    link_packages(folder)
    return folder


@pytest.fixture(scope="module")
def samples(packages, tmp_path_factory):
    store = tmp_path_factory.mktemp("samples") / "store"
    build_samples(store, packages)
    return list(open_mvu(store))


@pytest.fixture(scope="module")
def real(samples):
    return [image for image in samples if not image["synthetic"]]


def file_of(image):
    return image["path"].split("#")[0]


def test_every_listed_file_gives_images(real, packages):
    listed = {path for recipe in sample_recipes() for path in recipe.take}
    assert {file_of(image) for image in real} == listed
    assert all((packages / path).is_file() for path in listed)
    assert not any(image["path"].startswith("/") for image in real)


def test_the_brain_volume_is_cut_along_three_axes_without_its_empty_slices(real):
    paths = [image["path"] for image in real if "mni_icbm152_t1" in image["path"]]
    assert len(paths) == 376  # 444 that are not nearly empty, less 68 mirror images: the template is symmetric
    assert {path.split("#")[1].split("=")[0] for path in paths} == {"sagittal", "coronal", "axial"}


def test_of_a_video_one_frame_in_thirty_is_kept(real):
    paths = [image["path"].split("#")[1] for image in real if "color3d" in image["path"]]
    assert paths == ["0", "30", "60", "90"]


def test_no_file_stands_in_both_splits_and_all_but_pathology_have_both(real):
    splits_by_group, splits = defaultdict(set), defaultdict(set)
    for image in real:
        splits_by_group[image["group"]].add(image["split"])
        splits[image["modality"]].add(image["split"])
    assert all(len(found) == 1 for found in splits_by_group.values())
    assert splits.pop(Modality.PATHOLOGY) == {"train"}
    assert splits == {modality: {"train", "heldout"} for modality in _REAL - {Modality.PATHOLOGY}}


def test_the_modalities_of_dicom_are_its_own(real):
    found = Counter(image["modality"] for image in real if file_of(image).startswith("pydicom"))
    assert found == {"CT": 5, "MR": 13, "X-ray": 2, "Ultrasound": 8}


def test_no_image_is_there_twice(real):
    assert len({image["image"].tobytes() for image in real}) == len(real)


def test_gray_is_stored_as_gray_and_colour_as_colour(real):
    color = {file_of(image).rsplit("/", 1)[1] for image in real if image["image"].ndim == 3}
    assert {"retina.jpg", "ihc.png", "US1_UNCR.dcm"} <= color
    assert all(image["image"].ndim == 2 for image in real if image["modality"] == Modality.MR)


def test_the_leg_is_bone_white_on_black(real):
    leg = next(image["image"] for image in real if "RG3" in image["path"])
    height, width = leg.shape
    bone = leg[height // 2, int(0.45 * width) : int(0.55 * width)].mean()
    air = leg[height // 2, int(0.30 * width) : int(0.35 * width)].mean()
    assert bone > air + 0.3


def test_the_modalities_that_no_package_ships_are_drawn_and_say_so(samples):
    drawn = [image for image in samples if image["synthetic"]]
    assert Counter(image["modality"] for image in drawn) == dict.fromkeys(set(Modality) - _REAL, 6)
    assert {image["source"] for image in drawn} == {"SyntheticMVU"}
    assert {image["split"] for image in drawn} == {"train", "heldout"}


def test_the_store_comes_out_the_same_twice(tmp_path, packages, samples):
    manifest = build_samples(tmp_path / "again", packages)
    again = open_mvu(tmp_path / "again")
    assert manifest.images == len(samples)
    assert all(np.array_equal(one["image"], other["image"]) for one, other in zip(samples, again, strict=True))


def test_a_missing_package_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(MissingExtraError, match=r"nilearn .* pip install 'dexcore\[samples\]'"):
        link_packages(tmp_path)


def test_a_file_that_another_version_has_moved_is_named(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("dexcore.data.sources.samples.PACKAGES", {"scikit-image": "skimage"})
    (tmp_path / "links").mkdir()
    link_packages(tmp_path / "links")
    assert "pydicom/data/test_files/CT_small.dcm is not in the version installed" in caplog.text
    assert "retina.jpg" not in caplog.text
