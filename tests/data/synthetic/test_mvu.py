"""SyntheticMVU: deterministic, in range, and its masks say where the lesions are in every modality."""

from functools import lru_cache

import cv2
import numpy as np
import pytest

from dexcore.data import Modality, SyntheticMVU
from dexcore.data.assemble.filter import foreground_ratio, reject_reason
from dexcore.data.synthetic import stored_label
from dexcore.data.synthetic.contact_sheet import contact_sheet

_COLOR = {Modality.FUNDUS, Modality.PATHOLOGY, Modality.ENDOSCOPY, Modality.PHOTO}
_EIGHT_BIT = set(Modality) - {Modality.CT, Modality.PET, Modality.MR}
_SIZE = 128
every_modality = pytest.mark.parametrize("modality", Modality)


@lru_cache
def _samples(modality):
    source = SyntheticMVU([modality], size=_SIZE)
    return [source.sample(index) for index in range(42)]


def _gray(image):
    return image.mean(axis=2) if image.ndim == 3 else image


def test_without_a_choice_it_draws_all_ten():
    assert SyntheticMVU().modalities == tuple(Modality)


def test_an_image_depends_on_seed_and_index_alone():
    source = SyntheticMVU(tuple(Modality), size=64, seed=3)
    backwards = [source.sample(index) for index in reversed(range(20))][::-1]
    for index, sample in enumerate(backwards):
        again = SyntheticMVU(tuple(Modality), size=64, seed=3).sample(index)
        np.testing.assert_array_equal(sample.image, again.image)
        np.testing.assert_array_equal(sample.mask, again.mask)
        assert sample.label == again.label
    images = [sample.image.tobytes() for sample in backwards]
    other = SyntheticMVU(tuple(Modality), size=64, seed=4)
    assert len({*images, *(other.sample(index).image.tobytes() for index in range(20))}) == 40


def test_modalities_take_turns():
    source = SyntheticMVU([Modality.PHOTO, Modality.CT], size=64)
    assert [source.sample(index).modality for index in range(4)] == [Modality.PHOTO, Modality.CT] * 2


@every_modality
def test_images_are_floats_in_range_and_pass_the_filter(modality):
    for sample in _samples(modality):
        assert sample.image.dtype == np.float32
        assert sample.mask.dtype == bool
        assert sample.mask.shape == (_SIZE, _SIZE)
        assert sample.image.shape == ((_SIZE, _SIZE, 3) if modality in _COLOR else (_SIZE, _SIZE))
        assert 0 <= sample.image.min() < sample.image.max() <= 1
        assert reject_reason(sample.image, modality) is None


@every_modality
def test_each_modality_is_normalized_as_in_the_corpus(modality):
    """Eight-bit pictures hold 256 levels; a CT's air is black and its bone white; percentiles reach 0 and 1."""
    for sample in _samples(modality)[:10]:
        if modality in _EIGHT_BIT:
            levels = sample.image * 255
            np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
        else:
            assert len(np.unique(sample.image)) > 256
            assert np.mean(sample.image > 0.9999) > 0.005
            assert np.mean(sample.image == 0) > 0.005
        if modality is Modality.CT:  # by far the most of the body is fat and soft tissue
            body = sample.image[(sample.image > 0.05) & (sample.image < 0.95)]
            assert np.mean((body > 0.08) & (body < 0.75)) > 0.9
            assert np.mean(sample.image == 0) > 0.3


@pytest.mark.parametrize(
    ("modality", "least", "most"),
    [
        (Modality.CT, 0.25, 0.65),
        (Modality.PET, 0.03, 0.35),
        (Modality.MR, 0.3, 0.75),
        (Modality.XRAY, 0.7, 1.0),
        (Modality.ULTRASOUND, 0.3, 0.75),
        (Modality.FUNDUS, 0.5, 0.85),
        (Modality.OCT, 0.3, 1.0),
        (Modality.PATHOLOGY, 0.99, 1.0),
        (Modality.ENDOSCOPY, 0.6, 1.0),
        (Modality.PHOTO, 0.95, 1.0),
    ],
)
def test_the_field_of_view_is_the_modalitys(modality, least, most):
    for sample in _samples(modality):
        assert least <= foreground_ratio(sample.image) <= most


@every_modality
def test_a_label_counts_the_lesions_in_the_mask(modality):
    """Compact ones are apart; spread ones may touch, and are never more than the label says."""
    seen = set()
    for sample in _samples(modality):
        count, _ = cv2.connectedComponents(sample.mask.astype(np.uint8))
        if sample.label <= 3:
            assert count - 1 == sample.label
        else:
            assert 1 <= count - 1 <= sample.label - 3
        seen.add(sample.label)
    assert seen == set(range(len(SyntheticMVU.labels)))


