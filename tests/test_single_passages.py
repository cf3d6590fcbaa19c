"""What single passages say of the answer is scored once, kept for as many rounds as asked for, and saved with a run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import PASSAGES, dro_config, randomize_adapters

from generator.generator import Generator
from indexes.errors import MismatchError, UsageError
from rag.pipeline import RAG
from training.questions.example import QAExample
from training.single_passages import KEPT_FILE, SinglePassageQuestion, SinglePassages
from training.trainer import DROTrainer

HAMLET = SinglePassageQuestion("q1", "who wrote Hamlet?", "Shakespeare", PASSAGES[:3])
BERLIN = SinglePassageQuestion("q2", "what is the capital of Germany?", "Berlin", PASSAGES[3:6])


def scored(generator: Generator, one: SinglePassageQuestion) -> torch.Tensor:
    """By the generator as it is now."""
    return torch.tensor([generator.log_prob(one.question, [p], one.answer) for p in one.passages])


def learn(generator: Generator, seed: int) -> None:
    """Another generator, which gives other numbers."""
    before = scored(generator, HAMLET)
    randomize_adapters(generator.language_model, seed=100 + seed)
    assert (scored(generator, HAMLET) - before).abs().min() > 1e-3


@pytest.mark.parametrize("rounds", [1, 2, None])
def test_numbers_are_used_for_so_many_rounds(generator: Generator, rounds: int | None) -> None:
    singles = SinglePassages(generator, rounds)
    expected: list[torch.Tensor] = []
    for round in range(1, 6):
        learn(generator, round)
        if round == 1 or (rounds is not None and (round - 1) % rounds == 0):
            expected = [scored(generator, one) for one in (HAMLET, BERLIN)]
        found = singles.log_likelihoods([HAMLET, BERLIN], round)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_only_what_is_not_kept_is_scored(generator: Generator) -> None:
    """Another passage, another answer, another question with the same passage."""
    singles, model = SinglePassages(generator, None), generator.language_model
    first = singles.log_likelihoods([HAMLET], 1)[0]
    assert len(singles) == 3
    learn(generator, 1)
    before = model.tokens_read
    assert torch.equal(singles.log_likelihoods([HAMLET], 2)[0], first)
    assert model.tokens_read == before
    more = SinglePassageQuestion("q1", HAMLET.question, "Shakespeare", [PASSAGES[4], *PASSAGES[:3]])
    found = singles.log_likelihoods([more], 2)[0]
    assert torch.equal(found[1:], first)
    assert found[0].item() == pytest.approx(generator.log_prob(HAMLET.question, PASSAGES[4:5], "Shakespeare"), abs=1e-4)
    assert len(singles) == 4
    for other in (
        SinglePassageQuestion("q1", HAMLET.question, "Marlowe", PASSAGES[:3]),
        SinglePassageQuestion("q3", HAMLET.question, "Shakespeare", PASSAGES[:3]),
    ):
        torch.testing.assert_close(
            singles.log_likelihoods([other], 2)[0], scored(generator, other), rtol=1e-4, atol=1e-4
        )
    assert len(singles) == 10


def test_what_is_kept_is_written_and_read_exactly(generator: Generator, tmp_path: Path) -> None:
    singles, read = SinglePassages(generator, 2), SinglePassages(generator, 2)
    expected = singles.log_likelihoods([HAMLET, BERLIN], 3)
    singles.write(tmp_path)
    learn(generator, 1)
    read.log_likelihoods([SinglePassageQuestion("q9", "which?", "Mars", PASSAGES[:1])], 3)
    read.read(tmp_path)
    assert len(read) == 6
    for one, other in zip(read.log_likelihoods([HAMLET, BERLIN], 4), expected, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(read.log_likelihoods([HAMLET], 5)[0], expected[0]), "its two rounds are over"
    (tmp_path / KEPT_FILE).write_text("[")
    with pytest.raises(MismatchError, match=KEPT_FILE):
        read.read(tmp_path)
    read.read(tmp_path / "nothing")
    assert len(read) == 0


def test_processes_exchange_what_they_have_computed(generator: Generator) -> None:
    one, other = SinglePassages(generator, None), SinglePassages(generator, None)
    one.log_likelihoods([HAMLET], 1)
    other.log_likelihoods([BERLIN], 1)
    for new in (one.take_new(), other.take_new()):
        one.add(new)
        other.add(new)
    assert one.take_new() == other.take_new() == {}
    learn(generator, 1)
    found, again = (torch.cat(s.log_likelihoods([HAMLET, BERLIN], 2)) for s in (one, other))
    assert torch.equal(found, again)


def test_a_resumed_run_uses_what_its_checkpoint_kept(make_rag: Callable[..., RAG], tmp_path: Path) -> None:
    """Control: without the file the second round scores single passages anew, and predicts other numbers."""
    examples = [
        QAExample("q1", "who wrote Hamlet?", ("Shakespeare",)),
        QAExample("q2", "what is the capital of Germany?", ("Berlin",)),
    ]
    config = dro_config(rounds=2, supervised__num_train_epochs=0, m_step__learning_rate=1e-2)

    def second_round(folder: Path, *, resume: bool) -> dict[str, float]:
        trainer = DROTrainer(make_rag(), config, train_dataset=examples, output_dir=folder, progress=False)
        trainer.train(resume_from_checkpoint=folder / "round-1" if resume else False)
        return {k: v for k, v in trainer.history[2].items() if k not in ("seconds", "tokens_per_second")}

    whole = second_round(tmp_path / "run", resume=False)
    assert {"imputation_rmse", "scored_weight"} <= set(whole)
    assert second_round(tmp_path / "run", resume=True) == whole
    (tmp_path / "run/round-1" / KEPT_FILE).unlink()
    assert second_round(tmp_path / "run", resume=True) != whole


def test_a_number_of_rounds_is_positive() -> None:
    with pytest.raises(UsageError, match="single_passage_rounds must be at least 1 or None"):
        dro_config(e_step__single_passage_rounds=0)
