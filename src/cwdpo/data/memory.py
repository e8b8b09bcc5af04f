"""How much memory a training run will take, roughly, from a handful of numbers and without loading a model."""

from dataclasses import dataclass

_ACTIVATIONS = 34
"""Bytes kept for the backward pass of one token in one transformer layer, for each unit of the hidden size, in a 2-byte
type: Korthikanti et al., arXiv 2205.05198, equation 2 without the attention matrix, which sdpa does not keep."""

_HEAD_ROWS = 1024
"""Tokens whose vocabulary logits exist at one time; the head is computed in pieces."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by purpose. Good to a factor of about 1.5; a vision tower's activations are not counted."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def memory_estimate(
    *,
    num_parameters: int,
    trainable_parameters: int,
    bytes_per_value: int,
    tokens_per_batch: int,
    hidden_size: int,
    num_layers: int,
    vocabulary_size: int,
    checkpointing: bool = False,
) -> MemoryEstimate:
    """Memory of one training step with AdamW and the reference cached.

        weights      N * b
        gradients    M * b
        optimizer    M * 2 * b                             AdamW's two moments, in the weights' own type
        activations  T * layers * hidden * (17 * b), or T * hidden * (layers * b + 17 * b) with checkpointing
        logits       3 * min(T, 1024) * vocabulary * 4     logits, log-probs and their gradient, float32

    Args:
        num_parameters: N, all weights.
        trainable_parameters: M, those that are trained.
        bytes_per_value: b, 4 for float32 and 2 for bfloat16.
        tokens_per_batch: T, tokens of all rows that run at one time, image tokens included.
        hidden_size: of the language model.
        num_layers: of the language model.
        vocabulary_size: of the language model.
        checkpointing: gradient checkpointing keeps each layer's input alone and one layer whole.

    Example:
        >>> estimate = memory_estimate(
        ...     num_parameters=3_000, trainable_parameters=1_000, bytes_per_value=2, tokens_per_batch=10,
        ...     hidden_size=8, num_layers=2, vocabulary_size=100)
        >>> estimate.weights, estimate.gradients, estimate.optimizer, estimate.activations, estimate.logits
        (6000, 2000, 4000, 5440, 12000)
    """
    layer = tokens_per_batch * hidden_size * _ACTIVATIONS * bytes_per_value // 2
    inputs = tokens_per_batch * hidden_size * bytes_per_value * num_layers
    return MemoryEstimate(
        weights=num_parameters * bytes_per_value,
        gradients=trainable_parameters * bytes_per_value,
        optimizer=2 * trainable_parameters * bytes_per_value,
        activations=inputs + layer if checkpointing else num_layers * layer,
        logits=3 * min(tokens_per_batch, _HEAD_ROWS) * vocabulary_size * 4,
    )
