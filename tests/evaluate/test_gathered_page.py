"""What a page takes from folders of scores, and the cases that it shows."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_predictions import classified, logits_of, masks_of, segmented
from test_probes import a_task, told

from dexcore.cli import main
from dexcore.evaluate.page import evaluation_page
from dexcore.evaluate.page.cases import chosen_cases, shown_cases
from dexcore.evaluate.probes import few_shot, retrieve, score_few_shot
from dexcore.evaluate.scores import score
from dexcore.evaluate.scores.compare import ALONE, ComparisonError
from dexcore.evaluate.tasks import Task

DRAWS = 50


def predicted(folder, out, models, cases=24, **keys):
    """A task of two classes, and models of several strengths in the folders that probes and fine-tuning write."""
    labels = (np.arange(cases) % 2).tolist()
    task, label_n = classified(folder, labels, **keys)
    for row in task.split("test"):
        (folder / row.image).write_bytes((folder / "one.png").read_bytes())
    for model, strength, seeds in models:
        for seed in range(seeds):
            noise = np.random.default_rng([seed, len(model)]).normal(size=(len(label_n), 2))
            whole = logits_of(task, noise + strength * np.eye(2)[label_n], model=model, seed=seed)
            scores = score(whole, task, draws=DRAWS)
            if model.startswith("weak"):
                scores = replace(scores, flags=(*scores.flags, "C at the edge of the grid: 10000"))
            place = out / model.replace(" ", "/") / task.name / f"seed-{seed}"
            scores.save(place)
            whole.save(place / "predictions.parquet")
    return task


MODELS = (("strong finetune", 3.0, 2), ("weak linear", 0.5, 1), ("histogram linear", 0.3, 1), ("majority", 0.0, 1))


def test_fine_tuned_models_and_probes_and_baselines_stand_side_by_side_the_best_first(tmp_path):
    task = predicted(tmp_path / "task", tmp_path / "out", MODELS)
    tuned = tmp_path / "out" / "strong" / "finetune" / "made" / "seed-0"
    (tuned / "choice.json").write_text(json.dumps({"checkpoint": "last", "rate": 1e-4, "tried": [1, 2]}))
    (tuned / "made.json").write_text(json.dumps({"command": "dexcore finetune", "versions": {"torch": "2"}}))
    (tuned / "routes.json").write_text(json.dumps({"images": 24, "gates": [[0.5, 0.5], [1, 0]]}))
    page = evaluation_page([tmp_path / "out"], [task], draws=DRAWS)
    (part,) = page.tasks
    assert part.models[0].name == "strong finetune"
    assert {row.name: row.baseline for row in part.models} == {
        "strong finetune": False,
        "weak linear": False,
        "histogram linear": True,
        "majority": True,
    }
    assert part.models[0].seeds == 2
    assert part.models[0].better == "+"
    assert part.against == "histogram linear"  # what must be beaten
    assert [detail.model for detail in part.details] == ["strong finetune", "weak linear"]
    first = part.details[0]
    assert first.about == "the first of 2 trainings, seed 0; in out/strong/finetune/made/seed-0"
    assert str(tmp_path) not in str((first.about, first.made))
    assert first.made["chosen"] == {"checkpoint": "last", "rate": 1e-4}
    assert (first.made["command"], first.made["versions"]) == ("dexcore finetune", "torch 2")
    assert first.made["task"] == task.fingerprint
    gates, images = part.routes["strong finetune"]
    assert (gates.tolist(), images) == ([[0.5, 0.5], [1, 0]], 24)
    assert "C at the edge of the grid: weak linear" in part.flags
    assert "weak linear: C at the edge of the grid: 10000" in part.flags_in_full
    assert any(flag.startswith("few cases") for flag in part.flags)
    assert "few seeds: strong finetune" in part.flags
    assert "one training a model: majority, weak linear" in part.flags
    assert any(flag.endswith(f": {ALONE}") for flag in part.flags_in_full)
    assert first.confusion_cc.sum() == 24
    assert sum(items for items, _, _ in first.reliability) == 24


def test_the_worst_and_the_median_cases_are_chosen_by_value_and_name():
    values = {f"c{n}": n / 10 for n in range(10)} | {"none": None, "b0": 0.0}
    assert chosen_cases(values, 3) == (["b0", "c0", "c1"], ["c3", "c4", "c5"])
    assert chosen_cases(values, 3, lower_is_better=True)[0] == ["c9", "c8", "c7"]
    assert chosen_cases({"a": 0.1, "b": 0.2, "c": 0.3}, 3) == (["a", "b"], ["c"])
    assert chosen_cases({"a": 0.1}, 3) == (["a"], [])
    assert chosen_cases({"a": None}, 3) == ([], [])


def test_a_classified_case_has_its_label_and_the_probabilities(tmp_path):
    task = predicted(tmp_path / "task", tmp_path / "out", [("weak linear", 0.0, 1)], images=1)
    page = evaluation_page([tmp_path / "out"], [task], draws=DRAWS)
    (detail,) = page.tasks[0].details
    assert "no baseline stands beside these models: what they must beat is not known" in page.tasks[0].flags
    assert [case.group.split(":")[0] for case in detail.cases] == ["Worst"] * 3 + [
        "Median probability of the truth"
    ] * 3
    lines = detail.cases[0].lines
    assert lines[0].startswith("label: class ")
    label = lines[0].removeprefix("label: ")
    told = dict(part.rsplit(" ", 1) for part in lines[1].removeprefix("predicted: ").split(", "))
    assert float(told[label]) < 0.5  # the worst: the truth was given least
    assert detail.cases[0].image.ndim == 2


def test_of_a_volume_the_slice_with_the_largest_reference_is_shown(tmp_path):
    small, large = np.zeros((2, 8, 8), np.uint8)
    small[0, 0], large[2:6, 2:6] = 1, 1
    task = segmented(tmp_path / "task", [[small, large], [large, small]])
    whole = masks_of(task, tmp_path / "out", [small, small, small, large])
    whole.save(tmp_path / "out" / "predictions.parquet")
    scores = score(whole, task, draws=DRAWS)
    cases, without = shown_cases(scores, task, tmp_path / "out")
    assert without == ""
    worst = next(case for case in cases if case.group.startswith("Worst"))
    assert worst.name == "c01"  # 1 of 17 pixels is right
    assert worst.reference.sum() == 16
    assert worst.predicted.sum() == 1
    assert "1 of 2 images" in worst.lines[1]
    (tmp_path / "out" / "predictions.parquet").unlink()
    assert shown_cases(scores, task, tmp_path / "out") == (
        [],
        "No pictures: predictions.parquet does not lie beside the scores.",
    )


def test_the_command_writes_a_page_and_refuses_tasks_of_another_state(tmp_path, capsys):
    task = predicted(tmp_path / "task", tmp_path / "out", [("weak linear", 0.5, 1)], cases=6)
    command = ["eval", "page", str(tmp_path / "out"), "--out", str(tmp_path / "new" / "page.html")]
    assert main(command) == 0
    html = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "give the task (--task)" in html
    table = task.spec.table
    table.write_text(table.read_text().replace("c0001", "c0000"))
    assert main([*command, "--task", str(task.spec.path)]) == 2
    assert "the scores are of another state of it" in capsys.readouterr().err
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8") == html  # as it was
    with pytest.raises(ComparisonError, match="is in none of the folders, which hold made"):
        evaluation_page([tmp_path / "out"], [Task.open(_other(tmp_path))])
    (tmp_path / "empty").mkdir()
    assert main(["eval", "page", str(tmp_path / "empty"), "--out", str(tmp_path / "p.html")]) == 2
    assert "no scores" in capsys.readouterr().err
    assert main([*command[:3], "--out", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


def _other(tmp_path):
    task, _ = classified(tmp_path / "other", [0, 1], name="other")
    return task.spec.path


def masked(folder, out, models, cases=8):
    """A segmentation, and models that are right in so many pixels of each mask."""
    truth = np.zeros((8, 8), np.uint8)
    truth[2:6, 2:6] = 1
    task = segmented(folder, [[truth]] * cases, name="lesions")
    for model, rows in models:
        found = truth.copy()
        found[6 - rows : 6] = 0
        whole = masks_of(task, out / model / "masks", [found] * cases, model=model, seed=0)
        score(whole, task, draws=DRAWS).save(out / model)
    return task


def test_tasks_with_labels_and_with_masks_have_means_apart_and_together_where_models_did_all(tmp_path):
    tuned = ("mine finetune", 2.0, 1)
    probes = (tuned, ("mine linear", 1.0, 1), ("histogram linear", 0.3, 1), ("majority", 0.0, 1))
    for name in ("films", "scans"):
        predicted(tmp_path / name, tmp_path / "out", probes, cases=10, name=name)
    masked(tmp_path / "lesions", tmp_path / "out" / "masks", (("mine finetune", 0), ("majority", 4), ("mine dense", 2)))
    page = evaluation_page([tmp_path / "out"], draws=DRAWS, clusters=[("films", "lesions")])
    across = {part.name: part for part in page.across}
    assert list(across) == ["All tasks", "Classification"]  # of masks there is one task
    assert {row.model for row in across["All tasks"].rows} == {"mine finetune", "majority"}
    assert across["All tasks"].rows[0].model == "mine finetune"
    assert across["All tasks"].rows[0].outcomes == (3, 0, 0)
    assert across["All tasks"].flags == ("the mean mixes auroc and dice",)
    assert across["Classification"].against == "histogram linear"
    assert {task.name: task.against for task in page.tasks} == {
        "films": "histogram linear",
        "scans": "histogram linear",
        "lesions": "majority",
    }
    with pytest.raises(ComparisonError, match="clusters: no task 'film', expected of films, scans, lesions"):
        evaluation_page([tmp_path / "out"], clusters=[("film", "scans")], draws=DRAWS)
    with pytest.raises(ComparisonError, match="against: no model 'mine'"):
        evaluation_page([tmp_path / "out"], against="mine", draws=DRAWS)


def test_few_shot_and_retrieval_stand_on_the_page_also_alone(tmp_path):
    task = a_task(tmp_path / "task", {"train": 10, "test": 12})
    for model, grain in (("good", 3.0), ("histogram", 0.0)):
        layers = told(task, grain=grain)
        shots = score_few_shot(few_shot(task, layers, model, count=3, shots=(1, 2)), task)
        shots.save(tmp_path / "out" / model / "fewshot" / "made" / "seed-0")
        retrieve(task, layers, model).save(tmp_path / "out" / model / "retrieval" / "made" / "all")
    (part,) = evaluation_page([tmp_path / "out"], draws=DRAWS).tasks
    assert (part.models, part.details) == ((), ())
    assert {method: set(of_model) for method, of_model in part.settings.shots.items()} == {
        method: {"good", "histogram"} for method in ("centroid", "logistic")
    }
    assert list(part.settings.shots["logistic"]["good"]) == [1, 2]
    assert part.settings.retrieval["good"].value > part.settings.retrieval["histogram"].value
    assert part.settings.chance == pytest.approx(0.5)
    assert any(flag.startswith("few-shot, retrieval: few cases") for flag in part.flags)
    (tmp_path / "out" / "good" / "fewshot" / "made" / "seed-0").rename(tmp_path / "kept")
    shots = score_few_shot(few_shot(task, told(task), "good", seed=1, count=3, shots=(1, 2)), task)
    shots.save(tmp_path / "out" / "good" / "fewshot" / "made" / "seed-1")
    (part,) = evaluation_page([tmp_path / "out"], draws=DRAWS).tasks
    assert "balanced_accuracy is left out: there is no seed that all models have" in part.flags
    assert not part.settings.shots
