"""The DEX layer and the training step as they were published, for comparison.

The layer is a Python loop over experts with a host check each; the step has GEMA inside its forward, AdamW one tensor
at a time, and a host check of every gradient. Written from the method's section 8. Routing, losses and updates are the
method's; only the way they are computed is the published one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dexcore.models import MaskedAutoencoder
from dexcore.models.precision import autocast
from dexcore.nn import DEXMlp, param_groups
from dexcore.nn.mlp import dex_layers
from dexcore.train.config import PretrainConfig
from dexcore.train.schedules import StepValues


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
        self.noise_std = 0.0
        self.noise: Tensor | None = None  # [B, R], the exploration noise's normal draws; where noise_std > 0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # so that both layers choose the same experts
            probs = ((self.router(x[:, 0]) + self._exploration()) / self.tau).softmax(-1)
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

    def _exploration(self) -> Tensor | float:
        if self.noise is None or not (self.training and self.noise_std > 0):
            return 0.0
        frequency = self.activation_frequency
        return self.noise_std * (self.noise + (1 - frequency / (frequency.sum() + 1e-6)))

    @torch.no_grad()
    def _update(self, gates: Tensor, indices: Tensor) -> None:
        load = (F.one_hot(indices, len(self.experts)) * gates.unsqueeze(-1)).sum((0, 1))
        omega = load / load.sum()
        self.activation_frequency = 0.99 * self.activation_frequency + 0.01 * omega
        for name, tensor in self.director.named_parameters():
            experts = [dict(expert.named_parameters())[name] for expert in self.experts]
            tensor.data = published_ema(tensor.data, experts, omega, self.momentum)


@torch.no_grad()
def published_copy(pool: DEXMlp) -> PublishedLayer:
    """The published layer with a DEXMlp's weights."""
    hidden, width = pool.director.fc1.weight.shape
    layer = PublishedLayer(width, hidden, pool.num_experts, pool.top_k, pool.tau).to(pool.router.weight)
    layer.router.weight.copy_(pool.router.weight)
    for i, many, one in ((0, pool.experts.fc1, pool.director.fc1), (2, pool.experts.fc2, pool.director.fc2)):
        layer.director[i].load_state_dict(one.state_dict())
        for e, expert in enumerate(layer.experts):
            expert[i].weight.copy_(many.weight[e])
            expert[i].bias.copy_(many.bias[e])
    return layer


class _InBlock(nn.Module):
    """The layer as a block calls it; keeps the losses of the last forward."""

    def __init__(self, layer: PublishedLayer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y, self.align, self.balance = self.layer(x)
        return y


class PublishedTraining:
    """The published whole step of a masked autoencoder, called as `dexcore.train.loop.Pretraining` is.

    Args:
        model: its DEX layers are replaced by published ones with their weights; the rest stays what it is.
        config: of the run; whole batches on one process.
        dtype: of the parameters.
    """

    def __init__(self, model: MaskedAutoencoder, config: PretrainConfig, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.dtype = config, dtype
        self.layers = []
        for block in model.encoder.blocks:
            (pool,) = dex_layers(block)
            block.mlp = _InBlock(published_copy(pool))
            self.layers.append(block.mlp.layer)
        self.model = model.to(dtype).train()
        self.device = next(model.parameters()).device
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = config.optimizer
        self.optimizer = torch.optim.AdamW(
            param_groups(model, optimizer.weight_decay), lr=config.peak_lr, betas=(optimizer.beta1, optimizer.beta2)
        )

    def step(self, batch: dict[str, Tensor], values: StepValues) -> dict[str, Any]:
        """One optimizer step; "loss", "loss_self", "loss_align", "loss_balance", "grad_norm", "skipped"."""
        image, mask_noise, router_noise = (
            batch[name].to(self.device, self.dtype, non_blocking=True)
            for name in ("image", "mask_noise", "router_noise")
        )
        experts = [len(layer.experts) for layer in self.layers]
        for layer, noise in zip(self.layers, router_noise.split(experts, dim=1), strict=True):
            layer.noise, layer.noise_std, layer.momentum = noise, values.noise_std, values.momentum
        self.optimizer.zero_grad()
        with autocast(self.device, self.config.run.precision):
            loss_self = self.model(image, noise=mask_noise).loss
            mlps, depth = [block.mlp for block in self.model.encoder.blocks], len(self.layers)
            loss_align = sum(mlp.align / (depth - i) for i, mlp in enumerate(mlps)) / depth
            loss_balance = sum(mlp.balance for mlp in mlps) / depth
        loss = loss_self + self.config.dex.lambda_align * loss_align + values.lambda_balance * loss_balance
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip_norm)
        finite = all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in self.parameters)
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = values.lr
            self.optimizer.step()
        losses = {"loss": loss, "loss_self": loss_self, "loss_align": loss_align, "loss_balance": loss_balance}
        return {name: value.item() for name, value in (losses | {"grad_norm": grad_norm}).items()} | {
            "skipped": not finite
        }


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
