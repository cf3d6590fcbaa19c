"""The default answer mode: the generator reads the selector's best permutation in one prompt (DRO, arXiv 2505.03075).

z = argmax p_s(z | x, candidates)  (as the selector decodes it),    y ~ p_g(y | x, d_z)
"""

from collections.abc import Iterator, Sequence

from indexes.corpora.passage import Passage
from rag.answering.answer import Answer
from rag.answering.answer_mode import AnswerMode
from retriever.candidates import Candidates


class PermutationMode(AnswerMode):
    """Selects a permutation of K passages and generates from all of them at once.

    The audits that shuffle the passages of a prompt or leave one out apply to this mode and its subclasses, which may
    override `select`.
    """

    kind = "permutation"

    def select(self, candidates: Sequence[Candidates]) -> list[list[int]]:
        """The best permutation for each question's candidates: K retriever ranks, in reading order."""
        return [found.z[0].tolist() for found in self.selector.select(candidates)]

    def answer_from(self, candidates: Sequence[Candidates], *, log_prob: bool = True) -> list[Answer]:
        """One answer for each question's candidates; see `AnswerMode.answer_from`."""
        return self.read(candidates, self.select(candidates), log_prob)

    def read(
        self, candidates: Sequence[Candidates], permutations: Sequence[list[int]], log_prob: bool = True
    ) -> list[Answer]:
        """Answers from given permutations of each question's candidates, as retriever ranks."""
        passages = [permuted(c, z) for c, z in zip(candidates, permutations, strict=True)]
        questions = [c.question for c in candidates]
        prompts = [self.generator.prompt_ids(*parts) for parts in zip(questions, passages, strict=True)]
        log_probs: Sequence[float | None]
        if log_prob:
            texts, log_probs = self.generator.complete_scored(prompts)
        else:
            texts, log_probs = self.generator.complete(prompts), [None] * len(prompts)
        return [
            Answer.from_candidates(found, z, text, log_p)
            for found, z, text, log_p in zip(candidates, permutations, texts, log_probs, strict=True)
        ]

    def stream(self, candidates: Candidates) -> Iterator[str]:
        """The answer in pieces, as the generator produces them."""
        (z,) = self.select([candidates])
        yield from self.generator.stream(candidates.question, permuted(candidates, z))


def permuted(candidates: Candidates, permutation: Sequence[int]) -> list[Passage]:
    """The passages of a permutation, in its order."""
    return [candidates.passages[rank] for rank in permutation]
