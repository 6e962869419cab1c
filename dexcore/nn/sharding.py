"""How PyTorch's FSDP2 cuts DEX layers into shards."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from dexcore.checks import check_kind
from dexcore.nn.mlp import DEXMlp

if TYPE_CHECKING:
    from torch.distributed.tensor import Shard


def shard_placement(model: nn.Module) -> "Callable[[nn.Parameter], Shard]":
    """What `torch.distributed.fsdp.fully_shard` takes as ``shard_placement_fn`` for a model with DEX layers.

    Experts ([R, H, D] and their biases [R, H]) are cut on their second axis, all else on its first, directors [H, D]
    too: a process holds the same rows of both, and `update_directors` moves nothing between processes. Cut on their
    first axis, R experts would leave all but R processes without any. H and D have to be multiples of the number of
    shards.

    Args:
        model: not sharded yet; it may hold no DEX layer.

    Raises:
        TypeError: ``model`` is no module.
    """
    from torch.distributed.tensor import Shard

    check_kind("model", model, nn.Module, "a torch.nn.Module")
    layers = [layer for layer in model.modules() if isinstance(layer, DEXMlp)]
    pools = {parameter for layer in layers for parameter in layer.experts.parameters()}
    return lambda parameter: Shard(1 if parameter in pools else 0)
