"""Rows in expert order: what tests write into the kernels' operands, and find in their results."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from dexcore.kernels.plan import Plan, make_plan


@st.composite
def routings(draw):
    """Indices [B, k] and the number of experts; experts may be idle, and images none."""
    experts = draw(st.integers(1, 6))
    used = draw(st.lists(st.integers(0, experts - 1), min_size=1, unique=True))
    top_k = draw(st.integers(1, min(4, len(used))))
    batch = draw(st.integers(0, 4))
    rows = [draw(st.permutations(used))[:top_k] for _ in range(batch)]
    return torch.tensor(rows, dtype=torch.int64).view(batch, top_k), experts


def plan_of(indices: Tensor, experts: int, tokens: int, block_m: int) -> Plan:
    return make_plan(indices, experts, tokens, block_m)[0]


def counts_of(indices: Tensor, experts: int) -> list[int]:
    """Every expert's slots."""
    return indices.reshape(-1).bincount(minlength=experts).tolist()


def rows_of(plan: Plan) -> Tensor:
    """[S, N]: the rows of every flat slot's tokens."""
    return plan.first_rows.long()[:, None] + torch.arange(plan.tokens)


def live(plan: Plan) -> int:
    """The rows of tiles that an expert has: the first ones."""
    return int(plan.tile_starts[-1]) * plan.block_m


def pads(plan: Plan) -> Tensor:
    """[rows], whether a row fills up an expert's last tile."""
    filling = torch.arange(plan.rows) < live(plan)
    filling[rows_of(plan).reshape(-1)] = False
    return filling


def in_rows(plan: Plan, of_slots: Tensor, pad: float = 0.0) -> Tensor:
    """[rows, ...]: of_slots [S, N, ...] in expert order, ``pad`` where a tile is filled up, NaN where nobody reads."""
    rows = of_slots.new_full((plan.rows, *of_slots.shape[2:]), float("nan"))
    rows[pads(plan)] = pad
    rows[rows_of(plan)] = of_slots
    return rows


def in_slots(plan: Plan, rows: Tensor) -> Tensor:
    """[S, N, ...]: what the slots' tokens have."""
    return rows[rows_of(plan)]


def whole_tiles(plan: Plan, of_images: Tensor) -> Tensor:
    """[whole tiles of B*N, ...]: of_images [B*N, ...], and zeros."""
    padded = of_images.new_zeros((-(-len(of_images) // plan.block_m) * plan.block_m, *of_images.shape[1:]))
    padded[: len(of_images)] = of_images
    return padded
