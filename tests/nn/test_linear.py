"""The dense layer by oneDNN against PyTorch's in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

import dexcore.ops.flops  # noqa: F401  # teaches FlopCounterMode oneDNN's dense layer
from assertions import assert_close
from dexcore.nn.linear import faster_by_onednn, linear
from onednn_here import DTYPES_HERE, needs_bf16

sizes = st.integers(1, 70)


def check(x, weight, bias, grad, dtype):
    """Values and gradients are as good as a dense layer's, up to a few roundings, and the same twice."""
    operands = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    operands = {name: tensor.to(dtype) for name, tensor in operands.items()}
    results = []
    for layer, precision in ((linear, dtype), (linear, dtype), (F.linear, dtype), (F.linear, torch.float64)):
        mine = {name: tensor.detach().to(precision).requires_grad_() for name, tensor in operands.items()}
        y = layer(*mine.values(), *([None] if bias is None else []))
        gradients = torch.autograd.grad(y, [*mine.values()], grad.to(dtype).to(precision))
        results.append({"y": y} | dict(zip(mine, gradients, strict=True)))
    ours, again, plain, truth = results
    for name, true in truth.items():
        assert torch.equal(ours[name], again[name]), name
        assert_close(ours[name], true, plain=plain[name], name=name)


@given(shape=st.lists(sizes, min_size=2, max_size=4), width=sizes, with_bias=st.booleans(), seed=st.integers(0, 999))
def test_values_and_gradients_are_those_of_a_dense_layer_in_float64(shape, width, with_bias, seed):
    torch.manual_seed(seed)
    weight, bias = torch.randn(width, shape[-1]), torch.randn(width) if with_bias else None
    for dtype in DTYPES_HERE:
        check(torch.randn(shape), weight, bias, torch.randn(*shape[:-1], width), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
@pytest.mark.parametrize(("wide", "narrow"), [(2048, 512), (512, 2048)])
def test_so_they_are_at_the_decoders_widths_and_for_strided_tensors(wide, narrow, dtype):
    x, grad = torch.randn(wide, 3, 65).transpose(0, 2), torch.randn(narrow, 65, 3).permute(1, 2, 0)
    check(x, torch.randn(wide, narrow).t() / wide**0.5, torch.randn(narrow), grad, dtype)


def test_no_rows_give_no_rows_and_a_gradient_of_zeros():
    weight = torch.randn(3, 4, requires_grad=True)
    y = linear(torch.randn(2, 0, 4), weight, None)
    assert y.shape == (2, 0, 3)
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros(3, 4))


@pytest.mark.parametrize("trained", ["x", "weight", "bias"])
def test_only_what_is_trained_gets_a_gradient(trained):
    operands = {"x": torch.randn(3, 4), "weight": torch.randn(5, 4), "bias": torch.randn(5)}
    operands[trained].requires_grad_()
    linear(*operands.values()).sum().backward()
    assert [name for name, t in operands.items() if t.grad is not None] == [trained]


@pytest.mark.parametrize(
    ("name", "avx512", "faster"),
    [("AMD EPYC 9R14", True, True), ("AMD EPYC 7R13", False, False), ("Intel(R) Xeon(R) Platinum", True, False)],
)
def test_it_is_for_amds_cpus_with_avx512_alone(name, avx512, faster, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name, "avx512_f": avx512}, raising=False)
    assert faster_by_onednn(torch.device("cpu")) == faster
    assert not faster_by_onednn(torch.device("meta"))


def test_it_is_for_no_pytorch_that_cannot_name_the_cpu(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not faster_by_onednn(torch.device("cpu"))


def test_its_flops_are_counted_as_a_dense_layers():
    operands = torch.randn(2, 5, 7, requires_grad=True), torch.randn(3, 7, requires_grad=True), torch.randn(3)
    counts = []
    for layer in (linear, F.linear):
        with FlopCounterMode(display=False) as counter:
            layer(*operands).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts == [3 * 2 * 10 * 7 * 3] * 2
