"""Check that a launcher started as many processes as were requested."""

import logging
import os
from collections.abc import Mapping

logger = logging.getLogger(__name__)

_WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def warn_of_one_process(command: str, environment: Mapping[str, str] = os.environ) -> None:
    """Warn if several CPU processes were requested but one was started, and name a launcher that starts several.

    `accelerate launch --cpu --num_processes 2` of accelerate 1.15 runs the script once (`simple_launcher`) unless an
    MPI host file is given: it sets MASTER_ADDR, and no WORLD_SIZE.

    Args:
        command: What the user runs, such as "train ...".
        environment: Of this process.
    """
    launched = environment.get("ACCELERATE_USE_CPU", "").lower() == "true" and "ACCELERATE_DYNAMO_MODE" in environment
    if launched and "MASTER_ADDR" in environment and not any(name in environment for name in _WORLD_SIZES):
        logger.warning(
            "accelerate launch --cpu starts one process, whatever --num_processes says. Start several on a CPU with: "
            "torchrun --nproc_per_node N -m rag %s",
            command,
        )
