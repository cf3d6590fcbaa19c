"""The EM loop with an evaluation after each round: `DROTrainer(rag, config, ...).train()`.

    warm-up
    repeat: posteriors = E-step(train)  ->  M-step(posteriors)  ->  dev metrics  ->  checkpoint
    keep the best round

Every draw is a function of (seed, round, question), so a killed run that resumes after its last finished round
ends with the same weights as one that was never interrupted.
"""

import hashlib
import json
import logging
import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from tqdm.auto import tqdm
from transformers import TrainerCallback

from generator.base_config import DEFAULT_CONTEXT, stated_context
from generator.configs import ChatConfig
from generator.generator import Generator
from indexes.atomic_files import read_json, restore_replaced, write_text
from indexes.errors import DataError, MismatchError, RAGError, UsageError
from indexes.launcher_check import warn_of_one_process
from retriever.dense import Retriever
from retriever.selector import Selector
from training.checkpoint import load_learned, save_learned
from training.config import DROConfig, flatten
from training.encoder_update import open_refreshed, refreshed
from training.estimation import EStep, Posterior, stable_seed
from training.maximization import JointModel, MStepTrainer, training_arguments
from training.prior_weights import fit_prior_weights
from training.questions.context_fit import Fitted, that_fit, that_fit_with_answers, warn_of_too_long
from training.questions.example import QAExample
from training.questions.gold_ids import check_gold_ids
from training.questions.loading import ignoring_identical_ids, load_examples
from training.questions.self_retrieval import identical_ids, retrieve
from training.tracking import RunCallbacks
from training.warm_up import warm_up_posteriors

logger = logging.getLogger(__name__)

_FREE_ON_RESUME = ("rounds", "early_stopping_patience", "metric_for_best_model", "report_to", "logging_steps")
_INTERVALS = "eval_intervals"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"

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


Evaluate = Callable[..., EvaluationResult]
"""`evaluate(rag, examples, progress=bool)`, as `rag.evaluate`. In a distributed run `processes` is given too: they
share the questions, and all of them get the whole result."""


