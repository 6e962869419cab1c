"""`dexcore report` of runs that have no evaluation: under way, stopped, diverged."""

import subprocess
import sys
from dataclasses import replace

import pytest
from runs import tiny

from dexcore.cli import main
from dexcore.engine.stop import StopRequest
from dexcore.train.loop import Pretraining, TrainingError
from dexcore.train.pretraining import pretrain
from dexcore.train.run.folder import open_run_folder

LOOKS_AT_PAGES = True


def _trained(config, steps):
    """Stop a run after some steps, in this process."""
    with open_run_folder(config) as folder:
        run = Pretraining(config, folder)
        step = run.step
        run.step = lambda batch, values, stop=False: step(batch, values, run.step_done + 1 == steps)
        with StopRequest() as stop:
            run.train(stop)


def test_a_stopped_run_shows_its_course_and_says_what_is_missing(store, tmp_path, capsys):
    config = tiny(store, tmp_path / "run")
    _trained(config, 12)
    assert main(["report", config.out]) == 0
    told = capsys.readouterr().out
    assert f"This run was stopped after step 12: --resume --out {config.out} goes on." in told
    assert "Missing: the variance explained" in told
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64") >= 3
    assert "This run was stopped after step 12" in page
    assert "12 steps done, 0 of them skipped" in page
    assert not (tmp_path / "run" / "summary.json").exists()
    assert pretrain(replace(config, resume=True)).finished  # the report of the whole run replaces it
    assert "stopped after step" not in (tmp_path / "run" / "report.html").read_text()


def test_a_run_that_diverged_shows_that_it_did(store, tmp_path, capsys):
    config = tiny(store, tmp_path / "run", max_skipped=3)
    config = replace(config, optimizer=replace(config.optimizer, base_lr=1e38, clip_norm=1e30))
    with pytest.raises(TrainingError):
        pretrain(config)
    assert main(["report", config.out]) == 0
    told = capsys.readouterr().out
    assert "This run has diverged and ended after step" in told
    assert "not finite in the last 3 steps" in told
    assert "This run has diverged" in (tmp_path / "run" / "report.html").read_text()


def test_a_run_whose_every_step_was_not_finite_has_a_report_too(store, tmp_path, capsys):
    config = tiny(store, tmp_path / "run", max_skipped=3)
    with open_run_folder(config) as folder:
        run = Pretraining(config, folder)
        run.model.mask_token.data.fill_(float("nan"))
        with StopRequest() as stop, pytest.raises(TrainingError):
            run.train(stop)
    assert main(["report", config.out]) == 0
    assert "no reconstruction loss was a finite number" in capsys.readouterr().out


def test_a_run_under_way_says_so(store, tmp_path):
    config = tiny(store, tmp_path / "run")
    with open_run_folder(config) as folder:
        run = Pretraining(config, folder)
        step = run.step
        run.step = lambda batch, values, stop=False: step(batch, values, run.step_done == 2)
        with StopRequest() as stop:
            run.train(stop)
        code = f"from dexcore.cli import main; raise SystemExit(main(['report', {config.out!r}]))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "This run is under way, after step 3." in done.stdout


def test_a_run_before_its_first_step_is_an_error_in_a_line(store, tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("run: {}\n")
    (tmp_path / "metrics.jsonl").write_text("")
    assert main(["report", str(tmp_path)]) == 2
    assert "no step in it" in capsys.readouterr().err
