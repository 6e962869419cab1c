"""What one layer's training step asks of a GPU: our launches, and PyTorch's kernels on more than B R elements.

Counted under the interpreter, where the launches and the ATen calls are those of a GPU.
"""

import sys
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from dexcore.kernels import cast, tables
from dexcore.nn import DEXMlp, set_noise_std

pytestmark = pytest.mark.usefixtures("no_shards")
B, N, D, H, R = 3, 7, 32, 64, 4  # D and H of whole steps, so that operands have descriptors
_ROOM = {"detach_", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}  # no kernel


class Calls(TorchDispatchMode):
    """The ATen calls that read or write more than ``limit`` elements of one tensor, those inside dexcore's ops too."""

    def __init__(self, limit):
        super().__init__()
        self.limit, self.names = limit, []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if op.namespace == "dexcore":
            with self:
                return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)
        results = op(*args, **kwargs)
        tensors = [leaf for leaf in torch.utils._pytree.tree_leaves((args, kwargs, results)) if torch.is_tensor(leaf)]
        name = op._schema.name.removeprefix("aten::")
        if not op.is_view and name not in _ROOM and max((t.numel() for t in tensors), default=0) > self.limit:
            names = [name]
            self.names += names
        return results


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels launched, in order."""
    names = []

    def wrapped(launch):
        def note(kernel, grid, *arguments, **settings):
            if 0 not in grid:
                names.append(kernel.fn.__name__)
            with _disable_current_modes():  # the interpreter calls ATen too
                launch(kernel, grid, *arguments, **settings)

        return note

    layer_step(False)  # imports all that is launched
    for name, module in list(sys.modules.items()):
        if name.startswith("dexcore.kernels.") and hasattr(module, "launch"):
            monkeypatch.setattr(module, "launch", wrapped(module.launch))
    return names


def layer_step(autocast, keep="both", pool="cls", noise=0.0, only=None):
    """A training step of a layer; gradients reach x and all parameters, or those of ``only``, and both losses count."""
    layer = DEXMlp(D, H, num_experts=R, top_k=2, keep=keep, pool=pool, backend="triton").train()
    if only is not None:
        layer.requires_grad_(False)
        layer.get_submodule(only).requires_grad_(True)
    set_noise_std(layer, noise)
    x = torch.randn(B, N, D, requires_grad=only is None)
    dy = torch.randn(B, N, D)
    one = torch.ones(())
    calls = Calls(B * R)
    with calls, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
        losses = layer.routing.align_loss, layer.routing.balance_loss
    dy = dy.to(y.dtype)
    with calls:
        wanted = [(y, dy), *((loss, one) for loss in losses if loss.requires_grad)]
        torch.autograd.backward(*map(list, zip(*wanted, strict=True)))
    return calls.names


FORWARD = ["_route_forward_kernel", "_plan_kernel", "_expert_order_kernel", "_expert_up_kernel", "_grouped_rows_kernel"]
BACKWARD = [
    "_expert_order_kernel",
    "_expert_dact_kernel",
    "_gate_and_bias_kernel",
    "_route_backward_kernel",
    "_grouped_rows_kernel",
    "_sum_slots_kernel",
    "_expert_wgrad_kernel",
]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_a_layers_step_is_few_launches_and_nothing_large_of_pytorchs(launched, autocast, pool):
    large = layer_step(autocast, pool=pool, noise=1.0)
    extra = ["_cast_all_kernel"] * autocast + ["_token_mean_kernel"] * (pool == "mean")
    assert Counter(launched) == Counter([*FORWARD, "_align_kernel", *BACKWARD, *extra])
    assert len(launched) <= 14 + (pool == "mean")
    assert not large


def test_a_captured_step_casts_each_weight_once(launched, monkeypatch):
    monkeypatch.setattr(tables, "is_capturing", lambda device: True)
    monkeypatch.setattr(cast, "is_known", lambda *_: False)  # a graph's memory is elsewhere
    large = layer_step(True)
    assert large == ["_to_copy"] * 4, "the director's and the experts'; the backward has the forward's"
    assert Counter(launched) == Counter([*FORWARD, "_align_kernel", *BACKWARD])


@pytest.mark.parametrize(("keep", "made_again"), [("both", []), ("z", ["_expert_dact_kernel"])])
def test_the_second_layers_gradients_alone_go_through_no_activation(launched, keep, made_again):
    layer_step(False, keep=keep, only="experts.fc2")
    backward = ["_expert_order_kernel", "_gate_and_bias_kernel", "_expert_wgrad_kernel", *made_again]
    assert Counter(launched) == Counter([*FORWARD, "_align_kernel", *backward])


def test_without_z_it_is_made_again_by_one_more(launched):
    layer_step(False, keep="none")
    assert len(launched) == 14
