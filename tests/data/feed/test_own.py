"""Images of the user's own: what a data set may be, and what a transform of the user's meets."""

# ruff: noqa: NPY002  # users' transforms draw from the global generator

import random

import numpy as np
import pytest
import torch
from PIL import Image

from dexcore.data.feed.augment import Augmentation
from dexcore.data.feed.own import OwnImages
from dexcore.data.feed.pretrain_view import PretrainView


class Listed(torch.utils.data.Dataset):
    """Items from a list, and attributes."""

    def __init__(self, items, **attributes):
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


GRAY = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
COLOR = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)


@pytest.mark.parametrize(
    ("item", "pixels"),
    [
        (GRAY, GRAY),
        (COLOR, COLOR),
        (Image.fromarray(GRAY), GRAY),
        (Image.fromarray(COLOR), COLOR),
        (Image.fromarray(GRAY).convert("LA"), GRAY),
        (Image.fromarray(GRAY.astype(np.uint16) * 257), GRAY.astype(np.uint16) * 257),
        (torch.from_numpy(GRAY), GRAY),
        (torch.from_numpy(GRAY)[None], GRAY),
        (torch.from_numpy(COLOR).permute(2, 0, 1), COLOR),
        (torch.from_numpy(COLOR).permute(2, 0, 1) / 255, COLOR / np.float32(255)),
        ((COLOR, 3), COLOR),
        ({"image": GRAY, "label": "none"}, GRAY),
    ],
)
def test_an_item_may_be_an_image_of_any_common_kind(item, pixels):
    read = OwnImages(Listed([item])).read(0)
    assert read.dtype == pixels.dtype
    assert np.array_equal(read, pixels)


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        (iter([GRAY]), TypeError, "map-style torch Dataset, with __len__ and __getitem__"),
        (Listed([]), ValueError, "at least one image, got none"),
        (Listed([GRAY], modality=["CT", "MR"]), ValueError, r"dataset.modality has 2 entries, expected 1"),
        (Listed([GRAY], split=["test"]), ValueError, "dataset.split holds 'test', expected train or heldout"),
    ],
)
def test_a_data_set_that_is_none_is_refused(dataset, error, words):
    with pytest.raises(error, match=words):
        OwnImages(dataset)


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        ({"pixels": GRAY}, TypeError, "item 0 of Listed is a dict without an entry 'image'"),
        (GRAY.astype(np.int64), ValueError, "item 0 of Listed: image has dtype int64"),
        (GRAY.astype(np.float32), ValueError, r"item 0 of Listed: image must lie in \[0, 1\]"),
        (COLOR.transpose(2, 0, 1), ValueError, "item 0 of Listed: .*an array's channels come last"),
        ("file.png", TypeError, "item 0 of Listed: image must be a numpy array, a tensor or a PIL image, got str"),
    ],
)
def test_an_item_that_is_no_image_is_named(item, error, words):
    with pytest.raises(error, match=words):
        OwnImages(Listed([item])).read(0)


def test_what_a_data_set_says_of_its_images_is_known_and_tells_it_from_others():
    named = OwnImages(Listed([GRAY] * 4, modality=["MR", "CT", "MR", "CT"], split=["train"] * 3 + ["heldout"]))
    assert named.modality_names == ("CT", "MR")
    assert named.modality.tolist() == [1, 0, 1, 0]
    assert named.indices("heldout").tolist() == [3]
    plain = OwnImages(Listed([GRAY] * 4))
    assert plain.modality_names == ("images",)
    assert len(set(plain.group)) == 4
    prints = {named.fingerprint, plain.fingerprint, OwnImages(Listed([GRAY] * 5)).fingerprint}
    assert len(prints) == 3
    assert plain.fingerprint == OwnImages(Listed([COLOR] * 4)).fingerprint  # pixels are not read
    assert plain.fingerprint != OwnImages(Listed([GRAY] * 4, fingerprint="2")).fingerprint


def view(dataset, **options):
    images = OwnImages(dataset, options.get("channels", 3))
    return PretrainView(images, np.arange(len(images)), 16, 0, 4, [2], **options)


def test_modalities_that_are_not_to_be_mirrored_never_are():
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (64, 1))
    dataset = Listed([ramp] * 2, modality=["X-ray", "Photo"])
    plain = Augmentation(rotation=0.0)
    shown = view(dataset, augmentation=plain, mirrored=["Photo"])

    def mirrored(position):
        images = [shown[(epoch, position)]["image"][0] for epoch in range(30)]
        return sum(bool(image[8, 0] > image[8, -1]) for image in images)

    assert mirrored(0) == 0
    assert 8 < mirrored(1) < 22


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_an_image_is_given_as_many_channels_as_the_model_has(channels):
    items = [GRAY] + ([COLOR] if channels in (1, 3) else [np.stack([GRAY] * channels, axis=2)])
    shown = view(Listed(items), channels=channels, statistics="gray")
    for position in range(2):
        assert shown[(0, position)]["image"].shape == (channels, 16, 16)
    gray = shown[(0, 0)]["image"]
    assert all(torch.equal(gray[0], plane) for plane in gray)


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def test_a_transforms_draws_depend_on_the_key_alone_and_disturb_no_others():
    def noisy(item):
        level = torch.rand(()) + random.random() + np.random.rand()
        return torch.full((3, 16, 16), float(level)) + item[0, 0]

    dataset = Listed([GRAY, GRAY])
    shown = view(dataset, transform=noisy)
    seed_all(3)
    expected = torch.rand(2), random.random(), np.random.rand()
    seed_all(3)
    first = [shown[(epoch, position)]["image"] for epoch in range(2) for position in range(2)]
    drawn = torch.rand(2), random.random(), np.random.rand()
    assert torch.equal(drawn[0], expected[0])
    assert drawn[1:] == expected[1:]
    seed_all(99)
    again = [shown[(epoch, position)]["image"] for epoch in range(2) for position in range(2)]
    assert all(map(torch.equal, first, again))
    assert len({float(image[0, 0, 0]) for image in first}) == 4


def test_a_transform_that_gives_something_else_is_told_what_was_expected():
    shown = view(Listed([GRAY]), transform=lambda item: torch.zeros(3, 8, 8))
    with pytest.raises(TypeError, match=r"float tensor \[3, 16, 16\], got torch.float32 \[3, 8, 8\]"):
        shown[(0, 0)]
