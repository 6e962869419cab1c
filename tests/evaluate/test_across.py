"""Models on tasks, and the commands that score and compare."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from made_predictions import classified, logits_of, masks_of, segmented

from dexcore.cli import main
from dexcore.evaluate.scores import score, table
from dexcore.evaluate.scores.across import PUBLISHED, compare_tasks
from dexcore.evaluate.scores.compare import ALONE, ComparisonError
from dexcore.evaluate.scores.trainings import Trainings, flags_of_mean, mean_over_tasks

DRAWS = 300


def scores_of(folder, name, strengths, cases=40, seeds=(0,)):
    """Scores of models of several strengths on a task of its own."""
    random = np.random.default_rng(len(name))
    task, labels = classified(folder / name, random.integers(0, 2, cases).tolist(), name=name)
    found = []
    for model, strength in strengths.items():
        for seed in seeds:
            noise = np.random.default_rng([seed, len(model)]).normal(size=(cases, 2))
            whole = logits_of(task, noise + strength * np.eye(2)[labels], model=model, seed=seed)
            found.append(score(whole, task, draws=DRAWS))
    return found


def test_a_table_has_means_ranks_and_who_wins(tmp_path):
    scores = [
        *scores_of(tmp_path, "first", {"dense": 0.5, "dex": 2.5, "random": 0.5}),
        *scores_of(tmp_path, "another", {"dense": 0.5, "dex": 2.5, "random": 0.4}),
    ]
    found = table(scores, draws=DRAWS)
    assert (found.models, found.against) == (("dense", "dex", "random"), "dense")
    values = [[row.numbers[model].value for model in found.models] for row in found.rows]
    assert [found.mean[model].value for model in found.models] == pytest.approx(np.mean(values, axis=0))
    assert found.rank["dex"] == 1
    assert sum(found.rank.values()) == pytest.approx(6)
    assert found.outcomes("dex") == (2, 0, 0)
    for row in found.rows:
        assert row.numbers["dex"].low < row.numbers["dex"].value < row.numbers["dex"].high
    wide, narrow = found.mean_of_other_tasks["dense"], found.mean["dense"]
    assert wide.high - wide.low > narrow.high - narrow.low
    lines = "\n".join(found.lines())
    assert "| win / tie / loss against dense |  |  |  | 2 / 0 / 0 |" in lines
    assert PUBLISHED in lines
    assert json.loads(json.dumps(found.as_json()))["rank"]["dex"] == 1


def test_equal_models_share_their_rank_and_tie(tmp_path):
    scores = scores_of(tmp_path, "task", {"one": 2.0, "two": 2.0})
    found = table(scores, draws=DRAWS)
    assert found.rank == {"one": 1.5, "two": 1.5}
    assert found.outcomes("two") == (0, 1, 0)


def test_tasks_that_not_all_have_done_are_shown_and_stay_out_of_the_means(tmp_path):
    scores = [*scores_of(tmp_path, "both", {"a": 1.0, "bb": 1.0}), *scores_of(tmp_path, "alone", {"a": 5.0})]
    found = table(scores, draws=DRAWS)
    assert found.mean["a"].value == found.rows[0].numbers["a"].value
    assert any("leave out what not all models have done: alone" in flag for flag in found.flags)
    assert "| alone | auroc | 40 |" in "\n".join(found.lines())


def test_a_number_that_is_not_defined_has_no_rank_and_its_task_stays_out_of_the_means(tmp_path):
    full, empty = np.zeros((2, 4, 4), np.uint8)
    full[0] = 1
    scores = []
    for name, masks in (("lesions", [full] * 3), ("sound", [empty] * 3)):
        task = segmented(tmp_path / name, [[mask] for mask in masks], name=name)
        for model, found in (("nothing", empty), ("all", full)):
            whole = masks_of(task, tmp_path / name / model, [found] * 3, model=model)
            scores.append(score(whole, task, draws=DRAWS))
    found = table(scores, draws=DRAWS)
    undefined = found.rows[1]  # where no mask and no prediction has a pixel, Dice is not defined
    assert np.isnan(undefined.numbers["nothing"].value)
    assert undefined.ranks == {"all": 1}
    assert found.rank == {"nothing": 2, "all": 1}
    assert (found.mean["nothing"].value, found.mean["all"].value) == (0, 1)
    assert "the means leave out sound: dice is not defined of nothing" in found.flags


def test_a_flag_names_the_models_that_it_is_of_unless_it_is_of_all(tmp_path):
    one, two = scores_of(tmp_path, "task", {"one": 2.0, "two": 1.0})
    found = table([replace(one, flags=("few cases", "C at the edge")), replace(two, flags=("few cases",))], draws=DRAWS)
    assert {"task: few cases", "task, one: C at the edge"} <= set(found.flags)


def test_tasks_of_the_same_images_are_drawn_as_one(tmp_path):
    scores = [one for name, strength in (("slsc-seg", 0.2), ("slsc-cls-", 4.0), ("x", 1.0)) for one in
              scores_of(tmp_path, name, {"a": strength})]  # fmt: skip
    apart = table(scores, draws=2000).mean_of_other_tasks["a"]
    together = table(scores, clusters=[("slsc-seg", "slsc-cls-")], draws=2000)
    as_one = together.mean_of_other_tasks["a"]
    assert as_one.value == apart.value
    assert as_one.deviation != apart.deviation
    one, two, x = (row.numbers["a"].deviation / 3 for row in together.rows)
    assert together.mean["a"].deviation == pytest.approx(np.hypot(one + two, x), rel=0.05)  # their cases are the same
    with pytest.raises(ComparisonError, match="clusters: no task 'slsc'"):
        table(scores, clusters=[("slsc", "x")], draws=DRAWS)


def test_a_table_says_what_its_comparisons_and_its_seeds_say(tmp_path):
    alone = scores_of(tmp_path / "alone", "task", {"a": 1.0, "bb": 3.0}, cases=60)
    found = table(alone, draws=DRAWS)
    assert found.flags == (f"task: {ALONE}",)
    assert f"- task: {ALONE}" in found.lines()
    three = scores_of(tmp_path / "three", "task", {"a": 1.0, "bb": 3.0}, seeds=(0, 1, 2), cases=60)
    other = scores_of(tmp_path / "three", "another", {"a": 1.0, "bb": 3.0}, seeds=(0, 1, 2), cases=60)
    mixed = [one for one in three if (one.model, one.seed) not in (("a", 1), ("a", 2))]
    assert set(table(mixed, draws=DRAWS).flags) == {
        "task, bb: few seeds: 3, fewer than 5",
        "task: one training of a, whose seeds are taken to deviate as the other's",
    }
    assert table([*three, *other], draws=DRAWS).flags == ("few seeds: 3, fewer than 5",)  # of all tasks, once


def test_the_mean_over_tasks_counts_seeds_as_few_as_they_are(tmp_path):
    random = np.random.default_rng(0)
    studies = [_Study(random.normal(0.7, 0.05, 3)) for _ in range(400)]
    held = [_holds(mean_over_tasks([one.trainings], [0])[0], 0.7) for one in studies]
    assert 0.93 <= np.mean(held) <= 0.98
    pairs = zip(studies[::2], studies[1::2], strict=True)
    held = [_holds(mean_over_tasks([one.trainings, two.trainings], [0, 1])[0], 0.7) for one, two in pairs]
    assert 0.92 <= np.mean(held) <= 0.99


@pytest.mark.parametrize("count", [2, 5, 26])
@pytest.mark.parametrize("common", [1.0, 0.0])
def test_seeds_that_move_all_tasks_together_do_not_average_out(count, common):
    """One pre-training is probed on all tasks: what its seed does is the same on each."""
    random = np.random.default_rng(0)
    studies = 0.05 * (common * random.normal(size=(200, 1, 3)) + random.normal(size=(200, count, 3)) / 3)
    found = [mean_over_tasks([_Study(0.7 + one).trainings for one in study], range(count)) for study in studies]
    assert 0.92 <= np.mean([_holds(of_these, 0.7) for of_these, _ in found]) <= 0.99
    assert np.mean([_holds(of_others, 0.7) for _, of_others in found]) >= 0.92


def test_seeds_are_found_again_by_their_numbers_and_not_by_their_place():
    values = np.array([0.6, 0.7, 0.8])
    one, back = _Study(values), _Study(values[::-1].copy(), (2, 1, 0))
    (both, _), (alone, _) = (mean_over_tasks([x.trainings for x in xs], range(len(xs))) for xs in ([one, back], [one]))
    assert both.deviation == pytest.approx(alone.deviation, rel=1e-3)
    apart, _ = mean_over_tasks([one.trainings, _Study(values, (3, 4, 5)).trainings], range(2))
    assert apart.deviation == pytest.approx(alone.deviation / 2**0.5, rel=1e-3)
    some, _ = mean_over_tasks([one.trainings, _Study(values, (2, 3, 4)).trainings], range(2))
    assert some.deviation == pytest.approx(alone.deviation, rel=1e-3)  # whatever they share
    assert some.high - some.value == pytest.approx(alone.high - alone.value, rel=1e-2)


def test_a_task_that_was_trained_once_beside_others_is_told(tmp_path):
    several = scores_of(tmp_path, "several", {"a": 1.0, "bb": 3.0}, seeds=(0, 1, 2), cases=60)
    once = scores_of(tmp_path, "once", {"a": 1.0, "bb": 3.0}, cases=60)
    told = "the mean of {} has no error of seeds for once: one training there, several elsewhere"
    assert table([*several, *once], draws=DRAWS).flags_of_means == (told.format("a"), told.format("bb"))
    known = {"several": _Study(np.ones(3)).trainings, "once": replace(_Study(np.ones(1)).trainings, fixed=True)}
    assert flags_of_mean("majority", known) == []
    assert table(once, draws=DRAWS).flags_of_means == ()


def test_other_tasks_are_as_few_as_they_are(tmp_path):
    random = np.random.default_rng(0)
    held = []
    for _ in range(400):
        tasks = [_Study(random.normal(0.7, 0.1, 1)).trainings for _ in range(4)]
        of_these, of_others = mean_over_tasks(tasks, range(4))
        held.append(_holds(of_others, 0.7))
        assert of_others.high - of_others.low >= of_these.high - of_these.low
    assert 0.93 <= np.mean(held) <= 0.98
    assert np.isnan(mean_over_tasks(tasks, [0, 0, 0, 0])[1].low)  # one cluster says nothing of others


class _Study:
    """Numbers of a task's trainings that cases move by nothing worth telling."""

    def __init__(self, values, seeds=None):
        drawn = values + 1e-4 * np.random.default_rng(0).normal(size=(100, len(values)))
        seeds = tuple(range(len(values))) if seeds is None else seeds
        self.trainings = Trainings([], values, drawn, np.zeros(60, np.int64), seeds, fixed=False)


