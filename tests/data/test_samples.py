"""The sample images of installed packages: all there, rightly split, and the same store every time."""

import sys
from collections import defaultdict

import numpy as np
import pytest

from dexcore.data import Modality
from dexcore.data.assemble.filter import reject_reason
from dexcore.data.samples import SAMPLES, build_samples, sample_records, synthetic_records
from dexcore.extras import MissingExtraError

pytestmark = pytest.mark.xdist_group("samples")  # the samples are read once

_REAL = {Modality.CT, Modality.MR, Modality.XRAY, Modality.ULTRASOUND, Modality.FUNDUS, Modality.PATHOLOGY}


@pytest.fixture(scope="module")
def records():
    return list(sample_records())


def test_every_listed_file_gives_images(records):
    groups = {record.group for record in records}
    assert groups == {f"{sample.package}/{sample.file}" for sample in SAMPLES}


def test_images_are_normalized_and_pass_the_filter(records):
    for record in records:
        assert record.image.dtype == np.float32
        assert record.image.min() >= 0
        assert record.image.max() <= 1
        assert reject_reason(record.image, record.modality) is None
        assert not record.synthetic
        assert not record.path.startswith("/")


def test_the_brain_volume_is_cut_along_three_axes_without_its_empty_slices(records):
    paths = [record.path for record in records if "mni_icbm152_t1" in record.path]
    assert len(paths) == 376  # 444 that are not nearly empty, less 68 mirror images: the template is symmetric
    assert {path.split("#")[1].split("=")[0] for path in paths} == {"sagittal", "coronal", "axial"}


def test_of_a_video_one_frame_in_thirty_is_kept(records):
    paths = [record.path.split("#")[1] for record in records if "color3d" in record.path]
    assert paths == ["0", "30", "60", "90"]


def test_no_file_stands_in_both_splits_and_all_but_pathology_have_both(records):
    splits_by_group, splits = defaultdict(set), defaultdict(set)
    for record in records:
        splits_by_group[record.group].add(record.split)
        splits[record.modality].add(record.split)
    assert all(len(found) == 1 for found in splits_by_group.values())
    assert splits.pop(Modality.PATHOLOGY) == {"train"}
    assert splits == {modality: {"train", "heldout"} for modality in _REAL - {Modality.PATHOLOGY}}


def test_no_image_is_there_twice(records):
    assert len({record.image.tobytes() for record in records}) == len(records)


def test_gray_is_stored_as_gray_and_colour_as_colour(records):
    color = {record.group.rsplit("/", 1)[1] for record in records if record.image.ndim == 3}
    assert {"retina.jpg", "ihc.png", "US1_UNCR.dcm"} <= color
    assert all(record.image.ndim == 2 for record in records if record.modality is Modality.MR)


def test_the_leg_is_bone_white_on_black(records):
    leg = next(record.image for record in records if "RG3" in record.path)
    height, width = leg.shape
    bone = leg[height // 2, int(0.45 * width) : int(0.55 * width)].mean()
    air = leg[height // 2, int(0.30 * width) : int(0.35 * width)].mean()
    assert bone > air + 0.3


def test_synthetic_records_fill_the_modalities_that_no_package_ships():
    made = list(synthetic_records(train=2, heldout=1))
    assert {record.modality for record in made} == set(Modality) - _REAL
    assert [record.split for record in made] == ["train"] * 8 + ["heldout"] * 4
    assert all(record.synthetic for record in made)
    with pytest.raises(ValueError, match="train must be at least 0, got -1"):
        list(synthetic_records(train=-1))
    with pytest.raises(TypeError, match="heldout must be a whole number"):
        list(synthetic_records(heldout=1.5))


def test_the_store_holds_every_image_and_comes_out_the_same_twice(tmp_path, records):
    first, second = (build_samples(tmp_path / name, synthetic_train=1, synthetic_heldout=1) for name in ("a", "b"))
    assert first == second
    assert first.images == len(records) + 8
    assert set(first.counts) == set(Modality)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(MissingExtraError, match=r"nilearn .* pip install 'dexcore\[samples\]'"):
        list(sample_records())
