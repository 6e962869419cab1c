"""The experiment on claims: its instrument held against models whose routing is known, and its plan."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dexcore.data import SyntheticMVU, open_mvu
from dexcore.data.store import write_store
from dexcore.evaluate.claims import findings
from dexcore.evaluate.claims.known import CLAIMS, FIXED, ORACLE
from dexcore.evaluate.claims.of_modules import module_numbers
from dexcore.evaluate.claims.of_run import run_numbers
from dexcore.measures.verdicts import Verdict
from dexcore.train.config import PRESETS
from dexcore.train.kept import train_once

_FILE = Path(__file__).parents[2] / "examples" / "verify_claims.py"
_SEEDS, _TRAIN, _HELDOUT = 4, 160, 120


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("verify_claims", _FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def config_of(arm, seed, store):
    laptop = PRESETS["laptop"]
    tiny = {"image_size": 32, "dim": 32, "depth": 2, "heads": 2}
    decoder = {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    return replace(
        laptop,
        model=replace(laptop.model, mlp=arm, **tiny, **decoder),
        data=replace(laptop.data, store=str(store), batch_size=16, epoch_size=160),
        optimizer=replace(laptop.optimizer, base_lr=0.1, warmup_epochs=1.0),
        run=replace(laptop.run, epochs=10.0, seed=seed, evaluate_images=12, device="cpu"),
    )


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


def test_what_could_be_shown_is_written_once_and_is_null_where_nobody_knows_it(example, tmp_path):
    smallest = {"routing": 0.125, "transfer": float("nan")}
    first = example.write_down(smallest, tmp_path)
    path = tmp_path / "smallest_effects.json"
    text = path.read_text()
    assert json.loads(text)["smallest"] == {"routing": 0.125, "transfer": None}
    path.write_text(text.replace(json.loads(text)["written"], "earlier"))
    again = example.write_down(smallest, tmp_path)
    assert again.startswith("earlier")
    assert not first.startswith("earlier")
    assert not example.write_down(smallest | {"routing": 0.25}, tmp_path).startswith("earlier")


def test_a_store_that_is_not_there_is_an_error_in_a_line(example, tmp_path, capsys):
    assert example.main(["--out", str(tmp_path / "out"), "--quick", "--store", str(tmp_path / "none")]) == 2
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error: ")]
    assert str(tmp_path / "none") in line


@pytest.mark.slow
def test_oracle_routing_passes_the_claims_of_specialization_and_fixed_routing_fails_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DEXCORE_BACKEND", "eager")  # no kernel is interpreted
    drawn = SyntheticMVU(size=32)
    records = (drawn.record(n, "train" if n < _TRAIN else "heldout") for n in range(_TRAIN + _HELDOUT))
    store = tmp_path / "store"
    write_store(records, store, name="drawn")
    fingerprint = open_mvu(store).fingerprint
    trained = {}
    for arm in (ORACLE, FIXED):
        for seed in range(_SEEDS):
            run = train_once(f"{arm}-{seed}", config_of(arm, seed, store), fingerprint, tmp_path).run
            trained[arm, seed] = run_numbers(run) | module_numbers(run / "model", store, 12)
    found = {one.claim.name: one.controls for one in findings(trained, CLAIMS, {}) if one.controls}
    assert set(found) == {"routing", "emergence", "specialization", "extraction"}
    for name, controls in found.items():
        told = [(name, one.label, one.judged.verdict, one.effect.value, one.effect.interval) for one in controls]
        expected = {ORACLE: Verdict.SUPPORTED, FIXED: Verdict.REFUTED}
        assert [one.judged.verdict for one in controls] == [expected[one.label] for one in controls], told