def _holds(number, truth):
    return number.low <= truth <= number.high


def test_seeds_are_summed_up_and_apart_from_models(tmp_path):
    scores = scores_of(tmp_path, "task", {"a": 1.0, "bb": 3.0}, seeds=(0, 1, 2))
    found = table(scores, draws=DRAWS)
    of_a = [one.primary.value for one in scores if one.model == "a"]
    assert found.rows[0].numbers["a"].value == pytest.approx(np.mean(of_a))
    assert found.rows[0].against["bb"].seeds == (3, 3)
    with pytest.raises(ComparisonError, match="expected a different one each"):
        table([*scores, scores[0]], draws=DRAWS)
    with pytest.raises(ComparisonError, match="no model 'dense', expected one of a, bb"):
        table(scores, against="dense", draws=DRAWS)


def test_a_comparison_of_folders_says_what_the_scores_say(tmp_path):
    a, b = scores_of(tmp_path, "task", {"a": 1.0, "bb": 3.0})
    seen = replace(a, flags=(*a.flags, "seen in pre-training: 3 of 40 images"))
    (found,) = compare_tasks([seen], [b])
    assert found.flags == ("few cases: 40", ALONE, "a: seen in pre-training: 3 of 40 images")
    assert "a: seen in pre-training: 3 of 40 images" in found.line()


