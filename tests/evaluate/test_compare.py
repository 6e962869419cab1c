"""Comparisons of two models, and one model's seeds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats as scipy
from made_predictions import classified, logits_of, masks_of, part, segmented

from dexcore.evaluate.scores import Scores, compare, compare_tasks, over_seeds, score
from dexcore.evaluate.scores.classified import Classified
from dexcore.evaluate.scores.compare import ALONE, ComparisonError, adjusted

DRAWS = 400


def made(folder, name="made", cases=40, **keys):
    random = np.random.default_rng(0)
    return classified(folder, random.integers(0, 2, cases).tolist(), **keys)


def scored(task, labels, strength, seed=0, model="", rows=None, noise=1.0, **options):
    """Scores of logits with so much of the truth in them; the noise of a seed is the same for every strength."""
    random = np.random.default_rng(seed)
    logits = noise * random.normal(size=(len(labels), 2)) + strength * np.eye(2)[labels]
    whole = logits_of(task, logits, model=model, seed=seed)
    return score(whole if rows is None else part(whole, rows), task, draws=DRAWS, **options)


def test_a_better_model_is_called_better_and_the_other_way_round(tmp_path):
    task, labels = made(tmp_path)
    good, bad = (scored(task, labels, strength, model=name) for strength, name in ((4, "good"), (0.5, "bad")))
    found, back = compare(good, bad, draws=DRAWS), compare(bad, good, draws=DRAWS)
    assert (found.verdict, back.verdict) == ("a", "b")
    assert found.difference.value == pytest.approx(good.primary.value - bad.primary.value)
    assert found.difference.value == pytest.approx(-back.difference.value)
    assert found.difference.low > 0
    assert found.p_value < 0.01
    assert "good is better" in found.line()


def test_a_model_is_as_good_as_itself(tmp_path):
    task, labels = made(tmp_path)
    one = scored(task, labels, 1)
    found = compare(one, one, draws=DRAWS)
    assert (found.verdict, found.difference.value, found.difference.low, found.difference.high) == ("tie", 0, 0, 0)
    assert math.isnan(found.p_value)
    assert found.as_json()["p_value"] is None


def test_pairs_tell_what_two_intervals_cannot(tmp_path):
    # Cases differ much, the models by a little in each: the intervals overlap, that of the difference is clear.
    random = np.random.default_rng(0)
    true, one, other = np.zeros((3, 30, 20, 20), np.uint8)
    true[:, :10] = 1
    for case in range(30):
        share = random.integers(20, 180)
        one[case].flat[:share] = other[case].flat[: share + 10] = 1
    task = segmented(tmp_path, [[mask] for mask in true])
    a, b = (
        score(masks_of(task, tmp_path / name, list(masks)), task, draws=DRAWS)
        for name, masks in (("a", one), ("b", other))
    )
    assert a.primary.high > b.primary.low
    found = compare(a, b, draws=DRAWS)
    assert found.verdict == "b"
    assert found.p_value < 1e-4
    assert found.difference.high - found.difference.low < 0.2 * (a.primary.high - a.primary.low)


def test_other_splits_and_states_of_a_task_are_refused(tmp_path):
    task, labels = made(tmp_path)
    one = scored(task, labels, 1)
    table = tmp_path / "made.csv"
    table.write_text(table.read_text().replace("case0003-0.png,class 0,test", "case0003-0.png,class 0,train"))
    changed = type(task).open(tmp_path / "made.yaml")
    other = scored(changed, np.delete(labels, 3), 1)
    with pytest.raises(ComparisonError, match="task made: not the same fingerprint"):
        compare(one, other)
    with pytest.raises(ComparisonError, match="a model has no 'dice', expected one of auroc"):
        compare(one, one, metric="dice")


def test_every_number_of_a_segmentation_can_be_compared(tmp_path):
    random = np.random.default_rng(0)
    task = segmented(tmp_path, [[mask, mask] for mask in random.integers(0, 2, (8, 6, 6))])
    a, b = (
        score(masks_of(task, tmp_path / str(seed), list(random.integers(0, 2, (16, 6, 6)))), task, draws=DRAWS)
        for seed in range(2)
    )
    for metric in a.numbers:
        found = compare(a, b, metric, draws=DRAWS)
        if metric != "false_alarm":  # no mask is empty
            assert found.difference.value == pytest.approx(a.numbers[metric].value - b.numbers[metric].value)
    assert "dice_per_slice" in a.numbers


def test_only_cases_that_both_have_are_compared(tmp_path):
    task, labels = made(tmp_path, cases=20)
    one = scored(task, labels, 3, rows=list(range(15)), partial=True)
    other = scored(task, labels, 3, rows=list(range(5, 20)), partial=True)
    found = compare(one, other, metric="accuracy", draws=DRAWS)
    assert (found.difference.groups, found.left_out) == (10, 10)
    assert found.difference.value == 0  # the same logits, on the cases that both have
    assert any("10 cases are left out" in flag for flag in found.flags)
    with pytest.raises(ComparisonError, match="no case was predicted by all"):
        compare(scored(task, labels, 3, rows=[0, 1], partial=True), scored(task, labels, 3, rows=[2, 3], partial=True))


def test_p_values_are_adjusted_for_the_tasks_compared_together(tmp_path):
    found = []
    for number in range(3):
        task, labels = made(tmp_path / str(number))
        found.append(compare(scored(task, labels, 2, 1), scored(task, labels, 0.5, 2), draws=DRAWS))
    together = adjusted(found)
    assert all(one.p_holm >= one.p_value for one in together)
    assert max(one.p_holm for one in together) > max(one.p_value for one in found) or together[0].p_holm == 1
    assert [one.difference for one in together] == [one.difference for one in found]


def test_the_spread_of_seeds_stands_apart_from_that_of_cases(tmp_path):
    task, labels = made(tmp_path)
    seeds = [scored(task, labels, strength, seed) for seed, strength in enumerate((0.2, 1.0, 3.0, 0.5, 2.0))]
    found = over_seeds(seeds, draws=DRAWS)
    numbers = [one.primary.value for one in seeds]
    assert found.mean.value == pytest.approx(np.mean(numbers))
    assert found.deviation_seeds == pytest.approx(np.std(numbers, ddof=1))
    assert 0 < found.deviation_cases < found.deviation_seeds
    one_level = 3.92 * found.deviation_cases
    assert found.mean.high - found.mean.low > one_level  # cases and seeds both
    assert found.flags == ()
    assert over_seeds(seeds[:3], draws=DRAWS).flags == ("few seeds: 3, fewer than 5",)


def of_answers(right_n, model, seed):
    """Scores of a model that gives the true class 0.9 or 0.1, and a little that tells its seed."""
    label = np.arange(len(right_n)) % 2
    positive = np.where(right_n == (label == 1), 0.9, 0.1) + 1e-3 * seed
    cases = tuple(f"c{case:03}" for case in range(len(label)))
    probability, target = np.stack([1 - positive, positive], axis=1), np.eye(2, dtype=bool)[label]
    made_of = Classified(cases, ("a", "b"), "classification", probability, target, np.arange(len(label)))
    return Scores("t", "f", "classification", "accuracy", "test", model, seed, {}, {}, {}, (), made_of)


def studies(seeds, between, count, cases=60):
    """Pairs of models that do not differ: cases are hard for both, and each training has a level of its own."""
    random = np.random.default_rng(0)
    for _ in range(count):
        case = random.normal(size=cases)
        yield [
            [
                of_answers(case + between * random.normal() + 0.5 * random.normal(size=cases) > 0, model, seed)
                for seed in range(number)
            ]
            for model, number in zip("ab", seeds, strict=True)
        ]


@pytest.mark.parametrize(("seeds", "between"), [((3, 3), 0.2), ((3, 3), 1.0), ((5, 3), 0.5), ((1, 3), 0.5)])
def test_models_that_do_not_differ_are_called_better_in_few_studies(seeds, between):
    found = [compare(*pair, draws=100) for pair in studies(seeds, between, 300)]
    most = 0.07 if seeds == (3, 3) else 0.08  # 0.05, and two deviations of 300 studies
    assert np.mean([one.verdict != "tie" for one in found]) <= most
    assert np.mean([one.p_value < 0.05 for one in found]) <= most


def test_a_mean_over_three_seeds_holds_the_truth_as_often_as_its_interval_says():
    pairs = studies((3, 3), 0.5, 300)
    means = [over_seeds(a, draws=100).mean for a, _ in pairs]
    truth = np.mean([one.value for one in means])
    assert 0.90 <= np.mean([one.low <= truth <= one.high for one in means]) <= 0.99


def test_the_interval_of_several_seeds_is_welchs():
    (pair,) = studies((4, 3), 0.5, 1)
    found = compare(*pair, draws=2000)
    values = [[one.made_of.statistics()["accuracy"](np.ones((1, 60)))[0] for one in side] for side in pair]
    right = [np.stack([one.made_of.predicted_n == one.made_of.label_n for one in side]).mean(axis=0) for side in pair]
    cases = np.std(right[0] - right[1]) / math.sqrt(60)
    parts = [(np.var(values[0], ddof=1) / 4, 3), (np.var(values[1], ddof=1) / 3, 2), (cases**2, 59)]
    error = math.sqrt(sum(square for square, _ in parts))
    freedom = error**4 / sum(square**2 / own for square, own in parts)
    assert found.difference.deviation == pytest.approx(error, rel=0.02)
    half = scipy.t.ppf(0.975, freedom) * error
    assert found.difference.high - found.difference.value == pytest.approx(half, rel=0.02)
    told = 2 * scipy.t.sf(abs(np.mean(values[0]) - np.mean(values[1])) / error, freedom)
    assert found.p_value == pytest.approx(told, rel=0.1)
    assert (found.test, found.as_json()["test"]) == ("Student", "Student")
    assert "Student p" in found.line()


def test_one_training_says_that_another_seed_may_say_otherwise(tmp_path):
    (pair,) = studies((1, 3), 0.5, 1)
    found = compare(*pair, draws=DRAWS)
    assert "one training of a, whose seeds are taken to deviate as the other's" in found.flags
    assert "few seeds: 3, fewer than 5" in found.flags
    untold = compare([replace(pair[0][0], seed=None)], pair[1], draws=DRAWS)
    assert any("one training of a, which says no seed (of a probe pass --training N)" in flag for flag in untold.flags)
    assert untold.difference == found.difference
    fixed = compare([replace(pair[0][0], model="histogram linear", seed=None)], pair[1], draws=DRAWS)
    assert "histogram linear is a baseline without a seed, and is taken as it is" in fixed.flags
    assert fixed.difference.deviation < found.difference.deviation
    alone = compare(pair[0], pair[1][0], draws=DRAWS)
    assert ALONE in alone.flags
    assert alone.test == "Wilcoxon"
    assert "Wilcoxon p" in alone.line()


def test_a_class_of_few_cases_lends_its_own_freedom_alone():
    random = np.random.default_rng(1)
    label = np.arange(120) < 4
    positive = np.clip(0.3 * label + random.random((3, 120)), 0.01, 0.99)
    own = [of_answers(label, "a", seed) for seed in range(3)]
    own = [
        replace(one, metric="auroc", made_of=replace(one.made_of, probability_nc=np.stack([1 - p, p], axis=1),
                target_nc=np.eye(2, dtype=bool)[label.astype(int)]))
        for one, p in zip(own, positive, strict=True)
    ]  # fmt: skip
    found = over_seeds(own, draws=DRAWS)
    half = found.mean.high - found.mean.value
    assert half > 2.3 * found.mean.deviation  # of 119 degrees of freedom it would be 1.98


@pytest.mark.parametrize("kind", ["masks", "labels"])
def test_seeds_whose_decisions_agree_are_flagged_and_not_refused(tmp_path, kind):
    if kind == "masks":
        empty = np.zeros((8, 8), np.uint8)
        lesion = empty.copy()
        lesion[2:5, 2:5] = 1
        task = segmented(tmp_path, [[lesion]] * 6)
        a = [
            score(masks_of(task, tmp_path / str(seed), [empty] * 6, model="a", seed=seed), task, draws=50)
            for seed in range(2)
        ]
    else:
        a = [of_answers(np.ones(40, bool), "a", seed) for seed in range(2)]
        a = [replace(one, made_of=replace(one.made_of, probability_nc=one.made_of.target_nc * 1.0)) for one in a]
    found = over_seeds(a, draws=50)
    assert "seeds 0 and 1 predict alike" in found.flags
    assert found.deviation_seeds == 0
    told = compare(a, a, draws=50)
    assert (told.verdict, told.difference.low, told.difference.high) == ("tie", 0, 0)
    assert "a: seeds 0 and 1 predict alike" in told.flags
    assert compare_tasks(a, a)[0].verdict == "tie"


def test_a_difference_that_seeds_make_is_a_tie(tmp_path):
    task, labels = made(tmp_path, cases=80)
    a = [scored(task, labels, strength, seed) for seed, strength in enumerate((0.2, 3.0, 0.4, 2.5))]
    b = [scored(task, labels, strength, 9 + seed) for seed, strength in enumerate((0.3, 2.0, 0.1, 2.7))]
    assert compare(a[1], b[0], draws=DRAWS).verdict == "a"  # what one seed each would claim
    found = compare(a, b, draws=DRAWS)
    assert found.verdict == "tie"
    assert found.seeds == (4, 4)
    assert "one training" not in found.line()


def test_seeds_that_do_not_act_or_are_not_told_are_refused(tmp_path):
    task, labels = made(tmp_path)
    one = scored(task, labels, 1, seed=0)
    logits = np.random.default_rng(0).normal(size=(len(labels), 2)) + np.eye(2)[labels]
    again = score(logits_of(task, logits, seed=1), task, draws=DRAWS)
    with pytest.raises(ComparisonError, match="seeds 0 and 1 made the same predictions to the bit"):
        over_seeds([one, again])
    with pytest.raises(ComparisonError, match="task made: a model: seeds: expected a different one each, got 0, 0"):
        over_seeds([one, one])
    untold = score(logits_of(task, logits, model="twin"), task, draws=DRAWS)
    with pytest.raises(ComparisonError, match="task made: twin: seeds: expected a different one each, got None, 0"):
        over_seeds([untold, replace(one, model="twin")])
    with pytest.raises(ComparisonError, match="task made: a model: seeds: expected at least 2 trainings, got 1"):
        over_seeds([one])


def test_the_better_model_is_called_better_by_every_number_of_a_classification(tmp_path):
    task, labels = made(tmp_path, cases=80)
    good, bad = (scored(task, labels, strength, model=name) for strength, name in ((8, "good"), (0.5, "bad")))
    for metric in good.numbers:
        found, back = compare(good, bad, metric, draws=DRAWS), compare(bad, good, metric, draws=DRAWS)
        assert (found.verdict, back.verdict) == ("a", "b"), metric
        assert "good is better" in found.line()
        assert "good is better" in back.line()
    assert {"brier", "ece"} < set(good.numbers)


def test_the_better_model_is_called_better_by_every_number_of_a_segmentation(tmp_path):
    true = np.zeros((12, 8, 8), np.uint8)
    true[:6, 2:6, 2:6] = 1  # and six cases of empty masks
    keys = {"spacing_y": "1", "spacing_x": "1"}
    task = segmented(tmp_path, [[mask, mask] for mask in true], columns=keys)
    near, far = true.copy(), np.roll(true, 2, axis=1)
    near[:6, 2, 2] = 0
    far[:, 0, 0] = 1
    good, bad = (
        score(masks_of(task, tmp_path / name, list(np.repeat(masks, 2, axis=0)), model=name), task, draws=DRAWS,
              tolerance=1.0)
        for name, masks in (("good", near), ("bad", far))
    )  # fmt: skip
    for metric in good.numbers:
        assert compare(good, bad, metric, draws=DRAWS).verdict == "a", metric
        assert compare(bad, good, metric, draws=DRAWS).verdict == "b", metric
    assert {"false_alarm", "hd95_2d", "nsd_2d", "dice_per_slice"} < set(good.numbers)
