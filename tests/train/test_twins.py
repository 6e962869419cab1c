"""Twins: what is equal in all of them, what differs, and that a whole run works for each."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import ends, flags, metrics, start_ranks, state, tiny

from dexcore.data.feed.order import GlobalOrder
from dexcore.engine.stop import StopRequest
from dexcore.evaluate.embedding import features, open_model
from dexcore.models import MaskedAutoencoder
from dexcore.nn import rule_of
from dexcore.report import Analysis, Evaluation, build_report
from dexcore.report.comparison import idle_settings
from dexcore.train import PRESETS, PretrainConfig, pretrain
from dexcore.train.build import build_model
from dexcore.train.config import DexConfig, ModelConfig, OptimizerConfig
from dexcore.train.loop import Pretraining
from dexcore.train.run.comparison import cost, order_digest
from dexcore.train.run.folder import open_run_folder

LOOKS_AT_PAGES = True
RANK_RUN = str(Path(__file__).with_name("rank_run.py"))
KINDS = ("dex", "dense", "dense-wide", "fixed-routing", "oracle-routing")
DENSE = ("dense", "dense-wide")


def small(**changes) -> ModelConfig:
    sizes = {"image_size": 16, "patch_size": 8, "dim": 16, "depth": 2, "heads": 2, "num_experts": 4}
    return ModelConfig(**{**sizes, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, **changes})


def built(mlp: str, **changes) -> MaskedAutoencoder:
    torch.manual_seed(7)
    return build_model(small(mlp=mlp, **changes), seed=7, modalities=("CT", "MR"))


@pytest.mark.parametrize("mlp", KINDS[1:])
def test_a_twin_begins_with_the_numbers_of_dex_where_it_has_the_same_parts(mlp):
    dex, twin = (state(built(kind)) for kind in ("dex", mlp))
    outside = {name for name in dex if ".mlp." not in name or name.startswith("decoder")}
    assert outside == {name for name in twin if ".mlp." not in name or name.startswith("decoder")}
    assert all(np.array_equal(dex[name], twin[name]) for name in outside)
    if mlp == "dense":
        inside = {name for name in twin if name not in outside}
        assert all(np.array_equal(twin[name], dex[name.replace(".mlp.", ".mlp.director.")]) for name in inside)
    if mlp.endswith("routing"):
        assert dex.keys() == twin.keys()
        assert all(np.array_equal(dex[name], twin[name]) for name in dex)


@pytest.mark.parametrize("preset", ["laptop", pytest.param("paper", marks=pytest.mark.slow)])
def test_the_wide_twin_costs_at_inference_what_dex_does(preset):
    config = PRESETS[preset].model
    dex, wide, dense = (cost(replace(config, mlp=kind)) for kind in ("dex", "dense-wide", "dense"))
    assert wide.inference_flops == pytest.approx(dex.inference_flops, rel=0.01)
    assert dense.inference_flops < 0.8 * dex.inference_flops
    assert dense.training_flops < wide.training_flops < dex.training_flops  # which runs its director too
    assert dense.parameters < wide.parameters < dex.parameters


def test_flops_are_those_of_the_formulas():
    """Two FLOPs a multiply-add: patch embedding, qkv, scores, values, projection, and the MLP's two layers."""
    n, d, hidden, depth, patch, patches = 5, 16, 64, 2, 3 * 64, 4
    attention = n * d * 3 * d + 2 * n * n * d + n * d * d
    of_mlp = {"dense": 2 * n * d * hidden, "dense-wide": 4 * n * d * hidden, "dex": 4 * n * d * hidden + 4 * d}
    for mlp, mlp_macs in of_mlp.items():
        macs = patches * patch * d + depth * (attention + mlp_macs)
        assert cost(small(mlp=mlp)).inference_flops == 2 * macs


def test_the_width_of_the_wide_twin_follows_the_mean_of_top_k():
    uneven = built("dense-wide", top_k=(1, 3))
    assert {block.mlp.fc1.out_features for block in uneven.encoder.blocks} == {128}
    assert cost(small(mlp="dense-wide", top_k=(1, 3))).inference_flops == pytest.approx(
        cost(small(top_k=(1, 3))).inference_flops, rel=0.01
    )


@pytest.fixture(scope="module")
def twins(store, tmp_path_factory) -> dict[str, PretrainConfig]:
    """A run of ten steps of each kind."""
    folder, runs = tmp_path_factory.mktemp("twins"), {}
    for mlp in KINDS:
        config = tiny(store, folder / mlp, epochs=4)
        runs[mlp] = replace(config, model=replace(config.model, mlp=mlp))
        assert pretrain(runs[mlp]).finished
    return runs


