"""The phases of a training run: operations of each over the whole data, and its memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from rag.planning.flops import (
    ModelShape,
    QuestionShape,
    causal_pairs,
    e_sample_flops,
    e_score_flops,
    forward_flops,
    m_generator_flops,
    m_selector_flops,
    prompts_read,
    reading_flops,
    sequences_read,
    writing_flops,
)
from rag.planning.training_job import SINGLE_PASSAGES, TrainingJob
from rag.planning.training_memory import (
    PRECISIONS,
    Precision,
    StepMemory,
    answer_bytes,
    cache_bytes,
    e_sample_bytes,
    e_score_bytes,
    m_generator_bytes,
    m_selector_bytes,
)
from retriever.selector_config import QuestionLikelihoodOptions

ENCODING = "encode corpus"
"""Name of the phase that is a command of its own: the base is not loaded in it."""


CALLS_PER_LAYER = 70
"""Operations of torch in one layer of a decoding step, with its adapters."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Answers that are written token by token, several at a time."""

    body: int = 0
    """Operations of the model's layers."""
    head: int = 0
    """Operations of the output head."""
    cache_read: int = 0
    """Bytes of keys and values that are read."""
    calls: int = 0
    """Calls of torch's operations."""


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One phase: its operations over the whole data, and its memory besides what is always in use."""

    name: str
    times: int
    """Executions in a run."""
    body: int
    """Operations of the products in the model's layers, for one execution."""
    attention: int = 0
    """Operations on pairs of query and key, for one execution."""
    head: int = 0
    """Operations of the output head, for one execution."""
    writing: Writing = Writing()
    """Besides, for one execution."""
    memory: StepMemory
    training: bool = False
    """Whether gradients and optimizer state are in memory."""
    per_round: float = 0
    """Executions in a round, on average; 0 for what is not part of one."""

    @property
    def flops(self) -> int:
        """Operations of one execution."""
        return self.body + self.attention + self.head + self.writing.body + self.writing.head


def training_steps(job: TrainingJob) -> list[TrainingStep]:
    """All phases of a run, in order."""
    return [_encoding(job), *_supervised(job), *_round(job), *_evaluation(job)]


def _encoding(job: TrainingJob) -> TrainingStep:
    t = job.texts
    memory = StepMemory(passing=job.encoder.bytes(t.passage_tokens))
    return TrainingStep(name=ENCODING, times=1, body=t.passages * job.encoder.flops(t.passage_tokens), memory=memory)


def _supervised(job: TrainingJob) -> list[TrainingStep]:
    """Supervised warm-up: an M-step on one permutation per question."""
    if not job.config.supervised.num_train_epochs:
        return []
    single = {"e_step.num_permutations": 1, "e_step.proposals_per_sample": 1, "e_step.exact": False}
    one = job.config.with_settings(single | {"e_step.marginalization": "sequence"})
    steps = _m_step(replace(job, config=one, question=replace(job.question, num_permutations=1)))
    return [
        TrainingStep(
            name="supervised epochs",
            times=job.config.supervised.num_train_epochs,
            body=sum(step.body for step in steps),
            attention=sum(step.attention for step in steps),
            head=sum(step.head for step in steps),
            memory=max((step.memory for step in steps), key=lambda memory: memory.peak),
            training=True,
        )
    ]


def _round(job: TrainingJob) -> list[TrainingStep]:
    sampling = _step(
        job,
        "E: sample",
        job.config.rounds,
        lambda shape: _sampling_flops(shape, job),
        e_sample_bytes(
            job.shape,
            PRECISIONS[job.dtype],
            job.proposed,
            questions=job.config.e_step.batch_size,
            decoding=job.decoding,
        ),
    )
    scored = _scoring(job, "E: score", job.question, job.config.rounds)
    return [sampling, *_single_passages(job), scored, *_m_step(job, job.config.rounds)]


def _single_passages(job: TrainingJob) -> list[TrainingStep]:
    """Each candidate as the only passage, in the rounds in which it is not known from an earlier one."""
    if not job.scores_single_passages:
        return []
    times = job.rounds_of_single_passages
    return [replace(_scoring(job, SINGLE_PASSAGES, job.single_passages, times), per_round=times / job.config.rounds)]


