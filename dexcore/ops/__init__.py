"""The DEX layer's operations behind torch.autograd: functional, one op a file.

Each takes ``backend="auto" | "triton" | "eager"``. `dexcore.ops.reference` holds the plainest definitions, for
tests alone.
"""

from dexcore.ops import flops  # noqa: F401  what FlopCounterMode knows of the ops
from dexcore.ops.backend import BackendUnavailableError
from dexcore.ops.dex_layer import dex_layer
from dexcore.ops.dex_mlp import dex_mlp
from dexcore.ops.expert_mlp import expert_mlp
from dexcore.ops.group_ema import group_ema_
from dexcore.ops.mix_align import mix_align
from dexcore.ops.routing import expert_load, route

__all__ = [
    "BackendUnavailableError",
    "dex_layer",
    "dex_mlp",
    "expert_load",
    "expert_mlp",
    "group_ema_",
    "mix_align",
    "route",
]
