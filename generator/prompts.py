"""The prompts: rank the candidates, ask what one of them answers, answer from the selected passages.

Prompt and reply are tokenized separately, and a sequence is always `prompt_ids + reply_ids`: tokenizing them together
would move the boundary. When a prompt does not fit, passages are cut, the longest texts and titles first; the question
and the reply never are.

The default wording is that of the DRO authors (arXiv 2505.03075, github.com/mangopy/direct-rag-learning),
including its typographic apostrophe.
"""

import logging
import string
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from generator.chat import QUIETLY, Chat
from indexes.corpora.passage import Passage
from indexes.errors import DataError, UsageError

logger = logging.getLogger(__name__)

ANSWER_TEMPLATE = """\
You are an artificial intelligence assistant. You should gives helpful and precise answers to the user\u2019s \
questions based on the context. The context here refer to external passages related to user's questions.

Please answer the question: "{question}" using provided passages. \
Each passage is indicated by a numerical identifier [].
Here are the related passages for your reference.
{passages}
Question: {question}
Your answer: """

RANKING_TEMPLATE = """\
You are RankLLM, an intelligent assistant that can rank passages based on their relevance and usefulness \
to the user's query.

I will provide you with {num_passages} passages. Please rank these passages based on their usefulness in \
answering the user's search query: "{question}".\u0020

A passage's usefulness is defined as:
1. Relevance to the question.
2. Contains necessary information to help the user.

The passages are listed below, each with {identifier_kind} identifier [].
{passages}

Rank the {num_passages} passages based on their usefulness in descending order. \
Use the format [] > [], e.g., [{second}] > [{first}]. \
Only respond with the ranking results; do not provide explanations.

Search Query: {question}
Your output: """

# The instruction comes first: what all prompts begin with is read once.
QUESTION_TEMPLATE = """\
Write a question that this passage answers.
Passage: {passage}"""

PASSAGE_TEMPLATE = "[{identifier}] Title: {title} Text: {text}"

RANKING_OPEN = "["
RANKING_SEPARATOR = "] > ["


