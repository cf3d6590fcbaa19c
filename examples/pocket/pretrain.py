"""Make the pocket models: a tiny Llama that reads, and a tiny static encoder. One command, CPU only.

    python examples/pocket/pretrain.py --output rag/pocket --bf16

Everything is learned from an invented world: names are random syllables, facts are random, and only the wording
(`rag.encyclopedia.RELATIONS`) is that of the demo encyclopedia. So no real fact is ever seen, and answering about
the encyclopedia is reading, not remembering. The script prints the scores that go into the model cards.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import indexes  # noqa: F401  (sets the OpenMP wait policy before torch is imported)
from generator.generator import GenerationConfig, Generator
from generator.language_model import LanguageModel
from generator.prompts import AnswerPrompt
from indexes.corpus import Passage
from rag.encyclopedia.relations import RELATIONS
from rag.metrics import exact_match

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|end|>"]
NUMERIC = ("year", "number", "length", "height", "area", "population", "depth")
ONSETS = "b br c ch d dr f g gr h j k l m n p qu r s sh st t th tr v w z".split()
VOWELS = "a e i o u ai ea ia io ou y".split()
CODAS = ["", "", "n", "r", "l", "s", "m", "nd", "rt", "x", "ck"]


# -- the invented world ----------------------------------------------------------------------------------------


def syllables(rng: random.Random) -> str:
    count = rng.choice([1, 2, 2, 3, 3, 4])
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(count))


def name(rng: random.Random) -> str:
    words = [syllables(rng).capitalize() for _ in range(rng.choice([1, 1, 2, 2, 3]))]
    return ("the " if rng.random() < 0.1 else "") + " ".join(words)


def value(rng: random.Random, relation: str) -> str:
    if any(word in relation for word in NUMERIC):
        return str(rng.choice([rng.randint(1, 130), rng.randint(1000, 2024), rng.randint(100, 9999)]))
    kind = rng.random()
    return name(rng) if kind < 0.8 else syllables(rng) if kind < 0.9 else f"{name(rng)} and {name(rng)}"


@dataclass(frozen=True)
class Entity:
    passage: Passage
    facts: dict[str, str]
    name: str


def entity(rng: random.Random, must_have: str | None = None, subject: str | None = None) -> Entity:
    subject = subject or name(rng)
    chosen = rng.sample(sorted(RELATIONS), rng.randint(2, 5))
    if must_have is not None and must_have not in chosen:
        chosen[0] = must_have
    rng.shuffle(chosen)
    facts = {relation: value(rng, relation) for relation in chosen}
    sentences = [capitalised(said(rng.choice(RELATIONS[r].statements), subject, o)) for r, o in facts.items()]
    return Entity(Passage(subject, subject.removeprefix("the "), " ".join(sentences)), facts, subject)


def said(phrasing: str, subject: str, object: str) -> str:
    article = "an" if object[:1].lower() in "aeiou" else "a"
    return phrasing.format(subject=subject, object=object, object_an=f"{article} {object}")


def capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


@dataclass(frozen=True)
class Item:
    question: str
    passages: list[Passage]
    answer: str


def reading_item(rng: random.Random, num_passages: int) -> Item:
    """One question about one entity, its passage among distractors that state the same relation of others."""
    target = entity(rng)
    relation = rng.choice(sorted(target.facts))
    others = [entity(rng, must_have=relation if rng.random() < 0.6 else None) for _ in range(num_passages - 1)]
    passages = [target.passage, *(o.passage for o in others)]
    rng.shuffle(passages)
    question = capitalised(rng.choice(RELATIONS[relation].questions).format(subject=target.name))
    return Item(question, passages, target.facts[relation])


# -- tokenizer -------------------------------------------------------------------------------------------------


def train_tokenizer(rng: random.Random, vocab_size: int) -> PreTrainedTokenizerFast:
    def texts() -> Iterator[str]:
        for _ in range(4000):
            item = reading_item(rng, rng.randint(1, 4))
            yield AnswerPrompt().render(item.question, item.passages) + item.answer
        for word in [chr(65 + i) for i in range(26)]:
            yield f"[{word}] > [{word}]"

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
        model_max_length=2048,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


# -- the language model ----------------------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.06,  # nearer 1 / sqrt(hidden size): the usual 0.02 leaves attention flat for long
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Row:
    """Token ids, and which of them are answers (the others are only language-modelled)."""

    ids: list[int]
    is_answer: list[bool]


def row_of(*parts: tuple[list[int], bool]) -> Row:
    return Row([i for ids, _ in parts for i in ids], [flag for ids, flag in parts for _ in ids])


def reading_row(rng: random.Random, tokenizer: PreTrainedTokenizerFast, num_passages: int) -> Row:
    """What the pipeline will show: the real prompt, then the answer."""
    item = reading_item(rng, num_passages)
    prompt = AnswerPrompt().encode(tokenizer, item.question, item.passages, max_tokens=1900)
    return row_of((prompt, False), (answer_ids(tokenizer, item.answer), True))


def answer_ids(tokenizer: PreTrainedTokenizerFast, answer: str) -> list[int]:
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.convert_tokens_to_ids("<|end|>")]


def dense_row(rng: random.Random, tokenizer: PreTrainedTokenizerFast, num_passages: int) -> Row:
    """Passages, then questions about every fact in them: many answers for few tokens, so that reading is learned."""
    entities = [entity(rng) for _ in range(num_passages)]
    numbered = [f"[{i + 1}] Title: {e.passage.title} Text: {e.passage.text}" for i, e in enumerate(entities)]
    parts = [(tokenizer("\n".join(numbered), add_special_tokens=False)["input_ids"], False)]
    asked = [(e, relation) for e in entities for relation in e.facts]
    rng.shuffle(asked)
    for e, relation in asked:
        question = capitalised(rng.choice(RELATIONS[relation].questions).format(subject=e.name))
        text = f"\nQuestion: {question}\nYour answer: <|end|><|assistant|>"
        parts.append((tokenizer(text, add_special_tokens=False)["input_ids"], False))
        parts.append((answer_ids(tokenizer, e.facts[relation]), True))
    return row_of(*parts)


def repeat_row(rng: random.Random, tokenizer: PreTrainedTokenizerFast) -> Row:
    """A few random tokens or names, several times over: the shortest way to the attention heads that copy."""
    if rng.random() < 0.5:
        ids = [rng.randrange(len(SPECIAL), len(tokenizer)) for _ in range(rng.randint(4, 24))]
    else:
        names = ", ".join(name(rng) for _ in range(rng.randint(1, 4)))
        ids = tokenizer(names + ". ", add_special_tokens=False)["input_ids"]
    return row_of((ids, False), *[(ids, True)] * rng.randint(1, 4))


def rows_for(rng: random.Random, tokenizer: PreTrainedTokenizerFast, progress: float) -> Iterator[Row]:
    """The curriculum: copying, then reading short rows, then the real prompt with ever more distractors."""
    most = 2 + round(3 * progress)
    kind = rng.random()
    repeats, dense = (0.5, 1.0) if progress < 0.3 else (0.1, 0.6) if progress < 0.5 else (0.02, 0.15)
    num_passages = 1 if rng.random() < 0.6 - 0.4 * progress else rng.randint(2, most)
    while True:
        if kind < repeats:
            yield repeat_row(rng, tokenizer)
        elif kind < dense:
            yield dense_row(rng, tokenizer, min(num_passages, 3))
        else:
            yield reading_row(rng, tokenizer, num_passages)


def batches(
    rng: random.Random, tokenizer: PreTrainedTokenizerFast, tokens: int, progress: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of one kind within the token budget, and the loss weight of every target."""
    rows: list[Row] = []
    for row in rows_for(rng, tokenizer, progress):
        if rows and (len(rows) + 1) * max(len(r.ids) for r in [*rows, row]) > tokens:
            break
        rows.append(row)
    width = max(len(row.ids) for row in rows)
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    answers, others = torch.zeros(len(rows), width), torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.ids)] = torch.tensor(row.ids)
        answers[i, : len(row.ids)] = torch.tensor(row.is_answer).float()
        others[i, : len(row.ids)] = 1 - answers[i, : len(row.ids)]
    return input_ids, answers / answers.sum() + 0.3 * others / others.sum()


