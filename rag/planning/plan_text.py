"""A plan as text, for a training run and an index build alike."""

from collections.abc import Iterator

from indexes.host_memory import format_bytes, format_seconds
from rag.planning.cost_plan import Change, Fit, Plan
from rag.text_tables import table


def plan_text(plan: Plan) -> str:
    """The plan's setting, a table of times, a table of memory, disk space and the verdict."""
    verdict = "\n".join(_verdict_lines(plan))
    limits = "\n".join(["Not modelled:", *(f"  {text}" for text in plan.not_modelled)])
    setting = "\n".join(plan.setting.summary())
    parts = [setting, _time_text(plan), _memory_text(plan), _measured_text(plan), verdict, limits]
    return "\n\n".join(part for part in parts if part)


def _time_text(plan: Plan) -> str:
    cells = [
        [phase.name, format_seconds(phase.seconds), str(phase.times), format_seconds(phase.total_seconds), phase.basis]
        for phase in plan.phases
        if phase.basis
    ]
    one_round = "" if plan.round_seconds is None else f"one round {format_seconds(plan.round_seconds)}, "
    return "\n".join(
        [
            table(["time", "once", "times", "total", "rests on"], cells),
            f"{one_round}total {format_seconds(plan.seconds)}",
        ]
    )


def _memory_text(plan: Plan) -> str:
    names = list(dict.fromkeys(name for phase in plan.phases for name in phase.parts))
    files = ["mapped files"] if any(phase.mapped for phase in plan.phases) else []
    cells = [
        [phase.name, _size(phase.peak), *(_size(phase.mapped) for _ in files)]
        + [_size(phase.parts.get(name, 0)) for name in names]
        for phase in plan.phases
    ]
    always = ", ".join(f"{name} {_size(size)}" for name, size in plan.memory.always.items())
    optimizer = f"; in M-steps also gradients and Adam {_size(plan.memory.optimizer)}" if plan.memory.optimizer else ""
    disk = ", ".join(f"{name} {_size(size)}" for name, size in plan.disk.parts.items() if size)
    temporary = f", with {_size(plan.disk.temporary)} of temporary files" if plan.disk.temporary else ""
    return "\n".join(
        [
            table(["memory", "peak", *files, *names], cells),
            f"always in use, part of the peak: {always}{optimizer}",
            f"disk: {_size(plan.disk.after)} in the end ({disk}); at most {_size(plan.disk.peak)}{temporary}",
        ]
    )


def _measured_text(plan: Plan) -> str:
    """What was measured beside what was predicted; nothing where nothing was measured."""
    if not plan.measured or plan.measured_seconds is None:
        return ""
    cells = [
        [
            phase.name,
            str(phase.items),
            *map(format_seconds, (phase.predicted_seconds, phase.seconds)),
            f"{phase.predicted_seconds / phase.seconds:.2f}" if phase.seconds else "-",
            *map(format_seconds, (phase.predicted_run_seconds, phase.run_seconds)),
            _size(phase.predicted_peak),
            "-" if phase.peak is None else _size(phase.peak),
        ]
        for phase in plan.measured
    ]
    head = ["with the real model", "items", "predicted", "measured", "ratio", "in the run", "measured"]
    return "\n".join(
        [
            table([*head, "peak", "measured"], cells),
            f"total {format_seconds(plan.measured_seconds)} with what was measured, {format_seconds(plan.seconds)} by "
            "prediction; phases that are not listed are predicted in both",
        ]
    )


def _verdict_lines(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    files = "" if memory.resident == memory.peak else f", {_size(memory.resident)} with mapped files"
    yield f"Peak memory {_size(memory.peak)} ({memory.peak_phase}){files}."
    for fit in plan.fits:
        changes = [change for change in plan.changes if change.limit == fit.limit]
        yield _fit_line(fit)
        yield from map(_change_line, changes)
    if without_help := [fit.limit for fit in plan.fits if not fit.fits and not _is_helped(plan, fit.limit)]:
        yield f"No change of a setting is enough for {', '.join(without_help)}: {plan.setting.last_resort}."


def _is_helped(plan: Plan, limit: str) -> bool:
    """Whether a proposed change makes this limit hold."""
    joint = plan.setting.joint_limits
    limits = joint if limit in joint else (limit,)
    return any(change.fits and change.limit in limits for change in plan.changes)


def _fit_line(fit: Fit) -> str:
    if fit.available is None:
        return f"{fit.limit}: accepts the settings" if fit.fits else f"{fit.limit}: REFUSES the settings: {fit.reason}"
    verdict = "fits" if fit.fits else "DOES NOT FIT"
    return f"{fit.limit}: {verdict}, {_size(fit.needed)} needed and {_size(fit.available)} usable"


def _change_line(change: Change) -> str:
    detail = f"  {change.detail}" if change.detail else ""
    return f"  {change.change:<40} {_size(change.peak):>8}{'  fits' if change.fits else ''}{detail}"


def _size(count: int) -> str:
    return format_bytes(count) if count else "-"
