"""The experts by Triton kernels: a fixed sequence of launches, without a word from the host in between.

The gates are applied to the hidden layer, in the up-projection's epilogue; what is kept of it is gate * act(z).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dexcore.kernels.bias_gradients import gate_and_bias_gradients
from dexcore.kernels.configs import LayerConfig, architecture_of, layer_config, multiprocessors_of
from dexcore.kernels.expert_dact import expert_dact
from dexcore.kernels.expert_down import expert_down, expert_dx
from dexcore.kernels.expert_order import Input, gradient_rows, input_rows
from dexcore.kernels.expert_up import expert_up
from dexcore.kernels.expert_wgrad import Product, expert_wgrad
from dexcore.kernels.launch import forked, is_compiling
from dexcore.kernels.mix_align import mix_align_forward, sum_slots
from dexcore.kernels.plan import Plan, PlanShape, make_plan
from dexcore.kernels.route import Balance
from dexcore.ops.copies import half_copies
from dexcore.ops.expert_types import (
    Director,
    ExpertArguments,
    Gradients,
    Kept,
    Needs,
    Settings,
    ThroughRouter,
    empty_gradients,
    empty_kept,
)
from dexcore.ops.mix_align import KERNEL_CONSTANTS


def forward(given: ExpertArguments, keep: str, settings: Settings) -> tuple[Tensor, Kept]:
    """y [B, N, D], and what the backward needs."""
    o, kept, plan, _ = _experts(given, None, keep, settings)
    return sum_slots(o, plan, settings.compute).view(given.x.shape), kept


def forward_align(
    given: ExpertArguments,
    director: Director,
    keep: str,
    align: str,
    settings: Settings,
    balance: Balance | None = None,
) -> tuple[Tensor, Tensor, Kept, Tensor]:
    """`forward` with the director in the same launches: y, the sum of the rows' alignment losses, what the backward
    needs, and the losses' gradients [B, N, D] (empty where no backward follows).

    ``balance`` is filled where the router chose the indices just before; they need no check then.
    """
    o, kept, plan, teacher = _experts(given, director, keep, settings, balance)
    assert teacher is not None
    y, losses, gradient = mix_align_forward(
        o, plan, teacher, align, with_gradient=keep != "nothing", **KERNEL_CONSTANTS
    )
    return y.view(given.x.shape), losses.sum(), kept, gradient.view(-1, *given.x.shape[1:])


def _experts(
    given: ExpertArguments,
    director: Director | None,
    keep: str,
    settings: Settings,
    balance: Balance | None = None,
) -> tuple[Tensor, Kept, Plan, Tensor | None]:
    """Every slot's output in expert order, what the backward needs, the plan, and the director's output."""
    config, precision = _tiles(given, settings)
    _, hidden, width = given.w1.shape
    check_sizes(given.indices.numel(), given.x.shape[1], hidden, width)
    plan, tables = make_plan(given.indices.contiguous(), len(given.w1), given.x.shape[1], config.up.block_m, balance)
    if balance is None:
        _check_indices(plan)
    # All at once, so that those without a copy are cast by one launch.
    w1, w2, *of_director = _weights(
        settings, given.w1, given.w2, *(() if director is None else (director.dw1, director.dw2))
    )
    gates = given.gates.contiguous()
    x = input_rows(given.x.contiguous(), gates, plan, settings.compute, by_image=director is not None)
    z, a, director_a = expert_up(
        x,
        w1,
        _contiguous(given.b1),
        plan,
        settings.activation,
        precision,
        config.up,
        keep_z=keep in ("both", "z"),
        director=None if director is None else (of_director[0], _contiguous(director.db1)),
    )
    o, teacher = expert_down(
        a,
        w2,
        _contiguous(given.b2),
        x.gates,
        plan,
        precision,
        config.down,
        director=None if director is None else (director_a, of_director[1], _contiguous(director.db2)),
    )
    kept = empty_kept(given, "nothing", settings)
    if keep != "nothing":
        kept = kept._replace(z=z, a=a if keep == "both" else kept.a, x_rows=x.rows, gate_rows=x.gates, plan=tables)
    return o, kept, plan, teacher


class AlignGradient(NamedTuple):
    """What the alignment loss adds to y's gradient: grad_loss / (B N) times ``rows``."""

    grad_loss: Tensor  # 0-dim
    rows: Tensor  # [B, N, D], of the sum of the rows' losses

    @classmethod
    def of(cls, grad_loss: Tensor | None, rows: Tensor) -> "AlignGradient | None":
        """None where the loss has no gradient, as eager autograd tells: 0 times what is not finite would be NaN."""
        return None if grad_loss is None else cls(grad_loss, rows)


