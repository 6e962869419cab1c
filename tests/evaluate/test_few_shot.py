"""Few-shot episodes and retrieval."""

import numpy as np
import pytest
from made_tasks import write
from test_probes import a_task, told

from dexcore.evaluate.probes.fewshot import (
    FewShot,
    compare_few_shot,
    episodes,
    few_shot,
    score_few_shot,
)
from dexcore.evaluate.probes.kept import load_settings
from dexcore.evaluate.probes.knn import knn_probe
from dexcore.evaluate.probes.retrieval import class_retrieval
from dexcore.evaluate.probes.settings import compare_folders, setting_table
from dexcore.evaluate.scores import score
from dexcore.evaluate.scores.compare import ComparisonError
from dexcore.evaluate.tasks import Task, TaskError

FEW = {"count": 6, "shots": (1, 2, 4)}


def scored(task, *given, **options):
    return score_few_shot(few_shot(task, *given, **options), task)


def rounds_of(task, seed=0, count=8):
    return [[one.tolist() for one in rounds] for rounds in episodes(task, seed, count)]


def test_episodes_are_the_same_for_the_same_seed_and_others_for_another(tmp_path):
    task = a_task(tmp_path, {"train": 30, "test": 4}, classes=3, images=2)
    assert rounds_of(task) == rounds_of(task)
    assert rounds_of(task) != rounds_of(task, seed=1)
    assert len({str(rounds[:2]) for rounds in rounds_of(task, count=20)}) == 20


def test_an_episode_has_one_image_a_case_and_each_class_as_often(tmp_path):
    task = a_task(tmp_path, {"train": 30, "test": 4}, classes=3, images=4)
    rows = sorted((row for row in task.split("train")), key=lambda row: row.image)
    for rounds in rounds_of(task):
        assert len(rounds) == 10  # all cases of a class
        images = [rows[number] for one in rounds for number in one]
        assert len({row.case for row in images}) == len(images)
        assert all(task.labels([rows[n] for n in one]).tolist() == [0, 1, 2] for one in rounds)


def test_a_case_with_images_of_two_classes_supports_one_of_them(tmp_path):
    rows = [
        {"image": f"{case}-{label}.png", "label": label, "split": "train", "case": f"p{case}"}
        for case in range(6)
        for label in ("sound", "ill")
    ]
    rows.append({"image": "t.png", "label": "ill", "split": "test", "case": "t"})
    task = Task.open(write(tmp_path, rows))
    ordered = sorted(task.split("train"), key=lambda row: row.image)
    for rounds in rounds_of(task):
        cases = [ordered[number].case for one in rounds for number in one]
        assert len(set(cases)) == len(cases)
        assert len(rounds) == 3


def test_the_supports_do_not_depend_on_the_model_or_the_order_of_the_table(tmp_path):
    task = a_task(tmp_path, {"train": 24, "test": 6})
    one, other = (few_shot(task, told(task, width=width), seed=3, **FEW) for width in (4, 9))
    assert one.supports == other.supports
    head, *lines = task.spec.table.read_text().splitlines()
    task.spec.table.write_text("\n".join([head, *reversed(lines)]) + "\n")
    moved = Task.open(task.spec.path)
    layers = {name: of_layer[::-1] for name, of_layer in told(task, width=4).items()}
    again = few_shot(moved, layers, seed=3, **FEW)
    assert again.supports == one.supports
    assert again.predicted.tobytes() == one.predicted.tobytes()
    assert few_shot(task, told(task), seed=4, **FEW).supports != one.supports


def test_more_images_tell_more_and_noise_tells_nothing(tmp_path):
    task = a_task(tmp_path, {"train": 60, "test": 90}, classes=3, seed=1)
    found = scored(task, told(task, grain=1.0), count=20, shots=(1, 8))
    numbers = {setting: number.value for setting, number in zip(found.settings, found.numbers, strict=True)}
    for method in ("centroid", "logistic"):
        assert numbers["mean", 8, method] > numbers["mean", 1, method] + 0.05 > 0.4
        assert numbers["cls", 8, method] == pytest.approx(1 / 3, abs=0.1)


def test_a_number_is_the_mean_of_the_episodes_balanced_accuracy(tmp_path):
    from sklearn.metrics import balanced_accuracy_score

    task = a_task(tmp_path, {"train": 20, "test": 21})
    found = scored(task, {"only": told(task, grain=0.8)["mean"]}, **FEW)
    for number, spread, predicted in zip(found.numbers, found.deviations(), found.predicted, strict=True):
        each = [balanced_accuracy_score(found.label_n, one) for one in predicted]
        assert number.value == pytest.approx(np.mean(each))
        assert spread == pytest.approx(np.std(each, ddof=1))
        assert number.low < number.value < number.high


