"""A small encyclopedia of real facts: passages, and questions with one and two hops.

The fact tables are the TSV files in this folder; `relations` holds the wording, `entities` reads the facts and
`render` turns both into a corpus and question files.
"""

from rag.worlds.encyclopedia.relations import RELATIONS, Relation
from rag.worlds.encyclopedia.render import PassageRecord, QuestionRecord, passages, questions, write_encyclopedia

__all__ = ["RELATIONS", "PassageRecord", "QuestionRecord", "Relation", "passages", "questions", "write_encyclopedia"]
