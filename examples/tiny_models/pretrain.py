"""Make the tiny models: a tiny Llama that reads, and a tiny static encoder. One command, CPU or GPU.

    python examples/tiny_models/pretrain.py --work_dir tiny-run --output tiny-models

The package takes them from `rag/tiny_base/base` and `indexes/tiny_encoder/encoder`.

Everything is learned from an invented world (`rag.worlds.world`): names and facts are made up afresh at every step,
so nothing can be memorised and no real fact is ever seen. Answering about the demo encyclopedia is then reading.
A killed run continues from `--work_dir` when the same command is given again; every step's text is a function of
(seed, step), so it ends with the same weights. The scores that it prints go into the model cards.

    python examples/tiny_models/pretrain.py --work_dir tiny-run --output rag/tiny_base --only scores

prints those of the base that stands in `--output`.

    tokenizer -> steps of (draw rows, pack, forward, backward) -> fp16 weights -> scores -> encoder
"""

import argparse
import json
import random
import string
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from generator.configs import DecodingConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from generator.prompts import (
    ANSWER_TEMPLATE,
    PASSAGE_TEMPLATE,
    RANKING_OPEN,
    RANKING_SEPARATOR,
    RANKING_TEMPLATE,
    AnswerPrompt,
    Identifiers,
    RankingPrompt,
    encode_without_special_tokens,
    render_chat,
)
from indexes import build_index
from indexes.corpora.passage import Passage
from indexes.encoder import Encoder
from rag.evaluation.evaluation import search_metrics
from rag.forgetting.general_tasks import KINDS, draw_general_task, make_general_tasks
from rag.forgetting.measurement import measure_general_tasks
from rag.metrics import exact_match
from rag.worlds.encyclopedia.render import passages, questions
from rag.worlds.world import Cluster, Item, Question, invent_cluster, ranking, reading_item, write_world
from retriever.dense import DenseRetriever
from training.questions.loading import load_examples

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|end|>"]
OPENING = ["[", "(", "<", "{", '"']
CONTEXT = 2048
WHICH_PASSAGE = "Which passage says so?"
# Of a token of a reply. What the pipeline itself will ask for counts more than what only leads there.
REPLY_WEIGHTS = {
    **{"one": 1.5, "many": 2.0},
    **{"ranking": 2.5, "ranking two-hop": 4.0, "ranking, answered": 0.5, "finding": 0.5},
}
QUESTIONS_PER_LIST = 12
TASKS_PER_ROW = 6
SOURCE_WEIGHT = 0.3
BELONGING = 2.1
# As in the answer prompt: what was learned about pointing there holds here.
IDENTIFIERS, MOST_PASSAGES = "numbers", 9
RANKING_FROM, RANKING_RAMP = 0.15, 0.45


# -- tokenizer -------------------------------------------------------------------------------------------------


def fixed_wording() -> list[str]:
    """The literal parts of the default prompts: one token each, or they would be most of every row."""
    parts = [RANKING_SEPARATOR, "a numerical", "an alphabetical"]
    for template in (ANSWER_TEMPLATE, RANKING_TEMPLATE, PASSAGE_TEMPLATE):
        parts += [literal for literal, *_ in string.Formatter().parse(template) if len(literal) > 5]
    return list(dict.fromkeys(parts))


def train_tokenizer(seed: int, vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which a word has the same tokens wherever it stands, so that copying is copying.

    Usually " Paris" in a passage and "Paris" at the start of an answer or after "[" are different tokens. Here
    every stretch of text gets a leading space that decoding takes away again.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}|[^\p{L}\p{N}]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    undo = [decoders.Replace(f"{sign} ", sign) for sign in OPENING]
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse(), *undo, decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(random.Random(seed)), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in [*fixed_wording(), *OPENING]])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[1],
        additional_special_tokens=SPECIAL[2:],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def load_or_train_tokenizer(args: argparse.Namespace) -> PreTrainedTokenizerFast:
    """The tokenizer of this run: a continued run must not train another one."""
    folder = args.work_dir / "tokenizer"
    if not folder.is_dir():
        train_tokenizer(args.seed, args.vocab_size).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _tokenizer_texts(rng: random.Random) -> Iterator[str]:
    for _ in range(6000):
        item = reading_item(rng, 2, hops=rng.choice((1, 2)))
        yield from (f"{p.title} {p.text}" for p in item.passages)
        task = draw_general_task(rng)
        yield from (item.question.question, item.question.golden_answers[0], task.prompt, task.answer)


# -- rows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """Token ids, and where the replies are, each of a kind; the other tokens are only language-modelled."""

    kinds: list[str]
    ids: list[int]
    replies: list[tuple[int, int]]
    sources: dict[int, int] = field(default_factory=dict)
    """By the position where an answer starts, the place in the list of the passage that holds it."""


