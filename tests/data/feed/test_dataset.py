import pickle

import numpy as np
import pytest
import torch
from made_records import as_stored, made_records
from torch.utils.data import DataLoader, default_collate

from dexcore.data.feed.dataset import MODALITIES, open_mvu
from dexcore.data.feed.order import GlobalBatchSampler, GlobalOrder
from dexcore.data.feed.pretrain_view import PretrainView, ReplacementLimit, collate
from dexcore.data.store import Store, write_store
from dexcore.data.store.manifest import StoreError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store of 30 images, never changed."""
    folder = tmp_path_factory.mktemp("dataset") / "store"
    write_store(made_records(30), folder, name="made", shard_bytes=12_000)
    return folder


@pytest.fixture
def view(folder):
    dataset = open_mvu(folder)
    return PretrainView(dataset, dataset.indices("train"), size=32, seed=0, num_patches=16, router_shape=[4, 8])


def break_images(folder, indices):
    """Overwrite the pixels of some images, leaving every size as it was."""
    store = Store(folder)
    for index in indices:
        image = bytes(store.encoded(index))
        for path in folder.glob("shard-*.arrow"):
            path.write_bytes(path.read_bytes().replace(image, image[:50] + bytes(len(image) - 50)))


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[name])), name


def test_an_item_shows_an_image_and_what_is_known_about_it(folder):
    dataset = open_mvu(folder)
    assert len(dataset) == 30
    for index, record in enumerate(as_stored(made_records(30))):
        item = dataset[index]
        assert item["image"].dtype == np.float32
        assert np.abs(item["image"] - record.image).max() < 0.51 / 255
        assert (item["index"], item["path"]) == (index, record.path)
        assert MODALITIES[dataset.modality[index]] == item["modality"] == record.modality
        assert dataset.source[index] == item["source"] == record.source
        assert dataset.group[index] == item["group"] == record.group
        assert dataset.split[index] == item["split"] == record.split
        assert dataset.synthetic[index] == item["synthetic"] == record.synthetic
    assert sum(1 for _ in dataset) == 30


def test_images_are_read_as_they_are_stored(folder):
    dataset = open_mvu(folder)
    assert [(dataset.read(i).dtype, dataset.read(i).ndim) for i in (0, 10, 20)] == [
        (np.uint8, 3),
        (np.uint8, 2),
        (np.uint16, 2),
    ]


def test_the_splits_part_the_dataset(folder):
    dataset = open_mvu(folder)
    expected = [index for index, record in enumerate(as_stored(made_records(30))) if record.split == "heldout"]
    assert dataset.indices("heldout").tolist() == expected
    both = np.concatenate([dataset.indices("train"), dataset.indices("heldout")])
    assert sorted(both) == list(range(30))
    with pytest.raises(ValueError, match="split is 'test', expected one of train, heldout"):
        dataset.indices("test")


def test_a_folder_without_a_store_is_named(tmp_path):
    with pytest.raises(StoreError, match=str(tmp_path)):
        open_mvu(tmp_path)


def test_a_dataset_pickles_as_its_path(folder):
    dataset = open_mvu(folder)
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.fingerprint == dataset.fingerprint
    assert np.array_equal(again.read(7), dataset.read(7))


def test_a_store_that_changed_is_refused_when_a_worker_opens_it(tmp_path):
    write_store(made_records(3), tmp_path / "store", name="a")
    data = pickle.dumps(open_mvu(tmp_path / "store"))
    write_store(made_records(4), tmp_path / "store", name="a")
    with pytest.raises(StoreError, match="changed since it was opened"):
        pickle.loads(data)


def test_a_training_item_has_what_a_step_needs(view):
    item = view[(3, 5)]
    assert item["image"].shape == (3, 32, 32)
    assert item["image"].dtype == torch.float32
    assert item["sample_id"] == view.indices[5]
    assert item["modality"] == view.dataset.modality[view.indices[5]]
    assert item["replaced"] is False
    assert (item["mask_noise"].shape, item["mask_noise"].dtype) == ((16,), torch.float32)
    assert (item["router_noise"].shape, item["router_noise"].dtype) == ((12,), torch.float32)


def test_mask_noise_is_uniform_and_router_noise_normal(view):
    items = [view[(epoch, position)] for epoch in range(40) for position in range(len(view))]
    mask = torch.cat([item["mask_noise"] for item in items])
    router = torch.cat([item["router_noise"] for item in items])
    assert mask.min() >= 0
    assert mask.max() < 1
    assert abs(mask.mean() - 0.5) < 0.01
    assert abs(mask.var() - 1 / 12) < 0.003
    assert abs(router.mean()) < 0.03
    assert abs(router.var() - 1) < 0.04
    assert abs(router.pow(4).mean() - 3) < 0.3


def test_draws_depend_on_seed_epoch_and_sample(folder, view):
    item = view[(0, 0)]
    other_seed = PretrainView(view.dataset, view.indices, 32, seed=1, num_patches=16, router_shape=[4, 8])
    for other in (view[(1, 0)], view[(0, 1)], other_seed[(0, 0)]):
        for name in ("image", "mask_noise", "router_noise"):
            assert not torch.allclose(item[name], other[name]), name


def test_draws_do_not_depend_on_which_other_samples_take_part(view):
    few = PretrainView(view.dataset, view.indices[7:9], 32, seed=0, num_patches=16, router_shape=[4, 8])
    assert_same(few[(2, 1)], view[(2, 8)])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dataset": "store"}, TypeError, "dataset must be an MVUDataset or OwnImages"),
        ({"indices": np.array([0.5])}, ValueError, "indices must be at least one row"),
        ({"indices": []}, ValueError, "indices must be at least one row"),
        ({"indices": [10**6]}, ValueError, r"indices must be rows of the \d+ images, got 1000000"),
        ({"size": 0}, ValueError, "size must be at least 1, got 0"),
        ({"seed": 0.5}, TypeError, "seed must be a whole number"),
        ({"num_patches": None}, TypeError, "num_patches must be a whole number"),
        ({"router_shape": [-1]}, ValueError, "router_shape must be at least 1, got -1"),
        ({"augmentation": 0.2}, TypeError, "augmentation must be an Augmentation"),
        ({"statistics": "none"}, ValueError, "statistics must be one of"),
    ],
)
def test_a_view_refuses_bad_arguments_by_name_before_the_first_sample(view, change, error, message):
    good = {"dataset": view.dataset, "indices": view.indices, "size": 32, "seed": 0, "num_patches": 16}
    with pytest.raises(error, match=message):
        PretrainView(**{**good, "router_shape": [4, 8], **change})


@pytest.mark.parametrize("index", [1.5, "1", None])
def test_what_is_no_whole_number_names_no_image(view, index):
    for call in (view.dataset.__getitem__, view.dataset.read):
        with pytest.raises(TypeError, match="cannot be interpreted as an integer"):
            call(index)


def test_a_limit_that_could_never_be_exceeded_is_refused():
    with pytest.raises(ValueError, match="rate must be a share from 0 to 1, got nan"):
        ReplacementLimit(rate=float("nan"))


def test_a_batch_is_its_items_and_its_images_are_copied_once(view):
    keys = [(3, position) for position in (4, 0, 9)]
    batch = view.__getitems__(keys)
    collated = collate(batch)
    assert collated["image"].data_ptr() == batch[0]["image"].data_ptr()
    assert_same(collated, default_collate([view[key] for key in keys]))
    assert_same(collated, default_collate(batch))
    assert_same(collated, collate(list(batch)))


@pytest.mark.parametrize(("context", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_give_what_one_process_gives(view, context, workers):
    order = GlobalOrder(view.dataset.modality[view.indices], seed=0, balance=1.0)

    def batches(**options):
        return list(DataLoader(view, batch_sampler=GlobalBatchSampler(order, 8, total_steps=6), **options))

    here = batches()
    there = batches(num_workers=workers, multiprocessing_context=context, collate_fn=collate)
    assert here[0]["image"].shape == (8, 3, 32, 32)
    assert len(here) == len(there) == 6
    for one, other in zip(here, there, strict=True):
        assert_same(one, other)


def test_two_ranks_see_what_one_sees(view):
    order = GlobalOrder(view.dataset.modality[view.indices], seed=0)

    def batches(rank, world_size):
        sampler = GlobalBatchSampler(order, 8, rank, world_size, total_steps=5)
        return list(DataLoader(view, batch_sampler=sampler))

    for whole, *parts in zip(batches(0, 1), batches(0, 2), batches(1, 2), strict=True):
        assert_same(whole, {name: torch.cat([part[name] for part in parts]) for name in whole})


def test_a_corrupt_sample_is_replaced_by_the_same_one_every_time(tmp_path, caplog):
    folder = tmp_path / "store"
    write_store(made_records(12), folder, name="a", shard_bytes=12_000)
    dataset = open_mvu(folder)
    sound = PretrainView(dataset, np.arange(12), 32, seed=0, num_patches=16, router_shape=[4])
    expected = sound[(0, 4)]
    break_images(folder, [3, 5])
    view = PretrainView(open_mvu(folder), np.arange(12), 32, seed=0, num_patches=16, router_shape=[4])
    stand_ins = set()
    for epoch in range(6):
        item = view[(epoch, 3)]
        assert item["replaced"] is True
        assert item["sample_id"] not in (3, 5)
        assert item["modality"] == dataset.modality[item["sample_id"]]
        assert_same(item, view[(epoch, 3)])
        stand_ins.add(item["sample_id"])
    assert len(stand_ins) > 1
    assert "row" in caplog.text
    assert ".arrow" in caplog.text
    assert_same(view[(0, 4)], expected)


def test_a_store_of_corrupt_images_is_an_error(tmp_path):
    folder = tmp_path / "store"
    write_store(made_records(3), folder, name="a")
    break_images(folder, range(3))
    view = PretrainView(open_mvu(folder), np.arange(3), 32, seed=0, num_patches=16, router_shape=[4])
    with pytest.raises(StoreError, match="image 1 and 7 images in its place cannot be decoded"):
        view[(0, 1)]


def test_too_many_replaced_samples_are_an_error():
    limit = ReplacementLimit(rate=0.01, at_least=1000)
    one_bad = torch.arange(32) == 5
    for _ in range(10):
        limit.update(one_bad)  # 10 of 320, but not more than 1 % of the first 1000
    with pytest.raises(StoreError, match="11 of 352 samples could not be decoded"):
        limit.update(one_bad)
    lasting = ReplacementLimit(rate=0.01, at_least=1000)
    for _ in range(1000):
        lasting.update(torch.arange(100) == 5)  # exactly 1 %
    assert (lasting.replaced, lasting.seen) == (1000, 100_000)
