"""The balance loss of one layer (the method's step 9)."""

from torch import Tensor


def balance_loss(probs: Tensor, global_importance: Tensor | None = None) -> Tensor:
    """R * sum_r I_r stopgrad(I_r) with I the mean of ``probs`` [B, R].

    ``global_importance`` [R] takes the place of the second factor where the batch spans several processes.
    """
    return balance_of(mean_probs(probs), global_importance)


def balance_of(importance: Tensor, global_importance: Tensor | None = None) -> Tensor:
    """`balance_loss` of the mean [R] itself."""
    other = importance.detach() if global_importance is None else global_importance
    return importance.shape[0] * (importance * other).sum()


def mean_probs(probs: Tensor) -> Tensor:
    """I [R], the batch's mean of ``probs`` [B, R]; zeros without an image."""
    return probs.sum(0) / max(probs.shape[0], 1)
