"""The EM loop with an evaluation after each round: `DROTrainer(rag, config, ...).train()`.

    supervised warm-up
    repeat: posteriors = E-step(train)  ->  M-step(posteriors)  ->  evaluation  ->  checkpoint
    keep the best round

Every draw is a function of (seed, round, question), so a killed run that resumes after its last finished round
ends with the same weights as one that was never interrupted.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm
from transformers import TrainerCallback

from generator.generator import Generator
from indexes.errors import DataError, RAGError, UsageError
from indexes.launcher_check import warn_of_one_process
from retriever.retriever import Retriever
from retriever.selector import Selector
from training.checkpoint import load_learned, save_learned
from training.config import DROConfig
from training.encoder_update import open_trained_retrieval, train_encoder_and_reindex
from training.estimation import EStep
from training.joint_model import JointModel
from training.maximization import MStepTrainer, training_arguments
from training.posterior import EStepDiagnostics, Posterior, stable_seed
from training.prior_weights import Components, fit_prior_weights, warnings_of_closed_gates
from training.questions.context_fit import Fitted, filter_fitting, filter_fitting_with_answers, warn_of_too_long
from training.questions.example import QAExample
from training.questions.gold_ids import check_gold_ids
from training.questions.loading import ignoring_identical_ids, load_examples
from training.questions.self_retrieval import identical_ids, retrieve
from training.round_callback import RoundCallback, TrainingState, TrainOutput
from training.run_folder import RunFolder
from training.tempering import Tempering
from training.tracking import RunCallbacks
from training.warm_up import warm_up_posteriors

logger = logging.getLogger(__name__)

_FREE_ON_RESUME = ("rounds", "early_stopping_patience", "metric_for_best_model", "report_to", "logging_steps")
_INTERVALS = "eval_intervals"

T = TypeVar("T")


class TrainableRAG(Protocol):
    """What the trainer needs of a pipeline; `rag.RAG` is one."""

    @property
    def retriever(self) -> Retriever:
        """Finds candidates."""
        ...

    @property
    def selector(self) -> Selector:
        """Ranks them."""
        ...

    @property
    def generator(self) -> Generator:
        """Answers."""
        ...


class EvaluationResult(Protocol):
    """What evaluating a pipeline returns; `rag.Evaluation` is one."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Metrics by name."""
        ...

    @property
    def intervals(self) -> Mapping[str, tuple[float, float]]:
        """Confidence intervals of some of the metrics."""
        ...


ComputeMetrics = Callable[..., EvaluationResult | Mapping[str, float]]
"""`compute_metrics(rag, examples, progress=bool)`, as `rag.evaluate`; metrics alone are enough. In a distributed run
`processes` is given too: they share the questions, and all of them get the whole result."""

Callback = TrainerCallback | RoundCallback


