"""What an answer and a retrieval are worth: exact match, token F1, answer recall, gold recall, nDCG and MRR.

Pure functions on text and ids. Answers are compared after the normalisation of SQuAD and KILT, and the best
of all golden answers counts. Every value lies in [0, 1].
"""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

from indexes.chunk_ids import gold_document
from indexes.errors import UsageError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(s: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces; in this order, as SQuAD's script does.

    Punctuation is deleted, not replaced by a space; outside ASCII it stays, as in the official script.

    >>> normalize_answer("The  U.S.")
    'us'
    >>> normalize_answer("An ape, a bee & the sea-cow")
    'ape bee seacow'
    """
    text = s.lower().translate(_DELETE_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, golden_answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals a normalised golden answer, else 0.0.

    Golden answers that are empty after normalisation ("A", "...") count only where there are no others (SQuAD 2.0's
    rule; version 1.1 and KILT count them always), so that no answer is never right beside a golden answer.

    >>> exact_match("The U.S.", ["United States", "US"])
    1.0
    >>> exact_match("US of A", ["United States", "US"])
    0.0

    Raises:
        UsageError: No golden answer, or one string in place of a list.
    """
    return float(normalize_answer(prediction) in _accepted(golden_answers))


def f1(prediction: str, golden_answers: Sequence[str]) -> float:
    """Harmonic mean of token precision and token recall, the best over the golden answers.

    Tokens are counted with multiplicity after normalisation. When prediction or golden answer is empty after
    it, the value is 1 if both are and 0 otherwise (SQuAD 2.0's rule; version 1.1 and KILT give 0 to both), and golden
    answers that are empty after it count as in `exact_match`. `yes` and `no` are plain tokens here, whereas HotpotQA's
    script gives 0 to any answer that only contains them.

    "cat sat mat" shares 2 tokens with "cat sat": precision 2/3, recall 2/2, so 2 * (2/3) / (2/3 + 1) = 0.8.

    >>> f1("the cat sat, mat", ["a dog", "cat sat"])
    0.8
    >>> f1("the", ["a"])
    1.0
    >>> f1("cat", ["the"])
    0.0

    Raises:
        UsageError: No golden answer, or one string in place of a list.
    """
    tokens = normalize_answer(prediction).split()
    return max(_token_f1(tokens, golden.split()) for golden in _accepted(golden_answers))


def answer_recall(passages_texts: Sequence[str], golden_answers: Sequence[str], k: int) -> float:
    """1.0 when one of the first k texts contains a golden answer as a run of whole tokens, else 0.0.

    Texts and answers are normalised alike, so "U.S." is found in "the US army" and "art" is not found in
    "party". DPR's recall keeps articles and splits at punctuation instead, so its numbers differ a little.
    Golden answers that are empty after normalisation match nothing.

    >>> answer_recall(["A party.", "Art of the U.S."], ["art"], k=1)
    0.0
    >>> answer_recall(["A party.", "Art of the U.S."], ["art"], k=2)
    1.0

    Raises:
        UsageError: k is below 1, no golden answer, or one string in place of a list.
    """
    _check_k(k)
    answers = [normalize_answer(golden) for golden in _checked("golden_answers", golden_answers)]
    # Spaces around both sides turn "contains these tokens in a row" into "contains this string".
    needles = [f" {answer} " for answer in answers if answer]
    texts = (f" {normalize_answer(text)} " for text in _listed("passages_texts", passages_texts)[:k])
    return float(any(needle in text for text in texts for needle in needles))


def gold_recall(ranked_ids: Sequence[str], gold_ids: Sequence[str], k: int) -> float:
    """The share of the gold passages that stand among the first k: |gold in first k| / |gold|.

    In an index of chunks a gold document is found where any of its chunks is.

    >>> gold_recall(["p7", "p2", "p9"], ["p2", "p4"], k=1)
    0.0
    >>> gold_recall(["p7", "p2", "p9"], ["p2", "p4"], k=3)
    0.5
    >>> gold_recall(["p2#1", "p2#0", "p9"], ["p2", "p4"], k=2)
    0.5

    Raises:
        UsageError: k is below 1, no gold id, or one string in place of a list.
    """
    _check_k(k)
    gold = set(_checked("gold_ids", gold_ids))
    return len({gold_document(id, gold) for id in _listed("ranked_ids", ranked_ids)[:k]} - {None}) / len(gold)


def ranking_quality(
    ranked_ids: Sequence[str], gold_ids: Sequence[str], cutoffs: Sequence[int], grades: Sequence[int] = ()
) -> dict[str, float]:
    """`ndcg@k` for each cut-off, and `mrr`, of one ranking, as trec_eval computes them (through ir-measures).

    Relevance is 1 for gold passages, or their grade where a file has `grades` (one for each gold id), and 0 for all
    others. nDCG@k is the sum over the gold passages among the first k of relevance / log2(rank + 1), divided by what
    the best possible ranking of *all* gold passages has (Jarvelin and Kekalainen 2002); `mrr` is 1 / rank of the first
    gold passage, 0 when none was found. Its mean over questions is the MRR.
    Of the chunks of a gold document only the first one counts.

    >>> ranking_quality(["p7", "p2"], ["p2"], [1])
    {'ndcg@1': 0.0, 'mrr': 0.5}
    >>> ranking_quality(["p2#4", "p2#1"], ["p2"], [2])
    {'ndcg@2': 1.0, 'mrr': 1.0}

    Raises:
        UsageError: A cut-off below 1, no gold id, or one string in place of a list.
    """
    from ir_measures import RR, iter_calc, nDCG

    for k in cutoffs:
        _check_k(k)
    names = {nDCG @ k: f"ndcg@{k}" for k in cutoffs} | {RR: "mrr"}
    gold = dict(zip(_checked("gold_ids", gold_ids), grades or [1] * len(gold_ids), strict=True))
    qrels = {"question": gold}
    # trec_eval sorts by score and breaks ties by id; distinct scores are the ranking itself.
    run: dict[str, dict[str, float]] = {"question": {}}
    for rank, id in enumerate(_listed("ranked_ids", ranked_ids)):
        document = gold_document(id, gold) or id
        # What stands for a document that was met before only takes its place in the ranking.
        run["question"][document if document not in run["question"] else f"{id} again at {rank}"] = -float(rank)
    if not ranked_ids:
        return dict.fromkeys(names.values(), 0.0)
    found = {names[metric.measure]: float(metric.value) for metric in iter_calc(list(names), qrels, run)}
    return {name: found[name] for name in names.values()}


def aggregate(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every metric over the rows that have it, and `n`, the number of rows.

    A question without gold ids simply has no gold recall; it does not count as 0.

    >>> aggregate([{"em": 1.0, "recall@3": 0.5}, {"em": 0.0}])
    {'em': 0.5, 'recall@3': 0.5, 'n': 2.0}
    >>> aggregate([])
    {'n': 0.0}
    """
    values: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            values.setdefault(name, []).append(value)
    # fsum is exact, so the order of the questions cannot change the last digit.
    means = {name: math.fsum(column) / len(column) for name, column in values.items()}
    return {**means, "n": float(len(rows))}


def _accepted(golden_answers: Sequence[str]) -> list[str]:
    """The golden answers, normalised, without empty ones; the empty one where no other is left."""
    normalised = [normalize_answer(golden) for golden in _checked("golden_answers", golden_answers)]
    return [answer for answer in normalised if answer] or [""]


def _token_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    if not predicted or not expected:
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    # 2PR / (P + R) with P = shared / |predicted| and R = shared / |expected|, without a division by zero.
    return 2 * shared / (len(predicted) + len(expected))


def _checked(name: str, values: Sequence[str]) -> Sequence[str]:
    if not _listed(name, values):
        raise UsageError(f"{name} must hold at least one entry to score against, got none. Leave such rows out.")
    return values


def _listed(name: str, values: Sequence[str]) -> Sequence[str]:
    # A string is a sequence of strings too, and would be scored letter by letter.
    if isinstance(values, str):
        raise UsageError(f"{name} must be a list of texts, got the text {values[:60]!r}. Wrap it in a list.")
    return values


def _check_k(k: int) -> None:
    if k < 1:
        raise UsageError(f"k must be at least 1, got {k}. It counts the passages that are looked at.")
