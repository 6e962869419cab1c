"""Kernels are launched on their tensors' device; of the devices here only the CPU need be real."""

from contextlib import contextmanager

import pytest
import torch

from dexcore.kernels.launch import compiling, is_compiling, launch


class Elsewhere(torch.Tensor):
    """A tensor that says that it lies on the second GPU."""

    device = torch.device("cuda", 1)


class Kernel:
    """Notes what it is asked to do, and on which device."""

    def __init__(self, devices):
        self.devices, self.asked = devices, []

    def __getitem__(self, grid):
        return lambda *arguments, **settings: self.asked.append(("launched", self.devices[-1]))

    def warmup(self, *arguments, grid, **settings):
        self.asked.append(("compiled", self.devices[-1]))


@pytest.fixture
def devices(monkeypatch):
    """The current device, last; before it those that come back."""
    stack = [0]

    @contextmanager
    def device(of):
        stack.append(of.index)
        yield
        stack.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: stack[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    return stack


def elsewhere():
    return torch.zeros(2).as_subclass(Elsewhere)


def test_a_launch_is_on_the_tensors_device_and_leaves_the_current_one(devices):
    kernel = Kernel(devices)
    launch(kernel, (1,), 3, elsewhere(), SIZE=2)
    assert kernel.asked == [("launched", 1)]
    assert devices == [0]


def test_a_kernel_is_compiled_for_the_tensors_device(devices):
    kernel, reports = Kernel(devices), []
    with compiling(reports.append):
        assert is_compiling()
        launch(kernel, (1,), elsewhere())
    assert kernel.asked == [("compiled", 1)]
    assert reports == [None]
    assert not is_compiling()


def test_where_the_device_is_the_current_one_it_is_not_set_again(devices, monkeypatch):
    devices.append(1)
    monkeypatch.setattr(torch.cuda, "device", lambda device: pytest.fail("set again"))
    kernel = Kernel(devices)
    launch(kernel, (1,), elsewhere())
    assert kernel.asked == [("launched", 1)]


def test_tensors_on_the_cpu_do_not_ask_for_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("asked"))
    kernel = Kernel([None])
    launch(kernel, (1,), torch.zeros(2))
    assert kernel.asked == [("launched", None)]


def test_an_empty_grid_launches_nothing():
    kernel = Kernel([None])
    launch(kernel, (4, 0), torch.zeros(2))
    assert kernel.asked == []
