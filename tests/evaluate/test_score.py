"""Scores of saved predictions: whom they count, that nothing of how they were made matters, what is refused."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_predictions import classified, logits_of, masks_of, part, predictions, segmented

from dexcore.evaluate.scores import Predictions, PredictionsError, Scores, score, write_mask
from dexcore.evaluate.scores.predictions import read_mask
from dexcore.evaluate.tasks import Task
from dexcore.measures.bootstrap import bootstrap, mean_statistic

RANDOM = np.random.default_rng(0)
DRAWS = 100


def mask(pixels, size=4):
    """A mask of some pixels of class 1."""
    found = np.zeros(size * size, np.uint8)
    found[:pixels] = 1
    return found.reshape(size, size)


def scored(predicted: Predictions, task: Task, **options) -> Scores:
    return score(predicted, task, draws=DRAWS, **options)


def assert_same_bits(one: Scores, other: Scores) -> None:
    assert one.as_json() == other.as_json()
    for name, value in vars(one.made_of).items():
        if isinstance(value, np.ndarray):
            assert value.tobytes() == vars(other.made_of)[name].tobytes()


@pytest.fixture
def eyes(tmp_path):
    """Three classes, 21 cases with three images each, logits with a grain of truth."""
    task, labels = classified(tmp_path, [0, 1, 2] * 7, classes=3, images=3)
    return task, logits_of(task, (RANDOM.normal(size=(63, 3)) + 2 * np.eye(3)[labels]).astype(np.float32))


def test_scores_are_the_same_to_the_bit_for_any_order_batch_and_number_of_ranks(eyes, tmp_path):
    task, whole = eyes
    expected = scored(whole, task)
    rows = RANDOM.permutation(len(whole))
    assert_same_bits(scored(part(whole, rows.tolist()), task), expected)
    for ranks in (1, 2, 3):
        folder = tmp_path / f"{ranks} ranks"
        folder.mkdir()
        for rank in range(ranks):
            part(whole, rows[rank::ranks].tolist()).save(folder / f"rank{rank}.parquet")
        found = Predictions.load(folder)
        assert sorted(found.image) == sorted(whole.image)
        assert_same_bits(scored(found, task), expected)


def test_masks_are_scored_to_the_bit_in_any_order_and_from_their_counts(tmp_path):
    masks = [[RANDOM.integers(0, 3, (5, 6)) for _ in range(3)] for _ in range(4)]
    task = segmented(tmp_path, masks, classes=3)
    whole = masks_of(task, tmp_path / "out", [RANDOM.integers(0, 3, (5, 6)) for _ in range(12)])
    expected = scored(whole, task)
    order = RANDOM.permutation(12).tolist()
    for path, rows in (("a.parquet", order[:5]), ("b.parquet", order[5:])):
        part(whole, rows).save(tmp_path / "out" / path)
    assert_same_bits(scored(Predictions.load(tmp_path / "out"), task), expected)
    counts = np.zeros((12, 3, 5), np.int64)
    for row, image in enumerate(whole.image):
        seen = read_mask(whole.values[row])
        true = task.reference().mask(task.split("test")[row])
        for label in range(3):
            tp = ((seen == label) & (true == label)).sum()
            n_ref, n_pred = (true == label).sum(), (seen == label).sum()
            counts[row, label] = tp, n_pred - tp, n_ref - tp, n_ref, n_pred
        assert image == task.split("test")[row].image
    of_counts = predictions(task, "counts", list(whole.image), counts)
    of_counts.save(tmp_path / "counts.parquet")
    assert_same_bits(scored(Predictions.load(tmp_path / "counts.parquet"), task), expected)


def test_the_mean_of_cases_is_not_that_of_slices_batches_or_pixels(tmp_path):
    # Case 0: two slices, 8 of 8 and 0 of 1 pixels found; case 1: one slice, 1 of 2.
    task = segmented(tmp_path, [[mask(8), mask(1)], [mask(2)]])
    found = scored(masks_of(task, tmp_path / "out", [mask(8), mask(0), mask(1)]), task)
    case = [2 * 8 / (8 + 9), 2 * 1 / (1 + 2)]
    of_slices = [1.0, 0.0, 2 / 3]
    assert found.numbers["dice"].value == pytest.approx(np.mean(case))
    assert found.numbers["dice_per_slice"].value == pytest.approx(np.mean([np.mean(of_slices[:2]), of_slices[2]]))
    batches_of_two, pixels = np.mean([np.mean(of_slices[:2]), of_slices[2]]), 2 * 9 / (9 + 11)
    means = [found.numbers["dice"].value, np.mean(of_slices), batches_of_two, pixels]
    assert len({round(value, 6) for value in means}) == 4
    assert "secondary" in "\n".join(found.lines())
    by_image = segmented(tmp_path / "again", [[mask(8), mask(1)], [mask(2)]], unit="image")
    found = scored(masks_of(by_image, tmp_path / "out", [mask(8), mask(0), mask(1)]), by_image)
    assert found.numbers["dice"].value == pytest.approx(np.mean([0.5, 2 / 3]))  # units within a case, then cases
    assert "dice_per_slice" not in found.numbers


def test_absent_classes_are_listed_and_score_neither_zero_nor_one(tmp_path):
    task = segmented(tmp_path, [[mask(3)], [mask(0)]], classes=3)
    found = scored(masks_of(task, tmp_path / "out", [mask(3), mask(2)]), task)
    assert found.primary.value == pytest.approx((1 + 0) / 2)  # class 1 alone: class 2 has no defined case
    assert math.isnan(found.per_class["class 2"]["dice"].value)
    assert found.cases_of_class["class 2"] == {"present": 0, "empty": 2, "predicted": 0}
    assert found.per_class["class 1"]["false_alarm"].value == 1
    assert found.per_class["class 1"]["dice_present"].value == 1


def test_a_predictor_of_nothing_scores_zero_unless_the_task_asks_for_kaggles_rule(tmp_path):
    masks = [[mask(0)]] * 6 + [[mask(5)]] * 4
    for metric, expected in (("dice", 0.0), ("dice_kaggle", 0.6)):
        task = segmented(tmp_path / metric, masks, metric=metric)
        found = scored(masks_of(task, tmp_path / "out", [mask(0)] * 10), task)
        assert found.primary.value == pytest.approx(expected)
    assert found.numbers["false_alarm"].value == 0


def test_the_reference_predicted_scores_one_and_ignored_pixels_do_not_count(tmp_path):
    true = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
    task = segmented(tmp_path, [[true]], classes=3, ignore=255)
    found = scored(masks_of(task, tmp_path / "out", [np.where(true == 255, 1, true)]), task)
    assert found.primary.value == 1


def test_outlines_are_measured_in_mm_where_that_is_asked_for(tmp_path):
    pytest.importorskip("scipy")
    true, moved, nothing = np.zeros((3, 20, 20), np.uint8)
    true[4:10, 4:10] = moved[4:10, 6:12] = 1
    task = segmented(tmp_path, [[true], [true]])
    whole = masks_of(task, tmp_path / "out", [moved, nothing])
    assert "nsd_2d" not in scored(whole, task).numbers
    with pytest.raises(PredictionsError, match=r"made\.csv, line 2: no spacing is known of case00-00\.png"):
        scored(whole, task, tolerance=1.0)
    table = tmp_path / "made.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{header},spacing_y,spacing_x", *(f"{row},1,0.5" for row in rows)]))
    task = Task.open(tmp_path / "made.yaml")
    whole = masks_of(task, tmp_path / "out", [moved, nothing])
    found = scored(whole, task, tolerance=1.0)
    assert found.numbers["nsd_2d"].value == pytest.approx((1 + 0) / 2)  # two pixels of half a millimetre
    assert found.numbers["hd95_2d"].value == pytest.approx((1 + math.hypot(20, 10)) / 2)
    found.save(tmp_path / "scores")
    assert_same_bits(Scores.load(tmp_path / "scores"), found)


def test_the_best_of_many_chosen_on_val_is_at_chance_on_test_and_chosen_on_test_is_not():
    # 52 settings that say nothing, 113 cases to choose by and 113 to score.
    def accuracy(right):
        return bootstrap({"a": mean_statistic(right[:, None].astype(float))}, np.zeros(len(right), int), 200)["a"]

    honest = best = 0
    for seed in range(100):
        val, test = np.random.default_rng(seed).random((2, 52, 113)) < 0.5
        one = accuracy(test[val.mean(axis=1).argmax()])
        honest += one.low <= 0.5 <= one.high
        one = accuracy(test[test.mean(axis=1).argmax()])
        best += one.low <= 0.5 <= one.high
    assert honest >= 90
    assert best < 50


def test_a_case_scores_the_mean_probability_of_its_images(tmp_path):
    task, _ = classified(tmp_path, [1, 0], images=2)
    logits = np.log([[0.2, 0.8], [0.9, 0.1], [0.6, 0.4], [0.9, 0.1]])
    made_of = scored(logits_of(task, logits), task).made_of
    np.testing.assert_allclose(made_of.probability_nc, [[0.55, 0.45], [0.75, 0.25]])
    assert made_of.cases == ("c0000", "c0001")
    by_image, _ = classified(tmp_path / "again", [1, 0], images=2, unit="image")
    assert len(scored(logits_of(by_image, logits), by_image).made_of.probability_nc) == 4


def test_images_weigh_in_their_cases_mean_what_the_table_says(tmp_path):
    classified(tmp_path, [1, 0], images=2)
    table = tmp_path / "made.csv"
    header, first, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{header},weight", f"{first},3", *(f"{row},1" for row in rows)]))
    task = Task.open(tmp_path / "made.yaml")
    logits = np.log([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5], [0.9, 0.1]])
    made_of = scored(logits_of(task, logits), task).made_of
    np.testing.assert_allclose(made_of.probability_nc[:, 1], [(3 * 0.8 + 0.4) / 4, 0.3])


def test_where_the_label_is_not_the_cases_images_are_scored_and_cases_drawn(tmp_path):
    task, labels = classified(tmp_path, [0, 1, 0, 1])
    table = tmp_path / "made.csv"
    table.write_text(table.read_text().replace("c0001", "c0000").replace("c0003", "c0002"))
    task = Task.open(tmp_path / "made.yaml")
    found = scored(logits_of(task, np.eye(2)[labels]), task)
    assert (len(found.made_of.probability_nc), len(found.made_of.cases)) == (4, 2)
    assert found.numbers["accuracy"].groups == 2
    assert any("differ in their label" in flag for flag in found.flags)


def test_numbers_of_a_classification_are_scikit_learns(eyes):
    metrics = pytest.importorskip("sklearn.metrics")
    task, whole = eyes
    found = scored(whole, task)
    label, probability = found.made_of.label_n, found.made_of.probability_nc
    expected = {
        "auroc": metrics.roc_auc_score(label, probability, multi_class="ovr"),
        "average_precision": metrics.average_precision_score(np.eye(3)[label], probability, average="macro"),
        "accuracy": metrics.accuracy_score(label, probability.argmax(1)),
        "balanced_accuracy": metrics.balanced_accuracy_score(label, probability.argmax(1)),
        "macro_f1": metrics.f1_score(label, probability.argmax(1), average="macro"),
        "brier": metrics.brier_score_loss(label, probability),
    }
    assert {name: found.numbers[name].value for name in expected} == pytest.approx(expected)
    assert set(found.numbers) == {*expected, "ece"}
    recall = metrics.recall_score(label, probability.argmax(1), average=None)
    assert [found.per_class[name]["recall"].value for name in task.classes] == pytest.approx(recall.tolist())
    for number in found.numbers.values():
        assert number.low <= number.value <= number.high or number is found.numbers["ece"]


def test_what_pictures_are_drawn_of_is_told_case_by_case(eyes, tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    task, whole = eyes
    found = scored(whole, task)
    told, made_of = found.as_json(), found.made_of
    assert told["confusion"] == metrics.confusion_matrix(made_of.label_n, made_of.predicted_n).tolist()
    assert sum(one["items"] for one in told["reliability"]) == 21
    truth = made_of.probability_nc[np.arange(21), made_of.label_n]
    assert list(told["case_values"].values()) == pytest.approx(truth.tolist())
    segmentation = segmented(tmp_path, [[mask(3)], [mask(0)]], classes=3)
    told = scored(masks_of(segmentation, tmp_path / "out", [mask(3), mask(0)]), segmentation).as_json()
    assert told["dice_of_cases"] == {"c00": [1.0, None], "c01": [None, None]}
    assert told["case_values"] == {"c00": 1.0, "c01": None}


def test_ordered_classes_have_a_kappa_and_several_labels_their_own_scores(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    task, labels = classified(tmp_path / "ordinal", [0, 1, 2, 2, 1], classes=3, kind="ordinal")
    predicted = np.array([0, 2, 2, 1, 1])
    found = scored(logits_of(task, 5 * np.eye(3)[predicted]), task)
    assert found.primary.value == pytest.approx(metrics.cohen_kappa_score(labels, predicted, weights="quadratic"))
    task, labels = classified(tmp_path / "several", [0, 1, 1, 0], kind="multilabel")
    logits = RANDOM.normal(size=(4, 2))
    found = scored(logits_of(task, logits), task)
    truth = np.eye(2, dtype=int)[labels]
    assert found.numbers["auroc"].value == pytest.approx(metrics.roc_auc_score(truth, logits))
    expected = metrics.f1_score(truth, logits > 0, average="macro", zero_division=0)
    assert found.numbers["macro_f1"].value == pytest.approx(expected)


def test_a_class_with_one_case_is_finite_or_undefined_with_a_count_and_no_warning_is_swallowed(tmp_path):
    task, labels = classified(tmp_path, [0] * 6 + [1] * 6 + [2], classes=4)
    logits = RANDOM.normal(size=(13, 4)) + np.eye(4)[labels]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scored(logits_of(task, logits), task)
    of_one, of_none = found.per_class["class 2"]["auroc"], found.per_class["class 3"]["auroc"]
    assert 0 < of_one.value < 1
    assert of_one.undefined == 0  # drawn within classes
    assert math.isnan(of_none.value)
    assert math.isfinite(found.numbers["auroc"].value)
    assert found.numbers["balanced_accuracy"].undefined > 0  # drawn from all: some draws lack the one case
    assert any("no case of class 3" in flag for flag in found.flags)


def test_the_perfect_predictor_scores_one_though_the_test_split_lacks_the_middle_class(tmp_path):
    task, labels = classified(tmp_path, [0, 2, 0, 2], classes=3)
    found = scored(logits_of(task, 9 * np.eye(3)[labels]), task)
    for name in ("auroc", "average_precision", "accuracy", "balanced_accuracy", "macro_f1"):
        assert found.numbers[name].value == pytest.approx(1)


def test_few_cases_unknown_cases_and_missing_ones_are_flagged(tmp_path):
    task, labels = classified(tmp_path, [0, 1] * 5, images=2, cases="unknown")
    whole = logits_of(task, np.eye(2)[labels])
    flags = "\n".join(scored(whole, task).flags)
    assert "few cases: intervals of 10" in flags
    assert "images taken as independent" in flags
    found = scored(part(whole, list(range(1, 20))), task, partial=True)
    assert found.made_of.cases[0] == "c0001"  # a case of which half was predicted is left out
    assert "partial: 1 cases" in "\n".join(found.flags)
    many, labels = classified(tmp_path / "many", [0, 1] * 25)
    assert scored(logits_of(many, np.eye(2)[labels]), many).flags == ()


def test_scores_are_read_as_they_were_written(eyes, tmp_path):
    task, whole = eyes
    found = scored(replace(whole, model="dex", seed=3), task)
    found.save(tmp_path / "scores")
    assert_same_bits(Scores.load(tmp_path / "scores"), found)
    assert Scores.load(tmp_path / "scores" / "scores.npz").made_of.positive == 1
    segmentation = segmented(tmp_path, [[mask(3)], [mask(0)]])
    found = scored(masks_of(segmentation, tmp_path / "out", [mask(3), mask(2)]), segmentation)
    found.save(tmp_path / "others")
    assert_same_bits(Scores.load(tmp_path / "others"), found)


def spoilt(whole: Predictions, row: int, value: float) -> Predictions:
    values = np.array(whole.values)
    values[row, 1] = value
    return replace(whole, values=values)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda p: spoilt(p, 4, math.nan), r"row 4: case0001-1\.png has \[.*nan.*\], expected finite numbers"),
        (lambda p: spoilt(p, 4, math.inf), "expected finite numbers"),
        (lambda p: part(p, [*range(62)]), r"lacks 1 of 63 images of split test, as case0020-2\.png \(.*csv, line 64\)"),
        (lambda p: part(p, [0, *range(63)]), r"row 1: case0000-0\.png was predicted twice, in row 0 too"),
        (lambda p: replace(p, image=("train0.png", *p.image[1:])), r"row 0: train0\.png is of split train"),
        (lambda p: replace(p, image=("else.png", *p.image[1:])), r"row 0: else\.png is no image of the task"),
        (lambda p: replace(p, fingerprint="0" * 64), "predicted for another task or another state of it"),
        (
            lambda p: replace(p, classes=(*p.classes, "new"), values=np.zeros((63, 4))),
            r"has 4 classes \(class 0, class 1, class 2, new\), the task has 3",
        ),
        (lambda p: replace(p, kind="probabilities"), "expected probabilities from 0 to 1"),
        (lambda p: replace(p, kind="probabilities", values=np.full((63, 3), 0.5)), "probabilities that add up to 1"),
        (lambda p: replace(p, kind="mask", values=("a",) * 63), "holds mask, a classification is scored from logits"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused_with_task_and_row(eyes, spoil, told):
    task, whole = eyes
    with pytest.raises(PredictionsError, match=told) as error:
        scored(spoil(whole), task)
    assert str(error.value).startswith("task made: ")


def test_errors_name_the_file_and_the_row_in_it(eyes, tmp_path):
    task, whole = eyes
    part(whole, [*range(40)]).save(tmp_path / "a.parquet")
    spoilt(part(whole, [*range(40, 63)]), 2, math.nan).save(tmp_path / "b.parquet")
    with pytest.raises(PredictionsError, match=r"task made: \S*b\.parquet, row 2: case0014-0\.png has"):
        scored(Predictions.load(tmp_path), task)


@pytest.mark.parametrize(
    ("predicted", "told"),
    [
        (np.zeros((4, 5), np.uint8), r"has shape \(4, 5\), the reference has \(4, 4\)"),
        (np.full((4, 4), 2, np.uint8), "the prediction holds 2, expected indices of 2 classes"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_with_task_file_and_image(tmp_path, predicted, told):
    task = segmented(tmp_path, [[mask(3)], [mask(0)]])
    with pytest.raises(PredictionsError, match=rf"task made: row 1: \S+\.png, of case01-00\.png: .*{told}"):
        scored(masks_of(task, tmp_path / "out", [mask(3), predicted]), task)


def test_a_mask_that_is_missing_or_no_png_is_refused(tmp_path):
    task = segmented(tmp_path, [[mask(3)]])
    whole = masks_of(task, tmp_path / "out", [mask(3)])
    with open(whole.values[0], "wb") as file:
        file.write(b"no picture")
    with pytest.raises(PredictionsError, match=r"task made: row 0: \S+\.png: cannot be read, expected a PNG"):
        scored(whole, task)
    with pytest.raises(PredictionsError, match=r"task made: row 0: gone\.png: cannot be read"):
        scored(replace(whole, values=("gone.png",)), task)


def test_the_scores_of_the_test_split_are_all_that_reads_its_labels(eyes):
    task, whole = eyes
    assert scored(whole, task).split == "test"
    with pytest.raises(PredictionsError, match="no image of split val"):
        scored(whole, task, split="val")


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (None, "holds no predictions: its metadata lack dexcore.predictions"),
        (b"{", "are damaged"),
        (b'{"version": 1}', "are damaged"),
        (b'{"version": 2, "task": "t", "fingerprint": "", "classes": [], "kind": "logits", "model": "", "seed": 0}',
         "is of version 2, expected 1"),
        (b'{"version": 1, "task": "t", "fingerprint": "", "classes": [], "kind": "x", "model": "", "seed": 0}',
         "kind is 'x', expected one of logits"),
        (b'{"version": 1, "task": "t", "fingerprint": "", "classes": ["a"], "kind": "logits", "model": "", "seed": 0}',
         "row 0: logits holds 2 numbers, expected 1 of 1 classes"),
        (b'{"version": 1, "task": "t", "fingerprint": "", "classes": ["a"], "kind": "mask", "model": "", "seed": 0}',
         "has no column mask, it has image, logits"),
    ],
)  # fmt: skip
def test_a_file_that_holds_no_predictions_is_refused_by_name(tmp_path, metadata, told):
    table = pa.table({"image": ["a.png"], "logits": pa.array([[0.5, 1.0]], pa.list_(pa.float32()))})
    if metadata is not None:
        table = table.replace_schema_metadata({b"dexcore.predictions": metadata})
    pq.write_table(table, tmp_path / "file.parquet")
    with pytest.raises(PredictionsError, match=rf"file\.parquet.*{told}"):
        Predictions.load(tmp_path / "file.parquet")


def test_parts_of_different_models_are_not_put_together(eyes, tmp_path):
    _, whole = eyes
    part(whole, [0, 1]).save(tmp_path / "a.parquet")
    replace(part(whole, [2]), seed=7).save(tmp_path / "b.parquet")
    with pytest.raises(PredictionsError, match=r"b\.parquet: seed is 7, that of \S*a\.parquet is None"):
        Predictions.load(tmp_path)


def test_masks_that_another_model_wrote_over_saved_ones_are_refused(tmp_path):
    masks = [np.eye(4, dtype=np.uint8), np.ones((4, 4), np.uint8)]
    task = segmented(tmp_path / "task", [[mask] for mask in masks])
    saved = tmp_path / "one" / "predictions.parquet"
    masks_of(task, tmp_path / "one", masks).save(saved)
    loaded = Predictions.load(saved)
    assert score(loaded, task, draws=10).primary.value == 1
    masks_of(task, tmp_path / "one", masks[::-1])
    for found in (loaded, Predictions.load(saved)):
        with pytest.raises(PredictionsError, match=r"row 0: .*png: is another mask than the predictions were saved"):
            score(found, task, draws=10)
    with pytest.raises(PredictionsError, match="is another mask"):
        loaded.save(tmp_path / "again.parquet")


def test_channels_that_overlap_are_kept_in_the_bits_of_a_mask(tmp_path):
    channels = RANDOM.random((9, 5, 4)) < 0.4
    path = write_mask(tmp_path, "a.png", channels)
    np.testing.assert_array_equal(read_mask(path, 9), channels)
    with pytest.raises(PredictionsError, match="more than 3 channels make"):
        read_mask(path, 3)
    with pytest.raises(PredictionsError, match=r"the mask of a\.png: expected whole numbers"):
        write_mask(tmp_path, "a.png", np.zeros((2, 2)))
