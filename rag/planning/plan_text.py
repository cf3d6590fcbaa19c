"""A plan as text, for a training run and an index build alike."""

from collections.abc import Iterator, Sequence

from indexes.host_memory import format_bytes, format_seconds
from rag.planning.cost_plan import Change, Fit, Plan


def plan_text(plan: Plan) -> str:
    """The plan's setting, a table of times, a table of memory, disk space and the verdict."""
    parts = (plan.setting.summary(), _time_lines(plan), _memory_lines(plan), _verdict_lines(plan), _limits_lines(plan))
    return "\n\n".join("\n".join(lines) for lines in parts)


def _time_lines(plan: Plan) -> Iterator[str]:
    width = _name_width(plan)
    yield f"{'time':<{width}}{'once':>10}{'times':>7}{'total':>10}   rests on"
    for phase in plan.phases:
        if phase.basis:
            once, total = format_seconds(phase.seconds), format_seconds(phase.total_seconds)
            yield f"  {phase.name:<{width - 2}}{once:>10}{phase.times:>7}{total:>10}   {phase.basis}"
    a_round = "" if plan.round_seconds is None else f"a round {format_seconds(plan.round_seconds)}, "
    yield f"  {a_round}total {format_seconds(plan.seconds)}"


def _memory_lines(plan: Plan) -> Iterator[str]:
    memory, width = plan.memory, _name_width(plan)
    always = ", ".join(f"{name} {_size(size)}" for name, size in memory.always.items())
    names = list(dict.fromkeys(name for phase in plan.phases for name in phase.parts))
    yield f"{'memory':<{width}}{'peak':>10}{'files':>10}" + "".join(f"{name:>12}" for name in names)
    for phase in plan.phases:
        parts = "".join(f"{_size(phase.parts.get(name, 0)):>12}" for name in names)
        yield f"  {phase.name:<{width - 2}}{_size(phase.peak):>10}{_size(phase.mapped):>10}{parts}"
    yield f"  always: {always}"
    if memory.optimizer:
        yield f"  in M-steps also: gradients and Adam {_size(memory.optimizer)}"
    disk = ", ".join(f"{name} {_size(size)}" for name, size in plan.disk.parts.items() if size)
    temporary = f", with {_size(plan.disk.temporary)} of temporary files" if plan.disk.temporary else ""
    yield f"disk: {_size(plan.disk.after)} in the end ({disk}); at most {_size(plan.disk.peak)}{temporary}"


def _verdict_lines(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    files = "" if memory.resident == memory.peak else f", {_size(memory.resident)} with mapped files"
    yield f"Peak memory {_size(memory.peak)} ({memory.peak_phase}){files}."
    for fit in plan.fits:
        yield _fit_line(fit)
        changes = [change for change in plan.changes if change.limit == fit.limit]
        yield from map(_change_line, changes)
        if not fit.fits and not any(change.fits for change in changes) and not _helped(plan, fit):
            yield f"  None of this is enough: {plan.setting.last_resort}."


def _helped(plan: Plan, fit: Fit) -> bool:
    """Whether a change that is listed under an earlier limit was chosen so that this one holds as well."""
    limits: Sequence[str] = [other.limit for other in plan.fits]
    earlier = limits[: limits.index(fit.limit)]
    return plan.setting.joint_changes and any(change.fits and change.limit in earlier for change in plan.changes)


def _fit_line(fit: Fit) -> str:
    verdict = "fits" if fit.fits else "DOES NOT FIT"
    if fit.available is None:
        return f"{fit.limit}: {verdict}{f' ({fit.reason})' if fit.reason else ''}"
    return f"{fit.limit}: {verdict} ({_size(fit.needed)} needed, {_size(fit.available)} may be used)"


def _change_line(change: Change) -> str:
    detail = f"  {change.detail}" if change.detail else ""
    return f"  {change.change:<40} {_size(change.peak):>8}{'  fits' if change.fits else ''}{detail}"


def _limits_lines(plan: Plan) -> Iterator[str]:
    yield "Not modelled:"
    yield from (f"  {text}" for text in plan.not_modelled)


def _name_width(plan: Plan) -> int:
    return max(len(phase.name) for phase in plan.phases) + 4


def _size(count: int) -> str:
    return format_bytes(count) if count else "-"
