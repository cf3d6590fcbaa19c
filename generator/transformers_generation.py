"""Replies by transformers' `generate`, for architectures that `generator.decoding` cannot serve.

Those keep a state from token to token in place of keys and values, or make masks of their own. It is also the
reference that the decoding of this library is compared with.

Legend: B rows, V vocabulary, S steps.
"""

from collections.abc import Iterator, Sequence
from queue import Queue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from generator.configs import DecodingConfig
from generator.decoding import AnswerIds, GeneratedReply, StopTexts
from generator.language_model import LanguageModel
from generator.log_probs import token_log_probs
from generator.padding import pad_left
from indexes.batching import token_budget_batches


class _StepLogProbs(LogitsProcessor):
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
        for ids_B, kept in ((chosen_B, self._chosen_SB), (torch.full_like(chosen_B, self._end), self._end_SB)):
            kept.append(token_log_probs(self._logits_BV.float(), ids_B))

    def finish(self, last_B: Tensor) -> tuple[list[list[float]], list[list[float]]]:
        """Log p of the chosen tokens and of the end-of-answer token, `[S][B]`, once the last tokens are known."""
        self._take(last_B)
        return torch.stack(self._chosen_SB).tolist(), torch.stack(self._end_SB).tolist()


class _StopOnEvent(StoppingCriteria):
    """Ends the generation once the consumer of the stream has gone."""

    def __init__(self, event: Event) -> None:
        self.event = event

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool, device=input_ids.device)


class _StopInAnswer(StoppingCriteria):
    """Ends a sequence when its answer contains one of some texts.

    Args:
        found: Looks for them.
        prompts: Token ids of the prompts, without padding.
        width: Tokens of a sequence before its reply, padding included.
    """

    def __init__(self, found: StopTexts, prompts: Sequence[list[int]], width: int) -> None:
        self._found, self._prompts, self._width = found, prompts, width

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        replies = input_ids[:, self._width :].tolist()
        return torch.tensor(self._found.found_in(self._prompts, replies), device=input_ids.device)


class _Tokens(BaseStreamer):
    """Hands the tokens of one reply to another thread; None is the end."""

    def __init__(self) -> None:
        self.queue: Queue[int | None] = Queue()
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """Receive the prompt, which is first, or a further token."""
        if not self._is_prompt:
            self.queue.put(int(value))
        self._is_prompt = False

    def end(self) -> None:
        """Finish the reply."""
        self.queue.put(None)


def generate_replies(
    model: LanguageModel,
    prompts: Sequence[list[int]],
    config: DecodingConfig,
    *,
    max_tokens_per_batch: int,
    stop: Sequence[str] = (),
    answer_ids: AnswerIds | None = None,
) -> list[GeneratedReply]:
    """Replies under the active adapter; arguments as for `generator.decoding.Decoding`.

    Answers that are written with other tokens than they were generated with, or that were cut off, keep None as their
    log-probability.
    """
    replies: dict[int, GeneratedReply] = {}
    for batch in _batches(model, [len(prompt) + config.max_new_tokens for prompt in prompts], max_tokens_per_batch):
        rows = [prompts[i] for i in batch]
        width = max(map(len, rows))
        options: dict[str, Any] = {}
        if stop:
            criterion = _StopInAnswer(StopTexts(model.chat, stop), rows, width)
            options["stopping_criteria"] = StoppingCriteriaList([criterion])
        # Under "mixed" the head multiplies in bfloat16 inside of `generate` and in float32 where answers are scored.
        steps = None if answer_ids is None or model.mixed else _StepLogProbs(model.end_of_answer_id)
        if steps is not None:
            options["logits_processor"] = LogitsProcessorList([steps])
        output = _run(model, rows, config, **options)[:, width:]
        found = [GeneratedReply(_until_end(model, reply)) for reply in output.tolist()]
        if steps is not None and answer_ids is not None:
            chosen_SB, end_SB = steps.finish(output[:, -1])
            for row, reply in enumerate(found):
                ids = reply.token_ids
                if ids[-1] in model.chat.stop_ids and answer_ids(batch[row], ids)[:-1] == ids[:-1]:
                    last = len(ids) - 1
                    reply.log_prob = sum(chosen_SB[step][row] for step in range(last)) + end_SB[last][row]
        replies |= dict(zip(batch, found, strict=True))
    return [replies[i] for i in range(len(prompts))]


def stream_tokens(model: LanguageModel, prompt: list[int], config: DecodingConfig, role: str) -> Iterator[int]:
    """The tokens of one reply as they are generated, with the one that ends it."""
    streamer, abandoned = _Tokens(), Event()
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with torch.no_grad(), model.use(role):
                stopping = StoppingCriteriaList([_StopOnEvent(abandoned)])
                _run(model, [prompt], config, streamer=streamer, stopping_criteria=stopping)
        except BaseException as error:  # handed to the consumer, which raises it
            failure.append(error)
            streamer.end()

    worker = Thread(target=work, daemon=True)
    worker.start()
    try:
        while (token := streamer.queue.get()) is not None:
            yield token
    finally:
        abandoned.set()  # a consumer that leaves ends the generation
        worker.join()
    if failure:
        raise failure[0]


def _batches(model: LanguageModel, lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of the prompts of each batch; of one length each, where the model does not support left padding."""
    if model.supports_left_padding:
        return token_budget_batches(lengths, max_tokens)
    batches = []
    for length in sorted(set(lengths)):
        rows = [i for i, other in enumerate(lengths) if other == length]
        batches += [[rows[i] for i in batch] for batch in token_budget_batches([length] * len(rows), max_tokens)]
    return batches


def _run(model: LanguageModel, prompts: Sequence[list[int]], config: DecodingConfig, **options: Any) -> Tensor:
    """`generate` with these settings and no others: ids of padded prompts and replies `[B, T]`.

    transformers fills what a config leaves open from the model's own `generation_config` (a repetition penalty,
    say); answers would then not be the argmax, and their log-probability not the one reported.
    """
    # Generation continues at the right end, so prompts are padded on the left.
    input_ids, attention_mask, _ = pad_left(list(prompts), model.end_of_answer_id, model.device)
    base: Any = model.base_model
    own = base.generation_config
    base.generation_config = GenerationConfig()
    try:
        with model.autocast():
            output: Tensor = base.generate(
                input_ids, attention_mask=attention_mask, generation_config=_settings(model, config), **options
            )
    finally:
        base.generation_config = own
    return output


def _settings(model: LanguageModel, config: DecodingConfig) -> GenerationConfig:
    sampling = {"temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=config.temperature > 0,
        eos_token_id=model.chat.stop_ids,
        pad_token_id=model.end_of_answer_id,
        **(sampling if config.temperature > 0 else {}),
    )


def _until_end(model: LanguageModel, reply: list[int]) -> list[int]:
    """A reply without the padding after the token that ended it."""
    stop_ids = model.chat.stop_ids
    return reply[: next((i for i, token in enumerate(reply, 1) if token in stop_ids), len(reply))]
