"""Calibration: does the model know when its next token is right?"""

from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error


def token_ece(confidence: Tensor, hit: Tensor, *, num_bins: int = 15) -> Tensor:
    r"""Expected calibration error of the likeliest token.

        ECE = sum_b (n_b / n) |mean confidence in b - share of hits in b|        bins of equal width on [0, 1]

    Args:
        confidence: ``(tokens,)`` probability (not log-probability) of the likeliest token.
        hit: ``(tokens,)`` True where the likeliest token was the right one.
        num_bins: number of bins.

    Returns:
        ``()`` in [0, 1]; 0 is perfect.

    Raises:
        ValueError: for no tokens at all, or numbers that are no probabilities.

    Example:
        >>> import torch
        >>> token_ece(torch.tensor([0.9, 0.9]), torch.tensor([True, False]))  # 0.9 sure, half right
        tensor(0.4000)
    """
    if confidence.shape != hit.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(
            f"expected two (tokens,) tensors with at least one token, got confidence {tuple(confidence.shape)}, "
            f"hit {tuple(hit.shape)}. Select the answer's tokens first: confidence[mask]."
        )
    lowest, highest = confidence.min().item(), confidence.max().item()
    if not (lowest >= 0 and highest <= 1 + 1e-5):
        raise ValueError(
            f"confidence runs from {lowest:.3g} to {highest:.3g}, but probabilities lie in [0, 1]. "
            "If these are log-probabilities, take .exp() first."
        )
    probability = confidence.double().clamp(max=1.0)
    error: Tensor = binary_calibration_error(probability, hit.long(), n_bins=num_bins, norm="l1")
    return error.float()
