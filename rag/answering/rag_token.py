"""RAG-Token (Lewis et al. 2020, arXiv 2005.11401, section 2.1): every token may come from another document.

    p(y|x) = prod_i sum_d p(d|x) p_g(y_i|x,d,y_<i)

So there is one next-token distribution, the mixture over the documents, decoded greedily here. REPLUG's ensemble
(arXiv 2301.12652, section 3.2) is the same mixture. Each document is one sequence of a batch; all sequences of a
question get the same next token.

Legend: B questions, n documents each, R = B n sequences, T prompt tokens, H hidden size, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from generator.generator import ROLE, Generator
from generator.padding import pad_right
from generator.prompt_reading import ReadPrompts
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

    def _log_prob(self, text: str, prompts: Sequence[list[int]], prior_n: Tensor) -> float:
        """Log p of an answer directly after the prompts; the decoded tokens also contained reasoning."""
        generator = self.generator
        log_p = 0.0
        with generator.language_model.use(ROLE), torch.inference_mode():
            ((_, mixtures),) = _read_mixtures(generator, [list(prompts)], [prior_n])
            log_p_1V = mixtures.first()
            ids = generator.encode_answer(text) if text.strip() else [generator.language_model.end_of_answer_id]
            for i, token in enumerate(ids):
                log_p += float(log_p_1V[0, token])
                if i + 1 < len(ids):
                    log_p_1V = mixtures.after([token])
        return log_p

    def _decode(self, prompts: Sequence[list[list[int]]], priors: Sequence[Tensor]) -> list["_Decoded"]:
        """Tokens and log-probability of each question's answer, in order; one prompt per document of each question."""
        decoded = [_Decoded() for _ in prompts]
        with self.generator.language_model.use(ROLE), torch.inference_mode():
            for questions, mixtures in _read_mixtures(self.generator, prompts, priors):
                self._decode_batch(mixtures, [decoded[q] for q in questions])
        return decoded

    def _decode_batch(self, mixtures: "_Mixtures", decoded: list["_Decoded"]) -> None:
        """Greedy steps for several questions at once, until each has ended its answer."""
        model = self.generator.language_model
        end = model.end_of_answer_id
        ends = set(model.chat.stop_ids)
        log_p_BV = mixtures.first()
        for _ in range(self.generator.config.max_new_tokens):
            chosen_B = log_p_BV.argmax(-1)
            gained_B = log_p_BV.gather(-1, chosen_B.unsqueeze(-1)).squeeze(-1).tolist()
            end_B = log_p_BV[:, end].tolist()
            for one, token, gained, closed in zip(decoded, chosen_B.tolist(), gained_B, end_B, strict=True):
                # Whichever token stopped it, the end-of-answer token is scored, as everywhere else.
                one.append(token, closed if token in ends else gained, ended=token in ends)
            active = [i for i, one in enumerate(decoded) if not one.ended]
            if not active:
                return
            if len(active) < len(decoded):
                mixtures.keep(active)
                decoded = [decoded[i] for i in active]
            log_p_BV = mixtures.after([one.ids[-1] for one in decoded])
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


def _read_mixtures(
    generator: Generator, prompts: Sequence[list[list[int]]], priors: Sequence[Tensor]
) -> Iterator[tuple[list[int], "_Mixtures"]]:
    """Read the prompts of several questions, one per document, in batches: the questions of each, and their mixtures.

    Args:
        generator: Reads the documents, under the active adapter.
        prompts: For each question, one prompt per document.
        priors: log p(d|x) of each question, `[n]`; questions may have different numbers of documents.
    """
    if not generator.language_model.supports_shared_prefix:
        room = generator.config.max_new_tokens
        lengths = [len(of_question) * (max(map(len, of_question)) + room) for of_question in prompts]
        for batch in token_budget_batches(lengths, generator.max_tokens_per_batch):
            yield batch, _RereadMixtures(generator, [prompts[q] for q in batch], [priors[q] for q in batch])
        return
    numbers = iter(range(sum(map(len, prompts))))
    together = [[next(numbers) for _ in of_question] for of_question in prompts]
    flat = [prompt for of_question in prompts for prompt in of_question]
    for read in generator.read(flat, together=together):
        there = set(read.indices)
        questions = [q for q, members in enumerate(together) if there.issuperset(members)]
        mixtures = _CachedMixtures(generator, read, [together[q] for q in questions], [priors[q] for q in questions])
        yield questions, mixtures


