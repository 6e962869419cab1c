"""The running average of the weights: the formula, the swap, and a checkpoint in the middle."""

import numpy as np
import pytest
import torch

from dexcore.engine.averaging import AveragedAdamW
from dexcore.engine.checkpoint import Progress, load_checkpoint, save_checkpoint

STEPS = 7


def _model() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(5, 3)


def _optimizer(model, decay):
    return AveragedAdamW([{"params": [model.weight]}, {"params": [model.bias]}], decay=decay, lr=0.1, fused=True)


def _step(model, optimizer, number):
    generator = torch.Generator().manual_seed(number)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def _averages(model, optimizer):
    with optimizer.averaged():
        return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("decay", [0.3, 0.9999])
def test_the_average_follows_its_formula(decay):
    model = _model()
    optimizer = _optimizer(model, decay)
    expected: list[np.ndarray] = []
    for number in range(1, STEPS + 1):
        _step(model, optimizer, number)
        weights = [parameter.detach().double().numpy() for parameter in model.parameters()]
        d = min(decay, (1 + number) / (10 + number))
        expected = [d * a + (1 - d) * w for a, w in zip(expected or weights, weights, strict=True)]
    for average, value in zip(_averages(model, optimizer), expected, strict=True):
        np.testing.assert_allclose(average.numpy(), value, rtol=1e-5, atol=1e-7)


def test_the_weights_are_those_of_adamw_and_come_back_after_the_swap():
    model, plain = _model(), _model()
    optimizer = _optimizer(model, 0.9)
    adamw = torch.optim.AdamW(plain.parameters(), lr=0.1, fused=True)
    for number in range(STEPS):
        _step(model, optimizer, number)
        _step(plain, adamw, number)
    averages = _averages(model, optimizer)
    for parameter, other, average in zip(model.parameters(), plain.parameters(), averages, strict=True):
        assert torch.equal(parameter, other)
        assert not torch.equal(parameter, average)


def test_without_a_decay_nothing_is_kept():
    model = _model()
    optimizer = _optimizer(model, 0.0)
    _step(model, optimizer, 0)
    assert all("average" not in state for state in optimizer.state.values())
    assert torch.equal(_averages(model, optimizer)[0], model.weight)


def test_a_checkpoint_holds_the_average(tmp_path):
    whole = _model()
    optimizer = _optimizer(whole, 0.9)
    for number in range(STEPS):
        _step(whole, optimizer, number)
        if number == 2:
            save_checkpoint(tmp_path, whole, optimizer, Progress(3, 0, {}, {}), keep=1)
    resumed = _model()
    again = _optimizer(resumed, 0.9)
    assert load_checkpoint(tmp_path, resumed, again, print) is not None
    for number in range(3, STEPS):
        _step(resumed, again, number)
    for one, other in zip(_averages(whole, optimizer), _averages(resumed, again), strict=True):
        assert torch.equal(one, other)
