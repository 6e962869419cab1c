"""Kernels are launched on their tensors' device; of the devices here only the CPU need be real."""

import weakref
from contextlib import contextmanager

import pytest
import torch

from dexcore.kernels import launch as module
from dexcore.kernels.launch import compiling, forked, is_compiling, launch


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


class Stream:
    """Notes who waits for whom, and what is launched on which."""

    def __init__(self, name, noted):
        self.name, self.noted = name, noted

    def wait_stream(self, other):
        self.noted.append((self.name, "waits for", other.name))


@pytest.fixture
def noted(devices, monkeypatch):
    """Of a current stream, "first", and of the one beside it: what they are asked for, in order."""
    asked = []
    streams = [Stream("first", asked)]
    second = Stream("second", asked)

    @contextmanager
    def on(stream):
        streams.append(stream)
        yield
        streams.pop()

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams[-1])
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(module, "_second_stream", lambda device: second)
    kernel = Kernel(devices)
    kernel.asked = type("Notes", (list,), {"append": lambda self, _: asked.append((streams[-1].name, "launches"))})()
    return asked, kernel


def test_what_is_forked_begins_after_and_ends_before_the_rest(noted):
    asked, kernel = noted
    launch(kernel, (1,), elsewhere())
    with forked(elsewhere().device) as beside:
        launch(kernel, (1,), elsewhere())
        with beside:
            launch(kernel, (2,), elsewhere())
        launch(kernel, (3,), elsewhere())
    launch(kernel, (1,), elsewhere())
    launches = [("first", "launches"), ("second", "launches"), ("first", "launches")]
    fork, join = ("second", "waits for", "first"), ("first", "waits for", "second")
    assert asked == [("first", "launches"), fork, *launches, join, ("first", "launches")]


def test_a_fork_is_joined_after_an_error_too(noted):
    asked, kernel = noted

    def fails():
        with forked(elsewhere().device) as beside, beside:
            launch(kernel, (1,), elsewhere())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    launch(kernel, (1,), elsewhere())
    assert asked[-2:] == [("first", "waits for", "second"), ("first", "launches")]


def test_what_runs_beside_is_held_until_the_end(noted):
    _, kernel = noted
    with forked(elsewhere().device) as beside:
        here, there = elsewhere(), elsewhere()
        launch(kernel, (1,), here)
        with beside:
            launch(kernel, (1,), there)
        alive = weakref.ref(here), weakref.ref(there)
        del here, there
        assert [reference() is not None for reference in alive] == [False, True]
    assert alive[1]() is None


def test_on_the_cpu_and_where_nothing_is_launched_there_is_no_fork(noted):
    asked, kernel = noted
    with forked(torch.device("cpu")) as beside, beside:
        pass
    with compiling(lambda compiled: None), forked(elsewhere().device) as beside, beside:
        launch(kernel, (1,), elsewhere())
    assert not any("waits for" in note for note in asked)
