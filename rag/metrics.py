"""What an answer and a retrieval are worth: exact match, token F1, answer recall, gold recall, nDCG and MRR.

Pure functions on text and ids. Answers are compared after the normalisation of SQuAD and KILT, and the best
of all golden answers counts. Every value lies in [0, 1].

Where one of the two texts holds a script that puts no blanks between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese), both are compared by the rule of MLQA's script for Chinese instead: each such character is a token, and
punctuation of any script is deleted (Lewis et al. 2020, arXiv 1910.07475). docs/evaluation.md says what other scripts
do. All other text is scored as SQuAD's script does, byte for byte.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import regex

from indexes.corpora.chunk_ids import gold_document
from indexes.errors import UsageError
from indexes.word_segmentation import LETTERS, PUNCTUATION, UNSPACED, has_unspaced, mixed_tokens, visible

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_DELETE_PUNCTUATION = str.maketrans("", "", string.punctuation)
_SPACED_LETTER = rf"[[{LETTERS}]--[{UNSPACED}]]"
_STARTS_SPACED = regex.compile(_SPACED_LETTER, regex.V1)
_ENDS_SPACED = regex.compile(rf"{_SPACED_LETTER}$", regex.V1)
# What may stand in a text between two tokens of an answer: any marks, with a blank where both tokens are spaced.
_ANY_MARKS = rf"[{PUNCTUATION}]*"
_ANY_BLANKS = rf"[{PUNCTUATION} ]*"
_BLANK = rf"{_ANY_MARKS} {_ANY_BLANKS}"


def normalize_answer(s: str) -> str:
    r"""Lower case, no ASCII punctuation, no articles, single spaces; in this order, as SQuAD's script does.

    Punctuation is deleted, not replaced by a space; outside ASCII it stays, as in the official script. A text with
    characters of unspaced scripts becomes its mixed tokens (`word_segmentation`): full-width forms are folded, all
    punctuation is deleted, every such character stands alone, and articles stay ("A" is no article in "維生素A").

    >>> normalize_answer("The  U.S.")
    'us'
    >>> normalize_answer("An ape, a bee & the sea-cow")
    'ape bee seacow'
    >>> normalize_answer("\uff11\uff19\uff19\uff17年。")
    '1997 年'
    """
    return " ".join(mixed_tokens(s) if has_unspaced(s) else _squad(s))


def exact_match(prediction: str, golden_answers: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals a normalised golden answer, else 0.0.

    Golden answers that are empty after normalisation ("A", "...") count only where there are no others (SQuAD 2.0's
    rule; version 1.1 and KILT count them always), so that no answer is never right beside a golden answer.

    >>> exact_match("The U.S.", ["United States", "US"])
    1.0
    >>> exact_match("US of A", ["United States", "US"])
    0.0
    >>> exact_match("北京。", ["上海", "北京"])
    1.0

    Raises:
        UsageError: No golden answer, or one string in place of a list.
    """
    pairs = (_tokens(prediction, golden) for golden in _accepted(golden_answers))
    return float(any(predicted == expected for predicted, expected in pairs))


def f1(prediction: str, golden_answers: Sequence[str]) -> float:
    """Harmonic mean of token precision and token recall, the best over the golden answers.

    Tokens are counted with multiplicity after normalisation. When prediction or golden answer is empty after
    it, the value is 1 if both are and 0 otherwise (SQuAD 2.0's rule; version 1.1 and KILT give 0 to both), and golden
    answers that are empty after it count as in `exact_match`. `yes` and `no` are plain tokens here, whereas HotpotQA's
    script gives 0 to any answer that only contains them.

    "cat sat mat" shares 2 tokens with "cat sat": precision 2/3, recall 2/2, so 2 * (2/3) / (2/3 + 1) = 0.8.
    A character of an unspaced script is a token; as in DRCD's and JSQuAD's scripts their order does not matter, while
    CMRC 2018's counts the longest common run.

    >>> f1("the cat sat, mat", ["a dog", "cat sat"])
    0.8
    >>> f1("the", ["a"])
    1.0
    >>> f1("cat", ["the"])
    0.0
    >>> f1("北京市海淀区", ["北京市"])  # 3 of 6 and 3 of 3
    0.6666666666666666

    Raises:
        UsageError: No golden answer, or one string in place of a list.
    """
    return max(_token_f1(*_tokens(prediction, golden)) for golden in _accepted(golden_answers))


