"""Logging to stderr, for the command line and its worker processes."""

import logging
import os
import sys


def set_up_logs(debug: bool, quiet: bool) -> None:
    """Log this library at INFO and others at WARNING (all at DEBUG with --debug); to be called before their import."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s")
    for package in ("indexes", "generator", "retriever", "training", "rag"):
        logging.getLogger(package).setLevel(logging.WARNING if quiet else logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars that transformers 5.23 draws past its own switch (GGUF)
