"""The model in shards: FSDP2, block by block, over all processes or within groups of them (HSDP).

A process holds its share of every parameter, gradient and moment in float32, on its device or in host memory, and
gathers a block while it runs. How experts and directors are cut is `dexcore.nn.shard_placement`'s.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from dexcore.engine.checkpoint import Progress, load_checkpoint
from dexcore.engine.config import ConfigError, check_field
from dexcore.engine.ranks import Ranks
from dexcore.models.objective import Objective
from dexcore.nn import shard_placement
from dexcore.nn.mlp import DEXMlp
from dexcore.train.config import ParallelConfig

_FROM_MAIN = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


class Sharded:
    """Holds a share of the model.

    The main rank draws the whole of it once, in its host memory, and sends every process its share.

    Args:
        config: how it is cut.
        build: makes the whole model; given False without the weights of ``model.init``, for its shape.
        device: where it trains.
        ranks: the processes that share every batch.

    Attributes:
        model: its parameters are `DTensor`; a forward gathers them, and is all ranks' together.
        wrapped: the same, to call in training.
        in_shards: whether a process holds a part of the model alone.

    Raises:
        ConfigError: the processes cannot be put into groups so, or a block cannot be cut into so many parts.
    """

    in_shards = True

    def __init__(
        self, config: ParallelConfig, build: Callable[[bool], Objective], device: torch.device, ranks: Ranks
    ) -> None:
        self.ranks, self.device = ranks, device
        self._build = build
        self.replicas = _replicas(config, ranks)
        if config.offload and device.type == "cpu":
            ranks.say("parallel.offload: on the CPU all shards are in host memory already")
        self.model = self._empty()
        check_sizes(self.model, ranks.count // self.replicas)
        shard(self.model, _mesh(device, ranks.count, self.replicas), config.offload)
        self.model.to_empty(device="cpu" if config.offload else device)
        drawn: dict[str, Any] = {}
        ranks.on_main(lambda: drawn.update(build(True).state_dict()))
        set_model_state_dict(self.model, drawn, options=_FROM_MAIN)
        for module in self.model.modules():  # they are in no shard, and a forward reads them
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        self.wrapped: nn.Module = self.model

    def backward_of(self, last: bool) -> AbstractContextManager[None]:
        """The context of a part's forward and backward: each part's gradients are scattered, so that none is held
        whole, and in the ``last`` one's added up over groups."""
        assert isinstance(self.model, FSDPModule)
        if self.replicas > 1:
            self.model.set_requires_all_reduce(last)
        return nullcontext()

    def norm(self, own: Tensor, squares: Tensor) -> Tensor:
        """The norm of the whole gradient, 0-dim, of this process's own and of the sum over all of their squares."""
        return (squares / self.replicas).sqrt()

    def whole(self, main_only: bool = True) -> Objective:
        """A copy in one piece, to be measured or saved; all ranks call it. Where ``main_only``, the others get one
        without numbers."""
        copy = self._empty()
        wanted = self.ranks.main or not main_only
        if wanted:
            copy.to_empty(device=self.device)
        for into, tensor in zip(_tensors(copy), _tensors(self.model), strict=True):
            here = tensor.to(self.device)  # from host memory, where no collective of an accelerator reaches
            numbers = here.full_tensor() if isinstance(here, DTensor) else here
            if wanted:
                into.data.copy_(numbers)
        return copy.train(self.model.training)

    def load(
        self, folder: Path, optimizer: torch.optim.Optimizer, wanted: Callable[[Progress], bool] = lambda _: True
    ) -> Progress | None:
        """`load_checkpoint` into model and optimizer, of every rank its share."""
        return load_checkpoint(folder, self.model, optimizer, self.ranks.say, self.ranks, wanted)

    def _empty(self) -> Objective:
        with torch.device("meta"):
            return self._build(False)


def shard(model: Objective, mesh: DeviceMesh, offload: bool = False) -> None:
    """Cut a model, block by block, in place; what is in no block is gathered for the whole of a step.

    Args:
        model: its parameters on any device, the meta device too.
        mesh: one axis of shards, or one of replicas before it.
        offload: keep shards, their gradients and moments in host memory; the model is still to be put there.
    """
    # Training asks for the loss alone. FSDP2 waits for the gradient of every output, and warns of views among them.
    model.register_forward_hook(lambda model, given, out: out._replace(pred=out.pred.detach()))
    settings: Any = {"mesh": mesh, "shard_placement_fn": shard_placement(model)}
    if offload:
        settings["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu")
    for block in model.blocks():  # gathered one by one; all else is gathered once a step
        fully_shard(block, **settings)
    fully_shard(model, **settings)


def check_sizes(model: Objective, shards: int) -> None:
    """Raise ConfigError, which names the nearest sizes that fit, where experts cannot be cut into ``shards`` parts."""
    for layer in model.modules():
        if not isinstance(layer, DEXMlp):
            continue
        _, hidden, width = layer.experts.fc1.weight.shape
        for name, size in (("model.dim", width), ("model.dim * model.mlp_ratio", hidden)):
            below = size - size % shards
            nearest = " or ".join(str(fits) for fits in (below, below + shards) if fits)
            if size % shards:
                raise ConfigError(
                    f"{name}: expected a multiple of {shards}, the parts into which parallel.kind cuts every expert, "
                    f"got {size} (nearest: {nearest}); or fewer parts in groups: parallel.kind hsdp"
                )


def _replicas(config: ParallelConfig, ranks: Ranks) -> int:
    """How many groups of processes hold a whole model each."""
    if config.kind == "fsdp":
        return 1
    machines = ranks.count // ranks.local_count
    replicas = config.replicas or machines
    expected = f"a number of groups of at least two processes each, from 2 on, of all {ranks.count}"
    if not config.replicas and machines < 2:
        expected += " (0 is one a machine, and there is one machine)"
    fits = replicas >= 2 and ranks.count % replicas == 0 and ranks.count // replicas >= 2
    check_field(fits, "parallel.replicas", expected, config.replicas)
    return replicas


def _mesh(device: torch.device, count: int, replicas: int) -> DeviceMesh:
    if replicas == 1:
        return init_device_mesh(device.type, (count,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (replicas, count // replicas), mesh_dim_names=("replicate", "shard"))


def _tensors(model: nn.Module) -> list[Any]:
    """All parameters and buffers, in an order that the model's making decides."""
    return [*(tensor.detach() for tensor in model.parameters()), *model.buffers()]
