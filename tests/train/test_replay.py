"""A skipped step that is done again tells which image its numbers are not finite of, and changes nothing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import metrics, state, tiny
from several_ranks import Disturbed, alone

from dexcore.engine.config import ConfigError
from dexcore.train import pretrain
from dexcore.train.config import PretrainConfig
from dexcore.train.replay import replay

POISON = (0, 4)


@pytest.fixture(scope="module")
def skipped(store, tmp_path_factory) -> PretrainConfig:
    """A run one of whose images is given a NaN in step 4, resumable."""
    config = tiny(store, tmp_path_factory.mktemp("replay") / "run", epochs=3.0)
    alone(config, poison=POISON)
    assert [line["step"] for line in metrics(config.out) if line["skipped"]] == [4]
    return replace(config, resume=True)


def test_the_image_is_named_and_the_weights_are_as_before(skipped):
    folder = Path(skipped.out)
    run = Disturbed(skipped, folder)
    run.poison = POISON
    run.resume()
    before = state(run.model)
    lines = replay(run, folder / "skipped.jsonl")
    (entry,) = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    image = entry["sample_ids"][0]
    assert f"image {image}, {run.images.modality_names[run.images.modality[image]]}: #{image}" in lines[-1]
    assert any("not finite alone, 1 of 8 images" in line for line in lines)
    assert any(line.startswith("step 4: the loss is not finite, the gradient not in ") for line in lines)
    assert any("  encoder.patch_embed.proj.weight" in line for line in lines)
    assert all(np.array_equal(value, before[name]) for name, value in state(run.model).items())


def test_the_command_says_so_where_nothing_is_wrong_any_more_and_writes_no_file(skipped, capsys):
    folder = Path(skipped.out)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert pretrain(replace(skipped, replay=str(folder / "skipped.jsonl"))).finished
    told = capsys.readouterr().out
    assert "step 4: the loss is finite, the gradient not in 0 of" in told
    assert "no image alone makes a number that is not finite" in told
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_another_run_s_file_and_none_are_refused(skipped, tmp_path):
    file = Path(shutil.copy(Path(skipped.out) / "skipped.jsonl", tmp_path / "skipped.jsonl"))
    entry = json.loads(file.read_text())
    for text, match in (
        (json.dumps({**entry, "sample_ids": entry["sample_ids"][::-1]}), "is of another run: step 4"),
        (json.dumps({**entry, "step": 4000}), "holds step 4000, the run has"),
        ("", "holds no skipped step"),
        ("no json", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=match):
            pretrain(replace(skipped, replay=str(file)))
    with pytest.raises(ConfigError, match="replay: expected none without resume"):
        replace(skipped, resume=False, replay=str(file))
