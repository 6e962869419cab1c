"""dexcore eval modules, as one calls it: numbers, page, pictures, and what is refused."""

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_tasks import picture, save, write
from planted import planted, write_stripes
from timm.models.vision_transformer import VisionTransformer

sys.path.append(str(Path(__file__).parents[1] / "report"))

from browser import find_browser, look_at

from dexcore.cli import main
from dexcore.data import open_mvu
from dexcore.evaluate.modules.run import plain
from dexcore.measures.bootstrap import Estimate
from dexcore.models import MaskedAutoencoder
from dexcore.report.modules_page import build_modules_page


def save_dense(folder: Path, **size) -> Path:
    torch.manual_seed(0)
    given = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 0}
    encoder = VisionTransformer(**given | size, class_token=False, global_pool="avg")
    model = MaskedAutoencoder(encoder, 16, 1, 2, mask_ratio=0.5, norm_pix_loss=False)
    model.set_preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store, planted models and a dense one."""
    root = tmp_path_factory.mktemp("modules")
    images = write_stripes(root / "store")
    for reads in ("modality", "tag"):
        planted(images, reads).save_pretrained(root / reads)
    save_dense(root / "dense")
    return root


def stripes_task(folder: Path) -> Path:
    """Bright and dark pictures of 60 cases."""
    rows = []
    for case in range(60):
        label, split = ("sound", "ill")[case % 2], ("train", "train", "val", "test", "test", "test")[case // 2 % 6]
        pixels = picture(case, (32, 32, 3)) // 2
        pixels[: 16 * (case % 2)] += 100
        save(folder / f"{case}.png", pixels)
        rows.append({"image": f"{case}.png", "label": label, "split": split, "case": str(case)})
    return write(folder, rows, metric="auroc", positive="ill")


@pytest.mark.slow
def test_the_command_measures_a_model_and_its_twins(folder, tmp_path, capsys):
    out = tmp_path / "out"
    twins = [f"--twin={name}={folder / name}" for name in ("tag", "dense")]
    task = ["--task", str(stripes_task(tmp_path / "task")), "--cache", str(tmp_path / "cache")]
    command = ["eval", "modules", str(folder / "modality"), str(folder / "store"), "--out", str(out), "--device", "cpu"]
    planted(open_mvu(folder / "store"), seed=1).save_pretrained(folder / "again")
    assert main([*command, *twins, *task, "--other-seed", str(folder / "again")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == f"page: {out / 'modules.html'}"
    numbers = json.loads((out / "modules.json").read_text())
    assert (numbers["model"], numbers["twins"]) == ("modality", ["tag", "dense"])
    assert numbers["cases"] == {"train": 24, "heldout": 12}
    assert [block["value"]["value"] for block in numbers["stability"]["blocks"]] == pytest.approx([1, 1])
    own, tag, dense = (numbers["models"][name] for name in ("modality", "tag", "dense"))
    assert own["routing"]["trained"]["blocks"][0]["nmi"] == pytest.approx(1)
    assert own["knock_out"]["specificity"]["p_value"] < 0.01
    grown, by_tag = (one["knock_out"]["specificity"]["value"] for one in (own, tag))
    # Above 0 by chance, and truly so: the planted decoder is fitted to these images, where tag and modality are tied.
    assert by_tag["value"] < 0.2 * grown["low"]
    drawn = f"modality: without an expert drawn as a modality uses them its loss grows by {grown['value']:.3f} ["
    assert any(line.startswith(drawn) for line in told)
    assert own["extraction"][0]["common_minus_own"]["low"] > 0
    assert numbers["twin_minus_model"]["tag"]["extraction"]["1"]["low"] > 0
    assert "left_out" in own["shared_space"]  # stripes have no classes
    assert set(dense) == {"experts", "shared_space"}
    assert len(own["task"]["lost"]) == 2
    assert any(flag.startswith("few cases") for flag in own["task"]["flags"])  # of its test images
    assert len(own["task"]["lost"][0]) == 4
    assert numbers["gradients"]["models"]["dense"]["ceiling"]["value"] is not None
    assert any("intervals are too narrow" in flag for flag in numbers["flags"])

    before = {path.name: path.read_bytes() for path in (out / "modules").iterdir()}
    assert {"routing.png", "own_damage.png", "damage_block_01.png", "extraction.png", "gradients.png"} < set(before)
    (out / "modules" / "old.png").write_bytes(b"")
    build_modules_page(out)
    assert {path.name for path in (out / "modules").iterdir()} == set(before)
    browser = find_browser()
    if browser is None:
        assert not os.environ.get("CI"), "CI is set, and no browser is installed"
        return
    for dark in (False, True):
        seen = look_at(browser, out / "modules.html", tmp_path / f"profile-{dark}", 390, dark)
        assert seen.scroll_width <= 390
        assert seen.pictures == len(before)
        assert [seen.missing, seen.narrow, seen.console, seen.requests] == [[], [], [], []]


def test_a_page_of_damaged_numbers_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        build_modules_page(tmp_path)
    for content in ("{", '{"model": "a"}'):
        (tmp_path / "modules.json").write_text(content)
        with pytest.raises(ValueError, match=r"modules\.json: damaged, expected the numbers of dexcore eval modules"):
            build_modules_page(tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--twin=modality=tag"], "--twin: expected names that differ from each other and from modality"),
        (["--twin=small=small"], "small: takes other images than modality"),
        (["--twin=none=nowhere"], "nowhere"),
        (["--device", "no"], "error: device: expected auto"),
        (["--images", "0"], "most must be"),
    ],
    ids=["names", "size", "folder", "device", "images"],
)
def test_what_cannot_be_measured_is_told_in_a_line(folder, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.chdir(folder)
    if not (folder / "small").exists():
        save_dense(folder / "small", img_size=16)
    command = ["eval", "modules", "modality", "store", "--out", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu", *more]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out" / "modules.json").exists()


def test_a_twin_without_a_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["eval", "modules", "a", "b", "--out", "c", "--twin", "folder"])
    assert "expected NAME=MODEL, got 'folder'" in capsys.readouterr().err


def test_numbers_become_json():
    estimate = Estimate(0.5, math.nan, math.inf, 0.0, 0, 3)
    found = plain({"a": (estimate, np.array([1.0, np.nan])), "b": [True, "text", None]})
    assert found["a"][0]["low"] is None
    assert found["a"][0]["groups"] == 3
    assert found["a"][1] == [1.0, None]
    assert found["b"] == [True, "text", None]
    json.dumps(found, allow_nan=False)
