"""Chat templates with settings, and thoughts before an answer."""

import logging
import re
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from test_control_tokens import CHATML, NEWLINE, gemma_tokenizer
from tiny_models import PASSAGES, added_tokenizer, byte_tokenizer, successor_model, tiny_language_model
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from generator.chat import Chat
from generator.configs import AdapterConfig, ChatConfig, DecodingConfig
from generator.generator import Generator
from generator.language_model import LanguageModel
from indexes.errors import UsageError

SMOLLM = (  # as SmolLM2-Instruct's: a system message of its own
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """As Qwen3's: the marks of a thought are added tokens that are not special."""
    return added_tokenizer(
        ["<|im_start|>"], plain=["<think>", "</think>"], template=template, eos="<|im_end|>", unk_token="<|im_end|>"
    )


def tokens_of(tokenizer: PreTrainedTokenizerFast, *texts: str) -> list[int]:
    return [i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]]


# -- control tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [False, True])
def test_added_tokens_count_as_control_tokens_where_config_or_template_name_them(listed: bool) -> None:
    """DeepSeek-R1 does not mark its token of a user's turn; a generation config may list another one."""
    tokenizer = added_tokenizer(
        ["<|a|>"],
        plain=["<|u|>", "<|stop|>", "user", "\n\n", "<table>"],
        template="<|u|>{{ messages[0].content }}user\n\n<|a|>",
    )
    stop = tokenizer.convert_tokens_to_ids("<|stop|>")
    chat = Chat(tokenizer, listed_ids=[stop] if listed else [])
    expected = "< |u|> user \n\n <table> " + ("< |stop|>" if listed else "<|stop|>")
    assert chat.escape_special_tokens("<|u|> user \n\n <table> <|stop|>") == expected


def test_control_tokens_composed_by_a_template_are_found() -> None:
    """Phi-4-mini writes '<|' + role + '|>': the name stands nowhere in the template."""
    tokenizer = added_tokenizer(
        plain=["<|user|>", "<|end|>"], template="{{ '<|' + messages[0].role + '|>' + messages[0].content + '<|end|>' }}"
    )
    assert Chat(tokenizer).escape_special_tokens("<|user|>x<|end|>") == "< |user|>x< |end|>"


def test_a_control_token_inside_another_is_broken_too() -> None:
    chat = Chat(added_tokenizer(["<a>", "<<a>>"]))
    assert not set(tokens_of(chat.tokenizer, chat.escape_special_tokens("x<<a>>y<a>"))) & chat.control_ids


# -- settings ------------------------------------------------------------------------------------------------------


def test_a_template_gets_its_variables() -> None:
    """LlamaFactory#8816: thinking can be switched off."""
    tokenizer = chatml_tokenizer()
    chat = Chat(tokenizer, ChatConfig(chat_template_kwargs={"enable_thinking": False}))
    assert chat.render("hi") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert chat.encode("hi") == tokens_of(tokenizer, chat.render("hi"))
    assert Chat(tokenizer).render("hi").endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template_kwargs": {"enable_thinkng": False}}, r"\['enable_thinkng'\] is nowhere in it"),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, r"\['add_generation_prompt'\] are set by the lib"),
        ({"chat_template_kwargs": {"messages": []}}, r"\['messages'\] are set by the library"),
        ({"chat_template_kwargs": {"enable_thinking": object()}}, "must be JSON"),
        ({"date": "yesterday"}, "date must be YYYY-MM-DD.*got 'yesterday'"),
        ({"thought_end": ""}, "must both be given, or both be empty"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Chat(chatml_tokenizer(), ChatConfig(**settings)).check()


@pytest.mark.parametrize("settings", [{"system_message": ""}, {"prefill": "x"}, {"chat_template_kwargs": {"a": 1}}])
def test_settings_without_a_template_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="this one has none"):
        Chat(byte_tokenizer(chat=False), ChatConfig(**settings)).check()
    Chat(byte_tokenizer(chat=False)).check()


def test_a_system_message_stands_before_the_prompt() -> None:
    chat = Chat(chatml_tokenizer(), ChatConfig(system_message="Be short."))
    assert chat.render("hi") == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert Chat(chatml_tokenizer()).template_system_message is None


def test_a_system_message_of_the_template_is_shown_and_replaced() -> None:
    tokenizer = chatml_tokenizer(SMOLLM)
    chat = Chat(tokenizer)
    assert chat.template_system_message == "You are SmolLM"
    assert chat.render("hi").startswith("<|im_start|>system\nYou are SmolLM<|im_end|>\n<|im_start|>user\nhi")
    replaced = Chat(tokenizer, ChatConfig(system_message="Be short."))
    assert replaced.render("hi").startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\nhi")
    assert replaced.template_system_message == "You are SmolLM"


