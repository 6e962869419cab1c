"""The dense probe: each token lies on its pixels, masks keep their size, seeds act."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_tasks import SEGMENTATION, picture, save, write

from dexcore.evaluate.embedding import FeaturesError, FeatureTable
from dexcore.evaluate.probes.dense import dense_probe, majority_masks
from dexcore.evaluate.scores import score
from dexcore.evaluate.scores.predictions import read_mask
from dexcore.evaluate.tasks import Task

GRID = (4, 6)
SPLITS = ("train",) * 6 + ("val",) * 2 + ("test",) * 4


def squares(folder, shape=(32, 48), values=(0, 1), **keys):
    """Pictures whose lesion covers whole patches, and a table of tokens that say which, with noise."""
    random, rows, tokens = np.random.default_rng(0), [], []
    for number, split in enumerate(SPLITS):
        patches = random.choice(len(values), GRID)
        mask = np.kron(np.array(values)[patches], np.ones((shape[0] // GRID[0], shape[1] // GRID[1]))).astype(np.uint8)
        save(folder / f"{number}.png", picture(number, shape))
        save(folder / f"{number}_mask.png", mask)
        rows.append({"image": f"{number}.png", "mask": f"{number}_mask.png", "split": split, "case": f"p{number}"})
        told = np.eye(len(values))[patches].reshape(-1, len(values))
        tokens.append(np.concatenate([told, random.normal(size=(len(told), 3))], axis=1))
    task = Task.open(write(folder, rows, **SEGMENTATION | keys))
    held = np.array(tokens, np.float16)
    return task, FeatureTable(
        image=tuple(row.image for row in task.rows),
        mean=held.mean(axis=1, dtype=np.float32),
        grid=GRID,
        crop="whole",
        key="made",
        _tokens=lambda rows: held[list(rows)],
        _token_rows=tuple(range(len(held))),
    )


def bytes_of(predictions):
    return [Path(path).read_bytes() for path in predictions.values]


def test_a_lesion_that_the_tokens_tell_is_found_where_it_lies(tmp_path):
    task, table = squares(tmp_path)
    found = dense_probe(task, table, tmp_path / "out", "made", steps=150)
    assert score(found.predictions, task, draws=10).primary.value > 0.85
    assert read_mask(found.predictions.values[0]).shape == (32, 48)


def test_masks_have_the_images_own_size_and_pixels_to_ignore_take_no_part(tmp_path):
    keys = {"classes": ["background", "lesion", "other"], "ignore": 255}
    task, table = squares(tmp_path, (36, 60), (0, 1, 2, 255), **keys)
    found = dense_probe(task, table, tmp_path / "out", steps=60)
    masks = [read_mask(path) for path in found.predictions.values]
    assert {mask.shape for mask in masks} == {(36, 60)}
    assert {int(value) for mask in masks for value in np.unique(mask)} <= {0, 1, 2}
    assert score(found.predictions, task, draws=10).primary.value > 0.7


def test_the_same_seed_gives_the_same_bytes_and_another_another_head(tmp_path):
    task, table = squares(tmp_path)
    one, again, other = (
        dense_probe(task, table, tmp_path / str(place), seed=seed, steps=3).predictions
        for place, seed in enumerate((5, 5, 6))
    )
    assert bytes_of(one) == bytes_of(again)
    assert bytes_of(one) != bytes_of(other)


def test_the_order_of_the_table_of_features_changes_no_byte(tmp_path):
    task, table = squares(tmp_path)
    moved = table.of(table.image[::-1])
    one, other = (dense_probe(task, t, tmp_path / str(n), steps=3).predictions for n, t in enumerate((table, moved)))
    assert bytes_of(one) == bytes_of(other)


def test_masks_of_test_are_not_read(tmp_path):
    task, table = squares(tmp_path)
    assert task.fingerprint
    for row in task.split("test"):
        (tmp_path / row.image.replace(".png", "_mask.png")).unlink()
    assert len(dense_probe(task, table, tmp_path / "out", steps=1).predictions) == 4
    majority = majority_masks(task, tmp_path / "majority")
    assert len({read_mask(path).tobytes() for path in majority.values}) == 1


def test_channels_are_decided_apart(tmp_path):
    random, rows, tokens = np.random.default_rng(0), [], []
    for number, split in enumerate(SPLITS):
        patches = random.random((2, *GRID)) < 0.5
        save(tmp_path / f"{number}.png", picture(number, (32, 48)))
        row = {"image": f"{number}.png", "split": split, "case": f"p{number}"}
        for channel, name in enumerate("ab"):
            save(tmp_path / f"{number}_{name}.png", np.kron(patches[channel], np.ones((8, 8))).astype(np.uint8))
            row[f"mask_{name}"] = f"{number}_{name}.png"
        rows.append(row)
        tokens.append(patches.reshape(2, -1).T)
    task = Task.open(write(tmp_path, rows, kind="multilabel_segmentation", classes=["a", "b"]))
    held = np.array(tokens, np.float16)
    table = FeatureTable(
        tuple(row.image for row in task.rows),
        held.mean(axis=1, dtype=np.float32),
        grid=GRID,
        crop="whole",
        _tokens=lambda numbers: held[list(numbers)],
        _token_rows=tuple(range(len(held))),
    )
    found = dense_probe(task, table, tmp_path / "out", steps=150)
    assert score(found.predictions, task, draws=10).primary.value > 0.75  # corners of single patches are rounded
    assert score(majority_masks(task, tmp_path / "majority"), task, draws=10).primary.value < 0.7


def test_a_table_without_tokens_is_refused(tmp_path):
    task, table = squares(tmp_path)
    with pytest.raises(FeaturesError, match="no patch tokens"):
        dense_probe(task, replace(table, _tokens=None), tmp_path / "out")


def test_tokens_of_a_part_of_the_image_are_refused(tmp_path):
    task, table = squares(tmp_path)
    for crop in ("center", ""):
        with pytest.raises(FeaturesError, match=r'expected features.*crop="whole"'):
            dense_probe(task, replace(table, crop=crop), tmp_path / "out")
