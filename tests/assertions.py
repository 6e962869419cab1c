"""The one comparison of results: relative to the reference's RMS, against what plain PyTorch reaches."""

import torch

# Without a plain implementation to compare with: a few roundings of a sum over some hundred terms.
_DEFAULT_BOUND = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
# Plain PyTorch may be exact by luck, in small or badly conditioned cases above all.
_LUCK = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def relative_error(actual: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference over the reference's root mean square; inf where ``actual`` is not finite."""
    actual, reference = actual.detach().double(), reference.detach().double()
    if reference.numel() == 0:
        return 0.0
    difference = (actual - reference).abs().max().item()
    if not difference < float("inf"):  # also catches NaN
        return float("inf")
    rms = reference.square().mean().sqrt().item()
    if rms == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / rms


def assert_close(
    actual: torch.Tensor,
    reference: torch.Tensor,
    *,
    plain: torch.Tensor | None = None,
    bound: float | None = None,
    name: str = "result",
) -> None:
    """Assert that ``actual`` is as good as plain PyTorch.

    Args:
        actual: what is tested.
        reference: the truth, normally float64, of the same shape.
        plain: the same computed by plain PyTorch in the tested dtype; ``actual`` may err twice as much, plus a few
            roundings.
        bound: a bound on the relative error, in place of ``plain``; without either the dtype's default.
        name: what to call the tensor in the message.
    """
    assert actual.shape == reference.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(reference.shape)}"
    assert reference.isfinite().all(), f"{name}: the reference itself is not finite"
    error = relative_error(actual, reference)
    if plain is not None:
        assert bound is None, "plain and bound exclude one another"
        bound = 2 * relative_error(plain, reference) + _LUCK[actual.dtype]
    elif bound is None:
        bound = _DEFAULT_BOUND[actual.dtype]
    assert error <= bound, f"{name}: relative error {error:.3g}, allowed {bound:.3g}"
