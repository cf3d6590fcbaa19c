"""`rag forgetting`: what tuned models still can do that their base could, on the same probes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from indexes.errors import UsageError
from rag.commands.command import Command, Report, progress
from rag.commands.options import context_argument, trust_argument
from rag.text_tables import cell, interval, table


def _forgetting_arguments(parser: Any) -> None:
    from generator import ChatConfig

    parser.add_argument(
        "--bundle", type=str, nargs="+", default=[], help="trained pipelines (folders or Hub ids), all over one base"
    )
    parser.add_argument("--name", type=str, nargs="+", help="what tables call them (default: by their folders)")
    parser.add_argument("--base", type=str, help="without --bundle: the base alone, a Hub name, a folder or tiny")
    parser.add_argument(
        "--role", choices=["generator", "selector"], default="generator", help="whose adapter is compared with the base"
    )
    parser.add_argument("--answers", type=str, nargs="+", default=[], help="JSONL of prompts with answers")
    parser.add_argument("--pairs", type=str, nargs="+", default=[], help="JSONL of minimal pairs, as BLiMP's")
    parser.add_argument("--text", type=str, nargs="+", default=[], help="plain text: JSONL with text, or .txt")
    parser.add_argument("--drift", type=str, nargs="+", default=[], help="prompts for the distance from the base")
    parser.add_argument("--harness", type=str, nargs="+", default=[], help="tasks of lm-evaluation-harness, by name")
    parser.add_argument("--harness_path", type=str, help="a folder with further task files (YAML) of the harness")
    parser.add_argument("--harness_limit", type=int, help="only the first so many documents of each of its tasks")
    parser.add_argument("--harness_chat", action="store_true", help="put its prompts through the chat template")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="tokens that a reply may have")
    parser.add_argument("--window", type=int, help="tokens of context for plain text (default: the model's)")
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
    from rag.evaluation.evaluation_file import check_output, write_json
    from rag.forgetting.measurement import forgetting
    from rag.forgetting.retention_tasks import Probes

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
    probes = Probes(
        answers=tuple(args.answers),
        pairs=tuple(args.pairs),
        text=tuple(args.text),
        drift=tuple(args.drift),
        harness=tuple(args.harness),
        harness_path=args.harness_path,
        harness_limit=args.harness_limit,
        harness_chat=args.harness_chat,
        max_new_tokens=args.max_new_tokens,
        window=args.window,
        on_error=args.on_error,
    )
    data = forgetting(
        list(zip(_names(args.bundle, args.name), args.bundle, strict=True)),
        probes,
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
    if args.output is not None:
        write_json(data, args.output)
    return Report(_text(data), data)


def _names(bundles: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """The names given, or those of the folders; `run/bundle` is called `run`."""
    if given is not None:
        if len(given) != len(bundles):
            raise UsageError(f"--name needs one name for each bundle; {len(given)} came for {len(bundles)}.")
        return list(given)
    folders = [Path(bundle).resolve() for bundle in bundles]
    names = [folder.parent.name if folder.name == "bundle" else folder.name for folder in folders]
    if twice := sorted(name for name, count in Counter([*names, "base"]).items() if count > 1):
        raise UsageError(f"Bundles must have different names, and none is the base; {twice} came twice. Give --name.")
    return names


# -- for people ------------------------------------------------------------------------------------------------


def _text(data: Mapping[str, Any]) -> str:
    parts = [_values(data)]
    if compared := [row for row in data["comparisons"] if row["group"] == "all"]:
        parts.append(_compared(compared))
    return "\n\n".join(parts)


def _values(data: Mapping[str, Any]) -> str:
    names = [model["name"] for model in data["models"]]
    rows: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for found in data["measurements"]:
        rows.setdefault((found["task"], found["metric"], found["group"]), {})[found["model"]] = found
    cells = [
        [*key, str(next(iter(row.values()))["n"]), *(_value(row.get(name)) for name in names)]
        for key, row in rows.items()
    ]
    return table(["task", "metric", "group", "n", *names], cells)


def _value(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else f"{cell(found['value'])} {interval(found['interval'])}"


def _compared(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            f"{row['model']} - {row['against']}",
            row["task"],
            row["metric"],
            "-" if row["difference"] is None else f"{row['difference']:+.4f}",
            interval(row["interval"]),
            cell(row["p"]),
        ]
        for row in rows
    ]
    return table(["", "task", "metric", "difference", "95 % interval", "p"], cells)


COMMANDS: dict[str, Command] = {
    "forgetting": Command(
        "what tuned models still can do that their base could: probes, perplexity, drift, any benchmark",
        _forgetting_arguments,
        _forgetting,
    ),
}