class Rows:
    """Draws training rows in the pipeline's own formats.

    Args:
        tokenizer: The tiny tokenizer.
        rng: Source of every choice.
        progress: 0 to 1 through the training: sets the number and hardness of distractors.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rng: random.Random, progress: float) -> None:
        self.tokenizer, self.rng, self.progress = tokenizer, rng, progress
        self.end = int(tokenizer.convert_tokens_to_ids("<|end|>"))

    def draw(self) -> Row:
        """One row of a kind drawn by the curriculum."""
        late = self.progress
        kinds = {
            "ability": 0.35 - 0.10 * late,
            "one": 0.34 - 0.24 * late,
            "dense": 0.30,
            "many": 0.06 + 0.24 * late,
            "two-hop": 0.04 + 0.12 * late,
            "finding": 0.12 - 0.10 * late,
            # The lists are long, and once they are ranked as well as the retriever does, reading needs the tokens.
            "ranking": 0.0 if late < RANKING_FROM else 0.10 - 0.04 * (self._ranking_ramp() == 1),
        }
        kind = self.rng.choices(list(kinds), list(kinds.values()))[0]
        special = {"ability": self._ability, "finding": self._finding, "ranking": self._ranking}
        return special[kind]() if kind in special else self._reading(kind)

    def _reading(self, kind: str) -> Row:
        """Questions about one list of passages, turn by turn: many answers for few tokens."""
        most = 2 + round(3 * min(1.0, self.progress / 0.4))
        asked = {"one": 1, "dense": 8, "many": 1, "two-hop": 4}[kind]
        if kind == "two-hop":
            listed = self._two_hop_list(self.rng.randint(2, most))
        else:
            listed = self._list(1 if kind == "one" else self.rng.randint(1 if kind == "dense" else 2, most))
        place = {p.id: i for i, p in enumerate(listed.passages)}
        first, *others = listed.questions[:asked]
        prompt = AnswerPrompt().encode(self.tokenizer, first.question, listed.passages, max_tokens=1900)
        row = self._answered(Row([], [], []), kind, prompt, first, place)
        if kind in ("many", "two-hop"):
            # Pointing at a passage is what ranking needs, and here it costs a few tokens only.
            asking = render_chat(self.tokenizer, WHICH_PASSAGE) + encode_without_special_tokens(
                self.tokenizer, RANKING_OPEN
            )
            row = self._identified(row, "pointing", asking, str(place[first.gold_ids[-1]] + 1))
        for question in others:
            text = f"\nQuestion: {question.question}\nYour answer: "
            row = self._answered(row, kind, render_chat(self.tokenizer, text), question, place)
        return row

    def _answered(self, row: Row, kind: str, prompt: list[int], question: Question, place: dict[str, int]) -> Row:
        """`row` continued by a question and its answer, which is found in a passage known here."""
        row = self._continued(row, kind, prompt, question.golden_answers[0])
        return replace(row, sources=row.sources | {row.replies[-1][0]: place[question.gold_ids[-1]]})

    def _list(self, num_passages: int) -> Cluster:
        """Passages with questions about any of them; the later, the more alike."""
        hard = self.rng.random() < min(0.8, 0.3 + self.progress)
        return self._families(num_passages, 1 if hard else self.rng.randint(1, min(num_passages, 3)))

    def _two_hop_list(self, num_passages: int) -> Cluster:
        while True:
            cluster = invent_cluster(self.rng, hops=2, similar_names=num_passages - 2)
            if cluster.questions:
                break
        gold_ids = self.rng.choice(cluster.questions).gold_ids
        others = [p for p in cluster.passages if p.id not in gold_ids]
        passages = [p for p in cluster.passages if p.id in gold_ids]
        passages += self.rng.sample(others, min(len(others), num_passages - 2))
        return self._shuffled(passages, cluster.questions)

    def _families(self, num_passages: int, count: int) -> Cluster:
        """Passages of `count` families together: alike within each, easily told apart between them."""
        while True:
            sizes = [num_passages // count + (i < num_passages % count) for i in range(count)]
            families = [invent_cluster(self.rng, similar_names=size - 1) for size in sizes]
            parts = [self.rng.sample(f.passages, size) for f, size in zip(families, sizes, strict=True)]
            listed = self._shuffled([p for part in parts for p in part], [q for f in families for q in f.questions])
            if listed.questions:
                return listed

    def _shuffled(self, passages: list[Passage], questions: list[Question]) -> Cluster:
        kept = {p.id for p in passages}
        answerable = [q for q in questions if kept.issuperset(q.gold_ids)]
        return Cluster(self.rng.sample(passages, len(passages)), self.rng.sample(answerable, len(answerable)))

    def _finding(self) -> Row:
        """Which of some short texts holds these words? Identifiers learn here, for few tokens, whose they are."""
        cluster = self._ranking_list()
        texts = [" ".join(p.text.split()[: self.rng.randint(3, 24)]) for p in cluster.passages]
        lines = "\n".join(
            PASSAGE_TEMPLATE.format(identifier=i, title=p.title, text=text)
            for i, (p, text) in enumerate(zip(cluster.passages, texts, strict=True), 1)
        )
        row = Row([], [], [])
        for _ in range(QUESTIONS_PER_LIST):
            number = self.rng.randrange(len(texts))
            words = f"{cluster.passages[number].title} {texts[number]}".split()
            length = self.rng.randint(1, 5)
            start = self.rng.randrange(max(1, len(words) - length + 1))
            phrase = " ".join(words[start : start + length])
            if sum(phrase in f"{p.title} {t}" for p, t in zip(cluster.passages, texts, strict=True)) > 1:
                continue
            asked = f"Which passage says: {phrase}" if row.ids else f"{lines}\nWhich passage says: {phrase}"
            prompt = render_chat(self.tokenizer, asked) + encode_without_special_tokens(self.tokenizer, RANKING_OPEN)
            row = self._identified(row, "finding", prompt, str(number + 1))
        return row if row.ids else self._ability()

    def _identified(self, row: Row, kind: str, prompt: list[int], name: str) -> Row:
        """`row` continued by an identifier and what closes it, which is the same everywhere and no reply."""
        row = self._continued(row, kind, prompt, name + "]")
        start, _ = row.replies[-1]
        return replace(row, replies=[*row.replies[:-1], (start, start + 1)])

    def _ranking(self) -> Row:
        return self._ranking_two_hop() if self.rng.random() < 0.2 else self._ranking_dense()

    def _ranking_dense(self) -> Row:
        """Many questions about one list of passages, turn by turn: the list is long, and an identifier is short."""
        family = self._ranking_list()
        names = Identifiers.for_tokenizer(self.tokenizer, len(family.passages), style=IDENTIFIERS).names
        position = {p.id: i for i, p in enumerate(family.passages)}
        row = Row([], [], [])
        for question in family.questions[:QUESTIONS_PER_LIST]:
            gold = position[question.gold_ids[0]]
            prompt = self._ranking_prompt(question.question, family.passages, asked_before=bool(row.ids))
            kind, given = self._given(question, names, gold)
            row = self._identified(
                row, kind, prompt + encode_without_special_tokens(self.tokenizer, given), names[gold]
            )
        return row

    def _ranking_list(self) -> Cluster:
        total = self._list_length()
        return self._families(total, min(total, self.rng.randint(1, 4 - round(2 * self._ranking_ramp()))))

    def _list_length(self) -> int:
        return self.rng.randint(2, 3 + round((MOST_PASSAGES - 3) * self._ranking_ramp()))

    def _ranking_ramp(self) -> float:
        return min(1.0, max(0.0, (self.progress - RANKING_FROM) / RANKING_RAMP))

    def _given(self, question: Question, names: Sequence[str], gold: int) -> tuple[str, str]:
        """What stands before the identifier: usually nothing.

        Or the answer, because finding the passage that holds an answer is learned first and finding the one that
        holds an answer not yet given comes after it. Or a wrong identifier, because in a permutation the gold
        passage may also come second.
        """
        chance = self.rng.random()
        others = [name for i, name in enumerate(names) if i != gold]
        if chance < 0.4 - 0.25 * self._ranking_ramp():
            return "ranking, answered", f"{question.golden_answers[0]} ["
        if chance > 0.8 and others:
            return "ranking", f"[{self.rng.choice(others)}{RANKING_SEPARATOR}"
        return "ranking", RANKING_OPEN

    def _ranking_prompt(self, question: str, passages: Sequence[Passage], *, asked_before: bool) -> list[int]:
        if asked_before:
            return render_chat(self.tokenizer, f"Search Query: {question}\nYour output: ")
        names = Identifiers.for_tokenizer(self.tokenizer, len(passages), style=IDENTIFIERS)
        text = RankingPrompt().render(question, passages, names)
        return render_chat(self.tokenizer, text)

    def _ranking_two_hop(self) -> Row:
        item = reading_item(self.rng, self._list_length(), hops=2, hardness=self.rng.random())
        names = Identifiers.for_tokenizer(self.tokenizer, len(item.passages), style=IDENTIFIERS).names
        prompt = self._ranking_prompt(item.question.question, item.passages, asked_before=False)
        order = [names[i] for i in ranking(item)][:5]
        prompt += encode_without_special_tokens(self.tokenizer, RANKING_OPEN)
        row = self._row("ranking two-hop", prompt, RANKING_SEPARATOR.join(order) + "]")
        # Which of the useless passages comes third is nobody's to know: only the gold part is a reply.
        start, end = row.replies[0]
        return replace(row, replies=[(start, min(end, start + 4))])

    def _ability(self) -> Row:
        """Tasks as chats of their own in one row: alone they are too short to be worth a row."""
        tasks = [draw_general_task(self.rng) for _ in range(TASKS_PER_ROW)]
        row = self._row("ability", render_chat(self.tokenizer, tasks[0].prompt), tasks[0].answer)
        for task in tasks[1:]:
            row = self._continued(row, "ability", render_chat(self.tokenizer, task.prompt), task.answer)
        return row

    def _row(self, kind: str, prompt: list[int], reply: str) -> Row:
        return self._continued(Row([], [], []), kind, prompt, reply)

    def _continued(self, row: Row, kind: str, prompt: list[int], reply: str) -> Row:
        answer = [*self.tokenizer(reply, add_special_tokens=False)["input_ids"], self.end]
        start = len(row.ids) + len(prompt)
        replies = [*row.replies, (start, start + len(answer))]
        return Row([*row.kinds, kind], row.ids + prompt + answer, replies, row.sources)


@dataclass(frozen=True)
class Batch:
    """Right-padded rows of similar length: `input_ids` and `reply_weights` `[B, T]`, `scored` `[B, T - 1]`."""

    input_ids: Tensor
    reply_weights: Tensor
    """0 where a token is no reply."""
    scored: Tensor
    """Targets that have a loss: every reply token, and a random share of the others."""
    rows: list[Row]


def batches(rows: list[Row], max_tokens: int, pad: int, lm_share: float, rng: random.Random) -> list[Batch]:
    """Rows sorted by length and cut into batches of at most `max_tokens` padded tokens and little padding."""
    groups: list[list[Row]] = [[]]
    for row in sorted(rows, key=lambda r: len(r.ids)):
        full = (len(groups[-1]) + 1) * len(row.ids) > max_tokens
        if groups[-1] and (full or len(row.ids) > 1.3 * len(groups[-1][0].ids) + 16):
            groups.append([])
        groups[-1].append(row)
    generator = torch.Generator().manual_seed(rng.getrandbits(60))
    return [_batch(group, pad, lm_share, generator) for group in groups]


def _batch(rows: list[Row], pad: int, lm_share: float, generator: torch.Generator) -> Batch:
    shape = len(rows), max(len(row.ids) for row in rows)
    input_ids = torch.full(shape, pad)
    is_token, reply_weights = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for i, row in enumerate(rows):
        input_ids[i, : len(row.ids)] = torch.tensor(row.ids)
        is_token[i, : len(row.ids)] = True
        for kind, (start, end) in zip(row.kinds, row.replies, strict=True):
            reply_weights[i, start:end] = REPLY_WEIGHTS.get(kind, 1.0)
    scored = (reply_weights > 0) | (is_token & (torch.rand(shape, generator=generator) < lm_share))
    return Batch(input_ids, reply_weights, scored[:, 1:], rows)


# -- the language model ----------------------------------------------------------------------------------------


def new_model(tokenizer: PreTrainedTokenizerFast, args: argparse.Namespace) -> LlamaForCausalLM:
    """A Llama that has learned nothing yet."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            intermediate_size=args.intermediate_size,
            num_hidden_layers=args.num_layers,
            num_attention_heads=args.num_heads,
            num_key_value_heads=args.num_heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )
    bracket = int(tokenizer.convert_tokens_to_ids("["))
    seed_copying(model, bracket, torch.Generator().manual_seed(args.seed))
    return model


