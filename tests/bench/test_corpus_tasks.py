"""The corpus's labelled images as tasks."""

import pytest
from corpus import CORPUS, needs_corpus

from bench.corpus_tasks import TASKS, corpus_tasks, link_rest
from dexcore.evaluate.tasks.check import check_task

pytestmark = needs_corpus

QUICK = ("pneumonia", "breast-lesion")


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(set(TASKS) - {*QUICK}))]
)
def test_a_task_of_the_corpus_is_sound(tmp_path, name):
    [task] = corpus_tasks(CORPUS, tmp_path, (name,))
    assert check_task(task).problems == []
    [again] = corpus_tasks(CORPUS, tmp_path / "again", (name,))
    assert again.fingerprint == task.fingerprint
    with open(task.spec.table) as table:
        assert str(CORPUS) not in table.read()


@pytest.mark.slow
def test_a_patients_volumes_of_three_modalities_are_one_case(tmp_path):
    [task] = corpus_tasks(CORPUS, tmp_path, ("tumour",))
    modalities = {}
    for row in task.rows:
        modalities.setdefault(row.case, set()).add(str(row.modality))
    assert modalities["STS_025"] > {"CT"}
    assert {str(modality) for modality in task.modalities} == {"PET", "MR", "CT"}


def test_what_no_task_tests_is_linked_for_pre_training(tmp_path):
    tasks = corpus_tasks(CORPUS, tmp_path, QUICK)
    linked = link_rest(CORPUS, tasks, tmp_path / "rest")
    found = {
        path.relative_to(tmp_path / "rest").as_posix() for path in (tmp_path / "rest").rglob("*") if path.is_symlink()
    }
    assert len(found) == linked
    for task in tasks:
        assert {row.image for row in task.split("train")} <= found
        assert not found & {row.image for row in task.split("test")}
    assert (tmp_path / "rest" / "X-ray" / "dataset.yaml").read_text() == "modality: X-ray\n"
