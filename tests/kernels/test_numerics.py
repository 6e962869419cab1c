"""What the kernels compute with, where the interpreter alone would be wrong."""

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from assertions import assert_close
from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import activate, activate_both, dot, halves, rounded

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "relu": F.relu,
    "silu": F.silu,
}


@triton.jit
def _round_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(out_ptr + i, rounded(tl.load(x_ptr + i), out_ptr.dtype.element_ty))


@triton.jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    where = i[:, None] * SIZE + i[None, :]
    acc = dot(tl.load(a_ptr + where), tl.load(b_ptr + where), tl.full((SIZE, SIZE), 1.0, tl.float32), "ieee")
    left, right = halves(acc, SIZE, SIZE)
    half = tl.arange(0, SIZE // 2)
    tl.store(out_ptr + i[:, None] * SIZE + half[None, :], left)
    tl.store(out_ptr + i[:, None] * SIZE + SIZE // 2 + half[None, :], right)


@triton.jit
def _activation_kernel(z_ptr, a_ptr, both_ptr, slope_ptr, SIZE: tl.constexpr, ACTIVATION: tl.constexpr):
    i = tl.arange(0, SIZE)
    z = tl.load(z_ptr + i)
    tl.store(a_ptr + i, activate(z, ACTIVATION))
    a, slope = activate_both(z, ACTIVATION)
    tl.store(both_ptr + i, a)
    tl.store(slope_ptr + i, slope)


def activated(z, name):
    """act(z) and act'(z) by the kernels."""
    a, both, slope = torch.empty(3, z.numel())
    launch(_activation_kernel, (1,), z, a, both, slope, SIZE=z.numel(), ACTIVATION=name)
    assert torch.equal(a.nan_to_num(7.0), both.nan_to_num(7.0))
    return a, slope


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even_like_torch(dtype):
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, -1 - 2**-8, torch.inf, -torch.inf, 0.0, 65504.0])
    x = torch.cat([ties, torch.randn(248)])
    out = torch.empty(256, dtype=dtype)
    launch(_round_kernel, (1,), x, out, SIZE=256)
    assert torch.equal(out, x.to(dtype))


def test_rounding_keeps_nan():
    out = torch.empty(16, dtype=torch.bfloat16)
    launch(_round_kernel, (1,), torch.full((16,), torch.nan), out, SIZE=16)
    assert out.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dot_accumulates_in_float32_and_halves_keep_their_columns(dtype):
    a, b = torch.randn(2, 32, 32).to(dtype)
    out = torch.empty(32, 32)
    launch(_dot_kernel, (1,), a, b, out, SIZE=32)
    assert_close(out, a.double() @ b.double() + 1)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_gradients(name):
    z = torch.cat([torch.linspace(-30, 30, 500), torch.randn(12)])
    a, slope = activated(z, name)
    z64 = z.double().requires_grad_()
    a64 = ACTIVATIONS[name](z64)
    (slope64,) = torch.autograd.grad(a64.sum(), z64)
    assert_close(a, a64, bound=1e-6)
    assert_close(slope, slope64, bound=2e-6)
    assert ((a - a64).abs() <= 1e-6 * z.abs().clamp(min=1)).all()


def test_gelu_and_its_slope_are_off_by_3e_7_at_most():
    near_zero = torch.randn(2**13) * 2.0 ** torch.linspace(-40, 0, 2**13)
    z = torch.cat([torch.linspace(-40, 40, 2**17 - 2**14), near_zero, torch.randn(2**13)])
    a, slope = activated(z, "gelu")
    z64 = z.double()
    tail = torch.special.erfc(-z64 * 0.5**0.5) / 2  # of the normal distribution below z
    density = torch.exp(-(z64**2) / 2) / (2 * torch.pi) ** 0.5
    assert (a - z64 * tail).abs().max() <= 3e-7
    assert (slope - (tail + z64 * density)).abs().max() <= 3e-7
    small = z.abs() < 1e-3
    assert ((a - z64 * tail).abs() <= 3e-7 * a.abs())[small].all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_pass_nan_and_infinity_on(name):
    a, slope = activated(torch.tensor([torch.nan, torch.inf, 3e38, 0.0]), name)
    assert a[0].isnan()
    assert torch.equal(a[1:], torch.tensor([torch.inf, 3e38, 0.0]))
    assert slope[0].isnan() or name == "relu"


def test_gelu_of_both_infinities_is_its_limit():
    a, slope = activated(torch.tensor([-torch.inf, -3e38, -40.0, torch.inf]), "gelu")
    assert torch.equal(a, torch.tensor([0.0, 0.0, 0.0, torch.inf]))
    assert torch.equal(slope, torch.tensor([0.0, 0.0, 0.0, 1.0]))
