"""The corpus's labelled images as tasks."""

import pytest
from corpus import CORPUS, needs_corpus

from bench.corpus_tasks import TASKS, corpus_tasks
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
