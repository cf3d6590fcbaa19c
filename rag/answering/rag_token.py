"""RAG-Token (Lewis et al. 2020, arXiv 2005.11401, section 2.1): every token may come from another document.

    p(y|x) = prod_i sum_d p(d|x) p_g(y_i|x,d,y_<i)

So there is one next-token distribution, the mixture over the documents, decoded greedily here. REPLUG's ensemble
(arXiv 2301.12652, section 3.2) is the same mixture. Each document is one sequence of a batch with its own key-value
cache; all sequences of a question get the same next token.

Legend: B questions, n documents each, R = B n sequences, T prompt tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from generator.generator import ROLE, Generator
from generator.padding import pad_left, pad_right
from indexes.batching import token_budget_batches
from rag.answering.answer import Answer
from rag.answering.rag_sequence import PerDocumentReader, log_priors
from retriever.candidates import Candidates


class RAGToken(PerDocumentReader):
    """Generates from the mixture of the next-token distributions given each document.

    Decoding is greedy: the temperature of `DecodingConfig` applies to answers from one prompt only.
    """

    kind = "rag_token"
    name = "RAG-Token"

    def answer_from(self, candidates: Sequence[Candidates], *, log_prob: bool = True) -> list[Answer]:
        """The greedy answer of the mixture for each question.

        `Answer.log_prob` is that of the mixture, end-of-answer token included; it costs nothing, so it is always there.
        """
        prompts = [[self.generator.prompt_ids(c.question, [p]) for p in c.passages] for c in candidates]
        priors = log_priors(self.selector, candidates)
        decoded = self._decode(prompts, priors)
        return [self._answer(*parts) for parts in zip(candidates, decoded, prompts, priors, strict=True)]

    def _answer(
        self, candidates: Candidates, decoded: "_Decoded", prompts: Sequence[list[int]], prior_n: Tensor
    ) -> Answer:
        ((text, has_thought),) = self.generator.answers_in([prompts[0]], [decoded.ids])
        text = text.strip()
        log_p = self._log_prob(text, prompts, prior_n) if has_thought else decoded.log_p
        return Answer.from_candidates(candidates, range(len(candidates)), text, log_p)

    @torch.no_grad()
    def _log_prob(self, text: str, prompts: Sequence[list[int]], prior_n: Tensor) -> float:
        """Log p of an answer directly after the prompts; the decoded tokens also contained reasoning."""
        generator = self.generator
        log_p = 0.0
        with generator.language_model.use(ROLE):
            steps = _Steps(self.generator, [list(prompts)], [prior_n])
            log_p_1V = steps.first()
            ids = generator.encode_answer(text) if text.strip() else [generator.language_model.end_of_answer_id]
            for i, token in enumerate(ids):
                log_p += float(log_p_1V[0, token])
                if i + 1 < len(ids):
                    log_p_1V = steps.after(torch.tensor([token], device=generator.language_model.device))
        return log_p

    @torch.no_grad()
    def _decode(self, prompts: Sequence[list[list[int]]], priors: Sequence[Tensor]) -> list["_Decoded"]:
        """Tokens and log-probability of each question's answer, in order; one prompt per document of each question."""
        generator = self.generator
        # A question has one sequence per document.
        lengths = [len(ps) * (max(map(len, ps)) + generator.config.max_new_tokens) for ps in prompts]
        decoded = [_Decoded() for _ in prompts]
        with generator.language_model.use(ROLE):
            for batch in token_budget_batches(lengths, generator.max_tokens_per_batch):
                self._decode_batch([prompts[i] for i in batch], [priors[i] for i in batch], [decoded[i] for i in batch])
        return decoded

    def _decode_batch(
        self, prompts: Sequence[list[list[int]]], priors: Sequence[Tensor], decoded: Sequence["_Decoded"]
    ) -> None:
        """Greedy steps for several questions at once, until each has ended its answer."""
        model = self.generator.language_model
        end = model.end_of_answer_id
        ends = set(model.chat.stop_ids)
        steps = _Steps(self.generator, prompts, priors)
        log_p_BV = steps.first()
        for _ in range(self.generator.config.max_new_tokens):
            chosen_B = log_p_BV.argmax(-1)
            gained_B = log_p_BV.gather(-1, chosen_B.unsqueeze(-1)).squeeze(-1).tolist()
            end_B = log_p_BV[:, end].tolist()
            for one, token, gained, closed in zip(decoded, chosen_B.tolist(), gained_B, end_B, strict=True):
                # Whichever token stopped it, the end-of-answer token is scored, as everywhere else.
                one.append(token, closed if token in ends else gained, ended=token in ends)
            if all(one.ended for one in decoded):
                return
            log_p_BV = steps.after(chosen_B)
        # max_new_tokens is reached: close the answer, as an answer from one prompt is closed when it is scored.
        for one, gained in zip(decoded, log_p_BV[:, end].tolist(), strict=True):
            one.close(gained)


