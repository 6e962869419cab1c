"""What a resume may change."""

from dataclasses import replace

from dexcore.engine.config import flat
from dexcore.train.changes import CHANGES_IF_ALLOWED, MAY_CHANGE_ON_RESUME, differences
from dexcore.train.config import PRESETS, PretrainConfig


def test_what_a_resume_may_change_are_fields_that_exist():
    names = {name for name, _ in flat(PretrainConfig())}
    assert names >= MAY_CHANGE_ON_RESUME
    assert names >= CHANGES_IF_ALLOWED
    assert not CHANGES_IF_ALLOWED & MAY_CHANGE_ON_RESUME
    assert {name for name in names if name.startswith(("optimizer.", "dex."))} <= CHANGES_IF_ALLOWED


def test_differences_name_what_makes_another_run_and_nothing_else():
    before = PRESETS["laptop"]
    now = replace(
        before,
        out="elsewhere",
        resume=True,
        data=replace(before.data, workers=7),
        model=replace(before.model, tau=0.7),
        run=replace(before.run, seed=3),
    )
    assert differences(before, now) == {"model.tau": "model.tau: 0.5 -> 0.7", "run.seed": "run.seed: 0 -> 3"}
