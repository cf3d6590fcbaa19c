"""`rag inspect` shows the numbers that training uses."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from tiny_models import dro_config
from torch.nn import functional as F

from generator.generator import Generator
from generator.language_model import LanguageModel
from rag.diagnostics.inspection import inspect_batch, inspect_permutations, inspect_prompts
from rag.pipeline import RAG
from retriever.dense import DenseRetriever
from retriever.listwise_selector import ListwiseSelector
from training import DROConfig, QAExample
from training.estimation import EStep
from training.joint_model import JointModel
from training.micro_batches import MicroBatch

EXAMPLES = [
    QAExample("q1", "who wrote Hamlet?", ("Shakespeare",), ("p0",)),
    QAExample("q2", "what is the capital of Germany?", ("Berlin",), ("p4",)),
]


@pytest.fixture
def rag(
    language_model: LanguageModel,
    retriever: DenseRetriever,
    make_selector: Callable[..., ListwiseSelector],
    generator: Generator,
) -> RAG:
    return RAG(retriever, make_selector(language_model, num_candidates=4, num_selected=2), generator)


def config(**settings: object) -> DROConfig:
    plain = {"e_step.num_permutations": 6, "e_step.replacement": True, "e_step.proposals_per_sample": 1}
    return dro_config(**plain | settings)


class TestPrompts:
    def test_both_prompts_hold_the_question_and_the_passages(self, rag: RAG) -> None:
        found = inspect_prompts(rag, EXAMPLES[0].question)
        candidates = rag.retriever.search([EXAMPLES[0].question], 4)[0].passages
        for passage in candidates:
            assert passage.text in found.ranking_prompt
        assert EXAMPLES[0].question in found.ranking_prompt and EXAMPLES[0].question in found.answer_prompt
        assert sum(passage.text in found.answer_prompt for passage in candidates) == 2
        assert found.answer_prompt in found.text()
        assert json.loads(json.dumps(found.to_dict()))["stop_tokens"] == list(found.stop_tokens)


class TestPermutations:
    def test_numbers_equal_those_of_the_pipeline(self, rag: RAG) -> None:
        found = inspect_permutations(rag, EXAMPLES[0], config(e_step__proposal_temperature=2.0))
        passages = {p.id: p for p in rag.retriever.search([EXAMPLES[0].question], 4)[0].passages}
        assert sum(permutation.times for permutation in found.permutations) == 6
        assert sum(permutation.weight for permutation in found.permutations) == pytest.approx(1.0, abs=1e-5)
        logs = []
        for permutation in found.permutations:
            read = [passages[i] for i in permutation.ids]
            expected = rag.generator.log_prob(EXAMPLES[0].question, read, "Shakespeare")
            assert permutation.log_likelihood == pytest.approx(expected, abs=1e-3)
            assert permutation.log_q != permutation.log_p
            logs += [permutation.log_p - permutation.log_q + permutation.log_likelihood] * permutation.times
        weights = torch.tensor(logs).softmax(0).tolist()
        first = found.permutations[0]
        assert first.weight == pytest.approx(sum(weights[: first.times]), abs=1e-3)
        assert [r.weight for r in found.permutations] == sorted(r.weight for r in found.permutations)[::-1]

    def test_marginals_are_selection_probabilities(self, rag: RAG) -> None:
        found = inspect_permutations(rag, EXAMPLES[0], config())
        assert sum(c.marginal for c in found.candidates) == pytest.approx(2.0, abs=1e-5)
        for c in found.candidates:
            holding = [permutation.weight for permutation in found.permutations if c.id in permutation.ids]
            assert c.marginal == pytest.approx(sum(holding), abs=1e-6)
            assert c.gold == (c.id == "p0")

    def test_no_baseline_without_the_control_variate(self, rag: RAG) -> None:
        found = inspect_permutations(rag, EXAMPLES[0], config(e_step__control_variate=False))
        assert {permutation.baseline for permutation in found.permutations} == {None}
        permutations = found.text().split("permutation", 1)[1].split("\n\n")[0].splitlines()[1:]
        assert permutations and all(line.endswith(" -") for line in permutations)

    def test_predicted_log_likelihoods_are_marked(self, rag: RAG) -> None:
        found = inspect_permutations(
            rag,
            EXAMPLES[0],
            config(e_step__num_permutations=2, e_step__replacement=False, e_step__proposals_per_sample=3),
        )
        assert [permutation.scored for permutation in found.permutations].count(True) == 2
        assert len(found.permutations) == 6
        lines = found.text().split("permutation", 1)[1].splitlines()[1:7]
        assert "~: predicted" in found.text()
        assert [" ~" not in line for line in lines] == [permutation.scored for permutation in found.permutations]
        batch = inspect_batch(
            rag,
            EXAMPLES[:1],
            config(e_step__num_permutations=2, e_step__replacement=False, e_step__proposals_per_sample=3),
        )
        scored = [permutation.ids for permutation in found.permutations if permutation.scored]
        assert sorted(sequence.ids for sequence in batch.sequences) == sorted(scored)
        assert sum(sequence.weight for sequence in batch.sequences) == pytest.approx(1.0, abs=1e-5)

    def test_as_text(self, rag: RAG) -> None:
        found = inspect_permutations(rag, EXAMPLES[0], config())
        text = found.text()
        assert (
            "~: predicted" not in text
            and "answer that is scored: Shakespeare" in text
            and " p0 " in text
            and "ess: " in text
        )
        for permutation in found.permutations:
            assert " > ".join(f"[{i + 1}]" for i in permutation.positions) in text


class TestBatch:
    def test_scored_tokens_add_up_to_the_log_likelihood(self, rag: RAG) -> None:
        """The reference is `F.cross_entropy` on full logits, over the tokens that are marked."""
        model = rag.generator.language_model
        for sequence in inspect_batch(rag, EXAMPLES, config(selfaug__alpha=0.0)).sequences:
            ids = torch.tensor([[t.id for t in sequence.tokens if t.part != "padding"]])
            scored = torch.tensor([t.scored for t in sequence.tokens if t.part != "padding"])
            with torch.no_grad(), model.use("generator"):
                logits = model.head(model.hidden(ids, torch.ones_like(ids)))[0]
            expected = -F.cross_entropy(logits[:-1][scored[1:]].float(), ids[0, 1:][scored[1:]], reduction="sum")
            passages = {p.id: p for p in rag.retriever.search([sequence.question], 4)[0].passages}
            answer = next(e.golden_answers[0] for e in EXAMPLES if e.question == sequence.question)
            found = rag.generator.log_prob(sequence.question, [passages[i] for i in sequence.ids], answer)
            assert float(expected) == pytest.approx(found, abs=1e-2)

    def test_input_tokens_are_aligned_and_padding_never(self, rag: RAG) -> None:
        batch = inspect_batch(rag, EXAMPLES, config())
        assert len({len(sequence.tokens) for sequence in batch.sequences}) == 1
        assert any(t.part == "padding" for sequence in batch.sequences for t in sequence.tokens)
        for sequence in batch.sequences:
            parts = [t.part for t in sequence.tokens]
            first = parts.index("answer")
            assert parts == sorted(parts, key=["prompt", "answer", "padding"].index)
            aligned = [i for i, t in enumerate(sequence.tokens) if t.aligned]
            assert aligned == list(range(1, first))  # nothing predicts the first token of a sequence
            assert [t.scored for t in sequence.tokens] == [part == "answer" for part in parts]

    def test_one_aligned_sequence_for_each_question(self, rag: RAG) -> None:
        batch = inspect_batch(rag, EXAMPLES, config(selfaug__permutations="one"))
        for example in EXAMPLES:
            mine = [sequence for sequence in batch.sequences if sequence.question == example.question]
            assert sum(any(t.aligned for t in sequence.tokens) for sequence in mine) == 1
            assert sum(sequence.weight for sequence in mine) == pytest.approx(1.0, abs=1e-5)

    def test_the_batch_gives_the_training_loss(self, rag: RAG) -> None:
        settings = config(selfaug__alpha=0.0)
        batch = inspect_batch(rag, EXAMPLES, settings)
        posteriors = EStep(rag.retriever, rag.selector, rag.generator, settings)(EXAMPLES, round=1)
        joint = JointModel(rag.selector, rag.generator, settings)
        with rag.generator.language_model.use("generator"):
            loss = joint(MicroBatch("generator", tuple(posteriors), num_questions=2))["generator_loss"]
        by_hand = 0.0
        for sequence in batch.sequences:
            passages = {p.id: p for p in rag.retriever.search([sequence.question], 4)[0].passages}
            answer = next(e.golden_answers[0] for e in EXAMPLES if e.question == sequence.question)
            length = sum(t.scored for t in sequence.tokens)
            log_p = rag.generator.log_prob(sequence.question, [passages[i] for i in sequence.ids], answer)
            by_hand -= sequence.weight * log_p / length
        assert math.isclose(by_hand, float(loss), rel_tol=1e-3)

    def test_as_text(self, rag: RAG) -> None:
        batch = inspect_batch(rag, EXAMPLES[:1], config(e_step__num_permutations=2))
        text = batch.text(rag.generator.language_model.tokenizer.decode)
        assert "prompt + KL" in text and "answer + scored" in text and "Shakespeare" in text
