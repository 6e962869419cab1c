"""Small models and images whose features are asked for, and a count of the forwards."""

from typing import Any, ClassVar

import numpy as np
import torch
from made_tasks import picture
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from dexcore.models import DEXVisionTransformer

HALF = (0.5,) * 3


def dex(seed: int = 0, **keys) -> DEXVisionTransformer:
    torch.manual_seed(seed)
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    model = DEXVisionTransformer(**arguments | keys)
    with torch.no_grad():  # experts apart from each other and from the director
        for name, parameter in model.named_parameters():
            if "experts" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    model.set_preprocessing(HALF, HALF)
    return model


def pictures(count: int = 9, shape: tuple[int, ...] = (40, 36)) -> list[np.ndarray]:
    return [picture(seed, shape) for seed in range(count)]


class StopsError(RuntimeError):
    pass


class Counted:
    """Counts the forwards of a model, by a hook on all modules: one of its own would be a part of it."""

    hooks: ClassVar[list[Any]] = []

    def __init__(self, model: nn.Module) -> None:
        self.calls, self.part, self.stops = 0, model.patch_embed, -1
        self.hooks.append(register_module_forward_pre_hook(self._count))

    def _count(self, part: nn.Module, _: object) -> None:
        if part is self.part:
            if self.calls == self.stops:
                raise StopsError
            self.calls += 1


def close(a: np.ndarray, b: np.ndarray, share: float = 1e-4) -> bool:
    """Within what `features_by_mode` states."""
    return np.sqrt(np.square(a - b).max()) <= share * np.sqrt(np.square(b).mean())
