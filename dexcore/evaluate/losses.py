"""The losses of heads that are trained on masks and labels: sums over pixels and classes of each image by itself.

So the loss of a batch is the mean over its images, however they are parted among processes.

Axes: b images, c classes, y and x rows and columns of pixels.
"""

from torch import Tensor
from torch.nn import functional as F

UNKNOWN = -1  # a pixel that does not count
_SMOOTH = 1e-5


def segmentation_losses(logits_bcyx: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and soft Dice of each image; what is trained on is their plain sum.

    Pixels that are `UNKNOWN` take no part; an image without any other has losses of 0. Dice is the mean over the
    classes of an image but the background (the first), which is what is left; of channels over all of them.

    Args:
        logits_bcyx: of classes or channels.
        target: classes, whole numbers [b, y, x]; or channels, 0 and 1, [b, c, y, x]: the entropy is then binary.

    Returns:
        Cross-entropy [b], the mean over pixels; and 1 - Dice [b].
    """
    counts = target != UNKNOWN
    if target.ndim == 4:
        truth = target.clamp_min(0).to(logits_bcyx.dtype)
        entropy = F.binary_cross_entropy_with_logits(logits_bcyx, truth, reduction="none") * counts
        probability, truth = logits_bcyx.sigmoid() * counts, truth * counts
    else:
        target = target.long()
        entropy = F.cross_entropy(logits_bcyx, target, ignore_index=UNKNOWN, reduction="none")
        classes = target.new_tensor(range(1, logits_bcyx.shape[1]))[:, None, None]
        truth = (target[:, None] == classes).to(logits_bcyx.dtype)
        probability = logits_bcyx.softmax(1)[:, 1:] * counts[:, None]
    entropy_b = entropy.flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)
    both = (probability * truth).sum((2, 3))
    either = probability.sum((2, 3)) + truth.sum((2, 3))
    return entropy_b, 1 - ((2 * both + _SMOOTH) / (either + _SMOOTH)).mean(1)


def label_loss(logits_bc: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy of each image, [b].

    Args:
        logits_bc: of classes.
        label: classes, whole numbers [b]; or 0 and 1 a class, [b, c]: the entropy is then binary, a mean over them.
    """
    if label.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits_bc, label.to(logits_bc.dtype), reduction="none").mean(1)
    return F.cross_entropy(logits_bc, label.long(), reduction="none")