def test_sides_with_several_models_or_no_common_task_are_not_compared(tmp_path):
    first = scores_of(tmp_path, "first", {"a": 1.0, "bb": 3.0})
    other = scores_of(tmp_path, "other", {"a": 1.0})
    with pytest.raises(ComparisonError, match="a: holds several models, a, bb"):
        compare_tasks(first, other)
    with pytest.raises(ComparisonError, match="no task that both have: first and other"):
        compare_tasks(first[:1], other)


@pytest.fixture
def predicted(tmp_path):
    """A task, and what two models predicted of it, on disk."""
    random = np.random.default_rng(0)
    task, labels = classified(tmp_path / "task", random.integers(0, 2, 20).tolist())
    for model, strength in (("good", 4.0), ("bad", 0.0)):
        logits = random.normal(size=(20, 2)) + strength * np.eye(2)[labels]
        logits_of(task, logits.astype(np.float16), model=model).save(tmp_path / f"{model}.parquet")
    return tmp_path


def test_the_commands_score_compare_and_make_a_table(predicted, capsys):
    task = str(predicted / "task" / "made.yaml")
    for model in ("good", "bad"):
        out = str(predicted / "scores" / model)
        assert main(["eval", "score", task, str(predicted / f"{model}.parquet"), "--out", out]) == 0
        assert json.loads((predicted / "scores" / model / "scores.json").read_text())["model"] == model
    assert "auroc" in capsys.readouterr().out
    assert main(["eval", "compare", str(predicted / "scores" / "good"), str(predicted / "scores" / "bad")]) == 0
    assert "good is better" in capsys.readouterr().out
    sides = [str(predicted / "scores" / model) for model in ("bad", "good")]
    assert main(["eval", "compare", *sides, "--metric", "accuracy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "b"
    assert main(["eval", "table", str(predicted / "scores"), "--against", "bad"]) == 0
    assert "| win / tie / loss against bad |" in capsys.readouterr().out


def test_the_commands_say_in_a_line_what_is_wrong(predicted, capsys):
    task = str(predicted / "task" / "made.yaml")
    (predicted / "empty").mkdir()
    assert main(["eval", "score", task, str(predicted / "empty")]) == 2
    assert "holds no .parquet with predictions" in capsys.readouterr().err
    assert main(["eval", "table", str(predicted / "empty")]) == 2
    assert "holds no scores.npz" in capsys.readouterr().err
    (predicted / "bad.parquet").write_bytes(b"PAR1")
    assert main(["eval", "score", task, str(predicted / "bad.parquet")]) == 2
    assert "cannot be read, expected a Parquet file" in capsys.readouterr().err
    table_file = predicted / "task" / "made.csv"
    table_file.write_text(table_file.read_text().replace("c0001", "c0000"))
    assert main(["eval", "score", task, str(predicted / "good.parquet")]) == 2
    assert "another task or another state of it" in capsys.readouterr().err


def test_masks_are_scored_from_the_command_line(tmp_path, capsys):
    masks = [[np.eye(4, dtype=np.uint8)], [np.ones((4, 4), np.uint8)]]
    task = segmented(tmp_path / "task", masks)
    masks_of(task, tmp_path / "out", [masks[0][0], masks[1][0]]).save(tmp_path / "out" / "predictions.parquet")
    assert main(["eval", "score", str(tmp_path / "task" / "made.yaml"), str(tmp_path / "out")]) == 0
    assert re.search(r"dice +1\.000 \[1\.000, 1\.000\]", capsys.readouterr().out)
