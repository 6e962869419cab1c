"""SyntheticMVU: deterministic, in range, and its labels mean the same in every modality."""

import cv2
import numpy as np
import pytest

from dexcore.data import Modality, SyntheticMVU
from dexcore.data.filter import reject_reason

_MODALITIES = SyntheticMVU().modalities
_COLOR = {Modality.ENDOSCOPY, Modality.PHOTO}


def _samples(modality, count=40, size=128):
    source = SyntheticMVU([modality], size=size)
    return [source.sample(index) for index in range(count)]


def test_it_draws_what_no_package_ships():
    assert set(_MODALITIES) == {Modality.PET, Modality.OCT, Modality.ENDOSCOPY, Modality.PHOTO}


def test_an_image_depends_on_seed_and_index_alone():
    source = SyntheticMVU(size=64, seed=3)
    backwards = [source.sample(index) for index in reversed(range(8))][::-1]
    for index, sample in enumerate(backwards):
        again = SyntheticMVU(size=64, seed=3).sample(index)
        np.testing.assert_array_equal(sample.image, again.image)
        np.testing.assert_array_equal(sample.mask, again.mask)
        assert sample.label == again.label
    images = [sample.image.tobytes() for sample in backwards]
    others = [SyntheticMVU(size=64, seed=4).sample(index).image.tobytes() for index in range(8)]
    assert len({*images, *others}) == 16


def test_modalities_take_turns():
    source = SyntheticMVU([Modality.PHOTO, Modality.PET], size=64)
    assert [source.sample(index).modality for index in range(4)] == [Modality.PHOTO, Modality.PET] * 2


@pytest.mark.parametrize("modality", _MODALITIES)
def test_images_lie_in_range_and_pass_the_filter(modality):
    for sample in _samples(modality):
        assert sample.image.dtype == np.float32
        assert sample.image.shape == ((128, 128, 3) if modality in _COLOR else (128, 128))
        assert sample.image.min() >= 0
        assert sample.image.max() <= 1
        assert reject_reason(sample.image, modality) is None


@pytest.mark.parametrize("modality", _MODALITIES)
def test_a_compact_label_counts_the_lesions_in_the_mask(modality):
    seen = set()
    for sample in _samples(modality, count=60, size=256):
        if sample.label <= 3:
            count, _ = cv2.connectedComponents(sample.mask.astype(np.uint8))
            assert count - 1 == sample.label
            seen.add(sample.label)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize("modality", _MODALITIES)
def test_spread_lesions_are_larger_than_as_many_compact_ones(modality):
    area = {label: [] for label in range(7)}
    for sample in _samples(modality, count=80):
        area[sample.label].append(sample.mask.mean())
    for count in (1, 2, 3):
        assert np.mean(area[3 + count]) > 1.8 * np.mean(area[count])


@pytest.mark.parametrize(
    ("modality", "sign"),
    [(Modality.PET, 1), (Modality.OCT, -1), (Modality.ENDOSCOPY, 0), (Modality.PHOTO, -1)],
)
def test_lesions_can_be_seen(modality, sign):
    """Inside differs from the ring around it: hot in PET, dark in OCT and on skin, either in endoscopy."""
    contrasts = []
    for sample in _samples(modality, count=30, size=256):
        if sample.label:
            gray = sample.image.mean(axis=2) if sample.image.ndim == 3 else sample.image
            mask = sample.mask.astype(np.uint8)
            ring = (cv2.dilate(mask, np.ones((13, 13))) - cv2.dilate(mask, np.ones((5, 5)))).astype(bool)
            contrasts.append(gray[sample.mask].mean() - gray[ring].mean())
    if sign:
        assert np.mean(np.array(contrasts) * sign > 0.02) > 0.9
    else:
        assert np.mean(np.abs(contrasts) > 0.01) > 0.8


def test_labels_are_shared_and_all_occur():
    for modality in _MODALITIES:
        labels = {sample.label for sample in _samples(modality, count=60, size=32)}
        assert labels == set(range(len(SyntheticMVU.labels)))


def test_records_say_that_they_are_synthetic():
    source = SyntheticMVU(size=64)
    records = [source.record(index, "heldout") for index in range(4)]
    assert all(record.synthetic and record.source == "SyntheticMVU" for record in records)
    assert {record.split for record in records} == {"heldout"}
    assert len({record.group for record in records}) == 4
    assert records[0].normalization == "percentile_zscore_minmax"  # PET
    np.testing.assert_array_equal(records[1].image, source.sample(1).image)


@pytest.mark.parametrize("size", [32, 100, 384])
def test_other_sizes_are_drawn(size):
    for index in range(4):
        sample = SyntheticMVU(size=size).sample(index)
        assert sample.image.shape[:2] == sample.mask.shape == (size, size)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modalities": [Modality.CT]}, r"modalities is \['CT'\], expected at least one of PET"),
        ({"modalities": []}, "modalities is"),
        ({"size": 16}, "size is 16, expected at least 32"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        SyntheticMVU(**arguments)


def test_a_negative_index_is_refused():
    with pytest.raises(ValueError, match="index is -1"):
        SyntheticMVU().sample(-1)
