"""From result files to what a report shows. This is the only place that knows their keys.

`read_source` recognises a run, an evaluation, a forgetting file, a sweep or the result of a demo experiment by its
content. `parse_result` turns the JSON of one of them into the types of `rag.report.report_data`: here, and nowhere
else, it is decided what a missing or malformed value is. Numbers that are not finite, entries of another type and
unknown keys are left out.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from indexes.errors import DataError
from rag.report.report_data import (
    WHOLE_TASK,
    AnsweredQuestion,
    Attribution,
    AttributionAudit,
    ComparisonData,
    Curves,
    Dataset,
    EncyclopediaReading,
    Estimate,
    EvaluationData,
    FailedTrial,
    ForgettingData,
    ForgettingDifference,
    GivenAnswer,
    Interval,
    Measurement,
    Metrics,
    OrderAudit,
    OrderBiasAudits,
    PairedTest,
    ReportData,
    RetrievedPassage,
    RoundRecord,
    RunData,
    TaskMetric,
    Trial,
)

SWEEP_FILE = "sweep.json"
SECONDS_FILE = "seconds.json"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
FILE_KINDS = ("evaluation", "forgetting", "sweep")
SUPPORTED = (
    f"a run folder ({RUN_FILE} and {METRICS_FILE}), a sweep's folder or {SWEEP_FILE}, or the JSON file of an "
    "evaluation, of a forgetting measurement or of `rag demo --json`"
)

T = TypeVar("T")
_Object = Mapping[str, Any]


# Files.


def read_source(path: str | Path, *, forgetting: str | Path | None = None, kept_round: int | None = None) -> ReportData:
    """Read what a report shows from a file or folder, which is recognised by its content.

    Args:
        path: A run folder, a sweep's folder, or a JSON file.
        forgetting: A forgetting file to show on the same page.
        kept_round: Of a run: the round whose checkpoint was kept, which the folder does not record.

    Raises:
        DataError: The path holds nothing that a report can show; the message says what was found.
    """
    path = Path(path)
    if path.name in (RUN_FILE, METRICS_FILE):
        path = path.parent
    data = _read_folder(path) if path.is_dir() else _read_file(path)
    if forgetting is not None:
        data["forgetting"] = _read_forgetting(Path(forgetting))
    if kept_round is not None:
        data["kept_round"] = kept_round
    return parse_result(data)


def _read_folder(folder: Path) -> dict[str, Any]:
    if (folder / SWEEP_FILE).is_file():
        return _read_file(folder / SWEEP_FILE)
    if (folder / RUN_FILE).is_file():
        return _read_run(folder)
    names = sorted(entry.name for entry in folder.iterdir())
    found = f"holds {', '.join(names[:8])}{' and more' if len(names) > 8 else ''}" if names else "is empty"
    raise DataError(f"A report is made from {SUPPORTED}; {folder} {found}. Name another path.")


def _read_file(file: Path) -> dict[str, Any]:
    data = _read_json(file)
    if data.get("kind") not in FILE_KINDS:
        keys = sorted(data)
        found = f"is of kind {data['kind']!r}" if data.get("kind") else f"holds the keys {keys[:12]}"
        raise DataError(f"A report is made from {SUPPORTED}; {file} {found}. Name another file.")
    return _read_sweep(data, file.parent) if data.get("kind") == "sweep" else data


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(f"A report is made from {SUPPORTED}; there is no {file}. Check the path.")
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"A report is made from {SUPPORTED}; {file} is not JSON ({error}). Check the path.") from error
    if not isinstance(data, dict):
        raise DataError(f"A report is made from {SUPPORTED}; {file} holds a {type(data).__name__}. Name another file.")
    return data


def _read_sweep(sweep: _Object, folder: Path) -> dict[str, Any]:
    times = folder / SECONDS_FILE
    return with_evaluation_records(with_seconds(sweep, _read_json(times)) if times.is_file() else sweep, folder)


def _read_run(folder: Path) -> dict[str, Any]:
    run, metrics = folder / RUN_FILE, folder / METRICS_FILE
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    records = []
    for number, line in enumerate(lines, 1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break  # a round that was being written when the run was killed
            raise DataError(f"{metrics}, line {number}: must be JSON ({error}). Is it a run's file?") from error
    if not records:
        raise DataError(
            f"The report of a run needs a finished round; {folder} has none in {METRICS_FILE}. Train first."
        )
    return {"kind": "run", "name": folder.resolve().name, "run": _read_json(run), "records": records}


def _read_forgetting(file: Path) -> dict[str, Any]:
    data = _read_file(file)
    if data.get("kind") != "forgetting":
        raise DataError(f"--forgetting takes a file of `rag forgetting`; {file} is of kind {data.get('kind')!r}.")
    return data


def with_seconds(sweep: _Object, seconds: _Object) -> dict[str, Any]:
    """A sweep with its times, which its own file omits so that the same sweep is always the same file."""
    by_trial = _object(seconds.get("trials"))
    trials = [{**trial, "seconds": by_trial.get(str(trial.get("name")))} for trial in _objects(sweep.get("trials"))]
    return {**sweep, "trials": trials, "seconds": seconds.get("total")}


def with_evaluation_records(sweep: _Object, folder: str | Path) -> dict[str, Any]:
    """A sweep with the questions of one of its evaluations, where that file lies in the sweep's folder.

    The ceilings of recall@k are computed from them. Of the evaluations the first with the most metrics is taken:
    pipelines that read one document at a time may retrieve fewer candidates.
    """
    evaluations = _object(sweep.get("evaluations"))
    order = [str(trial.get("name")) for trial in _objects(sweep.get("trials")) if str(trial.get("name")) in evaluations]
    widest = sorted(order, key=lambda name: len(_object(_object(evaluations[name]).get("metrics"))), reverse=True)
    for name in widest:
        file = Path(folder) / "trials" / name / "evaluation.json"
        if Path(name).name == name and file.is_file():
            with contextlib.suppress(ValueError):  # a damaged file costs only the ceilings, not the page
                records = _object(json.loads(file.read_text(encoding="utf-8"))).get("records")
                return {
                    **sweep,
                    "evaluations": {**evaluations, name: {**_object(evaluations[name]), "records": records}},
                }
    return dict(sweep)


# Results.


def parse_result(result: _Object) -> ReportData:
    """The typed content of a result file, or of the same data in memory.

    Args:
        result: `kind` is "evaluation", "forgetting", "run" (`name`, `run` for run.json and `records` for the lines of
            metrics.jsonl) or "sweep", also of a demo experiment, with `trials`, one mapping per trial.

    Raises:
        DataError: Another kind, or a comparison without a list of trials.
    """
    kind = result.get("kind")
    if kind not in _PARSERS:
        raise DataError(
            f"A report shows one of the kinds {sorted(_PARSERS)}; got {kind!r}. Pass the file of one of them."
        )
    return _PARSERS[kind](result)


def _evaluation(file: _Object) -> EvaluationData:
    name = _text(file.get("name")) or "evaluation"
    pipeline = _object(file.get("pipeline"))
    parts = {key: _object(file.get(key)) for key in ("dataset", "pipeline", "settings")}
    return EvaluationData(
        name=name,
        label=_text(file.get("label")) or name,
        metrics=_metrics(file),
        records=_records(file.get("records"), name),
        dataset=_dataset(file),
        n=_number(file.get("n")),
        n_scored=_number(file.get("n_scored")),
        answer_mode=_text(pipeline.get("answer_mode")),
        bundle=_text(pipeline.get("bundle_sha256")),
        order_bias=_order_bias(_object(file.get("order_bias"))),
        attribution=_attribution_audit(_object(file.get("attribution"))),
        forgetting=_forgetting(_object(file.get("forgetting"))),
        settings=_settings(parts),
    )


def _metrics(entry: _Object) -> Metrics:
    """`metrics` with their `intervals` and `counts`."""
    intervals, counts = _object(entry.get("intervals")), _object(entry.get("counts"))
    numbers = {str(name): _number(value) for name, value in _object(entry.get("metrics")).items()}
    return {
        name: Estimate(value, _interval(intervals.get(name)), _number(counts.get(name)))
        for name, value in numbers.items()
        if value is not None
    }


def _order_bias(entry: _Object) -> OrderBiasAudits:
    audits = {key: _object(entry.get(key)) for key in ("candidates", "passages")}
    return OrderBiasAudits(
        shuffles=_number(entry.get("shuffles")),
        **{
            key: OrderAudit(_estimates(audit), _estimates(audit.get("exact_match_by_gold_position"), every=True))
            for key, audit in audits.items()
        },
    )


def _attribution_audit(entry: _Object) -> AttributionAudit:
    return AttributionAudit(
        threshold=_number(entry.get("threshold")),
        citations=_number(entry.get("citations")),
        supported=_number(entry.get("supported")),
        estimates=_estimates(entry),
    )


def _estimates(entries: object, *, every: bool = False) -> dict[str, Estimate]:
    """Mappings with `value`, `interval` and `n`; with `every`, also those without a value."""
    found = {str(key): entry for key, entry in _object(entries).items() if every or "value" in _object(entry)}
    return {key: _estimate(_object(entry)) for key, entry in found.items()}


def _estimate(entry: _Object) -> Estimate:
    names = ("value", "n", "unshuffled", "lowest", "highest")
    return Estimate(**{name: _number(entry.get(name)) for name in names}, interval=_interval(entry.get("interval")))


def _forgetting(file: _Object) -> ForgettingData:
    models = _objects(file.get("models"))
    measurements = [_measurement(entry) for entry in _objects(file.get("measurements"))]
    return ForgettingData(
        models=_unique([*(_text(model.get("name")) for model in models), *(entry.model for entry in measurements)]),
        bundles={_text(m.get("name")): _text(m.get("bundle_sha256")) for m in models if m.get("bundle_sha256")},
        measurements=measurements,
        differences=[_difference(entry) for entry in _objects(file.get("comparisons"))],
        base=_settings({"base": _object(file.get("base"))}),
        settings=_settings(_object(file.get("settings"))),
    )


def _measurement(entry: _Object) -> Measurement:
    better = entry.get("higher_is_better")
    return Measurement(
        model=_text(entry.get("model")),
        column=_column(entry),
        group=_text(entry.get("group", WHOLE_TASK)),
        estimate=_estimate(entry),
        higher_is_better=better if isinstance(better, bool) else None,
    )


def _difference(entry: _Object) -> ForgettingDifference:
    adjusted = _number(entry.get("p_adjusted"))
    return ForgettingDifference(
        model=_text(entry.get("model")),
        column=_column(entry),
        group=_text(entry.get("group", WHOLE_TASK)),
        difference=_number(entry.get("difference")),
        interval=_interval(entry.get("interval")),
        p=_number(entry.get("p")) if adjusted is None else adjusted,
    )


def _column(entry: _Object) -> TaskMetric:
    return TaskMetric(_text(entry.get("task")), _text(entry.get("metric")))


def _run(result: _Object) -> RunData:
    written = _object(result.get("run"))
    config = _object(written.get("config"))
    base = written.get("base")
    digests = {
        "index": "Index",
        "encoder": "Encoder",
        "train_examples": "Training questions",
        "eval_examples": "Questions",
    }
    return RunData(
        name=_text(result.get("name")) or "run",
        records=_rounds(result.get("records")),
        rounds=_number(config.get("rounds")),
        kept_round=_number(result.get("kept_round")),
        permutations_drawn=_permutations_drawn(config),
        base=base if isinstance(base, str) else "",
        digests={label: _text(written[key]) for key, label in digests.items() if written.get(key)},
        forgetting=_forgetting(_object(result.get("forgetting"))),
        settings={key: value for key, value in _settings(written).items() if key != "prompts"},
    )


def _rounds(records: object) -> list[RoundRecord]:
    return [
        RoundRecord(
            round=_number(record.get("round")),
            values=_numbers(record),
            intervals=_intervals(_object(record.get("eval_intervals"))),
            warnings=_texts(record.get("warnings")),
        )
        for record in _objects(records)
    ]


def _permutations_drawn(config: _Object) -> str:
    """How many permutations DRO's E-step draws for a question; empty if the settings of training do not say."""
    training = dict(_flat(config, ""))
    kept, factor = (training.get(f"e_step.{name}") for name in ("num_permutations", "proposals_per_sample"))
    return _text(kept * factor if isinstance(kept, int) and isinstance(factor, int) else kept)


