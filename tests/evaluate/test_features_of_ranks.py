"""Features on several processes: each image is computed once, by one of them, and all get the whole table."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from made_tasks import picture, save, write
from runs import ends, start_ranks
from torch.nn.modules.module import register_module_forward_pre_hook

from dexcore.evaluate.embedding import FeatureTable, features, open_model
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
    assert codes == [2, 2], errors
    assert all("3.png" in error and "line 5" in error for error in errors)
    assert list((tmp_path / "cache").rglob("*.arrow"))  # what the other process computed is kept


KILLED = """
import os, signal, sys
from torch.nn.modules.module import register_module_forward_pre_hook
from dexcore.evaluate.embedding import extract, features, open_model

extract._STREAM_ROWS = 4  # a batch a stream
model, calls = open_model(sys.argv[1]), []

def kill(part, _):
    calls.extend([1] * (part is model.patch_embed))
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)

register_module_forward_pre_hook(kill)
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
    count = register_module_forward_pre_hook(lambda part, _: calls.extend([1] * (part is model.patch_embed)))
    resumed = features(model, task, cache=cache, batch_size=4)
    count.remove()
    assert len(calls) == 3  # 21 images are 6 batches, 3 of which were kept
    whole = features(model, task, cache=tmp_path / "other", batch_size=4)
    for name in ("mean", "cls", "gates"):
        assert getattr(resumed, name).tobytes() == getattr(whole, name).tobytes()


OF_RANKS = """
import sys
from datetime import timedelta
import numpy as np
import torch
import torch.distributed as dist
from dexcore.evaluate.embedding import Features, FeaturesError, Preprocessing, features, open_model

dist.init_process_group("gloo", timeout=timedelta(seconds=120))
rank, (what, folder, cache) = dist.get_rank(), sys.argv[1:]
images = [np.full((32, 32, 3), number, np.uint8) for number in range(6)]
model, options = open_model(folder), {"cache": cache, "batch_size": 2}
if what == "weights" and rank:
    with torch.no_grad():
        model.norm.bias += 1
if what == "images" and rank:
    images[4] = images[4] + 1
if what == "precision" and rank:
    options["precision"] = "bf16"
if what == "callable":
    options |= {"preprocessing": Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3), "tokens": True}
    model = lambda images: Features(tokens=images.flatten(2).transpose(1, 2))
if what == "callable" and rank:
    import time
    from dexcore.evaluate.embedding import extract
    read = extract._Work.tables
    extract._Work.tables = lambda *given: (time.sleep(2), read(*given))[1]  # the others are done by then
try:
    table = features(model, images, **options)
    print(table.mean.sum().item(), table.tokens([5]).sum().item() if what == "callable" else "")
except FeaturesError as error:
    print(error)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["weights", "images", "precision", "callable"])
def test_processes_share_one_cache_only_of_the_same_and_a_callable_is_read_before_it_is_removed(made, tmp_path, what):
    script = tmp_path / "ranks.py"
    script.write_text(OF_RANKS)
    codes, printed, errors = ends(start_ranks(2, [str(script), what, str(made / "model"), str(tmp_path / "cache")]))
    assert codes == [0, 0], errors
    assert printed[0] == printed[1]
    told = {"weights": "different model", "images": "different images", "precision": "different view, mode or prec"}
    assert told.get(what, ".") in printed[0]
    assert not list((tmp_path / "cache").rglob("*.arrow"))  # neither refused nor left
