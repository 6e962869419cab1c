"""The compared layers compute the same; a layer that does not is not timed."""

from pathlib import Path

import pytest
import torch

from bench import contenders
from bench.contenders import EXPERTS, TOP_K, Dense, Shape, WrongResultError, check, check_all, make_step, step_flops
from bench.routings import ROUTINGS
from bench.timing import CPU
from dexcore.kernels.configs import INTERPRETER, layer_config
from dexcore.kernels.plan import PlanShape
from nn.calls import note_launches

SHAPE = Shape(5, 7, 32)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_contender_is_refused_here(dtype, routing):
    assert check_all(SHAPE, dtype, CPU, routing) == {}


def test_a_wrong_contender_is_refused_with_its_first_wrong_result(monkeypatch):
    def without_gates(pool, x, gates, indices):
        return contenders.loop_experts(pool, x, torch.full_like(gates, 0.5), indices)

    monkeypatch.setattr(contenders, "grouped_experts", without_gates)
    refused = check_all(SHAPE, torch.float32, CPU, "uniform")
    assert list(refused) == ["grouped"]
    assert "y is" in refused["grouped"]


def test_what_a_machine_cannot_run_is_refused_with_the_reason(monkeypatch):
    def unavailable(*arguments):
        raise RuntimeError("no such kernel here\nand a trace")

    monkeypatch.setattr(contenders, "grouped_experts", unavailable)
    assert check_all(SHAPE, torch.float32, CPU, "uniform") == {"grouped": "no such kernel here"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_dexcore_stops_the_bench(monkeypatch, dtype):
    right = contenders.DEXMlp.forward

    def wrong(self, x):
        return right(self, x) * 1.2

    monkeypatch.setattr(contenders.DEXMlp, "forward", wrong)
    with pytest.raises(WrongResultError, match="dexcore"):
        check_all(SHAPE, dtype, CPU, "uniform")
    with pytest.raises(WrongResultError, match="dexcore"):
        check(SHAPE, dtype)


def test_directors_that_do_not_follow_stop_the_bench(monkeypatch):
    monkeypatch.setattr(contenders.Ours, "update", lambda self: None)
    with pytest.raises(WrongResultError, match="director"):
        check_all(SHAPE, torch.bfloat16, CPU, "uniform")


def test_the_dense_layer_has_the_flops_of_a_step():
    shape = Shape(2, 3, 48)
    dense = Dense(shape.width)
    rows, weights = shape.images * shape.tokens, sum(fc.weight.numel() for fc in (dense.mlp[0], dense.mlp[2]))
    assert 6 * rows * weights == step_flops(shape)


def test_a_step_without_update_leaves_the_directors():
    layer = contenders.make_layer("dexcore", SHAPE)
    before = layer.pool.director.fc1.weight.clone()
    contenders.step_of(layer, SHAPE, torch.float32, "uniform", update=False)()
    assert torch.equal(layer.pool.director.fc1.weight, before)
    contenders.step_of(layer, SHAPE, torch.float32, "uniform")()
    assert not torch.equal(layer.pool.director.fc1.weight, before)


@pytest.mark.parametrize("contender", ["dexcore", "published", "dense"])
def test_weights_are_new_after_every_step_and_before_the_directors_follow(contender, monkeypatch):
    layer, versions = contenders.make_layer(contender, SHAPE), []

    def weights():
        return next(p for p in layer.parameters() if p.requires_grad)._version

    monkeypatch.setattr(layer, "update", lambda: versions.append(weights()), raising=False)
    step, before = contenders.step_of(layer, SHAPE, torch.bfloat16), weights()
    step()
    assert weights() > before
    if contender == "dexcore":
        assert versions == [weights()]


def held(contender, keep="both", backend="eager", dtype=torch.float32, shape=SHAPE):
    layer = contenders.make_layer(contender, shape, keep=keep)
    if contender == "dexcore":
        layer.pool.backend = backend
    return contenders.held_memory(layer, shape, dtype, "uniform")


def test_memory_held_is_what_the_backward_finds_stored():
    block_m = layer_config(INTERPRETER, 32, 4 * 32, torch.float32).up.block_m
    rows = PlanShape(5, TOP_K, EXPERTS, 7, block_m).rows  # k B N, and what fills tiles
    hidden_layer = rows * 4 * 32 * 4 / 2**20  # float32
    both, z, none = (held("dexcore", keep, "triton") for keep in ("both", "z", "none"))
    assert both - z == pytest.approx(hidden_layer)
    assert z - none == pytest.approx(hidden_layer)
    # The loss's gradient and x in expert order, and beside them gates, indices and probabilities.
    assert none == pytest.approx((5 * 7 + rows) * 32 * 4 / 2**20, rel=0.1)


def test_parameters_and_the_input_are_not_held_but_their_copies_are():
    rows, width = SHAPE.images * SHAPE.tokens, SHAPE.width
    hidden = 4 * width * 7 // 3
    assert held("dense") == pytest.approx(2 * rows * hidden * 4 / 2**20)  # before and after GELU
    copies = 2 * width * hidden + rows * width
    assert held("dense", dtype=torch.bfloat16) == pytest.approx((2 * rows * hidden + copies) * 2 / 2**20)


@pytest.mark.usefixtures("no_shards")
def test_the_kernels_hold_the_share_of_what_the_published_loop_holds_that_the_page_says(monkeypatch):
    # A quarter of the reference shape's width, of its rows and of a GPU's tiles: all that is held is a sixteenth.
    reference_in_small = Shape(56, 65, 192)
    published = held("published", dtype=torch.bfloat16, shape=reference_in_small)
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    held("dexcore", "z", "triton", torch.bfloat16)  # imports all that is launched
    note_launches(monkeypatch, run=False)  # hours, and memory is allocated all the same
    share = held("dexcore", "z", "triton", torch.bfloat16, reference_in_small) / published
    assert f"holds {share:.2f} of what the published loop does" in " ".join(page.split())


@pytest.mark.usefixtures("no_shards")
def test_copies_in_half_precision_are_held_too():
    layer = contenders.make_layer("dexcore", SHAPE, keep="none")
    layer.pool.backend = "triton"
    found = {dtype: contenders.held_memory(layer, SHAPE, dtype, "uniform") for dtype in (torch.float32, torch.bfloat16)}
    weights = [t for pool in (layer.pool.experts, layer.pool.director) for t in (pool.fc1.weight, pool.fc2.weight)]
    copies = 2 * sum(weight.numel() for weight in weights) / 2**20
    # All else is half of float32's, or indices and gates.
    assert found[torch.bfloat16] - copies == pytest.approx(found[torch.float32] / 2, rel=0.1)


def test_an_unknown_contender_is_named():
    with pytest.raises(ValueError, match="'fastest'"):
        make_step("fastest", SHAPE, torch.float32)
