"""What all kernels compute with: dot products, rounding, activations.

The interpreter (TRITON_INTERPRET=1) multiplies bf16 bit patterns in `tl.dot`, and where it converts to bf16 it
truncates, subnormals to 0. `dot` and `rounded` put that right there; compiled code is that of `tl.dot` and `.to`.
"""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)

_MINUS_HALF_LOG2_E = tl.constexpr(-0.7213475204444817)
_LOG2_INV_SQRT_2PI = tl.constexpr(-1.3257480647361595)
_SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
_TANH_CUBIC = tl.constexpr(0.044715)
_QUICK = tl.constexpr(1.702)


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
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x != x, 0x7FC0, nearest).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def _tanh(x):
    # tl has none for all backends. exp of minus a magnitude cannot overflow.
    e = tl.exp(tl.where(x < 0, 2 * x, -2 * x))
    return tl.where(x < 0, -1.0, 1.0) * (1 - e) / (1 + e)


@triton.jit
def _upper_tail(m):
    """erfc(m / sqrt(2)) / 2, what the normal distribution has above m, for 0 <= m <= 15: 2 ** (m P(m) - 1).

    P, of degree 7, is fitted to (1 + log2 tail(m)) / m over 0 <= m <= 6 by least squares, reweighted until all ripples
    of tail(m) m max(m, 0.7) |error of P| are equally high: before rounding GELU, which holds m tail(m), errs by 1.4e-8
    at most, and the tail by 1.9e-8. Beyond 6 both tails are below 1e-9, and this one at 15 is 0 in float32.
    """
    p = m * -2.234158273495268e-06 + 3.2467240089317784e-05
    p = p * m - 0.00015496360720135272
    p = p * m - 0.00020760799816343933
    p = p * m + 0.007148123346269131
    p = p * m - 0.05254817381501198
    p = p * m - 0.4591938555240631
    p = p * m - 1.1511064767837524
    return tl.exp2(p * m - 1)


@triton.jit
def activate_both(z, ACTIVATION: tl.constexpr):
    """act(z) and act'(z), float32; the compiler drops the one that is not used.

    GELU is max(z, 0) - m tail(m) with m = |z|: nothing cancels where z is negative. It and its slope err by 3e-7 at
    most, absolutely. `tl.erf` is no closer, and makes 31 instructions an element of GELU's 12.
    """
    if ACTIVATION == "relu":
        return tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL), tl.where(z > 0, 1.0, 0.0)
    elif ACTIVATION == "silu":
        s = tl.sigmoid(z)
        return z * s, s * (1 + z * (1 - s))
    elif ACTIVATION == "quick_gelu":
        s = tl.sigmoid(z * _QUICK)
        return z * s, s * (1 + z * (1 - s) * _QUICK)
    elif ACTIVATION == "gelu_tanh":
        # The interpreter takes constexpr * tensor for a constexpr: tensors come first.
        t = _tanh((z + z * z * z * _TANH_CUBIC) * _SQRT_2_OVER_PI)
        slope = 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * _SQRT_2_OVER_PI * (1 + z * z * (3 * _TANH_CUBIC))
        return 0.5 * z * (1 + t), slope
    else:
        tl.static_assert(ACTIVATION == "gelu")
        # Clamped, since an Inf would make 0 * Inf of m tail(m).
        m = tl.minimum(tl.abs(z), 15.0, propagate_nan=tl.PropagateNan.ALL)
        tail = _upper_tail(m)
        density = tl.exp2(m * m * _MINUS_HALF_LOG2_E + _LOG2_INV_SQRT_2PI)
        below = tail - m * density  # the slope at -m; at m it is 1 less that
        return tl.maximum(z, 0.0) - m * tail, tl.where(z > 0, 1 - below, below)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr):
    """act(z), float32."""
    a, _ = activate_both(z, ACTIVATION)
    return a


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a tile's columns.

    A GELU epilogue on a whole accumulator spills registers on sm_80 and sm_90; on halves it does not.
    """
    return tl.split(tl.permute(tl.reshape(tile, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