def backward(
    grad_y: Tensor | None,
    given: ExpertArguments,
    kept: Kept,
    needs: Needs,
    settings: Settings,
    x_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    align: AlignGradient | None = None,
    router: ThroughRouter | None = None,
) -> Gradients:
    """The gradients that are asked for; of ``given.x`` nothing is read. One of ``grad_y`` and ``align`` may be None."""
    config, precision = _tiles(given, settings)
    shape = (given.gates.shape[0], *given.x.shape[1:])
    plan = plan_shape(given, settings, shape[:2]).view(kept.plan)
    w1, w2 = _weights(settings, given.w1, given.w2)
    activation, x_rows, gate_rows = settings.activation, kept.x_rows, kept.gate_rows
    loss = {}
    if align is not None:
        loss = {"grad_loss": align.grad_loss.float(), "gradient": align.rows.contiguous()}
    dy, token_sums = gradient_rows(_contiguous(grad_y), plan, settings.compute, **loss)
    a, dz, gate_parts = kept.a, None, None
    make_a = needs.w2 and not a.numel()
    if needs.z or needs.gates or make_a:
        z = kept.z
        if not z.numel():
            x = Input(x_rows, gate_rows, None)
            z, _, _ = expert_up(
                x, w1, _contiguous(given.b1), plan, activation, precision, config.up, keep_z=True, keep_a=False
            )
        dz, made_a, gate_parts = expert_dact(
            dy, w2, z, gate_rows, plan, activation, precision, config.dact, keep_a=make_a
        )
        del z  # made again it is large, and room for what follows
        a = made_a if make_a else a
    grads = empty_gradients(given, Needs(), x_dtype, weight_dtype)
    if needs.gates or needs.b2:
        grad_gates, grad_b2 = gate_and_bias_gradients(
            gate_parts if needs.gates else None,
            token_sums,
            _contiguous(given.b2),
            given.gates.contiguous(),
            plan,
            weight_dtype if needs.b2 else None,
        )
        grads = grads._replace(gates=_or(grad_gates, grads.gates), b2=_or(grad_b2, grads.b2))
    through = () if router is None else (router.feature_gradient(grads.gates), router.pool)
    # The weights' gradients fill what the tail of the input's leaves idle, and the other way round. In there nothing is
    # let go: dx is read until the end.
    of_weights = needs.w1 or needs.w2 or needs.b1
    with forked(dy.device, needs.x and of_weights) as beside:
        if needs.x:
            dx = expert_dx(dz, w1, plan, precision, config.dx)
            grads = grads._replace(x=sum_slots(dx, plan, x_dtype, *through).view(shape))
        if of_weights:
            with beside:
                dw1, dw2, db1 = expert_wgrad(
                    Product(dz, x_rows) if needs.w1 or needs.b1 else None,
                    Product(dy, a) if needs.w2 else None,
                    plan,
                    weight_dtype,
                    precision,
                    config.wgrad,
                    multiprocessors_of(dy.device),
                    bias=needs.b1,
                )
            grads = grads._replace(
                w1=_or(dw1 if needs.w1 else None, grads.w1), w2=_or(dw2, grads.w2), b1=_or(db1, grads.b1)
            )
    return grads


def _or(found: Tensor | None, empty: Tensor) -> Tensor:
    return empty if found is None else found


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _weights(settings: Settings, *weights: Tensor) -> list[Tensor]:
    """The weights in the GEMMs' dtype, which begin at a multiple of 16 bytes."""
    made = [weight.contiguous() for weight in half_copies(weights, settings.compute) if weight is not None]
    return [weight.clone() if weight.data_ptr() % 16 else weight for weight in made]


def _tiles(given: ExpertArguments, settings: Settings) -> tuple[LayerConfig, str]:
    """The kernels' tiles, and the precision that the device has."""
    architecture = architecture_of(given.w1.device)
    _, width, hidden = given.w2.shape
    precision = settings.precision
    if precision == "tf32x3" and architecture.startswith("gfx"):  # AMD's compiler knows none
        precision = "ieee"
    # torch.compile may not know a size: here it has to.
    return layer_config(architecture, int(width), int(hidden), settings.compute, precision), precision


def plan_shape(given: ExpertArguments, settings: Settings, images: tuple[int, ...] | None = None) -> PlanShape:
    """Of the layer's plan; ``images`` are B and N, x's if not given."""
    batch, tokens = images or given.x.shape[:2]
    config, _ = _tiles(given, settings)
    return PlanShape(batch, given.indices.shape[1], len(given.w1), tokens, config.up.block_m)


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
