"""Answers and their log-probabilities: `p_g(y | x, d_z)` of DRO (arXiv 2505.03075).

Legend: B sequences.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.generation.stopping_criteria import StopStringCriteria

from generator.answer_sequences import AnswerSequence, ReadSequences, answer_batches, read_sequences
from generator.chat import Chat, ReplyReader
from generator.configs import DecodingConfig
from generator.language_model import LanguageModel
from generator.padding import pad_left
from generator.prompts import AnswerPrompt, encode_without_special_tokens
from generator.recording import Recorded, StepLogProbs, is_recording
from indexes.batching import token_budget_batches
from indexes.corpora.passage import Passage
from indexes.errors import DataError

logger = logging.getLogger(__name__)

ROLE = "generator"


class _StopOnEvent(StoppingCriteria):
    """Stops generation once the consumer of the stream has gone."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class _AnswerStreamer(TextIteratorStreamer):
    """Streams the answer in a reply, without thoughts and without the token that ends it (`ReplyReader`)."""

    def __init__(self, model: LanguageModel, prompt_ids: list[int]) -> None:
        super().__init__(model.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=600.0)
        self._reader = ReplyReader(model.chat, prompt_ids)

    def put(self, value: Any) -> None:
        """Receive the prompt, which is first, or a further token of the reply."""
        if self.next_tokens_are_prompt:
            super().put(value)  # type: ignore[no-untyped-call]
            return
        for token in value.flatten().tolist():
            self._emit(self._reader.read(token))

    def end(self) -> None:
        """Finish the reply."""
        self._emit(self._reader.finish())
        super().end()  # type: ignore[no-untyped-call]

    def _emit(self, ids: list[int]) -> None:
        if ids:
            super().put(torch.tensor(ids))  # type: ignore[no-untyped-call]


class _StopInAnswer(StoppingCriteria):
    """Ends a sequence when its answer contains one of some texts; in a thought they end nothing.

    Args:
        chat: Separates thoughts from answers.
        prompts: Token ids of the prompts, without padding.
        width: Tokens of a sequence before its reply, padding included.
        stop: The texts.
    """

    def __init__(self, chat: Chat, prompts: Sequence[list[int]], width: int, stop: Sequence[str]) -> None:
        self._chat, self._prompts, self._width, self._stop = chat, prompts, width, stop
        self._complete = StopStringCriteria(chat.tokenizer, list(stop))

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        complete_B = self._complete(input_ids, scores)
        for row in complete_B.nonzero().flatten().tolist():
            reply = self._chat.read_reply(self._prompts[row], input_ids[row, self._width :].tolist())
            text = str(self._chat.tokenizer.decode(reply.answer_ids))
            complete_B[row] = any(s in text for s in self._stop)
        return complete_B


