"""What dense retrieval, BM25 and both together find on real questions. Prints one table.

    python -m benchmarks.retrieval --data DATA --encoder sentence-transformers/all-MiniLM-L6-v2 --cache DIR
    python -m benchmarks.retrieval --data DATA --words     # BM25 alone, with other options

The data folder holds a folder for each data set with `corpus.jsonl.gz` and `dev.jsonl.gz` (questions with gold ids).
Indexes that are missing from the cache are built there first; encoding takes nearly all of the time. Options are the
defaults, the same for all data sets; the last row of each shows a hybrid whose first ranks stand out more.

`recall@k` is the share of a question's gold passages among the first k, `hit@5` whether any of them is among the first
five.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import indexes  # noqa: F401  (sets the OpenMP wait policy before torch is imported)
from indexes import BM25Index, Corpus, Encoder, PassageIndex, build_index
from rag.metrics import gold_recall
from retriever.retrievers import create_retriever
from training import QAExample, load_examples, retrieve

DATA_SETS = ("2wiki", "hotpotqa", "nq", "squad")
RETRIEVERS: dict[str, dict[str, Any]] = {
    "dense": {"kind": "dense"},
    "bm25": {"kind": "bm25"},
    "hybrid": {"kind": "hybrid"},
    "hybrid, rrf_k = 60": {"kind": "hybrid", "rrf_k": 60},
}
WORDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "Lucene's k1 = 1.2, b = 0.75": {"k1": 1.2, "b": 0.75},
    "no stemmer": {"stemmer": None},
    "no stopwords": {"stopwords": ()},
    "neither": {"stemmer": None, "stopwords": ()},
}
CUTS = (1, 5, 20)
HIT = 5
COLUMNS = [*(f"recall@{k}" for k in CUTS), f"hit@{HIT}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", help="sentence-transformers name or folder")
    parser.add_argument("--cache", type=Path, help="folder of the indexes, one for each data set")
    parser.add_argument("--words", action="store_true", help="options of BM25, without an encoder")
    parser.add_argument("--data_sets", nargs="+", default=DATA_SETS)
    parser.add_argument("--dtype", default="float32", help="of the encoder, where an index must be built")
    parser.add_argument("--split", default="dev", help="dev, or train: other questions to the same passages")
    parser.add_argument("--limit", type=int, help="use only the first so many questions")
    args = parser.parse_args()
    if not args.words and (args.encoder is None or args.cache is None):
        parser.error("--encoder and --cache are needed, except with --words")
    print(
        f"| data set | passages | questions | {'BM25' if args.words else 'retriever'} | " + " | ".join(COLUMNS) + " |"
    )
    print("|---" * (4 + len(COLUMNS)) + "|", flush=True)
    for name in args.data_sets:
        examples = load_examples(args.data / name / f"{args.split}.jsonl.gz", limit=args.limit)
        rows = of_words(args, name, examples) if args.words else of_retrievers(args, name, examples)
        for what, passages, found in rows:
            cells = [f"{value:.3f}" for value in scores(examples, found)]
            print("| " + " | ".join([name, f"{passages:,}", f"{len(examples):,}", what, *cells]) + " |", flush=True)


def of_retrievers(args: Any, name: str, examples: Sequence[QAExample]) -> Iterator[tuple[str, int, list[list[str]]]]:
    """Name, number of passages, and the ids that are found for each question."""
    index = opened(args.data / name / "corpus.jsonl.gz", args.encoder, args.cache / name, args.dtype)
    encoder = Encoder.from_pretrained(args.encoder, dtype=index.manifest.encoder.dtype)
    for kind, settings in RETRIEVERS.items():
        found = retrieve(create_retriever(index, encoder, settings), examples, max(CUTS))
        yield kind, len(index), [c.ids for c in found]


def of_words(args: Any, name: str, examples: Sequence[QAExample]) -> Iterator[tuple[str, int, list[list[str]]]]:
    """The same for BM25 indexes with other options."""
    corpus = Corpus.from_file(args.data / name / "corpus.jsonl.gz")
    ids = corpus.ids[:]
    for what, settings in WORDS.items():
        rows_Bk = BM25Index.build(corpus, **settings).search([e.question for e in examples], max(CUTS))[1]
        yield what, len(corpus), [[ids[row] for row in rows_k if row >= 0] for rows_k in rows_Bk]


def opened(corpus: Path, encoder: str, folder: Path, dtype: str) -> PassageIndex:
    """The index of a corpus, built once."""
    if folder.is_dir():
        return PassageIndex.open(folder)
    return build_index(corpus, Encoder.from_pretrained(encoder, dtype=dtype), folder)


def scores(examples: Sequence[QAExample], found: Sequence[Sequence[str]]) -> list[float]:
    """Recall at the cuts, then the share of questions with a hit."""
    recalls = [fmean(gold_recall(ids, e.gold_ids, k) for e, ids in zip(examples, found, strict=True)) for k in CUTS]
    hits = [bool({*ids[:HIT]} & {*e.gold_ids}) for e, ids in zip(examples, found, strict=True)]
    return [*recalls, fmean(hits)]


if __name__ == "__main__":
    main()
