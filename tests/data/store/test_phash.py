import cv2
import imagehash
import numpy as np
import PIL.Image
import pytest
from made_records import made_records

from dexcore.data.store import Store, encode_row, write_store
from dexcore.data.store.codec import quantize
from dexcore.data.store.phash import PHASH_BYTES, perceptual_hash
from dexcore.data.synthetic import SyntheticMVU


@pytest.fixture(scope="module")
def images():
    """One of each modality, 8 bit, of sizes that are and are not multiples of 64."""
    made = SyntheticMVU(size=224, seed=3)
    full = [quantize(made.sample(index).image, 8, 512) for index in range(10)]
    return [image[: 224 - 7 * index, : 192 + 3 * index] for index, image in enumerate(full)]


def bits(data):
    return np.unpackbits(np.frombuffer(data, np.uint8))


def distance(first, second):
    return int((bits(first) != bits(second)).sum())


def test_the_hash_is_that_of_imagehash_but_for_a_few_bits(images):
    distances = []
    for image in images:
        theirs = imagehash.phash(PIL.Image.fromarray(image), hash_size=16).hash.ravel()
        distances.append(int((bits(perceptual_hash(image)) != theirs).sum()))
    assert np.mean(distances) <= 4  # theirs is scaled by Lanczos; of other images 128 differ
    assert max(distances) <= 10


def test_the_hash_does_not_know_the_range_of_the_values(images):
    gray = images[0]
    wide = gray.astype(np.uint16) * 257
    assert distance(perceptual_hash(wide), perceptual_hash(gray)) <= 2
    assert distance(perceptual_hash(np.rint(20000 + 0.4 * wide).astype(np.uint16)), perceptual_hash(gray)) <= 2


def test_a_rescaled_and_compressed_image_has_nearly_the_same_hash(images):
    for image in images:
        smaller = cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
        jpeg = cv2.imdecode(cv2.imencode(".jpg", smaller, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], cv2.IMREAD_UNCHANGED)
        assert distance(perceptual_hash(jpeg), perceptual_hash(image)) <= 16


def test_color_is_hashed_as_gray(images):
    gray = images[0]
    assert perceptual_hash(np.repeat(gray[..., None], 3, axis=2)) == perceptual_hash(gray)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (63, 65), (700, 3), (5, 5, 3)])
@pytest.mark.parametrize(("value", "first"), [(0, 0), (1, 1), (200, 1)])
def test_a_constant_image_has_the_bit_of_its_mean_alone(shape, value, first):
    found = bits(perceptual_hash(np.full(shape, value, np.uint8)))
    assert (found[0], found[1:].any(), len(found)) == (first, False, 256)


def test_a_small_image_has_the_hash_of_its_enlargement(images):
    small = cv2.resize(images[0], (40, 48), interpolation=cv2.INTER_AREA)
    large = cv2.resize(small, (320, 384), interpolation=cv2.INTER_LINEAR)
    assert distance(perceptual_hash(small), perceptual_hash(large)) <= 8


def test_a_store_holds_the_hash_of_what_it_holds(tmp_path):
    records = list(made_records(3))
    write_store(records, tmp_path / "store", name="made", max_side=32)
    store = Store(tmp_path / "store")
    hashes = store.column("phash").to_pylist()
    assert hashes == [perceptual_hash(store.image(index)) for index in range(3)]
    assert {len(found) for found in hashes} == {PHASH_BYTES}
    assert encode_row(records[0], 32)["phash"] in hashes
