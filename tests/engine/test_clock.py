"""The parts of a step's time: each is counted, once."""

import time

import pytest
import torch

from dexcore.engine.clock import StepClock


def test_parts_add_up_and_are_told_once():
    clock = StepClock(torch.device("cpu"))
    for _ in range(2):
        with clock.part("forward"):
            time.sleep(0.02)
    with clock.part("backward"):
        time.sleep(0.01)
    clock.add("data", 0.5)
    found = clock.read()
    assert 0.04 <= found["forward"] < 5
    assert 0.01 <= found["backward"] < found["forward"] + 5
    assert found["data"] == 0.5
    assert clock.read() == {}


@pytest.mark.gpu
def test_on_a_gpu_parts_are_the_devices_and_come_when_it_is_done():
    device = torch.device("cuda")
    clock = StepClock(device)
    a = torch.randn(4096, 4096, device=device)
    a @ a
    torch.cuda.synchronize()
    with clock.part("forward"):
        for _ in range(50):
            a @ a
    told = clock.read()
    torch.cuda.synchronize()
    late = clock.read()
    assert ("forward" in told) != ("forward" in late)
    assert (told | late)["forward"] > 50 * 2 * 4096**3 / 2e15  # no device is faster
    assert clock.read() == {}
