"""Does a Flat index find what `sentence_transformers.util.semantic_search` finds? Prints what differs.

    python benchmarks/search_parity.py --index DIR --questions FILE [-k 20]

Both sides get the same vectors: the rival is given the stored passages encoded again by sentence-transformers itself.
Equal means the same ids in the same order, where scores closer than 1e-5 may change places. Exits 1 if not.
"""

import argparse
import time

from sentence_transformers import SentenceTransformer
from sentence_transformers.util import dot_score, semantic_search

import indexes  # noqa: F401  (sets the OpenMP wait policy before torch is imported)
from indexes import PassageIndex
from retriever import DenseRetriever
from training import load_examples

TIE = 1e-5


def same_ranking(ours: list[tuple[str, float]], theirs: list[tuple[str, float]]) -> bool:
    """Equal up to the order of scores that are equal within the tolerance."""
    scores_agree = all(abs(a[1] - b[1]) < TIE for a, b in zip(ours, theirs, strict=True))
    reference = dict(theirs)
    lowest = theirs[-1][1]
    ids_agree = all(abs(reference.get(id, lowest) - score) < TIE for id, score in ours)
    return scores_agree and ids_agree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True)
    parser.add_argument("--questions", required=True)
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--limit", type=int, help="passages of the corpus to compare on (all by default)")
    args = parser.parse_args()
    index = PassageIndex.open(args.index)
    examples = load_examples(args.questions)
    retriever = DenseRetriever(index, index.load_encoder())
    started = time.perf_counter()
    found = retriever.search([e.question for e in examples], args.k)
    ours_seconds = time.perf_counter() - started

    model = SentenceTransformer(index.manifest.encoder.name, device="cpu").float()
    settings = {"convert_to_tensor": True, "normalize_embeddings": True, "show_progress_bar": False}
    passages = model.encode([p.contents for p in index.corpus], batch_size=64, **settings)
    started = time.perf_counter()
    questions = model.encode([e.question for e in examples], batch_size=64, **settings)
    hits = semantic_search(questions, passages, top_k=args.k, score_function=dot_score)
    theirs_seconds = time.perf_counter() - started

    ids = index.corpus.ids
    identical = equal = 0
    for ours, theirs in zip(found, hits, strict=True):
        mine = list(zip(ours.ids, ours.scores.tolist(), strict=True))
        rival = [(ids[h["corpus_id"]], h["score"]) for h in theirs]
        identical += [i for i, _ in mine] == [i for i, _ in rival]
        equal += same_ranking(mine, rival)
    print(f"questions {len(examples)}, passages {len(index)}, k {args.k}")
    print(f"same ids in the same order: {identical}; the same up to ties within {TIE}: {equal}")
    print(f"seconds, encoding questions and searching: ours {ours_seconds:.2f}, semantic_search {theirs_seconds:.2f}")
    return int(equal != len(examples))


if __name__ == "__main__":
    raise SystemExit(main())
