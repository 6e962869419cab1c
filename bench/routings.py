"""Which images use which experts: the routings that benches compare, and a router that chooses them.

Gates are drawn between about 0.3 and 0.7. A saturated router's gates may be denormal, and then a CPU's GEMMs take
twenty times as long.
"""

import torch
from torch import Tensor

ROUTINGS = ("uniform", "zipf", "two")
_UNUSED = -4.0  # the logit of experts that an image does not use


def routing(name: str, images: int, num_experts: int, top_k: int) -> tuple[Tensor, Tensor]:
    """Gates [B, k] and indices [B, k], largest gate first, the same at every call.

    Args:
        name: "uniform": every expert as likely as another; "zipf": expert r with a weight of 1 / (r + 1);
            "two": all images on the first two experts (the first ``top_k``, where that is more).
        images, num_experts, top_k: B, R and k.
    """
    generator = torch.Generator().manual_seed(2)
    weights = torch.ones(num_experts)
    if name == "zipf":
        weights /= torch.arange(1, num_experts + 1)
    elif name == "two":
        weights[max(2, top_k) :] = 0
    elif name != "uniform":
        raise ValueError(f"routing must be one of {', '.join(ROUTINGS)}, got {name!r}")
    # The smallest of exponentials over their weights: drawn without replacement.
    arrivals = torch.empty(images, num_experts).exponential_(generator=generator) / weights
    indices = arrivals.argsort(-1)[:, :top_k].contiguous()
    gates = (0.5 * torch.rand(images, top_k, generator=generator)).softmax(-1).sort(-1, descending=True).values
    return gates, indices


def counts(name: str, images: int, num_experts: int, top_k: int) -> list[int]:
    """How many of the B*k slots each expert gets."""
    return routing(name, images, num_experts, top_k)[1].flatten().bincount(minlength=num_experts).tolist()


@torch.no_grad()
def steer(x: Tensor, router_weight: Tensor, name: str, top_k: int, tau: float = 0.5) -> None:
    """Write to ``router_weight`` [R, D] and to the class tokens of ``x`` [B, N, D] what makes a router choose so."""
    num_experts, width = router_weight.shape
    if width < num_experts:
        raise ValueError(f"width must be at least the number of experts, {num_experts}, got {width}")
    gates, indices = routing(name, x.shape[0], num_experts, top_k)
    logits = torch.full((x.shape[0], num_experts), _UNUSED).scatter_(1, indices, gates.log())
    # Orthonormal rows: the logits of a sum of rows are its coefficients.
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(width, num_experts, generator=generator)).Q.T.to(x)
    router_weight.copy_(basis)
    x[:, 0] += (tau * logits.to(x) - x[:, 0] @ basis.T) @ basis
