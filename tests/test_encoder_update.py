"""refresh_index: what the encoder is trained on, that it learns it, and that a run with it resumes and is restored."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import PASSAGES, dro_config, learned, tiny_encoder

from indexes.corpora.corpus import Corpus
from indexes.directory.builder import build_index
from indexes.encoder import Encoder
from indexes.errors import MismatchError
from rag.pipeline import RAG
from retriever.dense import DenseRetriever
from retriever.permutations import Permutations
from training import DROConfig, DROTrainer, QAExample
from training.encoder_update import open_trained_retrieval, train_encoder_and_reindex, training_pairs
from training.posterior import Posterior

QUESTIONS = {"who wrote Hamlet?": "p0", "what is the capital of Germany?": "p4", "who designed Python?": "p5"}
EXAMPLES = [QAExample(f"q{i}", q, ("x",), (gold,)) for i, (q, gold) in enumerate(QUESTIONS.items())]


def posterior(retriever: DenseRetriever, example: QAExample, z: list[list[int]], weights: list[float]) -> Posterior:
    zero = torch.zeros(len(z))
    return Posterior(
        example=example,
        answer="x",
        candidates=retriever.search(example.question, 6),
        permutations=Permutations(torch.tensor(z), zero, zero),
        log_likelihood_m=zero,
        weights_m=torch.tensor(weights),
        baseline_m=None,
        log_omega_m=zero,
    )


def certain_of(retriever: DenseRetriever, example: QAExample, gold: str, n: int = 12) -> Posterior:
    """Reads the passage `gold` first, whatever the retriever thinks of it, and another one half of the time each."""
    candidates = retriever.search(example.question, n)
    i = candidates.ids.index(gold)
    others = [j for j in range(n) if j != i][:4]
    drawn = posterior(retriever, example, [[i, j] for j in others], [0.25] * 4)
    return Posterior(**{**vars(drawn), "candidates": candidates})


class TestPairs:
    def test_pairs_of_selected_and_unselected_candidates(self, retriever: DenseRetriever) -> None:
        # Read with probability: 2: 1.0, 1: 0.6, 0: 0.36, 3: 0.04, 4 and 5: 0.
        one = posterior(retriever, EXAMPLES[0], [[2, 1], [0, 2], [2, 3]], [0.6, 0.36, 0.04])
        contents = [p.contents for p in one.candidates.passages]
        assert training_pairs([one]) == [
            {"question": "who wrote Hamlet?", "positive": contents[1], "negative": contents[3]},
            {"question": "who wrote Hamlet?", "positive": contents[2], "negative": contents[3]},
        ]

    def test_a_flat_posterior_gives_no_pairs(self, retriever: DenseRetriever) -> None:
        flat = posterior(retriever, EXAMPLES[0], [[0, 1], [2, 3], [4, 5]], [1 / 3] * 3)
        assert training_pairs([flat]) == []


def settings(**changes: object) -> DROConfig:
    defaults = {
        "rounds": 2,
        "e_step.num_permutations": 3,
        "m_step.learning_rate": 5e-3,
        "m_step.gradient_accumulation_steps": 2,
    }
    refresh = {
        "train_encoder": True,
        "encoder_training.learning_rate": 0.05,
        "encoder_training.per_device_train_batch_size": 2,
        "supervised.num_train_epochs": 0,
    }
    return dro_config(**defaults | refresh | changes)


def test_the_encoder_learns_the_selected_passages(retriever: DenseRetriever, tmp_path: Path) -> None:
    """Passages that share no word with their question; the old index and the old encoder stay as they are."""
    gold = ["p2", "p6", "p10"]
    posteriors = [certain_of(retriever, e, g) for e, g in zip(EXAMPLES, gold, strict=True)]
    before = [retriever.search(e.question, 12).ids.index(g) for e, g in zip(EXAMPLES, gold, strict=True)]
    fingerprint, index = retriever.encoder.fingerprint, retriever.index
    train_encoder_and_reindex(
        retriever, posteriors, tmp_path / "new", settings(encoder_training__num_train_epochs=40), seed=1, progress=False
    )
    assert retriever.encoder.fingerprint == fingerprint
    assert retriever.index is index

    new_index, new_encoder = open_trained_retrieval(tmp_path / "new", retriever.encoder)
    assert new_encoder.fingerprint != fingerprint
    assert new_index.manifest.corpus_fingerprint == index.manifest.corpus_fingerprint
    assert new_index.manifest.factory == index.manifest.factory
    with torch.no_grad():
        retriever.adapter.up.fill_(0.1)
    retriever.replace(new_index, new_encoder)
    assert retriever.adapter.is_identity
    after = [retriever.search(e.question, 12).ids.index(g) for e, g in zip(EXAMPLES, gold, strict=True)]
    assert max(after) <= 1
    assert sum(before) > 6


def test_only_an_encoder_of_the_same_length_that_built_the_index(
    retriever: DenseRetriever, encoder: Encoder, tmp_path: Path
) -> None:
    other = tiny_encoder(["a b c"], dimension=16)
    index = build_index(Corpus.from_passages(PASSAGES), other, tmp_path / "other", progress=False)
    with pytest.raises(MismatchError):
        retriever.replace(index, encoder)
    with pytest.raises(MismatchError, match="vectors of length 24, as the old one does; it makes 16"):
        retriever.replace(index, other)


def test_a_run_resumes_restores_and_cleans_up(
    make_rag: Callable[[], RAG], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some passage must be likely enough to be read, whatever a random model thinks.
    monkeypatch.setattr("training.encoder_update.POSITIVE_ABOVE", 0.3)
    monkeypatch.setattr("training.encoder_update.NEGATIVE_BELOW", 0.3)
    whole, broken, resumed = make_rag(), make_rag(), make_rag()
    original = whole.retriever.encoder.fingerprint
    DROTrainer(whole, settings(rounds=3), train_dataset=EXAMPLES, output_dir=tmp_path / "whole", progress=False).train()
    assert whole.retriever.encoder.fingerprint != original
    kept = {p.name for p in (tmp_path / "whole").glob("retrieval-*")}
    assert kept == {"retrieval-3"}

    trainer = DROTrainer(
        broken, settings(rounds=3), train_dataset=EXAMPLES, output_dir=tmp_path / "run", progress=False
    )
    finish = trainer._finish_round

    def until_round_2(round: int, *args: object) -> None:
        if round == 2:  # refreshed, but not finished
            raise KeyboardInterrupt
        finish(round, *args)

    monkeypatch.setattr(trainer, "_finish_round", until_round_2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    DROTrainer(resumed, settings(rounds=3), train_dataset=EXAMPLES, output_dir=tmp_path / "run", progress=False).train(
        resume_from_checkpoint=True
    )
    assert resumed.retriever.encoder.fingerprint == whole.retriever.encoder.fingerprint
    assert all(torch.equal(a, b) for a, b in zip(learned(whole).values(), learned(resumed).values(), strict=True))

    answer = resumed.answer("who wrote Hamlet?")
    bundle = resumed.save_pretrained(tmp_path / "run/bundle")
    assert RAG.from_pretrained(bundle).answer("who wrote Hamlet?") == answer


def test_restoring_round_0_restores_its_index(
    make_rag: Callable[[], RAG], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.encoder_update.POSITIVE_ABOVE", 0.3)
    monkeypatch.setattr("training.encoder_update.NEGATIVE_BELOW", 0.3)
    rag = make_rag()
    original = rag.retriever.index
    scores = iter([0.9, 0.2, 0.3])

    def evaluate(rag: RAG, examples: object, *, progress: bool = True) -> SimpleNamespace:
        return SimpleNamespace(metrics={"f1": next(scores)}, intervals={})

    DROTrainer(
        rag,
        settings(),
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES,
        output_dir=tmp_path / "run",
        compute_metrics=evaluate,
        progress=False,
    ).train()
    assert rag.retriever.index is original
    assert (tmp_path / "run/retrieval-2").is_dir()