def answer_recall(passages_texts: Sequence[str], golden_answers: Sequence[str], k: int) -> float:
    """1.0 when one of the first k texts contains a golden answer as a run of whole tokens, else 0.0.

    Texts and answers are normalised alike, so "U.S." is found in "the US army" and "art" is not found in
    "party". DPR's recall keeps articles and splits at punctuation instead, so its numbers differ a little.
    Golden answers that are empty after normalisation match nothing.

    Where text or answer holds an unspaced script, an answer is found at any of its characters too, as nothing says
    where a word ends there: "京都" is found in "東京都". What is spaced still has to stand whole: "5年" is not found in
    "15年" or "1.5年", nor "art" in "party在". Nor does a character match without its vowel and tone marks.

    >>> answer_recall(["A party.", "Art of the U.S."], ["art"], k=1)
    0.0
    >>> answer_recall(["A party.", "Art of the U.S."], ["art"], k=2)
    1.0
    >>> answer_recall(["中国的首都是北京。"], ["北京"], k=1)
    1.0
    >>> answer_recall(["苹果公司卖iPhone、iPad。"], ["iPad"], k=1)
    1.0

    Raises:
        UsageError: k is below 1, no golden answer, or one string in place of a list.
    """
    _check_k(k)
    answers = _checked("golden_answers", golden_answers)
    return float(any(_holds(text, answers) for text in _listed("passages_texts", passages_texts)[:k]))


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


def _accepted(golden_answers: Sequence[str]) -> Sequence[str]:
    """The golden answers without those that are empty after normalisation; all of them where no other is left."""
    answers = _checked("golden_answers", golden_answers)
    return [answer for answer in answers if normalize_answer(answer)] or answers


def _tokens(prediction: str, golden: str) -> tuple[list[str], list[str]]:
    """Both under one rule: "1997" and "1997年" share a token."""
    rule = mixed_tokens if has_unspaced(prediction) or has_unspaced(golden) else _squad
    return rule(prediction), rule(golden)


def _squad(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_DELETE_PUNCTUATION)).split()


def _holds(text: str, answers: Sequence[str]) -> bool:
    """Whether a text contains one of the answers."""
    # Spaces around both sides turn "contains these tokens in a row" into "contains this string".
    spaced = f" {' '.join(_squad(text))} "
    if any((tokens := _squad(answer)) and f" {' '.join(tokens)} " in spaced for answer in answers):
        return True
    chosen = answers if has_unspaced(text) else [answer for answer in answers if has_unspaced(answer)]
    patterns = [pattern for answer in chosen if (pattern := _pattern(answer)) is not None]
    return bool(patterns) and any(pattern.search(shown) for shown in [visible(text)] for pattern in patterns)


@lru_cache(maxsize=4096)
def _pattern(answer: str) -> Any:
    """What finds an answer in the visible characters of a text with unspaced scripts; None if nothing is left of it.

    Punctuation may stand anywhere in the text, and blanks beside any character of an unspaced script; both end a word.
    """
    tokens = mixed_tokens(answer)
    if not has_unspaced(answer) and len(tokens) > 1 and _ARTICLES.fullmatch(tokens[0]):
        tokens = tokens[1:]
    if not tokens:
        return None
    spelled = [_ANY_MARKS.join(map(regex.escape, token)) for token in tokens]
    spaced = [not has_unspaced(token) for token in tokens]
    gaps = [_BLANK if all(pair) else _ANY_BLANKS for pair in pairwise(spaced)]
    middle = "".join(part for pair in zip(spelled, [*gaps, ""], strict=True) for part in pair)
    return regex.compile(f"{_start(tokens[0])}{middle}{_end(tokens[-1])}", regex.V1)


def _start(token: str) -> str:
    """What may not stand before the first token of an answer: more of the same word, or of the same number."""
    # "1.5" and "1,500" are one number.
    number = r"(?<!\d\.)(?<!\d,(?=\d{3}(?!\d)))" if token[0].isdecimal() else ""
    return rf"(?<!{_SPACED_LETTER}){number}" if _STARTS_SPACED.match(token) else ""


def _end(token: str) -> str:
    """What may not stand behind the last token of an answer: more of its word or number, or a mark of its character."""
    number = r"(?!\.\d)(?!,\d{3}(?!\d))" if token[-1].isdecimal() else ""
    return rf"(?!{_SPACED_LETTER}){number}" if _ENDS_SPACED.search(token) else r"(?!\p{M})"


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
