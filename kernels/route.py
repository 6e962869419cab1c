"""Routing: which experts an image uses and with which gates, the gradients, and what the experts are given.

    c_b = x[b, 0] (pool "cls") or mean_n x[b, n] (pool "mean")
    p_b = softmax((c_b W^T + noise_b) / tau)
    indices_b = the k largest of p_b, falling, ties to the lower index;  gates_b = p_b[indices_b] / their sum

Axes: b images, n tokens, d width, r experts, k chosen. All arithmetic is float32. An image's row is one program's, so
that a routing depends neither on the batch an image stands in nor on its neighbors' values.
"""

import triton
import triton.language as tl
from torch import Tensor, empty, empty_like, float32, int64

from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import dot, rounded

# Elements of a tile that a program of four warps holds: 32 a thread.
_TILE = 4096


def route_forward(
    x_bnd: Tensor, weight_rd: Tensor, noise_br: Tensor | None, top_k: int, tau: float, pool: str
) -> tuple[Tensor, Tensor, Tensor]:
    """gates [B, k] float32, indices [B, k] int64 and probs [B, R] float32.

    Where an image's logits hold a NaN or +Inf its probs and gates are NaN, and its indices 0 .. k-1.
    """
    batch, _, width = x_bnd.shape
    experts = weight_rd.shape[0]
    gates_bk = empty((batch, top_k), dtype=float32, device=x_bnd.device)
    indices_bk = empty((batch, top_k), dtype=int64, device=x_bnd.device)
    probs_br = empty((batch, experts), dtype=float32, device=x_bnd.device)
    feature, stride_fb = _feature(x_bnd, pool)
    r_block = triton.next_power_of_2(experts)
    launch(
        _route_forward_kernel,
        (batch,),
        feature,
        weight_rd,
        noise_br,
        gates_bk,
        indices_bk,
        probs_br,
        stride_fb,
        width,
        tau,
        R=experts,
        TOP_K=top_k,
        R_BLOCK=r_block,
        BLOCK_D=min(triton.next_power_of_2(width), _TILE // r_block),
        num_warps=4,
    )
    return gates_bk, indices_bk, probs_br


def route_forward_bytes(x_bnd: Tensor, weight_rd: Tensor, noise_br: Tensor | None, top_k: int, pool: str) -> int:
    """Unique bytes that `route_forward` reads and writes."""
    batch, experts = x_bnd.shape[0], weight_rd.shape[0]
    read = (
        _feature_bytes(x_bnd, pool) + (weight_rd.nbytes if batch else 0) + (0 if noise_br is None else noise_br.nbytes)
    )
    return read + batch * (top_k * (4 + 8) + experts * 4)


def route_backward(
    grad_gates_bk: Tensor,
    grad_probs_br: Tensor,
    x_bnd: Tensor,
    weight_rd: Tensor,
    gates_bk: Tensor,
    indices_bk: Tensor,
    probs_br: Tensor,
    tau: float,
    pool: str,
) -> tuple[Tensor, Tensor]:
    """grad_x [B, N, D] and grad_weight [R, D], each in its input's dtype; for pool "cls" grad_x is 0 past token 0."""
    batch, tokens, width = x_bnd.shape
    experts, top_k = weight_rd.shape[0], indices_bk.shape[1]
    grad_x, grad_weight = empty_like(x_bnd), empty_like(weight_rd)
    grad_logits_br = empty((batch, experts), dtype=float32, device=x_bnd.device)
    r_block = triton.next_power_of_2(experts)
    block_d = min(triton.next_power_of_2(width), 256, _TILE // r_block)
    launch(
        _route_grad_x_kernel,
        (batch * triton.cdiv(width, block_d),),
        grad_gates_bk,
        grad_probs_br,
        weight_rd,
        gates_bk,
        indices_bk,
        probs_br,
        grad_x,
        grad_logits_br,
        tokens,
        width,
        tau,
        R=experts,
        TOP_K=top_k,
        CLS=pool == "cls",
        R_BLOCK=r_block,
        K_BLOCK=triton.next_power_of_2(top_k),
        BLOCK_N=16,
        BLOCK_D=block_d,
        num_warps=4,
    )
    feature, stride_fb = _feature(x_bnd, pool)
    launch(
        _route_grad_weight_kernel,
        (triton.cdiv(width, 32),),
        grad_logits_br,
        feature,
        grad_weight,
        batch,
        stride_fb,
        width,
        R=experts,
        R_BLOCK=max(16, r_block),
        BLOCK_B=16,
        BLOCK_D=32,
        num_warps=4,
    )
    return grad_x, grad_weight


def route_backward_bytes(x_bnd: Tensor, weight_rd: Tensor, top_k: int, pool: str) -> int:
    """Unique bytes that `route_backward`'s kernels read and write."""
    batch, experts = x_bnd.shape[0], weight_rd.shape[0]
    # grad_gates, gates, indices; grad_probs, probs, and the logits' gradients written and read.
    per_image = top_k * (4 + 4 + 8) + experts * 4 * 4
    weight = weight_rd.nbytes * (2 if batch else 1)
    return batch * per_image + weight + x_bnd.nbytes + _feature_bytes(x_bnd, pool)


def expert_load(gates_bk: Tensor, indices_bk: Tensor, num_experts: int) -> Tensor:
    """[R] float32: the sum of the gates that each expert was given; indices outside 0..R-1 count for none."""
    load_r = empty(num_experts, dtype=float32, device=gates_bk.device)
    launch(
        _expert_load_kernel,
        (num_experts,),
        gates_bk,
        indices_bk,
        load_r,
        gates_bk.numel(),
        BLOCK_S=1024,
        num_warps=4,
    )
    return load_r


def expert_load_bytes(gates_bk: Tensor, indices_bk: Tensor, num_experts: int) -> int:
    """Unique bytes that `expert_load` reads and writes."""
    return gates_bk.nbytes + indices_bk.nbytes + 4 * num_experts


def _feature(x_bnd: Tensor, pool: str) -> tuple[Tensor, int]:
    """Where the images' features [B, D] lie, and from one image's to the next: in x itself for pool "cls"."""
    batch, tokens, width = x_bnd.shape
    if pool == "cls":
        return x_bnd, tokens * width
    feature_bd = empty((batch, width), dtype=float32, device=x_bnd.device)
    block_d = min(triton.next_power_of_2(width), 128)
    launch(
        _token_mean_kernel,
        (batch * triton.cdiv(width, block_d),),
        x_bnd,
        feature_bd,
        tokens,
        width,
        BLOCK_N=32,
        BLOCK_D=block_d,
        num_warps=4,
    )
    return feature_bd, width


def _feature_bytes(x_bnd: Tensor, pool: str) -> int:
    """What making and reading the features moves: the class tokens, or all tokens and the means written and read."""
    batch, _, width = x_bnd.shape
    return batch * width * x_bnd.itemsize if pool == "cls" else x_bnd.nbytes + 2 * 4 * batch * width


@triton.jit
def _token_mean_kernel(
    x_ptr,
    feature_ptr,
    tokens,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """feature[b, d] = mean_n x[b, n, d].

    Grid: B cdiv(D, BLOCK_D) programs, columns fastest; each writes feature[b, BLOCK_D columns]. Bytes: x, B N D
    itemsize; feature 4 B D. FLOPs: B N D. Sums in float32.
    """
    columns = tl.cdiv(width, BLOCK_D)
    image = tl.program_id(0) // columns
    d = (tl.program_id(0) % columns) * BLOCK_D + tl.arange(0, BLOCK_D)
    x_ptr += image.to(tl.int64) * (tokens * width)
    total = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for first in range(0, tokens, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        inside = (n < tokens)[:, None] & (d < width)[None, :]
        total += tl.load(x_ptr + n[:, None] * width + d[None, :], mask=inside, other=0).to(tl.float32)
    tl.store(feature_ptr + image.to(tl.int64) * width + d, tl.sum(total, 0) / tokens, mask=d < width)


@triton.jit
def _route_forward_kernel(
    feature_ptr,
    weight_ptr,
    noise_ptr,
    gates_ptr,
    indices_ptr,
    probs_ptr,
    stride_fb,
    width,
    tau,
    R: tl.constexpr,
    TOP_K: tl.constexpr,
    R_BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """p = softmax((c W^T + noise) / tau), its k largest, and these divided by their sum.

    Grid: B programs; program b writes gates[b], indices[b] and probs[b]. Bytes: features B D itemsize, weight R D
    itemsize, noise B R itemsize; gates and indices 12 B k, probs 4 B R. FLOPs: 2 B R D. Products, sums and the softmax
    in float32; an expert's rank is counted, so that no two outputs can have one place, whatever the logits are.
    """
    image = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, R_BLOCK)
    feature_ptr += image * stride_fb
    products = tl.zeros((R_BLOCK, BLOCK_D), tl.float32)
    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        c = tl.load(feature_ptr + d, mask=d < width, other=0).to(tl.float32)
        inside = (r < R)[:, None] & (d < width)[None, :]
        w = tl.load(weight_ptr + r[:, None] * width + d[None, :], mask=inside, other=0).to(tl.float32)
        products += w * c[None, :]
    logits = tl.sum(products, 1)
    if noise_ptr is not None:
        logits += tl.load(noise_ptr + image * R + r, mask=r < R, other=0).to(tl.float32)
    logits = tl.where(r < R, logits / tau, float("-inf"))
    weights = tl.exp(logits - tl.max(logits, 0))
    p = weights / tl.sum(weights, 0)
    tl.store(probs_ptr + image * R + r, p, mask=r < R)

    # NaNs are alike, below every number and above what is no expert.
    key = tl.where(p == p, p, -1.0)
    key = tl.where(r < R, key, -2.0)
    before = (key[None, :] > key[:, None]) | ((key[None, :] == key[:, None]) & (r[None, :] < r[:, None]))
    rank = tl.sum(before.to(tl.int32), 1)
    chosen = rank < TOP_K
    gates = p / tl.sum(tl.where(chosen, p, 0.0), 0)
    tl.store(gates_ptr + image * TOP_K + rank, gates, mask=chosen)
    tl.store(indices_ptr + image * TOP_K + rank, r.to(tl.int64), mask=chosen)


@triton.jit
def _route_grad_x_kernel(
    grad_gates_ptr,
    grad_probs_ptr,
    weight_ptr,
    gates_ptr,
    indices_ptr,
    probs_ptr,
    grad_x_ptr,
    grad_logits_ptr,
    tokens,
    width,
    tau,
    R: tl.constexpr,
    TOP_K: tl.constexpr,
    CLS: tl.constexpr,
    R_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Through gates = p_chosen / sum, through the softmax, and through the feature.

        q = grad_probs + scatter((grad_gates - <grad_gates, gates>) / sum p_chosen)
        grad_logits = p (q - <q, p>) / tau                         (of the logits before the temperature)
        grad_c = grad_logits W;  grad_x[b, 0] = grad_c, the other tokens 0 (CLS); or grad_c / N everywhere

    Grid: B cdiv(D, BLOCK_D) programs, columns fastest; each writes grad_x[b, :, BLOCK_D columns], the first of an
    image also grad_logits[b]. Bytes: grad_gates, gates and indices 16 B k, grad_probs and probs 8 B R, weight
    R D itemsize; grad_x B N D itemsize, grad_logits 4 B R. FLOPs: 2 B R D. All sums in float32.
    """
    columns = tl.cdiv(width, BLOCK_D)
    image = (tl.program_id(0) // columns).to(tl.int64)
    column = tl.program_id(0) % columns
    r = tl.arange(0, R_BLOCK)
    k = tl.arange(0, K_BLOCK)
    p = tl.load(probs_ptr + image * R + r, mask=r < R, other=0)
    grad_gates = tl.load(grad_gates_ptr + image * TOP_K + k, mask=k < TOP_K, other=0)
    gates = tl.load(gates_ptr + image * TOP_K + k, mask=k < TOP_K, other=0)
    index = tl.load(indices_ptr + image * TOP_K + k, mask=k < TOP_K, other=-1).to(tl.int32)
    chosen = index[:, None] == r[None, :]
    through = grad_gates - tl.sum(grad_gates * gates, 0)
    through = tl.sum(tl.where(chosen, through[:, None], 0.0), 0) / tl.sum(tl.where(chosen, p[None, :], 0.0))
    q = tl.load(grad_probs_ptr + image * R + r, mask=r < R, other=0) + through
    grad_logits = p * (q - tl.sum(q * p, 0)) / tau
    tl.store(grad_logits_ptr + image * R + r, grad_logits, mask=(r < R) & (column == 0))

    d = column * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (r < R)[:, None] & (d < width)[None, :]
    w = tl.load(weight_ptr + r[:, None] * width + d[None, :], mask=inside, other=0).to(tl.float32)
    grad_c = tl.sum(grad_logits[:, None] * w, 0)
    if not CLS:
        grad_c = grad_c / tokens
    grad_x_ptr += image * (tokens * width)
    for first in range(0, tokens, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        if CLS:
            grad = tl.where((n == 0)[:, None], grad_c[None, :], 0.0)
        else:
            grad = tl.broadcast_to(grad_c[None, :], (BLOCK_N, BLOCK_D))
        grad = rounded(grad, grad_x_ptr.dtype.element_ty)
        tl.store(grad_x_ptr + n[:, None] * width + d[None, :], grad, mask=(n < tokens)[:, None] & (d < width)[None, :])


@triton.jit(do_not_specialize=["batch"])
def _route_grad_weight_kernel(
    grad_logits_ptr,
    feature_ptr,
    grad_weight_ptr,
    batch,
    stride_fb,
    width,
    R: tl.constexpr,
    R_BLOCK: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad_weight[r, d] = sum_b grad_logits[b, r] c[b, d].

    Grid: cdiv(D, BLOCK_D) programs; each writes grad_weight[:, BLOCK_D columns], images summed in their order. Bytes:
    grad_logits 4 B R, features B D itemsize; grad_weight R D itemsize. FLOPs: 2 B R D. Exact float32 products.
    """
    r = tl.arange(0, R_BLOCK)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros((R_BLOCK, BLOCK_D), tl.float32)
    for first in range(0, batch, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        image = b.to(tl.int64)
        grad_logits_br = tl.load(
            grad_logits_ptr + image[:, None] * R + r[None, :], mask=(b < batch)[:, None] & (r < R)[None, :], other=0
        )
        c = tl.load(
            feature_ptr + image[:, None] * stride_fb + d[None, :],
            mask=(b < batch)[:, None] & (d < width)[None, :],
            other=0,
        )
        total = dot(tl.trans(grad_logits_br), c.to(tl.float32), total, "ieee")
    tl.store(
        grad_weight_ptr + r[:, None] * width + d[None, :],
        rounded(total, grad_weight_ptr.dtype.element_ty),
        mask=(r < R)[:, None] & (d < width)[None, :],
    )


@triton.jit(do_not_specialize=["num_slots"])
def _expert_load_kernel(gates_ptr, indices_ptr, load_ptr, num_slots, BLOCK_S: tl.constexpr):
    """load[e] = sum of the gates whose index is e.

    Grid: R programs; program e reads all B k slots and writes load[e]. Bytes: gates 4 B k, indices B k itemsize;
    load 4 R. FLOPs: R B k. Sums in float32, in an order that BLOCK_S alone sets.
    """
    expert = tl.program_id(0)
    total = tl.zeros((BLOCK_S,), tl.float32)
    for first in range(0, num_slots, BLOCK_S):
        slot = first + tl.arange(0, BLOCK_S)
        gate = tl.load(gates_ptr + slot, mask=slot < num_slots, other=0)
        index = tl.load(indices_ptr + slot, mask=slot < num_slots, other=-1)
        total += tl.where(index == expert, gate, 0.0)
    tl.store(load_ptr + expert, tl.sum(total, 0))