def pretrain(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    model = new_model(tokenizer)
    print(f"parameters: {sum(p.numel() for p in model.parameters()):,}", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)
    started, running = time.perf_counter(), 0.0
    for step in range(1, args.steps + 1):
        progress = step / args.steps
        rate = args.lr * min(1.0, step / 100) * (1.0 if progress < 0.6 else max(0.02, (1 - progress) / 0.4))
        for group in optimizer.param_groups:
            group["lr"] = rate
        input_ids, weights = batches(rng, tokenizer, args.tokens, progress)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
            logits = model(input_ids=input_ids, attention_mask=(input_ids != tokenizer.pad_token_id).long()).logits
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), input_ids[:, 1:].flatten(), reduction="none"
        )
        loss = (losses * weights[:, 1:].flatten()).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running += float(loss.detach())
        if step % 100 == 0:
            print(
                f"step {step} {(time.perf_counter() - started) / 60:.1f} min loss {running / 100:.3f}",
                flush=True,
            )
            running = 0.0
        if step % 400 == 0:
            save(model, tokenizer, args.output / "base")
            print(json.dumps(scores(args.output / "base", 60)), flush=True)
    return model


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.tie_weights()
    half.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def scores(folder: Path, count: int) -> dict[str, float]:
    """Exact match on fresh invented questions, by number of passages."""
    generator = Generator(
        LanguageModel.from_pretrained(folder, dtype="float32"), config=GenerationConfig(max_new_tokens=24)
    )
    result = {}
    for num_passages in (1, 3, 5):
        rng = random.Random(10_000 + num_passages)
        items = [reading_item(rng, num_passages) for _ in range(count)]
        answers = generator.generate([i.question for i in items], [i.passages for i in items])
        right = [exact_match(a, [i.answer]) for a, i in zip(answers, items, strict=True)]
        result[f"exact_match, {num_passages} passage(s)"] = sum(right) / count
    return result


