"""The experiment on claims: its instrument held against models whose routing is known, and its plan."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dexcore.data import SyntheticMVU, open_mvu
from dexcore.data.store import write_store
from dexcore.evaluate.claims import findings
from dexcore.evaluate.claims.known import CLAIMS, FIXED, ORACLE
from dexcore.evaluate.claims.of_run import routing_number
from dexcore.evaluate.reconstruct import batches, evaluate
from dexcore.evaluate.setting import Setting
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


def test_every_arm_can_be_rehearsed_at_either_scale(example):
    for scale in (example.WHOLE, example.QUICK):
        for run in example.plan(Path("store"), scale, (*example.ARMS, *example.MORE_ARMS)):
            short = example.shortened(run.config)
            assert (short.run.epochs, short.model) == (1.0, run.config.model)


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
