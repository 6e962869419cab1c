"""What a probe of a task loses without an expert: its number of classes, or Dice of its masks."""

import numpy as np
import pytest
import torch
from made_tasks import save, write
from planted import MODALITIES, PATCH, SIZE, planted, write_stripes

from dexcore.evaluate.embedding import features
from dexcore.evaluate.modules.on_task import task_damage
from dexcore.evaluate.probes.dense import dense_probe
from dexcore.evaluate.probes.linear import linear_probe
from dexcore.evaluate.probes.run import layers_of
from dexcore.evaluate.scores import score
from dexcore.evaluate.tasks import Task

GRID = SIZE // PATCH


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_stripes(tmp_path_factory.mktemp("stripes") / "store")


def pictures(folder, **keys):
    """Pictures of the first two modalities, so that the model sends each kind to an expert of its own.

    Of classes: the modality. Of masks: patches whose lower stripes are green.
    """
    random, rows = np.random.default_rng(3), []
    of_masks = keys["kind"] == "segmentation"
    for number in range(24):
        modality, green = number // 2 % 2, random.random((GRID, GRID)) < 0.5
        upper = (np.arange(SIZE) % PATCH < PATCH // 2)[:, None, None]
        lower = np.eye(3)[np.kron(green, np.ones((PATCH, PATCH))).astype(int)]
        picture = 25 + 200 * np.where(upper, np.eye(3)[modality], lower) + random.normal(0, 4, (SIZE, SIZE, 3))
        save(folder / f"{number}.png", picture.clip(0, 255).astype(np.uint8))
        row = {"image": f"{number}.png", "split": ("train", "test")[number % 2], "case": str(number)}
        if of_masks:
            save(folder / f"{number}_mask.png", np.kron(green, np.ones((PATCH, PATCH))).astype(np.uint8))
            row["mask"] = f"{number}_mask.png"
        else:
            row["label"] = MODALITIES[modality].value
        rows.append(row)
    return Task.open(write(folder, rows, **keys))


def classes(folder):
    return pictures(folder, kind="classification", classes=["PET", "OCT"], metric="auroc", positive="OCT")


def masks(folder):
    return pictures(folder, kind="segmentation", classes=["background", "lesion"])


def of_probe(task, encoder, folder):
    """The task's number by the probe that users run."""
    if task.spec.is_segmentation:
        table = features(encoder, task, mode="experts", crop="whole", tokens=True, cache=folder / "cache")
        return score(dense_probe(task, table, folder / "masks").predictions, task).primary
    table = features(encoder, task, mode="experts", cache=folder / "cache")
    return score(linear_probe(task, layers_of(table, task)).predictions, task).primary


@pytest.mark.parametrize("made", [classes, masks])
def test_the_experts_that_test_images_use_are_missed_and_others_are_not(images, tmp_path, made):
    task, encoder = made(tmp_path / "task"), planted(images).encoder
    found = task_damage(encoder, task, cache=tmp_path / "cache")
    assert found.metric == ("dice" if made is masks else "auroc")
    assert repr(found.value) == repr(of_probe(task, encoder, tmp_path))
    assert found.value.value > 0.9
    for lost, shares in zip(found.lost, found.shares, strict=True):
        assert shares == pytest.approx((0.5, 0.5, 0, 0), abs=1e-6)
        assert [one.value for one in lost[2:]] == [0, 0]
    assert max(one.value for block in found.lost for one in block[:2]) > 0.1
    assert len({one.value for block in found.lost for one in block[:2]}) > 1


@pytest.mark.parametrize("made", [classes, masks])
def test_copies_of_one_expert_are_not_missed_and_the_model_is_left_as_it_was(images, tmp_path, made):
    task, encoder = made(tmp_path / "task"), planted(images, same=True).encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    found = task_damage(encoder, task, cache=tmp_path / "cache")
    assert found.value.value > 0.9
    assert {one.value for block in found.lost for one in block} == {0}
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    whole = {"mode": "experts"} | ({"crop": "whole", "tokens": True} if made is masks else {})
    kept, anew = (features(encoder, task, cache=tmp_path / place, **whole) for place in ("cache", "anew"))
    assert kept.mean.tobytes() == anew.mean.tobytes()
    if made is masks:  # tokens without an expert, as large as the whole features for each, are not kept
        assert len(list((tmp_path / "cache").iterdir())) == 1