@pytest.mark.slow
def test_twins_see_the_same_images_in_the_same_steps_with_the_same_masks(twins):
    told = {mlp: json.loads((Path(config.out) / "summary.json").read_text()) for mlp, config in twins.items()}
    assert {mlp: one["comparison"]["mlp"] for mlp, one in told.items()} == {mlp: mlp for mlp in KINDS}
    assert len({one["comparison"]["order_sha256"] for one in told.values()}) == 1
    assert {one["steps"]["done"] for one in told.values()} == {10}
    # Experts are copies at first, and the decoder is the same: so is the loss of the first step, if all else is.
    first = {mlp: metrics(config.out)[0]["loss_self"] for mlp, config in twins.items()}
    for mlp in ("dense", "fixed-routing", "oracle-routing"):
        assert first[mlp] == pytest.approx(first["dex"], rel=1e-6)
    masks = [Evaluation.load(Path(config.out) / "evaluation.npz").total for config in twins.values()]
    assert all(np.array_equal(masks[0], one) for one in masks)


@pytest.mark.slow
@pytest.mark.parametrize("mlp", KINDS[1:])
def test_a_twin_s_run_ends_with_a_model_and_a_report(twins, mlp, store, tmp_path):
    folder = Path(twins[mlp].out)
    lines, analysis = metrics(folder), Analysis.load(folder / "analysis.npz")
    encoder = open_model(folder)
    dense = mlp in DENSE
    assert ("load" in lines[0], "loss_align" in lines[0], "momentum" in lines[0]) == (not dense,) * 3
    assert analysis.modes == (("dense",) if dense else ("experts", "director"))
    assert (folder / "report" / "load.png").exists() != dense
    assert (folder / "report" / "losses.png").exists()
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "twin" in page
    assert ("What the experts do" in page) != dense
    if not dense:
        assert {line["lambda_balance"] for line in lines} == {line["noise_std"] for line in lines} == {0.0}
    rule = rule_of(encoder)
    assert (None if rule is None else rule.kind) == (None if dense else mlp.removesuffix("-routing"))
    found = features(encoder, store, cache=tmp_path)
    assert found.mean.shape == (24, 16)
    assert (found.gates is None) == dense
    kept = features(open_model(folder), store, cache=tmp_path)
    assert np.array_equal(kept.mean, found.mean)
    assert build_report(folder).mlp == mlp


@pytest.mark.slow
def test_oracle_routing_gives_each_modality_its_experts_and_fixed_routing_does_not(twins):
    for mlp, alike in (("oracle-routing", True), ("fixed-routing", False)):
        evaluation = Evaluation.load(Path(twins[mlp].out) / "evaluation.npz")
        for modality in np.unique(evaluation.modality):
            used = evaluation.gates[0][evaluation.modality == modality] > 0
            assert bool((used == used[0]).all()) == alike


@pytest.mark.slow
@pytest.mark.parametrize("mlp", ["dense", "fixed-routing"])
def test_a_twin_is_resumed_as_if_it_had_not_been_stopped(twins, mlp, tmp_path):
    whole = twins[mlp]
    config = replace(whole, out=str(tmp_path / "again"), resume=True)
    shutil.copytree(whole.out, config.out)
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step-00000010")  # it goes on after step 5
    shutil.rmtree(tmp_path / "again" / "model")
    assert pretrain(config).finished
    assert metrics(config.out) == metrics(whole.out)
    name = "model/model.safetensors"
    assert (Path(config.out) / name).read_bytes() == (Path(whole.out) / name).read_bytes()


def test_the_order_s_hash_tells_apart_what_gives_a_step_other_pixels_or_masks(store, tmp_path):
    base = tiny(store, tmp_path)
    changed = {
        "model": {"mask_ratio": 0.5, "image_size": 16, "patch_size": 16},
        "data": {"min_area": 0.5, "flip": "none", "rotation": 0.0, "intensity": 0.1, "statistics": "gray"},
    }
    runs = [base] + [
        replace(base, **{part: replace(getattr(base, part), **{name: value})})
        for part, fields in changed.items()
        for name, value in fields.items()
    ]

    def digest(config, own_transform=False):
        order = GlobalOrder(np.zeros(5, np.int64), config.run.seed)
        return order_digest(order, np.arange(5), "images", config, 10, own_transform)

    assert len({digest(config) for config in runs}) == len(runs) == 9
    twin = replace(base, model=replace(base.model, mlp="dense", dim=32), optimizer=OptimizerConfig(base_lr=1.0))
    assert digest(twin) == digest(base)
    assert digest(base, own_transform=True) not in {digest(config) for config in runs}


