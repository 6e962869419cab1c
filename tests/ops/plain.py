"""Plain PyTorch in the tested dtype: how good one may expect a result to be. And drawn cases."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "relu": F.relu,
    "silu": F.silu,
}
GATED = {"swiglu": lambda z: F.silu(z.chunk(2, -1)[0]) * z.chunk(2, -1)[1]}  # of two pre-activations a hidden unit
ALL_ACTIVATIONS = ACTIVATIONS | GATED


def expert_mlp(x, w1, b1, w2, b2, gates, indices, activation="gelu"):
    """All experts on all images in x's dtype, then the chosen ones by their gates."""
    dtype = x.dtype
    w1, b1, w2, b2 = (None if t is None else t.to(dtype) for t in (w1, b1, w2, b2))
    outputs = []
    for r in range(w1.shape[0]):
        hidden = ALL_ACTIVATIONS[activation](F.linear(x, w1[r], None if b1 is None else b1[r]))
        outputs.append(F.linear(hidden, w2[r], None if b2 is None else b2[r]))
    stacked_rbnd = torch.stack(outputs)
    images = torch.arange(x.shape[0], device=x.device)
    y = 0
    for j in range(gates.shape[1]):
        y = y + gates[:, j].view(-1, 1, 1) * stacked_rbnd[indices[:, j], images]
    return y.to(dtype)


def mix_align(student, teacher, kind="kd"):
    """In float32 at least, as under autocast."""
    precision = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(precision), teacher.to(precision).detach()
    if kind == "kd":
        return -((teacher / 0.5).softmax(-1) * student.softmax(-1).clamp(min=1e-6).log()).sum(-1).mean()
    if kind == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    return F.mse_loss(student, teacher)


@dataclass
class Case:
    """The arguments of `dex_mlp`, float32; ``indices`` leaves at least one expert without images if R > k."""

    x: Tensor
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    dw1: Tensor
    db1: Tensor | None
    dw2: Tensor
    db2: Tensor | None
    gates: Tensor
    indices: Tensor

    @property
    def experts(self):
        return (self.x, self.w1, self.b1, self.w2, self.b2, self.gates, self.indices)

    @property
    def director(self):
        return (self.dw1, self.db1, self.dw2, self.db2)

    def to(self, device):
        """The same on another device."""
        return Case(**{name: None if t is None else t.to(device) for name, t in vars(self).items()})

    def leaves(self, dtype, parameter_dtype=None):
        """x in ``dtype``, parameters in ``parameter_dtype``, gates in float32 at least; all asking for gradients."""
        parameter_dtype = parameter_dtype or dtype
        dtypes = [dtype, *[parameter_dtype] * 4, torch.promote_types(dtype, torch.float32)]
        return [
            None if t is None else t.detach().to(d).clone().requires_grad_()
            for t, d in zip(self.experts[:6], dtypes, strict=True)
        ]


def make_case(batch=3, tokens=5, width=12, hidden=20, experts=4, top_k=2, bias=True, seed=0, activation="gelu"):
    columns = 2 * hidden if activation in GATED else hidden
    g = torch.Generator().manual_seed(seed)

    def normal(*shape, scale=1.0):
        return torch.randn(*shape, generator=g) * scale

    def biases(*shape):
        return normal(*shape) if bias else None

    used = max(top_k, experts - 1)  # the last expert has no images where that can be
    scores = torch.rand(batch, used, generator=g)
    return Case(
        x=normal(batch, tokens, width),
        w1=normal(experts, columns, width, scale=width**-0.5),
        b1=biases(experts, columns),
        w2=normal(experts, width, hidden, scale=hidden**-0.5),
        b2=biases(experts, width),
        dw1=normal(columns, width, scale=width**-0.5),
        db1=biases(columns),
        dw2=normal(width, hidden, scale=hidden**-0.5),
        db2=biases(width),
        gates=torch.rand(batch, top_k, generator=g).softmax(-1),
        indices=scores.argsort(-1)[:, :top_k],
    )


@st.composite
def cases(draw, activation="gelu"):
    experts = draw(st.integers(1, 6))
    return make_case(
        batch=draw(st.integers(0, 5)),
        tokens=draw(st.integers(1, 9)),
        width=draw(st.integers(1, 24)),
        hidden=draw(st.integers(1, 40)),
        experts=experts,
        top_k=draw(st.integers(1, min(experts, 4))),
        bias=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
        activation=activation,
    )


@st.composite
def cases_and_activations(draw):
    """A case, and the activation that it is for."""
    activation = draw(st.sampled_from(list(ALL_ACTIVATIONS)))
    return draw(cases(activation)), activation
