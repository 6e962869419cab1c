"""FlopCounterMode counts a DEX op as the GEMMs that it makes."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from dexcore.nn import DEXMlp
from dexcore.ops import dex_layer, dex_mlp, expert_mlp, mix_align, route

B, N, D, H, R, K = 3, 5, 8, 12, 4, 2
GEMM = 2 * B * N * D * H  # of the director, or of one choice of each image


def tensors(*wanted, columns=H):
    """x, the experts, gates and indices; gradients for what is named."""
    made = {
        "x": torch.randn(B, N, D),
        "w1": torch.randn(R, columns, D),
        "b1": torch.randn(R, columns),
        "w2": torch.randn(R, D, H),
        "b2": torch.randn(R, D),
        "gates": torch.rand(B, K),
        "indices": torch.randint(R, (B, K)),
    }
    return {name: tensor.requires_grad_() if name in wanted else tensor for name, tensor in made.items()}


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def director(columns=H):
    return {
        "dw1": torch.randn(columns, D),
        "db1": torch.randn(columns),
        "dw2": torch.randn(D, H),
        "db2": torch.randn(D),
    }


def test_a_forward_is_two_gemms_a_choice_and_two_for_the_director():
    assert counted(lambda: expert_mlp(**tensors())) == K * 2 * GEMM
    assert counted(lambda: dex_mlp(**tensors(), **director())) == (K + 1) * 2 * GEMM


def test_arguments_by_name_count_as_those_by_place():
    given, settings = tensors(), {"keep": "nothing", "activation": "gelu", "precision": "ieee", "backend": "eager"}
    settings["compute"] = torch.float32
    x = given.pop("x")
    formula = flop_registry[torch.ops.dexcore.expert_mlp]
    assert formula(x, **given, **settings, out_val=x) == K * 2 * GEMM


@pytest.mark.parametrize(
    ("wanted", "gemms"),
    [
        (("x", "w1", "b1", "w2", "b2", "gates"), 4),
        (("x",), 2),
        (("w1",), 2),
        (("w2",), 1),
        (("b2",), 0),
        (("b1",), 1),
    ],
)
@pytest.mark.parametrize("keep", ["both", "none"])
def test_a_backward_is_the_gemms_of_the_gradients_that_are_wanted(wanted, gemms, keep):
    again = keep == "none" and wanted != ("b2",)  # the hidden layer is computed again
    for forward, arguments in ((expert_mlp, {}), (dex_mlp, director())):
        result = forward(**tensors(*wanted), **arguments, keep=keep)
        outputs = result if isinstance(result, tuple) else (result,)
        loss = sum(output.sum() for output in outputs)
        assert counted(loss.backward) == K * (gemms + again) * GEMM


@pytest.mark.parametrize(("wanted", "gemms"), [(("x", "w1", "w2"), 6), (("w2",), 1), (("x",), 3), (("b1",), 1)])
def test_a_gated_layer_has_a_first_gemm_of_twice_the_size(wanted, gemms):
    gated, target = tensors(*wanted, columns=2 * H), director(2 * H)
    assert counted(lambda: dex_mlp(**gated, **target, activation="swiglu")) == (K + 1) * 3 * GEMM
    y = expert_mlp(**gated, activation="swiglu")
    assert counted(y.sum().backward) == K * gemms * GEMM


def test_routing_is_one_small_gemm_and_two_backward():
    x, weight = torch.randn(B, N, D, requires_grad=True), torch.randn(R, D, requires_grad=True)
    gates = []
    assert counted(lambda: gates.append(route(x, weight, K)[0])) == 2 * B * R * D
    assert counted(gates[0].square().sum().backward) == 2 * 2 * B * R * D


def layer(*wanted):
    """What `dex_layer` is given."""
    given = tensors(*wanted)
    del given["gates"], given["indices"]
    router_weight = torch.randn(R, D, requires_grad="router_weight" in wanted)
    return {**given, **director(), "router_weight": router_weight, "top_k": K}


def test_a_layer_is_its_parts_forward_and_backward():
    made = []
    parts = 2 * B * R * D + (K + 1) * 2 * GEMM
    assert counted(lambda: made.append(dex_layer(**layer("x", "w1", "b1", "w2", "b2", "router_weight")))) == parts
    y, align, balance, *_ = made[0]
    assert counted((y.sum() + align + balance).backward) == 2 * 2 * B * R * D + K * 4 * GEMM
    made = dex_layer(**layer("w1"))
    assert counted(made[0].sum().backward) == K * 2 * GEMM
    made = dex_layer(**layer("x", "w1", "router_weight"))
    assert counted(made[2].backward) == 2 * 2 * B * R * D  # of the balance loss alone


def test_elementwise_work_counts_nothing_as_in_pytorch():
    student = torch.randn(B, N, D, requires_grad=True)
    assert counted(lambda: mix_align(student, torch.randn(B, N, D)).backward()) == 0


def test_a_layer_is_counted_by_its_name():
    model = nn.Sequential(DEXMlp(D, H, num_experts=R, top_k=K))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(B, N, D))
    assert sum(counter.get_flop_counts()["Sequential.0"].values()) == (K + 1) * 2 * GEMM + 2 * B * R * D
