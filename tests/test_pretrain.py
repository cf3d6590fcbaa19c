"""The script that makes the tiny models: its copying start copies, its rows are right, a killed run is continued."""

import argparse
import importlib.util
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from generator.prompts import RANKING_SEPARATOR, AnswerPrompt, Identifiers, RankingPrompt
from rag.worlds.world import reading_item

SCRIPT = Path(__file__).parents[1] / "examples/tiny_models/pretrain.py"


@pytest.fixture(scope="module")
def pretrain() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tiny_pretrain", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer(pretrain: ModuleType) -> PreTrainedTokenizerFast:
    return pretrain.train_tokenizer(7, 1024)  # type: ignore[no-any-return]


def arguments(**changes: object) -> argparse.Namespace:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 3, "num_heads": 4, "seed": 7}
    training = {"lr": 4e-4, "muon_lr": 1.5e-3, "optimizer": "muon", "steps": 4, "tokens": 600, "micro_tokens": 512}
    rest = {"lm_weight": 0.3, "lm_share": 0.25, "bf16": False, "log_every": 100, "save_every": 2}
    return argparse.Namespace(**{**sizes, **training, **rest, **changes})


class TestTokenizer:
    @pytest.mark.parametrize(
        "text",
        ["Paris", "8,849 m", "U.S.", "C++", "Musée d'Orsay", "a,b and 3", "[A] > [B]", "<ab> <cd>", 'say "hi" (now)'],
    )
    def test_tokenizer_round_trips_text(self, tokenizer: PreTrainedTokenizerFast, text: str) -> None:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text

    def test_a_word_has_the_same_tokens_in_every_position(self, tokenizer: PreTrainedTokenizerFast) -> None:
        name = tokenizer("Kalindra")["input_ids"]
        for text in ("see Kalindra", "[Kalindra", '"Kalindra', "Title: Kalindra"):
            assert tokenizer(text)["input_ids"][-len(name) :] == name

    def test_prompt_wording_has_few_tokens(self, tokenizer: PreTrainedTokenizerFast) -> None:
        item = reading_item(random.Random(1), 2)
        names = Identifiers.for_tokenizer(tokenizer, 20)
        content = sum(len(tokenizer(f"{p.title} {p.text}")["input_ids"]) for p in item.passages)
        asked = len(tokenizer(item.question.question)["input_ids"])
        answer = AnswerPrompt().encode(tokenizer, item.question.question, item.passages, max_tokens=2000)
        rank = RankingPrompt().encode(tokenizer, item.question.question, item.passages, names, max_tokens=2000)
        assert len(answer) - content - 2 * asked < 25
        assert len(rank) - content - 2 * asked < 35
        assert names.style == "letters"


