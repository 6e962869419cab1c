"""A model that is probed while it trains: when, with what found, and nothing of the training changed."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from runs import ends, flags, metrics, start_ranks, tiny

from dexcore.engine.config import ConfigError
from dexcore.engine.ranks import ALONE
from dexcore.report.probe_course import ProbeCourse, probe_picture
from dexcore.train import PretrainConfig, pretrain
from dexcore.train.command import main
from dexcore.train.probe import TrainingProbe
from dexcore.train.schedules import Schedule

RANK_RUN = str(Path(__file__).with_name("rank_run.py"))
LOOKS_AT_PAGES = True
TESTS_ARE_NONSENSE = {"dark": "bright", "bright": "dark"}  # whoever read them would see it


def make_task(folder: Path, **keys: object) -> Path:
    """Dark and bright pictures: of each four train cases, two val and two test cases, these with the wrong label."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = []
    for label, level in (("dark", 40), ("bright", 200)):
        for case, split in enumerate(["train"] * 4 + ["val"] * 2 + ["test"] * 2):
            pixels = np.clip(rng.normal(level, 20, (20, 24)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{label}{case}.png")
            told = TESTS_ARE_NONSENSE[label] if split == "test" else label
            rows.append({"image": f"{label}{case}.png", "label": told, "split": split, "case": f"{label}{case}"})
    with open(folder / "made.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    said = {"modality": "OCT", "kind": "classification", "classes": ["dark", "bright"]} | keys
    (folder / "made.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    return folder / "made.yaml"


def probed(store: Path, out: Path, task: Path, **run: object) -> PretrainConfig:
    """Fifteen steps of eight images, probed every second epoch of twenty."""
    return tiny(store, out, **{"epochs": 6, "probe_task": str(task), "probe_every": 2, **run})


def lines(out: str | Path) -> list[dict]:
    return [json.loads(line) for line in (Path(out) / "probe.jsonl").read_text().splitlines()]


def test_a_run_is_probed_before_its_first_step_every_so_many_epochs_and_at_its_end(store, tmp_path):
    config = probed(store, tmp_path / "run", make_task(tmp_path / "task"))
    for every, moments in ((2, {0, 5, 10, 15}), (1.0, {0, 2, 5, 8, 10, 12, 15}), (100, {0, 15}), (4, {0, 10, 15})):
        one = replace(config, run=replace(config.run, probe_every=every))
        assert TrainingProbe(one, Schedule(one, 20), tmp_path, ALONE).moments == moments


def test_a_task_that_cannot_be_probed_is_refused_before_anything_is_written(store, tmp_path, capsys):
    masks = make_task(tmp_path / "masks", kind="segmentation")
    nobody = tmp_path / "nobody.yaml"
    for task, told in ((masks, "run.probe_task: "), (nobody, "run.probe_task: ")):
        config = probed(store, tmp_path / "run", task)
        assert main(flags(config, tmp_path)) == 2
        error = capsys.readouterr().err
        assert told in error
        assert str(task.name) in error or "made" in error
        assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match=r"run.probe_every: expected a number above 0"):
        probed(store, tmp_path / "run", masks, probe_every=0)


def test_an_image_of_the_task_that_cannot_be_read_ends_the_run_before_its_first_step(store, tmp_path):
    task = make_task(tmp_path / "task")
    (tmp_path / "task" / "dark2.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match=r"run.probe_task: .*dark2.png"):
        pretrain(probed(store, tmp_path / "run", task))
    assert not (tmp_path / "run").exists()


def test_curves_of_a_probe_are_read_with_what_a_diverged_model_lacks(tmp_path):
    tried = [{"layer": "cls", "k": k, "votes": votes, "value": value, "measured": "auroc"} for k, votes, value in VOTES]
    line = {"task": "made", "fingerprint": "f", "metric": "auroc"}
    found = {"measured_on": "val", "images": 4, "cases": 4, "majority": 0.5, "modes": {"experts": tried}}
    old = {**line, **found, "fingerprint": "of another task"}
    written = [{"step": 0, **old}, {"step": 5, **line, **found}, {"step": 9, **line, "modes": {}, "error": "nan"}]
    path = tmp_path / "probe.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in written) + '{"step": 10, "ta')
    course = ProbeCourse.read(path)
    assert course.step.tolist() == [5, 9]
    np.testing.assert_array_equal(course.curves["experts", "cls"], [0.75, np.nan])
    assert (course.task, course.metric, course.majority) == ("made", "auroc", 0.5)
    assert probe_picture(course) is not None
    assert course.lines()[1:] == ["  experts, class token 0.750 to 0.750"]
    assert course.as_dict()["curves"] == [{"mode": "experts", "layer": "cls", "value": [0.75, None]}]
    assert probe_picture(ProbeCourse.read(tmp_path / "none")) is None
    path.write_text('{"step": 0, "fingerprint": "f", "modes": {"experts": [{"k": 20}]}}\n{"step": 1}\n')
    with pytest.raises(ValueError, match=r"probe\.jsonl: damaged"):
        ProbeCourse.read(path)


VOTES = ((20, "weighted", 0.75), (5, "plain", 1.0))


@pytest.fixture(scope="module")
def pair(store, tmp_path_factory) -> tuple[PretrainConfig, PretrainConfig]:
    """The same run, probed and not."""
    folder = tmp_path_factory.mktemp("probed")
    probe = probed(store, folder / "probed", make_task(folder / "task"))
    plain = probed(store, folder / "plain", Path())
    plain = replace(plain, run=replace(plain.run, probe_task=""))
    assert pretrain(probe).finished
    assert pretrain(plain).finished
    return probe, plain


@pytest.mark.slow
def test_a_probe_changes_no_bit_of_the_training(pair):
    probe, plain = (Path(config.out) for config in pair)
    assert metrics(probe) == metrics(plain)
    for name in ("model/model.safetensors", "evaluation_step0.npz", "similarity.jsonl"):
        assert (probe / name).read_bytes() == (plain / name).read_bytes(), name
    assert not (plain / "probe.jsonl").exists()
    assert not (probe / ".probe").exists()


@pytest.mark.slow
def test_a_probe_s_numbers_are_of_val_in_both_modes_and_stand_in_the_report(pair):
    folder = Path(pair[0].out)
    found = lines(folder)
    assert [line["step"] for line in found] == [0, 5, 10, 15]
    for line in found:
        assert (line["task"], line["measured_on"], line["images"], line["cases"]) == ("made", "val", 4, 4)
        assert set(line["modes"]) == {"experts", "director"}
        # Dark and bright are told apart by any features; on the test images, whose labels are wrong, it would be 0.
        assert all(one["value"] == 1.0 for tried in line["modes"].values() for one in tried if one["k"] == 20)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["probe"]["step"] == [0, 5, 10, 15]
    assert (folder / "report" / "probe.png").exists()
    assert "What the features are worth to a task" in (folder / "report.html").read_text(encoding="utf-8")


def test_less_than_a_step_between_two_probes_is_refused_at_once(store, tmp_path):
    config = probed(store, tmp_path / "run", make_task(tmp_path / "task"), probe_every=0.4)
    assert TrainingProbe(config, Schedule(config, 20), tmp_path, ALONE).moments == set(range(16))  # every step
    for every in (0.39, 1e-9):  # of which 1e-9 would be fifteen milliards of moments
        config = replace(config, run=replace(config.run, probe_every=every))
        with pytest.raises(ConfigError, match=r"run.probe_every: expected at least a step, 0.4 epochs of 20 images"):
            TrainingProbe(config, Schedule(config, 20), tmp_path, ALONE)


@pytest.mark.slow
def test_a_resumed_run_is_probed_as_one_that_was_not_stopped(pair, tmp_path):
    config = replace(pair[0], out=str(tmp_path / "again"), resume=True)
    shutil.copytree(pair[0].out, config.out)
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000015")  # it goes on after step 10
    assert pretrain(config).finished
    assert lines(config.out) == lines(pair[0].out)
    assert metrics(config.out) == metrics(pair[0].out)


@pytest.mark.slow
def test_two_ranks_share_a_probe_and_end_with_the_numbers_of_one(pair, store, tmp_path):
    config = replace(pair[0], out=str(tmp_path / "two"))
    config = replace(config, run=replace(config.run, precision="fp32"))
    (tmp_path / "states").mkdir()
    flags(config, tmp_path)
    codes, _, errors = ends(start_ranks(2, [RANK_RUN, str(tmp_path / "two.yaml"), str(tmp_path / "states")]))
    assert codes == [0, 0], errors
    ranks = [np.load(tmp_path / "states" / f"rank{rank}.npz") for rank in range(2)]
    assert all(np.array_equal(ranks[0][name], ranks[1][name]) for name in ranks[0].files)
    assert [line["step"] for line in lines(config.out)] == [0, 5, 10, 15]
    for line, alone in zip(lines(config.out), lines(pair[0].out), strict=True):
        for mode, tried in line["modes"].items():
            for one, other in zip(tried, alone["modes"][mode], strict=True):
                assert one["value"] == pytest.approx(other["value"])
