"""What dense retrieval, BM25 and both together find on real questions. Prints one table.

    python -m benchmarks.retrieval --data ../shared/data --encoder ../shared/models/all-MiniLM-L6-v2 --cache DIR

The data folder holds a folder for each data set with `corpus.jsonl.gz` and `dev.jsonl.gz` (questions with gold ids).
Indexes that are missing from the cache are built there first; encoding takes nearly all of the time. Options are the
defaults, the same for all data sets; the last row of each shows a hybrid whose first ranks stand out more.

`recall@k` is the share of a question's gold passages among the first k, `hit@5` whether any of them is among the first
five.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import indexes  # noqa: F401  (sets the OpenMP wait policy before torch is imported)
from indexes import Encoder, PassageIndex, build_index
from rag.evaluation import search_metrics
from rag.pipeline import retriever_of
from retriever import Candidates
from training import QAExample, load_examples

DATA_SETS = ("2wiki", "hotpotqa", "nq", "squad")
RETRIEVERS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "bm25": {"kind": "bm25"},
    "hybrid": {"kind": "hybrid"},
    "hybrid, rrf_k = 10": {"kind": "hybrid", "rrf_k": 10},
}
CUTS = (1, 5, 20)
HIT = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", required=True, help="sentence-transformers name or folder")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the indexes, one for each data set")
    parser.add_argument("--data_sets", nargs="+", default=DATA_SETS)
    parser.add_argument("--dtype", default="float32", help="of the encoder, where an index must be built")
    parser.add_argument("--split", default="dev", help="dev, or train: other questions to the same passages")
    parser.add_argument("--limit", type=int, help="use only the first so many questions")
    args = parser.parse_args()
    columns = [f"recall@{k}" for k in CUTS] + [f"hit@{HIT}"]
    print("| data set | passages | questions | retriever | " + " | ".join(columns) + " |")
    print("|---" * (4 + len(columns)) + "|", flush=True)
    for name in args.data_sets:
        examples = load_examples(args.data / name / f"{args.split}.jsonl.gz", limit=args.limit)
        index = opened(args.data / name / "corpus.jsonl.gz", args.encoder, args.cache / name, args.dtype)
        encoder = Encoder.from_pretrained(args.encoder, dtype=index.manifest.encoder.dtype)
        for kind, settings in RETRIEVERS.items():
            retriever = retriever_of(index, encoder, settings)
            found = retriever.search([e.question for e in examples], max(CUTS))
            cells = [f"{value:.3f}" for value in scores(examples, found)]
            row = [name, f"{len(index):,}", f"{len(examples):,}", kind, *cells]
            print("| " + " | ".join(row) + " |", flush=True)


def opened(corpus: Path, encoder: str, folder: Path, dtype: str) -> PassageIndex:
    """The index of a corpus, built once."""
    if folder.is_dir():
        return PassageIndex.open(folder)
    return build_index(corpus, Encoder.from_pretrained(encoder, dtype=dtype), folder)


def scores(examples: Sequence[QAExample], found: Sequence[Candidates]) -> list[float]:
    """Recall at the cuts, then the share of questions with a hit."""
    metrics = search_metrics(examples, found, max(CUTS))
    hits = [bool({*c.ids[:HIT]} & {*e.gold_ids}) for e, c in zip(examples, found, strict=True)]
    return [metrics[f"recall@{k}"] for k in CUTS] + [sum(hits) / len(hits)]


if __name__ == "__main__":
    main()
