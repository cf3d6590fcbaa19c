"""Inspection of one question: prompts, permutations and weights of an E-step, and the sequences of an M-step.

Everything is computed by the functions that train (`training.estimation.EStep`, `training.maximization.JointModel`), so
the numbers are those that training uses.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from generator.answer_sequences import AnswerSequence
from generator.configs import ChatConfig
from generator.log_probs import answer_positions
from generator.padding import pad_right
from indexes.corpora.chunk_ids import gold_document
from rag.pipeline import RAG
from rag.text_tables import cell, table
from training import DROConfig, QAExample
from training.estimation import EStep
from training.joint_model import JointModel
from training.losses import selfaug_positions
from training.micro_batches import MicroBatch
from training.posterior import Posterior

# -- prompts ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InspectedPrompts:
    """What the model reads for a question, as text with all control tokens."""

    question: str
    ranking_prompt: str
    """Of the selector, up to where the first identifier is generated; or each passage with the question after it."""
    answer_prompt: str
    """Of the generator."""
    template_system_message: str | None
    """What the base's chat template adds by itself where no system message is given; None: nothing that is known."""
    chat: ChatConfig
    end_of_answer: str
    """The token that ends an answer."""
    stop_tokens: tuple[str, ...]
    """Every token that ends a reply."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def text(self) -> str:
        """The same for people."""
        own = self.template_system_message
        settings = ", ".join(f"{name}={value!r}" for name, value in asdict(self.chat).items())
        return "\n".join(
            [
                f"system message of the chat template itself: {'none' if own is None else repr(own)}",
                f"settings of the chat template: {settings}",
                f"an answer ends with {self.end_of_answer!r}; a reply ends at any of {list(self.stop_tokens)}",
                f"\n-- ranking prompt --\n{self.ranking_prompt}",
                f"\n-- answer prompt --\n{self.answer_prompt}",
            ]
        )


def inspect_prompts(rag: RAG, question: str) -> InspectedPrompts:
    """What the model reads for a question."""
    model = rag.generator.language_model
    candidates = rag.retriever.search(question, rag.num_candidates)
    z = rag.selector.select([candidates])[0].z[0].tolist()
    ranking = rag.selector.prompts(candidates)
    answer = rag.generator.prompt_ids(question, [candidates.passages[i] for i in z])
    end, *stops = map(str, model.tokenizer.convert_ids_to_tokens([model.end_of_answer_id, *model.chat.stop_ids]))
    return InspectedPrompts(
        question=question,
        ranking_prompt="\n\n".join(str(model.tokenizer.decode(prompt)) for prompt in ranking),
        answer_prompt=str(model.tokenizer.decode(answer)),
        template_system_message=model.chat.template_system_message,
        chat=model.chat.config,
        end_of_answer=end,
        stop_tokens=tuple(stops),
    )


# -- permutations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InspectedCandidate:
    """One candidate passage."""

    position: int
    """Its place in the selector's prompt, from 0."""
    id: str
    title: str
    score: float
    """Of the retriever."""
    gold: bool
    marginal: float
    """Posterior probability that it is selected."""

    def cells(self) -> list[str]:
        """Of its line in the table of candidates."""
        gold = " *" if self.gold else ""
        return [f"[{self.position + 1}]{gold}", f"{self.marginal:.3f}", cell(self.score), self.id, self.title]


@dataclass(frozen=True, kw_only=True)
class InspectedPermutation:
    """One distinct permutation of the E-step."""

    positions: tuple[int, ...]
    """Of its candidates, in reading order."""
    ids: tuple[str, ...]
    times: int
    """How often it was sampled."""
    log_p: float
    """log p_s of the selector."""
    log_q: float
    """log q of the proposal."""
    log_likelihood: float
    """log p(y | x, d_z) of the answer: computed where `scored`, else predicted."""
    scored: bool
    weight: float
    """w: its posterior probability."""
    baseline: float | None
    """b: of the control variate; None without one."""

    def cells(self) -> list[str]:
        """Of its line in the table of permutations."""
        return [
            " > ".join(f"[{i + 1}]" for i in self.positions),
            str(self.times),
            f"{self.log_p:.3f}",
            f"{self.log_q:.3f}",
            f"{'' if self.scored else '~'}{self.log_likelihood:.3f}",
            cell(self.weight),
            cell(self.baseline),
        ]


