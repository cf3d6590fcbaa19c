"""Log-probabilities of generated tokens, taken from the pass that generates them.

Scoring an answer in a separate pass would read its prompt a second time. A decoding step has the logits already (before
temperature and nucleus); only the two log-probabilities that a score needs are kept.

Legend: B rows, V vocabulary, S steps.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

Recorded = dict[tuple[int, ...], float]
"""`log p(answer | prompt)` in nats, end of answer included, by the ids of prompt and answer without the end."""

_recorded: ContextVar[Recorded | None] = ContextVar("recorded", default=None)


@contextmanager
def recording() -> Iterator[Recorded]:
    """Context manager: answers generated in this thread are scored while they are generated."""
    found: Recorded = {}
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


def is_recording() -> bool:
    """Whether a `recording` is open in this thread."""
    return _recorded.get() is not None


class StepLogProbs(LogitsProcessor):
    """Logits processor that records log p of the chosen token and of the end-of-answer token, and changes no logits.

    transformers 5.23 applies processors that are handed over before temperature and nucleus (`_get_logits_processor`).

    Args:
        end_of_answer_id: The token that closes an answer when it is scored.
    """

    def __init__(self, end_of_answer_id: int) -> None:
        self._end = end_of_answer_id
        self._logits_BV: Tensor | None = None  # of the last step, whose token is not chosen yet
        self._chosen_SB: list[Tensor] = []
        self._end_SB: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Take a step's logits, and the token that was chosen at the step before."""
        if self._logits_BV is not None:
            self._take(input_ids[:, -1])
        self._logits_BV = scores
        return scores

    def _take(self, chosen_B: Tensor) -> None:
        assert self._logits_BV is not None
        ids_B2 = torch.stack([chosen_B, torch.full_like(chosen_B, self._end)], 1)
        logits_BV = self._logits_BV.float()
        log_p_B2 = logits_BV.gather(-1, ids_B2) - logits_BV.logsumexp(-1, keepdim=True)
        self._chosen_SB.append(log_p_B2[:, 0])
        self._end_SB.append(log_p_B2[:, 1])

    def finish(self, prompts: Sequence[list[int]], replies_BS: Tensor, stop_ids: set[int]) -> None:
        """Record the score of every reply that ended; replies that were cut off have no log p of their end.

        Args:
            prompts: Token ids, without padding.
            replies_BS: What was generated, padded on the right.
            stop_ids: Tokens that end a reply. Whichever of them ended it, the end-of-answer token is scored.
        """
        recorded = _recorded.get()
        if recorded is None or self._logits_BV is None:
            return
        if len(self._chosen_SB) < replies_BS.shape[1]:
            self._take(replies_BS[:, -1])
        chosen_SB, end_SB = (torch.stack(steps).tolist() for steps in (self._chosen_SB, self._end_SB))
        for row, (prompt, reply) in enumerate(zip(prompts, replies_BS.tolist(), strict=True)):
            length = next((i for i, token in enumerate(reply) if token in stop_ids), None)
            if length is not None:
                answer = sum(chosen_SB[step][row] for step in range(length))
                recorded[(*prompt, *reply[:length])] = answer + end_SB[length][row]
