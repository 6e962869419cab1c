"""What a vision transformer is pre-trained for: one module, which a loop calls for the loss of its images."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from dexcore.models.pretrained import PretrainedMixin


class Objective(PretrainedMixin, nn.Module):
    """An encoder and its objective.

    Called with images [B, C, H, W] and noise [B, L] it returns a named tuple: ``loss``, 0-dim; ``pred`` [B, n, K], what
    it makes of patches; and ``mask`` [B, L], 1 where it was asked for a patch.

    Attributes:
        encoder: the transformer that is trained.
        num_patches: L.
    """

    encoder: VisionTransformer
    num_patches: int
    _selective = False

    @property
    def vision_transformer(self) -> VisionTransformer:
        return self.encoder

    def set_grad_checkpointing(self, enable: bool = True, selective: bool = False) -> None:
        """Recompute the blocks' activations in the backward, not store them.

        Args:
            enable: False stores them.
            selective: store what is dear to compute (`dexcore.models.checkpointing`).
        """
        self.encoder.set_grad_checkpointing(enable)
        self._selective = selective

    def blocks(self) -> Sequence[nn.Module]:
        """The transformer blocks that are called as such, in the order in which they run."""
        return [*self.encoder.blocks]

    def score(self, images: torch.Tensor, output: Any) -> "Score":
        """How well ``output``, of a forward with ``images``, is what was asked for."""
        raise NotImplementedError


class Score(NamedTuple):
    """What a model predicted, beside what it should have; float32 or wider.

    Attributes:
        error: [B, L], a patch's squared error.
        total: [B, L], what varies in its target around what is given away, a sum of squares.
        loss: [B], an image's part of the loss, of which the forward's is the mean.
    """

    error: torch.Tensor
    total: torch.Tensor
    loss: torch.Tensor
