"""DEX layers for any timm-like model, and what trains them."""

from dexcore.nn.attention import XFormersAttention
from dexcore.nn.aux_losses import AuxLosses, aux_losses
from dexcore.nn.block import DEXBlock
from dexcore.nn.control import set_aux, set_expert_mask, set_mode, set_noise_std, set_router_noise
from dexcore.nn.directors import LeftOut, discard_load, left_out, record_load, share_load, update_directors
from dexcore.nn.fast_layers import fast_layers
from dexcore.nn.mlp import DEXMlp
from dexcore.nn.param_groups import param_groups
from dexcore.nn.records import Routing
from dexcore.nn.routes import route_by_rule, rule_of, set_routes, set_rule
from dexcore.nn.rules import RoutingRule
from dexcore.nn.sharding import shard_placement
from dexcore.nn.upcycle import collapse, upcycle

__all__ = [
    "AuxLosses",
    "DEXBlock",
    "DEXMlp",
    "LeftOut",
    "Routing",
    "RoutingRule",
    "XFormersAttention",
    "aux_losses",
    "collapse",
    "discard_load",
    "fast_layers",
    "left_out",
    "param_groups",
    "record_load",
    "route_by_rule",
    "rule_of",
    "set_aux",
    "set_expert_mask",
    "set_mode",
    "set_noise_std",
    "set_router_noise",
    "set_routes",
    "set_rule",
    "shard_placement",
    "share_load",
    "upcycle",
    "update_directors",
]
