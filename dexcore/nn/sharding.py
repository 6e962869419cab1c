"""How PyTorch's FSDP2 cuts DEX layers into shards."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from dexcore.checks import check_kind
from dexcore.nn.dense_mlp import has_rows_of_experts
from dexcore.nn.mlp import DEXMlp

if TYPE_CHECKING:
    from torch.distributed.tensor import Shard


def shard_placement(model: nn.Module) -> "Callable[[nn.Parameter], Shard]":
    """What `torch.distributed.fsdp.fully_shard` takes as ``shard_placement_fn`` for a model with DEX layers.

    Experts ([R, H, D] and their biases [R, H]) are cut on their second axis, all else on its first, directors [H, D]
    too: a process holds the same rows of both, and `update_directors` moves nothing between processes. Cut on their
    first axis, R experts would leave all but R processes without any. H and D have to be multiples of the number of
    shards. A SwiGLU is cut where the director is timm's ``SwiGLUPacked``, which has the rows of its experts: 2 H has to
    be a multiple then.

    Args:
        model: not sharded yet; it may hold no DEX layer.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: a director has other rows than its experts (timm's ``SwiGLU``, or ``GluMlp`` with the gate last).
    """
    from torch.distributed.tensor import Shard

    check_kind("model", model, nn.Module, "a torch.nn.Module")
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, DEXMlp)}
    for name, layer in layers.items():
        if not has_rows_of_experts(layer.director):
            raise ValueError(
                f"{name}: a {type(layer.director).__name__} director has gate and value apart, or in another order "
                "than its experts, so that no process would hold the same rows of both; use DDP, or SwiGLUPacked"
            )
    pools = {parameter for layer in layers.values() for parameter in layer.experts.parameters()}
    return lambda parameter: Shard(1 if parameter in pools else 0)
