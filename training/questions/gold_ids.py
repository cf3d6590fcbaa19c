"""Whether the gold ids of questions exist in an index; where they do not, gold recall would silently be 0."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from indexes.corpora.corpus import Corpus
from indexes.directory.passage_index import PassageIndex
from indexes.errors import DataError, UsageError
from training.questions.example import QAExample

logger = logging.getLogger(__name__)

_SHOWN = 3


class GoldCoverage(NamedTuple):
    """How many of the questions with gold ids can be scored with an index.

    Attributes:
        questions: Questions with gold ids.
        covered: Those of them of which every gold id is in the index.
        unknown_ids: Gold ids that the index does not have, in the order of the questions, each once.
    """

    questions: int
    covered: int
    unknown_ids: tuple[str, ...]


def gold_coverage(examples: Sequence[QAExample], passages: PassageIndex | Corpus) -> GoldCoverage:
    """Which gold ids of the questions belong to no passage, nor to a document of which a passage is a chunk."""
    corpus = passages if isinstance(passages, Corpus) else passages.corpus
    with_gold = [example for example in examples if example.gold_ids]
    asked = dict.fromkeys(id_ for example in with_gold for id_ in example.gold_ids)
    # A document that was cut into chunks is found by its first chunk.
    found = corpus.known_ids(name for id_ in asked for name in (id_, f"{id_}#0"))
    known = {id_ for id_ in asked if id_ in found or f"{id_}#0" in found}
    unknown = [id_ for id_ in asked if id_ not in known]
    covered = sum(known.issuperset(example.gold_ids) for example in with_gold)
    return GoldCoverage(len(with_gold), covered, tuple(unknown))


def check_gold_ids(
    examples: Sequence[QAExample],
    passages: PassageIndex | Corpus,
    *,
    on_unknown: Literal["raise", "warn", "drop"] = "drop",
) -> list[QAExample]:
    """The questions, without gold ids if the index has none of them.

    A passage that is not in the index cannot be found, so its question has gold recall 0 with any retriever. That is a
    property of the corpus when a few are missing (HotpotQA's full-wiki files), and a mistake when all are: HotpotQA's
    own passages are not those of a dump of Wikipedia.

    Args:
        examples: Questions, with gold ids or without.
        passages: The index or the corpus that will be searched.
        on_unknown: What happens when some gold ids are unknown. `"raise"`: an error. `"warn"`: a warning in the log,
            and they count as not found. `"drop"`: a warning; and if no gold id at all is known, all are removed, so
            that gold recall is left out instead of 0.

    Raises:
        DataError: There are unknown gold ids, and `on_unknown` is `"raise"`.
    """
    if on_unknown not in ("raise", "warn", "drop"):
        raise UsageError(f'on_unknown must be "raise", "warn" or "drop", got {on_unknown!r}. Choose one of them.')
    coverage = gold_coverage(examples, passages)
    if not coverage.unknown_ids:
        return list(examples)
    message = _message(coverage)
    if on_unknown == "raise":
        raise DataError(message)
    logger.warning(message)
    total = len({id_ for example in examples for id_ in example.gold_ids})
    if on_unknown == "warn" or len(coverage.unknown_ids) < total:
        return list(examples)
    return [replace(example, gold_ids=(), gold_grades=()) for example in examples]


def _message(coverage: GoldCoverage) -> str:
    shown = ", ".join(repr(id_) for id_ in coverage.unknown_ids[:_SHOWN])
    return (
        f"Gold ids must be ids of passages in the index, got {len(coverage.unknown_ids)} that are not, first {shown}, "
        f"so only {coverage.covered} of {coverage.questions} questions can be scored completely: a passage that is not "
        "in the index is never found. Build the index from the corpus that the questions belong to (for HotpotQA, "
        "2WikiMultihopQA, MuSiQue, SQuAD and DPR the question file itself is one), or leave the gold ids out."
    )
