"""The DEX layer as it was published, for comparison: a Python loop over experts with a host check each.

Written from the method's section 8. Its routing, losses and update are the method's; only the way they are computed
is the published one.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PublishedLayer(nn.Module):
    """Experts as R separate MLPs, the director on the whole batch, GEMA inside forward.

    ``forward(x [B, N, D])`` returns (y [B, N, D] in float32 at least, align loss, balance loss).
    """

    def __init__(self, width: int, hidden: int, num_experts: int, top_k: int, tau: float = 0.5) -> None:
        super().__init__()
        self.top_k, self.tau = top_k, tau
        self.router = nn.Linear(width, num_experts, bias=False)
        self.director = _mlp(width, hidden).requires_grad_(False)
        self.experts = nn.ModuleList(_mlp(width, hidden) for _ in range(num_experts))
        self.register_buffer("activation_frequency", torch.zeros(num_experts))
        self.momentum = 0.99

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # so that both layers choose the same experts
            probs = (self.router(x[:, 0]) / self.tau).softmax(-1)
        chosen, indices = probs.topk(self.top_k, dim=-1)
        gates = chosen / chosen.sum(-1, keepdim=True)
        y = torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
        for e, expert in enumerate(self.experts):
            mask = (indices == e) & (gates > 0)
            if not mask.any():
                continue
            images, places = mask.nonzero(as_tuple=True)
            y[images] += expert(x[images]) * gates[images, places].view(-1, 1, 1)
        with torch.no_grad():
            target = self.director(x)
        align = published_align(y, target)
        importance = probs.mean(0)
        balance = len(self.experts) * (importance * importance.detach()).sum()
        self._update(gates, indices)
        return y, align, balance

    @torch.no_grad()
    def _update(self, gates: Tensor, indices: Tensor) -> None:
        load = (F.one_hot(indices, len(self.experts)) * gates.unsqueeze(-1)).sum((0, 1))
        omega = load / load.sum()
        self.activation_frequency = 0.99 * self.activation_frequency + 0.01 * omega
        for name, tensor in self.director.named_parameters():
            experts = [dict(expert.named_parameters())[name] for expert in self.experts]
            tensor.data = published_ema(tensor.data, experts, omega, self.momentum)


def published_align(student: Tensor, teacher: Tensor) -> Tensor:
    """The alignment loss as separate operations."""
    p = torch.softmax(teacher / 0.5, dim=-1)
    q = torch.softmax(student / 1.0, dim=-1)
    return -(p * torch.log(torch.clamp(q, min=1e-6))).sum(-1).mean()


@torch.no_grad()
def published_ema(director: Tensor, experts: Sequence[Tensor], omega: Tensor, momentum: float) -> Tensor:
    """A director's new tensor, from a stacked copy of its experts'."""
    mixed = (torch.stack(list(experts)) * omega.view(-1, *[1] * director.ndim)).sum(0)
    return momentum * director + (1 - momentum) * mixed


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