def _sweep(result: _Object) -> ComparisonData:
    if not isinstance(result.get("trials"), list | tuple):
        found = f"the keys {sorted(map(str, result))}" if "trials" not in result else type(result["trials"]).__name__
        raise DataError(
            f"A result must hold 'trials', a list with one mapping per pipeline; got {found}. "
            "Pass the whole result of a comparison, not a part of it."
        )
    trials = [_trial(entry) for entry in _objects(result["trials"])]
    evaluations = {str(name): _object(entry) for name, entry in _object(result.get("evaluations")).items()}
    with_records = next((entry for entry in evaluations.values() if entry.get("records")), {})
    encyclopedia = _object(result.get("encyclopedia"))
    settings = _object(result.get("settings"))
    return ComparisonData(
        trials=trials,
        retriever=_numbers(_object(result.get("retriever"))),
        retriever_kind=_text(settings.get("retriever")) or "dense",
        paired_tests=[_paired_test(entry) for entry in _objects(result.get("comparisons"))],
        curves=_in_order_of(trials, _curves(result.get("curves"))),
        evaluations=_in_order_of(trials, {name: _metrics(entry) for name, entry in evaluations.items()}),
        records=_records(with_records.get("records"), ""),
        questions=_questions(result.get("questions")),
        samples=_questions(result.get("samples")),
        encyclopedia=EncyclopediaReading(
            name=_text(encyclopedia.get("name")),
            exact_match=_number(encyclopedia.get("exact_match")),
            questions=_number(encyclopedia.get("questions")),
            samples=_questions(encyclopedia.get("samples")),
        ),
        failed=[
            FailedTrial(_text(entry.get("name")), _text(entry.get("error", "no reason was recorded")))
            for entry in _objects(result.get("failed"))
        ],
        forgetting=_forgetting(_object(result.get("forgetting"))),
        dataset=_dataset(result),
        mode=_text(result.get("mode")),
        seconds=_number(result.get("seconds")),
        focus_recipe=_text(settings.get("focus_recipe")) or "auto",
        invented_world=_object(settings.get("world")).get("domain") is not None,
        sizes=_sizes(result, settings),
        permutations_drawn=_permutations_drawn(_object(settings.get("training"))),
        settings=_settings({**({"mode": result["mode"]} if result.get("mode") else {}), **settings}),
    )