def test_a_template_without_system_messages_is_refused(tmp_path: Path) -> None:
    tokenizer = gemma_tokenizer(tmp_path)
    with pytest.raises(UsageError, match=r"\['system', 'user'\].*System role not supported"):
        Chat(tokenizer, ChatConfig(system_message="Be short.")).check()
    assert Chat(tokenizer).template_system_message is None


def test_a_prefill_begins_the_reply() -> None:
    """DeepSeek-R1's template opens a thought and has no variable against it; a prefill closes it."""
    settings = ChatConfig(chat_template_kwargs={"always_thinking": True}, prefill="</think>\n\n")
    assert Chat(chatml_tokenizer(), settings).render("hi").endswith("assistant\n<think>\n</think>\n\n")


# -- dates ---------------------------------------------------------------------------------------------------------

FORMATS = "%d %b %Y|%B %d, %Y|%Y-%m-%d|%A %a %H:%M:%S %j %y %I %p|%-d/%-m|%e %F %T"


def dated(source: str, **settings: object) -> str:
    template = source + "{{ messages[-1].content }}{% if false %}{% endif %}"
    return Chat(added_tokenizer(template=template), ChatConfig(**settings)).render("hi")


@pytest.mark.parametrize("date", ["2024-03-07", "2026-11-29T23:05:09"])
@pytest.mark.parametrize("form", FORMATS.split("|"))
def test_a_template_that_asks_for_the_time_gets_the_date_of_the_settings(form: str, date: str) -> None:
    """sglang#3296; Llama 3.2, Mistral Small 3, Granite 3, SmolLM3."""
    expected = datetime.fromisoformat(date).strftime(form)
    assert dated("{{ strftime_now('" + form + "') }}", date=date) == f"{expected}hi"
    assert dated("{% macro m(f) %}{{ strftime_now(format=f) }}{% endmacro %}{{ m('" + form + "') }}", date=date) == (
        f"{expected}hi"
    )


def test_the_date_is_fixed_by_default() -> None:
    """The one that Llama 3.1's template writes unless it is told another."""
    llama = (
        "{% if not date_string is defined %}{% if strftime_now is defined %}"
        '{% set date_string = strftime_now("%d %b %Y") %}{% else %}{% set date_string = "26 Jul 2024" %}{% endif %}'
        "{% endif %}{{ date_string }} "
    )
    assert dated(llama) == "26 Jul 2024 hi"
    assert dated(llama, date="2026-03-01") == "01 Mar 2026 hi"
    assert dated("{{ strftime_now('%d %b %Y') }} ") == "26 Jul 2024 hi"
    assert dated(llama, chat_template_kwargs={"date_string": "1 May 1999"}, date="2026-03-01") == "1 May 1999 hi"


def test_today_reads_the_clock() -> None:
    before = datetime.now().strftime("%Y-%m-%d ")
    found = dated("{{ strftime_now('%Y-%m-%d ') }}", date="today")
    named = dated("{{ date_string }} ", date="today")
    after = datetime.now()
    assert found in (f"{before}hi", after.strftime("%Y-%m-%d hi"))
    assert named in (datetime.fromisoformat(before.strip()).strftime("%d %b %Y hi"), after.strftime("%d %b %Y hi"))


@pytest.mark.parametrize("start", ["", "\n", "  ", "\n\n  ", "  {% if true %}\n", "{# x #}\n"])
def test_a_date_changes_nothing_else_of_a_template(start: str) -> None:
    """What a template makes of white space depends on where its lines begin."""
    source = start + "x{% if strftime_now %}{% endif %}\n  {% if true %}\n y{% endif %}{% if true %}"
    source += "{% endif %}" * (start.count("if") + 1)
    tokenizer = added_tokenizer(template=source)
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert Chat(tokenizer).render("hi") == expected


# -- thoughts ------------------------------------------------------------------------------------------------------

ENDS, CUT = True, False


