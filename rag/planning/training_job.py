"""One training run, as far as its costs depend on it."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from generator.prompts import ANSWER_TEMPLATE, PASSAGE_TEMPLATE, QUESTION_TEMPLATE, RANKING_TEMPLATE
from rag.planning.flops import ModelShape, QuestionShape
from rag.planning.machine import Machine
from rag.planning.model_sizes import EncoderShape
from rag.planning.text_sizes import CHARACTERS_PER_TOKEN, TextSizes
from retriever.selector_config import QUESTION_LIKELIHOOD, QuestionLikelihoodOptions, SelectorConfig
from training.config import DROConfig

EVALUATION_BATCH = 16
"""Questions that `rag.evaluate` asks at a time."""
SINGLE_PASSAGES = "E: score single passages"
"""Name of the phase of the E-step that scores the candidates one by one."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One run, as far as its costs depend on it."""

    base: str
    shape: ModelShape
    context: int
    """Tokens that the base reads at most."""
    dtype: str
    """A key of `rag.planning.training_memory.PRECISIONS`."""
    device: str
    config: DROConfig
    selector: SelectorConfig
    encoder: EncoderShape
    texts: TextSizes
    question: QuestionShape
    """The mean question, with m scored permutations."""
    single_passage_sequence: int
    """Tokens of the generator's sequence with one passage."""
    max_new_tokens: int = 32

    @property
    def answers_together(self) -> int:
        """Evaluation questions whose answers are written at the same time."""
        return max(1, min(EVALUATION_BATCH, self.texts.eval_questions))

    @property
    def decoding(self) -> str:
        """How permutations follow from what the selector reads: by replies to it, or all from one pass."""
        return "single_pass" if self.selector.kind == QUESTION_LIKELIHOOD else self.selector.decoding

    @property
    def proposed(self) -> QuestionShape:
        """The same question with all permutations that the selector proposes and trains on."""
        times = 1 if self.config.e_step.exact else self.config.e_step.proposals_per_sample
        possible = math.perm(self.selector.num_candidates, self.selector.num_selected)
        return replace(self.question, num_permutations=min(self.question.num_permutations * times, possible))

    @property
    def single_passages(self) -> QuestionShape:
        """Each candidate as the only passage before the answer."""
        return replace(
            self.question, num_permutations=self.question.num_candidates, sequence=self.single_passage_sequence
        )

    @property
    def scores_single_passages(self) -> bool:
        """Whether the E-step scores the candidates one by one, to predict log-likelihoods that it does not compute."""
        return not self.config.e_step.exact and self.config.e_step.proposals_per_sample > 1

    @property
    def rounds_of_single_passages(self) -> int:
        """Rounds in which the candidates are scored one by one; those between use what is kept."""
        used = self.config.e_step.single_passage_rounds or self.config.rounds
        return math.ceil(self.config.rounds / used)

    @property
    def first_round_phases(self) -> tuple[str, ...]:
        """Phases of the E-step whose results are kept for the rounds after the first."""
        kept = self.scores_single_passages and self.config.e_step.single_passage_rounds != 1
        return (SINGLE_PASSAGES,) if kept else ()

    @property
    def questions_per_step(self) -> int:
        """Questions of one optimizer step in one process."""
        m_step, q = self.config.m_step, self.question
        found = m_step.per_device_train_batch_size * m_step.gradient_accumulation_steps
        if m_step.tokens_per_optimizer_step is not None:
            found = max(1, m_step.tokens_per_optimizer_step // (q.prompt + q.num_permutations * q.sequence))
        return min(found, self.texts.questions)

    def per_micro_batch(self, tokens: int, most: int) -> int:
        """How many of at most so many sequences of this length are read in one pass of the M-step."""
        return min(max(1, self.config.m_step.tokens_per_micro_batch // tokens), most)

    def aligned_sequences(self, sequences: int, questions: int) -> int:
        """How many of the sequences of this many questions SelfAug runs on."""
        if not self.config.selfaug.alpha:
            return 0
        return sequences if self.config.selfaug.permutations == "all" else min(sequences, questions)

    @property
    def trained_adapters(self) -> int:
        """Adapters that are trained."""
        return self.config.train_selector + self.config.train_generator


@dataclass(frozen=True, kw_only=True)
class TrainingSetting:
    """What a plan of a training run rests on, as its JSON has it."""

    base: str
    dtype: str
    device: str
    parameters: int
    """Of the base."""
    adapter_parameters: int
    """Of one adapter."""
    shape: ModelShape
    encoder: EncoderShape
    texts: TextSizes
    question: QuestionShape
    proposals: int
    """Permutations that the selector proposes for a question."""
    single_passage_sequence: int
    """Tokens of the generator's sequence with one passage."""
    machine: Machine
    efficiency: float
    """Share of the layers' time that is spent on products; on a GPU times what is assumed to be reached."""

    joint_limits: ClassVar[tuple[str, ...]] = ()
    """Each limit has changes of its own."""
    last_resort: ClassVar[str] = "take a smaller base, shorter passages or fewer candidates"
    """Advice where no change is enough."""

    @classmethod
    def of(cls, job: TrainingJob, machine: Machine, efficiency: float) -> "TrainingSetting":
        """The setting of a job."""
        return cls(
            base=job.base,
            dtype=job.dtype,
            device=job.device,
            parameters=job.shape.parameters,
            adapter_parameters=job.shape.adapter_parameters,
            shape=job.shape,
            encoder=job.encoder,
            texts=job.texts,
            question=job.question,
            proposals=job.proposed.num_permutations,
            single_passage_sequence=job.single_passage_sequence,
            machine=machine,
            efficiency=efficiency,
        )

    def summary(self) -> list[str]:
        """The setting in a few lines of text."""
        q, t, machine = self.question, self.texts, self.machine
        return [
            f"{self.base}: {self.parameters / 1e6:,.1f} M parameters in {self.dtype}, "
            f"{self.adapter_parameters / 1e6:,.2f} M in each of two adapters (rank {self.shape.rank})",
            f"{t.passages:,} passages of {t.passage_tokens} tokens, {t.questions:,} training questions; "
            f"{_ranking_prompts(q)}, prompt and answer of the generator {q.sequence:,}, "
            f"{self.proposals} permutations proposed and {q.num_permutations} scored",
            f"{machine.device}, {machine.threads} threads: {machine.body_rate / 1e9:,.0f} GFLOP/s in the "
            f"layers, {machine.head_rate / 1e9:,.0f} in the head; products are {self.efficiency:.0%} of a layer's time",
        ]


def _ranking_prompts(q: QuestionShape) -> str:
    if q.prompts == 1:
        return f"ranking prompt {q.prompt:,} tokens"
    return f"{q.prompts} passages and the question behind each {q.prompt:,} tokens"


def mean_question(
    selector: SelectorConfig, config: DROConfig, texts: TextSizes, context: int
) -> tuple[QuestionShape, int]:
    """The mean question under the default prompts, and the tokens of the generator's sequence with one passage."""
    n, K = selector.num_candidates, selector.num_selected
    scored = math.perm(n, K) if config.e_step.exact else config.e_step.num_permutations
    prompt, prompts, read = min(_prompt_tokens(RANKING_TEMPLATE, n, texts), context), 1, 0
    if selector.kind == QUESTION_LIKELIHOOD:
        prompts, read = n, texts.question_tokens
        prompt = n * min(_question_prompt_tokens(selector, texts), context)
    sequence, single = (min(_prompt_tokens(ANSWER_TEMPLATE, k, texts) + texts.answer_tokens, context) for k in (K, 1))
    common = len(ANSWER_TEMPLATE.partition("{passages}")[0]) // CHARACTERS_PER_TOKEN + texts.question_tokens
    found = QuestionShape(
        n,
        K,
        scored,
        prompt,
        sequence,
        texts.answer_tokens,
        common=min(common, single),
        prompts=prompts,
        scored=read,
    )
    return found, single


def _question_prompt_tokens(selector: SelectorConfig, texts: TextSizes) -> int:
    """Tokens of one passage's prompt and of the question behind it."""
    passage = min(texts.passage_tokens, QuestionLikelihoodOptions.of(selector).passage_tokens)
    return len(QUESTION_TEMPLATE) // CHARACTERS_PER_TOKEN + passage + texts.question_tokens


def _prompt_tokens(template: str, passages: int, texts: TextSizes) -> int:
    """Tokens of a prompt; both templates contain the question twice."""
    around = len(PASSAGE_TEMPLATE.format(identifier="A", title="", text="")) // CHARACTERS_PER_TOKEN + 2
    fixed = len(template) // CHARACTERS_PER_TOKEN + 2 * texts.question_tokens
    return fixed + passages * (texts.passage_tokens + around)
