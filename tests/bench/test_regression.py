"""Small steps on the CPU beside what they should take: run with

    pytest tests/bench/test_regression.py --benchmark-enable

The table prints each group's times relative to its fastest, so that a regression shows as a ratio that grew, whatever
the machine. Without the option every entry runs once, as a test.
"""

import pytest
import torch

from bench import align, ema
from bench.contenders import Shape, make_step, step_flops
from bench.layer import bare_gemms
from bench.timing import CPU

SHAPE = Shape(16, 17, 192)
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("contender", ["bare GEMMs", "dexcore", "published", "loop"])
def test_layer_step(benchmark, contender, dtype):
    benchmark.group = f"layer step, {SHAPE} {dtype}"
    benchmark.extra_info["flops"] = step_flops(SHAPE)
    if contender == "bare GEMMs":
        benchmark(bare_gemms(SHAPE, dtype, SHAPE.images * SHAPE.tokens))
        return
    y, *_ = benchmark(make_step(contender, SHAPE, dtype, routing="uniform"))
    assert y.shape == SHAPE
    assert y.isfinite().all()


@pytest.mark.parametrize("contender", ["dexcore", "foreach", "published"])
def test_group_ema(benchmark, contender):
    benchmark.group = "GEMA of two layers of width 192"
    model = ema.make_model(ema.Size(2, 192), "uniform", CPU)
    benchmark.extra_info["bytes"] = ema.moved_bytes(model)
    before = model.directors[0].clone()
    benchmark(ema.contenders(model)[contender])
    assert not torch.equal(model.directors[0], before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", align.ALIGNS)
@pytest.mark.parametrize("contender", ["dexcore", "eager"])
def test_alignment_loss(benchmark, contender, kind, dtype):
    benchmark.group = f"alignment loss {kind}, {SHAPE} {dtype}"
    loss, gradient = benchmark(align.make_step(align.losses(kind)[contender], SHAPE, dtype, CPU))
    assert loss.isfinite()
    assert gradient.abs().max() > 0
