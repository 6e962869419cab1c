import multiprocessing
import threading

import numpy as np
import pytest
from made_records import made_records
from torch.utils.data import DataLoader, Dataset

from dexcore.data.feed.cache import DecodedCache, memory_share
from dexcore.data.feed.dataset import MVUDataset
from dexcore.data.store import Store, write_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "store"
    write_store(made_records(30), folder, name="made", shard_bytes=12_000)
    return folder


def pictures(count=30, seed=0):
    """Images of the types that stores hold, and of many sizes."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        height, width = rng.integers(1, 40, 2)
        kind = number % 3
        shape = (height, width, 3) if kind == 1 else (height, width)
        yield rng.integers(0, 256, shape).astype(np.uint16 if kind == 2 else np.uint8)


def test_images_come_back_as_they_were_and_cannot_be_changed():
    cache = DecodedCache(30, 1 << 20)
    for row, pixels in enumerate(pictures()):
        assert cache.get(row) is None
        cache.put(row, pixels)
    for row, pixels in enumerate(pictures()):
        found = cache.get(row)
        assert found.dtype == pixels.dtype
        assert np.array_equal(found, pixels)
        with pytest.raises(ValueError, match="read-only"):
            found[0] = 0


def test_what_no_longer_fits_is_not_kept_and_what_was_kept_stays():
    cache = DecodedCache(30, 4000)
    for row, pixels in enumerate(pictures()):
        cache.put(row, pixels)
    kept = [row for row in range(30) if cache.get(row) is not None]
    assert 0 < len(kept) < 30
    assert cache.filled <= 4000
    for row, pixels in enumerate(pictures()):
        assert row not in kept or np.array_equal(cache.get(row), pixels)


def fill(cache, rows):
    for row, pixels in enumerate(pictures()):
        if row in rows:
            cache.put(row, pixels)


def test_forked_processes_fill_one_cache():
    cache = DecodedCache(30, 1 << 20)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=fill, args=(cache, range(first, 30, 2))) for first in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for row, pixels in enumerate(pictures()):
        assert np.array_equal(cache.get(row), pixels)


def test_an_image_that_two_put_at_once_is_whole():
    cache = DecodedCache(1, 1 << 22)
    first, second = np.full((300, 300), 1, np.uint8), np.full((300, 300), 2, np.uint8)
    threads = [threading.Thread(target=cache.put, args=(0, pixels)) for pixels in (first, second) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.unique(cache.get(0)).tolist() in ([1], [2])


class Read(Dataset):
    """The stored pixels of a store, flat."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images.read(index).astype(np.int64).sum()


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_read_the_same_pixels_with_a_cache_as_without(folder, context, workers):
    plain = [Store(folder).image(index).astype(np.int64).sum() for index in range(30)]
    images = MVUDataset(folder, cache=1 << 20)
    keep = context == "spawn"  # a spawned worker has a cache of its own
    loader = DataLoader(
        Read(images), None, num_workers=workers, multiprocessing_context=context, persistent_workers=keep
    )
    for _ in range(2):
        assert [int(total) for total in loader] == plain
    assert (images._cache.filled > 0) == (context == "fork")


def test_an_image_in_the_cache_is_decoded_once(folder, monkeypatch):
    images = MVUDataset(folder, cache=1 << 20)
    first = [images.read(index) for index in range(30)]
    monkeypatch.setattr(Store, "image", lambda *_: pytest.fail("decoded again"))
    for index, pixels in enumerate(first):
        assert np.array_equal(images.read(index), pixels)
    for index in (-1, 30):
        with pytest.raises(IndexError, match=f"image {index} of a store of 30"):
            images.read(index)


def test_a_share_of_the_memory_is_divided_among_the_processes_of_a_machine():
    whole = memory_share(1.0)
    assert 1 << 28 < whole < 1 << 44
    assert memory_share(0.5, 4) == int(whole * 0.5) // 4
    assert memory_share(0.0) == 0