def render_chat(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of one user turn, with no settings for the chat template; `Chat.encode` takes them."""
    return Chat(tokenizer).encode(text)


# A text is encoded after the first of these that keeps its own tokens, where the text before it does not.
_ANCHORS = ("\n", "]", "0")


def encode_without_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, after: str = "") -> list[int]:
    """Token ids of a text that continues another one, without special tokens.

    SentencePiece tokenizers (Llama 2, Mistral, Phi-3, TinyLlama) put a blank before whatever they are given, so that
    a single "A" is "▁A", while the "A" of "[A]" has no blank; those of Llama 2's kind put it after control tokens too.
    So where a tokenizer puts a blank before a text, the text is encoded together with what stands before it, whose
    tokens are then taken away (transformers 5.23 does so between the parts of a chat, `_encode_chat_piece`).

    Args:
        tokenizer: Of the model that reads.
        text: What is to be encoded.
        after: The end of the text before it, as far as it may matter; "": ordinary text.
    """
    if _puts_blank_before(tokenizer):
        for anchor in (after, *_ANCHORS):
            before, ids = encode_document(tokenizer, anchor), encode_document(tokenizer, anchor + text)
            if anchor and ids[: len(before)] == before:
                return ids[len(before) :]
    return encode_document(tokenizer, text)


def encode_document(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text at the beginning of a sequence, without special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _puts_blank_before(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer begins a text with a blank that is not in it."""
    first = encode_document(tokenizer, "x")
    return encode_document(tokenizer, "\nx")[-len(first) :] != first


def _check_template(name: str, template: str, allowed: set[str], required: set[str]) -> None:
    found = {part for _, part, _, _ in string.Formatter().parse(template) if part is not None}
    if not required <= found <= allowed:
        raise UsageError(
            f"{name} must contain the placeholders {sorted(required)} and no others than {sorted(allowed)}; "
            f"it has {sorted(found)}. Write literal braces as {{{{ and }}}}."
        )


@dataclass(frozen=True, kw_only=True)
class _PassagePrompt:
    """The base of both prompts: numbered passages inside a template, cut to a token budget."""

    passage_template: str = PASSAGE_TEMPLATE
    """How one passage is shown; placeholders `{identifier}`, `{title}`, `{text}`."""

    def __post_init__(self) -> None:
        _check_template(
            "passage_template", self.passage_template, {"identifier", "title", "text"}, {"identifier", "text"}
        )

    def _numbered(self, identifiers: Sequence[str], passages: Sequence[Passage], texts: Sequence[str]) -> str:
        return "\n".join(
            self.passage_template.format(identifier=i, title=p.title, text=t)
            for i, p, t in zip(identifiers, passages, texts, strict=True)
        )

    def _fill(self, question: str, identifiers: Sequence[str], numbered: str) -> str:
        raise NotImplementedError

    def _render(self, question: str, identifiers: Sequence[str], passages: Sequence[Passage]) -> str:
        return self._fill(question, identifiers, self._numbered(identifiers, passages, [p.text for p in passages]))

    def _encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question: str,
        identifiers: Sequence[str],
        passages: Sequence[Passage],
        max_tokens: int,
        chat: Chat | None,
    ) -> list[int]:
        """Token ids of the prompt in at most `max_tokens`, titles and texts of passages cut where needed."""
        chat = chat or Chat(tokenizer)
        if not question.strip():
            raise DataError("A question must hold at least one visible character, got an empty one.")
        question, passages = chat.escape_special_tokens(question), [_escaped(chat, p) for p in passages]
        ids = chat.encode(self._render(question, identifiers, passages))
        if len(ids) <= max_tokens:
            return ids
        passages = self._with_cut_titles(chat, question, identifiers, passages, max_tokens)
        budget = max_tokens - len(self._frame_ids(chat, question, identifiers, passages))
        while budget >= 0:
            texts = cut_texts(tokenizer, [p.text for p in passages], budget)
            numbered = self._numbered(identifiers, passages, texts)
            ids = chat.encode(self._fill(question, identifiers, numbered))
            if len(ids) <= max_tokens:
                return ids
            # Joining can cost a token or two more than the parts; give exactly that back and try again.
            excess = len(ids) - max_tokens
            budget = max(budget - excess, 0) if budget > 0 else -1
        raise DataError(
            f"The question and the instructions around {len(passages)} empty passages must fit into {max_tokens} "
            "tokens, but they need more. "
            "Shorten the question, use fewer passages, or take a model with a longer context."
        )

    def _with_cut_titles(
        self,
        chat: Chat,
        question: str,
        identifiers: Sequence[str],
        passages: Sequence[Passage],
        max_tokens: int,
    ) -> list[Passage]:
        """The passages with titles no longer than what is left for each title and text; texts are still whole.

        A first line that is a title by its format only (Pyserini's `contents` have none) may be a paragraph.
        """
        bare = [Passage(p.id, "", p.text) for p in passages]
        room = max_tokens - len(self._frame_ids(chat, question, identifiers, bare))
        parts = [*(p.title for p in passages), *(p.text for p in passages)]
        while room > 0:
            titles = cut_texts(chat.tokenizer, parts, room)[: len(passages)]
            cut = [Passage(p.id, title, p.text) for p, title in zip(passages, titles, strict=True)]
            excess = len(self._frame_ids(chat, question, identifiers, cut)) - max_tokens
            if excess <= 0:
                return cut
            room -= excess
        return bare

    def _frame_ids(
        self, chat: Chat, question: str, identifiers: Sequence[str], passages: Sequence[Passage]
    ) -> list[int]:
        """The prompt with the titles of these passages and without their texts."""
        numbered = self._numbered(identifiers, passages, [""] * len(passages))
        return chat.encode(self._fill(question, identifiers, numbered))

    def _least_tokens(self, chat: Chat, question: str, identifiers: Sequence[str]) -> int:
        bare = [Passage("", "", "")] * len(identifiers)
        return len(self._frame_ids(chat, chat.escape_special_tokens(question), identifiers, bare))