def _trial(entry: _Object) -> Trial:
    name = _text(entry.get("name"))
    intervals = _object(entry.get("intervals"))
    numbers = {key: number for key, number in _numbers(entry).items() if key not in ("seed", "selfaug")}
    return Trial(
        name=name,
        label=_text(entry.get("label")) or name,
        recipe=_text(entry.get("recipe")),
        seed=_text(entry.get("seed")),
        metrics={key: Estimate(value, _interval(intervals.get(key))) for key, value in numbers.items()},
    )


def _paired_test(entry: _Object) -> PairedTest:
    numbers = ("difference", "relative", "p", "p_exact", "p_adjusted", "p_exact_adjusted", "questions")
    return PairedTest(
        name=_text(entry.get("name")),
        against=_text(entry.get("against")),
        metric=_text(entry.get("metric")),
        interval=_interval(entry.get("interval")),
        **{name: _number(entry.get(name)) for name in numbers},
    )


def _curves(entries: object) -> Curves:
    return {str(name): _rounds(records) for name, records in _object(entries).items()}


def _in_order_of(trials: Sequence[Trial], parts: Mapping[str, T]) -> dict[str, T]:
    """By name, in the order of the trials: files sort their keys."""
    places = {trial.name: place for place, trial in enumerate(trials)}
    return {name: parts[name] for name in sorted(parts, key=lambda name: places.get(name, len(places)))}


