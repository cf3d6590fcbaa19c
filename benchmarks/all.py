"""Every path, one after another.

    python -m benchmarks.all [--quick] [--device cuda] [--shape qwen2.5-0.5b|qwen2.5-7b] [--json]

On a GPU the paths of the CPU (encoding loops, FAISS) are left out.
"""

import sys
from collections.abc import Sequence

from benchmarks import answering, e_sample, e_score, m_generator, m_selector, rag_sequence_loss, round, selfaug_head
from benchmarks.timing import Make, main, parse

MODULES = (answering, e_sample, e_score, m_selector, selfaug_head, m_generator, round, rag_sequence_loss)


def makes(arguments: Sequence[str] | None = None) -> list[Make]:
    """Of all paths that this device has."""
    options, _ = parse(str(__doc__), arguments)
    found = [make for module in MODULES for make in module.MAKES]
    if options.device == "cpu" and options.shape is None:
        from benchmarks import encoding, exact_search

        found += [*encoding.MAKES, *exact_search.MAKES]
    return found


if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), makes(sys.argv[1:])))