def _escaped(chat: Chat, passage: Passage) -> Passage:
    return Passage(passage.id, chat.escape_special_tokens(passage.title), chat.escape_special_tokens(passage.text))


def cut_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], budget: int) -> list[str]:
    """Cut texts at token boundaries so that together they hold at most `budget` tokens.

    One common cap is found (water filling), so short texts stay whole and the longest give way first.
    """
    encoded = [tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **QUIETLY) for text in texts]
    lengths = [len(e["input_ids"]) for e in encoded]
    cap = _common_cap(lengths, budget)
    return [
        text if length <= cap else text[: e["offset_mapping"][cap - 1][1] if cap else 0]
        for text, e, length in zip(texts, encoded, lengths, strict=True)
    ]


def _common_cap(lengths: Sequence[int], budget: int) -> int:
    """The largest c with `sum(min(length, c)) <= budget`."""
    remaining = max(budget, 0)
    for done, length in enumerate(sorted(lengths)):
        share = remaining // (len(lengths) - done)
        if length > share:
            return share
        remaining -= length
    return max(lengths, default=0)


@dataclass(frozen=True, kw_only=True)
class AnswerPrompt(_PassagePrompt):
    """Question and K passages in, answer out: `p_g(y | x, d_z)` of DRO.

    Passages are numbered 1..K in the order of the permutation.
    """

    template: str = ANSWER_TEMPLATE
    """Placeholders `{question}` and `{passages}`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_template("template", self.template, {"question", "passages"}, {"question", "passages"})

    def _fill(self, question: str, identifiers: Sequence[str], numbered: str) -> str:
        return self.template.format(question=question, passages=numbered)

    def render(self, question: str, passages: Sequence[Passage]) -> str:
        """The whole prompt as text, uncut."""
        return self._render(question, _numbers(len(passages)), passages)

    def least_tokens(
        self, tokenizer: PreTrainedTokenizerBase, question: str, num_passages: int, *, chat: Chat | None = None
    ) -> int:
        """Tokens of the prompt with all passages cut to nothing: the least that a question needs."""
        return self._least_tokens(chat or Chat(tokenizer), question, _numbers(num_passages))

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question: str,
        passages: Sequence[Passage],
        *,
        max_tokens: int,
        chat: Chat | None = None,
    ) -> list[int]:
        """Prompt ids, at most `max_tokens`; titles and texts of passages are cut, the question never.

        Args:
            tokenizer: Of the model that reads.
            question: The question.
            passages: In the order in which they are shown.
            max_tokens: Room for the whole prompt.
            chat: The tokenizer's chat template with its settings; None: without any.

        Raises:
            DataError: The question is empty, or does not fit even with every passage cut to nothing.
        """
        return self._encode(tokenizer, question, _numbers(len(passages)), passages, max_tokens, chat)


def _numbers(count: int) -> list[str]:
    return [str(i + 1) for i in range(count)]


@dataclass(frozen=True)
class Identifiers:
    """Names for candidates, each a *single* token of one tokenizer, forced and scored by token id."""

    names: tuple[str, ...]
    token_ids: tuple[int, ...]
    style: str

    @classmethod
    def for_tokenizer(
        cls, tokenizer: PreTrainedTokenizerBase, count: int, *, style: str = "letters", chat: Chat | None = None
    ) -> "Identifiers":
        """Verify that `count` identifiers of `style` are distinct single tokens; else warn and use another style.

        Args:
            tokenizer: The tokenizer that will read and write them.
            count: Candidates in a ranking prompt.
            style: `"letters"` (A, B, ...) or `"numbers"` (1, 2, ... as the paper writes them).
            chat: The tokenizer's chat template with its settings; None: without any.

        Raises:
            UsageError: Unknown style, or no family of `count` single-token identifiers exists.
        """
        families, chat = _identifier_families(count), chat or Chat(tokenizer)
        if style not in families:
            raise UsageError(f"identifiers must be one of {sorted(families)}, got {style!r}.")
        for family in [style, *(f for f in families if f != style)]:
            kept = _single_tokens(chat, families[family])
            if len(kept) >= count:
                if family != style:
                    logger.warning(
                        "This tokenizer has no %d single-token identifiers of style %r; using %r instead (%s ...).",
                        count,
                        style,
                        family,
                        ", ".join(list(kept)[:3]),
                    )
                names = tuple(kept)[:count]
                return cls(names, tuple(kept[name] for name in names), family)
        raise UsageError(
            f"A ranking prompt of {count} candidates needs {count} distinct single-token identifiers; this "
            "tokenizer has fewer in every family tried "
            f"({', '.join(f'{f}: {len(_single_tokens(chat, n))}' for f, n in families.items())}). "
            "Lower num_candidates."
        )


def _identifier_families(count: int) -> dict[str, list[str]]:
    return {
        "letters": list(string.ascii_uppercase),
        "numbers": [str(i + 1) for i in range(count)],
        "lower-case letters": list(string.ascii_lowercase),
        "mixed": [*string.ascii_uppercase, *string.ascii_lowercase, *string.digits],
    }


def _single_tokens(chat: Chat, names: Sequence[str]) -> dict[str, int]:
    """The names that are one ordinary token which decodes back to the name; name -> token id."""
    tokenizer, special = chat.tokenizer, chat.control_ids
    kept: dict[str, int] = {}
    for name in names:
        ids = encode_without_special_tokens(tokenizer, name, after=RANKING_OPEN)
        round_trip = len(ids) == 1 and str(tokenizer.decode(ids)).strip() == name
        if round_trip and ids[0] not in special and ids[0] not in kept.values():
            kept[name] = ids[0]
    return kept


@dataclass(frozen=True, kw_only=True)
class RankingPrompt(_PassagePrompt):
    """Question and n candidates in, a permutation "[B] > [A] > ..." out: `p_s(z | x)` of DRO."""

    template: str = RANKING_TEMPLATE
    """Needs `{question}` and `{passages}`; may use `{num_passages}`, `{identifier_kind}`, `{first}`, `{second}`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = {"question", "passages", "num_passages", "identifier_kind", "first", "second"}
        _check_template("template", self.template, allowed, {"question", "passages"})

    def _fill(self, question: str, identifiers: Sequence[str], numbered: str) -> str:
        return self.template.format(
            question=question,
            passages=numbered,
            num_passages=len(identifiers),
            identifier_kind="a numerical" if identifiers[0].isdigit() else "an alphabetical",
            first=identifiers[0],
            second=identifiers[min(1, len(identifiers) - 1)],
        )

    def render(self, question: str, passages: Sequence[Passage], identifiers: Identifiers) -> str:
        """The whole prompt as text, uncut."""
        return self._render(question, identifiers.names[: len(passages)], passages)

    def least_tokens(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question: str,
        identifiers: Identifiers,
        num_passages: int,
        *,
        chat: Chat | None = None,
    ) -> int:
        """As `AnswerPrompt.least_tokens`, with the opening of the reply."""
        chat = chat or Chat(tokenizer)
        return self._least_tokens(chat, question, identifiers.names[:num_passages]) + len(_opening(chat))

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question: str,
        passages: Sequence[Passage],
        identifiers: Identifiers,
        *,
        max_tokens: int,
        chat: Chat | None = None,
    ) -> list[int]:
        """Prompt ids that end where the first identifier is due (after the opening "["), at most `max_tokens`.

        Args:
            tokenizer: Of the model that reads.
            question: The question.
            passages: In the order in which they are shown.
            identifiers: Their names.
            max_tokens: Room for the whole prompt.
            chat: As for `AnswerPrompt.encode`.

        Raises:
            DataError: As `AnswerPrompt.encode`.
        """
        chat = chat or Chat(tokenizer)
        opening = _opening(chat)
        names = identifiers.names[: len(passages)]
        return self._encode(tokenizer, question, names, passages, max_tokens - len(opening), chat) + opening


