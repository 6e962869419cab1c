"""How times are taken."""

import pytest
import torch

from bench.timing import Timing, ceilings, interleaved, machine


def test_contenders_take_turns_and_are_called_three_times_before():
    called = []
    times = interleaved({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 0)
    assert called == ["a", "b"] * 10
    assert all(0 <= time.p20 <= time.median <= time.p80 for time in times.values())


def test_nobody_to_time_is_no_times():
    assert interleaved({}, 1) == {}


def test_ceilings_and_machine_say_what_a_line_needs():
    found = ceilings(torch.float32, quick=True)
    assert found["gemm_gflops"] > 0
    assert found["copy_gbs"] > 0
    assert machine()["device"] == "cpu"


def test_a_timing_is_frozen():
    with pytest.raises(AttributeError):
        Timing(1, 1, 1).median = 0