@dataclass(frozen=True, kw_only=True)
class InspectedPermutations:
    """The E-step of one question."""

    question: str
    answer: str
    """The golden answer that was scored."""
    candidates: tuple[InspectedCandidate, ...]
    """In the order of the selector's prompt."""
    permutations: tuple[InspectedPermutation, ...]
    """Largest weight first."""
    diagnostics: dict[str, float]
    """Of the E-step."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def text(self) -> str:
        """The same for people."""
        predicted = any(not permutation.scored for permutation in self.permutations)
        return "\n".join(
            [
                self.question,
                f"answer that is scored: {self.answer}",
                "",
                table(
                    ["candidate (* gold)", "P(selected)", "score", "id", "title"], [c.cells() for c in self.candidates]
                ),
                "",
                table(
                    ["permutation", "times", "log p", "log q", "log p(y|z)", "w", "b"],
                    [p.cells() for p in self.permutations],
                ),
                *(["~: predicted, not scored by the generator"] if predicted else []),
                "",
                *(f"{name}: {value:.4g}" for name, value in self.diagnostics.items()),
            ]
        )


def inspect_permutations(rag: RAG, example: QAExample, config: DROConfig, *, round: int = 1) -> InspectedPermutations:
    """The E-step of one question.

    Log-likelihoods that are not computed are predicted by a regression that is fitted to this question only; in
    training the questions of a batch share it. A likelihood exponent of "auto" is its fallback here: it is fitted to
    many questions.

    Args:
        rag: The pipeline.
        example: A question with golden answers; its gold ids mark the gold passages.
        config: Settings of the E-step.
        round: Number of the round, which together with the seed determines every sample.
    """
    posterior = EStep(rag.retriever, rag.selector, rag.generator, config)([example], round=round)[0]
    return InspectedPermutations(
        question=example.question,
        answer=posterior.answer,
        candidates=_candidates(posterior, example),
        permutations=tuple(sorted(_permutations(posterior), key=lambda permutation: -permutation.weight)),
        diagnostics=posterior.diagnostics().to_dict(),
    )


def _permutations(posterior: Posterior) -> list[InspectedPermutation]:
    sampled, d = posterior.permutations, posterior.distinct()
    inverse_m = sampled.distinct()[1].tolist()
    scored = set(range(len(sampled)) if posterior.scored is None else posterior.scored.index_m.tolist())
    found = []
    for u, z_K in enumerate(d.z_uK.tolist()):
        first = inverse_m.index(u)
        found.append(
            InspectedPermutation(
                positions=tuple(z_K),
                ids=tuple(posterior.candidates.ids[i] for i in z_K),
                times=inverse_m.count(u),
                log_p=float(sampled.log_p[first]),
                log_q=float(sampled.log_q[first]),
                log_likelihood=float(posterior.log_likelihood_m[first]),
                scored=first in scored,
                weight=float(d.weights_u[u]),
                baseline=None if d.baseline_u is None else float(d.baseline_u[u]),
            )
        )
    return found


def _candidates(posterior: Posterior, example: QAExample) -> tuple[InspectedCandidate, ...]:
    found, marginals = posterior.candidates, posterior.marginals().tolist()
    return tuple(
        InspectedCandidate(
            position=i,
            id=passage.id,
            title=passage.title,
            score=float(score),
            gold=gold_document(passage.id, example.gold_ids) is not None,
            marginal=marginals[i],
        )
        for i, (passage, score) in enumerate(zip(found.passages, found.scores, strict=True))
    )


# -- sequences of the M-step -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InspectedToken:
    """One token of a sequence, and which losses use the prediction *of it* (made one position earlier)."""

    id: int
    text: str
    part: Literal["prompt", "answer", "padding"]
    aligned: bool
    """SelfAug compares its prediction with the base's."""
    scored: bool
    """Its log-probability is part of log p(y | x, d_z)."""

    @property
    def role(self) -> str:
        """Part and losses in words: "prompt + KL"."""
        return " + ".join([self.part, *(["KL"] if self.aligned else []), *(["scored"] if self.scored else [])])


