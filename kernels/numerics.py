"""What all kernels compute with: dot products, rounding, activations.

The interpreter (TRITON_INTERPRET=1) multiplies bf16 bit patterns in `tl.dot` and truncates where it converts to
bf16. `dot` and `rounded` put that right there; compiled code is that of `tl.dot` and `.to`.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_SQRT_HALF = tl.constexpr(0.7071067811865476)
_INV_SQRT_2PI = tl.constexpr(0.3989422804014327)
_SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
_TANH_CUBIC = tl.constexpr(0.044715)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a b, accumulated in float32; PRECISION ("ieee", "tf32", "tf32x3") matters for float32 operands alone."""
    if INTERPRETED:
        return acc + tl.dot(a.to(tl.float32), b.to(tl.float32))
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """float32 to DTYPE, to nearest even."""
    if INTERPRETED and DTYPE == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        nearest = tl.where(x != x, 0x7FC00000, nearest).to(tl.uint32)
        return nearest.to(tl.float32, bitcast=True).to(tl.bfloat16)
    else:
        return x.to(DTYPE)


@triton.jit
def _tanh(x):
    # tl has none for all backends. exp of minus a magnitude cannot overflow.
    e = tl.exp(tl.where(x < 0, 2 * x, -2 * x))
    return tl.where(x < 0, -1.0, 1.0) * (1 - e) / (1 + e)


@triton.jit
def _gelu_tanh_argument(z):
    # The interpreter takes constexpr * tensor for a constexpr: tensors come first.
    return (z + z * z * z * _TANH_CUBIC) * _SQRT_2_OVER_PI


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """act(z), float32."""
    if ACTIVATION == "relu":
        return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "silu":
        return z * tl.sigmoid(z)
    elif ACTIVATION == "gelu_tanh":
        return 0.5 * z * (1 + _tanh(_gelu_tanh_argument(z)))
    else:
        tl.static_assert(ACTIVATION == "gelu")
        return 0.5 * z * (1 + tl.erf(z * _SQRT_HALF))


@triton.jit
def activate_gradient(z, ACTIVATION: tl.constexpr):
    """act'(z), float32."""
    if ACTIVATION == "relu":
        return tl.where(z > 0, 1.0, 0.0)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(z)
        return s * (1 + z * (1 - s))
    elif ACTIVATION == "gelu_tanh":
        t = _tanh(_gelu_tanh_argument(z))
        return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * _SQRT_2_OVER_PI * (1 + z * z * (3 * _TANH_CUBIC))
    else:
        tl.static_assert(ACTIVATION == "gelu")
        return 0.5 * (1 + tl.erf(z * _SQRT_HALF)) + z * _INV_SQRT_2PI * tl.exp(-0.5 * z * z)


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a tile's columns.

    A GELU epilogue on a whole accumulator spills registers on sm_80 and sm_90; on halves it does not.
    """
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