class TestCopying:
    def test_initial_heads_attend_to_the_successor_of_the_same_token(
        self, pretrain: ModuleType, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        """Sequence s s: at token i of the second copy an induction head looks at token i + 1 of the first."""
        model = pretrain.new_model(tokenizer, arguments(hidden_size=256, num_heads=4, intermediate_size=64))
        model.set_attn_implementation("eager")
        n = 40
        half = torch.randint(10, 900, (1, n), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            layers = model(input_ids=torch.cat([half, half], 1), output_attentions=True).attentions
        found = [float(layers[i][0, head].diagonal(1 - n)[1:].mean()) for i in (1, 2) for head in (0, 1)]
        back = [float(layers[0][0, 0].diagonal(-1)[1:].mean()), float(layers[0][0, 1].diagonal(-2)[4:].mean())]
        assert min(found) > 0.25, found  # at random it would be 1 / 60
        assert min(back) > 0.9, back

    def test_initial_heads_identify_the_passage_of_a_token(
        self, pretrain: ModuleType, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        model = pretrain.new_model(tokenizer, arguments(hidden_size=256, num_heads=4, intermediate_size=64))
        model.set_attn_implementation("eager")
        item = reading_item(random.Random(2), 6)
        names = Identifiers.for_tokenizer(tokenizer, 6, style="numbers")
        ids = RankingPrompt().encode(tokenizer, item.question.question, item.passages, names, max_tokens=2000)
        bracket = tokenizer.convert_tokens_to_ids("[")
        headers = [i for i in range(1, len(ids)) if ids[i - 1] == bracket and ids[i] in names.token_ids][:6]
        with torch.no_grad():
            attention = model(input_ids=torch.tensor([ids]), output_attentions=True).attentions[1][0, 2]
        ends = [*headers[1:], headers[-1] + 40]
        own = [
            float(attention[i, header])
            for header, end in zip(headers, ends, strict=True)
            for i in range(header + 10, end)
        ]
        assert sum(own) / len(own) > 0.8


class TestRows:
    def test_replies_are_exactly_the_answers(self, pretrain: ModuleType, tokenizer: PreTrainedTokenizerFast) -> None:
        source, kinds = pretrain.Rows(tokenizer, random.Random(3), 0.8), set()
        assistant = [tokenizer.convert_tokens_to_ids("<|assistant|>")]
        openings = [*tokenizer("[")["input_ids"], *tokenizer(RANKING_SEPARATOR)["input_ids"]]
        for _ in range(300):
            row = source.draw()
            for kind, (start, end) in zip(row.kinds, row.replies, strict=True):
                if kind.startswith(("ranking", "finding", "pointing")):  # of these only the identifiers are replies
                    assert row.ids[start - 1] in openings
                    assert tokenizer.decode(row.ids[start]).strip().isdigit()
                else:
                    assert row.ids[start - 1] in assistant
                    assert row.ids[end - 1] == tokenizer.convert_tokens_to_ids("<|end|>")
                    assert tokenizer.decode(row.ids[start : end - 1]).strip()
                kinds.add(kind)
            reading = ("one", "dense", "many", "two-hop")
            asked = [start for kind, (start, _) in zip(row.kinds, row.replies, strict=True) if kind in reading]
            assert list(row.sources) == asked
        assert kinds >= {"one", "many", "pointing", "finding", "ranking", "ranking, answered", "ability", "dense"}

    def test_the_source_passage_contains_the_answer(
        self, pretrain: ModuleType, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        source, seen = pretrain.Rows(tokenizer, random.Random(6), 0.8), set()
        for _ in range(60):
            row = source.draw()
            first = row.replies[0][0]
            if first not in row.sources:
                continue
            prompt = tokenizer.decode(row.ids[:first])
            passages = re.split(r"\n?\[\d\] Title: ", prompt)[1:]
            end = next(end for start, end in row.replies if start == first)
            answer = tokenizer.decode(row.ids[first : end - 1])
            assert answer in passages[row.sources[first]]
            seen.add(row.sources[first])
        assert len(seen) > 2

    def test_the_source_loss_uses_only_states_at_answer_positions(
        self, pretrain: ModuleType, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        rows = [r for r in pretrain.draw_rows(tokenizer, random.Random(5), 0.9, 4000) if r.sources]
        longest = max(len(row.ids) for row in rows)
        hidden = torch.randn(len(rows), longest, 64, generator=torch.Generator().manual_seed(1), requires_grad=True)
        pretrain.source_loss(hidden, rows).backward()
        moved = {(i, t) for i, t in hidden.grad.abs().sum(-1).nonzero().tolist()}  # type: ignore[union-attr]
        assert moved == {(i, start - 1) for i, row in enumerate(rows) for start in row.sources}
        assert float(pretrain.source_loss(hidden, [pretrain.Row([], [], [])])) == 0

    def test_the_curriculum_grows_harder(self, pretrain: ModuleType, tokenizer: PreTrainedTokenizerFast) -> None:
        def mean_length(progress: float) -> float:
            source = pretrain.Rows(tokenizer, random.Random(4), progress)
            return sum(len(source.draw().ids) for _ in range(150)) / 150

        assert mean_length(0.0) < mean_length(0.5) < mean_length(0.9)

    def test_batches_contain_every_sequence_once_and_score_every_reply(
        self, pretrain: ModuleType, tokenizer: PreTrainedTokenizerFast
    ) -> None:
        rows = pretrain.draw_rows(tokenizer, random.Random(5), 0.5, 3000)
        parts = pretrain.batches(rows, 1024, tokenizer.pad_token_id, 0.25, random.Random(0))
        assert sorted(map(id, rows)) == sorted(id(r) for b in parts for r in b.rows)
        for batch in parts:
            assert batch.input_ids.numel() <= max(1024, batch.input_ids.shape[1])
            assert bool((batch.scored | (batch.reply_weights[:, 1:] == 0)).all())
            for i, row in enumerate(batch.rows):
                assert not batch.scored[i, len(row.ids) - 1 :].any()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(
    pretrain: ModuleType, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    whole = pretrain.pretrain(arguments(work_dir=tmp_path / "whole"), tokenizer)
    half = arguments(work_dir=tmp_path / "half")
    checkpoint = pretrain.checkpoint

    class Killed(Exception):
        pass

    def kill(*args: object) -> None:
        checkpoint(*args)
        raise Killed

    pretrain.checkpoint = kill
    try:
        with pytest.raises(Killed):
            pretrain.pretrain(half, tokenizer)
    finally:
        pretrain.checkpoint = checkpoint
    continued = pretrain.pretrain(half, tokenizer)
    for one, other in zip(whole.parameters(), continued.parameters(), strict=True):
        assert torch.equal(one, other)
