"""A small encyclopedia of real facts: passages, and questions with one and two hops.

The fact tables are the TSV files beside this one; `relations` holds the wording, `tables` reads the facts and
`render` turns both into a corpus and question files.
"""

from rag.worlds.encyclopedia.relations import RELATIONS, Relation
from rag.worlds.encyclopedia.render import PassageRow, QuestionRow, passages, questions, write

__all__ = ["RELATIONS", "PassageRow", "QuestionRow", "Relation", "passages", "questions", "write"]