@torch.no_grad()
def seed_copying(model: LlamaForCausalLM, bracket: int, generator: torch.Generator) -> None:
    """Start from the circuit that copies (Olsson et al. 2022, arXiv 2209.11895) instead of waiting for it.

    Induction heads are what reading needs, and a tiny model on a CPU finds them late or never. Llama's parameters
    can hold one by construction; training then sharpens it or drops it.

    - Residual directions are split in two: `content` (what a token is) and `context` (what stands before it). One
      embedding dimension is the same for all tokens, so that queries and keys can be constants.
    - Layer 0, two heads: constant query and key whose rotary phases peak one and two positions back; they copy
      the content of that position into the context of this one.
    - Layers 1 and 2, two heads each: the query is the content of this token, the key is the context of an earlier
      one, "what came before you is what I am", in the slowly rotating dimensions only, as the match may be far.
      The second of them asks for the two tokens before: names differ in one word of several.
    - Layer 1, one head: the identifier of the passage that a token stands in (`_seed_belonging`).
    - Every head from layer 1 on starts by writing what it reads (W_O = W_V^T, scaled): attending is copying.
    """
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    spread, constant, sharpness, match, write, copy = 0.06, 4.0, 1.7, 2.5, 0.3, 0.2
    basis = torch.linalg.qr(torch.randn(width - 1, width - 1, generator=generator))[0]
    basis = torch.cat([torch.zeros(width - 1, 1), basis], 1)  # rows: orthonormal, blind to the constant dimension
    content, context = basis[: width // 2 - 1], basis[width // 2 - 1 :]

    def random_rows(space: Tensor) -> Tensor:
        return torch.linalg.qr(torch.randn(len(space), size, generator=generator))[0].T @ space

    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, spread, generator=generator)
    # All of one length: a longer key would win over a nearer one.
    embedding[:, 0] = 0
    embedding *= spread * width**0.5 / embedding.norm(dim=-1, keepdim=True)
    embedding[:, 0] = constant * spread
    theta = config.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2).float() / size)
    slow = (theta < 1 / 300).repeat(2).nonzero().flatten()
    layers = model.model.layers
    for number, layer in enumerate(layers):
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            linear.weight.normal_(0, 0.02, generator=generator)
        attention = layer.self_attn
        for linear in (attention.q_proj, attention.k_proj):
            linear.weight.normal_(0, 0.02, generator=generator)
        for head in range(heads):
            rows = slice(head * size, (head + 1) * size)
            attention.v_proj.weight[rows] = random_rows(content)
            attention.o_proj.weight[:, rows] = (copy if number else 0.1 * copy) * attention.v_proj.weight[rows].T
    first = layers[0].self_attn
    for head, back in enumerate((1, 2)):
        rows = slice(head * size, (head + 1) * size)
        for linear in (first.q_proj, first.k_proj):
            linear.weight[rows] = 0
        first.q_proj.weight[rows, 0] = sharpness * torch.cat([torch.cos(theta * back), -torch.sin(theta * back)])
        first.k_proj.weight[rows, 0] = sharpness * torch.cat([torch.ones_like(theta), torch.zeros_like(theta)])
        first.o_proj.weight[:, rows] = write * context[head * size :][:size].T
    first.v_proj.weight[size : 2 * size] = first.v_proj.weight[:size]  # or the two contexts could not be compared
    read, before, before_that = first.v_proj.weight[:size].clone(), context[:size], context[size : 2 * size]
    for layer in layers[1:3]:
        attention = layer.self_attn
        for head, pairs in enumerate(([(read, before)], [(read, before), (0.5 * before, before_that)])):
            for linear in (attention.q_proj, attention.k_proj):
                linear.weight[head * size : (head + 1) * size] = 0
            chosen = torch.randperm(size, generator=generator)[: len(slow)]
            for part, (asked, stored) in zip(slow.chunk(len(pairs)), pairs, strict=True):
                some = chosen[: len(part)]
                attention.q_proj.weight[head * size + part] = match * asked[some]
                attention.k_proj.weight[head * size + part] = match * stored[some]
    follows_bracket = context[:size].T @ first.v_proj.weight[:size] @ embedding[bracket]
    _seed_belonging(layers[1].self_attn, 2 * size, follows_bracket / follows_bracket.norm(), theta)


