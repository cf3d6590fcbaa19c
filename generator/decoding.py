"""Replies token by token, to all prompts of a group at each step, with their log-probabilities.

Greedy replies are those of transformers' `generate`; sampling applies its processors to the same logits. A reply that
has ended leaves the batch. The log-probability of an answer (at temperature 1, end of answer included) comes from the
logits that it was chosen by, so that no answer is read a second time.

Legend: R rows of the batch, V vocabulary, S tokens generated so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper
from transformers.generation.stopping_criteria import StopStringCriteria

from generator.chat import Chat
from generator.configs import DecodingConfig
from generator.log_probs import token_log_probs
from generator.prompt_reading import ReadPrompts

LEAVE_TOGETHER = 8
"""Rows leave the batch when one in so many has ended: each time some may have to be scored first."""

AnswerIds = Callable[[int, list[int]], list[int]]
"""From the number of a prompt and the reply generated for it to the answer that is to be scored, with its end."""


@dataclass
class GeneratedReply:
    """What was generated after one prompt."""

    token_ids: list[int] = field(default_factory=list)
    """With the token that ended it, unless it was cut off."""
    log_prob: float | None = None
    """Of the answer in it directly after the prompt, in nats; None where it was not asked for."""


class StopTexts:
    """Tells which replies contain, in their answer, one of some texts; in a thought they end nothing.

    Args:
        chat: Separates thoughts from answers.
        texts: The texts; none is found if there are none.
    """

    def __init__(self, chat: Chat, texts: Sequence[str]) -> None:
        self._chat, self._texts = chat, texts
        self._complete = StopStringCriteria(chat.tokenizer, list(texts)) if texts else None

    def found_in(self, prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> list[bool]:
        """For each reply, all of one length, whether its last token completed one of the texts."""
        if self._complete is None:
            return [False] * len(replies)
        complete_R = self._complete(torch.tensor(replies), None).tolist()
        return [
            complete and self._is_in_answer(*both) for complete, *both in zip(complete_R, prompts, replies, strict=True)
        ]

    def _is_in_answer(self, prompt: list[int], reply: list[int]) -> bool:
        text = str(self._chat.tokenizer.decode(self._chat.read_reply(prompt, reply).answer_ids))
        return any(one in text for one in self._texts)


def choose_tokens(logits_RV: Tensor, config: DecodingConfig) -> Tensor:
    """The next token of each row, int64 `[R]`: the most probable one, or a draw."""
    if config.temperature == 0:
        return logits_RV.argmax(-1)
    processors = LogitsProcessorList([TemperatureLogitsWarper(float(config.temperature))])
    if config.top_p < 1:
        processors.append(TopPLogitsWarper(config.top_p))
    scores_RV = processors(None, logits_RV)  # type: ignore[arg-type]
    return torch.multinomial(scores_RV.softmax(-1), 1).squeeze(1)


class Decoding:
    """Replies to prompts that have been read, until all have ended.

    Args:
        read: The prompts.
        prompts: Token ids of all prompts of the call, which `read.indices` counts.
        config: Decoding.
        stop: Texts that end a reply.
        answer_ids: Makes answers of replies, so that they are scored; None: log-probabilities are not needed.
        leaves: Whether replies that have ended leave the batch, and their prompts the cache.
    """

    def __init__(
        self,
        read: ReadPrompts,
        prompts: Sequence[list[int]],
        config: DecodingConfig,
        *,
        stop: Sequence[str] = (),
        answer_ids: AnswerIds | None = None,
        leaves: bool = True,
    ) -> None:
        self._leaves = leaves
        self._read, self._prompts, self._config, self._answer_ids = read, prompts, config, answer_ids
        self._end = read.model.end_of_answer_id
        self._stop_ids = frozenset(read.model.chat.stop_ids)
        self._stop_texts = StopTexts(read.model.chat, stop)
        self.replies = {i: GeneratedReply() for i in read.indices}
        """By the number of the prompt."""
        self._rows = [_Row(i) for i in read.indices]
        self._hidden_RH = read.last_RH
        self._steps = 0

    @property
    def is_complete(self) -> bool:
        """Whether all replies have ended."""
        return self._steps == self._config.max_new_tokens or all(row.ended for row in self._rows)

    def run(self) -> dict[int, GeneratedReply]:
        """All steps; returns the replies by the number of the prompt."""
        while not self.is_complete:
            self.step()
        self.finish()
        return self.replies

    def step(self) -> dict[int, int]:
        """Choose the next token of every reply that has not ended; returns it by the number of the prompt."""
        if self._steps:
            self._let_go()
            self._hidden_RH = self._read.extend([row.last for row in self._rows])
        logits_RV = self._read.model.head(self._hidden_RH).float()
        chosen_R = choose_tokens(logits_RV, self._config)
        self._steps += 1
        active = [row for row in self._rows if not row.ended]
        self._append(chosen_R.tolist(), *self._log_probs(logits_RV, chosen_R))
        return {row.prompt: row.last for row in active}

    def _log_probs(self, logits_RV: Tensor, chosen_R: Tensor) -> tuple[list[float], list[float]]:
        """Log p of the chosen tokens and of the end of the answer, before temperature and nucleus."""
        if self._answer_ids is None:
            return [0.0] * len(chosen_R), [0.0] * len(chosen_R)
        chosen = token_log_probs(logits_RV, chosen_R)
        ids_R = chosen_R.unsqueeze(1)
        end = chosen + logits_RV[:, self._end] - logits_RV.gather(1, ids_R).squeeze(1)
        return chosen.tolist(), end.tolist()

    def _append(self, chosen: list[int], log_p: list[float], end_log_p: list[float]) -> None:
        active = [r for r, row in enumerate(self._rows) if not row.ended]
        for r in active:
            row = self._rows[r]
            row.last = chosen[r]
            self.replies[row.prompt].token_ids.append(chosen[r])
            if chosen[r] in self._stop_ids:  # whichever of them ended it, the end of the answer is scored
                row.ended, row.end_log_p = True, end_log_p[r]
            else:
                row.log_p += log_p[r]
        if active:
            numbers = [self._rows[r].prompt for r in active]
            found = self._stop_texts.found_in(
                [self._prompts[i] for i in numbers], [self.replies[i].token_ids for i in numbers]
            )
            for r, stopped in zip(active, found, strict=True):
                self._rows[r].ended |= stopped

    def _let_go(self) -> None:
        """Rows that have ended leave the batch, once there are enough of them."""
        staying = [r for r, row in enumerate(self._rows) if not row.ended]
        if not self._leaves or len(self._rows) - len(staying) < max(1, len(self._rows) // LEAVE_TOGETHER):
            return
        self._score([r for r, row in enumerate(self._rows) if row.ended])
        self._rows = [self._rows[r] for r in self._read.keep(staying)]

    def finish(self) -> None:
        """Score the replies that are left, those that were cut off included."""
        if self._answer_ids is None:
            return
        if not all(row.ended for row in self._rows):
            # One more step for the end of what was cut off.
            hidden_RH = self._read.extend([row.last for row in self._rows])
            logits_RV = self._read.model.head(hidden_RH).float()
            end_R = torch.full((len(self._rows),), self._end, device=logits_RV.device)
            for row, end_log_p in zip(self._rows, token_log_probs(logits_RV, end_R).tolist(), strict=True):
                if not row.ended:
                    row.ended, row.end_log_p = True, end_log_p
        self._score(range(len(self._rows)))

    def _score(self, rows: Sequence[int]) -> None:
        """The log-probabilities of the answers in these rows.

        An answer whose text, without the spaces around it and without thoughts, is written with other tokens than it
        was generated with is scored by a pass over these tokens, behind the prompt that is still in the cache.
        """
        if self._answer_ids is None:
            return
        others: dict[int, list[int]] = {}
        for r in rows:
            row = self._rows[r]
            generated = self.replies[row.prompt].token_ids
            answer = self._answer_ids(row.prompt, generated)
            kept = generated[:-1] if generated[-1] in self._stop_ids else generated
            if answer == [*kept, self._end] and row.end_log_p is not None:
                self.replies[row.prompt].log_prob = row.log_p + row.end_log_p
            else:
                others[r] = answer
        if others:
            found = self._read.log_probs(list(others), [[answer] for answer in others.values()])
            for r, log_p_1 in zip(others, found, strict=True):
                self.replies[self._rows[r].prompt].log_prob = float(log_p_1[0])


@dataclass
class _Row:
    """The state of one reply."""

    prompt: int
    """Its number."""
    last: int = 0
    """The last token."""
    ended: bool = False
    log_p: float = 0.0
    """Of the tokens so far, without the one that ended it."""
    end_log_p: float | None = None
    """Of the end of the answer after them, where it was predicted."""
