"""Chat templates: prompts and replies of a tokenizer, its control tokens, and the thoughts in replies.

`ChatConfig` is what a user may set, `Chat` applies it to one tokenizer. A tokenizer without a chat template has no
turns: its prompts are plain text.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from generator.configs import TODAY, ChatConfig, moment_of
from indexes.errors import UsageError

# A prompt is measured before it is cut, so a too long one is no reason for the tokenizer to warn.
QUIETLY: dict[str, Any] = {"verbose": False}

# What stands for the texts of a conversation while a template is looked at; no template has them in its own text.
_SYSTEM, _USER, _ASSISTANT = "SYSTEM-5c1e", "USER-5c1e", "ASSISTANT-5c1e"

# Of C's strftime; the forms without a leading zero are GNU's, which templates of Linux users have.
_DIRECTIVES = "aAwdbBmyYHIpMSfzZjUWcxXGuV"
_WITHOUT_ZERO = "dmHIMSj"


@dataclass(frozen=True)
class _Turn:
    """The text that a template writes around an assistant's turn."""

    lead: str
    """Between the prompt and the text."""
    closing: str
    """After the text."""


class Chat:
    """The chat template of one tokenizer with its settings.

    Args:
        tokenizer: Its chat template and its tokens are used.
        config: What the template is given.
        listed_ids: Tokens that end a reply by the model's generation config (its `eos_token_id`, one or several).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        config: ChatConfig | None = None,
        *,
        listed_ids: Collection[int] = (),
    ) -> None:
        self.tokenizer = tokenizer
        self.config = config or ChatConfig()
        self._listed_ids = frozenset(listed_ids)

    def check(self) -> None:
        """Check that the template accepts the settings.

        Raises:
            UsageError: It does not, or the tokenizer has no template.
        """
        config, source = self.config, self._source
        if source is None:
            of_template = ("chat_template_kwargs", "system_message", "prefill")
            if given := [name for name in of_template if getattr(config, name) != getattr(ChatConfig(), name)]:
                raise UsageError(
                    f"{given} are for the chat template of a tokenizer; this one has none. Leave them out, and put "
                    "the instructions into the prompt's own template."
                )
            return
        if unknown := sorted(name for name in config.chat_template_kwargs if not _mentions(source, name)):
            raise UsageError(
                f"chat_template_kwargs must name variables that the chat template reads; {unknown} is nowhere in it. "
                "Look for the right name in the model's documentation."
            )
        self.render(_USER)

    # -- prompts -----------------------------------------------------------------------------------------------

    def render(self, text: str) -> str:
        """The prompt of one user turn as text: with the template, or the text itself where there is none."""
        if self._source is None:
            return text
        return self.open_reply(self._messages(text))

    def encode(self, text: str) -> list[int]:
        """Token ids of the prompt of one user turn, open for a reply."""
        if self._source is None:
            return self.encode_open(text)
        return list(self.tokenizer(self.render(text), add_special_tokens=False, **QUIETLY)["input_ids"])

    def encode_open(self, text: str) -> list[int]:
        """Token ids of a text with the tokenizer's opening special tokens and without its closing ones."""
        ids = list(self.tokenizer(text, add_special_tokens=True, **QUIETLY)["input_ids"])
        return ids[: len(ids) - self._num_closing]

    def open_reply(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation, each turn with its "role" and "content", open for the assistant's next turn.

        Raises:
            UsageError: There is no template, or it refuses the conversation.
        """
        return self._apply(messages, add_generation_prompt=True) + self.config.prefill

    def continue_messages(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation whose last turn is left open.

        Raises:
            UsageError: As `open_reply`.
        """
        return self._apply(messages, continue_final_message=True)

    def with_system_message(self, messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
        """`messages` after the system message of the settings, unless they have one."""
        given = self.config.system_message
        if given is None or (messages and messages[0]["role"] == "system"):
            return list(messages)
        return [{"role": "system", "content": given}, *messages]

    def _messages(self, text: str) -> list[Mapping[str, str]]:
        return self.with_system_message([{"role": "user", "content": text}])

    def _apply(self, messages: Sequence[Mapping[str, str]], **how: Any) -> str:
        source = self._source
        if source is None:
            raise UsageError("A conversation needs a chat template; this tokenizer has none.")
        moment = moment_of(self.config.date)
        variables = {"date_string": moment.strftime("%d %b %Y")} if _mentions(source, "date_string") else {}
        # transformers lets a template read the clock, and takes no other function in place of `strftime_now` (5.23
        # turns every variable into plain data), so the template gets a macro of that name.
        if self.config.date != TODAY and _mentions(source, "strftime_now"):
            source = _clock_macro(moment) + source
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    chat_template=source,
                    tokenize=False,
                    **how,
                    **variables | self.config.chat_template_kwargs,
                )
            )
        except (TemplateError, TypeError, ValueError) as error:
            roles = [message["role"] for message in messages]
            raise UsageError(
                f"The chat template must take turns of {roles} with the settings {self.config}; it refuses: {error}. "
                "A template that takes no system message needs it in the prompt's own template."
            ) from error

    @cached_property
    def _source(self) -> str | None:
        """The template itself; of several, the one that transformers takes by default."""
        if self.tokenizer.chat_template is None:
            return None
        try:
            return str(self.tokenizer.get_chat_template())
        except ValueError as error:
            raise UsageError(f"A tokenizer with several chat templates needs one called default: {error}") from error

    @cached_property
    def _num_closing(self) -> int:
        """How many special tokens the tokenizer appends to a text (T5 and some others close every text)."""
        bare = list(self.tokenizer("x", add_special_tokens=False)["input_ids"])
        if not bare:
            return 0
        whole = list(self.tokenizer("x", add_special_tokens=True)["input_ids"])
        opening = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        return len(whole) - opening - len(bare)

    @property
    def template_system_message(self) -> str | None:
        """The system message that the template adds where none is given; None where it cannot be determined."""
        if self._source is None:
            return None
        user = {"role": "user", "content": _USER}
        try:
            given = self._apply([{"role": "system", "content": _SYSTEM}, user])
        except UsageError:
            return None
        opening, _, rest = given.partition(_SYSTEM)
        closing = rest.partition(_USER)[0]
        own = self._apply([user]).partition(_USER)[0]
        if not (own.startswith(opening) and own.endswith(closing)):
            return None
        return own[len(opening) : len(own) - len(closing)] or None

    # -- control tokens ----------------------------------------------------------------------------------------

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Control tokens, which no document may contain.

        `all_special_ids` alone are those that have a role in the tokenizer (eos, bos, pad ...). The tokens of Gemma's,
        Phi-3's or the first Llama 3's turns have none, nor have most in a tokenizer that transformers 5.23 makes from a
        GGUF file (3 of SmolLM2's 17). So every added token counts that is marked special, that the generation config
        lists, or that the template writes (DeepSeek-R1 does not mark its token of a user's turn special).
        """
        added = self.tokenizer.added_tokens_decoder
        marked = {i for i, token in added.items() if token.special or i in self._listed_ids}
        written = {i for i, token in added.items() if _is_mark(token.content) and token.content in self._written}
        return frozenset({*self.tokenizer.all_special_ids, *marked, *written})

    @cached_property
    def _written(self) -> str:
        """The template and a conversation rendered by it: a template may compose the names of tokens from parts."""
        if self._source is None:
            return ""
        turns = [*self._messages(_USER), {"role": "assistant", "content": _ASSISTANT}]
        return "\n".join([self._source, self.render(_USER), self._apply(turns)])

    @cached_property
    def _names(self) -> re.Pattern[str]:
        """Any control token, the longest first: one may be part of another."""
        found = {str(self.tokenizer.convert_ids_to_tokens(i)) for i in self.control_ids}
        names = sorted((name for name in found if len(name) > 1 and not name.isspace()), key=lambda n: (-len(n), n))
        return re.compile("|".join(map(re.escape, names)) or "(?!)")  # (?!) matches nothing

    def escape_special_tokens(self, text: str) -> str:
        """`text` with the names of control tokens broken by a space, so that a document cannot end the user's turn."""
        for _ in range(2):  # the second time for a name inside a longer one
            text = self._names.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
        return text

    # -- replies -----------------------------------------------------------------------------------------------

    @cached_property
    def end_of_answer_id(self) -> int:
        """The token that closes an assistant's turn: the first control token that the template writes after its text.

        Where there is no template, or it writes none, it is the end-of-sequence token.
        """
        closing = list(self.tokenizer(self._turn.closing, add_special_tokens=False)["input_ids"])
        ends = self.control_ids | self._listed_ids
        return next((int(i) for i in closing if i in ends), int(self.tokenizer.eos_token_id))

    @cached_property
    def stop_ids(self) -> list[int]:
        """Every token that ends a reply: the closing of the turn, and what tokenizer and generation config name."""
        return sorted({self.end_of_answer_id, int(self.tokenizer.eos_token_id), *self._listed_ids})

    @cached_property
    def reply_opening(self) -> str:
        """The end of every prompt after the user's text; empty without a template."""
        return "" if self._source is None else self.render(_USER).rpartition(_USER)[2]

    @property
    def lead(self) -> str:
        """White space that the template writes between the prompt and the assistant's text (Llama 2, Mistral: " ")."""
        return self._turn.lead if self._turn.lead.isspace() else ""

    @cached_property
    def _turn(self) -> _Turn:
        if self._source is None:
            return _Turn("", "")
        turns = [*self._messages(_USER), {"role": "assistant", "content": _ASSISTANT}]
        before, found, closing = self._apply(turns).rpartition(_ASSISTANT)
        prompt = self.render(_USER)
        lead = before[len(prompt) :] if before.startswith(prompt) else ""
        return _Turn(lead, closing) if found else _Turn("", "")

    def read_reply(self, prompt_ids: Sequence[int], reply_ids: Sequence[int]) -> "Reply":
        """A generated reply without its thoughts.

        Args:
            prompt_ids: The prompt.
            reply_ids: The reply as generated; it is cut before the first stop token.
        """
        reader = ReplyReader(self, prompt_ids)
        answer = [i for token in reply_ids for i in reader.read(token)]
        return Reply(answer + reader.finish(), has_thought=reader.has_thought, is_cut_off=reader.is_cut_off)


@dataclass(frozen=True)
class Reply:
    """A reply without its thoughts."""

    answer_ids: list[int]
    has_thought: bool
    """Whether a thought was removed."""
    is_cut_off: bool
    """Whether it was cut off inside a thought, so that there is no answer."""


class ReplyReader:
    """Reads a reply token by token and returns the tokens that belong to the answer.

    A thought stands at the beginning of a reply, from the start mark (or from the first token, where the prompt ends
    with the mark) to the end mark; several in a row, and an end mark without a start, are removed too. A thought that
    does not end leaves no answer, with one exception: where the *prompt* opened it and the reply ended by itself, the
    reply is the answer, since a model that is trained on answers after such a prompt writes no end mark.

    Args:
        chat: Its settings have the marks.
        prompt_ids: The prompt.
    """

    def __init__(self, chat: Chat, prompt_ids: Sequence[int]) -> None:
        self._chat = chat
        self._start, self._end = chat.config.thought_start, chat.config.thought_end
        self._stop_ids = frozenset(chat.stop_ids)
        self._opened_by_prompt = bool(self._start) and self._text(
            prompt_ids[-len(self._start.encode()) - _SPACE_TOKENS :]
        ).rstrip().endswith(self._start)
        self._in_thought = self.has_thought = self._opened_by_prompt
        self._in_answer = not self._start
        self._held: list[int] = []
        """Tokens that may yet turn out to be part of the answer."""
        self.has_ended = False

    @property
    def is_cut_off(self) -> bool:
        """Whether the reply is inside a thought and was not ended."""
        return self._in_thought and not self.has_ended

    def read(self, token: int) -> list[int]:
        """Take one token; returns those that are now known to belong to the answer."""
        self.has_ended |= token in self._stop_ids
        if self.has_ended:
            return []
        if self._in_answer:
            return [token]
        self._held.append(token)
        return self._read_thought() if self._in_thought else self._read_beginning()

    def finish(self) -> list[int]:
        """The held-back tokens that belong to the answer, once the reply is complete."""
        if self._in_thought and not (self._opened_by_prompt and self.has_ended):
            return []
        self.has_thought &= not self._in_thought
        return self._held

    def _read_thought(self) -> list[int]:
        # A token is at least one byte, so the mark is in the last so many tokens once it is there.
        if self._end in self._text(self._held[-len(self._end.encode()) :]):
            self._in_thought = self._opened_by_prompt = False
            self._held = []
        return []

    def _read_beginning(self) -> list[int]:
        text = self._text(self._held).lstrip()
        if text.startswith((self._start, self._end)):
            self._in_thought, self.has_thought = text.startswith(self._start), True
            self._held = []
        elif not (self._start.startswith(text) or self._end.startswith(text) or text.endswith("\ufffd")):
            self._in_answer = True
            held, self._held = self._held, []
            return held
        return []

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._chat.tokenizer.decode(list(ids), skip_special_tokens=False))


# White space after a mark: at most this many tokens.
_SPACE_TOKENS = 4


def _mentions(source: str, name: str) -> bool:
    """Whether a template contains a name, and so may read a variable of that name."""
    return re.search(rf"\b{re.escape(name)}\b", source) is not None


def _is_mark(name: str) -> bool:
    """Whether an added token that is not marked special may be a control token; words and white space are not."""
    return len(name) > 1 and not name.isspace() and not name.isalnum()


def _clock_macro(moment: datetime) -> str:
    """Jinja code to put before a template, so that `strftime_now` returns the given time."""
    values = {f"%{letter}": moment.strftime(f"%{letter}") for letter in _DIRECTIVES}
    values |= {f"%-{letter}": values[f"%{letter}"].lstrip("0") or "0" for letter in _WITHOUT_ZERO}
    values |= {"%e": f"{moment.day:2d}", "%F": moment.strftime("%Y-%m-%d"), "%T": moment.strftime("%H:%M:%S")}
    values |= {"%D": moment.strftime("%m/%d/%y"), "%R": moment.strftime("%H:%M"), "%h": values["%b"]}
    filters = "".join(f"|replace({json.dumps(name)}, {json.dumps(value)})" for name, value in values.items())
    # The newline is taken away again by `trim_blocks`; the template begins a line as it did before.
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n"
