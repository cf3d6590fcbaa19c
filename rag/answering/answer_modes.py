"""`ANSWER_MODES`: the registry of answer modes by kind; imports neither torch nor transformers."""

from typing import TYPE_CHECKING

from indexes.registry import Registry

if TYPE_CHECKING:
    from rag.answering.answer_mode import AnswerMode

PERMUTATION = "permutation"

ANSWER_MODES: "Registry[type[AnswerMode]]" = Registry(
    "answer mode",
    builtin={
        "permutation": "rag.answering.permutation_mode:PermutationMode",
        "rag_sequence": "rag.answering.rag_sequence:RAGSequence",
        "rag_token": "rag.answering.rag_token:RAGToken",
    },
)
