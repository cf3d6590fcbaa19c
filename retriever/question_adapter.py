"""The part of the retriever that learns: a low-rank change of question embeddings.

Legend: B questions, d embedding dimension, r adapter rank.
"""

import torch
from torch import Tensor, nn


class QuestionAdapter(nn.Module):
    """A low-rank change of the question embedding: `q' = normalise(q + B A q)`, the identity at first.

    Only the question side learns, so the passages in the index stay valid. It is trained through the retriever
    prior inside log p_s(z | x). Where the similarity is the dot product the retriever gives q' the length of q: it
    changes no ranking of passages, and scores stay what the encoder's own are.

    Args:
        dimension: d.
        rank: r.
    """

    def __init__(self, dimension: int, rank: int = 32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.down = nn.Parameter(torch.randn(rank, dimension, generator=generator) / dimension**0.5)
        self.up = nn.Parameter(torch.zeros(dimension, rank))

    def forward(self, question_Bd: Tensor) -> Tensor:
        """`[B, d]` to unit vectors `[B, d]`."""
        changed = question_Bd + question_Bd @ self.down.T @ self.up.T
        return nn.functional.normalize(changed, dim=-1)

    @property
    def is_identity(self) -> bool:
        """Whether it still changes nothing."""
        return not bool(self.up.any())
