"""`rag doctor`: versions, devices and advice."""

from typing import Any

from rag.commands.command import Command, Report


def _doctor_arguments(parser: Any) -> None:
    parser.add_argument("--no_measure", action="store_true", help="do not time torch's threads (ten seconds)")


def _doctor(args: Any) -> Report:
    from rag.diagnostics.installation import check_installation

    found = check_installation(measure=not args.no_measure)
    return Report(found.text(), found.to_dict())


COMMANDS: dict[str, Command] = {
    "doctor": Command("versions, devices, OpenMP runtimes and advice", _doctor_arguments, _doctor),
}