def _sampling_flops(shape: ModelShape, job: TrainingJob) -> int:
    if job.config.e_step.exact:
        return m_selector_flops(shape, job.proposed, decoding=job.decoding) // 2
    return e_sample_flops(shape, job.proposed, decoding=job.decoding, replacement=job.config.e_step.replacement)


def _scoring(job: TrainingJob, name: str, q: QuestionShape, times: int) -> TrainingStep:
    sequences = job.config.e_step.batch_size * q.num_permutations
    memory = e_score_bytes(job.shape, PRECISIONS[job.dtype], q, sequences=sequences)
    return _step(job, name, times, lambda shape: e_score_flops(shape, q), memory)


def _m_step(job: TrainingJob, rounds: int = 1) -> list[TrainingStep]:
    """Training of selector and generator; gradient checkpointing adds one forward pass."""
    times = rounds * job.config.m_step.num_train_epochs
    steps: list[TrainingStep] = []
    if job.config.train_selector:
        name, memory = "M: selector", _selector_memory(job)
        steps.append(_learning(job, name, times, lambda shape: _selector_flops(shape, job), memory))
    if job.config.train_generator:
        name, memory = "M: generator + SelfAug", _generator_memory(job)
        steps.append(_learning(job, name, times, lambda shape: _generator_flops(shape, job), memory))
    return steps


def _learning(
    job: TrainingJob, name: str, times: int, flops: Callable[[ModelShape], int], memory: StepMemory
) -> TrainingStep:
    step = _step(job, name, times, flops, memory)
    return replace(step, training=True, per_round=job.config.m_step.num_train_epochs)


def _selector_memory(job: TrainingJob) -> StepMemory:
    return m_selector_bytes(
        job.shape,
        PRECISIONS[job.dtype],
        learning_part(job),
        questions=job.per_micro_batch(job.proposed.prompt, job.questions_per_step),
        checkpointing=job.config.m_step.gradient_checkpointing,
        decoding=job.decoding,
    )


def _generator_memory(job: TrainingJob) -> StepMemory:
    questions, m = job.questions_per_step, job.question.num_permutations
    sequences = job.per_micro_batch(job.question.sequence, questions * m)
    return m_generator_bytes(
        job.shape,
        PRECISIONS[job.dtype],
        job.question,
        sequences=sequences,
        aligned_sequences=job.aligned_sequences(sequences, questions),
        chunk=job.config.selfaug.chunk_tokens,
        checkpointing=job.config.m_step.gradient_checkpointing,
        stored_attention=_stores_attention(job),
        cuda=job.device.startswith("cuda"),
    )


def _stores_attention(job: TrainingJob) -> bool:
    """Whether attention is kept as a matrix: no fused GPU kernel shares keys between heads in float32."""
    return job.device.startswith("cuda") and job.dtype == "float32" and job.shape.kv_heads < job.shape.heads


def _selector_flops(shape: ModelShape, job: TrainingJob) -> int:
    proposed, decoding = job.proposed, job.decoding
    if proposed.scored:
        return _likelihood_flops(shape, job)
    replies = proposed.num_permutations * proposed.reply if decoding == "autoregressive" else 0
    length = proposed.prompt + replies
    recomputed = _recomputed_flops(shape, job, length, causal_pairs([length]))
    return m_selector_flops(shape, proposed, decoding=decoding) + recomputed


def _likelihood_flops(shape: ModelShape, job: TrainingJob) -> int:
    """Each candidate read alone; some only without gradient, and all with the adapter off where the KL has a weight."""
    q, prefilter = job.proposed, QuestionLikelihoodOptions.of(job.selector).prefilter
    reading = e_sample_flops(shape, q, decoding=job.decoding)
    learning = learning_part(job)
    found = m_selector_flops(shape, learning, decoding=job.decoding)
    found += _recomputed_flops(shape, job, *prompts_read(learning))
    return found + reading * ((prefilter is not None) + bool(job.config.m_step.selector_kl))