class DROTrainer:
    """Trains the selector, the generator and the question side of the retriever of a RAG pipeline.

    Args:
        rag: The pipeline; trained in place.
        config: Hyperparameters.
        train_dataset: Questions with golden answers: a file, a `datasets.Dataset`, or examples. Those that do not fit
            the model's context are left out before anything is trained, with a warning; `left_out` has their ids.
        eval_dataset: Evaluation questions, which may be unanswerable ones; without them the last round is kept.
            Questions that do not fit are left out of every round alike.
        output_dir: Folder of the run (`training.run_folder`): run.json, metrics.jsonl, one checkpoint per round, logs.
            `train` needs it new or empty, or continues the run in it.
        compute_metrics: Scores the pipeline on `eval_dataset` after each round: `rag.evaluate`, or a function like it
            with metrics of its own. Required with `eval_dataset`.
        callbacks: `transformers` callbacks and `RoundCallback`s, or their classes. The former see one run, whose steps
            go on from round to round, and with each round `on_log` and `on_evaluate` with its metrics; a stop that one
            of them asks for ends the M-step.
        progress: Show progress bars.

    Raises:
        DataError: A training question without golden answers, or no question that fits.
        UsageError: output_dir is a file, transformers refuses a setting, a callback is neither of the two, or
            `eval_dataset` is given without `compute_metrics`.
    """

    def __init__(
        self,
        rag: TrainableRAG,
        config: DROConfig,
        *,
        train_dataset: Any,
        eval_dataset: Any = None,
        output_dir: str | Path,
        compute_metrics: ComputeMetrics | None = None,
        callbacks: Sequence[Callback | type[Callback]] | None = None,
        progress: bool = True,
    ) -> None:
        if eval_dataset is not None and compute_metrics is None:
            raise UsageError(
                "An eval_dataset needs a function that scores the pipeline on it, got compute_metrics=None. "
                "Pass compute_metrics=rag.evaluate (`from rag import evaluate`), or leave eval_dataset out."
            )
        self.rag = rag
        self.config = config
        self.compute_metrics = compute_metrics
        self.left_out: dict[str, dict[str, str]] = {}
        """Why questions were left out as too long, by id, of "train" and of "eval"."""
        self.train_examples = self._fitting_train(_examples(train_dataset, config, limit=config.max_train_samples))
        self.eval_examples = None
        if eval_dataset is not None:
            self.eval_examples = self._eval_examples(eval_dataset)
        for examples in (self.train_examples, self.eval_examples or []):
            if (identical := identical_ids(examples, rag.retriever.index)).ignoring:
                logger.info("%s", identical)
        self.progress = progress
        self.folder = RunFolder(output_dir)
        # Several CPU processes are only seen as such when the CPU is asked for.
        self.distributed = PartialState(cpu=self._on_cpu)
        warn_of_one_process("train ...")
        self.state = TrainingState(num_rounds=config.rounds, is_world_process_zero=self.distributed.is_main_process)
        self._first_retrieval = (rag.retriever.index, rag.retriever.encoder)
        self.e_step = EStep(rag.retriever, rag.selector, rag.generator, config)
        self.tempering = Tempering(
            rag.selector,
            config,
            logs=self.distributed.is_main_process,
            share=lambda found: self._from_main_process(lambda: found),
        )
        # Refused settings are found now, and not after hours of E-step.
        self._check_selection()
        made = _instances(callbacks or [])
        self.round_callbacks = [c for c in made if isinstance(c, RoundCallback)]
        self.run_callbacks = RunCallbacks(
            training_arguments(
                config,
                self.folder.logs,
                seed=config.seed,
                use_cpu=self._on_cpu,
            ),
            [c for c in made if isinstance(c, TrainerCallback)],
        )

    def __repr__(self) -> str:
        evaluated = "none" if self.eval_examples is None else f"{len(self.eval_examples):,}"
        return (
            f"DROTrainer(train={len(self.train_examples):,} questions, eval={evaluated}, round={self.state.round} of "
            f"{self.config.rounds}, best_round={self.state.best_round}, output_dir={str(self.output_dir)!r})"
        )

    @property
    def output_dir(self) -> Path:
        """The folder of the run."""
        return self.folder.path

    @property
    def history(self) -> list[dict[str, Any]]:
        """The record of every finished round (`state.log_history`)."""
        return self.state.log_history

    def _check_selection(self) -> None:
        selector = self.rag.selector
        found = retrieve(self.rag.retriever, self.train_examples[:1], selector.config.num_candidates)[0]
        selector.check(found, learning=self.config.train_selector)
        if self.config.m_step.selector_kl and self.config.train_selector and not selector.measures_drift:
            selector.log_prob_and_kl([], [])  # raises, with what to do

    # Questions that do not fit are found now, because one such question would end an E-step, or a round, after hours.

    def _fitting_train(self, examples: list[QAExample]) -> list[QAExample]:
        selector, generator = self.rag.selector, self.rag.generator
        found = filter_fitting_with_answers(examples, selector, generator, learning=self.config.train_selector)
        self.left_out["train"] = found.too_long
        return _kept(found, len(examples), "training questions", generator.language_model.context_length)

    def _eval_examples(self, dataset: Any) -> list[QAExample]:
        examples = _examples(dataset, self.config, allow_unanswerable=True, limit=self.config.max_eval_samples)
        selector, generator = self.rag.selector, self.rag.generator
        found = filter_fitting(examples, selector, generator, learning=self.config.train_selector)
        self.left_out["eval"] = found.too_long
        kept = _kept(found, len(examples), "evaluation questions", generator.language_model.context_length)
        return check_gold_ids(kept, self.rag.retriever.index)

    @property
    def _on_cpu(self) -> bool:
        return self.rag.generator.language_model.device.type == "cpu"

    # -- for users ---------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | Path = False) -> TrainOutput:
        """Run warm-up and all rounds; afterwards the pipeline holds the weights of the best round.

        Args:
            resume_from_checkpoint: True continues the run in `output_dir` after its last finished round; a folder
                `output_dir/round-N` after that round, and later rounds are removed.

        Returns:
            The records of all rounds, and which of them is the best by `config.metric_for_best_model`.

        Raises:
            MismatchError: The run was started with other settings, or a file of it is damaged.
            UsageError: `output_dir` holds something else, or no such round.
        """
        last = self.folder.round_to_resume(resume_from_checkpoint)
        self.folder.check(resume=bool(resume_from_checkpoint))
        self.distributed.wait_for_everyone()  # or a fast process would create the run while a slow one still checks
        start = self._resume(last) if resume_from_checkpoint else self._begin()
        for round in range(start, self.config.rounds + 1):
            if self._should_stop():
                break
            self._train_round(round)
        self._restore_best()
        self.run_callbacks.end(self._base_model)
        return TrainOutput(self.history, self._best_round(), self.state.global_step)

    def evaluate(self, eval_dataset: Any = None) -> dict[str, float]:
        """Metrics of the pipeline as it is now, each with `eval_` before its name.

        Args:
            eval_dataset: Other questions than the trainer's own.

        Raises:
            UsageError: There are no questions, or no `compute_metrics`.
        """
        examples = self.eval_examples if eval_dataset is None else self._eval_examples(eval_dataset)
        if examples is None or self.compute_metrics is None:
            raise UsageError(
                "Evaluation needs questions and a function that scores the pipeline on them. Pass eval_dataset and "
                "compute_metrics=rag.evaluate to the trainer."
            )
        scores = self._scores(examples)
        return {name: value for name, value in scores.items() if name != _INTERVALS}

    def save_model(self, output_dir: str | Path | None = None) -> Path:
        """Write the learned weights of the pipeline as it is now; returns the folder.

        A bundle that `RAG.from_pretrained` opens is written by `rag.save_pretrained`.

        Args:
            output_dir: The folder, replaced as a whole when it exists; None: `model` in the run's folder.
        """
        folder = Path(output_dir) if output_dir is not None else self.output_dir / "model"
        if self.distributed.is_main_process:
            save_learned(self.rag.selector, folder)
        self.distributed.wait_for_everyone()
        return folder

    # -- one round ---------------------------------------------------------------------------------------------

    def _train_round(self, round: int) -> None:
        started = self._now()
        self.state.round = round
        self._call("on_round_begin")
        posteriors, components = self._tempered(self._estimate(round), round)
        found = self._diagnostics(posteriors)
        diagnostics = EStepDiagnostics.mean(found).to_dict()
        self._call("on_e_step_end", posteriors, diagnostics)
        prior_weights = self._fit_prior_weights(posteriors, round, components)
        warnings = self._warnings(found)
        losses = self._maximize(posteriors, round)
        self._call("on_m_step_end", prior_weights | losses)
        self._train_encoder(posteriors, round)
        self._finish_round(round, diagnostics | prior_weights | losses | warnings, started)

    def _call(self, event: str, *what: Any) -> None:
        for callback in self.round_callbacks:
            getattr(callback, event)(self.state, *what)

    def _begin(self) -> int:
        """Start a fresh run: warm-up, round 0, first checkpoint."""
        started = self._now()
        if self.distributed.is_main_process:
            self.folder.write_fingerprint(self._fingerprint())
        self.distributed.wait_for_everyone()
        self.run_callbacks.begin(self._base_model)
        losses = self._warm_up() if self.config.supervised.num_train_epochs else {}
        self._finish_round(0, losses, started)
        return 1

    def _warm_up(self) -> dict[str, float]:
        with self._bar(len(self.train_examples), "warm-up: retrieve") as advance:
            posteriors = warm_up_posteriors(
                self.train_examples, self.rag.retriever, self.rag.selector, self.config, advance
            )
        by_gold = self.config.supervised.target != "retriever"
        labelled = [p for p in posteriors if by_gold and p.example.gold_ids]
        fitted = {}
        if self.rag.selector.fits_prior_weights_only and labelled:
            fitted = self._fit_prior_weights(labelled, 0)
        passes = [p for _ in range(self.config.supervised.num_train_epochs) for p in posteriors]
        return fitted | self._maximize(passes, 0)

    def _estimate(self, round: int) -> list[Posterior]:
        """E-step over all training questions, shared by the processes."""
        n, k = self.distributed.num_processes, self.distributed.process_index
        mine = self.train_examples[k::n]
        with self._bar(len(mine), f"round {round}: E-step") as advance:
            posteriors = self.e_step(mine, round=round, progress=advance)
        if n == 1:
            return posteriors
        if (singles := self.e_step.single_passages) is not None:  # each resumes with those of all
            for new in gather_object([singles.take_new()]):
                singles.add(new)
        parts = gather_object([posteriors])
        return [parts[i % n][i // n] for i in range(len(self.train_examples))]

    def _tempered(self, posteriors: list[Posterior], round: int) -> tuple[list[Posterior], Components | None]:
        """The posteriors of all processes at the exponent that is asked for; every process does the same."""
        if not self.tempering.is_fitted:
            return posteriors, None
        with self._bar(len(posteriors), f"round {round}: likelihood exponent") as advance:
            return self.tempering(posteriors, advance)

    @property
    def _learns_by_lsr(self) -> bool:
        return self.config.retriever_training.objective == "lsr"

    def _diagnostics(self, posteriors: Sequence[Posterior]) -> list[EStepDiagnostics]:
        """Of what teaches: the posteriors, or REPLUG's targets, which have no prior."""
        if self._learns_by_lsr:
            posteriors = [p.lsr_target(self.tempering.lsr_temperature) for p in posteriors]
        return [p.diagnostics() for p in posteriors]

    def _warnings(self, found: Sequence[EStepDiagnostics]) -> dict[str, list[str]]:
        """For the record of the round: gold ids say that the selector has nothing to learn, or a gate has closed."""
        if not self.config.train_selector:
            return {}
        teacher = EStepDiagnostics.warning(found)
        warnings = [] if teacher is None else [teacher]
        warnings += warnings_of_closed_gates(self.rag.selector, len(found))
        if self.distributed.is_main_process:
            for warning in warnings:
                logger.warning("%s", warning)
        return {"warnings": warnings} if warnings else {}

    def _fit_prior_weights(
        self, posteriors: Sequence[Posterior], round: int, components: Components | None = None
    ) -> dict[str, float]:
        """The exact part of the M-step; every process does the same."""
        config = self.config
        if not (config.m_step.fit_prior_weights and config.train_selector) or self._learns_by_lsr:
            return {}
        with self._bar(len(posteriors), f"round {round}: prior weights") as advance:
            fitted = fit_prior_weights(self.rag.selector, posteriors, advance, components)
        return {f"prior_{name}": value for name, value in fitted.items()}

    def _maximize(self, posteriors: Sequence[Posterior], round: int) -> dict[str, float]:
        """M-step over the posteriors; returns mean losses per question."""
        config = self.config.with_settings({"retriever_training.lsr_temperature": self.tempering.lsr_temperature})
        model = JointModel(self.rag.selector, self.rag.generator, config)
        label = f"round {round}: M-step" if round else "warm-up: train"
        with self._bar(len(posteriors) * self.config.m_step.num_train_epochs, label) as advance:
            trainer = MStepTrainer(
                model,
                config,
                posteriors,
                output_dir=self.folder.logs,
                seed=stable_seed(self.config.seed, round),
                callbacks=[self.run_callbacks],
                on_questions=advance,
            )
            with model.language_model.gradient_checkpointing(self.config.m_step.gradient_checkpointing):
                trainer.train()
        model.eval()
        return {name: total / max(trainer.total_questions, 1) for name, total in trainer.totals.items()}

    def _train_encoder(self, posteriors: Sequence[Posterior], round: int) -> None:
        """Train the encoder and build the index again, with `train_encoder`."""
        if not self.config.train_encoder:
            return
        folder = self.folder.retrieval(round)
        main = self.distributed.is_main_process
        if main:
            shutil.rmtree(folder, ignore_errors=True)  # of a round that was killed
        self.distributed.wait_for_everyone()
        train_encoder_and_reindex(
            self.rag.retriever,
            posteriors,
            folder,
            self.config,
            seed=stable_seed(self.config.seed, round, "encoder"),
            is_main_process=main,
            progress=self.progress and self.distributed.is_local_main_process,
        )
        self.distributed.wait_for_everyone()
        self.rag.retriever.replace(*open_trained_retrieval(folder, self._first_retrieval[1]))

    def _now(self) -> tuple[float, int]:
        """The time, and how many tokens this process has read by now."""
        return time.perf_counter(), self.rag.generator.language_model.tokens_read

    def _finish_round(self, round: int, metrics: Mapping[str, Any], started: tuple[float, int]) -> None:
        seconds, tokens = (now - before for now, before in zip(self._now(), started, strict=True))
        speed = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        scores = {} if self.eval_examples is None else self._scores(self.eval_examples)
        self.state.round, self.state.global_step = round, self.run_callbacks.steps
        record = {"round": round, "global_step": self.state.global_step, **metrics, **scores, **speed}
        self.history.append(record)
        if self.distributed.is_main_process:
            singles = self.e_step.single_passages
            also = None if singles is None else singles.write
            save_learned(self.rag.selector, self.folder.checkpoint(round), also=also)
            self.folder.write_metrics(self.history)
            shown = ("eval_exact_match", "eval_f1", "log_marginal", "ess")
            news = ", ".join(f"{name} {record[name]:.3f}" for name in shown if name in record)
            logger.info("Round %d of %d in %.0f s. %s", round, self.config.rounds, seconds, news)
        self.run_callbacks.log(record, self._base_model)
        self.distributed.wait_for_everyone()
        self._note_best()  # an unknown metric is found in the first round, with its work saved
        self._remove_retrieval()
        self._call("on_round_end", record)

    def _scores(self, examples: Sequence[QAExample]) -> dict[str, Any]:
        """Metrics with `eval_` before their names, and `eval_intervals`, where there are some."""
        assert self.compute_metrics is not None
        # Several processes share the questions as in the E-step; otherwise each would answer all of them.
        shared = {} if self.distributed.num_processes == 1 else {"processes": self.distributed}
        shown = self.progress and self.distributed.is_local_main_process
        found = self.compute_metrics(self.rag, examples, progress=shown, **shared)
        if isinstance(found, Mapping):
            return {f"eval_{name}": value for name, value in found.items()}
        metrics = {f"eval_{name}": value for name, value in found.metrics.items()}
        return {**metrics, _INTERVALS: {name: list(ends) for name, ends in found.intervals.items()}}

    @property
    def _base_model(self) -> Any:
        return self.rag.generator.language_model.base_model

    # -- the best round ----------------------------------------------------------------------------------------

    def _score(self, record: Mapping[str, Any]) -> float:
        name = f"eval_{self.config.metric_for_best_model}"
        if not isinstance(record.get(name), float | int):
            known = sorted(k.removeprefix("eval_") for k in record if k.startswith("eval_") and k != _INTERVALS)
            raise UsageError(
                f"metric_for_best_model must be one of {known}; got {self.config.metric_for_best_model!r}."
            )
        return float(record[name])

    def _best_round(self) -> int:
        """The round with the best metric (the first of equals); without evaluation the last one."""
        if self.eval_examples is None:
            return int(self.history[-1]["round"])
        return int(max(self.history, key=self._score)["round"])

    def _note_best(self) -> None:
        best = self._best_round()
        self.state.best_round = best
        self.state.best_metric = None if self.eval_examples is None else self._score(self.history[best])

    def _should_stop(self) -> bool:
        patience = self.config.early_stopping_patience
        if patience is None or self.eval_examples is None:
            return False
        return int(self.history[-1]["round"]) - self._best_round() >= patience

    def _load_round(self, round: int) -> None:
        if self.config.train_encoder:
            folder, first = self.folder.retrieval(round), self._first_retrieval
            self.rag.retriever.replace(*(open_trained_retrieval(folder, first[1]) if round else first))
        load_learned(self.rag.selector, self.folder.checkpoint(round))

    def _remove_retrieval(self) -> None:
        if self.config.train_encoder and self.distributed.is_main_process:
            self.folder.remove_retrieval(keep=self._best_round(), last=int(self.history[-1]["round"]))

    def _restore_best(self) -> None:
        self._note_best()
        best = self._best_round()
        self._load_round(best)
        logger.info("Kept round %d of %d.", best, self.history[-1]["round"])

    # -- continuing a run --------------------------------------------------------------------------------------

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a resumed run to end where an uninterrupted one would."""
        settings = self.config.to_dict()
        for name in _FREE_ON_RESUME:
            settings.pop(name)
        model, selector, generator = self.rag.generator.language_model, self.rag.selector, self.rag.generator
        return {
            "config": settings,
            "base": model.name,
            "revision": model.revision,
            "dtype": "mixed" if model.mixed else str(model.base_model.dtype).removeprefix("torch."),
            "chat": asdict(model.chat.config),
            "context_length": model.context_length,
            "adapter": asdict(model.adapter),
            "selector": asdict(selector.config),
            "decoding": asdict(generator.config),
            "prompts": [asdict(selector.prompt), asdict(generator.prompt)],
            "retriever": {"kind": self.rag.retriever.kind, **self.rag.retriever.settings},
            "index": self.rag.retriever.index.manifest.corpus_fingerprint,
            "encoder": self.rag.retriever.index.manifest.encoder.fingerprint,
            "train_examples": _digest(self.train_examples),
            "eval_examples": _digest(self.eval_examples or []),
        }

    def _resume(self, last_round: int | None) -> int:
        """Load the last finished round, or the given one; returns the number of the next."""
        self.state.log_history = self._from_main_process(lambda: self._finished_rounds(last_round))
        if not self.history:
            return self._begin()
        last = self.history[-1]
        self._load_round(int(last["round"]))
        if (singles := self.e_step.single_passages) is not None:
            singles.read(self.folder.checkpoint(int(last["round"])))
        self.state.round, self.state.global_step = int(last["round"]), int(last.get("global_step", 0))
        self._note_best()
        self.run_callbacks.begin(
            self._base_model,
            steps=self.state.global_step,
            rounds=self.state.round + (self.config.supervised.num_train_epochs > 0),  # warm-up trains too
        )
        return self.state.round + 1

    def _finished_rounds(self, last_round: int | None = None) -> list[dict[str, Any]]:
        self.folder.check_fingerprint(self._fingerprint())
        return self.folder.finished_rounds(last_round, with_retrieval=self.config.train_encoder)

    def _from_main_process(self, look: Callable[[], T]) -> T:
        """What the main process finds, for all: it may change files, and others would read them at another moment."""
        found: list[Any] = [None]
        if self.distributed.is_main_process:
            try:
                found = [look()]
            except RAGError as error:  # raised by all, because the others would wait for ever
                found = [error]
        (outcome,) = broadcast_object_list(found)
        if isinstance(outcome, RAGError):
            raise outcome
        agreed: T = outcome
        return agreed

    # -- small things ------------------------------------------------------------------------------------------

    @contextmanager
    def _bar(self, total: int, label: str) -> Any:
        shown = self.progress and self.distributed.is_local_main_process
        with tqdm(total=total, desc=label, unit="question", disable=not shown, leave=False) as bar:
            started, before = self._now()

            def advance(questions: int) -> None:
                now, tokens = self._now()
                bar.set_postfix_str(f"{(tokens - before) / max(now - started, 1e-9):,.0f} tokens/s", refresh=False)
                bar.update(questions)

            yield advance


def _examples(
    dataset: Any, config: DROConfig, *, allow_unanswerable: bool = False, limit: int | None = None
) -> list[QAExample]:
    """Questions with golden answers; to be scored on, also those whose right answer is none."""
    if isinstance(dataset, list | tuple) and all(isinstance(e, QAExample) for e in dataset):
        examples = list(dataset)[:limit]
        empty = [e.id for e in examples if not (e.golden_answers or (allow_unanswerable and e.unanswerable))]
        if not examples or empty:
            raise DataError(
                f"Training and evaluation questions need golden answers; {len(empty)} of {len(examples)} have none."
            )
        return ignoring_identical_ids(examples, config.ignore_identical_ids)
    return load_examples(
        dataset,
        require_answers=True,
        allow_unanswerable=allow_unanswerable,
        limit=limit,
        ignore_identical_ids=config.ignore_identical_ids,
    )


def _instances(callbacks: Sequence[Callback | type[Callback]]) -> list[Callback]:
    made = [c() if isinstance(c, type) else c for c in callbacks]
    if wrong := [type(c).__name__ for c in made if not isinstance(c, Callback)]:
        raise UsageError(
            f"Callbacks must be RoundCallbacks or transformers.TrainerCallbacks, got {wrong}. Derive the class from "
            "one of the two."
        )
    return made


def _kept(fitted: Fitted, total: int, what: str, limit: int) -> list[QAExample]:
    """What fits, after a warning about what does not.

    Raises:
        DataError: Nothing fits.
    """
    if not fitted.kept:
        reason = next(iter(fitted.too_long.values()))
        raise DataError(
            f"Some of the {what} must fit into {limit} tokens, with its answer and passages that are cut to "
            f"nothing; none of {total} does. The first: {reason}."
        )
    warn_of_too_long(fitted.too_long, total, what)
    return fitted.kept


def _digest(examples: Sequence[QAExample]) -> str:
    return hashlib.sha256(json.dumps([e.to_dict() for e in examples]).encode()).hexdigest()
