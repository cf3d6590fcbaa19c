"""The page of a training run: its rounds, and what it was set to."""

from collections.abc import Mapping, Sequence
from typing import Any

from rag.report.curves import curves_section
from rag.report.forgetting import forgetting_section
from rag.report.names import Names
from rag.report.page import Section, decimal, document, escape, fact_list, left_out, short_hash
from rag.report.tables import data_table, interval_note, settings_table, table_row
from rag.report.values import finite, flat, mapping, mappings

MOST_ROUNDS = 200
_TABLE = (
    *("eval_exact_match", "eval_f1", "eval_selector_recall@1", "eval_retriever_recall@1", "ess"),
    *("distinct_permutations", "log_marginal", "selector_loss", "generator_loss", "selfaug_kl"),
    *("tokens_per_second", "seconds"),
)
_DIGESTS = {
    "index": "Index",
    "encoder": "Encoder",
    "train_examples": "Training questions",
    "eval_examples": "Questions",
}


def render_run(run: Mapping[str, Any]) -> str:
    """The page of a run folder, as `rag.report.sources` reads it: `name`, `run` and `records`.

    `kept_round` may stand beside them; the folder itself does not say by which metric a round was chosen.
    """
    name = str(run.get("name") or "run")
    records = mappings(run.get("records"))
    forgetting = mapping(run.get("forgetting"))
    models = (str(model.get("name", "")) for model in mappings(forgetting.get("models")))
    names = Names.of([{"name": name}], models, first_look=2)
    written = mapping(run.get("run"))
    charts = {"curves": {name: records}, "settings": mapping(written.get("config"))}
    sections = [
        Section("rounds", "Round by round", curves_section(charts, names, losses=True)),
        Section("table", "Numbers", _table(records, finite(run.get("kept_round")))),
        Section("forgetting", "Forgetting", forgetting_section(forgetting, names)),
        Section("settings", "Settings", settings_table(_settings(written), "Settings of the run")),
    ]
    return document(f"Training run: {escape(name)}", _introduction(run, records), sections, names)


def _introduction(run: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> str:
    written, kept = mapping(run.get("run")), finite(run.get("kept_round"))
    wanted = finite(mapping(written.get("config")).get("rounds"))
    last = finite(records[-1].get("round")) if records else None
    rounds = "" if last is None else f"{last:,.0f}" + (f" of {wanted:,.0f}" if wanted is not None else "")
    facts = {
        "Rounds": rounds,
        "Round kept": "" if kept is None else f"{kept:,.0f}",
        "Best round by exact match": _best(records, "eval_exact_match") if kept is None else "",
        "Best round by F1": _best(records, "eval_f1") if kept is None else "",
        "Base": escape(written["base"]) if isinstance(written.get("base"), str) else "",
        **{f"{text}, sha256": short_hash(written[key]) for key, text in _DIGESTS.items() if written.get(key)},
    }
    return (
        '<p class="lead">One training run: in every round an E-step draws lists of passages and weighs each by how '
        "well it explains the answer, and an M-step makes good lists and good answers likelier. Round 0 is the "
        f"pipeline before training.</p>{fact_list(facts)}"
    )


def _best(records: Sequence[Mapping[str, Any]], key: str) -> str:
    """The first round with the highest value."""
    scored = [(finite(record.get(key)), finite(record.get("round"))) for record in records]
    known = [(score, -round) for score, round in scored if score is not None and round is not None]
    return f"{-max(known)[1]:,.0f}" if known else ""


def _table(records: Sequence[Mapping[str, Any]], kept: float | None) -> str:
    columns = [name for name in _TABLE if any(finite(record.get(name)) is not None for record in records)]
    body = [_row(record, columns, kept) for record in records[:MOST_ROUNDS]]
    head = ["Round", *(escape(name.removeprefix("eval_").replace("_", " ")) for name in columns)]
    table = data_table(head, body, "Numbers of every round", "results numbers")
    return left_out(len(body), len(records), "rounds") + table if body and columns else ""


def _row(record: Mapping[str, Any], columns: Sequence[str], kept: float | None) -> str:
    round, intervals = finite(record.get("round")), mapping(record.get("eval_intervals"))
    note = "<small>kept</small>" if round is not None and round == kept else ""
    cells = [
        decimal(record.get(name), ",.0f" if name == "tokens_per_second" else ".3f")
        + interval_note(intervals.get(name.removeprefix("eval_")))
        for name in columns
    ]
    return table_row(f"{decimal(round, 'g')}{note}", cells)


def _settings(written: Mapping[str, Any]) -> dict[str, Any]:
    """All that the run wrote down, prompts as one line each."""
    return {key: value for key, value in flat(written).items() if key != "prompts"}
