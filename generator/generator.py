"""Answers and their log-probabilities: `p_g(y | x, d_z)` of DRO (arXiv 2505.03075).

Legend: B sequences.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from generator.answer_sequences import AnswerSequence, ReadSequences, answer_batches, read_sequences
from generator.chat import Reply, ReplyReader
from generator.configs import DecodingConfig
from generator.decoding import AnswerIds, Decoding, GeneratedReply
from generator.language_model import LanguageModel
from generator.prompt_reading import ReadingLimits, ReadPrompts, read_prompts
from generator.prompts import AnswerPrompt, encode_without_special_tokens
from generator.transformers_generation import generate_replies, stream_tokens
from indexes.corpora.passage import Passage
from indexes.errors import DataError

logger = logging.getLogger(__name__)

ROLE = "generator"


class _Pieces(TextStreamer):
    """Text in pieces of whole words, of tokens that are put in one after the other."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self._finished: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Receive text that further tokens do not change."""
        self._finished.append(text)

    def take(self) -> list[str]:
        """What was finished since the last call."""
        taken, self._finished = self._finished, []
        return [text for text in taken if text]


class Generator:
    """Answers a question from passages, and scores given answers.

    Args:
        language_model: The model; the adapter `"generator"` answers.
        prompt: The answer prompt.
        config: Decoding.
        max_tokens_per_batch: Sequences x longest sequence of one forward pass.
        max_cache_bytes: Keys and values of the prompts that are answered together.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        prompt: AnswerPrompt | None = None,
        config: DecodingConfig | None = None,
        max_tokens_per_batch: int = 16384,
        max_cache_bytes: int = 4 * 2**30,
    ) -> None:
        self.language_model = language_model
        self.prompt = prompt or AnswerPrompt()
        self.config = config or DecodingConfig()
        self.max_tokens_per_batch = max_tokens_per_batch
        self.max_cache_bytes = max_cache_bytes

    def __repr__(self) -> str:
        return (
            f"Generator({self.language_model.name or type(self.language_model.base_model).__name__!r}, {self.config})"
        )

    # -- sequences ---------------------------------------------------------------------------------------------

    def encode_answer(self, answer: str) -> list[int]:
        """Answer ids, closed by the end-of-answer token, which is scored like every other.

        They continue the prompt as the chat template does, after the white space that it writes there.

        Raises:
            DataError: An empty answer.
        """
        if not answer.strip():
            raise DataError("An answer to score must hold at least one visible character, got an empty one.")
        model = self.language_model
        text = model.chat.lead + model.chat.escape_special_tokens(answer)
        ids = encode_without_special_tokens(model.tokenizer, text, after=model.chat.reply_opening)
        return [*ids, model.end_of_answer_id]

    def answer_sequence(self, question: str, passages: Sequence[Passage], answer: str) -> AnswerSequence:
        """`prompt_ids + answer_ids` within the context; passages are cut, never question or answer."""
        answer_ids = self.encode_answer(answer)
        return AnswerSequence(self._prompt_ids(question, passages, reserve=len(answer_ids)), answer_ids)

    def generated_sequence(self, prompt_ids: list[int], text: str) -> AnswerSequence:
        """A generated answer after the prompt that it was generated from, to be scored; it may be empty."""
        # A model may end its answer immediately. That is scored as well, although nothing should be trained on it.
        empty = [self.language_model.end_of_answer_id]
        return AnswerSequence(prompt_ids, self.encode_answer(text) if text.strip() else empty)

    def fits(self, question: str, answer: str, num_passages: int) -> bool:
        """Whether this question and answer fit the context with so many passages, cut to nothing."""
        try:
            self.answer_sequence(question, [Passage("", "", "")] * num_passages, answer)
        except DataError:
            return False
        return True

    def why_too_long(self, question: str, num_passages: int) -> str | None:
        """Why a question is too long for a prompt with so many passages, cut to nothing; None where it fits."""
        room = self.language_model.context_length - self.config.max_new_tokens
        model = self.language_model
        needed = self.prompt.least_tokens(model.tokenizer, question, num_passages, chat=model.chat)
        if needed <= room:
            return None
        return (
            f"its answer prompt with {num_passages} passages must fit into {room} tokens ({self.config.max_new_tokens} "
            f"more are for the answer) and takes {needed}"
        )

    def prompt_ids(self, question: str, passages: Sequence[Passage]) -> list[int]:
        """The prompt that `generate` answers: room for `max_new_tokens` is kept."""
        return self._prompt_ids(question, passages, reserve=self.config.max_new_tokens)

    def _prompt_ids(self, question: str, passages: Sequence[Passage], *, reserve: int) -> list[int]:
        room = self.language_model.context_length - reserve
        if room <= 0:
            raise DataError(
                f"An answer must be shorter than the {self.language_model.context_length} tokens that the model reads; "
                f"that to {question!r} takes {reserve}. Leave it out, or take a model with a longer context."
            )
        model = self.language_model
        return self.prompt.encode(model.tokenizer, question, passages, max_tokens=room, chat=model.chat)

    # -- log p(y | x, d) ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_prob(self, question: str, passages: Sequence[Passage], answer: str) -> float:
        """`log p(answer | question, passages)`: the sum over answer tokens, end-of-answer included, in nats."""
        return float(self.log_probs([self.answer_sequence(question, passages, answer)])[0])

    def log_probs(self, rows: Sequence[AnswerSequence]) -> Tensor:
        """The same for many sequences, batched by token budget: float32 `[len(rows)]` on the CPU, in their order."""
        result = torch.empty(len(rows))  # made outside of inference mode, so that autograd accepts it
        with self.language_model.use(ROLE), torch.inference_mode():
            for batch in answer_batches(self.language_model, rows, self.max_tokens_per_batch):
                result[batch] = self.score([rows[i] for i in batch])[0].cpu()
        return result

    def token_log_probs(self, rows: Sequence[AnswerSequence]) -> list[Tensor]:
        """Log p of every answer token given those before it: float32 `[L]` for each sequence, on the CPU, in order."""
        result: dict[int, Tensor] = {}
        with self.language_model.use(ROLE), torch.inference_mode():
            for batch in answer_batches(self.language_model, rows, self.max_tokens_per_batch):
                read = self.forward([rows[i] for i in batch])
                of_each = read.token_log_probs(self.language_model.head).cpu().split(read.answer_lengths_B.tolist())
                result |= dict(zip(batch, of_each, strict=True))
        return [result[i].clone() for i in range(len(rows))]  # as in log_probs

    def score(
        self, rows: Sequence[AnswerSequence], token_weights_N: Tensor | None = None
    ) -> tuple[Tensor, ReadSequences]:
        """One forward pass with gradient, under whatever adapter is active.

        Args:
            rows: Prompts with their answers.
            token_weights_N: Weight of each answer token, sequence by sequence; None: 1.

        Returns:
            Float32 log-probabilities of the answers `[B]`, and the hidden states behind them.
        """
        read = self.forward(rows)
        return read.log_probs(self.language_model.head, token_weights_N), read

    def forward(self, rows: Sequence[AnswerSequence]) -> ReadSequences:
        """Hidden states of sequences, with gradient, under whatever adapter is active."""
        return read_sequences(self.language_model, rows)

    # -- answers -----------------------------------------------------------------------------------------------

    def generate(self, questions: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[str]:
        """Answers to several questions, each from its own passages, in the order given."""
        return self.complete([self.prompt_ids(q, p) for q, p in zip(questions, passages, strict=True)])

    def complete(self, prompts: Sequence[list[int]], *, role: str = ROLE) -> list[str]:
        """Replies to any prompts given as token ids, in the order given, decoded as `generate` does.

        Args:
            prompts: Token ids.
            role: The active adapter.
        """
        return [text.strip() for text in self.continuations(prompts, role=role)]

    def continuations(self, prompts: Sequence[list[int]], *, role: str = ROLE, stop: Sequence[str] = ()) -> list[str]:
        """Continuations of prompts, with the spaces around them and without thoughts.

        `generator.chat.ReplyReader` removes the thoughts; a continuation that is cut off inside one is empty.

        Args:
            prompts: Token ids.
            role: The active adapter.
            stop: A continuation ends before the first of these texts; by default only where the model ends it.
        """
        texts = self._texts(prompts, self._replies(prompts, role=role, stop=stop))
        # A reply ends after the token that completes the text; anything after the text is cut off here.
        return [text[: min([text.find(s) for s in stop if s in text], default=len(text))] for text in texts]

    def complete_scored(self, prompts: Sequence[list[int]]) -> tuple[list[str], list[float]]:
        """What `complete` returns, and the log-probability of each answer: that of its `generated_sequence`.

        It comes from the pass that generates the answer. Where the answer, stripped of spaces and thoughts, is written
        with other tokens than it was generated with, these are read behind its prompt, which is still in the cache. In
        float32 it is that of `log_probs` to 1e-4 nats; in bfloat16 passes of different shapes differ by more.
        """
        replies = self._replies(prompts, role=ROLE, answer_ids=self._scored_ids(prompts))
        texts = [text.strip() for text in self._texts(prompts, replies)]
        missing = [i for i, reply in enumerate(replies) if reply.log_prob is None]
        if missing:  # transformers generated them
            scores = self.log_probs([self.generated_sequence(prompts[i], texts[i]) for i in missing])
            for i, score in zip(missing, scores.tolist(), strict=True):
                replies[i].log_prob = score
        return texts, [float(reply.log_prob or 0.0) for reply in replies]

    def complete_and_compare(self, prompts: Sequence[Sequence[list[int]]]) -> list[tuple[list[str], Tensor]]:
        """Different answers to the prompts of each question, and what every prompt of the question gives each of them.

        Args:
            prompts: Token ids of several prompts per question.

        Returns:
            For each question its answers, each once, in the order of the prompts that they come from first; and their
            log-probabilities, float32 `[answers, prompts]` on the CPU.
        """
        flat = [prompt for of_question in prompts for prompt in of_question]
        numbers = iter(range(len(flat)))
        together = [[next(numbers) for _ in of_question] for of_question in prompts]
        if not self.language_model.supports_shared_prefix:
            return self._compare_in_passes(flat, together)
        found: dict[int, tuple[list[str], Tensor]] = {}
        owner = {i: q for q, members in enumerate(together) for i in members}
        with self._reading(ROLE):
            for read in self.read(flat, together=together):
                replies = Decoding(read, flat, self.config, leaves=False).run()
                questions = sorted({owner[i] for i in read.indices})
                texts = {q: self._distinct(flat, [(i, replies[i]) for i in together[q]]) for q in questions}
                answers = {q: [self.generated_sequence([], text).answer_ids for text in texts[q]] for q in questions}
                scores = read.log_probs(range(len(read)), [answers[owner[i]] for i in read.indices])
                by_prompt = dict(zip(read.indices, scores, strict=True))
                found |= {q: (texts[q], torch.stack([by_prompt[i] for i in together[q]], dim=1)) for q in questions}
        return [found[q] for q in range(len(prompts))]

    def _compare_in_passes(
        self, prompts: Sequence[list[int]], together: Sequence[Sequence[int]]
    ) -> list[tuple[list[str], Tensor]]:
        """The same where prompts cannot be kept: each is read again with each answer."""
        replies = self._replies(prompts, role=ROLE)
        texts = [self._distinct(prompts, [(i, replies[i]) for i in members]) for members in together]
        rows = [
            self.generated_sequence(prompts[i], text)
            for members, of_question in zip(together, texts, strict=True)
            for text in of_question
            for i in members
        ]
        sizes = [len(of_question) * len(members) for members, of_question in zip(together, texts, strict=True)]
        scores = self.log_probs(rows).split(sizes)
        return [(of_question, s.view(len(of_question), -1)) for of_question, s in zip(texts, scores, strict=True)]

    def _distinct(self, prompts: Sequence[list[int]], replies: Sequence[tuple[int, GeneratedReply]]) -> list[str]:
        texts = self._texts([prompts[i] for i, _ in replies], [reply for _, reply in replies])
        return list(dict.fromkeys(text.strip() for text in texts))

    def _replies(
        self,
        prompts: Sequence[list[int]],
        *,
        role: str,
        stop: Sequence[str] = (),
        answer_ids: AnswerIds | None = None,
    ) -> list[GeneratedReply]:
        """What is generated after prompts, in their order."""
        model, found = self.language_model, dict[int, GeneratedReply]()
        with self._reading(role):
            if not model.supports_shared_prefix:
                limit = self.max_tokens_per_batch
                return generate_replies(
                    model, prompts, self.config, max_tokens_per_batch=limit, stop=stop, answer_ids=answer_ids
                )
            for read in self.read(prompts):
                found |= Decoding(read, prompts, self.config, stop=stop, answer_ids=answer_ids).run()
        return [found[i] for i in range(len(prompts))]

    def read(
        self, prompts: Sequence[list[int]], *, together: Sequence[Sequence[int]] | None = None
    ) -> Iterator[ReadPrompts]:
        """Read prompts under the active adapter, in groups, with room for answers; see `read_prompts`."""
        limits = ReadingLimits(self.max_tokens_per_batch, self.max_cache_bytes)
        return read_prompts(self.language_model, prompts, self.config.max_new_tokens, limits, together=together)

    @contextmanager
    def _reading(self, role: str) -> Iterator[None]:
        """Context manager: the adapter of `role` reads and writes, without autograd."""
        with self.language_model.use(role), torch.inference_mode():
            yield

    def _scored_ids(self, prompts: Sequence[list[int]]) -> AnswerIds:
        """Answers of replies as they are scored; see `generated_sequence`."""

        def answer_ids(number: int, reply: list[int]) -> list[int]:
            text = self._text(self.language_model.chat.read_reply(prompts[number], reply))
            return self.generated_sequence([], text.strip()).answer_ids

        return answer_ids

    def _texts(self, prompts: Sequence[list[int]], replies: Sequence[GeneratedReply]) -> list[str]:
        return [text for text, _ in self.answers_in(prompts, [reply.token_ids for reply in replies])]

    def _text(self, reply: Reply) -> str:
        return str(self.language_model.tokenizer.decode(reply.answer_ids, skip_special_tokens=True))

    def answers_in(self, prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> list[tuple[str, bool]]:
        """The answers in some replies, given as token ids, and whether thoughts were removed from them.

        A reply that was cut off inside a thought has no answer; that is logged, with what to do.
        """
        found = [self.language_model.chat.read_reply(*both) for both in zip(prompts, replies, strict=True)]
        if cut_off := sum(reply.is_cut_off for reply in found):
            logger.warning(
                "%d of %d replies were still in a thought after %d tokens, and are empty. Raise "
                "max_new_tokens, or switch thinking off (chat_template_kwargs, such as enable_thinking).",
                cut_off,
                len(found),
                self.config.max_new_tokens,
            )
        return [(self._text(reply), reply.has_thought) for reply in found]

    @contextmanager
    def greedy_decoding(self) -> Iterator[None]:
        """Context manager: greedy decoding, whatever the temperature is set to."""
        config = self.config
        self.config = replace(config, temperature=0.0, top_p=1.0)
        try:
            yield
        finally:
            self.config = config

    def stream(self, question: str, passages: Sequence[Passage]) -> Iterator[str]:
        """The answer piece by piece, as it is generated, without thoughts."""
        prompt = self.prompt_ids(question, passages)
        reader, pieces = ReplyReader(self.language_model.chat, prompt), _Pieces(self.language_model.tokenizer)
        for token in self._tokens(prompt):
            for answer_id in reader.read(token):
                pieces.put(torch.tensor([answer_id]))  # type: ignore[no-untyped-call]
            yield from pieces.take()
        for answer_id in reader.finish():
            pieces.put(torch.tensor([answer_id]))  # type: ignore[no-untyped-call]
        pieces.end()  # type: ignore[no-untyped-call]
        yield from pieces.take()

    def _tokens(self, prompt: list[int]) -> Iterator[int]:
        """The tokens of one reply, as they are generated."""
        if not self.language_model.supports_shared_prefix:
            yield from stream_tokens(self.language_model, prompt, self.config, ROLE)
            return
        decoding: Decoding | None = None
        # The adapter is not held between two tokens: their consumer may answer other questions meanwhile, or stop.
        while decoding is None or not decoding.is_complete:
            with self._reading(ROLE):
                if decoding is None:
                    decoding = Decoding(next(self.read([prompt])), [prompt], self.config)
                token = decoding.step()[0]
            yield token
