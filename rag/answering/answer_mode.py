"""`AnswerMode`: the interface of a way to turn candidate passages into an answer.

A new answer mode is one file: a subclass registered with `rag.answering.answer_modes.ANSWER_MODES`, which
`RAG(..., answer_mode="its kind")` finds; `examples/new_answer_mode.py` is one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from generator.generator import Generator
from rag.answering.answer import Answer
from retriever.candidates import Candidates
from retriever.retriever import Retriever
from retriever.selector import Selector
from retriever.selector_config import SelectorConfig
from training.questions.context_fit import why_too_long


class AnswerMode(ABC):
    """How answers are produced from candidate passages.

    Keyword-only arguments that a subclass adds to the constructor are its options; `settings` must return them, so
    that a bundle records them.

    Args:
        retriever: Finds the candidates; for modes that search again while they answer.
        selector: Ranks the candidates.
        generator: Reads passages and writes answers.
    """

    kind: ClassVar[str]
    """The name it is registered under."""

    def __init__(self, retriever: Retriever, selector: Selector, generator: Generator) -> None:
        self.retriever = retriever
        self.selector = selector
        self.generator = generator

    @property
    def settings(self) -> Mapping[str, Any]:
        """Options to build this mode again, JSON-ready."""
        return {}

    def config_for(self, k: int) -> SelectorConfig:
        """The selector's settings with which this mode generates an answer from k passages.

        Raises:
            UsageError: k is below 1, or above the number of candidates.
        """
        return replace(self.selector.config, num_selected=k)

    @abstractmethod
    def answer_from(self, candidates: Sequence[Candidates], *, log_prob: bool = True) -> list[Answer]:
        """One answer for each question's candidates.

        Args:
            candidates: What the retriever found for each question.
            log_prob: Whether `Answer.log_prob` is needed; a mode may fill it in either way.
        """

    def stream(self, candidates: Candidates) -> Iterator[str]:
        """The answer in pieces; in one piece unless a subclass generates token by token."""
        yield self.answer_from([candidates])[0].text

    def why_too_long(self, question: str) -> str | None:
        """Why a question does not fit the model's context; None if it fits.

        Passages are truncated, down to nothing, but the question never is: so this depends on the question alone. A
        selector whose language-model weight is 0 reads no prompt.
        """
        return why_too_long(question, self.selector, self.generator)
