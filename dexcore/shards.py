"""Tensors that PyTorch has cut into shards, as FSDP2 does with parameters."""

from torch import Tensor


def own_share(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: of a whole one all."""
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard
