"""What is said on stderr: set up by the command line, and by each process that helps it."""

import logging
import os
import sys


def set_up_logs(debug: bool, quiet: bool) -> None:
    """Our own news on stderr, library chatter only with --debug. Runs before any library is imported."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s")
    for package in ("indexes", "generator", "retriever", "training", "rag"):
        logging.getLogger(package).setLevel(logging.WARNING if quiet else logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
