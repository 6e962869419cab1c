"""The method in the plainest words: what every backend is tested against. For tests alone.

Any dtype goes in; all is computed in float64 by differentiable PyTorch operations, a loop an image where that is
clearest. Symbols: b images, n tokens, d width, h hidden, r experts, k chosen.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "relu": F.relu,
    "silu": F.silu,
    "swiglu": lambda z: F.silu(z[..., : z.shape[-1] // 2]) * z[..., z.shape[-1] // 2 :],
}


def route(
    x_bnd: Tensor,
    weight_rd: Tensor,
    top_k: int,
    tau: float = 0.5,
    noise_br: Tensor | None = None,
    pool: str = "cls",
) -> tuple[Tensor, Tensor, Tensor]:
    """(gates [B, k], indices [B, k], probs [B, R]); ties go to the lower index."""
    x_bnd, weight_rd = x_bnd.double(), weight_rd.double()
    feature_bd = x_bnd[:, 0] if pool == "cls" else x_bnd.mean(1)
    logits_br = feature_bd @ weight_rd.T
    if noise_br is not None:
        logits_br = logits_br + noise_br.double()
    probs_br = (logits_br / tau).softmax(-1)
    indices_bk = probs_br.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    chosen_bk = probs_br.gather(-1, indices_bk)
    return chosen_bk / chosen_bk.sum(-1, keepdim=True), indices_bk, probs_br


def mlp(x: Tensor, w1_hd: Tensor, b1_h: Tensor | None, w2_dh: Tensor, b2_d: Tensor | None, activation: str) -> Tensor:
    """One expert, or the director, on any rows; for "swiglu" w1 and b1 have 2 H rows, the gate's first."""
    b1_h, b2_d = (None if bias is None else bias.double() for bias in (b1_h, b2_d))
    return F.linear(_ACTIVATIONS[activation](F.linear(x.double(), w1_hd.double(), b1_h)), w2_dh.double(), b2_d)


def expert_mlp(
    x_bnd: Tensor,
    w1_rhd: Tensor,
    b1_rh: Tensor | None,
    w2_rdh: Tensor,
    b2_rd: Tensor | None,
    gates_bk: Tensor,
    indices_bk: Tensor,
    activation: str = "gelu",
) -> Tensor:
    """y[b] = sum_j gates[b, j] FFN_{indices[b, j]}(x[b])."""
    images = []
    for b, chosen in enumerate(indices_bk.tolist()):
        y_nd = torch.zeros_like(x_bnd[b], dtype=torch.float64)
        for j, r in enumerate(chosen):
            b1_h, b2_d = (None if bias is None else bias[r] for bias in (b1_rh, b2_rd))
            y_nd = y_nd + gates_bk[b, j].double() * mlp(x_bnd[b], w1_rhd[r], b1_h, w2_rdh[r], b2_d, activation)
        images.append(y_nd)
    return torch.stack(images) if images else torch.zeros_like(x_bnd, dtype=torch.float64)


def mix_align(student_bnd: Tensor, teacher_bnd: Tensor, kind: str = "kd") -> Tensor:
    """The alignment loss; the teacher gets no gradient. Zero where there are no rows."""
    student, teacher = student_bnd.double(), teacher_bnd.detach().double()
    if student.numel() == 0:
        return student.sum()
    if kind == "kd":
        p, q = (teacher / 0.5).softmax(-1), (student / 1.0).softmax(-1)
        return -(p * q.clamp(min=1e-6).log()).sum(-1).mean()
    if kind == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    return (student - teacher).square().mean()


def dex_mlp(
    x_bnd: Tensor,
    w1_rhd: Tensor,
    b1_rh: Tensor | None,
    w2_rdh: Tensor,
    b2_rd: Tensor | None,
    dw1_hd: Tensor,
    db1_h: Tensor | None,
    dw2_dh: Tensor,
    db2_d: Tensor | None,
    gates_bk: Tensor,
    indices_bk: Tensor,
    activation: str = "gelu",
    align: str = "kd",
) -> tuple[Tensor, Tensor]:
    """(experts' output, alignment loss against the director)."""
    y_bnd = expert_mlp(x_bnd, w1_rhd, b1_rh, w2_rdh, b2_rd, gates_bk, indices_bk, activation)
    with torch.no_grad():
        director_bnd = mlp(x_bnd, dw1_hd, db1_h, dw2_dh, db2_d, activation)
    return y_bnd, mix_align(y_bnd, director_bnd, align)


def balance_loss(probs_br: Tensor) -> Tensor:
    """R * sum_r I_r stopgrad(I_r), I the mean of the probabilities over the batch."""
    importance_r = probs_br.double().mean(0)
    return importance_r.shape[0] * (importance_r * importance_r.detach()).sum()


def group_ema(director: Tensor, experts_r: Tensor, weights_r: Tensor, momentum: float) -> Tensor:
    """m * director + (1 - m) * sum_r w_r experts_r, over r with w_r other than 0.

    The director itself where all weights are zero, and in each element that would not be finite.
    """
    if not weights_r.any():
        return director.double()
    mixed = sum(w * expert for w, expert in zip(weights_r.double(), experts_r.double(), strict=True) if w != 0)
    moved = momentum * director.double() + (1 - momentum) * mixed
    return torch.where(moved.isfinite(), moved, director.double())