def _seed_belonging(attention: Any, row: int, header: Tensor, theta: Tensor) -> None:
    """One head by which every token of a passage knows the passage's identifier: "the last thing after a bracket".

    Constant query; the key is how much a token looks as if it followed "["; among several such tokens the nearest
    wins, because the rotary phases used turn by less than half a circle over a passage.
    """
    size = 2 * len(theta)
    near = ((theta < 1 / 80) & (theta > 1 / 250)).nonzero().flatten()
    rows = slice(row, row + size)
    for linear in (attention.q_proj, attention.k_proj):
        linear.weight[rows] = 0
    attention.q_proj.weight[row + near, 0] = BELONGING
    attention.k_proj.weight[row + near] = BELONGING * header


def new_optimizers(model: LlamaForCausalLM, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings and norms (or for everything)."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    if args.optimizer == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr=args.lr, betas=(0.9, 0.98), weight_decay=0.05)]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate(progress: float, step: int) -> float:
    """Warm up over 50 steps, stay, fall linearly to 2 % from three tenths of the way on."""
    return min(1.0, step / 50) * min(1.0, max(0.02, (1 - progress) / 0.7))


def pretrain(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The training loop."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    model = new_model(tokenizer, args).to(device)
    optimizers = new_optimizers(model, args)
    first = resume(args.work_dir, model, optimizers) + 1
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {first}", flush=True)
    started, log = time.perf_counter(), Log()
    for step in range(first, args.steps + 1):
        progress = step / args.steps
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate(progress, step)
        rng = random.Random(f"{args.seed}-{step}")
        rows = draw_rows(tokenizer, rng, progress, args.tokens)
        parts = batches(rows, args.micro_tokens, tokenizer.pad_token_id, args.lm_share, rng)
        # Names are made up, so what is left to learn from other tokens soon is noise beside what replies teach.
        accumulate(model, parts, args.lm_weight * (1 - 0.7 * progress), args.bf16, log)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % args.log_every == 0:
            print(f"step {step} {(time.perf_counter() - started) / 60:.1f} min {log.flush()}", flush=True)
        if step % args.save_every == 0 or step == args.steps:
            checkpoint(args.work_dir, model, optimizers, step)
    return model


def draw_rows(tokenizer: PreTrainedTokenizerFast, rng: random.Random, progress: float, tokens: int) -> list[Row]:
    """Rows of about `tokens` tokens together."""
    source, rows, total = Rows(tokenizer, rng, progress), [], 0
    while total < tokens:
        rows.append(source.draw())
        total += len(rows[-1].ids)
    return rows


def accumulate(model: LlamaForCausalLM, parts: Sequence[Batch], lm_weight: float, bf16: bool, log: "Log") -> None:
    """Gradients of: weighted mean over reply tokens + `lm_weight` x mean over others, over all parts together."""
    replies = sum(float(b.reply_weights[:, 1:].sum()) for b in parts)
    others = sum(int((b.scored & (b.reply_weights[:, 1:] == 0)).sum()) for b in parts)
    sources = sum(len(row.sources) for b in parts for row in b.rows)
    device = model.device
    for batch in parts:
        ids, scored = batch.input_ids.to(device), batch.scored.to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            # Causal, and padded on the right: no token ever sees padding.
            output = model.model(input_ids=ids, use_cache=False, output_hidden_states=True)
            logits = model.lm_head(output.last_hidden_state[:, :-1][scored]).float()
        losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:][scored], reduction="none")
        reply_weights = batch.reply_weights[:, 1:].to(device)[scored]
        weights = torch.where(reply_weights > 0, reply_weights / replies, lm_weight / max(others, 1))
        located = source_loss(output.hidden_states[-2], batch.rows)
        ((losses * weights).sum() + SOURCE_WEIGHT * located / max(sources, 1)).backward()
        log.nats["source"] += float(located.detach())
        log.tokens["source"] += sum(len(row.sources) for row in batch.rows)
        log.add(batch, losses.detach().cpu(), (logits.detach().argmax(-1) == ids[:, 1:][scored]).cpu())


