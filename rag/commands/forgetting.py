"""`rag forgetting`: what fine-tuning changed in tuned models, on the same retention tasks as their base model."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexes.errors import UsageError
from rag.commands.command import Command, Report, progress
from rag.commands.options import context_argument, trust_argument
from rag.text_tables import cell, interval, table

if TYPE_CHECKING:
    from rag.forgetting.measurement import ForgettingComparison, ForgettingTable, Measurement


def _forgetting_arguments(parser: Any) -> None:
    from generator import ChatConfig
    from rag.forgetting.retention_tasks import task_options

    parser.add_argument(
        "--bundle", type=str, nargs="+", default=[], help="trained pipelines (folders or Hub ids), all over one base"
    )
    parser.add_argument("--name", type=str, nargs="+", help="what tables call them (default: by their folders)")
    parser.add_argument(
        "--base", type=str, help="without --bundle: the base alone, a Hub name, a folder, a GGUF file or tiny"
    )
    parser.add_argument(
        "--role", choices=["generator", "selector"], default="generator", help="whose adapter is compared with the base"
    )
    for option in task_options():
        if option.field is None:
            parser.add_argument(f"--{option.name}", type=str, nargs="+", default=[], help=option.help)
        elif option.type is bool:
            parser.add_argument(f"--{option.name}", action="store_true", help=option.help)
        else:
            parser.add_argument(f"--{option.name}", type=option.type, default=None, help=option.help)
    parser.add_argument("--max_new_tokens", type=int, default=256, help="tokens that a reply may have")
    parser.add_argument(
        "--on_error",
        choices=["raise", "skip"],
        default="raise",
        help="of a prompt or a sentence that does not fit the model's context: stop, or leave it out for all models",
    )
    parser.add_argument("--output", type=str, help="write the table to this JSON file")
    parser.add_argument("--scores", type=str, help="a folder for the score of every item, a file for each model")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, float32, bfloat16, float16, mixed")
    parser.add_argument("--device", type=str, help="cpu, cuda, mps")
    parser.add_argument("--quantization", type=str, help="4bit or 8bit (needs the quantization extra)")
    parser.add_argument("--revision", type=str, help="revision on the Hub: of every --bundle, or else of --base")
    context_argument(parser)
    trust_argument(parser, "the base")
    parser.add_class_arguments(ChatConfig, "chat")


def _forgetting(args: Any) -> Report:
    from generator import ChatConfig
    from rag.evaluation.evaluation_file import check_output, write_results
    from rag.forgetting.measurement import measure_forgetting
    from rag.forgetting.retention_tasks import RetentionTasks, task_options

    if bool(args.bundle) == (args.base is not None):
        raise UsageError(
            "Forgetting is measured of bundles, whose base is known, or of a --base alone; give one of both."
        )
    of_base = {"chat": ChatConfig(**vars(args.chat)), "context_length": args.context_length}
    given = [key for key, value in of_base.items() if value not in (None, ChatConfig())]
    if args.bundle and given:
        raise UsageError(f"A bundle brings its own {given}; leave those options out, or measure a --base alone.")
    if args.output is not None:
        check_output(args.output)
    given_tasks = {option.name: args[option.name] for option in task_options()}
    tasks = RetentionTasks(**given_tasks, max_new_tokens=args.max_new_tokens, on_error=args.on_error)
    found = measure_forgetting(
        list(zip(_names(args.bundle, args.name), args.bundle, strict=True)),
        tasks,
        base=args.base,
        role=args.role,
        scores_folder=args.scores,
        progress=progress(args),
        dtype=args.dtype,
        device=args.device,
        quantization=args.quantization,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        **({} if args.bundle else of_base),
    )
    data = found.to_dict()
    if args.output is not None:
        write_results(data, args.output)
    return Report(_text(found), data)


def _names(bundles: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """The names given, or those of the folders; `run/bundle` is called `run`."""
    if given is not None:
        if len(given) != len(bundles):
            raise UsageError(f"--name needs one name for each of {len(bundles)} bundles, got {len(given)}.")
        return list(given)
    folders = [Path(bundle).resolve() for bundle in bundles]
    names = [folder.parent.name if folder.name == "bundle" else folder.name for folder in folders]
    if twice := sorted(name for name, count in Counter([*names, "base"]).items() if count > 1):
        raise UsageError(f"Bundles must have different names, and none may be 'base', got {twice} twice. Give --name.")
    return names


# -- for people ------------------------------------------------------------------------------------------------


def _text(table_: "ForgettingTable") -> str:
    parts = [_values(table_)]
    if compared := [c for c in table_.comparisons if c.group == "all"]:
        parts.append(_compared(compared))
    return "\n\n".join(parts)


def _values(table_: "ForgettingTable") -> str:
    names = [model.name for model in table_.models]
    rows: dict[tuple[str, str, str], dict[str, Measurement]] = {}
    for found in table_.measurements:
        rows.setdefault((found.task, found.metric, found.group), {})[found.model] = found
    cells = [
        [*key, str(next(iter(row.values())).n), *(_value(row.get(name)) for name in names)] for key, row in rows.items()
    ]
    return table(["task", "metric", "group", "n", *names], cells)


def _value(found: "Measurement | None") -> str:
    return "-" if found is None else f"{cell(found.value)} {interval(found.interval)}"


def _compared(comparisons: "Sequence[ForgettingComparison]") -> str:
    cells = [
        [
            f"{c.model} - {c.against}",
            c.task,
            c.metric,
            "-" if c.difference is None else f"{c.difference:+.4f}",
            interval(c.interval),
            cell(c.p),
        ]
        for c in comparisons
    ]
    return table(["", "task", "metric", "difference", "95 % interval", "p"], cells)


COMMANDS: dict[str, Command] = {
    "forgetting": Command(
        "what fine-tuning changed: retention tasks, perplexity, drift, benchmarks, against the base model",
        _forgetting_arguments,
        _forgetting,
    ),
}
