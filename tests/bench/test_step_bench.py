"""bench.step: the published step is the method's, wrong steps are not timed."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import plot, step
from bench.command import Options
from bench.contenders import WrongResultError, director
from bench.published import PublishedTraining
from bench.step import (
    QUICK,
    check_case,
    make_training,
    measure_case,
    results,
    take_step,
)
from bench.timing import CPU
from dexcore.nn import directors
from dexcore.train import loop
from dexcore.train.loop import Pretraining

CEILINGS = {
    torch.float32: {"gemm_gflops": 1.0, "copy_gbs": 1.0},
    torch.bfloat16: {"gemm_gflops": 2.0, "copy_gbs": 1.0},
}
OPTIONS = Options(CPU, quick=True, seconds=0)


@pytest.fixture(scope="module")
def truth():
    return results(*make_training("published", QUICK, torch.float64, CPU))


@pytest.fixture
def known_truth(monkeypatch, truth):
    """Check against results that are there already."""
    right = step.make_training

    def make(contender, case, dtype, device):
        return (None, None) if dtype == torch.float64 else right(contender, case, dtype, device)

    monkeypatch.setattr(step, "make_training", make)
    monkeypatch.setattr(step, "results", lambda *made: truth if made == (None, None) else results(*made))


@pytest.mark.usefixtures("known_truth")
def test_dexcores_step_is_the_published_one_in_both_precisions():
    worst = check_case(QUICK, [torch.float32, torch.bfloat16], CPU)
    assert worst.keys() == {torch.float32, torch.bfloat16}
    assert all(0 < share <= 1 for share in worst.values())


def test_every_block_has_many_experts_in_use_and_far_from_a_tie():
    training, batch = make_training("dexcore", QUICK, torch.float32, CPU)
    take_step(training, batch, step._VALUES)
    for layer in training.layers:
        ranked = layer.routing.probs.sort(-1, descending=True).values
        assert (ranked[:, 1] > 5 * ranked[:, 2]).all()
        assert len(layer.routing.indices.unique()) > 4
    first, second = (layer.routing.indices for layer in training.layers)
    assert not torch.equal(first, second)


def _without_losses(right):
    return lambda model, group=None: right(model, group)._replace(align=torch.zeros(()))


def _to_the_experts_mean(right):
    return lambda model, momentum: right(model, 1 - 2 * (1 - momentum))


@pytest.mark.usefixtures("known_truth")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "wrong", "seen"),
    [
        ("aux_losses", _without_losses, "loss"),
        ("update_directors", _to_the_experts_mean, "director.*'s move"),
        ("update_directors", lambda right: lambda model, momentum: directors.discard_load(model), "director.*'s move"),
    ],
)
def test_a_wrong_step_stops_the_bench(monkeypatch, name, wrong, seen, precision):
    monkeypatch.setattr(loop, name, wrong(getattr(loop, name)))
    with pytest.raises(WrongResultError, match=seen):
        check_case(QUICK, [precision], CPU)


@pytest.mark.usefixtures("known_truth")
def test_an_optimizer_that_does_not_move_stops_the_bench(monkeypatch):
    right = Pretraining.step
    monkeypatch.setattr(Pretraining, "step", lambda self, batch, values: right(self, batch, replace(values, lr=0.0)))
    with pytest.raises(WrongResultError, match="loss's change"):
        check_case(QUICK, [torch.float32], CPU)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_the_published_step_skips_a_gradient_that_is_not_finite(value):
    training, batch = make_training("published", QUICK, torch.float32, CPU)
    assert isinstance(training, PublishedTraining)
    before = [parameter.detach().clone() for parameter in training.parameters]
    batch["image"][0, 0, 0, 0] = value
    skipped = training.step(batch, step._VALUES)["skipped"]
    assert skipped == (value != 0)
    assert skipped == all(torch.equal(old, new) for old, new in zip(before, training.parameters, strict=True))


def test_the_published_directors_follow_in_the_forward():
    training, batch = make_training("published", QUICK, torch.float32, CPU)
    before = [director(layer)["director.fc1.weight"].clone() for layer in training.layers]
    for layer, noise in zip(training.layers, batch["router_noise"].split(8, dim=1), strict=True):
        layer.noise, layer.noise_std = noise, 1.0
    training.model(batch["image"], noise=batch["mask_noise"])
    assert not any(
        torch.equal(old, director(layer)["director.fc1.weight"])
        for old, layer in zip(before, training.layers, strict=True)
    )


@pytest.mark.parametrize(
    ("dtype", "faster", "extra"),
    [
        (torch.float32, False, []),
        (torch.float32, True, ["published, fast layers"]),
        (torch.bfloat16, True, ["published, fast layers", "published, float32"]),
    ],
)
def test_the_table_runs_and_its_lines_say_what_they_measured(dtype, faster, extra, monkeypatch, capsys):
    monkeypatch.setattr(step, "faster_by_onednn", lambda device: faster)
    lines = measure_case(QUICK, dtype, OPTIONS, CEILINGS)
    assert [line["contender"] for line in lines] == ["dexcore", "published", *extra]
    for line in lines:
        assert line["p20"] <= line["median"] <= line["p80"]
        assert line["flops"] > 10**7
        assert line["bytes"] > 11 * 4 * 10**5
        assert "goals" not in line  # a quick step's speed proves nothing
    assert lines[0]["flops"] < lines[1]["flops"]  # dexcore predicts no visible patch
    assert lines[1]["speedup"] == 1


def test_all_gemms_are_counted_attentions_too_in_either_precision():
    counts = [step.step_flops(*make_training("published", QUICK, t, CPU)) for t in (torch.float32, torch.bfloat16)]
    training, batch = make_training("published", QUICK, torch.float32, CPU)
    with FlopCounterMode(display=False) as counter:
        training.step(batch, step._VALUES)  # PyTorch's fused attention, which the counter does not know on a CPU
    images, visible, patches, width = 4, 4, 16, 32
    squares = 2 * (1 + visible) ** 2 + (1 + patches) ** 2  # of the encoder's two blocks and the decoder's one
    attention = 6 * 2 * images * width * squares  # two products forward, four backward
    assert counts == [counter.get_total_flops() + attention] * 2


def test_beside_bf16_the_published_step_runs_in_float32_too(monkeypatch, capsys):
    made = []
    right = step.make_training

    def make(contender, case, dtype, device):
        made.append((contender, dtype))
        return right(contender, case, dtype, device)

    monkeypatch.setattr(step, "make_training", make)
    line = measure_case(QUICK, torch.bfloat16, OPTIONS, CEILINGS)[-1]
    assert made[1:] == [("published", torch.bfloat16), ("published", torch.float32)]
    assert line["gemm_share"] == pytest.approx(line["flops"] / line["median"] / 1e9)  # of the float32 GEMM


@pytest.mark.parametrize(("dtype", "target"), [(torch.float32, 1.15), (torch.bfloat16, 2.0)])
def test_goals_stand_beside_what_is_not_quick_against_the_published_step_in_float32(dtype, target, capsys):
    options = replace(OPTIONS, quick=False)
    ours, *others = measure_case(QUICK, dtype, options, CEILINGS)
    name = "published" if dtype == torch.float32 else "published, float32"
    (published,) = [line for line in others if line["contender"] == name]
    (goal,) = ours["goals"]
    assert (goal["target"], goal["met"]) == (target, goal["value"] >= target)
    assert goal["value"] == pytest.approx(published["median"] / ours["median"])
    assert f"goal {target:.2f}" in capsys.readouterr().out


def test_both_tables_are_drawn():
    shape = {"images": 4, "tokens": 5, "width": 16, "dtype": "float32", "cpu": "it", "threads": 2, "torch": "2"}
    time_of = {"median": 2e-3, "p20": 1e-3, "p80": 3e-3}
    lines = [
        {**shape, **time_of, "kind": "ViT-S", "contender": "dexcore", "speedup": 2.0},
        {**shape, **time_of, "kind": "laptop preset", "contender": "forward", "share": 0.25},
    ]
    first, second = plot._step(lines).axes
    assert "2.00x" in [text.get_text() for text in first.texts]
    assert "25%" in [text.get_text() for text in second.texts]