# -- the encoder -----------------------------------------------------------------------------------------------


def train_encoder(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> None:
    """A static embedding trained by in-batch negatives: question against the passage that answers it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(args.seed)
    rng = random.Random(args.seed + 1)
    static = StaticEmbedding(tokenizer.backend_tokenizer, embedding_dim=192)
    model = SentenceTransformer(modules=[static], device="cpu")
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(args.encoder_steps):
        items = [reading_item(rng, 1) for _ in range(256)]
        questions = model(model.preprocess([i.question for i in items]))["sentence_embedding"]
        passages = model(model.preprocess([i.passages[0].contents for i in items]))["sentence_embedding"]
        normalise = torch.nn.functional.normalize
        similarity = 20 * normalise(questions, dim=-1) @ normalise(passages, dim=-1).T
        loss = torch.nn.functional.cross_entropy(similarity, torch.arange(len(items)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"encoder step {step} loss {float(loss.detach()):.3f}", flush=True)
    model.half().save_pretrained(str(args.output / "encoder"), create_model_card=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--encoder_steps", type=int, default=300)
    parser.add_argument("--vocab_size", type=int, default=640)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--only", choices=["base", "encoder"])
    args = parser.parse_args()
    tokenizer = train_tokenizer(random.Random(args.seed), args.vocab_size)
    if args.only != "base":
        train_encoder(args, tokenizer)
    if args.only != "encoder":
        model = pretrain(args, tokenizer)
        save(model, tokenizer, args.output / "base")
        print(json.dumps(scores(args.output / "base", 200)))


if __name__ == "__main__":
    main()
