"""The kernels' bench: its checks run here, interpreted; its predictions say that they are predictions."""

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from bench import kernel_cases
from bench.command import Options
from bench.contenders import REFERENCE, Shape, WrongResultError
from bench.kernel_cases import calls, check
from bench.kernel_work import Problem, Work, work
from bench.kernels import INSTEAD, measure, predicted
from bench.timing import CPU
from dexcore.nn import DEXMlp, update_directors

TINY = Shape(3, 5, 16)


def problem(dtype=torch.float32, routing="uniform", shape=TINY):
    return Problem(shape, dtype, routing, "interpreter")


@pytest.fixture
def nan_filled_memory():
    torch.use_deterministic_algorithms(True)  # fills uninitialized memory too
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_filled_memory")
@pytest.mark.parametrize(
    ("dtype", "routing", "width"),
    [(torch.float32, "two", 16), (torch.bfloat16, "uniform", 16), (torch.bfloat16, "zipf", 32)],
)
def test_all_kernels_pass_the_check_before_they_would_be_timed(dtype, routing, width):
    case = problem(dtype, routing, TINY._replace(width=width))
    assert case.config.up.described == (width == 32)
    check(case, CPU)


def times_1_1(results):
    if isinstance(results, torch.Tensor):
        return results * 1.1
    return tuple(result * 1.1 for result in results)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("expert_order", "gradient_rows"),
        ("expert_down", "expert_dx"),
        ("mix_align", "sum_slots"),
        ("bias_gradients", "gate_and_bias_gradients"),
        ("expert_wgrad", "expert_wgrad"),
    ],
)
def test_a_wrong_kernel_is_named(monkeypatch, module, name):
    module = getattr(kernel_cases, module)
    right = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *given, **settings: times_1_1(right(*given, **settings)))
    case = calls(problem(), CPU)[name]
    monkeypatch.setattr(kernel_cases, "calls", lambda *_: {name: case})
    with pytest.raises(WrongResultError, match=name):
        check(problem(), CPU)


def test_a_row_that_only_fills_a_tile_is_held_to_zero(monkeypatch):
    right = kernel_cases.expert_order.input_rows

    def without_zeros(x, gates, plan, *given, **settings):
        made = right(x, gates, plan, *given, **settings)
        tokens = (plan.first_rows.long().unsqueeze(1) + torch.arange(plan.tokens)).flatten()
        pads = torch.ones(plan.rows, dtype=torch.bool).index_fill_(0, tokens, False)
        return made._replace(rows=made.rows.masked_fill(pads.unsqueeze(1), 1.0))

    monkeypatch.setattr(kernel_cases.expert_order, "input_rows", without_zeros)
    with pytest.raises(WrongResultError, match="input_rows"):
        check(problem(), CPU)


def launched(monkeypatch, call):
    """The kernels that a call launches, in their order."""
    seen = []
    get = InterpretedFunction.__getitem__
    with monkeypatch.context() as patch:
        patch.setattr(
            InterpretedFunction, "__getitem__", lambda self, grid: seen.append(self.__name__) or get(self, grid)
        )
        call()
    return seen


@pytest.mark.usefixtures("no_shards")
def test_the_cases_are_the_launches_of_a_layers_step_in_its_order(monkeypatch):
    torch.manual_seed(0)
    layer = DEXMlp(16, 64, num_experts=8, top_k=2, backend="triton").train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(*TINY, requires_grad=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        losses = layer.routing.align_loss + layer.routing.balance_loss
        torch.autograd.backward([y, losses], [torch.ones_like(y), torch.ones(())])
        optimizer.step()
        update_directors(layer, 0.99)

    step()  # it casts the weights, as no step before it wrote their copies
    cases = calls(problem(torch.bfloat16), CPU)
    found = [kernel for name in cases if name not in INSTEAD for kernel in launched(monkeypatch, cases[name].call)]
    assert found == launched(monkeypatch, step)


def test_every_timed_kernel_has_its_work_counted():
    assert list(work(problem())) == list(calls(problem(), CPU))


def test_the_flops_add_up_to_those_of_a_step_and_the_bytes_to_the_design():
    counted = work(Problem(REFERENCE, torch.bfloat16, "uniform", "sm_90"))
    gemms = [amount.flops for name, amount in counted.items() if name.startswith("expert_") and amount.flops]
    assert sum(gemms) == 14 * REFERENCE.images * REFERENCE.tokens * 2 * 768 * 3072
    weights = 2 * 768 * 3072  # of one expert, or the director; biases have no copies
    assert counted["group_ema"].bytes == pytest.approx(10 * 4 * weights, rel=2e-3)
    assert counted["group_ema copies"].bytes == pytest.approx((10 * 4 + 9 * 2) * weights, rel=2e-3)
    assert counted["cast_all"].bytes == pytest.approx(9 * 6 * weights, rel=1e-3)


def test_a_prediction_is_the_slower_of_the_two_ceilings():
    assert predicted(Work(bytes=0, flops=800 * 10**12)) == pytest.approx(1)
    assert predicted(Work(bytes=3 * 10**12, flops=1)) == pytest.approx(1)


def test_without_a_gpu_everything_printed_and_returned_is_marked_a_prediction(capsys):
    lines = measure(Options(CPU), {}, None)
    assert lines
    assert all(line["prediction"] is True and "median" not in line for line in lines)
    printed = capsys.readouterr().out
    assert printed.count("PREDICTION, nothing here was measured") == 3
