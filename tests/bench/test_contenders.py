"""The compared layers compute the same; a layer that does not is not timed."""

import pytest
import torch

from bench import contenders
from bench.contenders import Dense, Shape, WrongResultError, check, check_all, make_step, step_flops
from bench.routings import ROUTINGS
from bench.timing import CPU

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


def test_an_unknown_contender_is_named():
    with pytest.raises(ValueError, match="'fastest'"):
        make_step("fastest", SHAPE, torch.float32)