class _Mixtures(ABC):
    """Next-token distributions of the mixtures of several questions.

    Args:
        generator: Reads the documents.
        priors: log p(d|x) of each question, `[n]`.
    """

    def __init__(self, generator: Generator, priors: Sequence[Tensor]) -> None:
        self.model = generator.language_model
        self.priors = [prior_n.to(self.model.device) for prior_n in priors]

    @abstractmethod
    def first(self) -> Tensor:
        """Log p of the first token, `[B, V]`."""

    @abstractmethod
    def after(self, chosen: Sequence[int]) -> Tensor:
        """Log p of the next token, `[B, V]`, after each question's answer was extended by its chosen token."""

    @abstractmethod
    def keep(self, questions: Sequence[int]) -> None:
        """Drop all other questions."""

    def _mixture(self, hidden_RH: Tensor, rows: Sequence[list[int]]) -> Tensor:
        """Log of the sum over each question's documents, which are in these rows."""
        log_p_RV = self.model.head(hidden_RH).float().log_softmax(-1)
        joint = (prior_n.unsqueeze(-1) + log_p_RV[of_one] for prior_n, of_one in zip(self.priors, rows, strict=True))
        return torch.stack([joint_nV.logsumexp(0) for joint_nV in joint])


class _CachedMixtures(_Mixtures):
    """On one key-value cache that holds the prompts of all documents.

    Args:
        generator: Reads the documents.
        read: Their prompts.
        members: Numbers of the prompts of each question.
        priors: log p(d|x) of each question, `[n]`.
    """

    def __init__(
        self, generator: Generator, read: ReadPrompts, members: Sequence[list[int]], priors: Sequence[Tensor]
    ) -> None:
        super().__init__(generator, priors)
        self.read, self.members = read, list(members)

    def first(self) -> Tensor:
        """As `_Mixtures.first`."""
        return self._mixture(self.read.last_RH, self._rows())

    def after(self, chosen: Sequence[int]) -> Tensor:
        """As `_Mixtures.after`."""
        token = {i: token for members, token in zip(self.members, chosen, strict=True) for i in members}
        return self._mixture(self.read.extend([token[i] for i in self.read.indices]), self._rows())

    def keep(self, questions: Sequence[int]) -> None:
        """As `_Mixtures.keep`."""
        self.members, self.priors = [self.members[q] for q in questions], [self.priors[q] for q in questions]
        rows = self._rows()
        self.read.keep([row for of_question in rows for row in of_question])

    def _rows(self) -> list[list[int]]:
        row = {i: r for r, i in enumerate(self.read.indices)}
        return [[row[i] for i in members] for members in self.members]


class _RereadMixtures(_Mixtures):
    """Without a cache, for architectures that it does not serve: every sequence is read in full at every step.

    Args:
        generator: Reads the documents.
        prompts: For each question, one prompt per document.
        priors: log p(d|x) of each question, `[n]`.
    """

    def __init__(self, generator: Generator, prompts: Sequence[list[list[int]]], priors: Sequence[Tensor]) -> None:
        super().__init__(generator, priors)
        self.prompts = list(prompts)

    def first(self) -> Tensor:
        """As `_Mixtures.first`."""
        rows = [prompt for of_question in self.prompts for prompt in of_question]
        numbers = iter(range(len(rows)))
        ids_RT, lengths_R = pad_right(rows, self.model.end_of_answer_id, self.model.device)
        self.model.tokens_read += sum(map(len, rows))
        hidden_RTH = self.model.hidden(ids_RT, None)
        last_RH = hidden_RTH[torch.arange(len(rows)), lengths_R - 1]
        return self._mixture(last_RH, [[next(numbers) for _ in of_question] for of_question in self.prompts])

    def after(self, chosen: Sequence[int]) -> Tensor:
        """As `_Mixtures.after`."""
        self.prompts = [
            [[*prompt, token] for prompt in of_question]
            for of_question, token in zip(self.prompts, chosen, strict=True)
        ]
        return self.first()

    def keep(self, questions: Sequence[int]) -> None:
        """As `_Mixtures.keep`."""
        self.prompts, self.priors = [self.prompts[q] for q in questions], [self.priors[q] for q in questions]
