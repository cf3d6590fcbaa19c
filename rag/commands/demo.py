"""`rag demo`: the demo experiment."""

from typing import Any

from indexes.errors import UsageError
from rag.commands.command import Command, Report, progress


def _demo_arguments(parser: Any) -> None:
    parser.add_argument("--quick", action="store_true", help="a smoke run of about a minute")
    parser.add_argument("--full", action="store_true", help="every baseline and ablation: 20 minutes on two cores")
    parser.add_argument("--output_dir", type=str, help="folder of the run; an unfinished one is continued")
    parser.add_argument("--seed", type=int, default=42, help="of the world and of every draw")
    parser.add_argument("--recipes", type=str, nargs="+", help="recipes to compare, as in `rag sweep`")
    for name, what in _DEMO_SIZES.items():
        parser.add_argument(f"--{name}", type=_DEMO_TYPES.get(name, int), help=what)


_DEMO_SIZES = {
    "domain": "what the world is about: unseen (the tiny base never read of it) or encyclopedia",
    "train_questions": "questions to train on",
    "test_questions": "held-out questions behind the table",
    "rounds": "E-step and M-step pairs",
    "lora_r": "rank of the adapters",
    "learning_rate": "of the adapters",
    "selfaug_alpha": "weight of the SelfAug term",
    "workers": "trials run at the same time, each in its own process (default: one for each core; one on a GPU)",
}
_DEMO_TYPES: dict[str, type] = {"domain": str, "learning_rate": float, "selfaug_alpha": float}


def _demo(args: Any) -> Report:
    from rag.experiments.demo_sizes import run_demo

    if args.quick and args.full:
        raise UsageError("A demo is either quick or full; got both --quick and --full.")
    sizes = {name: args[name] for name in _DEMO_SIZES if args[name] is not None}
    if args.recipes:
        sizes["recipes"] = tuple(args.recipes)
    result = run_demo(
        mode="quick" if args.quick else "full" if args.full else "default",
        output=args.output_dir,
        seed=args.seed,
        progress=progress(args),
        **sizes,
    )
    return Report(result.text, result.data)


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "the demo experiment: baselines, DRO and SelfAug on an invented world, with a tiny model",
        _demo_arguments,
        _demo,
        json_file=True,
    ),
}
