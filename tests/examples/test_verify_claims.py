"""The experiment on claims: its instrument held against models whose routing is known, and its plan."""

import importlib.util
import json
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import coarse_pictures

from dexcore.data import SyntheticMVU, open_mvu
from dexcore.data.store import write_store
from dexcore.evaluate.claims import findings
from dexcore.evaluate.claims.before import ExperimentError
from dexcore.evaluate.claims.known import CLAIMS, FIXED, ORACLE
from dexcore.evaluate.claims.of_run import routing_number
from dexcore.evaluate.reconstruct import batches, evaluate
from dexcore.evaluate.setting import Setting
from dexcore.evaluate.tasks.importers.synthetic import synthetic_tasks
from dexcore.measures.verdicts import Verdict
from dexcore.nn import param_groups, update_directors
from dexcore.train.build import build_model
from dexcore.train.config import PRESETS

_FILE = Path(__file__).parents[2] / "examples" / "verify_claims.py"
_SEEDS, _TRAIN, _HELDOUT, _STEPS = 3, 40, 160, 2


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("verify_claims", _FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_the_plan_pairs_all_arms_of_a_seed_and_keeps_the_pilots_seeds_apart(example):
    runs = example.plan(Path("store"), example.WHOLE, (*example.ARMS, *example.MORE_ARMS))
    pilots, own = ([run for run in runs if run.pilot is pilot] for pilot in (True, False))
    assert runs == [*pilots, *own]
    assert len(own) == 25
    assert {run.seed for run in pilots}.isdisjoint(run.seed for run in own)
    for seed in range(5):
        of_seed = [run for run in own if run.seed == seed]
        assert [run.config.model.mlp for run in of_seed] == [*example.ARMS, *example.MORE_ARMS]
        alike = {replace(run.config, model=replace(run.config.model, mlp="dex")) for run in of_seed}
        assert len(alike) == 1
        assert of_seed[0].config.run.seed == seed
    assert [run.seed for run in own] == sorted(run.seed for run in own)  # whole seeds first


def test_a_remedy_changes_what_is_trained_and_nothing_that_it_is_compared_on(example, tmp_path):
    (tmp_path / "narrow.yaml").write_text("model: {top_k: 1}\ndex: {noise_start: 2.0}\n")
    runs = example.plan(Path("store"), example.WHOLE, example.ARMS, [tmp_path / "narrow.yaml"])
    dex, narrow = ([run for run in runs if run.arm == arm and not run.pilot] for arm in ("dex", "dex-narrow"))
    assert len(narrow) == 5
    for own, changed in zip(dex, narrow, strict=True):
        assert replace(changed.config, model=own.config.model, dex=own.config.dex) == own.config
        assert changed.config.model.top_k == 1
    assert len([run for run in runs if run.pilot]) == 6
    assert example.changes_of(runs) == {"dex-narrow": "model.top_k 1, dex.noise_start 2.0"}
    for text in ("model: {mask_ratio: 0.5}", "run: {seed: 7}", "data: {batch_size: 8}", "model: {mlp: dense}"):
        (tmp_path / "other.yaml").write_text(text)
        with pytest.raises(ExperimentError, match=r"other\.yaml: \w+\.\w+: a remedy is compared with DEX"):
            example.plan(Path("store"), example.WHOLE, example.ARMS, [tmp_path / "other.yaml"])


def test_every_arm_can_be_rehearsed_at_either_scale(example):
    for scale in (example.WHOLE, example.QUICK):
        for run in example.plan(Path("store"), scale, (*example.ARMS, *example.MORE_ARMS)):
            short = example.shortened(run.config)
            assert (short.run.epochs, short.model) == (1.0, run.config.model)


def test_a_store_that_is_not_there_is_an_error_in_a_line(example, tmp_path, capsys):
    assert example.main(["--out", str(tmp_path / "out"), "--quick", "--store", str(tmp_path / "none")]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert str(tmp_path / "none") in line


def test_the_whole_is_refused_in_a_quick_ones_folder_and_the_other_way_round(example, store, tmp_path, capsys):
    example.settle(tmp_path, {"scale": "whole", "images": open_mvu(store).fingerprint})
    assert example.main(["--out", str(tmp_path), "--quick", "--store", str(store)]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert f"{tmp_path} holds another experiment" in line
    assert "scale: whole -> quick" in line
    assert not (tmp_path / "tasks").exists()


def test_a_users_tasks_stand_alone_and_the_generated_one_beside_them(example, tmp_path):
    scale = replace(example.QUICK, labelled=40)
    masks, classes = synthetic_tasks(tmp_path / "own", 40, 32)
    given = [f"--out={tmp_path}", "--tasks"]

    def chosen(*arguments):
        return example.labelled_images(example.parse(arguments), scale)

    alone = chosen(f"--out={tmp_path}")
    assert ([task.name for task in alone.asked], alone.beside, alone.flags) == (["findings"], [], [])
    both = chosen(*given, str(classes.spec.path), str(masks.spec.path))
    assert [task.fingerprint for task in both.asked] == [classes.fingerprint]
    assert [task.fingerprint for task in both.beside] == [alone.asked[0].fingerprint] != [classes.fingerprint]
    assert "lesions" in both.flags[0]
    with pytest.raises(ExperimentError, match="expected a task of classes"):
        chosen(*given, str(masks.spec.path))
    assert "No task is given" in chosen(f"--out={tmp_path}", "--store=somewhere").flags[0]


def test_the_first_run_of_an_experiment_is_no_pilot(example, tmp_path):
    assert example.begun(tmp_path) == ""
    for name, hour in (("pilot-dex-1000-abc", 1), ("dex-0-abc", 3), ("dense-wide-0-abc", 2)):
        folder = tmp_path / "runs" / name / "run"
        folder.mkdir(parents=True)
        (folder / "starts.jsonl").write_text(json.dumps({"time": f"2026-01-01T0{hour}:00:00+00:00"}) + "\n")
    assert example.begun(tmp_path) == "2026-01-01T02:00:00+00:00"


def test_runs_of_different_code_are_flagged(example):
    given = example.parse(["--out=out"])
    for codes, told in (
        (["commit a (8 runs)", "commit b (7 runs)"], "trained by different code"),
        (["commit a and changes (15 runs)"], "had changes that no commit holds"),
        (["commit a (15 runs)"], None),
    ):
        found = example.flags(given, {}, {}, codes, example.WHOLE)
        assert [told in flag for flag in found if "control" not in flag] == ([True] if told else [])


def trained(arm, seed, images, setting):
    """A tiny model of one arm, a few steps, on SyntheticMVU."""
    config = replace(
        PRESETS["laptop"].model,
        **{"mlp": arm, "image_size": setting.image_size, "dim": 32, "depth": 2, "heads": 2},
        **{"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2, "backend": "eager"},
    )
    torch.manual_seed(seed)
    model = build_model(config, seed, images.modality_names)
    optimizer = torch.optim.AdamW(param_groups(model, 0.0), lr=3e-3)
    draws, rows = np.random.default_rng(seed), images.indices("train")
    model.train()
    for step in range(_STEPS):
        (batch,) = batches(images, draws.choice(rows, 24, replace=False), model, setting, draw=1 + step)
        optimizer.zero_grad()
        model(batch.images, noise=batch.noise, hidden_only=True).loss.backward()
        optimizer.step()
        update_directors(model, 0.99)
    return model.eval()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    drawn = SyntheticMVU(size=32)
    records = (drawn.record(n, "train" if n < 40 else "heldout") for n in range(60))
    folder = tmp_path_factory.mktemp("small") / "store"
    write_store(records, folder, name="small")
    return folder


@pytest.mark.parametrize(("name", "more"), [("synthetic", ("oracle-routing",)), ("real", ())])
def test_the_kept_experiments_are_those_of_today_s_configuration(example, tmp_path, name, more):
    """What is committed of them is found by the command: a new field of the configuration must not hide it."""
    with tarfile.open(_FILE.parents[1] / "docs" / "claims" / name / "numbers.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    (place,) = tmp_path.iterdir()
    fingerprint = json.loads((place / "experiment.json").read_text())["images"]
    for run in example.plan(Path("store"), example.WHOLE, (*example.ARMS, *more)):
        assert example.known_run(run, fingerprint, place), run.name


@pytest.mark.slow
def test_oracle_routing_passes_the_claim_that_experts_follow_modalities_and_fixed_routing_fails_it(tmp_path):
    drawn = SyntheticMVU(size=32)
    records = (drawn.record(n, "train" if n < _TRAIN else "heldout") for n in range(_TRAIN + _HELDOUT))
    write_store(records, tmp_path / "store", name="drawn")
    images, device = open_mvu(tmp_path / "store"), torch.device("cpu")
    setting = Setting(32, 3, "gray", 0, "fp32", _HELDOUT)
    numbers = {}
    for arm in (ORACLE, FIXED):
        for seed in range(_SEEDS):
            model = trained(arm, seed, images, setting)
            numbers[arm, seed] = {"routing": routing_number(evaluate(model, images, setting, device))}
    (controls,) = (one.controls for one in findings(numbers, CLAIMS, {}) if one.controls)
    assert [(one.label, one.judged.verdict) for one in controls] == [
        (ORACLE, Verdict.SUPPORTED),
        (FIXED, Verdict.REFUTED),
    ], [one.effect for one in controls]
    assert all(one.passed for one in controls)


# What an experiment's folder keeps of it without models and images, as docs/claims_measured.md packs it.
_NUMBERS = (
    *("experiment.json", "smallest_effects.json", "runs/*/done.json", "runs/*/numbers-*.npz"),
    *("runs/*/run/comparison.json", "runs/*/run/starts.jsonl"),
)


@pytest.mark.slow
def test_an_experiment_goes_on_from_its_numbers_alone_and_only_a_changed_dex_is_trained(example, tmp_path, monkeypatch):
    model = replace(example.QUICK.model, dim=32, depth=1, num_experts=3)
    small = {"epochs": 0.25, "pilot_epochs": 0.125, "evaluated": 3, "drawn": 200, "held_out": 60, "labelled": 100}
    monkeypatch.setattr(example, "WHOLE", replace(example.QUICK, model=model, **small))
    whole, numbers = tmp_path / "whole", tmp_path / "numbers"
    with coarse_pictures():
        assert example.main(["--out", str(whole)]) == 0
    for file in (file for pattern in _NUMBERS for file in whole.glob(pattern)):
        (numbers / file.relative_to(whole)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, numbers / file.relative_to(whole))
    before = {file: file.read_bytes() for file in numbers.rglob("*.*") if file.is_file()}
    (tmp_path / "sooner.yaml").write_text("dex: {noise_start: 0.25}\n")
    with coarse_pictures():
        assert example.main(["--out", str(numbers), "--remedy", str(tmp_path / "sooner.yaml")]) == 0
    assert {file: file.read_bytes() for file in before} == before
    trained_again = {folder.parent.name for folder in numbers.glob("runs/*/run") if (folder / "metrics.jsonl").exists()}
    assert {name.rpartition("-")[0] for name in trained_again} == {"dex-sooner-0"}
    first, second = (json.loads((folder / "claims.json").read_text()) for folder in (whole, numbers))
    assert second["findings"] == first["findings"]
    assert not first["remedies"]
    (remedy,) = second["remedies"]
    assert (remedy["name"], remedy["changes"]) == ("dex-sooner", "dex.noise_start 0.25")
