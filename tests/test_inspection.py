"""What `rag inspect` shows is what is trained on."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import dro_config
from torch.nn import functional as F

from generator.generator import Generator
from generator.language_model import LanguageModel
from rag.diagnostics.inspection import batch_text, inspect_batch, inspect_permutations, permutations_text
from rag.pipeline import RAG
from retriever.dense import DenseRetriever
from retriever.listwise_selector import ListwiseSelector
from training import DROConfig, QAExample
from training.estimation import EStep
from training.joint_model import JointModel, MicroBatch

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


class TestPermutations:
    def test_numbers_are_those_of_the_pipeline(self, rag: RAG, tmp_path: Path) -> None:
        data = inspect_permutations(rag, EXAMPLES[0], config(e_step__proposal_temperature=2.0))
        passages = {p.id: p for p in rag.retriever.search([EXAMPLES[0].question], 4)[0].passages}
        assert sum(row["times"] for row in data["permutations"]) == 6
        assert sum(row["weight"] for row in data["permutations"]) == pytest.approx(1.0, abs=1e-5)
        logs = []
        for row in data["permutations"]:
            read = [passages[i] for i in row["ids"]]
            expected = rag.generator.log_prob(EXAMPLES[0].question, read, "Shakespeare")
            assert row["log_likelihood"] == pytest.approx(expected, abs=1e-3)
            assert row["log_q"] != row["log_p"]
            logs += [row["log_p"] - row["log_q"] + row["log_likelihood"]] * row["times"]
        weights = torch.tensor(logs).softmax(0).tolist()
        first = data["permutations"][0]
        assert first["weight"] == pytest.approx(sum(weights[: first["times"]]), abs=1e-3)
        assert [r["weight"] for r in data["permutations"]] == sorted(r["weight"] for r in data["permutations"])[::-1]

    def test_marginals_say_how_likely_each_candidate_is_read(self, rag: RAG, tmp_path: Path) -> None:
        data = inspect_permutations(rag, EXAMPLES[0], config())
        assert sum(c["marginal"] for c in data["candidates"]) == pytest.approx(2.0, abs=1e-5)
        for c in data["candidates"]:
            holding = [row["weight"] for row in data["permutations"] if c["id"] in row["ids"]]
            assert c["marginal"] == pytest.approx(sum(holding), abs=1e-6)
            assert c["gold"] == (c["id"] == "p0")

    def test_the_paper_has_no_baseline(self, rag: RAG, tmp_path: Path) -> None:
        data = inspect_permutations(rag, EXAMPLES[0], config(e_step__control_variate=False))
        assert {row["baseline"] for row in data["permutations"]} == {None}
        permutations = permutations_text(data).split("permutation", 1)[1].split("\n\n")[0].splitlines()[1:]
        assert permutations and all(line.endswith(" -") for line in permutations)

    def test_predicted_likelihoods_are_marked(self, rag: RAG, tmp_path: Path) -> None:
        data = inspect_permutations(
            rag,
            EXAMPLES[0],
            config(e_step__num_permutations=2, e_step__replacement=False, e_step__proposals_per_sample=3),
        )
        assert [row["scored"] for row in data["permutations"]].count(True) == 2
        assert len(data["permutations"]) == 6
        text = permutations_text(data)
        lines = text.split("permutation", 1)[1].splitlines()[1:7]
        assert "~: predicted" in text
        assert [" ~" not in line for line in lines] == [row["scored"] for row in data["permutations"]]
        rows = inspect_batch(
            rag,
            EXAMPLES[:1],
            config(e_step__num_permutations=2, e_step__replacement=False, e_step__proposals_per_sample=3),
        )
        scored = [row["ids"] for row in data["permutations"] if row["scored"]]
        assert sorted(row["ids"] for row in rows) == sorted(scored)
        assert sum(row["weight"] for row in rows) == pytest.approx(1.0, abs=1e-5)

    def test_as_text(self, rag: RAG, tmp_path: Path) -> None:
        data = inspect_permutations(rag, EXAMPLES[0], config())
        text = permutations_text(data)
        assert (
            "~: predicted" not in text
            and "answer that is scored: Shakespeare" in text
            and " p0 " in text
            and "ess: " in text
        )
        for row in data["permutations"]:
            assert " > ".join(f"[{i + 1}]" for i in row["positions"]) in text


class TestBatch:
    def test_scored_tokens_add_up_to_the_log_likelihood(self, rag: RAG, tmp_path: Path) -> None:
        """Computed here from full logits and `F.cross_entropy` over the tokens that are marked."""
        model = rag.generator.language_model
        for row in inspect_batch(rag, EXAMPLES, config(selfaug__alpha=0.0)):
            ids = torch.tensor([[t["id"] for t in row["tokens"] if t["part"] != "padding"]])
            scored = torch.tensor([t["scored"] for t in row["tokens"] if t["part"] != "padding"])
            with torch.no_grad(), model.use("generator"):
                logits = model.head(model.hidden(ids, torch.ones_like(ids)))[0]
            expected = -F.cross_entropy(logits[:-1][scored[1:]].float(), ids[0, 1:][scored[1:]], reduction="sum")
            passages = {p.id: p for p in rag.retriever.search([row["question"]], 4)[0].passages}
            answer = next(e.golden_answers[0] for e in EXAMPLES if e.question == row["question"])
            found = rag.generator.log_prob(row["question"], [passages[i] for i in row["ids"]], answer)
            assert float(expected) == pytest.approx(found, abs=1e-2)

    def test_input_tokens_are_aligned_and_padding_never(self, rag: RAG) -> None:
        rows = inspect_batch(rag, EXAMPLES, config())
        assert len({len(row["tokens"]) for row in rows}) == 1
        assert any(t["part"] == "padding" for row in rows for t in row["tokens"])
        for row in rows:
            parts = [t["part"] for t in row["tokens"]]
            first = parts.index("answer")
            assert parts == sorted(parts, key=["prompt", "answer", "padding"].index)
            aligned = [i for i, t in enumerate(row["tokens"]) if t["aligned"]]
            assert aligned == list(range(1, first))  # nothing predicts the first token of a row
            assert [t["scored"] for t in row["tokens"]] == [part == "answer" for part in parts]

    def test_one_aligned_row_for_each_question(self, rag: RAG, tmp_path: Path) -> None:
        rows = inspect_batch(rag, EXAMPLES, config(selfaug__permutations="one"))
        for example in EXAMPLES:
            mine = [row for row in rows if row["question"] == example.question]
            assert sum(any(t["aligned"] for t in row["tokens"]) for row in mine) == 1
            assert sum(row["weight"] for row in mine) == pytest.approx(1.0, abs=1e-5)

    def test_it_is_the_batch_that_is_trained_on(self, rag: RAG, tmp_path: Path) -> None:
        settings = config(selfaug__alpha=0.0)
        rows = inspect_batch(rag, EXAMPLES, settings)
        posteriors = EStep(rag.retriever, rag.selector, rag.generator, settings)(EXAMPLES, round=1)
        joint = JointModel(rag.selector, rag.generator, settings)
        with rag.generator.language_model.use("generator"):
            loss = joint(MicroBatch("generator", tuple(posteriors), num_questions=2))["generator_loss"]
        by_hand = 0.0
        for row in rows:
            passages = {p.id: p for p in rag.retriever.search([row["question"]], 4)[0].passages}
            answer = next(e.golden_answers[0] for e in EXAMPLES if e.question == row["question"])
            length = sum(t["scored"] for t in row["tokens"])
            log_p = rag.generator.log_prob(row["question"], [passages[i] for i in row["ids"]], answer)
            by_hand -= row["weight"] * log_p / length
        assert math.isclose(by_hand, float(loss), rel_tol=1e-3)

    def test_as_text(self, rag: RAG, tmp_path: Path) -> None:
        rows = inspect_batch(rag, EXAMPLES[:1], config(e_step__num_permutations=2))
        text = batch_text(rows, rag.generator.language_model.tokenizer.decode)
        assert "prompt + KL" in text and "answer + scored" in text and "Shakespeare" in text
