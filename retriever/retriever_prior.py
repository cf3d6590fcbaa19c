"""The retriever's scores as a prior of a selector's logits, and the two weights of the sum."""

from torch import Tensor, nn, tensor


class RetrieverPrior(nn.Module):
    """`s_i = gate * l_i + strength * standardise(r)_i`: logits l of a language model and retriever scores r.

    Where the gate starts at 0 and the strength above it, an untrained selector reproduces the retriever's order
    exactly, whatever the logits of the base model are; training then moves weight to the language model as far as the
    posterior rewards it. Scores are standardised over the candidates of a question, which makes the start independent
    of the encoder's scale.

    Args:
        gate: Where the weight of the language model's logits starts.
        strength: Where the weight of the retriever's scores starts.
    """

    def __init__(self, *, gate: float = 0.0, strength: float = 1.0) -> None:
        super().__init__()
        # One-element vectors, not scalars: FSDP cannot shard a scalar.
        self.gate = nn.Parameter(tensor([float(gate)]))
        self.strength = nn.Parameter(tensor([float(strength)]))

    def forward(self, lm_logits: Tensor, standardised: Tensor) -> Tensor:
        """Combined logits, any common shape `[..., n]`."""
        return self.gate * lm_logits + self.strength * standardised
