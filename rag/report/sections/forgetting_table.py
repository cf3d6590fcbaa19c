"""What fine-tuning destroyed: every measurement of a forgetting file, with intervals and differences from the base."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rag.report.names import Names
from rag.report.page import Section, decimal, document, escape, fact_list, left_out, short_hash
from rag.report.tables import data_table, interval_note, metric_heading, p_text, settings_table, table_row
from rag.report.values import ends, finite, finites, flat, mapping, mappings

WHOLE = "all"
MOST_GROUPS = 200
MOST_MODELS = 40
_MEANING = (
    "<p>In small print: the 95 % bootstrap interval, and below it the difference from the base model on the same "
    "items, in <b>bold</b> where its p, adjusted by Holm among groups, is below 0.05.</p>"
)

_Key = tuple[str, str]  # task, metric


def render_forgetting(forgetting: Mapping[str, Any]) -> str:
    """The page of a forgetting file."""
    models = _models(forgetting)
    names = Names.of({"name": name} for name in models)
    title = "What fine-tuning kept, and what it destroyed"
    introduction = (
        '<p class="lead">The same items before and after fine-tuning: what a model could do that has nothing to do '
        f"with the questions it was tuned on.</p>{fact_list(_facts(forgetting))}"
    )
    base = settings_table(flat({"base": mapping(forgetting.get("base"))}), "The base model")
    sections = [
        Section("forgetting", "Measurements", forgetting_section(forgetting, names)),
        Section("settings", "Settings", base + settings_table(flat(mapping(forgetting.get("settings"))), "Settings")),
    ]
    return document(title, introduction, sections, names)


def _facts(forgetting: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"Bundle of {escape(model.get('name', ''))}, sha256": short_hash(model["bundle_sha256"])
        for model in mappings(forgetting.get("models"))
        if model.get("bundle_sha256")
    }


def forgetting_section(forgetting: Mapping[str, Any], names: Names) -> str:
    """One table over all items of every task, and one by group for each task that has groups; may be empty."""
    measured = mappings(forgetting.get("measurements"))
    if not measured:
        return ""
    keys = list(dict.fromkeys(_key(entry) for entry in measured))
    groups = "".join(_groups(key, forgetting, names) for key in keys)
    return _MEANING + _summary(keys, forgetting, names) + groups


def _key(entry: Mapping[str, Any]) -> _Key:
    return str(entry.get("task", "")), str(entry.get("metric", ""))


def _models(forgetting: Mapping[str, Any]) -> list[str]:
    listed = [str(model.get("name", "")) for model in mappings(forgetting.get("models"))]
    measured = [str(entry.get("model", "")) for entry in mappings(forgetting.get("measurements"))]
    return list(dict.fromkeys([*listed, *measured]))


def _found(entries: object, model: str, key: _Key, group: str) -> Mapping[str, Any]:
    """The entry of this model, task, metric and group, or an empty one."""
    wanted = (model, key, group)
    return next(
        (e for e in mappings(entries) if (str(e.get("model")), _key(e), str(e.get("group", WHOLE))) == wanted), {}
    )


# All items of a task.


def _summary(keys: Sequence[_Key], forgetting: Mapping[str, Any], names: Names) -> str:
    shown = [
        key
        for key in keys
        if any(_key(m) == key and m.get("group", WHOLE) == WHOLE for m in mappings(forgetting.get("measurements")))
    ]
    models = _models(forgetting)
    body = [
        table_row(_heading(model, names), [_cell(model, key, forgetting) for key in shown])
        for model in models[:MOST_MODELS]
    ]
    head = ["Model", *(_task_heading(key, forgetting) for key in shown)]
    table = data_table(head, body, "Measurements of forgetting", "results forgotten")
    return left_out(min(len(models), MOST_MODELS), len(models), "models") + (table if shown else "")


def _task_heading(key: _Key, forgetting: Mapping[str, Any]) -> str:
    return f"{escape(key[0])}<small>{escape(metric_heading(key[1]))}{_better(forgetting, key)}</small>"


def _heading(model: str, names: Names) -> str:
    return f"{names.key(model)}<span>{escape(names.label(model))}</span>"


def _better(forgetting: Mapping[str, Any], key: _Key) -> str:
    ways = {m.get("higher_is_better") for m in mappings(forgetting.get("measurements")) if _key(m) == key}
    words = {True: ", higher is better", False: ", lower is better"}
    return "".join(words[way] for way in ways if isinstance(way, bool)) if len(ways) == 1 else ""


def _cell(model: str, key: _Key, forgetting: Mapping[str, Any]) -> str:
    measured = _found(forgetting.get("measurements"), model, key, WHOLE)
    compared = _found(forgetting.get("comparisons"), model, key, WHOLE)
    return _value(measured) + _difference(compared)


def _value(measured: Mapping[str, Any]) -> str:
    form = _form(finite(measured.get("value")))
    items = finite(measured.get("n"))
    count = f' title="{items:,.0f} items"' if items is not None else ""
    return f"<span{count}>{decimal(measured.get('value'), form)}</span>{interval_note(measured.get('interval'), form)}"


def _difference(compared: Mapping[str, Any]) -> str:
    number = finite(compared.get("difference"))
    if number is None:
        return ""
    form, p = "+" + _form(number), _p(compared)
    text = decimal(number, form)
    both = ends(compared.get("interval"))
    between = f" ({decimal(both[0], form)} to {decimal(both[1], form)})" if both else ""
    mark = f"<b>{text}</b>" if p is not None and p < 0.05 else text
    return f'<small class="change">{mark}{between}</small>'


def _form(value: float | None) -> str:
    """Three decimals, and fewer for large numbers such as perplexities."""
    return ".3f" if value is None or abs(value) < 10 else ".2f" if abs(value) < 100 else ",.1f"


# By group.


def _groups(key: _Key, forgetting: Mapping[str, Any], names: Names) -> str:
    """The groups of one task: the greatest losses first."""
    measured = [m for m in mappings(forgetting.get("measurements")) if _key(m) == key]
    every = list(dict.fromkeys(str(m.get("group", WHOLE)) for m in measured if m.get("group", WHOLE) != WHOLE))
    if not every:
        return ""
    values = {(str(m.get("model")), str(m.get("group"))): m for m in measured}
    compared = [c for c in mappings(forgetting.get("comparisons")) if _key(c) == key]
    changes = {(str(c.get("model")), str(c.get("group"))): c for c in compared}
    sign = -1.0 if any(m.get("higher_is_better") is False for m in measured) else 1.0

    def change(group: str) -> tuple[float, str]:
        found = finites(c.get("difference") for (_, g), c in changes.items() if g == group)
        return sign * sum(found) / len(found) if found else math.inf, group

    groups = sorted(every, key=change)[:MOST_GROUPS]
    tuned = [m for m in _models(forgetting) if any((m, g) in changes for g in every)][:MOST_MODELS]
    base = [m for m in _models(forgetting) if m not in tuned and any((m, g) in values for g in every)]
    body = [table_row(escape(g), _group_cells(g, base, tuned, values, changes)) for g in groups]
    head = ["Group", "Items", *(map(escape, base)), *(_column(model, names) for model in tuned)]
    heading = f"{escape(key[0])}: {escape(metric_heading(key[1]))} by group ({len(every)})"
    table = data_table(head, body, f"{key[0]} by group", "groups")
    order = "<p><small>Ordered by the mean change of all models, the greatest loss first.</small></p>"
    return (
        f"<details><summary>{heading}</summary>{order if tuned else ''}"
        f"{left_out(len(groups), len(every), 'groups')}{table}</details>"
    )


def _column(model: str, names: Names) -> str:
    return f"{names.key(model)}{escape(names.label(model))}"


def _group_cells(
    group: str,
    base: Sequence[str],
    tuned: Sequence[str],
    values: Mapping[tuple[str, str], Mapping[str, Any]],
    changes: Mapping[tuple[str, str], Mapping[str, Any]],
) -> list[str]:
    """Items, the base's values, and of each tuned model value and change."""
    first = next((values[model, group] for model in [*base, *tuned] if (model, group) in values), {})
    cells = [decimal(first.get("n"), ",.0f")]
    cells += [_value(values.get((model, group), {})) for model in base]
    for model in tuned:
        measured, compared = values.get((model, group), {}), changes.get((model, group), {})
        form = _form(finite(measured.get("value")))
        if len(tuned) == 1:
            cells.append(_value(measured) + _difference(compared))
        else:
            cells.append(f"{decimal(measured.get('value'), form)}{_plain_change(compared)}")
    return cells


def _p(compared: Mapping[str, Any]) -> float | None:
    """Adjusted for how many groups were looked at, where that was done."""
    adjusted = finite(compared.get("p_adjusted"))
    return finite(compared.get("p")) if adjusted is None else adjusted


def _plain_change(compared: Mapping[str, Any]) -> str:
    number, p = finite(compared.get("difference")), _p(compared)
    text = decimal(number, "+" + _form(number))
    mark = f"<b>{text}</b>" if p is not None and p < 0.05 else text
    return f'<small title="p = {p_text(p)}">{mark}</small>' if number is not None else ""
