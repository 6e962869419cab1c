"""Runs that are killed at random moments end as if nothing had been, of every kind of parallelism."""

import json

import numpy as np
import pytest

from bench import kills


def _survive(out, count: int) -> list[dict]:
    assert kills.main(["--kills", str(count), "--seed", "3", "--out", str(out)]) == 0
    return [json.loads(line) for line in (out / kills.LOG).read_text().splitlines()]


def _killed(lines: list[dict]) -> list[dict]:
    return [line for line in lines if "killed" in line]


@pytest.mark.slow  # some forty starts of processes
def test_two_kills_of_each_kind_change_nothing_and_a_spoilt_run_is_told(tmp_path):
    lines = _survive(tmp_path, 6)
    assert [line["kind"] for line in _killed(lines)] == ["alone"] * 2 + ["ddp"] * 2 + ["fsdp"] * 2
    ended = [line for line in lines if "ended" in line]
    assert {line["kind"] for line in ended} == set(kills.KINDS)
    assert _survive(tmp_path, 6) == lines  # what is done is not done again
    run, undisturbed = tmp_path / ended[0]["run"], tmp_path / "alone-undisturbed"
    kills.check_run(run, undisturbed)
    seen = run.with_suffix(".seen")
    whole = seen.read_text()
    seen.write_text(whole + json.dumps({"step": 2, "images": list(range(12))}) + "\n")
    with pytest.raises(kills.KillsError, match="step 2 has shown other images than before a kill"):
        kills.check_run(run, undisturbed)
    seen.write_text(whole)
    weights = dict(np.load(run / kills.WEIGHTS))
    weights["mask_token"] = np.nextafter(weights["mask_token"], 1)
    np.savez(run / kills.WEIGHTS, **weights)
    with pytest.raises(kills.KillsError, match="1 tensors are not the undisturbed run's: mask_token"):
        kills.check_run(run, undisturbed)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path):
    lines = _killed(_survive(tmp_path, 20))
    assert len(lines) == 20
    assert len({line["steps"] for line in lines}) > 3  # at other moments