@every_modality
def test_spread_lesions_are_larger_than_as_many_compact_ones(modality):
    area = {label: [] for label in range(7)}
    for sample in _samples(modality):
        area[sample.label].append(sample.mask.mean())
    for count in (1, 2, 3):
        assert np.mean(area[3 + count]) > 1.8 * np.mean(area[count])


@pytest.mark.parametrize(
    ("modality", "sign"),
    [
        (Modality.CT, 0),
        (Modality.PET, 1),
        (Modality.MR, 1),
        (Modality.XRAY, 1),
        (Modality.ULTRASOUND, -1),
        (Modality.FUNDUS, 0),
        (Modality.OCT, -1),
        (Modality.PATHOLOGY, -1),
        (Modality.ENDOSCOPY, 0),
        (Modality.PHOTO, -1),
    ],
)
def test_lesions_can_be_seen(modality, sign):
    """Inside differs from the ring around it: brighter (1), darker (-1), or either by the kind and the organ (0)."""
    contrasts = []
    for sample in _samples(modality):
        if sample.label:
            gray, mask = _gray(sample.image), sample.mask.astype(np.uint8)
            ring = (cv2.dilate(mask, np.ones((9, 9))) - cv2.dilate(mask, np.ones((3, 3)))).astype(bool)
            contrasts.append(gray[sample.mask].mean() - gray[ring].mean())
    if sign:
        assert np.mean(np.array(contrasts) * sign > 0.02) > 0.9
    else:
        assert np.mean(np.abs(contrasts) > 0.01) > 0.8


def test_records_say_that_they_are_synthetic_and_how_they_were_normalized():
    source = SyntheticMVU(tuple(Modality), size=64)
    records = [source.record(index, "heldout") for index in range(10)]
    assert all(record.synthetic and record.source == "SyntheticMVU" for record in records)
    assert {record.split for record in records} == {"heldout"}
    assert len({record.group for record in records}) == 10
    special = {"CT": "hu_window", "PET": "percentile_zscore_minmax", "MR": "percentile_minmax"}
    for record in records:
        assert record.normalization == special.get(record.modality, "div255")
    np.testing.assert_array_equal(records[1].image, source.sample(1).image)


@pytest.mark.parametrize("size", [32, 100, 224])
def test_other_sizes_are_drawn(size):
    source = SyntheticMVU(tuple(Modality), size=size)
    for index in range(10):
        sample = source.sample(index)
        assert sample.image.shape[:2] == sample.mask.shape == (size, size)


def test_the_contact_sheet_shows_every_modality_and_label():
    sheet, step = contact_sheet(size=64), 64 + 3
    assert sheet.dtype == np.uint8
    for up, modality in enumerate(reversed(Modality)):
        source, found = SyntheticMVU([modality], size=64), {}
        for index in range(60):
            sample = source.sample(index)
            found.setdefault(sample.label, sample.image)
            if len(found) == len(SyntheticMVU.labels):
                break
        for label, image in found.items():
            bottom, left = sheet.shape[0] - up * step, sheet.shape[1] - (len(SyntheticMVU.labels) + 1 - label) * step
            cell = sheet[bottom - step :, left:][:64, :64] / 255
            assert np.abs(cell - (image if image.ndim == 3 else image[..., None])).max() < 0.003


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"modalities": ["Dermoscopy"]}, r"modalities is \['Dermoscopy'\], expected at least one of CT, PET, MR"),
        ({"modalities": []}, "modalities is"),
        ({"size": 16}, "size must be from 32 to 16384, got 16"),
        ({"size": 10**9}, "size must be from 32 to 16384"),
        ({"seed": -1}, "seed must be from 0 to"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        SyntheticMVU(**arguments)


def test_a_negative_index_is_refused():
    with pytest.raises(ValueError, match=r"index must be from 0 to .*, got -1"):
        SyntheticMVU().sample(-1)


@pytest.mark.parametrize("value", [None, "32", float("nan"), 64.0])
def test_what_is_no_whole_number_is_refused_by_name(value):
    for name in ("size", "seed"):
        with pytest.raises(TypeError, match=f"{name} must be a whole number"):
            SyntheticMVU(**{name: value})
    with pytest.raises(TypeError, match="index must be a whole number"):
        SyntheticMVU().sample(value)


def test_a_stored_image_tells_its_label_by_its_name():
    source = SyntheticMVU([Modality.OCT, Modality.PHOTO], size=32, seed=2**63 + 1)
    for index in range(8):
        record = source.record(index)
        assert stored_label(record.source, record.group) == source.sample(index).label


@pytest.mark.parametrize(
    ("source", "group"),
    [
        ("a clinic", "SyntheticMVU/seed=0/PET/0"),
        ("SyntheticMVU", "another name"),
        ("SyntheticMVU", "SyntheticMVU/seed=0/PET/-1"),
        ("SyntheticMVU", f"SyntheticMVU/seed={2**64}/PET/0"),
    ],
)
def test_an_image_of_another_origin_has_no_known_label(source, group):
    assert stored_label(source, group) is None
