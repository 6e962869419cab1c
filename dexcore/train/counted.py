"""A model counted before it is built: parameters, FLOPs, and what a step keeps for its backward."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple, get_args

import torch
from torch._subclasses import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dexcore.models import MaskedAutoencoder
from dexcore.models.checkpointing import checkpointed
from dexcore.nn import DEXMlp
from dexcore.train.build import build_model
from dexcore.train.config import Checkpointing, ModelConfig
from dexcore.train.run.comparison import cost

TILE = 128  # rows of a tile by the rule of the Triton kernels, in half precision, D and H multiples of 16


class Counted(NamedTuple):
    """A model, counted on the meta device.

    Attributes:
        parameters: all numbers, of directors and positions too.
        trained: those that have a gradient.
        experts: those of all pools.
        units: parameters of what FSDP gathers at once, a number a block, the last the rest of the model's.
        trained_units: those of each unit that have a gradient.
        copied_units: those of each unit that its DEX layers copy to half precision, weights of experts and directors.
        flops: of a training step, an image.
        kept: bytes that a step keeps for its backward, an image, in bf16, with Triton's DEX layers; by what blocks run
            again.
        filled: bytes of the rows that fill the experts' last tiles, the most that they can be, whatever the images, in
            tiles of `TILE` rows: the rule's for aligned layers; a tuned table may have others.
    """

    parameters: int
    trained: int
    experts: int
    units: tuple[int, ...]
    trained_units: tuple[int, ...]
    copied_units: tuple[int, ...]
    flops: int
    kept: Mapping[Checkpointing, int]
    filled: Mapping[Checkpointing, int]


def count(config: ModelConfig) -> Counted:
    """Count a model of DEX layers or a twin; no memory is taken for it."""
    model = _empty(config)
    blocks = model.blocks()
    units = [sum(p.numel() for p in block.parameters()) for block in blocks]
    trained = [sum(p.numel() for p in block.parameters() if p.requires_grad) for block in blocks]
    everything = list(model.parameters())
    total, learned = sum(p.numel() for p in everything), sum(p.numel() for p in everything if p.requires_grad)
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    return Counted(
        total,
        learned,
        experts,
        (*units, total - sum(units)),
        (*trained, learned - sum(trained)),
        (*map(_copied, blocks), 0),
        cost(replace(config, init="")).training_flops,
        {how: kept_for_backward(replace(config, grad_checkpointing=how)) for how in get_args(Checkpointing)},
        {how: _filled(model, how) for how in get_args(Checkpointing)},
    )


def _copied(block: torch.nn.Module) -> int:
    pools = [part for layer in block.modules() if isinstance(layer, DEXMlp) for part in (layer.experts, layer.director)]
    return sum(p.numel() for part in pools for name, p in part.named_parameters() if name.endswith("weight"))


@cache
def kept_for_backward(config: ModelConfig, on_gpu: bool = True) -> int:
    """Bytes that an image's step in bf16 autocast keeps for its backward: of two images, less those of one.

    Of blocks that are run again one at a time has what it keeps without, and the largest such excess is added.

    Args:
        on_gpu: with the DEX layers of Triton's kernels, less the rows that fill tiles; else with the eager ones.
    """
    one, two = (_kept_of(config, images, on_gpu) for images in (1, 2))
    return two - one


def _kept_of(config: ModelConfig, images: int, on_gpu: bool) -> int:
    model = _empty(config).train()
    how = config.grad_checkpointing

    def beyond(block: torch.nn.Module, tokens: int, how: Checkpointing) -> int:
        return images * _beyond_eager(block, tokens, how) if on_gpu else 0

    # Unlike the meta device this takes the fused attention.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        model.to_empty(device="cpu")
        weights = list(model.parameters())
        image = torch.empty(images, config.in_chans, config.image_size, config.image_size)
        noise = torch.empty(images, model.num_patches)
        kept = _kept(lambda: model(image, noise=noise, hidden_only=True).loss, image, noise, *weights)
        encoder, decoder = (model.num_visible + 1, config.dim), (model.num_patches + 1, config.decoder_dim)
        kept += sum(beyond(block, encoder[0], how) for block in model.encoder.blocks)
        kept += sum(beyond(block, decoder[0], how) for block in model.decoder_blocks)
        if how != "none":
            excess = []
            for block, (tokens, width) in ((model.encoder.blocks[0], encoder), (model.decoder_blocks[0], decoder)):
                x = torch.empty(images, tokens, width, requires_grad=True)
                again = _kept(partial(checkpointed, [block], x, how == "selective"), x, *weights)
                once = _kept(partial(block, x), x, *weights)
                excess.append(once + beyond(block, tokens, "none") - again - beyond(block, tokens, how))
            kept += max(excess)
    return kept


def _beyond_eager(block: torch.nn.Module, tokens: int, how: Checkpointing) -> int:
    """Bytes that a block's DEX layer keeps by Triton, an image, beyond what the eager one does, which is counted.

    x's rows in expert order take the place of the eager layer's output, and of x where that is not computed again;
    gates and the plan come on top.
    """
    layer = getattr(block, "mlp", None)
    if not isinstance(layer, DEXMlp) or how == "block":
        return 0
    rows, width = layer.top_k * tokens, layer.router.weight.shape[1]
    x = 2 * tokens * width if how == "none" else 0
    return 4 * rows + 4 * (2 * layer.top_k + rows // TILE) - x


def _filled(model: MaskedAutoencoder, how: Checkpointing) -> int:
    layers = [module for module in model.modules() if isinstance(module, DEXMlp)]
    bytes_of = [layer.num_experts * TILE * _bytes_of_a_row(layer) for layer in layers]
    return max(bytes_of, default=0) if how == "block" else sum(bytes_of)


def _bytes_of_a_row(layer: DEXMlp) -> int:
    """Of expert order, that a layer keeps: of z, w a, x and the gates."""
    _, width, hidden = layer.experts.fc2.weight.shape
    columns = layer.experts.fc1.weight.shape[1]
    wide = {"both": columns + hidden, "z": columns, "none": 0}[layer.keep]
    return 2 * (wide + width) + 4


def _empty(config: ModelConfig) -> MaskedAutoencoder:
    with torch.device("meta"):
        model = build_model(replace(config, init=""))
    assert isinstance(model, MaskedAutoencoder)
    return model


def _kept(run: Callable[[], object], *given: torch.Tensor) -> int:
    """Bytes of what ``run`` made and what lives as long as its result, each storage once; without what was given."""
    before = {tensor.untyped_storage()._cdata for tensor in given}
    with _Storages() as made:
        result = run()
    kept = sum(size for name, (size, it) in made.found.items() if name not in before and not it.expired())
    del result
    return kept


class _Storages(TorchDispatchMode):
    """The storages of all tensors that ops return, held weakly: name -> bytes and storage."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[int, StorageWeakRef]] = {}

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.found.setdefault(storage._cdata, (storage.nbytes(), StorageWeakRef(storage)))
        return out