@pytest.mark.slow
@pytest.mark.parametrize("mlp", ["dense", "oracle-routing"])
def test_what_a_report_calls_without_effect_has_none(twins, mlp, tmp_path):
    others = {"tau": 1.0, "align": "mse", "keep": "none", "backend": "eager", "top_k": (1, 3), "noise_start": 3.0}
    others |= {"lambda_balance": 7.0, "balance_schedule": "constant", "lambda_align": 5.0}
    others |= {"momentum_start": 0.1, "momentum_end": 0.2}
    config = replace(twins[mlp], out=str(tmp_path / "run"))
    for part, name in (field.split(".") for field in idle_settings(mlp)):
        assert getattr(getattr(config, part), name) != others[name]
        config = replace(config, **{part: replace(getattr(config, part), **{name: others[name]})})
    assert pretrain(config).finished
    assert metrics(config.out) == metrics(twins[mlp].out)
    name = "model/model.safetensors"
    assert (Path(config.out) / name).read_bytes() == (Path(twins[mlp].out) / name).read_bytes()


@pytest.mark.slow
def test_a_resumed_run_asks_for_no_weights_to_begin_with_and_its_folder_knows_them_by_content(store, tmp_path):
    config = tiny(store, tmp_path / "run", epochs=4, checkpoint_every=4, keep_checkpoints=3)
    file = tmp_path / "dense.pth"
    torch.manual_seed(1)
    torch.save({"model": build_model(replace(config.model, mlp="dense")).state_dict()}, file)
    content = hashlib.sha256(file.read_bytes()).hexdigest()
    config = replace(config, model=replace(config.model, init=str(file)))
    assert pretrain(config).finished
    whole, model = metrics(config.out), (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    (tmp_path / "run" / "checkpoints" / "step-00000010").rename(tmp_path / "gone")
    (tmp_path / "run" / "model" / "config.json").unlink()
    file.unlink()
    assert pretrain(replace(config, resume=True)).finished
    assert metrics(config.out) == whole
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == model
    starts = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert [start.get("init_sha256") for start in starts] == [content, None]


def dense_file(path: Path) -> Path:
    """A checkpoint of a dense autoencoder of the small size."""
    torch.manual_seed(1)
    torch.save({"model": build_model(small(mlp="dense")).state_dict()}, path)
    return path


def test_a_warm_started_wide_twin_computes_what_its_checkpoint_does(tmp_path):
    file = dense_file(tmp_path / "dense.pth")
    dense, wide, dex = (built(mlp, init=str(file)) for mlp in ("dense", "dense-wide", "dex"))
    images, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 4)
    outputs = [model(images, noise=noise).pred for model in (dense, wide, dex)]
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])


def test_the_halves_of_a_warm_started_wide_twin_differ_after_ten_steps(tmp_path):
    wide = built("dense-wide", init=str(dense_file(tmp_path / "dense.pth")))
    optimizer = torch.optim.AdamW(wide.parameters(), lr=1e-3)
    for step in range(10):
        torch.manual_seed(step)
        optimizer.zero_grad()
        wide(torch.randn(4, 3, 16, 16)).loss.backward()
        optimizer.step()
    for block in wide.encoder.blocks:
        units = torch.cat([block.mlp.fc1.weight, block.mlp.fc2.weight.T], dim=1)
        assert units[64:, 16:].abs().amax() > 1e-3  # the new half takes part
        likeness = cosines(units)
        assert likeness.fill_diagonal_(0).abs().max() < 0.999  # and no unit is a copy of another


def cosines(rows: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(rows.detach(), dim=1)
    return unit @ unit.T


@pytest.mark.slow
@pytest.mark.parametrize("mlp", ["dense", "fixed-routing"])
def test_a_twin_on_two_ranks_computes_what_it_does_on_one(mlp, store, tmp_path):
    config = tiny(store, tmp_path / "two", epochs=1.2, precision="fp32")
    config = replace(config, model=replace(config.model, mlp=mlp), dex=DexConfig(lambda_align=0.1))
    (tmp_path / "states").mkdir()
    flags(config, tmp_path)
    codes, _, errors = ends(start_ranks(2, [RANK_RUN, str(tmp_path / "two.yaml"), str(tmp_path / "states")]))
    assert codes == [0, 0], errors
    ranks = [np.load(tmp_path / "states" / f"rank{rank}.npz") for rank in range(2)]
    assert all(np.array_equal(ranks[0][name], ranks[1][name]) for name in ranks[0].files)
    alone = replace(config, out=str(tmp_path / "one"))
    with open_run_folder(alone) as folder, StopRequest() as stop:
        Pretraining(alone, folder).train(stop)
    for one, two in zip(metrics(alone.out), metrics(config.out), strict=True):
        assert one.keys() == two.keys()
        assert one["loss"] == pytest.approx(two["loss"], rel=2e-5)
        assert one.get("load") == two.get("load")  # a hash of the image's number says the same on every rank