def _opening(chat: Chat) -> list[int]:
    """Token ids of the opening bracket of a ranking reply, as a continuation of its prompt."""
    return encode_without_special_tokens(chat.tokenizer, RANKING_OPEN, after=chat.reply_opening)


@dataclass(frozen=True, kw_only=True)
class QuestionPrompt:
    """One passage in, a question that it answers out: p(question | passage) says how well the two go together.

    Query likelihood by a language model that was told to ask: Sachan et al. 2022 (UPR, arXiv 2204.07496).
    """

    template: str = QUESTION_TEMPLATE
    """Placeholder `{passage}`: title and text."""
    passage_template: str = "{title} {text}"
    """How a passage is shown; placeholders `{title}` and `{text}`. White space around it is left out."""

    def __post_init__(self) -> None:
        _check_template("template", self.template, {"passage"}, {"passage"})
        _check_template("passage_template", self.passage_template, {"title", "text"}, {"text"})

    def render(self, passage: Passage) -> str:
        """The prompt of one passage as text, uncut."""
        shown = self.passage_template.format(title=passage.title, text=passage.text)
        return self.template.format(passage=shown.strip())

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        passage: Passage,
        *,
        passage_tokens: int,
        max_tokens: int,
        chat: Chat | None = None,
    ) -> list[int]:
        """Prompt ids, at most `max_tokens`; title and text of the passage are cut, the longer of them first.

        Args:
            tokenizer: Of the model that reads.
            passage: The passage.
            passage_tokens: Tokens of title and text together.
            max_tokens: Room for the whole prompt.
            chat: As for `AnswerPrompt.encode`.

        Raises:
            DataError: The prompt does not fit even with the passage cut to nothing.
        """
        chat = chat or Chat(tokenizer)
        escaped, budget = _escaped(chat, passage), passage_tokens
        while budget >= 0:
            title, text = cut_texts(tokenizer, [escaped.title, escaped.text], budget)
            ids = _open(chat, self.render(Passage(passage.id, title, text)))
            if len(ids) <= max_tokens:
                return ids
            # Joining can cost a token or two more than the parts; give exactly that back and try again.
            used = sum(len(encode_document(tokenizer, part)) for part in (title, text))
            budget = max(min(budget, used) - (len(ids) - max_tokens), 0) if used else -1
        raise DataError(
            f"The instructions around an empty passage must fit into {max_tokens} tokens, but they need more. "
            "Shorten the question or the template, or take a model with a longer context."
        )

    def least_tokens(self, tokenizer: PreTrainedTokenizerBase, *, chat: Chat | None = None) -> int:
        """Tokens of the prompt with the passage cut to nothing."""
        return len(_open(chat or Chat(tokenizer), self.render(Passage("", "", ""))))

    def encode_question(
        self, tokenizer: PreTrainedTokenizerBase, question: str, *, chat: Chat | None = None
    ) -> list[int]:
        """Token ids of a question as the reply to the prompt, without an end.

        Raises:
            DataError: It has no tokens.
        """
        chat = chat or Chat(tokenizer)
        text = chat.lead + chat.escape_special_tokens(question.strip())
        ids = encode_without_special_tokens(tokenizer, text, after=_reply_opening(chat)) if question.strip() else []
        if not ids:
            raise DataError(
                f"A question must have at least one token, got {question!r}, of which the tokenizer makes none. "
                "Leave it out, or take a base whose tokenizer knows its characters."
            )
        return ids


def _reply_opening(chat: Chat) -> str:
    """What stands between a prompt's text and its reply: a line of its own where there is no chat template."""
    return chat.reply_opening or "\n"


def _open(chat: Chat, text: str) -> list[int]:
    """Token ids of a prompt, open for a reply."""
    return chat.encode(text) if chat.reply_opening else chat.encode(text + _reply_opening(chat))
