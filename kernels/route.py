"""Routing: which experts an image uses and with which gates, the gradients, and what the experts are given.

    c_b = x[b, 0] (pool "cls") or mean_n x[b, n] (pool "mean")
    p_b = softmax((c_b W^T + noise_b) / tau)
    indices_b = the k largest of p_b, falling, ties to the lower index;  gates_b = p_b[indices_b] / their sum
    I = mean_b p_b;  balance loss = R sum_r I_r stopgrad(I_r)

Axes: b images, n tokens, d width, r experts, k chosen. All arithmetic is float32. An image's row is one program's, so
that a routing depends neither on the batch an image stands in nor on its neighbors' values.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor, empty, empty_like, float32, int64

from dexcore.kernels.launch import launch
from dexcore.kernels.numerics import dot, rounded

# Elements of a tile that a program of four warps holds: 32 a thread.
_TILE = 4096
_COLUMNS_A_GRADIENT = 32


class Balance(NamedTuple):
    """The balance loss's input, and where the kernel that sums it (`dexcore.kernels.plan`) writes; all float32."""

    probs: Tensor  # [B, R]
    importance: Tensor  # [R], their mean; zeros without an image
    loss: Tensor  # 0-dim

    @classmethod
    def of(cls, probs_br: Tensor) -> "Balance":
        """With room for the results."""
        return cls(probs_br, probs_br.new_empty(probs_br.shape[1]), probs_br.new_empty(()))


def balance_bytes(balance: Balance | None) -> int:
    """Unique bytes that summing the balance loss reads and writes."""
    return 0 if balance is None else sum(tensor.nbytes for tensor in balance)


