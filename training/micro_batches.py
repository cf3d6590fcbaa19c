"""What the M-step reads in one pass, and which questions share one optimizer step.

An optimizer step takes whole questions. Their ranking prompts, and then the generator's sequences of all of them, are
put into micro-batches of *one role each* that hold a budget of tokens, whichever question they belong to: long ones
fit the memory, and short ones are read together. The losses add up to the same sum, so that the budget changes memory
and time and nothing else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from generator.answer_sequences import AnswerSequence, answer_batches
from generator.generator import Generator
from indexes.batching import token_budget_batches
from retriever.selector import Selector
from training.config import DROConfig
from training.posterior import Posterior, answer_sequence, stable_seed


@dataclass(frozen=True)
class MicroBatch:
    """What one forward and backward sees: some questions, one role."""

    role: str
    posteriors: tuple[Posterior, ...]
    chosen: tuple[tuple[int, ...], ...] | None = None
    """Which of each question's distinct permutations the generator reads; None: all."""
    encoded: tuple[AnswerSequence, ...] | None = None
    """Their sequences, question by question, where they are known."""
    num_questions: int = 0
    """Questions this micro-batch starts (0 where earlier ones have read something of each)."""
    seed: int = 0
    """Draws the aligned permutation when SelfAug runs on one of them."""
    counts: bool = True
    """False: a pass that only keeps processes in step, and adds nothing."""

    def permutations(self, number: int) -> tuple[int, ...]:
        """Which of the distinct permutations of a question, given by its place in `posteriors`, the generator reads."""
        if self.chosen is not None:
            return self.chosen[number]
        return tuple(range(len(self.posteriors[number].distinct_scored().z_uK)))


@dataclass(frozen=True)
class PlannedQuestion:
    """A question of an optimizer step."""

    posterior: Posterior
    seed: int
    """Of its epoch."""


Step = tuple[PlannedQuestion, ...]
"""The questions of one optimizer step in one process."""


def plan_steps(
    posteriors: Sequence[Posterior],
    config: DROConfig,
    *,
    seed: int,
    count_tokens: Callable[[Posterior], int],
    world_size: int = 1,
) -> list[Step]:
    """All optimizer steps of one M-step: for each of them one entry per process, one after another.

    Batches of questions come in groups of `world_size`, one for each process; the last group of an epoch is filled up
    from the start. A step takes `gradient_accumulation_steps` groups or, with a budget of tokens, as many as fit it,
    and at least one.

    Args:
        posteriors: The E-step's result.
        config: Batch sizes, epochs.
        seed: Of the shuffling.
        count_tokens: Tokens that are read for a question; called where a step has a budget.
        world_size: Number of processes.
    """
    groups: list[list[Step]] = []
    for epoch in range(config.m_step.num_train_epochs):
        epoch_seed = stable_seed(seed, epoch)
        order = torch.randperm(len(posteriors), generator=torch.Generator().manual_seed(epoch_seed)).tolist()
        planned = [PlannedQuestion(posteriors[i], epoch_seed) for i in order]
        size = config.m_step.per_device_train_batch_size
        batches = [tuple(planned[start : start + size]) for start in range(0, len(planned), size)]
        batches += [batches[i % len(batches)] for i in range(-len(batches) % world_size)]
        groups += [batches[start : start + world_size] for start in range(0, len(batches), world_size)]
    return [
        tuple(question for group in groups_of_step for question in group[rank])
        for groups_of_step in _steps(groups, config, count_tokens)
        for rank in range(world_size)
    ]


def _steps(
    groups: list[list[Step]], config: DROConfig, count_tokens: Callable[[Posterior], int]
) -> list[list[list[Step]]]:
    """Groups of batches, those of one optimizer step together."""
    budget = config.m_step.tokens_per_optimizer_step
    if budget is None:
        size = config.m_step.gradient_accumulation_steps
        return [groups[start : start + size] for start in range(0, len(groups), size)]
    steps: list[list[list[Step]]] = []
    room = 0
    for group in groups:
        tokens = sum(count_tokens(question.posterior) for batch in group for question in batch)
        if tokens > room:
            steps.append([])
            room = max(budget, tokens)
        steps[-1].append(group)
        room -= tokens
    return steps


def micro_batches(selector: Selector, generator: Generator, step: Step, config: DROConfig) -> list[MicroBatch]:
    """The passes of one optimizer step: those of the selector, then those of the generator.

    Args:
        selector: Whose prompts are read.
        generator: Whose sequences are read.
        step: The questions.
        config: What is trained, and the budget of tokens.
    """
    found: list[MicroBatch] = []
    for seed, group in groupby(step, key=lambda question: question.seed):
        posteriors = tuple(question.posterior for question in group)
        if config.train_selector:
            found += _of_selector(selector, posteriors, config, seed)
        if config.train_generator:
            found += _of_generator(generator, posteriors, config, seed)
    return found


def _of_selector(
    selector: Selector, posteriors: tuple[Posterior, ...], config: DROConfig, seed: int
) -> list[MicroBatch]:
    reads_nothing = config.retriever_training.objective == "lsr" or len(posteriors) == 1
    lengths = [0 if reads_nothing else _prompt_tokens(selector, posterior) for posterior in posteriors]
    return [
        MicroBatch("selector", tuple(posteriors[i] for i in sorted(batch)), num_questions=len(batch), seed=seed)
        for batch in token_budget_batches(lengths, config.m_step.tokens_per_micro_batch)
    ]


def _of_generator(
    generator: Generator, posteriors: tuple[Posterior, ...], config: DROConfig, seed: int
) -> list[MicroBatch]:
    owners: list[tuple[int, int]] = []
    sequences: list[AnswerSequence] = []
    for number, posterior in enumerate(posteriors):
        for u, z_K in enumerate(posterior.distinct_scored().z_uK):
            owners.append((number, u))
            sequences.append(answer_sequence(generator, posterior.candidates, z_K, posterior.answer))
    started: set[int] = set()
    found: list[MicroBatch] = []
    for batch in answer_batches(generator.language_model, sequences, config.m_step.tokens_per_micro_batch):
        rows = sorted(batch)  # question by question
        numbers = sorted({owners[i][0] for i in rows})
        found.append(
            MicroBatch(
                "generator",
                tuple(posteriors[number] for number in numbers),
                tuple(tuple(owners[i][1] for i in rows if owners[i][0] == number) for number in numbers),
                tuple(sequences[i] for i in rows),
                num_questions=0 if config.train_selector else len(set(numbers) - started),
                seed=seed,
            )
        )
        started |= set(numbers)
    return found


def token_counter(selector: Selector, generator: Generator, config: DROConfig) -> Callable[[Posterior], int]:
    """Tokens of the prompts and sequences that are read for a question: of what is trained."""

    def count(posterior: Posterior) -> int:
        prompts = _prompt_tokens(selector, posterior) if config.train_selector else 0
        if not config.train_generator:
            return prompts
        drawn = posterior.distinct_scored().z_uK
        rows = [answer_sequence(generator, posterior.candidates, z_K, posterior.answer) for z_K in drawn]
        return prompts + sum(map(len, rows))

    return count


def _prompt_tokens(selector: Selector, posterior: Posterior) -> int:
    return sum(map(len, selector.prompts(posterior.candidates)))