class DROTrainer:
    """Trains the selector, the generator and the question side of the retriever of a RAG pipeline.

    Args:
        rag: The pipeline; trained in place.
        config: Hyperparameters.
        train_dataset: Questions with golden answers: a file, a `datasets.Dataset`, or examples. Those that do not fit
            the model's context are left out before anything is trained, with a warning; `left_out` has their ids.
        eval_dataset: Dev questions, which may be unanswerable ones; without them the last round is kept. What does not
            fit is left out of every round alike.
        output_dir: Folder of the run: run.json, metrics.jsonl, one checkpoint per round, logs. `train` wants it new or
            empty, or continues the run in it.
        evaluate: Scores the pipeline on `eval_dataset` after each round: `rag.evaluate`, or a function like it that
            adds metrics of its own. Required with `eval_dataset`.
        callbacks: `transformers` callbacks. They see one run, whose steps go on from round to round, and with each
            round `on_log` and `on_evaluate` with its numbers; a stop that one of them asks for ends the M-step.
        progress: Show progress bars.

    Raises:
        DataError: A training question without golden answers, or no question that fits.
        UsageError: output_dir is a file, transformers refuses a setting, or `eval_dataset` is given without `evaluate`.
    """

    def __init__(
        self,
        rag: TrainableRAG,
        config: DROConfig,
        *,
        train_dataset: Any,
        eval_dataset: Any = None,
        output_dir: str | Path,
        evaluate: Evaluate | None = None,
        callbacks: list[TrainerCallback] | None = None,
        progress: bool = True,
    ) -> None:
        if eval_dataset is not None and evaluate is None:
            raise UsageError(
                "An eval_dataset needs a function that scores the pipeline on it, got evaluate=None. "
                "Pass evaluate=rag.evaluate (`from rag import evaluate`), or leave eval_dataset out."
            )
        self.rag = rag
        self.config = config
        self.evaluate = evaluate
        self.left_out: dict[str, dict[str, str]] = {}
        """Why the questions that were left out are too long, by id, of "train" and of "dev"."""
        self.train_examples = self._fitted_train(_examples(train_dataset, config, limit=config.max_train_samples))
        self.eval_examples = None
        if eval_dataset is not None:
            dev = self._fitted_dev(_examples(eval_dataset, config, allow_unanswerable=True))
            self.eval_examples = check_gold_ids(dev, rag.retriever.index)
        for examples in (self.train_examples, self.eval_examples or []):
            if (identical := identical_ids(examples, rag.retriever.index)).ignoring:
                logger.info("%s", identical)
        self.progress = progress
        self.output_dir = Path(output_dir)
        # Several CPU processes are only seen as such when the CPU is asked for.
        self.state = PartialState(cpu=self._on_cpu)
        warn_of_one_process("train ...")
        self.history: list[dict[str, Any]] = []
        self._first_retrieval = (rag.retriever.index, rag.retriever.encoder)
        self.e_step = EStep(rag.retriever, rag.selector, rag.generator, config)
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise UsageError(f"output_dir must be a folder; {self.output_dir} is a file.")
        # Refused settings are found now, and not after hours of E-step.
        self._check_selection()
        self.run_callbacks = RunCallbacks(
            training_arguments(
                config, self.output_dir / "logs", seed=config.seed, max_rows=self._max_rows(), use_cpu=self._on_cpu
            ),
            callbacks or [],
        )

    def _check_selection(self) -> None:
        selector = self.rag.selector
        found = retrieve(self.rag.retriever, self.train_examples[:1], selector.config.num_candidates)[0]
        selector.check(found, learning=self.config.train_selector)

    # What does not fit is found now, because one such question would end an E-step, or a round, after hours.

    def _fitted_train(self, examples: list[QAExample]) -> list[QAExample]:
        selector, generator = self.rag.selector, self.rag.generator
        found = that_fit_with_answers(examples, selector, generator, learning=self.config.train_selector)
        self.left_out["train"] = found.too_long
        return _kept(found, len(examples), "training questions", generator.language_model.context_length)

    def _fitted_dev(self, examples: list[QAExample]) -> list[QAExample]:
        selector, generator = self.rag.selector, self.rag.generator
        found = that_fit(examples, selector, generator, learning=self.config.train_selector)
        self.left_out["dev"] = found.too_long
        return _kept(found, len(examples), "dev questions", generator.language_model.context_length)

    @property
    def _on_cpu(self) -> bool:
        return self.rag.generator.language_model.device.type == "cpu"

    # -- the story ---------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: bool | str | Path = False) -> list[dict[str, Any]]:
        """Run warm-up and all rounds; returns the metrics of every round, round 0 being the start.

        Afterwards the pipeline holds the weights of the best round by `config.metric_for_best_model`.

        Args:
            resume_from_checkpoint: True continues the run in `output_dir` after its last finished round; a folder
                `output_dir/round-N` after that round, and what came after it is removed.

        Raises:
            UsageError: `output_dir` holds something else, or no such round.
            MismatchError: The run was started with other settings, or a file of it is damaged.
        """
        last = self._checkpoint_to_resume(resume_from_checkpoint)
        self._check_output_dir(resume=bool(resume_from_checkpoint))
        self.state.wait_for_everyone()  # or a fast process would create the run while a slow one still checks
        start = self._resume(last) if resume_from_checkpoint else self._begin()
        for round in range(start, self.config.rounds + 1):
            if self._should_stop():
                break
            started = self._now()
            posteriors = self._estimate(round)
            pooling = self._fit_pooling(posteriors, round)
            losses = self._maximize(posteriors, round)
            self._refresh(posteriors, round)
            self._finish_round(round, _mean_telemetry(posteriors) | pooling | losses, started)
        self._restore_best()
        self.run_callbacks.end(self.rag.generator.language_model.base_model)
        return self.history

    def _begin(self) -> int:
        """Start a fresh run: warm-up, round 0, first checkpoint."""
        started = self._now()
        self._write_run_file()
        self.run_callbacks.begin(self.rag.generator.language_model.base_model)
        losses = self._warm_up() if self.config.supervised.num_train_epochs else {}
        self._finish_round(0, losses, started)
        return 1

    def _warm_up(self) -> dict[str, float]:
        with self._bar(len(self.train_examples), "warm-up: retrieve") as advance:
            posteriors = warm_up_posteriors(
                self.train_examples, self.rag.retriever, self.rag.selector.config, self.config, advance
            )
        passes = [p for _ in range(self.config.supervised.num_train_epochs) for p in posteriors]
        return self._maximize(passes, 0)

    def _estimate(self, round: int) -> list[Posterior]:
        """E-step over all training questions, shared out over processes."""
        n, k = self.state.num_processes, self.state.process_index
        mine = self.train_examples[k::n]
        with self._bar(len(mine), f"round {round}: E-step") as advance:
            posteriors = self.e_step(mine, round=round, progress=advance)
        if n == 1:
            return posteriors
        parts = gather_object([posteriors])
        return [parts[i % n][i // n] for i in range(len(self.train_examples))]

    def _fit_pooling(self, posteriors: Sequence[Posterior], round: int) -> dict[str, float]:
        """The exact part of the M-step; every process does the same."""
        config, selector = self.config, self.rag.selector
        if (
            not (config.m_step.fit_prior_weights and config.train_selector)
            or config.retriever_training.objective == "lsr"
        ):
            return {}
        with self._bar(len(posteriors), f"round {round}: pooling") as advance:
            fitted = fit_prior_weights(selector, posteriors, advance)
        return {f"prior_{name}": value for name, value in fitted.items()}

    def _maximize(self, posteriors: Sequence[Posterior], round: int) -> dict[str, float]:
        """M-step over the posteriors; returns mean losses per question."""
        model = JointModel(self.rag.selector, self.rag.generator, self.config)
        label = f"round {round}: M-step" if round else "warm-up: train"
        with self._bar(len(posteriors) * self.config.m_step.num_train_epochs, label) as advance:
            trainer = MStepTrainer(
                model,
                self.config,
                posteriors,
                output_dir=self.output_dir / "logs",
                seed=stable_seed(self.config.seed, round),
                max_rows=self._max_rows() if round else 1,
                callbacks=[self.run_callbacks],
                on_questions=advance,
            )
            with model.language_model.gradient_checkpointing(self.config.m_step.gradient_checkpointing):
                trainer.train()
        model.eval()
        return {name: total / max(trainer.total_questions, 1) for name, total in trainer.totals.items()}

    def _refresh(self, posteriors: Sequence[Posterior], round: int) -> None:
        """Another encoder and another index, when asked for."""
        if not self.config.train_encoder:
            return
        folder = self._retrieval_folder(round)
        main = self.state.is_main_process
        if main:
            shutil.rmtree(folder, ignore_errors=True)  # of a round that was killed
        self.state.wait_for_everyone()
        refreshed(
            self.rag.retriever,
            posteriors,
            folder,
            self.config,
            seed=stable_seed(self.config.seed, round, "encoder"),
            is_main_process=main,
            progress=self.progress and self.state.is_local_main_process,
        )
        self.state.wait_for_everyone()
        self.rag.retriever.replace(*open_refreshed(folder, self._first_retrieval[1]))

    # -- rounds ------------------------------------------------------------------------------------------------

    def _now(self) -> tuple[float, int]:
        """The time, and how many tokens this process has read by now."""
        return time.perf_counter(), self.rag.generator.language_model.tokens_read

    def _finish_round(self, round: int, metrics: dict[str, float], started: tuple[float, int]) -> None:
        seconds, tokens = (now - before for now, before in zip(self._now(), started, strict=True))
        speed = {"seconds": seconds, "tokens_per_second": tokens / seconds}
        evaluation = self._evaluate()
        scores = {f"eval_{name}": value for name, value in evaluation.items()}
        steps = {"global_step": self.run_callbacks.steps}
        self.history.append({"round": round, **steps, **metrics, **scores, **speed})
        if self.state.is_main_process:
            save_learned(self.rag.selector, self._round_folder(round))
            self._write_metrics(self.history)
            shown = ("eval_exact_match", "eval_f1", "log_marginal", "ess")
            record = self.history[-1]
            news = ", ".join(f"{name} {record[name]:.3f}" for name in shown if name in record)
            logger.info("Round %d of %d in %.0f s. %s", round, self.config.rounds, seconds, news)
        self.run_callbacks.log(self.history[-1], self.rag.generator.language_model.base_model)
        self.state.wait_for_everyone()
        if self.eval_examples is not None:
            self._score(self.history[-1])  # an unknown metric is found in the first round, with its work saved
        self._forget_retrieval()

    def _evaluate(self) -> dict[str, Any]:
        if self.eval_examples is None or self.evaluate is None:
            return {}
        # Several processes share the questions as in the E-step; otherwise each would answer all of them.
        shared = {} if self.state.num_processes == 1 else {"processes": self.state}
        shown = self.progress and self.state.is_local_main_process
        found = self.evaluate(self.rag, self.eval_examples, progress=shown, **shared)
        return {**found.metrics, "intervals": {name: list(ends) for name, ends in found.intervals.items()}}

    def _round_folder(self, round: int) -> Path:
        return self.output_dir / f"round-{round}"

    def _score(self, record: Mapping[str, Any]) -> float:
        name = f"eval_{self.config.metric_for_best_model}"
        if not isinstance(record.get(name), float | int):
            known = sorted(k.removeprefix("eval_") for k in record if k.startswith("eval_") and k != _INTERVALS)
            raise UsageError(
                f"metric_for_best_model must be one of {known}; {self.config.metric_for_best_model!r} came."
            )
        return float(record[name])

    def best_round(self) -> int:
        """The round with the best dev metric (the first of equals); without a dev set the last one."""
        if self.eval_examples is None:
            return int(self.history[-1]["round"])
        return int(max(self.history, key=self._score)["round"])

    def _should_stop(self) -> bool:
        patience = self.config.early_stopping_patience
        if patience is None or self.eval_examples is None:
            return False
        return int(self.history[-1]["round"]) - self.best_round() >= patience

    def _retrieval_folder(self, round: int) -> Path:
        return self.output_dir / f"retrieval-{round}"

    def _load_round(self, round: int) -> None:
        if self.config.train_encoder:
            folder, first = self._retrieval_folder(round), self._first_retrieval
            self.rag.retriever.replace(*(open_refreshed(folder, first[1]) if round else first))
        load_learned(self.rag.selector, self._round_folder(round))

    def _forget_retrieval(self) -> None:
        """Indexes are large: only those of the best and of the last round are kept."""
        if self.config.train_encoder and self.state.is_main_process:
            last = int(self.history[-1]["round"])
            for round in set(range(1, last)) - {self.best_round()}:
                shutil.rmtree(self._retrieval_folder(round), ignore_errors=True)

    def _restore_best(self) -> None:
        best = self.best_round()
        self._load_round(best)
        logger.info("Kept round %d of %d.", best, self.history[-1]["round"])

    # -- the run directory -------------------------------------------------------------------------------------

    def _checkpoint_to_resume(self, resume: bool | str | Path) -> int | None:
        """Number of the round to continue after; None: the last finished one."""
        if isinstance(resume, bool):
            return None
        folder, number = Path(resume), Path(resume).name.removeprefix("round-")
        if folder.resolve() == self.output_dir.resolve():
            return None
        if folder.resolve().parent != self.output_dir.resolve() or not number.isdigit():
            raise UsageError(
                f"resume_from_checkpoint must be true, or a folder round-N in output_dir ({self.output_dir}); got "
                f"{str(resume)!r}."
            )
        return int(number)

    def _check_output_dir(self, *, resume: bool) -> None:
        folder = self.output_dir
        holds_run = (folder / RUN_FILE).is_file()
        if resume and not holds_run:
            raise UsageError(f"resume_from_checkpoint needs a run in output_dir; {folder} holds no {RUN_FILE}.")
        if not resume and folder.exists() and any(folder.iterdir()):
            what = "an earlier run; continue it with resume_from_checkpoint" if holds_run else "something else"
            raise UsageError(f"output_dir must be new or empty; {folder} holds {what}, or choose another folder.")

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

    def _write_run_file(self) -> None:
        if self.state.is_main_process:
            text = json.dumps(self._fingerprint(), indent=2, sort_keys=True, default=str)
            write_text(self.output_dir / RUN_FILE, text + "\n")
        self.state.wait_for_everyone()

    def _write_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        write_text(self.output_dir / METRICS_FILE, "".join(json.dumps(r, sort_keys=True) + "\n" for r in records))

    def _resume(self, last_round: int | None) -> int:
        """Load the last finished round, or the given one; returns the number of the next."""
        self.history = self._found_by_main(lambda: self._finished_rounds(last_round))
        if not self.history:
            return self._begin()
        last = self.history[-1]
        self._load_round(int(last["round"]))
        self.run_callbacks.begin(
            self.rag.generator.language_model.base_model,
            steps=int(last.get("global_step", 0)),
            rounds=int(last["round"]) + (self.config.supervised.num_train_epochs > 0),  # warm-up trains too
        )
        return int(last["round"]) + 1

    def _found_by_main(self, look: Callable[[], T]) -> T:
        """What the main process finds, for all: it may change files, and others would read them at another moment."""
        found: list[Any] = [None]
        if self.state.is_main_process:
            try:
                found = [look()]
            except RAGError as error:  # raised by all, because the others would wait for ever
                found = [error]
        (outcome,) = broadcast_object_list(found)
        if isinstance(outcome, RAGError):
            raise outcome
        return outcome

    def _check_run_file(self) -> None:
        then = f"Delete {self.output_dir} and train again, or restore the file."
        written = read_json(self.output_dir / RUN_FILE, then)
        ours = json.loads(json.dumps(self._fingerprint(), default=str))
        config = written.get("config")
        given, trained = flatten(ours["config"]), flatten(config if isinstance(config, dict) else {})
        trained = flatten(DROConfig().to_dict()) | trained
        different = sorted(k for k in given if given[k] != trained.get(k))
        written = self._unwritten(ours) | written
        different += [k for k in ours if k != "config" and ours[k] != written.get(k)]
        if different:
            raise MismatchError(
                f"A resumed run must keep its settings; {self.output_dir} was started with other values of "
                f"{different}. Use those, or another output_dir."
            )

    def _unwritten(self, ours: Mapping[str, Any]) -> dict[str, Any]:
        """What a run file that was written before these settings were in it stands for."""
        model = self.rag.generator.language_model
        return {
            # These could be chosen, and nobody knows now what was: they are taken as they are given.
            "revision": ours["revision"],
            "dtype": ours["dtype"],
            # These could not.
            "chat": asdict(ChatConfig()),
            "context_length": stated_context(model.base_model.config, model.tokenizer) or DEFAULT_CONTEXT,
        }

    def _finished_rounds(self, last_round: int | None) -> list[dict[str, Any]]:
        """Records of the rounds whose checkpoint is there, up to `last_round`; what comes after them is removed."""
        self._check_run_file()
        records: list[dict[str, Any]] = []
        for record in read_metrics(self.output_dir / METRICS_FILE):
            folder = self._round_folder(len(records))
            restore_replaced(folder)
            if record["round"] != len(records) or not folder.is_dir():
                break
            records.append(record)
        found = len(records)
        if last_round is not None and last_round >= found:
            raise UsageError(
                f"resume_from_checkpoint must be a finished round of {self.output_dir}, which has {found}; got round "
                f"{last_round}."
            )
        records = records if last_round is None else records[: last_round + 1]
        self._write_metrics(records)
        for round in range(len(records), found + 1):
            shutil.rmtree(self._round_folder(round), ignore_errors=True)
        return records

    # -- small things ------------------------------------------------------------------------------------------

    def _max_rows(self) -> int:
        """The most distinct permutations that a question can bring to the M-step."""
        if not self.config.e_step.exact:
            return self.config.e_step.num_permutations
        selector = self.rag.selector.config
        return math.perm(selector.num_candidates, selector.num_selected)

    @contextmanager
    def _bar(self, total: int, label: str) -> Any:
        shown = self.progress and self.state.is_local_main_process
        with tqdm(total=total, desc=label, unit="question", disable=not shown, leave=False) as bar:
            started, before = self._now()

            def advance(questions: int) -> None:
                now, tokens = self._now()
                bar.set_postfix_str(f"{(tokens - before) / max(now - started, 1e-9):,.0f} tokens/s", refresh=False)
                bar.update(questions)

            yield advance


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The records of a run's finished rounds; none if there is no file.

    A last line that is cut off is left out: earlier versions appended lines, and a kill could cut one.

    Raises:
        MismatchError: Any other line is damaged.
    """
    lines = file.read_bytes().splitlines() if file.is_file() else []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise MismatchError(
                f"Every line of {file} must be JSON, but line {number} is damaged ({error}). Restore the file, or cut "
                f"it before that line to train again from round {number - 1}."
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("round"), int):
            raise MismatchError(f'Every line of {file} must be an object with a "round", but line {number} is not.')
        records.append(record)
    return records


def _examples(
    dataset: Any, config: DROConfig, *, allow_unanswerable: bool = False, limit: int | None = None
) -> list[QAExample]:
    """Questions with golden answers; to be scored on, also those whose right answer is none."""
    if isinstance(dataset, list | tuple) and all(isinstance(e, QAExample) for e in dataset):
        examples = list(dataset)[:limit]
        empty = [e.id for e in examples if not (e.golden_answers or (allow_unanswerable and e.unanswerable))]
        if not examples or empty:
            raise DataError(
                f"Training and dev questions need golden answers; {len(empty)} of {len(examples)} have none."
            )
        return ignoring_identical_ids(examples, config.ignore_identical_ids)
    return load_examples(
        dataset,
        require_answers=True,
        allow_unanswerable=allow_unanswerable,
        limit=limit,
        ignore_identical_ids=config.ignore_identical_ids,
    )


def _kept(fitted: Fitted, total: int, what: str, limit: int) -> list[QAExample]:
    """What fits, after a warning about what does not.

    Raises:
        DataError: Nothing fits.
    """
    if not fitted.kept:
        reason = next(iter(fitted.too_long.values()))
        raise DataError(
            f"Some of the {what} must fit into {limit} tokens, with its answer and beside passages that are cut to "
            f"nothing; none of {total} does. The first: {reason}."
        )
    warn_of_too_long(fitted.too_long, total, what)
    return fitted.kept


def _digest(examples: Sequence[QAExample]) -> str:
    return hashlib.sha256(json.dumps([e.to_dict() for e in examples]).encode()).hexdigest()


def _mean_telemetry(posteriors: Sequence[Posterior]) -> dict[str, float]:
    """Means over the questions that have the number: not every question says which passages are gold."""
    values: dict[str, list[float]] = defaultdict(list)
    for posterior in posteriors:
        for name, value in posterior.telemetry().items():
            values[name].append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}
