"""dexcore eval features and dexcore embed, as one calls them."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("evaluate", "train")]

from made_tasks import labelled, write
from runs import write_images

from dexcore.cli import main
from dexcore.evaluate.embedding import FeatureTable, features
from dexcore.models import DEXVisionTransformer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    torch.manual_seed(0)
    made = DEXVisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    made.set_preprocessing((0.5,) * 3, (0.5,) * 3)
    made.save_pretrained(folder)
    return folder


def test_embed_writes_a_row_an_image_of_a_store(tmp_path, model, capsys):
    store, out = write_images(tmp_path / "store", images=8), tmp_path / "new" / "features.parquet"
    command = ["embed", str(store), "--model", str(model), "--out", str(out), "--cache", str(tmp_path / "cache")]
    assert main([*command, "--device", "cpu"]) == 0
    assert "features of 8 images (experts): class token 32, mean 32, gates 2 x 8" in capsys.readouterr().out
    table, written = FeatureTable.load(out), parquet.read_table(out)
    assert np.array_equal(table.mean, features(model, store, cache=tmp_path / "other").mean)
    assert written.column("image").to_pylist() == [f"#{number}" for number in range(8)]
    assert set(written.column("modality").to_pylist()) == {"PET", "OCT", "Endoscopy", "Photo"}
    before = out.read_bytes()
    assert main([*command, "--batch-size", "3", "--device", "cpu"]) == 0
    assert out.read_bytes() == before
    assert main([*command, "--mode", "director", "--device", "cpu"]) == 0
    assert FeatureTable.load(out).mode == "director"


def test_eval_features_fills_both_modes(tmp_path, model, capsys):
    task = write(tmp_path, labelled(tmp_path, copies=1))
    cache = str(tmp_path / "cache")
    assert main(["eval", "features", str(task), str(model), "--cache", cache, "--tokens", "--device", "cpu"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1] for line in told] == [f" features of 12 images ({m})" for m in ("experts", "director")]
    kinds = {"test_vit": "--img-size", "test_resnet": "--seed"}
    for name, flag in kinds.items():
        more = ["--weights", "random", flag, "64", "--device", "cpu"]
        assert main(["eval", "features", str(task), name, "--cache", cache, *more]) == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["embed", "nowhere", "--model", "MODEL", "--out", "o.parquet"], "nowhere: no such folder"),
        (["embed", ".", "--model", "MODEL", "--out", "."], "--out . is a folder"),
        (["embed", ".", "--model", "MODEL", "--out", "o.parquet", "--mode", "both"], "--mode is both"),
        (["eval", "features", "made.yaml", "vit_tiny_patch16_224"], "expected weights beside it"),
        (["eval", "features", "made.yaml", "no_model"], "no_model: expected a folder"),
        (["eval", "features", "made.yaml", "MODEL", "--weights", "w.pth"], "is a folder with its own weights"),
        (["eval", "features", "made.yaml", "MODEL", "--device", "no"], "error: device: expected auto"),
        (
            ["eval", "features", "made.yaml", "test_vit", "--weights", "random", "--mode", "director"],
            "mode must be one",
        ),
    ],
    ids=["folder", "out", "both", "weights", "model", "own weights", "device", "mode"],
)
def test_what_cannot_be_done_is_told_in_a_line(tmp_path, model, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEXCORE_CACHE", str(tmp_path / "cache"))
    write(tmp_path, labelled(tmp_path, copies=1))
    assert main([str(model) if word == "MODEL" else word for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert error.count("\n") == 1