def test_models_are_compared_on_the_same_episodes_and_cases(tmp_path):
    task = a_task(tmp_path, {"train": 40, "test": 60})
    good, bad = (scored(task, {"only": told(task)[layer]}, layer, **FEW) for layer in ("mean", "cls"))
    found = dict(compare_few_shot(good, bad))
    assert found["only", 4, "centroid"].low > 0
    assert all(number.value == number.low == number.high == 0 for _, number in compare_few_shot(good, good))
    other = scored(task, {"only": told(task)["cls"]}, seed=1, **FEW)
    with pytest.raises(ComparisonError, match="not the same supports"):
        compare_few_shot(good, other)


def test_a_comparison_of_folders_names_the_better_model_or_a_tie(tmp_path):
    task = a_task(tmp_path, {"train": 40, "test": 60})
    for name, layer in (("good", "mean"), ("bad", "cls"), ("same", "mean")):
        scored(task, {"only": told(task)[layer]}, name, count=6, shots=(4,)).save(tmp_path / name)
    for a, b, verdict in (
        ("good", "bad", "good is better"),
        ("bad", "good", "good is better"),
        ("good", "same", "tie"),
    ):
        told_lines = compare_folders(load_settings(tmp_path / a), load_settings(tmp_path / b))
        assert len(told_lines) == 2
        assert all(line.endswith(f"60 cases: {verdict}") for line in told_lines), told_lines


def test_a_comparison_of_folders_says_what_the_numbers_say(tmp_path):
    task = a_task(tmp_path, {"train": 10, "test": 8})
    for name in "ab":
        scored(task, {"only": told(task)["mean"]}, name, count=3, shots=(1, 2)).save(tmp_path / name)
    lines = compare_folders(load_settings(tmp_path / "a"), load_settings(tmp_path / "b"))
    assert len(lines) == 5
    assert lines[-1].startswith("  note: made: few cases: intervals of 8")


def test_a_task_whose_models_share_no_seed_is_left_out_of_the_table_and_told(tmp_path):
    task, other = (a_task(tmp_path / name, {"train": 10, "test": 8}, name=name) for name in ("made", "other"))
    found = [
        scored(one, {"only": told(one)["mean"]}, model, seed=seed, count=3, shots=(1,))
        for one, model, seed in ((task, "a", 0), (task, "b", 1), (other, "a", 0), (other, "b", 0))
    ]
    made = setting_table(found)
    assert {row.task for row in made.rows} == {"other"}
    assert "made: balanced_accuracy is left out: there is no seed that all models have" in made.flags


def test_what_is_saved_is_read_again(tmp_path):
    task = a_task(tmp_path, {"train": 10, "test": 8})
    found = scored(task, told(task), "made", **FEW)
    found.save(tmp_path / "out")
    again = FewShot.load(tmp_path / "out")
    assert again.as_json() == found.as_json()
    assert again.lines() == found.lines()


def test_shots_that_a_class_has_too_few_cases_for_are_left_out_and_told(tmp_path):
    task = a_task(tmp_path, {"train": 6, "test": 4}, images=5)
    found = few_shot(task, told(task), **FEW)
    assert {shots for _, shots, _ in found.settings} == {1, 2}
    assert any("no episode of 4 images a class" in flag for flag in found.flags)
    many = a_task(tmp_path / "many", {"train": 6, "test": 4}, kind="multilabel")
    with pytest.raises(TaskError, match="kind multilabel"):
        few_shot(many, told(many), **FEW)


def test_few_cases_unknown_cases_and_images_seen_in_pre_training_are_told_as_score_tells_them(tmp_path):
    task = a_task(tmp_path, {"train": 10, "test": 8}, cases="unknown")
    task = task.mark_seen({task.split("test")[0].image: "near"})
    found = scored(task, told(task), **FEW)
    layers = {"only": told(task)["mean"]}
    assert set(score(knn_probe(task, layers).predictions, task, draws=10).flags) <= set(found.flags)
    for said in ("few cases: intervals of 8", "images taken as independent", "seen in pre-training: 1 of 8 images"):
        assert any(flag.startswith(said) for flag in found.flags), said
    assert any("no episode of" in flag for flag in scored(task, told(task)).flags)


@pytest.mark.parametrize("spoilt", ["queries", "gallery"])
def test_features_that_are_not_finite_are_refused(spoilt):
    label, sides = np.arange(4) % 2, {"queries": np.eye(4), "gallery": np.eye(4)}
    sides[spoilt][2, 1] = np.nan
    with pytest.raises(ValueError, match=f"{spoilt}: the features of row 2 are not finite"):
        class_retrieval(sides["queries"], label, sides["gallery"], label)


def test_retrieval_is_the_average_precision_of_scikit_learn():
    from sklearn.metrics import average_precision_score

    random = np.random.default_rng(0)
    label, case = random.integers(0, 3, 60), np.arange(60) // 2
    features = random.normal(size=(60, 6)) + 2 * np.eye(3, 6)[label]
    found = class_retrieval(features, label, features, label, case, case, features.mean(axis=0))
    unit = features - features.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for query in range(60):
        others = case != case[query]
        expected = average_precision_score(label[others] == label[query], unit[others] @ unit[query])
        assert found.precision_n[query] == pytest.approx(expected)
    assert found.mean > np.mean(found.chance_n) + 0.1
