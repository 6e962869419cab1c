"""A series of runs: what is done is found, what was stopped goes on, and what is another run is trained."""

import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from runs import STEPS, metrics, tiny

from dexcore.data import open_mvu
from dexcore.engine.config import ConfigError
from dexcore.train.run import kept as kept_runs
from dexcore.train.run.kept import Code, StoppedError, code_of, is_done, made_of, run_folder, train_once


@pytest.fixture(scope="module")
def fingerprint(store):
    return open_mvu(store).fingerprint


def short(store, tmp_path, **run):
    return tiny(store, tmp_path / "not looked at", **{"epochs": 1.5, **run})


@pytest.mark.slow
def test_a_run_that_is_done_is_found_and_not_computed_again(store, fingerprint, tmp_path, monkeypatch):
    config = short(store, tmp_path)
    first = train_once("dex", config, fingerprint, tmp_path)
    assert not first.again
    assert (first.run / "model" / "model.safetensors").is_file()
    assert code_of(first.run).began
    assert len(code_of(first.run).states) == 1
    monkeypatch.setattr(kept_runs, "pretrain", None)
    again = train_once("dex", replace(config, out="elsewhere", resume=True), fingerprint, tmp_path)
    assert (again.again, again.folder, again.seconds) == (True, first.folder, pytest.approx(first.seconds, abs=0.1))
    done = first.folder / "done.json"
    done.write_text(json.dumps(json.loads(done.read_text()) | {"made_of": {}}))
    assert is_done("dex", config, fingerprint, tmp_path) is None


def test_every_setting_and_the_images_make_another_run(store, fingerprint, tmp_path):
    config = short(store, tmp_path)
    others = [
        (replace(config, run=replace(config.run, seed=1)), fingerprint),
        (replace(config, run=replace(config.run, evaluate_images=2)), fingerprint),
        (replace(config, model=replace(config.model, mlp_ratio=2.0)), fingerprint),
        (replace(config, dex=replace(config.dex, lambda_align=0.5)), fingerprint),
        (replace(config, data=replace(config.data, slices=3)), fingerprint),
        (config, "other images"),
    ]
    folders = {run_folder("dex", one, images, tmp_path) for one, images in [(config, fingerprint), *others]}
    assert len(folders) == 1 + len(others)
    moved = replace(config, out="elsewhere", data=replace(config.data, store="moved", workers=1))
    assert run_folder("dex", moved, fingerprint, tmp_path) in folders


def test_fields_that_came_later_and_do_nothing_leave_runs_what_they_were(store, fingerprint, tmp_path):
    config = short(store, tmp_path)
    later = {"data.slices", "optimizer.layer_decay"}
    assert not later & made_of(config, fingerprint)["config"].keys()
    changed = replace(config, data=replace(config.data, slices=3), optimizer=replace(config.optimizer, layer_decay=0.5))
    assert later <= made_of(changed, fingerprint)["config"].keys()


def test_other_weights_to_begin_with_make_another_run_wherever_they_lie(store, fingerprint, tmp_path):
    config = short(store, tmp_path)

    def folder_of(init):
        return run_folder("dex", replace(config, model=replace(config.model, init=str(init))), fingerprint, tmp_path)

    first, moved = tmp_path / "first.safetensors", tmp_path / "moved.safetensors"
    first.write_bytes(b"weights")
    moved.write_bytes(b"weights")
    before = folder_of(first)
    assert folder_of(moved) == before != run_folder("dex", config, fingerprint, tmp_path)
    first.write_bytes(b"others!")
    assert folder_of(first) != before
    with pytest.raises(ConfigError, match=r"model.init: .*none.*cannot be read"):
        folder_of(tmp_path / "none")


def test_a_run_says_by_which_code_it_was_made_at_every_start(tmp_path):
    git = {"commit": "0123456789abcdef", "changed": []}
    starts = [
        {"time": "2026-01-01T10:00:00+00:00", "git": git},
        {"time": "2026-01-01T11:00:00+00:00", "git": git | {"changed": ["dexcore/train/loop.py"]}},
        {"time": "2026-01-01T12:00:00+00:00", "git": git},
        {"time": "2026-01-01T13:00:00+00:00", "git": None, "versions": {"dexcore": "9.9"}},
    ]
    lines = [json.dumps(start) for start in starts]
    (tmp_path / "starts.jsonl").write_text("\n".join([*lines, lines[0][:20]]))  # the last is cut
    assert code_of(tmp_path) == Code(
        "2026-01-01T10:00:00+00:00",
        ("commit 0123456789ab", "commit 0123456789ab and changes", "dexcore 9.9"),
    )
    assert code_of(tmp_path / "none") == Code("", ())


@pytest.mark.slow
def test_a_run_that_a_signal_stopped_goes_on_where_it_was(store, fingerprint, tmp_path):
    config = tiny(store, tmp_path)
    folder = run_folder("dex", config, fingerprint, tmp_path) / "run"
    ended = threading.Event()

    def stop():
        steps = folder / "metrics.jsonl"
        while not ended.wait(0.002):
            if steps.is_file() and steps.read_bytes().count(b"\n") > 5:
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = threading.Thread(target=stop, daemon=True)
    watcher.start()
    deadline = time.monotonic() + 120
    try:
        with pytest.raises(StoppedError, match="the same command goes on"):
            train_once("dex", config, fingerprint, tmp_path)
    finally:
        ended.set()
        watcher.join(timeout=max(1.0, deadline - time.monotonic()))
    before = metrics(folder)
    assert 5 < len(before) < STEPS
    kept = train_once("dex", config, fingerprint, tmp_path)
    assert not kept.again
    after = metrics(kept.run)
    assert len(after) == STEPS
    assert [step["loss_self"] for step in after[: len(before)]] == [step["loss_self"] for step in before]
