"""What must be known of a task's numbers: each thing once, with the models and the count of trainings that it is of."""

from dataclasses import dataclass

from dexcore.evaluate.scores.flags import flags_of_task


@dataclass(frozen=True)
class Numbers:
    model: str
    flags: tuple[str, ...] = ()


def test_what_all_say_names_no_model_and_what_some_say_names_them():
    found = [Numbers("one", ("few cases", "C at the edge")), Numbers("two", ("few cases",))]
    assert flags_of_task("task", found) == ["task: few cases", "task, one: C at the edge"]
    assert flags_of_task("", found) == ["few cases", "one: C at the edge"]


def test_of_several_trainings_those_are_counted_that_say_it():
    found = [*[Numbers("dex", ("C at the edge",))] * 2, Numbers("dex"), *[Numbers("wide", ("C at the edge",))] * 3]
    assert flags_of_task("task", found) == ["task, dex (2 of 3 trainings), wide: C at the edge"]
    assert flags_of_task("task", found[3:]) == ["task: C at the edge"]


def test_a_model_that_is_not_beaten_is_told_once_for_all_trainings_and_with_the_numbers_of_a_single_one():
    lost = [f"does not beat histogram: auroc {more} [-0.100, +0.100]" for more in ("+0.010", "-0.020")]
    found = [Numbers("dex", (lost[0],)), Numbers("dex", (lost[1],)), Numbers("dex"), Numbers("histogram")]
    assert flags_of_task("task", found) == ["task, dex (2 of 3 trainings): does not beat histogram"]
    assert flags_of_task("task", [found[0], found[3]]) == [f"task, dex: {lost[0]}"]


def test_a_flag_that_one_training_says_twice_counts_once():
    found = [Numbers("dex", ("does not beat a: 1", "does not beat a: 2")), Numbers("dex")]
    assert flags_of_task("task", found) == ["task, dex (1 of 2 trainings): does not beat a"]
