"""One forward of a frozen model: the features of a batch, in any mode, and the model left as it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dexcore.checks import check_kind
from dexcore.evaluate.embedding.table import FeaturesError
from dexcore.models.objective import Objective
from dexcore.models.precision import autocast
from dexcore.nn.mlp import MODES, DEXMlp

DENSE = ""  # the one mode of a model without DEX layers


class Features(NamedTuple):
    """What a model makes of a batch of B images; a callable of the user's gives one.

    Attributes:
        mean: of the patch tokens [B, D]; None: it is taken of ``tokens``.
        cls: the class token [B, D].
        tokens: of the patches [B, P, D], row after row of them.
        grid: their rows and columns; None: a square.
        gates: of the experts [B, L, R], 0 for those that were not chosen.
    """

    mean: Tensor | None = None
    cls: Tensor | None = None
    tokens: Tensor | None = None
    grid: tuple[int, int] | None = None
    gates: Tensor | None = None


Model = nn.Module | Callable[[Tensor], Features]


def encoder_of(model: Model) -> Model:
    """What sees images: of an autoencoder its encoder."""
    return model.encoder if isinstance(model, Objective) else model


def layers_of(model: Model) -> list[DEXMlp]:
    """The DEX layers by depth; [] of a model without."""
    return [part for part in model.modules() if isinstance(part, DEXMlp)] if isinstance(model, nn.Module) else []


def modes_of(model: Model) -> tuple[str, ...]:
    """The modes that a model has."""
    return MODES if layers_of(model) else (DENSE,)


def mode_now(model: Model) -> str:
    """The mode that a model is in: that of its layers, "experts" where they are in several."""
    modes = {layer.mode for layer in layers_of(model)}
    return DENSE if not modes else modes.pop() if len(modes) == 1 else "experts"


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """The model in evaluation and without gradient; afterwards its modes and flags are as they were."""
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            training = [(part, part.training) for part in model.modules()]
            learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
            modes = [(layer, layer.mode) for layer in layers_of(model)]
            stack.callback(_restore, training, learns, modes)
            model.eval()
        stack.enter_context(torch.no_grad())
        yield


def _restore(
    training: list[tuple[nn.Module, bool]],
    learns: list[tuple[nn.Parameter, bool]],
    modes: list[tuple[DEXMlp, str]],
) -> None:
    for layer, mode in modes:
        layer.set_mode(mode)
    for parameter, before in learns:
        parameter.requires_grad_(before)
    for part, before in training:
        part.training = before


def encode(model: Model, images: Tensor, mode: str, precision: str) -> Features:
    """The features of normalized images [B, C, H, W], on the model's device, in float32; inside `frozen`.

    Raises:
        FeaturesError: the model gives something else than features.
    """
    layers = layers_of(model)
    for layer in layers:
        if layer.mode != mode:
            layer.set_mode(mode)
    with autocast(images.device, precision):
        found = _forward(model, images)
    given = found._replace(gates=gates_of(layers)) if layers and mode == "experts" else found
    return _completed(given, len(images))


def _forward(model: Any, images: Tensor) -> Features:
    if not hasattr(model, "forward_features"):
        given = model(images)
        check_kind("what the model gives", given, Features, "Features")
        return given
    tokens = model.forward_features(images)
    if not isinstance(tokens, Tensor) or tokens.ndim not in (3, 4):
        found = list(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise FeaturesError(f"forward_features of {type(model).__name__} gives {found}, expected [B, N, D] or a map")
    if tokens.ndim == 4:
        channels_last = tokens.shape[1] != model.num_features
        if channels_last and tokens.shape[3] != model.num_features:
            raise FeaturesError(
                f"forward_features gives {list(tokens.shape)}, no axis has {model.num_features} features"
            )
        tokens = tokens if channels_last else tokens.permute(0, 2, 3, 1)
        return Features(tokens=tokens.flatten(1, 2), grid=(tokens.shape[1], tokens.shape[2]))
    prefix = getattr(model, "num_prefix_tokens", 0)
    norm = getattr(model, "fc_norm", None) or nn.Identity()  # after pooling, where timm's model has one
    patches = tokens[:, prefix:]
    cls = norm(tokens[:, 0]) if getattr(model, "cls_token", None) is not None else None
    return Features(norm(patches.float().mean(1)), cls, patches, _grid(model, images, patches.shape[1]))


def _grid(model: Any, images: Tensor, patches: int) -> tuple[int, int] | None:
    """Rows and columns of the patches; None where the model does not say."""
    embed: Any = getattr(model, "patch_embed", None)
    size = tuple(images.shape[2:])
    grid = embed.dynamic_feat_size(size) if hasattr(embed, "dynamic_feat_size") else getattr(embed, "grid_size", None)
    return (int(grid[0]), int(grid[1])) if grid is not None and grid[0] * grid[1] == patches else None


def gates_of(layers: Sequence[DEXMlp]) -> Tensor:
    """The last forward's gates [B, L, R], float32; 0 for experts that were not chosen, and where a layer has fewer."""
    experts, made = max(layer.num_experts for layer in layers), []
    for layer in layers:
        assert layer.routing is not None
        gates, indices = layer.routing.gates.float(), layer.routing.indices
        made.append(gates.new_zeros(len(gates), experts).scatter_(1, indices.long(), gates))
    return torch.stack(made, 1)


def _completed(given: Features, images: int) -> Features:
    """With the mean and the grid, in float32, of the right number of images."""
    mean, grid = given.mean, given.grid
    if mean is None and given.tokens is not None:
        mean = given.tokens.float().mean(1)
    if mean is None:
        raise FeaturesError("the model gives neither mean nor tokens of its images: expected one of them")
    if given.tokens is not None and grid is None:
        side = round(given.tokens.shape[1] ** 0.5)
        grid = (side, side) if side * side == given.tokens.shape[1] else None
    made = given._replace(mean=mean, grid=grid)
    for name in ("mean", "cls", "tokens", "gates"):
        values, axes = getattr(made, name), 2 if name in ("mean", "cls") else 3
        if values is not None and (values.ndim != axes or len(values) != images):
            raise FeaturesError(
                f"the model gives {name} of shape {list(values.shape)}, expected {images} of {axes} axes"
            )
    return made._replace(
        **{
            name: None if (values := getattr(made, name)) is None else values.float()
            for name in ("mean", "cls", "gates")
        }
    )