@pytest.mark.parametrize(
    ("prompt", "reply", "how", "answer", "has_thought"),
    [
        ("assistant\n", "Rom", ENDS, "Rom", False),
        ("assistant\n", "Rom", CUT, "Rom", False),
        ("assistant\n", "<think>\nhm\n</think>\n\nRom", ENDS, "Rom", True),
        ("assistant\n", "\n<think></think>Rom", CUT, "Rom", True),
        ("assistant\n", "<think>a</think>\n<think>b</think>Rom", ENDS, "Rom", True),
        ("assistant\n", "</think>\n\nRom", ENDS, "Rom", True),
        ("assistant\n", "<think>hm", CUT, "", True),
        ("assistant\n", "<think>hm", ENDS, "", True),
        ("assistant\n", "see <think>x</think>", ENDS, "see <think>x</think>", False),
        ("assistant\n", "<", ENDS, "<", False),
        ("assistant\n", "<thin air>", ENDS, "<thin air>", False),
        ("assistant\n", "", ENDS, "", False),
        ("assistant\n<think>\n", "hm</think>Rom", ENDS, "Rom", True),
        ("assistant\n<think>\n", "hm", CUT, "", True),
        ("assistant\n<think>\n", "Rom", ENDS, "Rom", False),  # as a model says that was trained on answers
        ("assistant\n<think>\n\n</think>\n\n", "Rom", CUT, "Rom", False),
    ],
)
@pytest.mark.parametrize("marks", ["added", "special", "spelled"])
def test_thoughts_are_removed_from_replies(
    marks: str, prompt: str, reply: str, how: bool, answer: str, has_thought: bool
) -> None:
    """`ends`: with the token that ends it; cut: after max_new_tokens. A mark is one token, or many."""
    names = ["<think>", "</think>"]
    tokenizer = added_tokenizer(names if marks == "special" else [], plain=names if marks == "added" else [])
    chat = Chat(tokenizer)
    ids = tokens_of(tokenizer, reply)
    found = chat.read_reply(tokens_of(tokenizer, prompt), [*ids, *[tokenizer.eos_token_id, 70] * how])
    assert tokenizer.decode(found.answer_ids).strip() == answer
    assert found.has_thought == has_thought
    assert found.is_cut_off == (how is CUT and not answer)


def test_other_thought_marks_and_none() -> None:
    tokenizer = added_tokenizer(["[THINK]", "[/THINK]"])
    reply = tokens_of(tokenizer, "[THINK]hm[/THINK]Rom")
    found = Chat(tokenizer, ChatConfig(thought_start="[THINK]", thought_end="[/THINK]")).read_reply([], reply)
    assert tokenizer.decode(found.answer_ids) == "Rom"
    kept = Chat(tokenizer, ChatConfig(thought_start="", thought_end="")).read_reply([], reply)
    assert kept.answer_ids == reply


def thinker(reply: Sequence[str], **settings: object) -> LanguageModel:
    """Behind the opening of an assistant's turn it says these tokens, which are all different."""
    tokenizer = chatml_tokenizer()
    base = successor_model(tokenizer, dict(pairwise([NEWLINE, *reply])))
    return LanguageModel(base, tokenizer, adapter=AdapterConfig(r=2), chat=ChatConfig(**settings))


def test_thoughts_are_removed_from_answers_streams_and_log_probs() -> None:
    generator = Generator(thinker(["<think>", "h", "m", "</think>", "R", "o", "t", "<|im_end|>"]))
    assert generator.generate(["Where?"] * 2, [PASSAGES[:1]] * 2) == ["Rot", "Rot"]
    pieces = list(generator.stream("Where?", PASSAGES[:1]))
    assert "".join(pieces) == "Rot"
    row = generator.answer_sequence("Where?", PASSAGES[:1], "Rot")
    assert generator.language_model.tokenizer.convert_ids_to_tokens(row.answer_ids) == ["R", "o", "t", "<|im_end|>"]


def test_a_thought_without_end_is_no_answer_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = thinker(["<think>", "h", "u", "h"])
    generator = Generator(model, config=DecodingConfig(max_new_tokens=6))
    with caplog.at_level(logging.WARNING):
        assert generator.generate(["Where?"], [PASSAGES[:1]]) == [""]
    assert re.search(r"1 of 1 replies were still in a thought after 6 tokens.*enable_thinking", caplog.text)
    assert "".join(generator.stream("Where?", PASSAGES[:1])) == ""


# -- the beginning of an answer --------------------------------------------------------------------------------------


def test_an_answer_begins_with_the_white_space_of_the_template() -> None:
    """Llama 2 and Mistral write "[/INST] answer</s>": the blank belongs to no prompt."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    tokenizer = added_tokenizer(["[INST]", "[/INST]"], template=template, eos="</s>")
    generator = Generator(LanguageModel(successor_model(tokenizer, {}), tokenizer, adapter=AdapterConfig(r=2)))
    row = generator.answer_sequence("Where?", PASSAGES[:1], "Rom")
    assert tokenizer.decode(row.input_ids[-12:]).endswith("[/INST] Rom</s>")
    assert Generator(tiny_language_model()).language_model.chat.lead == ""


def test_closing_tokens_of_a_tokenizer_are_not_part_of_a_prompt() -> None:
    """With a separator that is not the end-of-sequence token."""
    tokenizer = added_tokenizer(["[CLS]", "[SEP]"])
    pieces = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=pieces
    )
    assert tokenizer.convert_ids_to_tokens(tokenizer("hi")["input_ids"]) == ["[CLS]", "h", "i", "[SEP]"]
    assert tokenizer.convert_ids_to_tokens(Chat(tokenizer).encode("hi")) == ["[CLS]", "h", "i"]