def source_loss(hidden_BTH: Tensor, rows: Sequence[Row]) -> Tensor:
    """Sum of cross-entropies: before the last layer, the state that will answer must tell which passage to read.

    Ranking finds the passage of a question nine times in ten, and yet reading took the fact of any that tells one: what
    the last layer has to look for must be known before it. The readout is fixed and random, so nothing is added to
    the model.
    """
    where = [(i, start - 1, place) for i, row in enumerate(rows) for start, place in row.sources.items()]
    if not where:
        return hidden_BTH.new_zeros(())
    row_N, position_N, place_N = torch.tensor(where, device=hidden_BTH.device).T
    state_NH = torch.nn.functional.rms_norm(hidden_BTH[row_N, position_N].float(), hidden_BTH.shape[-1:])
    readout_HP = torch.randn(hidden_BTH.shape[-1], MOST_PASSAGES, generator=torch.Generator().manual_seed(0))
    logits_NP = state_NH @ readout_HP.to(state_NH) / 4
    return torch.nn.functional.cross_entropy(logits_NP, place_N, reduction="sum")


class Log:
    """Running means: loss of replies and of other tokens, and by kind the share of replies predicted whole."""

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.total: Counter[str] = Counter()
        self.nats: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()

    def add(self, batch: Batch, losses: Tensor, right: Tensor) -> None:
        """`losses` and `right`: one entry for each scored target, row by row."""
        is_reply = batch.reply_weights[:, 1:][batch.scored] > 0
        for name, mask in (("reply", is_reply), ("other", ~is_reply)):
            self.nats[name] += float(losses[mask].sum())
            self.tokens[name] += int(mask.sum())
        whole = torch.zeros_like(batch.scored).masked_scatter(batch.scored, right)
        for i, row in enumerate(batch.rows):
            for kind, (start, end) in zip(row.kinds, row.replies, strict=True):
                self.total[kind] += 1
                self.right[kind] += bool(whole[i, start - 1 : end - 1].all())

    def flush(self) -> str:
        """The means since the last flush, as text."""
        losses = [f"{name} {self.nats[name] / max(self.tokens[name], 1):.3f}" for name in self.nats]
        shares = [f"{kind} {self.right[kind] / self.total[kind]:.2f}" for kind in sorted(self.total)]
        self.__init__()  # type: ignore[misc]
        return ", ".join(losses) + " | " + ", ".join(shares)