def route_forward(
    x_bnd: Tensor,
    weight_rd: Tensor,
    noise_br: Tensor | None,
    top_k: int,
    tau: float,
    pool: str,
    feature_bd: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """gates [B, k] float32, indices [B, k] int64 and probs [B, R] float32.

    Where an image's logits hold a NaN or +Inf its probs and gates are NaN, and its indices 0 .. k-1. ``feature_bd``,
    float32, is filled with the images' features, for `route_gradients`.
    """
    batch, _, width = x_bnd.shape
    experts = weight_rd.shape[0]
    gates_bk = empty((batch, top_k), dtype=float32, device=x_bnd.device)
    indices_bk = empty((batch, top_k), dtype=int64, device=x_bnd.device)
    probs_br = empty((batch, experts), dtype=float32, device=x_bnd.device)
    feature, stride_fb = _feature(x_bnd, pool, feature_bd)
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
        feature_bd if pool == "cls" else None,
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


def route_forward_bytes(
    x_bnd: Tensor, weight_rd: Tensor, noise_br: Tensor | None, top_k: int, pool: str, *, keep_feature: bool = False
) -> int:
    """Unique bytes that `route_forward` reads and writes."""
    (batch, _, width), experts = x_bnd.shape, weight_rd.shape[0]
    read = (
        _feature_bytes(x_bnd, pool) + (weight_rd.nbytes if batch else 0) + (0 if noise_br is None else noise_br.nbytes)
    )
    kept = 4 * width if keep_feature and pool == "cls" else 0
    return read + batch * (top_k * (4 + 8) + experts * 4 + kept)


def route_gradients(
    grad_gates_bk: Tensor,
    grad_probs_br: Tensor | None,
    grad_balance: Tensor | None,
    feature_bd: Tensor,
    weight_rd: Tensor,
    gates_bk: Tensor,
    indices_bk: Tensor,
    probs_br: Tensor,
    importance_r: Tensor | None,
    tau: float,
) -> tuple[Tensor, Tensor]:
    """grad_feature [B, D], float32, and grad_weight [R, D] in the weight's dtype, by one launch.

    Args:
        grad_gates_bk, grad_probs_br: float32; probs may get none.
        grad_balance: 0-dim, float32: of the balance loss, whose ``importance_r`` [R] it needs; or None.
        feature_bd: as `route_forward` kept it.
        weight_rd, gates_bk, indices_bk, probs_br, tau: the forward's.

    What reads x's gradient spreads grad_feature over the tokens, by `feature_gradient`.
    """
    grad_feature_bd = empty(feature_bd.shape, dtype=float32, device=feature_bd.device)
    incoming = grad_gates_bk, grad_probs_br, grad_balance
    forward = weight_rd, gates_bk, indices_bk, probs_br, importance_r
    return grad_feature_bd, _gradients(incoming, feature_bd, feature_bd.shape[1], forward, tau, grad_feature_bd)


def route_gradients_bytes(
    feature_bd: Tensor, weight_rd: Tensor, top_k: int, *, with_probs: bool, with_balance: bool
) -> int:
    """Unique bytes that `route_gradients` reads and writes, with gradients of probs and of the balance loss or not."""
    (batch, width), experts = feature_bd.shape, weight_rd.shape[0]
    # grad_gates, gates, indices; probs, and their gradient.
    per_image = top_k * (4 + 4 + 8) + experts * 4 * (1 + with_probs) + width * 4
    return feature_bd.nbytes + batch * per_image + 2 * weight_rd.nbytes + 4 * with_balance * (1 + experts)


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
    grad_x = empty_like(x_bnd)
    # Of one token the feature's gradient is x's.
    alone = tokens == 1
    grad_feature = grad_x if alone else empty((batch, width), dtype=float32, device=x_bnd.device)
    feature, stride_fb = _feature(x_bnd, pool, None)
    incoming, forward = (grad_gates_bk, grad_probs_br, None), (weight_rd, gates_bk, indices_bk, probs_br, None)
    grad_weight = _gradients(incoming, feature, stride_fb, forward, tau, grad_feature)
    if not alone:
        rows, block_d = batch * tokens, min(triton.next_power_of_2(width), _TILE // 4)
        launch(
            _spread_kernel,
            (triton.cdiv(rows, _TILE // block_d) * triton.cdiv(width, block_d),),
            grad_feature,
            grad_x,
            rows,
            tokens,
            D=width,
            CLS=pool == "cls",
            ROWS=_TILE // block_d,
            BLOCK_D=block_d,
            num_warps=4,
        )
    return grad_x, grad_weight


def route_backward_bytes(x_bnd: Tensor, weight_rd: Tensor, top_k: int, pool: str) -> int:
    """Unique bytes that `route_backward`'s kernels read and write."""
    (batch, tokens, width), experts = x_bnd.shape, weight_rd.shape[0]
    # grad_gates, gates, indices; grad_probs, probs; and the feature's gradient written and read.
    per_image = top_k * (4 + 4 + 8) + experts * 4 * 2 + (width * 4 * 2 if tokens > 1 else 0)
    return batch * per_image + 2 * weight_rd.nbytes + x_bnd.nbytes + _feature_bytes(x_bnd, pool)


def _gradients(
    incoming: tuple[Tensor, Tensor | None, Tensor | None],
    feature: Tensor,
    stride_fb: int,
    forward: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    tau: float,
    grad_feature: Tensor,
) -> Tensor:
    """grad_weight [R, D]; the feature's gradient goes to ``grad_feature``."""
    grad_gates_bk, grad_probs_br, grad_balance = incoming
    weight_rd, gates_bk, indices_bk, probs_br, importance_r = forward
    (batch, top_k), (experts, width) = indices_bk.shape, weight_rd.shape
    grad_weight = empty_like(weight_rd)
    r_block = max(16, triton.next_power_of_2(experts))
    launch(
        _route_backward_kernel,
        (triton.cdiv(width, _COLUMNS_A_GRADIENT),),
        grad_gates_bk,
        grad_probs_br,
        grad_balance,
        feature,
        weight_rd,
        gates_bk,
        indices_bk,
        probs_br,
        None if grad_balance is None else importance_r,
        grad_feature,
        grad_weight,
        batch,
        stride_fb,
        width,
        tau,
        experts / max(batch, 1),
        R=experts,
        TOP_K=top_k,
        R_BLOCK=r_block,
        BLOCK_B=max(16, min(64, 2048 // r_block)),  # what a dot reduces: 16 at least
        BLOCK_D=_COLUMNS_A_GRADIENT,
        num_warps=8,  # of 4 the dots' operands take 168 registers on sm_90, and spill where x is half
    )
    return grad_weight


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


def _feature(x_bnd: Tensor, pool: str, feature_bd: Tensor | None) -> tuple[Tensor, int]:
    """Where the images' features [B, D] lie, and from one image's to the next: in x itself for pool "cls"; the means
    of its tokens, in ``feature_bd`` where that is given, for "mean".
    """
    batch, tokens, width = x_bnd.shape
    if pool == "cls":
        return x_bnd, tokens * width
    if feature_bd is None:
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
    kept_ptr,
    stride_fb,
    width,
    tau,
    R: tl.constexpr,
    TOP_K: tl.constexpr,
    R_BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """p = softmax((c W^T + noise) / tau), its k largest, and these divided by their sum.

    Grid: B programs; program b writes gates[b], indices[b], probs[b] and, where it is kept, the feature. Bytes:
    features B D itemsize, weight R D itemsize, noise B R itemsize; gates and indices 12 B k, probs 4 B R, the feature
    kept 4 B D. FLOPs: 2 B R D. Products, sums and the softmax in float32; an expert's rank is counted, so that no two
    outputs can have one place, whatever the logits are.
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
        if kept_ptr is not None:
            tl.store(kept_ptr + image * width + d, c, mask=d < width)
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
def sum_balance(
    probs_ptr, importance_ptr, loss_ptr, batch, R: tl.constexpr, R_BLOCK: tl.constexpr, BLOCK_B: tl.constexpr
):
    """importance = mean_b probs[b], loss = R sum_r importance_r^2.

    For one program, which writes both. Bytes: probs 4 B R; importance 4 R, loss 4. FLOPs: B R. Sums in float32, in an
    order that BLOCK_B alone sets.
    """
    r = tl.arange(0, R_BLOCK)
    total = tl.zeros((BLOCK_B, R_BLOCK), tl.float32)
    for first in range(0, batch, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        inside = (b < batch)[:, None] & (r < R)[None, :]
        total += tl.load(probs_ptr + b.to(tl.int64)[:, None] * R + r[None, :], mask=inside, other=0)
    importance = tl.sum(total, 0) / tl.maximum(batch, 1)
    tl.store(importance_ptr + r, importance, mask=r < R)
    tl.store(loss_ptr, R * tl.sum(importance * importance, 0))


@triton.jit
def feature_gradient(grad_feature_ptr, rows, columns, inside, tokens, D: tl.constexpr, CLS: tl.constexpr):
    """What x's rows get through the feature: of its gradient [B, D] the first token all (CLS), or each 1 / N.

    Row r is token r % N of image r // N. Float32, 0 where not ``inside``.
    """
    if CLS:
        inside = inside & (rows % tokens == 0)[:, None]
    source = (rows // tokens).to(tl.int64) * D
    grad = tl.load(grad_feature_ptr + source[:, None] + columns[None, :], mask=inside, other=0.0)
    return grad if CLS else grad / tokens


@triton.jit(do_not_specialize=["num_rows"])
def _spread_kernel(
    grad_feature_ptr,
    grad_x_ptr,
    num_rows,
    tokens,
    D: tl.constexpr,
    CLS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad_x = `feature_gradient`.

    Grid: cdiv(B N, ROWS) cdiv(D, BLOCK_D) programs, columns fastest; each owns and writes one tile. Bytes:
    grad_feature 4 B D; grad_x B N D itemsize.
    """
    column_blocks: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    rows = tl.program_id(0) // column_blocks * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) % column_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (columns < D)[None, :]
    grad = feature_gradient(grad_feature_ptr, rows, columns, inside, tokens, D, CLS)
    offsets = (rows.to(tl.int64) * D)[:, None] + columns[None, :]
    tl.store(grad_x_ptr + offsets, rounded(grad, grad_x_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch"])
def _route_backward_kernel(
    grad_gates_ptr,
    grad_probs_ptr,
    grad_balance_ptr,
    feature_ptr,
    weight_ptr,
    gates_ptr,
    indices_ptr,
    probs_ptr,
    importance_ptr,
    grad_feature_ptr,
    grad_weight_ptr,
    batch,
    stride_fb,
    width,
    tau,
    experts_an_image,
    R: tl.constexpr,
    TOP_K: tl.constexpr,
    R_BLOCK: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Through gates = p_chosen / sum, through the balance loss, through the softmax, and through the logits.

        q = grad_probs + grad_balance R / B importance + scatter((grad_gates - <grad_gates, gates>) / sum p_chosen)
        l = p (q - <q, p>) / tau                                   (of the logits before the temperature)
        grad_feature[b] = l_b W;  grad_weight = sum_b l_b^T c_b

    Grid: cdiv(D, BLOCK_D) programs; each computes all of l, which is small, and writes grad_feature[:, BLOCK_D
    columns] and grad_weight[:, BLOCK_D columns], images summed in their order. Bytes: grad_gates, gates and indices 16
    B k, grad_probs and probs 8 B R, importance 4 R, grad_balance 4, features B D itemsize, weight R D itemsize;
    grad_feature B D itemsize, grad_weight R D itemsize. FLOPs: 4 B R D. Exact float32 products, sums in float32.
    """
    r = tl.arange(0, R_BLOCK)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    expert = r < R
    weight_inside = expert[:, None] & (d < width)[None, :]
    w = tl.load(weight_ptr + r[:, None] * width + d[None, :], mask=weight_inside, other=0).to(tl.float32)
    through_balance = tl.zeros((R_BLOCK,), tl.float32)
    if grad_balance_ptr is not None:
        scale = tl.load(grad_balance_ptr) * experts_an_image
        through_balance = scale * tl.load(importance_ptr + r, mask=expert, other=0)
    total = tl.zeros((R_BLOCK, BLOCK_D), tl.float32)
    for first in range(0, batch, BLOCK_B):
        image = first + tl.arange(0, BLOCK_B)
        real = image < batch
        image = image.to(tl.int64)
        p_inside = real[:, None] & expert[None, :]
        p = tl.load(probs_ptr + image[:, None] * R + r[None, :], mask=p_inside, other=0)
        q = tl.broadcast_to(through_balance[None, :], (BLOCK_B, R_BLOCK))
        if grad_probs_ptr is not None:
            q += tl.load(grad_probs_ptr + image[:, None] * R + r[None, :], mask=p_inside, other=0)
        chosen = tl.zeros((BLOCK_B, R_BLOCK), tl.int1)
        grad_chosen = tl.zeros((BLOCK_B, R_BLOCK), tl.float32)
        mean_grad = tl.zeros((BLOCK_B,), tl.float32)
        for j in range(TOP_K):
            grad_gate = tl.load(grad_gates_ptr + image * TOP_K + j, mask=real, other=0)
            gate = tl.load(gates_ptr + image * TOP_K + j, mask=real, other=0)
            index = tl.load(indices_ptr + image * TOP_K + j, mask=real, other=-1).to(tl.int32)
            here = index[:, None] == r[None, :]
            chosen = chosen | here
            grad_chosen = tl.where(here, grad_gate[:, None], grad_chosen)
            mean_grad += grad_gate * gate
        p_sum = tl.where(real, tl.sum(tl.where(chosen, p, 0.0), 1), 1.0)
        q += tl.where(chosen, (grad_chosen - mean_grad[:, None]) / p_sum[:, None], 0.0)
        grad_logits = p * (q - tl.sum(q * p, 1)[:, None]) / tau

        inside = real[:, None] & (d < width)[None, :]
        grad_c = dot(grad_logits, w, tl.zeros((BLOCK_B, BLOCK_D), tl.float32), "ieee")
        grad_c = rounded(grad_c, grad_feature_ptr.dtype.element_ty)
        tl.store(grad_feature_ptr + image[:, None] * width + d[None, :], grad_c, mask=inside)
        c = tl.load(feature_ptr + image[:, None] * stride_fb + d[None, :], mask=inside, other=0).to(tl.float32)
        total = dot(tl.trans(grad_logits), c, total, "ieee")
    grad_weight = rounded(total, grad_weight_ptr.dtype.element_ty)
    tl.store(grad_weight_ptr + r[:, None] * width + d[None, :], grad_weight, mask=weight_inside)


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
