"""Probes from the command line: what they leave in the folder, baselines, restarts."""

import contextlib
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from made_tasks import SEGMENTATION, masked, save, write
from PIL import Image
from test_dense_probe import squares
from test_probes import GRID, a_task, told

from dexcore.cli import main
from dexcore.commands.eval_probe import _name
from dexcore.evaluate.embedding import FeaturesError, FeatureTable
from dexcore.evaluate.probes import few_shot, linear_probe, score_few_shot
from dexcore.evaluate.probes.baselines import histogram_features, intensities, majority, redrawn
from dexcore.evaluate.probes.dense import dense_probe
from dexcore.evaluate.probes.kept import load_settings
from dexcore.evaluate.probes.retrieval import retrieve
from dexcore.evaluate.probes.run import Probe, probes_of, run_majority, run_probe
from dexcore.evaluate.scores import Predictions, PredictionsError, Scores, compare, score
from dexcore.evaluate.scores.across import load_scores, table
from dexcore.evaluate.scores.baselines import is_baseline
from dexcore.evaluate.scores.compare import ComparisonError
from dexcore.evaluate.tasks import Task


def pictured(folder, count=40, classes=2):
    """A task of pictures; the ill are a little brighter at one place, which a thumbnail shows."""
    rows, random = [], np.random.default_rng(0)
    for number in range(count):
        label = number % classes
        pixels = random.integers(0, 128, (16, 16))
        pixels[:4, :4] += 60 * label
        save(folder / f"{number}.png", pixels.astype(np.uint8))
        split = ("train", "val", "test", "test")[number // classes % 4]
        rows.append({"image": f"{number}.png", "label": f"c{label}", "split": split, "case": f"p{number}"})
    return Task.open(write(folder, rows, name="pictured", classes=[f"c{n}" for n in range(classes)]))


def of(task, layers):
    names = tuple(row.image for row in task.rows)
    return FeatureTable(names, layers["mean"].astype(np.float32), layers["cls"].astype(np.float32), key="made")


def test_the_command_probes_features_from_a_file_beside_the_baselines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dexcore.evaluate.probes.run.linear_probe", partial(linear_probe, costs=GRID))
    task = pictured(tmp_path / "task")
    of(task, told(task)).save(tmp_path / "mine.parquet")
    out = tmp_path / "out"
    command = ["eval", "probe", str(task.spec.path), str(tmp_path / "mine.parquet"), "--out", str(out)]
    command += ["--cache", str(tmp_path / "cache")]
    assert main([*command, "--probe", "knn", "--probe", "linear"]) == 0
    found = {one.model for one in load_scores(out)}
    assert found == {"majority", "histogram knn", "histogram linear", "mine knn", "mine linear"}
    assert main(["eval", "compare", str(out / "mine" / "knn"), str(out / "histogram" / "knn")]) == 0
    assert main(["eval", "table", str(out)]) == 0
    choice = json.loads((out / "mine" / "linear" / "pictured" / "all" / "choice.json").read_text())
    assert choice["layer"] == "mean"
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert main([*command, "--probe", "knn", "--probe", "linear"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_a_mask_that_is_rewritten_in_its_place_makes_probes_again_and_refuses_comparisons(tmp_path):
    task, features = squares(tmp_path / "task")
    dense = Probe("dense")
    before = [run_majority(task, tmp_path / "out"), run_probe(task, features, "mine", dense, tmp_path / "out")]
    row = task.split("test")[0]
    mask = tmp_path / "task" / row.image.replace(".png", "_mask.png")
    save(mask, 1 - np.asarray(Image.open(mask)))
    changed = Task.open(task.spec.path)
    after = [run_majority(changed, tmp_path / "out"), run_probe(changed, features, "mine", dense, tmp_path / "out")]
    for one, other in zip(before, after, strict=True):
        assert one.primary.value != other.primary.value
        with pytest.raises(ComparisonError, match="not the same fingerprint"):
            compare(one, other)
    with pytest.raises(PredictionsError, match="another state of it"):
        score(Predictions.load(tmp_path / "out" / "mine" / "dense" / "made" / "seed-0"), task)


def test_a_probe_that_is_no_better_than_the_histogram_says_so(tmp_path):
    task = pictured(tmp_path / "task", 80)
    noise = told(task, grain=0.0)
    run_probe(task, histogram_features(task, tmp_path / "cache"), "histogram", Probe("knn"), tmp_path)
    found = run_probe(task, of(task, noise), "noise", Probe("knn"), tmp_path, beside=("histogram",))
    assert any(flag.startswith("does not beat histogram") for flag in found.flags)
    assert Scores.load(tmp_path / "noise" / "knn" / "pictured" / "all").flags == found.flags


def test_other_features_labels_or_a_half_written_folder_are_probed_again(tmp_path):
    task = a_task(tmp_path / "task", {"train": 20, "val": 10, "test": 20})
    layers = told(task)
    first = run_probe(task, of(task, layers), "a", Probe("knn"), tmp_path)
    folder = Probe("knn").folder(tmp_path, "a", "made")
    (folder / "probe.json").unlink()
    (folder / "scores.npz").unlink()
    again = run_probe(task, of(task, layers), "a", Probe("knn"), tmp_path)
    assert again.as_json() == first.as_json()
    layers["mean"] = -layers["mean"] + layers["cls"]
    other = run_probe(task, of(task, layers), "a", Probe("knn"), tmp_path)
    assert other.as_json() != first.as_json()


def test_few_shot_is_left_beside_the_others_and_read_again(tmp_path, monkeypatch, capsys):
    task = a_task(tmp_path / "task", {"train": 20, "test": 20})
    monkeypatch.setattr("dexcore.evaluate.probes.run.few_shot", lambda *given: _small(*given))
    for model, layers in (("histogram", told(task, grain=0.0)), ("a", told(task, grain=0.0, seed=1))):
        found = run_probe(
            task, of(task, layers), model, Probe("fewshot"), tmp_path, beside=("histogram",) if model == "a" else ()
        )
    assert any(flag == "does not beat histogram in any setting" for flag in found.flags)
    again = run_probe(task, of(task, layers), "a", Probe("fewshot"), tmp_path, beside=("histogram",))
    assert again.as_json() == found.as_json()
    assert main(["eval", "compare", str(tmp_path / "a"), str(tmp_path / "histogram")]) == 0
    assert "made: 1 a class, centroid on cls: balanced_accuracy of a - histogram" in capsys.readouterr().out


def _small(*given):
    from dexcore.evaluate.probes import few_shot

    return few_shot(*given, count=4, shots=(1, 2))


def test_masks_are_probed_and_stand_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr("dexcore.evaluate.probes.dense.dense_probe", partial(dense_probe, steps=60))
    task, features = squares(tmp_path / "task")
    made = run_probe(task, features, "made", Probe("dense"), tmp_path / "out")
    assert run_probe(task, features, "made", Probe("dense"), tmp_path / "out").as_json() == made.as_json()
    majority_found = run_majority(task, tmp_path / "out")
    told_rows = table([majority_found, made], draws=50).rows
    assert told_rows[0].ranks["made dense"] == 1


def test_seeds_are_refused_of_what_has_no_randomness_and_draws_of_what_has(tmp_path, capsys):
    task = a_task(tmp_path, {"train": 4, "test": 4})
    command = ["eval", "probe", str(task.spec.path), "x.parquet", "--out", str(tmp_path)]
    assert main([*command, "--probe", "linear", "--seeds", "5"]) == 2
    assert "the probe linear has no randomness" in capsys.readouterr().err
    assert main([*command, "--probe", "fewshot", "--draws", "5"]) == 2
    assert "fewshot has seeds" in capsys.readouterr().err
    assert main([*command, "--probe", "dense"]) == 2
    assert "the probe dense is not for it" in capsys.readouterr().err
    assert [probe.draw for probe in probes_of(task, ["linear"], 3)] == [0, 1, 2]
    assert [probe.seed for probe in probes_of(task, ["fewshot"], 0, 2)] == [0, 1]


def test_a_training_is_told_of_what_has_scores_and_not_beside_draws_or_seeds(tmp_path):
    task = a_task(tmp_path / "task", {"train": 20, "test": 20})
    assert [(one.name, one.training) for one in probes_of(task, [], training=2)] == [("knn", 2), ("linear", 2)]
    for given, told_of in (
        ({"names": ["fewshot"], "training": 0}, "fewshot is not for it with a training"),
        ({"names": ["knn"], "training": 0, "draws": 3}, "not by both"),
        ({"names": ["fewshot"], "training": 0, "seeds": 2}, "not by both"),
        ({"names": ["knn"], "training": -1}, "expected 0 or more"),
    ):
        with pytest.raises(ValueError, match=told_of):
            probes_of(task, **given)


def test_draws_of_training_cases_are_trainings_of_one_model(tmp_path):
    task = a_task(tmp_path / "task", {"train": 30, "val": 20, "test": 30})
    for probe in probes_of(task, ["knn"], 3):
        run_probe(task, of(task, told(task, grain=0.7)), "a", probe, tmp_path / "out")
    found = load_scores(tmp_path / "out")
    assert sorted(one.seed for one in found) == [0, 1, 2]
    assert table(found, draws=50).models == ("a knn, drawn",)


def test_trainings_of_a_model_are_taken_together_and_baselines_are_probed_once(tmp_path):
    task = a_task(tmp_path / "task", {"train": 20, "val": 10, "test": 20})
    out = tmp_path / "out"
    for training in range(3):
        for model, seed in (("histogram", 9), ("mine", training)):
            probe = Probe("knn", training=training)
            run_probe(
                task, of(task, told(task, seed=seed)), model, probe, out, beside=("histogram",) * (model == "mine")
            )
    (made,) = out.glob("histogram/knn/made/all/probe.json")
    before = made.stat().st_mtime_ns
    run_probe(task, of(task, told(task, seed=9)), "histogram", Probe("knn", training=1), out)
    assert made.stat().st_mtime_ns == before
    with pytest.raises(FeaturesError, match=r"probed as one of several trainings in .*training-0"):
        run_probe(task, of(task, told(task)), "mine", Probe("knn"), out)
    run_probe(task, of(task, told(task)), "other", Probe("knn"), out)
    with pytest.raises(FeaturesError, match=r"probed without a training in .*other"):
        run_probe(task, of(task, told(task)), "other", Probe("knn", training=1), out)
    assert (out / "training-2" / "mine" / "knn" / "made" / "all").is_dir()
    assert not list(out.glob("training-*/histogram"))
    found = [one for one in load_scores(out) if one.model != "other knn"]
    assert sorted((one.model, str(one.seed)) for one in found) == [
        ("histogram knn", "None"),
        *(("mine knn", str(training)) for training in range(3)),
    ]
    (row,) = table(found, against="histogram knn").rows
    assert row.against["mine knn"].seeds == (3, 1)


def test_all_cases_draws_of_them_and_fewer_seeds_than_before_stand_side_by_side_in_a_table(tmp_path, monkeypatch):
    task = a_task(tmp_path / "task", {"train": 30, "val": 20, "test": 30})
    for draws in (0, 3, 2):
        for probe in probes_of(task, ["knn"], draws):
            run_probe(task, of(task, told(task, grain=0.7)), "a", probe, tmp_path / "out")
    found = table(load_scores(tmp_path / "out"), against="a knn", draws=50)
    assert set(found.models) == {"a knn", "a knn, drawn"}
    place = tmp_path / "out" / "a" / "knn" / "made"
    assert {path.name for path in place.iterdir()} == {"all", "draw-0", "draw-1", "draw-2"}
    monkeypatch.setattr("dexcore.evaluate.probes.dense.dense_probe", partial(dense_probe, steps=2))
    masks, tokens = squares(tmp_path / "masks")
    for seeds in (None, 2, 1):
        for probe in probes_of(masks, ["dense"], seeds=seeds):
            run_probe(masks, tokens, "a", probe, tmp_path / "dense")
    folders = {path.name for path in (tmp_path / "dense" / "a" / "dense" / masks.name).iterdir()}
    assert folders == {"seed-0", "seed-1"}
    assert sorted(one.seed for one in load_scores(tmp_path / "dense")) == [0, 1]


def test_draws_of_another_state_of_the_task_are_removed(tmp_path):
    task = a_task(tmp_path / "task", {"train": 20, "val": 10, "test": 20})
    for probe in probes_of(task, ["knn"], 3):
        run_probe(task, of(task, told(task)), "a", probe, tmp_path / "out")
    task = a_task(tmp_path / "task", {"train": 20, "val": 10, "test": 18})
    for probe in probes_of(task, ["knn"], 2):
        run_probe(task, of(task, told(task)), "a", probe, tmp_path / "out")
    found = load_scores(tmp_path / "out")
    assert [(one.seed, one.fingerprint) for one in found] == [(0, task.fingerprint), (1, task.fingerprint)]
    assert table(found, draws=50).models == ("a knn, drawn",)


@pytest.mark.parametrize("keys", [("one", "other"), ("", "")])
def test_two_models_of_one_name_do_not_overwrite_each_other(tmp_path, keys):
    task = a_task(tmp_path / "task", {"train": 20, "val": 10, "test": 20})
    one, other = (replace(of(task, told(task, seed=seed)), key=key) for seed, key in enumerate(keys))
    first = run_probe(task, one, "a", Probe("knn"), tmp_path / "out")
    for probe in (Probe("knn"), Probe("knn", draw=1)):
        with pytest.raises(FeaturesError, match=r"made from other features under the name a.*--name"):
            run_probe(task, other, "a", probe, tmp_path / "out")
    assert [one.as_json() for one in load_scores(tmp_path / "out")] == [first.as_json()]


def test_a_run_is_named_by_its_folder(tmp_path, monkeypatch):
    for run in ("a", "b"):
        (tmp_path / run / "model").mkdir(parents=True)
    assert [_name(tmp_path / run / "model") for run in ("a", "b")] == ["a", "b"]
    assert _name(tmp_path / "a") == "a"
    monkeypatch.chdir(tmp_path / "a" / "model")
    assert _name(Path()) == "a"
    assert _name(Path("vit_tiny_patch16_224")) == "vit_tiny_patch16_224"


def test_the_majority_knows_nothing(tmp_path):
    task = a_task(tmp_path, {"train": 21, "val": 9, "test": 20}, classes=3)
    found = score(majority(task), task, draws=10)
    assert found.primary.value == 0.5
    segmented = Task.open(write(tmp_path / "masks", masked(tmp_path / "masks"), **SEGMENTATION))
    assert run_majority(segmented, tmp_path / "out").model == "majority"


def test_intensities_are_shares_and_means_of_an_image():
    images = torch.zeros(2, 3, 128, 128)
    images[1, 0, :64] = 1.0
    whole, tokens, grid = intensities(images)
    assert whole.shape == (2, 3 * (32 + 64))
    assert tokens.shape == (2, 256, 36)
    assert grid == (16, 16)
    assert whole[0, 0] == 1
    assert whole[1, [0, 31]].tolist() == [0.5, 0.5]
    assert tokens[1, 0, 0] == 1  # the first patch of the first channel
    assert tokens[1, 255, 0] == 0


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "dex_vit_tiny_patch16_224"])
def test_a_redrawn_model_has_other_weights_of_the_same_shapes_by_seed(name):
    import dexcore.models  # noqa: F401

    model = timm.create_model(name, img_size=32, depth=2, num_classes=0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    one, again, other = (redrawn(model, seed) for seed in (1, 1, 2))
    for key, value in before.items():
        assert torch.equal(model.state_dict()[key], value)
        assert torch.equal(one.state_dict()[key], again.state_dict()[key])
        if value.ndim > 1 and "bias" not in key:
            assert not torch.equal(one.state_dict()[key], value), key
            assert not torch.equal(one.state_dict()[key], other.state_dict()[key]), key


def test_a_twin_is_probed_and_the_model_is_flagged_where_it_does_not_beat_it(tmp_path, capsys):
    task = a_task(tmp_path / "task", {"train": 20, "val": 10, "test": 20})
    of(task, told(task, grain=1.0)).save(tmp_path / "mine.parquet")
    replace(of(task, told(task, grain=5.0)), key="other").save(tmp_path / "dense.parquet")
    command = ["eval", "probe", str(task.spec.path), str(tmp_path / "mine.parquet"), "--out", str(tmp_path / "out")]
    command += ["--no-baselines", "--probe", "knn", "--probe", "retrieval"]
    assert main([*command, "--twin", f"dense={tmp_path / 'dense.parquet'}"]) == 0
    found = {one.model: one for one in load_scores(tmp_path / "out")}
    assert any(flag.startswith("does not beat dense: auroc") for flag in found["mine knn"].flags)
    assert not any("does not beat" in flag for flag in found["dense knn"].flags)
    by_setting = {one.model: one for one in load_settings(tmp_path / "out")}
    assert "does not beat dense in any setting" in by_setting["mine"].flags
    capsys.readouterr()
    for twin, said in (("mine=x.parquet", "no such|No such|holds no features"), ("dense", "expected NAME=MODEL")):
        with contextlib.suppress(SystemExit):
            assert main([*command, "--twin", twin]) == 2
        assert re.search(said, capsys.readouterr().err)
    assert main([*command, "--twin", f"mine={tmp_path / 'dense.parquet'}"]) == 2
    assert "mine is the name of another model" in capsys.readouterr().err


def test_few_shot_and_retrieval_stand_in_the_table_with_marks_against_the_model_that_is_named(tmp_path, capsys):
    task = a_task(tmp_path / "task", {"train": 20, "test": 60})
    for model, grain in (("good", 3.0), ("bad", 0.0)):
        layers = told(task, grain=grain)
        if model == "bad":
            layers = {"mean": layers["mean"]}  # one layer stands beside any
        for seed in range(2):
            found = score_few_shot(few_shot(task, layers, model, seed, count=5, shots=(1,)), task)
            found.save(tmp_path / "out" / model / "fewshot" / "made" / f"seed-{seed}")
        retrieve(task, layers, model).save(tmp_path / "out" / model / "retrieval" / "made" / "all")
    assert main(["eval", "table", str(tmp_path / "out"), "--against", "bad knn"]) == 0
    told_lines = capsys.readouterr().out.splitlines()
    assert "| task | metric | setting | bad | good |" in told_lines
    rows = [line for line in told_lines if line.startswith("| made |")]
    assert len(rows) == 2 + 1  # methods; and retrieval
    assert all(row.endswith("+ |") for row in rows)
    assert main(["eval", "table", str(tmp_path / "out"), "--json"]) == 0
    by_setting = json.loads(capsys.readouterr().out)["by_setting"]
    assert by_setting["rows"][0]["numbers"]["good"]["value"] == pytest.approx(
        np.mean(
            [
                one.numbers[one.settings.index(("mean", 1, "centroid"))].value
                for one in load_settings(tmp_path / "out" / "good" / "fewshot")
            ]
        )
    )
    assert main(["eval", "table", str(tmp_path / "out"), "--against", "none"]) == 2
    assert "no model 'none', expected one of bad, good" in capsys.readouterr().err


def test_routes_of_the_test_images_are_left_beside_the_numbers(tmp_path):
    task = a_task(tmp_path / "task", {"train": 10, "val": 5, "test": 10})
    gates = np.zeros((len(task.rows), 2, 4), np.float32)
    test = np.array([row.split == "test" for row in task.rows])
    gates[test, :, 1] = 1.0
    gates[~test, :, 0] = 1.0
    run_probe(task, replace(of(task, told(task)), gates=gates), "a", Probe("knn"), tmp_path, command="dexcore eval")
    folder = Probe("knn").folder(tmp_path, "a", "made")
    routes = json.loads((folder / "routes.json").read_text())
    assert routes == {"images": 10, "gates": [[0, 1, 0, 0]] * 2}
    said = json.loads((folder / "made.json").read_text())
    assert said["command"] == "dexcore eval"
    assert {"torch", "dexcore"} <= set(said["versions"])


def test_baselines_are_known_by_their_names():
    assert all(map(is_baseline, ("majority", "histogram knn", "histogram linear, drawn", "mine-experts-random dense")))
    assert not any(map(is_baseline, ("mine-experts knn", "a-random-walk linear", "majority vote knn")))
