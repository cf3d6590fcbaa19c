"""`rag plan --measure`: answering, E-step and M-step on a few questions with the real model, extrapolated to the run.

The pipeline is a new one whose selector listens to its language model, as after the supervised warm-up. It is trained
on the way, so it is of no use afterwards.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from indexes.errors import UsageError
from rag.pipeline import RAG
from rag.planning.cost_plan import MeasuredPhase
from rag.planning.machine import Machine
from rag.planning.phase_measurement import Measured, measure_work
from rag.planning.training_job import TrainingJob
from rag.planning.training_plan import measure_machine, peaks, plan_training
from training.estimation import EStep
from training.joint_model import JointModel
from training.maximization import MStepTrainer
from training.posterior import Posterior
from training.prior_weights import fit_prior_weights
from training.questions.example import QAExample

FIRST_E_STEP, LATER_E_STEP, M_STEP, ANSWERING = "E-step, first round", "E-step, later rounds", "M-step", "answering"
LISTENING = 0.5
"""Gate of the selector's language model; at 0, where a new selector starts, it would read no prompts."""


def measure_training(
    job: TrainingJob, rag: RAG, examples: Sequence[QAExample], folder: Path, machine: Machine | None = None
) -> tuple[MeasuredPhase, ...]:
    """Answer, estimate and maximise on a few training questions.

    Args:
        job: The run that is planned.
        rag: A new pipeline with the job's settings; trained on the way.
        examples: The few questions, with answers that fit the context.
        folder: For the files of the M-step's trainer.
        machine: What predictions rest on; measured when not given.

    Raises:
        UsageError: There are no questions.
    """
    if not examples:
        raise UsageError("--measure needs training questions that fit the base's context, got none.")
    _listen(rag)
    questions = [example.question for example in examples]
    list(itertools.islice(rag.stream(questions[0]), 1))  # kernels are chosen and pages mapped once per process
    answering = measure_work(lambda: rag.answer(questions), job.device)
    e_step = EStep(rag.retriever, rag.selector, rag.generator, job.config)
    first = measure_work(lambda: e_step(examples, round=1), job.device)
    later = measure_work(lambda: e_step(examples, round=2), job.device)
    m_step = measure_work(lambda: _maximize(job, rag, first.result, folder), job.device)
    found: dict[str, Measured[Any]] = {FIRST_E_STEP: first, LATER_E_STEP: later, M_STEP: m_step, ANSWERING: answering}
    few = few_questions(job, len(examples))
    predicted = predict_few(few, machine or measure_machine(few))
    executions = run_executions(job)
    return tuple(
        _phase(name, measured, len(examples), *predicted[name], executions[name]) for name, measured in found.items()
    )


def _phase(name: str, measured: Measured[Any], items: int, seconds: float, peak: int, run_items: int) -> MeasuredPhase:
    return MeasuredPhase(
        name=name,
        items=items,
        seconds=measured.seconds,
        predicted_seconds=seconds,
        run_items=run_items,
        peak=measured.peak,
        predicted_peak=peak,
    )


@torch.no_grad()
def _listen(rag: RAG) -> None:
    """Set the weight of the selector's language model, where the selector has one, to that of a trained selector."""
    gate = rag.selector.prior_weights.get("gate")
    if gate is not None and not gate.any():
        gate.fill_(LISTENING)


def _maximize(job: TrainingJob, rag: RAG, posteriors: Sequence[Posterior], folder: Path) -> None:
    config = job.config
    if config.m_step.fit_prior_weights and config.train_selector and config.retriever_training.objective != "lsr":
        fit_prior_weights(rag.selector, posteriors)
    model = JointModel(rag.selector, rag.generator, config)
    trainer = MStepTrainer(model, config, posteriors, output_dir=folder, seed=config.seed)
    with model.language_model.gradient_checkpointing(config.m_step.gradient_checkpointing):
        trainer.train()
    model.eval()


def few_questions(job: TrainingJob, items: int) -> TrainingJob:
    """The run with this many questions to learn from and to evaluate, in batches of no more."""
    batch = min(items, job.config.e_step.batch_size)
    return replace(
        job,
        config=job.config.with_settings({"e_step.batch_size": batch}),
        texts=replace(job.texts, questions=items, eval_questions=items),
    )


def predict_few(few: TrainingJob, machine: Machine) -> dict[str, tuple[float, int]]:
    """Seconds and peak memory of one execution that the plan gives, by the name of what is measured."""
    phases = {phase.name: phase for phase in plan_training(few, machine).phases}
    memory = peaks(few, machine.process)
    parts = {
        FIRST_E_STEP: [name for name in phases if name.startswith("E:")],
        LATER_E_STEP: [name for name in phases if name.startswith("E:") and name not in few.first_round_phases],
        M_STEP: [name for name in phases if name.startswith("M:")],
        ANSWERING: ["evaluation"],
    }
    return {
        what: (sum(_seconds(few, phases[name].seconds, name) for name in names), max(memory[name] for name in names))
        for what, names in parts.items()
    }


def _seconds(job: TrainingJob, seconds: float, name: str) -> float:
    """Of all epochs of an M-step, which is measured as a whole."""
    return seconds * job.config.m_step.num_train_epochs if name.startswith("M:") else seconds


def run_executions(job: TrainingJob) -> dict[str, int]:
    """Questions in the whole run, each counted as often as it is worked on, by the name of what is measured."""
    rounds, questions = job.config.rounds, job.texts.questions
    return {
        FIRST_E_STEP: questions,
        LATER_E_STEP: questions * (rounds - 1),
        M_STEP: questions * rounds,
        ANSWERING: job.texts.eval_questions * (rounds + 1),
    }
