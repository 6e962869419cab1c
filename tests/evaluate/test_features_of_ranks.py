"""Features on several processes: each image is computed once, by one of them, and all get the whole table."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from made_tasks import picture, save, write
from runs import ends, start_ranks

from dexcore.evaluate.features import FeatureTable, features, open_model
from dexcore.models import DEXVisionTransformer

IMAGES = 21


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with 21 images, their task, and a model."""
    folder = tmp_path_factory.mktemp("ranks")
    rows = []
    for number in range(IMAGES):
        save(folder / "images" / f"{number}.png", picture(number, (72, 80)))
        split = ("train", "val", "test")[number % 3]
        rows.append({"image": f"{number}.png", "label": "sound", "split": split, "case": f"p{number}"})
    write(folder / "images", rows)
    torch.manual_seed(0)
    model = DEXVisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    model.set_preprocessing((0.5,) * 3, (0.5,) * 3)
    model.save_pretrained(folder / "model")
    return folder


def run(count, *arguments):
    """``dexcore arguments`` on so many processes: exit codes and errors."""
    codes, _, errors = ends(start_ranks(count, ["-m", "dexcore", *map(str, arguments)]))
    return codes, errors


def embed(made, count, out):
    cache = out.with_suffix(".cache")
    codes, errors = run(
        *(count, "embed", made / "images", "--model", made / "model", "--out", out, "--cache", cache),
        *("--modality", "X-ray", "--batch-size", 4, "--device", "cpu"),
    )
    assert codes == [0] * count, errors
    written = [key for path in cache.rglob("*.arrow") if "features" in path.parts for key in keys_of(path)]
    return FeatureTable.load(out), written


def keys_of(path):
    import pyarrow as pa

    with pa.ipc.open_stream(path) as reader:
        return reader.read_all().column("row_key").to_pylist()


@pytest.mark.slow
def test_21_images_on_two_and_three_processes_are_each_computed_once(made, tmp_path):
    alone, written = embed(made, 1, tmp_path / "1.parquet")
    assert len(set(alone.image)) == len(alone) == IMAGES
    assert sorted(written) == sorted(alone.row_key)
    for count in (2, 3):
        shared, written = embed(made, count, tmp_path / f"{count}.parquet")
        assert shared.image == alone.image
        assert shared.key == alone.key
        assert sorted(written) == sorted(alone.row_key)  # none twice, none left out
        for name in ("mean", "cls", "gates"):
            ours, theirs = getattr(shared, name), getattr(alone, name)
            assert np.abs(ours - theirs).max() <= 1e-4 * np.sqrt(np.square(theirs).mean())


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_all_and_is_named(made, tmp_path):
    (made / "images" / "3.png").rename(tmp_path / "3.png")
    (made / "images" / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    try:
        arguments = ("eval", "features", made / "images" / "made.yaml", made / "model", "--cache", tmp_path / "cache")
        codes, errors = run(2, *arguments, "--device", "cpu")
    finally:
        (tmp_path / "3.png").replace(made / "images" / "3.png")
    assert codes == [2, 2]
    assert all("3.png" in error and "line 5" in error for error in errors)
    assert list((tmp_path / "cache").rglob("*.arrow"))  # what the other process computed is kept


KILLED = """
import os, signal, sys
from dexcore.evaluate.features import extract, features, open_model

extract._STREAM_ROWS = 4  # a batch a stream
model, calls = open_model(sys.argv[1]), []

def kill(*_):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)

model.patch_embed.register_forward_pre_hook(kill)
features(model, sys.argv[2], cache=sys.argv[3], batch_size=4)
"""


@pytest.mark.slow
def test_a_killed_process_has_lost_one_batch_and_resumes_to_equal_bytes(made, tmp_path):
    task, cache = made / "images" / "made.yaml", tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, made / "model", task, cache], capture_output=True, timeout=240, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(cache.rglob("*.arrow"))) == 3
    model, calls = open_model(made / "model"), []
    model.patch_embed.register_forward_pre_hook(lambda *_: calls.append(1))
    resumed = features(model, task, cache=cache, batch_size=4)
    assert len(calls) == 3  # 21 images are 6 batches, 3 of which were kept
    whole = features(model, task, cache=tmp_path / "other", batch_size=4)
    for name in ("mean", "cls", "gates"):
        assert getattr(resumed, name).tobytes() == getattr(whole, name).tobytes()
