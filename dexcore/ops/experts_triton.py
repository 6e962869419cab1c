"""The experts by Triton kernels: a fixed sequence of launches, without a word from the host in between.

The gates are applied to the hidden layer, in the up-projection's epilogue; what is kept of it is gate * act(z).
"""

import torch
from torch import Tensor

from dexcore.kernels.bias_gradients import bias1_gradient, bias2_gradient, gate_gradient, token_sums
from dexcore.kernels.configs import LayerConfig, architecture_of, layer_config
from dexcore.kernels.expert_dact import expert_dact
from dexcore.kernels.expert_down import expert_down, expert_dx
from dexcore.kernels.expert_up import expert_up
from dexcore.kernels.expert_wgrad import expert_wgrad
from dexcore.kernels.launch import is_compiling
from dexcore.kernels.mix_align import mix_align_forward, sum_slots
from dexcore.kernels.plan import Plan, make_plan
from dexcore.ops.expert_types import (
    Director,
    ExpertArguments,
    Gradients,
    Kept,
    Needs,
    Settings,
    empty_gradients,
    empty_kept,
)
from dexcore.ops.mix_align import KERNEL_CONSTANTS


def forward(given: ExpertArguments, keep: str, settings: Settings) -> tuple[Tensor, Kept]:
    """y [B, N, D], and what the backward needs."""
    given, config, plan, precision = _prepare(given, settings)
    z, a, _ = expert_up(
        given.x,
        given.w1,
        given.b1,
        given.gates,
        plan,
        settings.activation,
        precision,
        config.up,
        keep_z=keep in ("both", "z"),
    )
    o, _ = expert_down(a, given.w2, given.b2, given.gates, plan, precision, config.down)
    y = sum_slots(o, plan, given.x.dtype).view(given.x.shape)
    return y, _kept(given, keep, settings, z, a)


def forward_align(
    given: ExpertArguments, director: Director, keep: str, align: str, settings: Settings
) -> tuple[Tensor, Tensor, Kept, Tensor]:
    """`forward` with the director in the same launches: y, the sum of the rows' alignment losses, what the backward
    needs, and the losses' gradients [B, N, D] (empty where no backward follows).
    """
    given, config, plan, precision = _prepare(given, settings)
    dw1, db1, dw2, db2 = (None if t is None else t.contiguous() for t in director)
    z, a, director_a = expert_up(
        given.x,
        given.w1,
        given.b1,
        given.gates,
        plan,
        settings.activation,
        precision,
        config.up,
        keep_z=keep in ("both", "z"),
        director=(dw1, db1),
    )
    o, teacher = expert_down(
        a, given.w2, given.b2, given.gates, plan, precision, config.down, director=(director_a, dw2, db2)
    )
    y, losses, gradient = mix_align_forward(
        o, plan, teacher, align, with_gradient=keep != "nothing", **KERNEL_CONSTANTS
    )
    kept = _kept(given, keep, settings, z, a)
    return y.view(given.x.shape), losses.sum(), kept, gradient.view(-1, *given.x.shape[1:])


def backward(
    grad_y: Tensor,
    given: ExpertArguments,
    kept: Kept,
    needs: Needs,
    settings: Settings,
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype,
) -> Gradients:
    """The gradients that are asked for."""
    given, config, plan, precision = _prepare(given, settings)
    activation = settings.activation
    x, w1, b1, w2, b2, gates, _ = given
    dy, (z, a, _) = grad_y.contiguous(), kept
    if not z.numel():
        z, _, _ = expert_up(x, w1, b1, gates, plan, activation, precision, config.up, keep_z=True, keep_a=False)
    dz, made_a, bias_parts, gate_parts = expert_dact(
        dy, w2, z, gates, plan, activation, precision, config.dact, keep_a=needs.w2 and not a.numel()
    )
    sums = token_sums(dy) if needs.b2 or (needs.gates and b2 is not None) else None
    # From here on what is no longer needed goes before more is made: w * a, and dx of all slots, are large.
    del z
    grads = empty_gradients(given, Needs(), x_dtype, weight_dtype)
    if needs.w2:
        dw2 = expert_wgrad(
            dy,
            a if a.numel() else made_a,
            plan,
            weight_dtype,
            precision,
            config.wgrad2,
            left_by_image=True,
            right_by_image=False,
        )
        grads = grads._replace(w2=dw2)
    del a, made_a
    if needs.x:
        dx = expert_dx(dz, w1, plan, precision, config.dx)
        grads = grads._replace(x=sum_slots(dx, plan, x_dtype).view(x.shape))
        del dx
    if needs.w1:
        dw1 = expert_wgrad(
            dz, x, plan, weight_dtype, precision, config.wgrad1, left_by_image=False, right_by_image=True
        )
        grads = grads._replace(w1=dw1)
    if needs.b1:
        grads = grads._replace(b1=bias1_gradient(bias_parts, plan, weight_dtype))
    if needs.b2:
        grads = grads._replace(b2=bias2_gradient(sums, gates, plan, weight_dtype))
    if needs.gates:
        grads = grads._replace(gates=gate_gradient(gate_parts, sums, b2, plan))
    return grads


def _prepare(given: ExpertArguments, settings: Settings) -> tuple[ExpertArguments, LayerConfig, Plan, str]:
    """Contiguous arguments, the kernels' tiles, the plan, and the precision that the device has."""
    given = ExpertArguments(*(None if t is None else t.contiguous() for t in given))  # type: ignore[arg-type]
    experts, hidden, width = given.w1.shape
    check_sizes(given.indices.numel(), given.x.shape[1], hidden, width)
    architecture = architecture_of(given.x.device)
    config = layer_config(architecture, width, hidden, given.x.dtype)
    plan = make_plan(given.indices, experts, given.x.shape[1], config.up.block_m)
    _check_indices(plan)
    # AMD's compiler knows no tf32x3.
    precision = settings.precision
    if precision == "tf32x3" and architecture.startswith("gfx"):
        precision = "ieee"
    return given, config, plan, precision


def check_sizes(slots: int, tokens: int, hidden: int, width: int) -> None:
    """Raise ValueError where the kernels' 32-bit row and weight numbers would not do; their offsets are 64-bit."""
    for name, size in (
        ("rows of all experts, images * top_k * tokens", slots * tokens),
        ("weights of one expert's layer, hidden * width", hidden * width),
    ):
        if size >= 2**31:
            raise ValueError(f"the Triton kernels take fewer than 2**31 {name}, got {size}; split the batch")


def _check_indices(plan: Plan) -> None:
    """On a GPU the device itself raises, when it comes to it: the host does not wait."""
    message = f"indices must lie in 0..{plan.num_experts - 1} (w1 holds {plan.num_experts} experts)"
    if is_compiling():
        return
    if plan.valid.is_cpu:
        if not plan.valid.item():
            raise IndexError(message)
    else:
        torch._assert_async(plan.valid, message)


def _kept(given: ExpertArguments, keep: str, settings: Settings, z: Tensor, a: Tensor) -> Kept:
    kept = empty_kept(given, "nothing", settings)
    return kept._replace(z=z if keep in ("both", "z") else kept.z, a=a if keep == "both" else kept.a)
