import dataclasses
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from made_records import made_records

from dexcore.data.store import Store, StoreError, near, write_store
from dexcore.data.store.codec import quantize
from dexcore.data.store.copies import CopyFinder, Pictures, copies_within
from dexcore.data.store.near import RADIUS, HashIndex, cut_similarity, similarity
from dexcore.data.synthetic import SyntheticMVU

MODALITIES = 10


@pytest.fixture(scope="module")
def records():
    """Three generated images of each modality."""
    made = SyntheticMVU(size=256, seed=7)
    return [made.record(index) for index in range(3 * MODALITIES)]


def jpeg(image):
    pixels = quantize(image, 8, 512)
    decoded = cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], cv2.IMREAD_UNCHANGED)
    return decoded.astype(np.float32) / 255


def rescaled(image):
    return cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA).clip(0, 1)


def windowed(image):
    return np.clip((image - 0.05) / 0.85, 0, 1).astype(np.float32)


def cropped(image):
    return np.ascontiguousarray(image[3:-2, 2:-3])


def stored(tmp_path, name, records):
    write_store(records, tmp_path / name, name=name)
    return Pictures.of(Store(tmp_path / name))


def copy_of(record, change, path=None, group=None):
    path = path or f"copy of {record.path}"
    return dataclasses.replace(record, image=change(record.image), path=path, group=group or path)


@pytest.mark.parametrize("change", [jpeg, rescaled, windowed, cropped])
def test_changed_copies_are_found_in_another_store(tmp_path, records, change):
    known = stored(tmp_path, "store", records)
    queries = stored(tmp_path, "other", [copy_of(record, change) for record in records])
    found = CopyFinder(known).find(queries)
    assert all(queries.path(copy.index) == f"copy of {known.path(copy.of)}" for copy in found)
    assert len(found) >= len(records) - 3
    assert not any(copy.exact for copy in found)
    assert all(copy.distance <= RADIUS and copy.similarity >= 0.95 for copy in found)


def test_other_images_of_the_same_kinds_are_no_copies(tmp_path, records):
    made = SyntheticMVU(size=256, seed=8)
    others = stored(tmp_path, "other", [made.record(index) for index in range(3 * MODALITIES)])
    known = stored(tmp_path, "store", records)
    assert CopyFinder(known).find(others) == []
    assert copies_within(known) == []


def test_an_exact_copy_is_found_as_such(tmp_path, records):
    known = stored(tmp_path, "store", records[:10])
    again = stored(tmp_path, "other", [dataclasses.replace(records[4], path="elsewhere", source="other")])
    [copy] = CopyFinder(known).find(again)
    assert (copy.index, copy.distance, copy.similarity, copy.exact) == (0, 0, 1.0, True)
    assert known.path(copy.of) == records[4].path
    assert CopyFinder(known).find(again, but=["SyntheticMVU"]) == []