def _sizes(result: _Object, settings: _Object) -> dict[str, str]:
    """The sizes of a run by the names of their settings; a sweep keeps those of its parts in parts."""
    answerable, questions = result.get("answerable_questions"), _object(result.get("dataset")).get("n")
    parts = [_object(settings.get(part)) for part in ("world", "training", "selector")]
    found = {"test_questions": questions} | {
        key.removeprefix("e_step."): value for part in [*parts, settings] for key, value in _flat(part, "")
    }
    found["answerable_questions"] = answerable
    if found.get("train_questions") is None and answerable is not None:
        found |= {"train_questions": answerable, "answerable_questions": None}
    return {str(key): text for key, value in found.items() if (text := _text(value))}


# Questions.


def _records(entries: object, name: str) -> list[AnsweredQuestion]:
    """The records of an evaluation: questions with one answer, that of the evaluated pipeline."""
    return [_question(entry, [_recorded_answer(entry, name)]) for entry in _objects(entries)]


def _recorded_answer(record: _Object, name: str) -> GivenAnswer:
    scores = record.get("scores")
    scores = scores if isinstance(scores, Mapping) else record
    return _answer({**record, **scores, "trial": name, "text": record.get("prediction")})


def _questions(entries: object) -> list[AnsweredQuestion]:
    return [_question(entry, [_answer(a) for a in _objects(entry.get("answers"))]) for entry in _objects(entries)]


