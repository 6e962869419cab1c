"""The kernels' bench: its checks run here, interpreted; its predictions say that they are predictions."""

import pytest
import torch

from bench import kernel_cases
from bench.command import Options
from bench.contenders import REFERENCE, Shape, WrongResultError
from bench.kernel_cases import calls, check
from bench.kernel_work import Problem, Work, work
from bench.kernels import measure, predicted
from bench.timing import CPU

TINY = Shape(3, 5, 16)


def problem(dtype=torch.float32, routing="uniform"):
    return Problem(TINY, dtype, routing, "interpreter")


@pytest.mark.parametrize(("dtype", "routing"), [(torch.float32, "two"), (torch.bfloat16, "uniform")])
def test_all_kernels_pass_the_check_before_they_would_be_timed(dtype, routing):
    check(problem(dtype, routing), CPU)


@pytest.mark.parametrize(("module", "name"), [("expert_down", "expert_dx"), ("mix_align", "sum_slots")])
def test_a_wrong_kernel_is_named(monkeypatch, module, name):
    module = getattr(kernel_cases, module)
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *arguments: right(*arguments) * 1.1)
    with pytest.raises(WrongResultError, match=name):
        check(problem(), CPU)


def test_every_timed_kernel_has_its_work_counted():
    assert list(work(problem())) == list(calls(problem(), CPU))


def test_the_flops_add_up_to_those_of_a_step_and_the_bytes_to_the_design():
    counted = work(Problem(REFERENCE, torch.bfloat16, "uniform", "sm_90"))
    gemms = [amount.flops for name, amount in counted.items() if name.startswith("expert_") and amount.flops]
    assert sum(gemms) == 14 * REFERENCE.images * REFERENCE.tokens * 2 * 768 * 3072
    assert counted["group_ema"].bytes == pytest.approx(10 * 4 * (2 * 768 * 3072 + 768 + 3072), rel=1e-3)


def test_a_prediction_is_the_slower_of_the_two_ceilings():
    assert predicted(Work(bytes=0, flops=800 * 10**12)) == pytest.approx(1)
    assert predicted(Work(bytes=3 * 10**12, flops=1)) == pytest.approx(1)


def test_without_a_gpu_everything_printed_and_returned_is_marked_a_prediction(capsys):
    lines = measure(Options(CPU), {}, None)
    assert lines
    assert all(line["prediction"] is True and "median" not in line for line in lines)
    printed = capsys.readouterr().out
    assert printed.count("PREDICTION, nothing here was measured") == 3