@dataclass(frozen=True, kw_only=True)
class InspectedSequence:
    """One sequence of the generator: prompt and answer, padded as in training."""

    question: str
    ids: tuple[str, ...]
    """Of the passages in the prompt, in their order."""
    weight: float
    """w: posterior probability of the permutation."""
    tokens: tuple[InspectedToken, ...]


@dataclass(frozen=True, kw_only=True)
class InspectedBatch:
    """The generator's sequences of one micro-batch."""

    sequences: tuple[InspectedSequence, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready dictionary."""
        return asdict(self)

    def text(self, decode: Callable[[list[int]], str]) -> str:
        """The same for people, neighbouring tokens of one role together.

        Args:
            decode: From token ids to text.
        """
        lines: list[str] = []
        for number, sequence in enumerate(self.sequences, 1):
            read = ", ".join(sequence.ids)
            lines += [f"sequence {number}: {sequence.question}   w = {sequence.weight:.4f}   passages {read}"]
            start = 0
            for role, group in groupby(sequence.tokens, key=lambda token: token.role):
                ids = [token.id for token in group]
                lines.append(f"  {start:5d}-{start + len(ids) - 1:<5d} {role:<18} {decode(ids)!r}")
                start += len(ids)
        return "\n".join(lines)


def inspect_batch(rag: RAG, examples: Sequence[QAExample], config: DROConfig, *, round: int = 1) -> InspectedBatch:
    """The generator's sequences of one micro-batch, token by token.

    Args:
        rag: The pipeline.
        examples: The questions of the micro-batch.
        config: Settings of the training run.
        round: Number of the round.
    """
    posteriors = EStep(rag.retriever, rag.selector, rag.generator, config)(examples, round=round)
    joint = JointModel(rag.selector, rag.generator, config)
    micro_batch = MicroBatch("generator", tuple(posteriors), num_questions=len(posteriors), seed=config.seed)
    sequences, weights_R, aligned = joint.sequences(micro_batch)
    tokens = _tokens(rag, sequences, set(aligned.sequences))
    owners = [(p.example, p.candidates, z) for p in posteriors for z in p.distinct_scored().z_uK.tolist()]
    return InspectedBatch(
        sequences=tuple(
            InspectedSequence(
                question=example.question,
                ids=tuple(candidates.ids[i] for i in z),
                weight=float(weight),
                tokens=tuple(of_sequence),
            )
            for (example, candidates, z), weight, of_sequence in zip(owners, weights_R, tokens, strict=True)
        )
    )


def _tokens(rag: RAG, sequences: Sequence[AnswerSequence], aligned: set[int]) -> list[list[InspectedToken]]:
    model = rag.generator.language_model
    ids_BT, lengths_B = pad_right([s.input_ids for s in sequences], model.end_of_answer_id, torch.device("cpu"))
    answers_B = torch.tensor([len(s.answer_ids) for s in sequences])
    prompts_B = lengths_B - answers_B
    scored_BT = _predicted(ids_BT, *answer_positions(prompts_B, answers_B))
    aligned_BT = _predicted(ids_BT, *selfaug_positions(prompts_B, torch.ones(len(sequences)))[:2])
    result = []
    for b in range(len(sequences)):
        parts: list[Any] = ["prompt"] * int(prompts_B[b]) + ["answer"] * int(answers_B[b])
        parts += ["padding"] * (ids_BT.shape[1] - len(parts))
        result.append(
            [
                InspectedToken(int(i), str(model.tokenizer.decode([int(i)])), part, bool(a) and b in aligned, bool(s))
                for i, part, a, s in zip(ids_BT[b], parts, aligned_BT[b], scored_BT[b], strict=True)
            ]
        )
    return result


def _predicted(ids_BT: Tensor, rows_N: Tensor, positions_N: Tensor) -> Tensor:
    """True at the tokens that these positions predict, each one position later."""
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    mask_BT[rows_N, positions_N + 1] = True
    return mask_BT