def _question(entry: _Object, answers: Sequence[GivenAnswer]) -> AnsweredQuestion:
    return AnsweredQuestion(
        id=_text(entry.get("id")),
        question=_text(entry.get("question")),
        golden_answers=_texts(entry.get("golden_answers")),
        gold_ids=_texts(entry.get("gold_ids")),
        candidates=_passages(entry.get("candidates")),
        answers=answers,
        listed_as=_text(entry["list"]) if "list" in entry else None,
    )


def _answer(entry: _Object) -> GivenAnswer:
    return GivenAnswer(
        name=_text(entry.get("trial")),
        text=_text(entry.get("text")),
        **{name: _number(entry.get(name)) for name in ("exact_match", "f1", "log_prob")},
        citations=_texts(entry.get("citations")),
        permutation=_texts(entry.get("permutation")),
        passages=_passages(entry.get("passages")),
        attributions={
            _text(found.get("id")): Attribution(_number(found.get("log_prob_drop")), bool(found.get("answer_changed")))
            for found in _objects(entry.get("attribution"))
        },
    )


def _passages(entries: object) -> list[RetrievedPassage]:
    return [
        RetrievedPassage(
            id=_text(entry.get("id")),
            title=_text(entry.get("title")),
            text=_text(entry.get("text")),
            score=_number(entry.get("score")),
        )
        for entry in _objects(entries)
    ]


def _dataset(result: _Object) -> Dataset:
    entry = _object(result.get("dataset"))
    n, skipped = _number(entry.get("n")), _number(entry.get("skipped"))
    return Dataset(n, skipped, file=_text(entry.get("file")), sha256=_text(entry.get("sha256")))


_PARSERS: dict[str, Callable[[_Object], ReportData]] = {
    "evaluation": _evaluation,
    "forgetting": _forgetting,
    "run": _run,
    "sweep": _sweep,
}


# Values of JSON, any of which may be of another type.


def _object(value: object) -> _Object:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def _objects(value: object) -> list[_Object]:
    """The mappings in a list."""
    return [entry for entry in _list(value) if isinstance(entry, Mapping)]


def _list(value: object) -> Sequence[Any]:
    """The value if it is a list, else an empty one; a text is none."""
    return value if isinstance(value, list | tuple) else ()


def _text(value: object) -> str:
    """The value as a text; empty for None and for what is no single value."""
    return "" if value is None or isinstance(value, Mapping | list | tuple) else str(value)


def _texts(value: object) -> list[str]:
    return [str(entry) for entry in _list(value)]


def _number(value: object) -> float | None:
    """The value as a float if it is a finite number (NumPy's included), else None."""
    if not isinstance(value, Real):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def _numbers(entry: _Object) -> dict[str, float]:
    """The finite numbers of a mapping."""
    numbers = {str(name): _number(value) for name, value in entry.items()}
    return {name: number for name, number in numbers.items() if number is not None}


def _interval(value: object) -> Interval | None:
    """Two finite numbers, the lower one first, else None."""
    ends = sorted(number for number in map(_number, _list(value)) if number is not None)
    return (ends[0], ends[1]) if len(ends) == 2 else None


def _intervals(entry: _Object) -> dict[str, Interval]:
    intervals = {str(name): _interval(value) for name, value in entry.items()}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def _settings(entries: _Object) -> dict[str, str]:
    """Nested settings as texts by their dotted names; lists are written with commas."""
    return {key: ", ".join(_texts(value)) or str(value) for key, value in _flat(entries, "")}


def _flat(entries: _Object, prefix: str) -> Iterable[tuple[str, Any]]:
    for key, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
