"""Likelihood of given texts: whole sentences, documents longer than the context, continuations of a prompt.

Conventions are those of lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness), so that numbers can be
compared with published ones: a text is scored from its first token on, after the beginning-of-sequence token or, where
a tokenizer has none, the end-of-sequence token; no end-of-sequence token is scored after it. A long text is read in
windows that are as wide as the context, and each token is scored exactly once.

Legend: B rows, T tokens, N scored tokens, C of them at a time, H hidden size, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from generator.language_model import LanguageModel
from generator.log_probs import answer_positions, token_log_probs, tokens_at_a_time
from generator.padding import pad_right
from indexes.errors import UsageError


@dataclass(frozen=True)
class Continuation:
    """Tokens to score, and at least one token that they follow."""

    context_ids: list[int]
    target_ids: list[int]

    def __len__(self) -> int:
        """Tokens that are read: the last target is only predicted."""
        return len(self.context_ids) + len(self.target_ids) - 1


@dataclass(frozen=True)
class Likelihood:
    """The log-probability of a continuation."""

    log_prob: float
    """Sum over the target tokens, nats."""
    is_greedy: bool
    """Whether each target token was the most probable one."""


def prefix_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token before the first token of a text: beginning of sequence, or else end of sequence."""
    first = tokenizer.bos_token_id
    return int(tokenizer.eos_token_id if first is None else first)


def rolling_windows(ids: Sequence[int], prefix: int, width: int) -> list[Continuation]:
    """A text of any length as windows of at most `width` tokens, each token a target exactly once.

    The first window predicts `width` tokens after the prefix, every later one the next `width` after the last token
    before it; the last, shorter one sees as many tokens before it as the width allows. So does the harness's
    `loglikelihood_rolling`.

    Raises:
        UsageError: The width is below 1.
    """
    if width < 1:
        raise UsageError(f"A window must hold at least 1 token, got {width}.")
    before, windows = [prefix, *ids], []
    for start in range(0, len(ids), width):
        targets = list(ids[start : start + width])
        spare = width - len(targets) if start else 0
        windows.append(Continuation(before[start - spare : start + 1], targets))
    return windows


@torch.inference_mode()
def continuation_likelihoods(model: LanguageModel, continuations: Sequence[Continuation]) -> list[Likelihood]:
    """One forward pass under the active role; logits are only computed for targets, and few at a time.

    Returns:
        One for each continuation. Sums are float64 over float32 log-probabilities.
    """
    rows = [c.context_ids + c.target_ids[:-1] for c in continuations]
    input_ids_BT, lengths_B = pad_right(rows, model.end_of_answer_id, model.device)
    model.tokens_read += sum(map(len, rows))
    hidden_BTH = model.hidden(input_ids_BT, None)  # padding stands on the right, where no token looks
    counts_B = torch.tensor([len(c.target_ids) for c in continuations], device=model.device)
    rows_N, positions_N = answer_positions(lengths_B - counts_B + 1, counts_B)
    targets_N = torch.tensor([i for c in continuations for i in c.target_ids], device=model.device)
    log_p_N, greedy_N = _score(hidden_BTH[rows_N, positions_N], targets_N, model.head)
    sums_B = log_p_N.new_zeros(len(rows)).index_add(0, rows_N.cpu(), log_p_N)
    missed_B = log_p_N.new_zeros(len(rows)).index_add(0, rows_N.cpu(), (~greedy_N).double())
    return [Likelihood(log_p, missed == 0) for log_p, missed in zip(sums_B.tolist(), missed_B.tolist(), strict=True)]


def _score(hidden_NH: Tensor, targets_N: Tensor, head: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probability (float64) of each target, and whether it was the most probable token; both on the CPU."""
    log_probs, greedy = [], []
    size = tokens_at_a_time(head, hidden_NH)
    for hidden_CH, targets_C in zip(hidden_NH.split(size), targets_N.split(size), strict=True):
        logits_CV = head(hidden_CH)
        log_probs.append(token_log_probs(logits_CV, targets_C).double().cpu())
        greedy.append((logits_CV.argmax(-1) == targets_C).cpu())
    return torch.cat(log_probs), torch.cat(greedy)