# -- checkpoints -----------------------------------------------------------------------------------------------


def checkpoint(folder: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Everything that the next step needs, in one file that is replaced at once."""
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Any] = {
        "step": step,
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
    }
    torch.save(state, folder / "checkpoint.tmp")
    (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")


def resume(folder: Path, model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer]) -> int:
    """Load the checkpoint, if there is one; returns its step."""
    file = folder / "checkpoint.pt"
    if not file.is_file():
        return 0
    state = torch.load(file, map_location=model.device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"] if optimizers else [], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


# -- scores and files ------------------------------------------------------------------------------------------


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in half precision and the tokenizer, as transformers reads them."""
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.tie_weights()
    half.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def scores(folder: Path, count: int, seed: int) -> dict[str, float]:
    """Exact match of the exported model, greedy, on text that no step has seen."""
    model = LanguageModel.from_pretrained(folder, dtype="float32")
    generator = Generator(model, config=DecodingConfig(max_new_tokens=32))
    rng = random.Random(f"scores-{seed}")
    easy = {"hardness": 1.0, "outdated": 0.15}
    items = {
        "one-hop, gold passage alone": [reading_item(rng, 1, **easy) for _ in range(count)],
        "one-hop, among 4 hard distractors": [reading_item(rng, 5, **easy) for _ in range(count)],
        "two-hop, both gold passages": [reading_item(rng, 2, hops=2, **easy) for _ in range(count)],
        "two-hop, among 3 hard distractors": [reading_item(rng, 5, hops=2, **easy) for _ in range(count)],
    }
    result = {name: read(generator, some) for name, some in items.items()}
    listed = [reading_item(rng, MOST_PASSAGES, **easy) for _ in range(count)]
    result[f"ranking, gold passage first of {MOST_PASSAGES}"] = ranked_first(model, listed)
    result |= {f"real facts, {hops}, gold passages": real_facts(generator, count, hops) for hops in (1, 2)}
    solved = measure_general_tasks(generator, make_general_tasks(12 * (count // 12), seed=seed)).right
    names = list(KINDS)
    by_ability = {name: mean(solved[i :: len(names)]) for i, name in enumerate(names)}
    return result | {"general abilities": mean(solved)} | {f"ability: {k}": v for k, v in by_ability.items()}


def read(generator: Generator, items: Sequence[Item]) -> float:
    """Exact match of reading items."""
    answers = generator.generate([i.question.question for i in items], [i.passages for i in items])
    return mean([exact_match(a, i.question.golden_answers) for a, i in zip(answers, items, strict=True)])


@torch.no_grad()
def ranked_first(model: LanguageModel, items: Sequence[Item]) -> float:
    """Share of items whose gold passage has the most probable identifier, without any retriever."""
    right = []
    for item in items:
        names = Identifiers.for_tokenizer(model.tokenizer, len(item.passages), style=IDENTIFIERS)
        prompt = RankingPrompt().encode(
            model.tokenizer, item.question.question, item.passages, names, max_tokens=model.context_length
        )
        logits_n = model.logits_for_positions(
            model.hidden(torch.tensor([prompt]), None)[0, -1], torch.tensor(names.token_ids)
        )
        right.append(float(item.passages[int(logits_n.argmax())].id in item.question.gold_ids))
    return mean(right)


def real_facts(generator: Generator, count: int, hops: int) -> float:
    """Exact match on the demo encyclopedia, from the gold passages alone."""
    by_id = {row["id"]: Passage(row["id"], row["title"], row["text"]) for row in passages()}
    rows = [row for row in questions("dev") if row["hops"] == hops][:count]
    answers = generator.generate([r["question"] for r in rows], [[by_id[i] for i in r["gold_ids"]] for r in rows])
    return mean([exact_match(a, r["golden_answers"]) for a, r in zip(answers, rows, strict=True)])


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


CARD = """\
---
library_name: transformers
license: apache-2.0
---
# {title}

{text}

Made by `python examples/tiny_models/pretrain.py` with {arguments}. All text comes from the invented world of
`rag.worlds.world`; names and facts are drawn afresh at every step, and no real fact is among them.

| score | value |
|---|---|
{table}
"""


def write_card(folder: Path, title: str, text: str, args: argparse.Namespace, values: dict[str, float]) -> None:
    """The model card, with the scores that were just measured."""
    said = ", ".join(f"{k}={v}" for k, v in sorted(vars(args).items()) if k not in ("work_dir", "output", "only"))
    table = "\n".join(f"| {name} | {value:.3f} |" for name, value in values.items())
    (folder / "README.md").write_text(
        CARD.format(title=title, text=text, arguments=f"`{said}`", table=table), encoding="utf-8"
    )


# -- the encoder -----------------------------------------------------------------------------------------------


def encoder_tokenizer(seed: int, vocab_size: int) -> Tokenizer:
    """Lower-case word pieces: a bag of them is all that a static embedding sees."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_tokenizer_texts(random.Random(seed)), trainer)
    return tokenizer


def encoder_pairs(rng: random.Random, count: int) -> Iterator[dict[str, str]]:
    """Question, a gold passage, and a passage that is easily taken for it."""
    for _ in range(count):
        item = reading_item(rng, 3, hops=rng.choice((1, 1, 2)))
        gold = [p for p in item.passages if p.id in item.question.gold_ids]
        other = [p for p in item.passages if p.id not in item.question.gold_ids]
        positive, negative = rng.choice(gold), rng.choice(other)
        yield {"question": item.question.question, "positive": positive.contents, "negative": negative.contents}


def train_encoder(args: argparse.Namespace, folder: Path) -> None:
    """A static embedding trained with in-batch and hard negatives, by sentence-transformers' own trainer."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as TrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    torch.manual_seed(args.seed)
    tokenizer = encoder_tokenizer(args.seed, args.encoder_vocab_size)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=args.encoder_dimension)])
    data = Dataset.from_list(list(encoder_pairs(random.Random(f"encoder-{args.seed}"), args.encoder_pairs)))
    arguments = TrainingArguments(
        output_dir=str(args.work_dir / "encoder"),
        per_device_train_batch_size=256,
        learning_rate=args.encoder_lr,
        num_train_epochs=1,
        save_strategy="no",
        report_to="none",
        seed=args.seed,
        disable_tqdm=True,
    )
    SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=data, loss=MultipleNegativesRankingLoss(model)
    ).train()
    model.half().save_pretrained(str(folder), create_model_card=False)