class Generator:
    """Answers a question from passages, and scores given answers.

    Args:
        language_model: The model; the adapter `"generator"` answers.
        prompt: The answer prompt.
        config: Decoding.
        max_tokens_per_batch: Sequences x longest sequence of one forward pass.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        prompt: AnswerPrompt | None = None,
        config: DecodingConfig | None = None,
        max_tokens_per_batch: int = 16384,
    ) -> None:
        self.language_model = language_model
        self.prompt = prompt or AnswerPrompt()
        self.config = config or DecodingConfig()
        self.max_tokens_per_batch = max_tokens_per_batch

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

    def log_probs_of_generated(self, rows: Sequence[AnswerSequence], recorded: Recorded) -> Tensor:
        """`log_probs` for answers that were generated inside a `recording`, which has scored most of them.

        A recorded score is used where exactly these tokens were generated after exactly this prompt. A further pass
        scores answers that were cut off at `max_new_tokens` (their end was not predicted), and those
        whose text, stripped of spaces and thoughts, is written with other tokens than it was generated with.
        In float32 both agree to 1e-4 nats; in bfloat16 they differ as much as passes of different shapes do.
        """
        keys = [(*row.prompt_ids, *row.answer_ids[:-1]) for row in rows]
        found = [recorded.get(key) for key in keys]
        missing = [i for i, value in enumerate(found) if value is None]
        result = torch.tensor([0.0 if value is None else value for value in found])
        if missing:
            result[missing] = self.log_probs([rows[i] for i in missing])
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

    @torch.no_grad()
    def generate(self, questions: Sequence[str], passages: Sequence[Sequence[Passage]]) -> list[str]:
        """Answers to several questions, each from its own passages, in the order given."""
        return self.complete([self.prompt_ids(q, p) for q, p in zip(questions, passages, strict=True)])

    @torch.no_grad()
    def complete(self, prompts: Sequence[list[int]], *, role: str = ROLE) -> list[str]:
        """Replies to any prompts given as token ids, in the order given, decoded as `generate` does.

        Args:
            prompts: Token ids.
            role: The active adapter.
        """
        answers = [""] * len(prompts)
        lengths = [len(p) + self.config.max_new_tokens for p in prompts]
        for batch in token_budget_batches(lengths, self.max_tokens_per_batch):
            for i, text in zip(batch, self.continuations([prompts[i] for i in batch], role=role), strict=True):
                answers[i] = text.strip()
        return answers

    @torch.no_grad()
    def continuations(self, prompts: Sequence[list[int]], *, role: str = ROLE, stop: Sequence[str] = ()) -> list[str]:
        """Continuations of prompts in one batch, with the spaces around them and without thoughts.

        `generator.chat.ReplyReader` removes the thoughts; a continuation that is cut off inside one is empty.

        Args:
            prompts: Token ids.
            role: The active adapter.
            stop: A continuation ends before the first of these texts; by default only where the model ends it.
        """
        if len({len(prompt) for prompt in prompts}) > 1 and not self.language_model.supports_left_padding:
            return self._by_length(prompts, role=role, stop=stop)
        model = self.language_model
        # Generation continues at the right end, so prompts are padded on the left (and only here).
        input_ids, attention_mask, _ = pad_left(list(prompts), model.end_of_answer_id, model.device)
        # transformers stops after the token that completes the text; anything after the text is cut off here.
        stopping: dict[str, Any] = {}
        if stop:
            criterion = _StopInAnswer(self.language_model.chat, prompts, input_ids.shape[1], stop)
            stopping["stopping_criteria"] = StoppingCriteriaList([criterion])
        # Under "mixed" the head multiplies in bfloat16 while it generates and in float32 while it scores.
        steps = None
        if is_recording() and role == ROLE and not stop and not self.language_model.mixed:
            steps = StepLogProbs(self.language_model.end_of_answer_id)
            stopping["logits_processor"] = LogitsProcessorList([steps])
        with self.language_model.use(role):
            output = self._run(input_ids=input_ids, attention_mask=attention_mask, **stopping)
        replies = output[:, input_ids.shape[1] :]
        if steps is not None:
            steps.finish(prompts, replies, set(self._hf_config().eos_token_id))
        texts = [text for text, _ in self.answers_in(prompts, replies.tolist())]
        return [text[: min([text.find(s) for s in stop if s in text], default=len(text))] for text in texts]

    def answers_in(self, prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> list[tuple[str, bool]]:
        """The answers in some replies, given as token ids, and whether thoughts were removed from them.

        A reply that was cut off inside a thought has no answer; that is logged, with what to do.
        """
        model = self.language_model
        found = [model.chat.read_reply(*both) for both in zip(prompts, replies, strict=True)]
        if cut_off := sum(reply.is_cut_off for reply in found):
            logger.warning(
                "%d of %d replies were still in a thought after %d tokens, and are empty. Raise "
                "max_new_tokens, or switch thinking off (chat_template_kwargs, such as enable_thinking).",
                cut_off,
                len(found),
                self.config.max_new_tokens,
            )
        decode = model.tokenizer.decode
        return [(str(decode(reply.answer_ids, skip_special_tokens=True)), reply.has_thought) for reply in found]

    def _by_length(self, prompts: Sequence[list[int]], **settings: Any) -> list[str]:
        """The same for models that do not support padding on the left: prompts of one length at a time."""
        texts: dict[int, str] = {}
        for length in sorted({len(prompt) for prompt in prompts}):
            rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
            texts |= dict(zip(rows, self.continuations([prompts[i] for i in rows], **settings), strict=True))
        return [texts[i] for i in range(len(prompts))]

    @contextmanager
    def greedy_decoding(self) -> Iterator[None]:
        """Context manager: greedy decoding, whatever the temperature is set to."""
        config = self.config
        self.config = replace(config, temperature=0.0, top_p=1.0)
        try:
            yield
        finally:
            self.config = config

    def _run(self, **inputs: Any) -> Any:
        """`generate` with these settings and no others.

        transformers fills what a config leaves open from the model's own `generation_config` (a repetition penalty,
        say); answers would then not be the argmax, and their log-probability not the one reported.
        """
        base: Any = self.language_model.base_model
        own = base.generation_config
        base.generation_config = GenerationConfig()
        try:
            with self.language_model.autocast():
                return base.generate(generation_config=self._hf_config(), **inputs)
        finally:
            base.generation_config = own

    def _hf_config(self) -> GenerationConfig:
        model, config = self.language_model, self.config
        sampling = {"temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=config.max_new_tokens,
            do_sample=config.temperature > 0,
            eos_token_id=model.chat.stop_ids,
            pad_token_id=model.end_of_answer_id,
            **(sampling if config.temperature > 0 else {}),
        )

    def stream(self, question: str, passages: Sequence[Passage]) -> Iterator[str]:
        """The answer piece by piece, as it is generated, without thoughts."""
        prompt = self.prompt_ids(question, passages)
        streamer = _AnswerStreamer(self.language_model, prompt)
        failure: list[BaseException] = []
        abandoned = Event()
        worker = Thread(target=self._stream_worker, args=(prompt, streamer, failure, abandoned), daemon=True)
        worker.start()
        try:
            yield from streamer
        finally:
            abandoned.set()  # a consumer that leaves ends the generation
            worker.join()
        if failure:
            raise failure[0]

    @torch.no_grad()
    def _stream_worker(
        self, prompt: list[int], streamer: "_AnswerStreamer", failure: list[BaseException], abandoned: Event
    ) -> None:
        model = self.language_model
        input_ids, attention_mask, _ = pad_left([prompt], model.end_of_answer_id, model.device)
        try:
            with self.language_model.use(ROLE):
                self._run(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([_StopOnEvent(abandoned)]),
                )
        except BaseException as error:  # handed to the consumer, which raises it
            failure.append(error)
            streamer.end()