@dataclass
class _Decoded:
    """The answer to one question so far."""

    ids: list[int] = field(default_factory=list)
    log_p: float = 0.0
    ended: bool = False

    def append(self, token: int, log_p: float, *, ended: bool) -> None:
        """Append a token, unless the answer has ended."""
        if not self.ended:
            self.ids.append(token)
            self.log_p += log_p
            self.ended = ended

    def close(self, log_p: float) -> None:
        """Add the end-of-answer token that the model did not generate itself."""
        if not self.ended:
            self.log_p += log_p
            self.ended = True


class _Steps:
    """Next-token distributions of the mixtures of several questions, on one key-value cache.

    Args:
        generator: Reads the documents.
        prompts: For each question, one prompt per document.
        priors: log p(d|x) of each question, `[n]`; questions may have different numbers of documents.
    """

    def __init__(self, generator: Generator, prompts: Sequence[list[list[int]]], priors: Sequence[Tensor]) -> None:
        self.model = generator.language_model
        rows = [prompt for of_question in prompts for prompt in of_question]
        # The answer is appended on the right, so prompts are padded on the left.
        self.ids_RT, self.mask_RT, self.next_R = pad_left(rows, self.model.end_of_answer_id, self.model.device)
        self.rows = rows
        self.counts = [len(of_question) for of_question in prompts]
        self.log_prior_R = torch.cat(list(priors)).to(self.model.device)
        self.question_R = torch.arange(len(prompts)).repeat_interleave(torch.tensor(self.counts)).to(self.model.device)
        # Some architectures do not support left padding: they reread every sequence in full, padded on the right.
        self.cache = self.model.new_cache() if self.model.supports_left_padding else None

    def first(self) -> Tensor:
        """Log p of the first token, `[B, V]`."""
        self.model.tokens_read += int(self.mask_RT.sum())
        if self.cache is None:
            return self._mixed_without_cache()
        return self._mixed(self.ids_RT, (self.mask_RT.cumsum(-1) - 1).clamp_min(0))

    def after(self, chosen_B: Tensor) -> Tensor:
        """Log p of the next token, `[B, V]`, after each question's answer was extended by its chosen token `[B]`."""
        ids_R1 = chosen_B[self.question_R].unsqueeze(-1)
        if self.cache is None:
            self.rows = [[*row, token] for row, token in zip(self.rows, ids_R1.flatten().tolist(), strict=True)]
            self.model.tokens_read += sum(map(len, self.rows))
            return self._mixed_without_cache()
        self.model.tokens_read += len(ids_R1)
        self.mask_RT = torch.cat([self.mask_RT, torch.ones_like(ids_R1)], dim=1)
        positions_R1, self.next_R = self.next_R.unsqueeze(-1), self.next_R + 1
        return self._mixed(ids_R1, positions_R1)

    def _mixed(self, ids_RQ: Tensor, positions_RQ: Tensor) -> Tensor:
        hidden_RQH = self.model.hidden(ids_RQ, self.mask_RT, position_ids_BQ=positions_RQ, cache=self.cache)
        return self._mixture(hidden_RQH[:, -1])

    def _mixed_without_cache(self) -> Tensor:
        ids_RT, lengths_R = pad_right(self.rows, self.model.end_of_answer_id, self.model.device)
        hidden_RTH = self.model.hidden(ids_RT, None)
        return self._mixture(hidden_RTH[torch.arange(len(self.rows)), lengths_R - 1])

    def _mixture(self, hidden_RH: Tensor) -> Tensor:
        log_p_RV = self.model.head(hidden_RH).float().log_softmax(-1)
        return torch.stack(list(self._mixtures(self.log_prior_R.unsqueeze(-1) + log_p_RV)))

    def _mixtures(self, joint_RV: Tensor) -> Iterator[Tensor]:
        """Log of the sum over each question's sequences."""
        return (joint_nV.logsumexp(0) for joint_nV in joint_RV.split(self.counts))
