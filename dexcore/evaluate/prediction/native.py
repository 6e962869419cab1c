"""From logits at a network's size to masks at an image's own: the logits are resized, and decided after.

Axes: b images, c classes, y and x rows and columns of pixels, p and q those of the logits.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dexcore.task_kinds import Kind


def at_size(logits_bcpq: Tensor, height: int, width: int) -> Tensor:
    """Logits at the pixels, [b, c, y, x]: bilinear; products of matrices, so that training is deterministic."""
    rows, columns = (
        _linear(large, small).to(logits_bcpq)
        for large, small in ((height, logits_bcpq.shape[2]), (width, logits_bcpq.shape[3]))
    )
    return rows @ logits_bcpq @ columns.T


@lru_cache(256)
def _linear(large: int, small: int) -> Tensor:
    """The linear interpolation of ``small`` numbers at ``large`` places, [large, small]: as `F.interpolate` does."""
    return F.interpolate(torch.eye(small)[None], size=large, mode="linear", align_corners=False)[0].T.contiguous()


def decided(kind: Kind, logits_cyx: Tensor) -> np.ndarray:
    """The mask of one image: indices of classes [y, x], or, of a multilabel_segmentation, bool [c, y, x]."""
    if kind == "multilabel_segmentation":
        return (logits_cyx > 0).cpu().numpy()
    return logits_cyx.argmax(0).cpu().numpy()