def test_a_store_of_version_1_is_searched_by_hashes_of_its_pixels(tmp_path):
    archive = Path(__file__).parents[2] / "fixtures" / "0.1.0.tar.xz"
    shutil.unpack_archive(archive, tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    old = Store(tmp_path / "store")
    row, pixels = old.row(3), old.image(3)
    [some] = made_records(1)
    record = dataclasses.replace(
        some,
        image=pixels.astype(np.float32) / np.iinfo(pixels.dtype).max,
        normalization=row["normalization"],
        path="new",
    )
    new = stored(tmp_path, "new", [record])
    [copy] = CopyFinder(Pictures.of(old)).find(new)
    assert (copy.of, copy.exact) == (3, True)  # PNG and TIFF of the same pixels
    [back] = CopyFinder(new).find(Pictures.of(old))
    assert (back.index, back.of, back.exact) == (3, 0, True)


def test_copies_within_a_store_point_to_the_first_that_is_none(tmp_path, records):
    first, other = records[1], records[4]
    rows = [first, other, copy_of(first, jpeg), copy_of(first, rescaled), copy_of(other, rescaled)]
    pictures = stored(tmp_path, "store", rows)
    assert [(copy.index, copy.of) for copy in copies_within(pictures)] == [(2, 0), (3, 0), (4, 1)]


def slices_of_a_volume(count):
    """Of a smooth volume: neighbours lie nearer to each other than a compressed copy to its image."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 32, 32), dtype=np.float32)
    for index in range(count):
        share = index / (4 * count)
        plane = (1 - share) * first + share * second
        yield cv2.resize(plane, (256, 256), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def test_neighbouring_slices_of_a_volume_are_no_copies(tmp_path):
    [some] = made_records(1)
    rows = [
        dataclasses.replace(some, image=plane, path=f"scan.nii.gz#axial={index}", group="patient")
        for index, plane in enumerate(slices_of_a_volume(8))
    ]
    pictures = stored(tmp_path, "store", rows)
    assert np.bitwise_count(pictures.hashes[0] ^ pictures.hashes[1]).sum() <= RADIUS
    assert copies_within(pictures) == []


def test_within_a_group_only_what_is_nearer_than_neighbouring_slices_is_a_copy(tmp_path):
    [some] = made_records(1)
    planes = list(slices_of_a_volume(4))
    files = [dataclasses.replace(some, image=planes[index], path=f"{index}.png", group="patient") for index in (0, 3)]
    again = dataclasses.replace(files[0], image=rescaled(planes[0]), path="small.png")
    pictures = stored(tmp_path, "store", [*files, again])
    assert 0.95 < similarity(pictures.image(0), pictures.image(1)) < 0.995
    assert [(copy.index, copy.of) for copy in copies_within(pictures)] == [(2, 0)]
    apart = [dataclasses.replace(record, group=record.path) for record in files]
    assert len(copies_within(stored(tmp_path, "apart", apart))) == 1


@pytest.mark.parametrize("cut", [np.s_[80:200], np.s_[:, 30:180]], ids=["height", "width"])
def test_a_piece_of_an_image_of_its_group_is_found(tmp_path, records, cut):
    for record in records[: MODALITIES - 1]:  # the last shows skin, of which a piece may be anywhere
        piece = dataclasses.replace(record, image=np.ascontiguousarray(record.image[cut]), path="piece")
        assert len(copies_within(stored(tmp_path, "group", [record, piece]))) == 1, record.modality
        assert len(copies_within(stored(tmp_path, "turned", [piece, record]))) == 1, record.modality
        stranger = dataclasses.replace(piece, group="another")
        assert copies_within(stored(tmp_path, "apart", [record, stranger])) == [], record.modality


def test_similarity_is_of_details_whatever_the_size_and_contrast(records):
    image, other = (quantize(records[index].image, 16, 512) for index in (2, 12))
    assert similarity(image, image) == pytest.approx(1)
    assert similarity(image, quantize(rescaled(0.2 + 0.5 * records[2].image), 8, 512)) > 0.95
    assert similarity(image, other) < 0.9
    assert similarity(image, np.full((64, 64), 9, np.uint8)) == 0
    assert cut_similarity(image, np.full((64, 90), 9, np.uint8)) == 0


def planted(count, seed=0):
    """Random hashes; each of the last ten is a certain number of bits from the one ten before it."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    for index, flips in enumerate([0, 1, 2, 15, 16, 17, 30, 31, 32, 40]):
        bits = np.unpackbits(hashes[count - 20 + index])
        bits[rng.choice(256, flips, replace=False)] ^= 1
        hashes[count - 10 + index] = np.packbits(bits)
    return hashes


@pytest.mark.parametrize("index", ["tables", "compared"])
def test_all_hashes_within_the_radius_are_found_and_no_others(index, monkeypatch):
    if index == "tables":
        monkeypatch.setattr(near, "_FROM_HASHES", 1)
    else:
        monkeypatch.setattr(near, "_FROM_HASHES", 1 << 60)
    for seed in range(10):
        hashes = planted(1500, seed)
        found = list(HashIndex(hashes).near(hashes))
        assert len(found) == 1500
        assert [(numbers[0], distances[0]) for numbers, distances in found[:1480]] == [(n, 0) for n in range(1480)]
        beside = [dict(zip(*map(np.ndarray.tolist, pair), strict=True)) for pair in found[1490:]]
        distances = [pair.get(1480 + number) for number, pair in enumerate(beside)]
        assert distances == [0, 1, 2, 15, 16, 17, 30, 31, None, None]


def test_hashes_of_which_many_are_alike_are_found_too(monkeypatch):
    monkeypatch.setattr(near, "_FROM_HASHES", 1)
    rng = np.random.default_rng(0)
    kinds = np.repeat(rng.integers(0, 2, (3, 256), dtype=np.uint8), [500, 20, 5], axis=0)
    hashes = np.packbits(kinds ^ (rng.random(kinds.shape) < 0.06), axis=1)
    far = np.bitwise_count(hashes[:, None] ^ hashes).sum(axis=2)
    for number, (numbers, distances) in enumerate(HashIndex(hashes).near(hashes)):
        within = np.flatnonzero(far[number] <= RADIUS)
        np.testing.assert_array_equal(numbers, within[np.argsort(far[number, within], kind="stable")])
        np.testing.assert_array_equal(distances, far[number, numbers])


def test_what_is_held_of_an_image_is_small():
    count = 20_000
    hashes = np.random.default_rng(0).integers(0, 256, (count, 32), dtype=np.uint8)
    tracemalloc.start()
    try:
        index = HashIndex(hashes)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert next(index.near(hashes[:1]))[0].tolist() == [0]
    assert held < 80 * count + (5 << 20)  # and tables of one size for any number


def test_a_store_whose_hashes_are_none_is_told(tmp_path, records):
    pa = pytest.importorskip("pyarrow")
    batch = Store(stored_folder(tmp_path, records[:2])).batches[0]
    column = batch.schema.get_field_index("phash")
    with pytest.raises(StoreError, match="the perceptual hashes have 6 bytes, expected 32 an image"):
        Pictures([batch.set_column(column, "phash", pa.array([b"abc", b"def"]))])


def stored_folder(tmp_path, records):
    write_store(records, tmp_path / "store", name="store")
    return tmp_path / "store"