def encoder_scores(folder: Path, seed: int) -> dict[str, float]:
    """Recall on a world of its own: 300 questions over its whole corpus."""
    with TemporaryDirectory() as work:
        files = write_world(work, seed=seed + 1000, train_questions=300, dev_questions=300)
        index = build_index(files["corpus"], Encoder.from_pretrained(folder), Path(work) / "index", progress=False)
        examples = load_examples(files["dev"], require_answers=True)
        retriever = DenseRetriever(index, Encoder.from_pretrained(folder))
        found = retriever.search([e.question for e in examples], 20)
        return search_metrics(examples, found, 20) | {"passages": float(len(index))}


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work_dir", type=Path, required=True, help="checkpoints of this run; resumed when it exists")
    parser.add_argument("--output", type=Path, required=True, help="folder that gets base/ and encoder/")
    parser.add_argument("--steps", type=int, default=6400)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    parser.add_argument("--micro_tokens", type=int, default=4096, help="padded tokens per forward pass")
    parser.add_argument("--hidden_size", type=int, default=256)
    parser.add_argument("--intermediate_size", type=int, default=512)
    parser.add_argument("--num_layers", type=int, default=5)
    parser.add_argument("--num_heads", type=int, default=4)
    parser.add_argument("--vocab_size", type=int, default=1024)
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--lr", type=float, default=4e-4, help="AdamW: embeddings and norms")
    parser.add_argument("--muon_lr", type=float, default=1.5e-3)
    parser.add_argument("--lm_weight", type=float, default=0.3, help="of the tokens that are not replies, at first")
    parser.add_argument("--lm_share", type=float, default=0.25, help="share of those tokens that is scored")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--score_items", type=int, default=300, help="questions behind each score")
    parser.add_argument("--log_every", type=int, default=50)
    parser.add_argument("--save_every", type=int, default=200)
    parser.add_argument("--encoder_vocab_size", type=int, default=1000)
    parser.add_argument("--encoder_dimension", type=int, default=48)
    parser.add_argument("--encoder_pairs", type=int, default=4_000)
    parser.add_argument("--encoder_lr", type=float, default=0.05)
    parser.add_argument("--only", choices=["base", "encoder", "scores"], help="scores: of OUTPUT/base as it is")
    args = parser.parse_args()
    if args.only != "encoder":
        make_base(args)
    if args.only in (None, "encoder"):
        folder = args.output / "encoder"
        train_encoder(args, folder)
        values = encoder_scores(folder, args.seed)
        print(json.dumps(values, indent=2))
        write_card(folder, "Tiny encoder", "A static embedding for the demo experiment.", args, values)


def make_base(args: argparse.Namespace) -> None:
    """Pre-train, export and score the language model."""
    folder = args.output / "base"
    if args.only == "scores":
        print(json.dumps(scores(folder, args.score_items, args.seed), indent=2), flush=True)
        return
    tokenizer = load_or_train_tokenizer(args)
    model = pretrain(args, tokenizer)
    export(model.cpu(), tokenizer, folder)
    values = scores(folder, args.score_items, args.seed)
    print(json.dumps(values, indent=2), flush=True)
    count = sum(p.numel() for p in model.parameters())
    text = (
        f"A Llama of {count:,} parameters that reads: it answers from passages, ranks them, and has a few general "
        "abilities. It knows nothing. It exists for the demo experiment of dro-rag."
    )
    write_card(folder, "Tiny base", text, args, values)


if __name__ == "__main__":
    main()
