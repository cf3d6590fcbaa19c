"""Several CPU processes that were asked for and not started: the environment is the one that accelerate makes."""

import argparse
import logging

import pytest
from accelerate.commands.launch import launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

from indexes import launcher_check


def environment(*flags: str) -> dict[str, str]:
    args: argparse.Namespace = launch_command_parser().parse_args(["--cpu", *flags, "-m", "rag", "train"])
    args.num_machines, args.mixed_precision, args.dynamo_backend = 1, "no", "no"
    args.num_processes = args.num_processes or 1
    args.num_cpu_threads_per_process = 1
    return prepare_simple_launcher_cmd_env(args)[1]


@pytest.mark.parametrize(
    ("flags", "more", "warned"),
    [
        (["--num_processes", "2"], {}, True),
        (["--num_processes", "1"], {}, False),
        (["--num_processes", "2"], {"WORLD_SIZE": "2"}, False),
        (["--num_processes", "2"], {"OMPI_COMM_WORLD_SIZE": "2"}, False),
    ],
)
def test_one_process_instead_of_several_gives_a_warning(
    flags: list[str],
    more: dict[str, str],
    warned: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with caplog.at_level(logging.WARNING):
        launcher_check.warn_of_one_process("train ...", environment(*flags) | more)
    assert ("torchrun --nproc_per_node N -m rag train ..." in caplog.text) == warned
