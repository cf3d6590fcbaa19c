"""The models inside the package: their size, their form, and that they do what their cards say."""

import json
import random
import re
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoTokenizer

import indexes.tiny_encoder
import rag.tiny_base
from generator.configs import DecodingConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from generator.prompts import AnswerPrompt, Identifiers
from indexes.encoder import Encoder
from rag.forgetting.general_tasks import make_general_tasks
from rag.forgetting.measurement import measure_general_tasks
from rag.metrics import exact_match
from rag.tiny_base import TINY, base_path
from rag.worlds.world import reading_item

FOLDERS = {
    "base": Path(rag.tiny_base.__file__).parent / "base",
    "encoder": Path(indexes.tiny_encoder.__file__).parent / "encoder",
}
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def generator() -> Generator:
    model = LanguageModel.from_pretrained(base_path(TINY), dtype="float32", device="cpu")
    return Generator(model, config=DecodingConfig(max_new_tokens=32))


def card_scores(name: str) -> dict[str, float]:
    card = (FOLDERS[name] / "README.md").read_text(encoding="utf-8")
    return {n.strip(): float(v) for n, v in re.findall(r"^\| ([^|]+) \| ([\d.]+) \|$", card, re.MULTILINE)}


def test_the_base_is_small_and_of_a_known_architecture() -> None:
    config = AutoConfig.from_pretrained(FOLDERS["base"])
    assert config.architectures == ["LlamaForCausalLM"]
    assert config.max_position_embeddings >= 1024
    assert sum(f.stat().st_size for f in FOLDERS["base"].iterdir()) <= 8 * MEGABYTE
    assert not [f for folder in FOLDERS.values() for f in folder.iterdir() if f.suffix in (".bin", ".pt")]


def test_the_base_has_at_most_four_million_parameters(generator: Generator) -> None:
    parameters = generator.language_model.base_model.named_parameters()
    assert sum(p.numel() for n, p in parameters if "lora_" not in n) <= 4_000_000


def test_the_encoder_is_small_and_static() -> None:
    assert sum(f.stat().st_size for f in FOLDERS["encoder"].iterdir()) <= 2 * MEGABYTE
    modules = json.loads((FOLDERS["encoder"] / "modules.json").read_text(encoding="utf-8"))
    assert [m["type"].rsplit(".", 1)[-1] for m in modules] == ["StaticEmbedding"]


def test_the_tokenizer_needs_few_tokens_for_the_default_prompts() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS["base"])
    assert tokenizer.chat_template is not None
    assert Identifiers.for_tokenizer(tokenizer, 20).style == "letters"
    assert len(AnswerPrompt().encode(tokenizer, "Who?", [], max_tokens=100)) < 20


def test_the_base_answers_from_its_passage(generator: Generator) -> None:
    rng = random.Random("test")
    items = [reading_item(rng, 1) for _ in range(60)]
    answers = generator.generate([i.question.question for i in items], [i.passages for i in items])
    right = [exact_match(a, i.question.golden_answers) for a, i in zip(answers, items, strict=True)]
    expected = card_scores("base")["one-hop, gold passage alone"]
    assert sum(right) / len(right) > expected - 0.15  # four standard errors of 60 questions at .95


def test_the_base_solves_general_tasks(generator: Generator) -> None:
    found = measure_general_tasks(generator, make_general_tasks(72, seed=123))
    assert found.general > card_scores("base")["general abilities"] - 0.15
    assert found.kl_drift == pytest.approx(0.0, abs=1e-6)


def test_the_encoder_ranks_the_passage_of_a_question_high() -> None:
    encoder = Encoder.from_pretrained(TINY, device="cpu")
    rng = random.Random("encoder")
    items = [reading_item(rng, 2, hardness=0.0) for _ in range(60)]
    questions = encoder.encode_questions([i.question.question for i in items])
    nearer = 0
    for item, vector in zip(items, questions, strict=True):
        scores = encoder.encode_passages(item.passages) @ vector
        nearer += item.passages[int(scores.argmax())].id in item.question.gold_ids
    assert nearer > 50