def learning_part(job: TrainingJob) -> QuestionShape:
    """What the selector reads of a question with gradient: at most so much, as the drawn candidates may be others."""
    q = job.proposed
    prefilter = QuestionLikelihoodOptions.of(job.selector).prefilter if q.scored else None
    if prefilter is None:
        return q
    learning = min(q.prompts, prefilter + q.num_permutations * q.num_selected)
    return replace(q, prompt=q.prompt // q.prompts * learning, prompts=learning)


def _generator_flops(shape: ModelShape, job: TrainingJob) -> int:
    q = job.question
    recomputed = _recomputed_flops(shape, job, *sequences_read(q, q.num_permutations))
    return m_generator_flops(shape, q, aligned_sequences=job.aligned_sequences(q.num_permutations, 1)) + recomputed


def _recomputed_flops(shape: ModelShape, job: TrainingJob, tokens: int, pairs: int) -> int:
    """The forward pass that gradient checkpointing repeats."""
    return forward_flops(shape, tokens, pairs) if job.config.m_step.gradient_checkpointing else 0


def _evaluation(job: TrainingJob) -> list[TrainingStep]:
    """Greedy selection and a greedy answer for every evaluation question, before the first round and after each."""
    if not job.texts.eval_questions:
        return []
    prompt = job.question.sequence - job.question.answer
    one = replace(job.question, num_permutations=1, sequence=prompt + job.max_new_tokens, answer=job.max_new_tokens)

    def flops(shape: ModelShape) -> int:
        return e_sample_flops(shape, one, decoding=job.decoding) + reading_flops(shape, prompt)

    questions = job.texts.eval_questions
    step = _step(job, "evaluation", job.config.rounds + 1, flops, _answer_memory(job, one), questions=questions)
    writing = writing_cost(
        job.shape,
        PRECISIONS[job.dtype],
        prompt=prompt,
        written=job.max_new_tokens,
        questions=questions,
        together=job.answers_together,
    )
    return [replace(step, writing=writing)]


def writing_cost(
    shape: ModelShape, precision: Precision, *, prompt: int, written: int, questions: int, together: int
) -> Writing:
    """Writing answers behind prompts that have been read.

    Args:
        shape: Of the model.
        precision: Of its numbers.
        prompt: Tokens of a prompt.
        written: Tokens of an answer.
        questions: Number of answers.
        together: How many of them are written at the same time.
    """
    body = writing_flops(replace(shape, vocabulary=0), prompt, written)
    read = sum(cache_bytes(shape, precision, prompt + count) for count in range(1, written + 1))
    return Writing(
        body=questions * body,
        head=questions * (writing_flops(shape, prompt, written) - body),
        cache_read=questions * read,
        calls=written * math.ceil(questions / together) * shape.layers * CALLS_PER_LAYER,
    )


def _answer_memory(job: TrainingJob, one: QuestionShape) -> StepMemory:
    """Ranking prompts in one pass, or the keys and values of all answers that are written together."""
    precision, together = PRECISIONS[job.dtype], job.answers_together
    ranking = e_sample_bytes(job.shape, precision, one, questions=together, decoding=job.decoding)
    reading = e_score_bytes(job.shape, precision, one, sequences=together)
    cache = cache_bytes(job.shape, precision, together * one.sequence)
    logits = answer_bytes(job.shape, precision, together, learning=False)
    writing = StepMemory(cache=cache, logits=logits, passing=reading.passing)
    return max((ranking, writing), key=lambda memory: memory.peak)


def _step(
    job: TrainingJob,
    name: str,
    times: int,
    flops: Callable[[ModelShape], int],
    memory: StepMemory,
    *,
    questions: int | None = None,
) -> TrainingStep:
    """A phase of every round; shares of attention and head are what a model without them would save."""
    count = job.texts.questions if questions is None else questions
    layers = flops(replace(job.shape, vocabulary=0))
    body = flops(replace(job.shape, vocabulary=0, attends=False))
    return TrainingStep(
        name=name,
        times=times,
        body=count * body,
        attention=count * (layers - body),
        head=count * (flops(job.shape) - layers),
        memory=memory,
        per_round=1,
    )
