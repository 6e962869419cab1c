"""What a fine-tuning step is given: masks by their image's geometry, whole numbers, draws by key."""

import numpy as np
import pytest
from made_tasks import save, write

from dexcore.data.feed.augment import Augmentation
from dexcore.evaluate.embedding import Preprocessing
from dexcore.evaluate.finetuning.data import TaskImages, TrainingView, draw_whole, sorted_rows
from dexcore.evaluate.losses import UNKNOWN
from dexcore.evaluate.tasks import Task

VIEW = Preprocessing((32, 32), (0.0,) * 3, (1.0,) * 3, crop="whole")
WILD = Augmentation(min_area=0.3, rotation=40)


def told_by_gray(folder, shape=(60, 90), values=(0, 3, 7), **keys):
    """An image whose gray tells its mask, in large pieces; the mask in 16 bits."""
    rows = []
    for number in range(3):
        random = np.random.default_rng(number)
        label = np.kron(random.integers(0, len(values), (4, 6)), np.ones((15, 15), int))[: shape[0], : shape[1]]
        save(folder / f"{number}.png", (label * (255 // (len(values) - 1))).astype(np.uint8))
        save(folder / f"{number}_mask.png", np.array(values, np.uint16)[label])
        row = {"image": f"{number}.png", "mask": f"{number}_mask.png", "split": ("train", "train", "test")[number]}
        rows.append(row | {"case": str(number)})
    said = {"kind": "segmentation", "classes": ["none", "three", "seven"], "normalization": "div255"}
    said["mask_values"] = dict(zip(values, range(3), strict=True))
    return Task.open(write(folder, rows, **(said | keys)))


def view_of(task, augmentation=WILD, seed=0, size=0):
    return TrainingView(TaskImages(task, sorted_rows(task, "train"), size), VIEW, seed, augmentation)


def test_a_mask_has_its_images_geometry_and_no_value_between_two(tmp_path):
    """0, 3 and 7 stay classes 0, 1 and 2 under crop, flip and rotation, of masks in 16 bits too."""
    view = view_of(told_by_gray(tmp_path))
    agree, turned = [], 0
    for epoch in range(20):
        item = view[epoch, 0]
        target, gray = item["target"].numpy(), item["image"].numpy()[0]
        assert set(np.unique(target)) <= {UNKNOWN, 0, 1, 2}
        turned += bool((target == UNKNOWN).any())
        inside = np.abs(gray * 2 - np.round(gray * 2)) < 0.02  # no pixel between two pieces
        inside &= target != UNKNOWN
        agree.append((np.round(gray * 2)[inside] == target[inside]).mean())
    assert min(agree) > 0.97
    assert 4 <= turned <= 16  # half of them are rotated


def test_an_image_shown_whole_has_the_label_of_the_nearest_pixel(tmp_path):
    item = view_of(told_by_gray(tmp_path), Augmentation(min_area=1, flip=0, rotation=0))[0, 0]
    target = item["target"].numpy()
    task = told_by_gray(tmp_path)
    mask = task.mask(sorted_rows(task, "train")[0])
    rows, columns = ((np.arange(32) + 0.5) * side / 32 for side in mask.shape)
    assert (target == mask[rows.astype(int)][:, columns.astype(int)]).all()


def test_what_a_task_ignores_and_what_a_rotation_brings_in_does_not_count(tmp_path):
    task = told_by_gray(tmp_path, values=(0, 3, 255), mask_values={0: 0, 3: 1, 255: "ignore"}, ignore=255)
    items = [view_of(task)[epoch, 0]["target"].numpy() for epoch in range(10)]
    assert {value for item in items for value in np.unique(item)} == {UNKNOWN, 0, 1}


def test_channels_keep_their_axis(tmp_path):
    rows = []
    for number, split in enumerate(("train", "test")):
        save(tmp_path / f"{number}.png", np.full((20, 30), 128, np.uint8))
        masks = {f"mask_{name}": f"{number}_{name}.png" for name in ("upper", "left")}
        for path in masks.values():
            mask = np.zeros((20, 30), np.uint8)
            mask[(slice(0, 10), slice(None)) if "upper" in path else (slice(None), slice(0, 15))] = 1
            save(tmp_path / path, mask)
        rows.append({"image": f"{number}.png", "split": split, "case": str(number), **masks})
    task = Task.open(write(tmp_path, rows, kind="multilabel_segmentation", classes=["upper", "left"]))
    target = view_of(task, Augmentation(min_area=1, flip=0, rotation=0))[0, 0]["target"].numpy()
    assert target.shape == (2, 32, 32)
    assert target[0, :16].all()
    assert not target[0, 16:].any()
    assert target[1, :, :16].all()
    assert not target[1, :, 16:].any()


def test_an_item_depends_on_seed_epoch_and_image_alone(tmp_path):
    task = told_by_gray(tmp_path)
    view = view_of(task)
    first, again = view[3, 1], view_of(task, size=1 << 20)[3, 1]
    for name in ("image", "target"):
        assert (first[name] == again[name]).all()
        assert (first[name] != view[4, 1][name]).any()
        assert (first[name] != view_of(task, seed=1)[3, 1][name]).any()


def test_kept_images_are_what_was_read(tmp_path):
    task = told_by_gray(tmp_path)
    kept, read = (TaskImages(task, sorted_rows(task, "train"), size) for size in (1 << 20, 0))
    for _ in range(2):
        assert (kept.image(1) == read.image(1)).all()
        assert (kept.target(1) == read.target(1)).all()


def test_an_unreadable_mask_is_an_item_that_says_task_file_and_line(tmp_path):
    task = told_by_gray(tmp_path)
    save(tmp_path / "1_mask.png", np.full((60, 90), 5, np.uint8))
    error = view_of(task)[0, 1]["error"]
    assert "task made" in str(error)
    assert "line 3" in str(error)
    assert "1_mask.png" in str(error)


@pytest.mark.parametrize("shape", [(40, 40), (300, 80), (7, 500)])
def test_crops_of_a_squeezed_image_lie_inside_and_have_its_shape_at_most(shape):
    image = np.full(shape, 40000, np.uint16)
    for number in range(50):
        box, _, _, _ = draw_whole(image, 32, np.random.default_rng(number), WILD)
        assert 0 <= box.top
        assert 0 <= box.left
        assert box.top + box.height <= shape[0]
        assert box.left + box.width <= shape[1]
        assert box.height * box.width >= 0.25 * shape[0] * shape[1]
