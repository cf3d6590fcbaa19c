"""Broken input of every kind: a clear error, or the sound rows and a quarantine that names the others.

A kind is a format and one way to break it; hypothesis draws where it happens and with what. A kind is either a broken
*row*, which reading may leave out, or a broken *whole*, which it may not.
"""

import datetime
import decimal
import gzip
import io
import json
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_sources import docx, paragraph, pdf

from indexes import Corpus, Passage
from indexes.errors import RAGError

EXAMPLES = 3
WORDS = ("alpha", "Beta", "gämma", "漢字", "naïve", "🙂", "x", "a,b", "it's", "[1]", "{}", "\\")
ASCII = ("alpha", "beta", "gamma", "delta")

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Case:
    """Broken input, and what must come of it.

    Attributes:
        path: What is read.
        good: The passages that skipping leaves; none when the whole is broken.
        unit: What the places count.
        broken: The numbers of the places that are left out, in no order.
        source: What the error must name.
        named: The number that the error names, where that is not one of the broken.
        options: Further arguments of `Corpus.from_file`.
    """

    path: Path
    good: list[Passage] = field(default_factory=list)
    unit: str = ""
    broken: list[int | str] = field(default_factory=list)
    source: str = ""
    named: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


Kind = Callable[[Draw, Path], Case]
KINDS: dict[str, Kind] = {}


def add(name: str, kind: Kind) -> None:
    assert name not in KINDS, name
    KINDS[name] = kind


def words(draw: Draw, vocabulary: tuple[str, ...] = WORDS) -> str:
    return " ".join(draw(st.lists(st.sampled_from(vocabulary), min_size=1, max_size=6)))


def sound(draw: Draw, name: str, vocabulary: tuple[str, ...] = WORDS) -> Passage:
    return Passage(name, draw(st.sampled_from(("", "Title"))), words(draw, vocabulary))


def around(draw: Draw, vocabulary: tuple[str, ...] = WORDS, least: int = 1) -> tuple[list[Passage], list[Passage]]:
    """Sound passages before and after a broken one; there is always one before."""
    before = [sound(draw, f"b{n}", vocabulary) for n in range(draw(st.integers(1, 3)))]
    return before, [sound(draw, f"c{n}", vocabulary) for n in range(draw(st.integers(least, least + 2)))]


def as_row(passage: Passage) -> dict[str, str]:
    return {"id": passage.id, "title": passage.title, "text": passage.text}


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def whole(name: str, make: Callable[[Draw], bytes], file: str = "") -> None:
    """A file that cannot be read at all, or not to its end."""

    def kind(draw: Draw, folder: Path) -> Case:
        return Case(put(folder / (file or name.partition(":")[0]), make(draw)))

    add(name, kind)


# ---------------------------------------------------------------------------------------------------------
# JSON lines: what stands on the broken line
# ---------------------------------------------------------------------------------------------------------


def json_lines(passages: list[Passage], end: bytes = b"\n") -> bytes:
    return b"".join(json.dumps(as_row(passage), ensure_ascii=False).encode() + end for passage in passages)


def json_kind(name: str, make: Callable[[Draw], bytes], wrap: Callable[[Path, bytes], Path] | None = None) -> None:
    """`make` returns one or more lines, all of them broken."""

    def kind(draw: Draw, folder: Path) -> Case:
        before, after = around(draw)
        end = draw(st.sampled_from((b"\n", b"\r\n")))
        bad = make(draw)
        content = json_lines(before, end) + bad + b"\n" + json_lines(after, b"\n")
        path = wrap(folder, content) if wrap else put(folder / "c.jsonl", content)
        numbers = [len(before) + 1 + n for n in range(bad.count(b"\n") + 1)]
        return Case(path, before + after, "line", numbers, "jsonl")

    add(name, kind)


def field_kind(name: str, make: Callable[[Draw], Any], base: dict[str, Any] | None = None) -> None:
    """A line whose object has fields that make no passage."""

    def line(draw: Draw) -> bytes:
        return json.dumps({**({"id": "bad", "text": "x"} if base is None else base), **make(draw)}).encode()

    json_kind(f"jsonl: {name}", line)


def cut(draw: Draw) -> bytes:
    line = json.dumps(as_row(Passage("bad", "Title", words(draw)))).encode()
    return line[: draw(st.integers(1, len(line) - 1))]


def nested(opening: str, closing: str) -> Callable[[Draw], bytes]:
    def line(draw: Draw) -> bytes:
        depth = draw(st.integers(100_000, 200_000))
        return f'{{"id": "bad", "text": "x", "extra": {opening * depth}0{closing * depth}}}'.encode()

    return line


def inside(raw: bytes) -> Callable[[Draw], bytes]:
    """Bytes that may not stand in the middle of a text."""
    return lambda draw: b'{"id": "bad", "text": "' + words(draw, ASCII).encode() + raw + b'"}'


JSON_LINES: dict[str, Callable[[Draw], bytes]] = {
    "cut off": cut,
    "no closing brace": lambda draw: b'{"id": "bad", "text": "x"',
    "no opening brace": lambda draw: b'"id": "bad", "text": "x"}',
    "no colon": lambda draw: b'{"id" "bad", "text": "x"}',
    "no comma": lambda draw: b'{"id": "bad" "text": "x"}',
    "comma at the end": lambda draw: b'{"id": "bad", "text": "x",}',
    "comma behind the object": lambda draw: b'{"id": "bad", "text": "x"},',
    "no value": lambda draw: b'{"id": "bad", "text": }',
    "single quotes": lambda draw: b"{'id': 'bad', 'text': 'x'}",
    "bare key": lambda draw: b'{id: "bad", "text": "x"}',
    "bare text": lambda draw: words(draw, ASCII).encode(),
    "Python's None": lambda draw: b'{"id": None, "text": "x"}',
    "comment": lambda draw: b'// {"id": "bad", "text": "x"}',
    "two objects": lambda draw: b'{"id": "bad", "text": "x"} {"id": "worse", "text": "y"}',
    "lone carriage return as newline": lambda draw: b'{"id": "bad", "text": "x"}\r{"id": "worse", "text": "y"}',
    "list": lambda draw: json.dumps(["bad", words(draw)]).encode(),
    "list of objects": lambda draw: b'[{"id": "bad", "text": "x"}]',
    "string": lambda draw: json.dumps(words(draw)).encode(),
    "number": lambda draw: str(draw(st.integers())).encode(),
    "null": lambda draw: b"null",
    "true": lambda draw: b"true",
    "not a number": lambda draw: b"NaN",
    "object over several lines": lambda draw: b'{\n"id": "bad", "text": "x"\n}',
    "newline in a text": lambda draw: b'{"id": "bad", "text": "x\ny"}',
    "tab in a text": inside(b"\t"),
    "escape character in a text": inside(b"\x1b"),
    "unknown escape": inside(b"\\x41"),
    "short escape": inside(b"\\u12"),
    "backslash before the quote": inside(b"\\"),
    "lone high surrogate": inside(b"\\ud83d"),
    "lone low surrogate": inside(b"\\ude00"),
    "surrogates in the wrong order": inside(b"\\ude00\\ud83d"),
    "surrogate in the id": lambda draw: b'{"id": "bad\\udfff", "text": "x"}',
    "surrogate in the title": lambda draw: b'{"id": "bad", "title": "\\ud800", "text": "x"}',
    "surrogate in contents": lambda draw: b'{"id": "bad", "contents": "t\\nx\\udc80"}',
    "surrogate in UTF-8": inside(b"\xed\xa0\x80"),
    "NUL byte": inside(b"\0"),
    "NUL bytes only": lambda draw: b"\0" * draw(st.integers(1, 50)),
    "byte order mark in the middle": lambda draw: b'\xef\xbb\xbf{"id": "bad", "text": "x"}',
    "Latin-1": lambda draw: '{"id": "bad", "text": "müde"}'.encode("latin-1"),
    "overlong UTF-8": inside(b"\xc0\xaf"),
    "beyond Unicode": inside(b"\xf4\x90\x80\x80"),
    "character cut in half": inside("漢".encode()[:2]),
    "UTF-16": lambda draw: '{"id": "bad", "text": "x"}'.encode("utf-16-le"),
    "Git conflict": lambda draw: b"<<<<<<< HEAD\n=======\n>>>>>>> theirs",
    "lists a hundred thousand deep": nested("[", "]"),
    "objects a hundred thousand deep": nested('{"a":', "}"),
    "number of ten thousand digits": lambda draw: (
        b'{"text": "x", "id": ' + b"9" * draw(st.integers(5000, 10_000)) + b"}"
    ),
    "id twice": lambda draw: b'{"id": "bad", "id": "worse", "text": "x"}',
    "text twice": lambda draw: b'{"id": "bad", "text": "x", "text": "y"}',
    "key twice inside": lambda draw: b'{"id": "bad", "text": "x", "metadata": {"a": 1, "a": 2}}',
}
for name, make in JSON_LINES.items():
    json_kind(f"jsonl: {name}", make)

NO_TEXT: dict[str, Any] = {
    "empty": "",
    "blanks": " \t\r\n",
    "blanks of Unicode": "\u2003\u3000\u2028",
    "null": None,
    "integer": 5,
    "float": 1.5,
    "true": True,
    "false": False,
    "list of strings": ["x"],
    "object": {"a": "x"},
    "not a number": float("nan"),
    "infinity": float("inf"),
}
for name, value in NO_TEXT.items():
    field_kind(f"text is {name}", lambda draw, value=value: {"text": value})
for name in ("empty", "blanks", "integer", "list of strings", "object", "true"):
    field_kind(f"contents is {name}", lambda draw, name=name: {"contents": NO_TEXT[name]}, {"id": "bad"})
for name in ("integer", "float", "true", "list of strings", "object"):
    field_kind(f"title is {name}", lambda draw, name=name: {"title": NO_TEXT[name]})
for name, value in {
    "float": 7.0,
    "not a number": float("nan"),
    "infinity": float("-inf"),
    "number beyond floats": None,
    "true": True,
    "false": False,
    "list": [1],
    "object": {"a": 1},
    "empty": "",
    "blanks": " \n",
}.items():
    if value is not None:
        field_kind(f"id is {name}", lambda draw, value=value: {"id": value})
        if name in ("float", "true", "list", "empty"):
            field_kind(f"_id is {name}", lambda draw, value=value: {"_id": value}, {"text": "x"})
json_kind("jsonl: id is a number beyond floats", lambda draw: b'{"text": "x", "id": 1e999}')
field_kind("object without fields", lambda draw: {}, {})
field_kind("only an id", lambda draw: {}, {"id": "bad"})
field_kind("only a title", lambda draw: {"title": words(draw)}, {})
field_kind(
    "text under another name", lambda draw: {draw(st.sampled_from(("body", "Text", "passage"))): "x"}, {"id": "b"}
)
field_kind("a question instead of a passage", lambda draw: {"question": "?", "golden_answers": ["!"]}, {"id": "q"})
field_kind("id that came before", lambda draw: {"id": "b0"})
field_kind("_id that came before as id", lambda draw: {"_id": "b0"}, {"text": "x"})


def number_that_came_before(draw: Draw, folder: Path) -> Case:
    """A row without an id is named by its number, which another row may have taken."""
    path = put(folder / "c.jsonl", b'{"id": 1, "text": "x"}\n{"text": "y"}\n{"id": "2", "text": "z"}\n{"text": "w"}\n')
    return Case(path, [Passage("1", "", "x"), Passage("2", "", "z"), Passage("3", "", "w")], "line", [2], "c.jsonl")


def integer_and_string(draw: Draw, folder: Path) -> Case:
    number = draw(st.integers())
    content = f'{{"id": {number}, "text": "x"}}\n{{"id": "{number}", "text": "y"}}\n'
    return Case(put(folder / "c.jsonl", content.encode()), [Passage(str(number), "", "x")], "line", [2], "c.jsonl")


def many_equal_ids(draw: Draw, folder: Path) -> Case:
    count = draw(st.integers(3, 1500))
    path = put(folder / "c.jsonl", b'{"id": "a", "text": "x"}\n' * count)
    return Case(path, [Passage("a", "", "x")], "line", list(range(2, count + 1)), "c.jsonl")


def every_other_row(draw: Draw, folder: Path) -> Case:
    passages = [sound(draw, f"g{n}") for n in range(draw(st.integers(2, 20)))]
    path = put(folder / "c.jsonl", b"".join(json_lines([passage]) + b"{\n\n" for passage in passages))
    return Case(path, passages, "line", [3 * n + 2 for n in range(len(passages))], "c.jsonl")


def last_line_cut(draw: Draw, folder: Path) -> Case:
    before, _ = around(draw)
    path = put(folder / "c.jsonl", json_lines(before) + cut(draw))
    return Case(path, before, "line", [len(before) + 1], "c.jsonl")


def mark_twice(draw: Draw, folder: Path) -> Case:
    passages = [sound(draw, "a"), sound(draw, "b")]
    path = put(folder / "c.jsonl", b"\xef\xbb\xbf" * 2 + json_lines(passages))
    return Case(path, passages[1:], "line", [1], "c.jsonl")


for kind in (number_that_came_before, integer_and_string, many_equal_ids, every_other_row, last_line_cut, mark_twice):
    add(f"jsonl: {kind.__name__.replace('_', ' ')}", kind)

whole("empty.jsonl", lambda draw: b"")
whole("blank.jsonl", lambda draw: b" \n" * draw(st.integers(1, 5)))
whole("mark.jsonl", lambda draw: b"\xef\xbb\xbf")
whole("utf16.jsonl", lambda draw: json_lines([sound(draw, "a")]).decode().encode("utf-16"))
whole("utf16-without-mark.jsonl", lambda draw: b'{"id": "a", "text": "x"}\n'.decode().encode("utf-16-be"))
whole("utf32.jsonl", lambda draw: b'{"id": "a", "text": "x"}\n'.decode().encode("utf-32"))
whole("array.jsonl", lambda draw: json.dumps([as_row(sound(draw, "a"))]).encode())
whole("pretty.jsonl", lambda draw: json.dumps([as_row(sound(draw, "a"))], indent=1).encode())
whole("page.jsonl", lambda draw: b"<!DOCTYPE html>\n<html><body>404</body></html>\n")
whole("pointer.jsonl", lambda draw: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
whole("picture.jsonl", lambda draw: b"\x89PNG\r\n\x1a\n" + draw(st.binary(max_size=40)))
whole("noise.jsonl", lambda draw: b"\xff" + draw(st.binary(max_size=200)))
whole("deep.jsonl", lambda draw: b"[" * draw(st.integers(100_000, 300_000)))
whole("unknown.dat", lambda draw: json_lines([sound(draw, "a")]))
whole("no-suffix", lambda draw: json_lines([sound(draw, "a")]))
whole("c.jsonl.bz2", lambda draw: json_lines([sound(draw, "a")]))
whole("c.parquet.gz", lambda draw: gzip.compress(b"PAR1"))
whole("c.gz", lambda draw: gzip.compress(json_lines([sound(draw, "a")])))

# ---------------------------------------------------------------------------------------------------------
# gzip and zip around the lines
# ---------------------------------------------------------------------------------------------------------


def into_gzip(folder: Path, content: bytes) -> Path:
    return put(folder / "c.jsonl.gz", gzip.compress(content))


def into_members(folder: Path, content: bytes) -> Path:
    middle = len(content) // 2
    return put(folder / "c.jsonl.gz", gzip.compress(content[:middle]) + gzip.compress(content[middle:]))


def packed(name: str, content: bytes, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


def into_zip(folder: Path, content: bytes) -> Path:
    return put(folder / "scifact.zip", packed("scifact/corpus.jsonl", content))


def into_traversal(folder: Path, content: bytes) -> Path:
    return put(folder / "evil.zip", packed("../../../corpus.jsonl", content))


def into_beir(folder: Path, content: bytes) -> Path:
    put(folder / "beir/queries.jsonl", b'{"_id": "1", "text": "?"}\n')
    return put(folder / "beir/corpus.jsonl", content).parent


def into_second_shard(folder: Path, content: bytes) -> Path:
    put(folder / "shards/part-0.jsonl", b"")
    return put(folder / "shards/part-1.jsonl", content).parent


for container, wrap in {
    "gzip": into_gzip,
    "gzip of two members": into_members,
    "zip": into_zip,
    "zip with a path that leads out": into_traversal,
    "BEIR folder": into_beir,
    "second shard": into_second_shard,
}.items():
    json_kind(f"{container}: broken line", cut, wrap)
for container, wrap in {"gzip": into_gzip, "zip": into_zip, "second shard": into_second_shard}.items():
    json_kind(f"{container}: line that is not UTF-8", inside(b"\xfc"), wrap)
    json_kind(f"{container}: id that came before", lambda draw: b'{"id": "b0", "text": "x"}', wrap)


def rows(draw: Draw) -> bytes:
    """Enough lines that an archive of them can be cut in many places."""
    return json_lines([Passage(f"g{n}", "", f"{words(draw)} {n * 7919 % 10007}") for n in range(50)])


def truncated(content: bytes, draw: Draw, least: int = 1) -> bytes:
    return content[: draw(st.integers(least, len(content) - 1))]


def changed(content: bytes, draw: Draw, first: int, last: int) -> bytes:
    """One bit of a byte in between flipped."""
    place = draw(st.integers(first, last))
    return content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]


whole("empty.jsonl.gz", lambda draw: b"")
whole("nothing-inside.jsonl.gz", lambda draw: gzip.compress(b""))
whole("noise.jsonl.gz", lambda draw: b"\x00" + draw(st.binary(max_size=100)))
whole("header-cut.jsonl.gz", lambda draw: gzip.compress(rows(draw))[: draw(st.integers(1, 9))])
whole("body-cut.jsonl.gz", lambda draw: truncated(gzip.compress(rows(draw)), draw, 10))
whole("trailer-cut.jsonl.gz", lambda draw: gzip.compress(rows(draw))[: -draw(st.integers(1, 8))])
whole("checksum-wrong.jsonl.gz", lambda draw: changed(gzip.compress(rows(draw)), draw, -8, -5))
whole("length-wrong.jsonl.gz", lambda draw: changed(gzip.compress(rows(draw)), draw, -4, -2))
whole("trailing-noise.jsonl.gz", lambda draw: gzip.compress(rows(draw)) + b"\x01noise")
whole(
    "second-member-cut.jsonl.gz", lambda draw: gzip.compress(rows(draw)) + truncated(gzip.compress(rows(draw)), draw, 3)
)
whole("twice.jsonl.gz", lambda draw: gzip.compress(gzip.compress(rows(draw))))
whole("unknown-method.jsonl.gz", lambda draw: b"\x1f\x8b\x07" + gzip.compress(rows(draw))[3:])
whole("cut.csv.gz", lambda draw: truncated(gzip.compress(b"id,text\n" + b"a,x\n" * 50), draw, 12))
whole("cut.tsv.gz", lambda draw: truncated(gzip.compress(b"id\ttext\n" + b"a\tx\n" * 50), draw, 12))

whole("empty.zip", lambda draw: b"")
whole("no-members.zip", lambda draw: b"PK\x05\x06" + b"\0" * 18)
whole("noise.zip", lambda draw: b"PK\x03\x04" + draw(st.binary(max_size=100)))
whole("cut.zip", lambda draw: truncated(packed("corpus.jsonl", rows(draw)), draw))
whole("other-name.zip", lambda draw: packed("scifact/Corpus.jsonl", rows(draw)))
whole("packed-twice.zip", lambda draw: packed("scifact/corpus.jsonl.gz", gzip.compress(rows(draw))))
whole("folder-of-that-name.zip", lambda draw: packed("corpus.jsonl/a.jsonl", rows(draw)))
whole("body-changed.zip", lambda draw: changed(packed("c/corpus.jsonl", rows(draw)), draw, 60, 200))
whole("stored-and-changed.zip", lambda draw: changed(packed("c/corpus.jsonl", rows(draw), 0), draw, 100, 1000))
whole("unknown-method.zip", lambda draw: packed("corpus.jsonl", rows(draw)).replace(b"\x08\x00", b"\x63\x00"))
whole("parquet-inside.zip", lambda draw: packed("train.parquet", b"PAR1"))


def encrypted_zip(draw: Draw) -> bytes:
    content = bytearray(packed("corpus.jsonl", rows(draw)))
    content[6] |= 1
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def name_twice(draw: Draw) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("corpus.jsonl", rows(draw))
        archive.writestr("corpus.jsonl", rows(draw))
    return stream.getvalue()


def wrong_size(draw: Draw) -> bytes:
    """The archive says that the member is shorter than it is."""
    content = bytearray(packed("corpus.jsonl", rows(draw), zipfile.ZIP_STORED))
    entry = content.rindex(b"PK\x01\x02")
    size = int.from_bytes(content[entry + 24 : entry + 28], "little") - draw(st.integers(1, 500))
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    return bytes(content)


whole("encrypted.zip", encrypted_zip)
whole("name-twice.zip", name_twice)
whole("wrong-size.zip", wrong_size)

# ---------------------------------------------------------------------------------------------------------
# Delimited text
# ---------------------------------------------------------------------------------------------------------


def quoted(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def delimited(passages: list[Passage], delimiter: str) -> bytes:
    lines = [delimiter.join(map(quoted, (p.id, p.text, p.title))) for p in passages]
    return "".join(f"{line}\n" for line in lines).encode()


def delimited_kind(
    name: str, make: Callable[[Draw], bytes], suffix: str = "csv", *, follows: int = 1, broken: int | None = None
) -> None:
    """`make` returns the broken lines; `broken` says how many records they are, if not as many as lines.

    `follows` sound rows at least come behind.
    """
    delimiter = "," if suffix == "csv" else "\t"

    def kind(draw: Draw, folder: Path) -> Case:
        before, after = around(draw, least=follows)
        bad = make(draw)
        header = delimiter.join(("id", "text", "title")).encode() + b"\n"
        path = put(
            folder / f"c.{suffix}", header + delimited(before, delimiter) + bad + b"\n" + delimited(after, delimiter)
        )
        count = bad.count(b"\n") + 1 if broken is None else broken
        numbers: list[int | str] = [len(before) + 2 + n for n in range(count)]
        # An error says on which line of a text it is.
        named = None if broken is None else len(before) + 1 + bad.count(b"\n") + 1
        return Case(path, before + after, "line", numbers, f"c.{suffix}", named)

    add(f"{suffix}: {name}", kind)


for suffix, d in (("csv", b","), ("tsv", b"\t")):
    delimited_kind("field missing", lambda draw, d=d: b"bad" + d + words(draw, ASCII).encode(), suffix)
    delimited_kind("field too many", lambda draw, d=d: d.join([b"bad", b"x", b"t", b"extra"]), suffix)
    delimited_kind("one field alone", lambda draw: words(draw, ASCII).encode(), suffix)
    delimited_kind("other delimiter", lambda draw: b"bad;x;Title", suffix)
    delimited_kind("empty text and title", lambda draw, d=d: b"bad" + d + d, suffix)
    delimited_kind("empty quoted text and title", lambda draw, d=d: b"bad" + d + b'""' + d + b'""', suffix)
    delimited_kind("blank id", lambda draw, d=d: b"  " + d + b"x" + d, suffix)
    delimited_kind("id that came before", lambda draw, d=d: b"b0" + d + b"x" + d, suffix)
    delimited_kind("Latin-1", lambda draw, d=d: b"bad" + d + b"m\xfcde" + d, suffix)
    delimited_kind("NUL byte", lambda draw, d=d: b"bad" + d + b"x\0y" + d, suffix)
    delimited_kind(
        "not UTF-8 in a text of two lines", lambda draw, d=d: b"bad" + d + b'"x\n\xff"' + d, suffix, broken=1
    )
    delimited_kind("text behind a quote", lambda draw, d=d: b"bad" + d + b'"x"y' + d, suffix, follows=3)
    delimited_kind("quote unclosed", lambda draw, d=d: b"bad" + d + b'"x' + d, suffix, follows=3)
    delimited_kind("quote too many", lambda draw, d=d: b"bad" + d + b'"x"""y"' + d, suffix, follows=3)
    delimited_kind("lone carriage return", lambda draw, d=d: b"bad" + d + b"x\ry" + d, suffix, follows=3)
    delimited_kind(
        "unclosed behind a text of two lines", lambda draw, d=d: b"bad" + d + b'"x\ny" z' + d, suffix, follows=3
    )
    delimited_kind("two broken quotes", lambda draw, d=d: b'"b"ad' + d + b'x\nbad"' + d + b'"x', suffix, follows=3)


def quote_at_the_end(draw: Draw, folder: Path) -> Case:
    """Cut in the middle of a quoted text: its lines look like rows and are none."""
    before, _ = around(draw)
    content = b"id,text,title\n" + delimited(before, ",") + b'bad,"first\nsecond,line,looks\n'
    return Case(put(folder / "c.csv", content), before, "line", [len(before) + 2, len(before) + 3], "c.csv")


def semicolons(draw: Draw) -> bytes:
    return b"id;text;title\n" + f"a;{words(draw, ASCII)};t\n".encode()


add("csv: cut in a quoted text", quote_at_the_end)
whole("empty.csv", lambda draw: b"")
whole("header-only.csv", lambda draw: b"id,text,title\n")
whole("header-only.tsv", lambda draw: b"id\ttext\ttitle")
whole("mark-only.csv", lambda draw: b"\xef\xbb\xbf\n\n")
whole("no-header.csv", lambda draw: f"1,{words(draw, ASCII)},t\n2,y,u\n".encode())
whole("no-header.tsv", lambda draw: f"1\t{words(draw, ASCII)}\n2\ty\n".encode())
whole("header-without-text.csv", lambda draw: b"id,body,title\na,x,t\n")
whole("header-in-capitals.csv", lambda draw: b"ID,TEXT\na,x\n")
whole("header-with-blanks.csv", lambda draw: b"id, text\na,x\n")
whole("text-column-twice.csv", lambda draw: b"id,text,text\na,x,y\n")
whole("id-column-twice.tsv", lambda draw: b"id\tid\ttext\na\tb\tx\n")
whole("header-quote-broken.csv", lambda draw: b'id,"text"s\na,x\n')
whole("header-quote-open.csv", lambda draw: b'id,"text\na,x\n')
whole("header-not-utf8.csv", lambda draw: b"id,text,\xfc\na,x,y\n")
whole("header-with-nul.csv", lambda draw: b"id,text,\0\na,x,y\n")
whole("semicolons.csv", semicolons)
whole("tabs.csv", lambda draw: b"id\ttext\na\tx\n")
whole("commas.tsv", lambda draw: b"id,text\na,x\n")
whole("carriage-returns.csv", lambda draw: b"id,text\ra,x\rb,y\r")
whole("utf16.csv", lambda draw: b"id,text\na,x\n".decode().encode("utf-16"))
whole("utf16-without-mark.csv", lambda draw: b"id,text\na,x\n".decode().encode("utf-16-le"))
whole("jsonl-in-disguise.csv", lambda draw: json_lines([Passage("a", "t", "x")]))
whole("spreadsheet.csv", lambda draw: packed("xl/workbook.xml", b"<workbook/>"))

# ---------------------------------------------------------------------------------------------------------
# Tables: Parquet, Arrow, datasets
# ---------------------------------------------------------------------------------------------------------


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def stream_bytes(table: pa.Table, chunk: int = 10) -> bytes:
    stream = io.BytesIO()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return stream.getvalue()


def file_bytes(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    with pa.ipc.new_file(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=10)
    return stream.getvalue()


def passages_table(count: int = 50) -> pa.Table:
    return pa.Table.from_pylist(
        [{"id": f"g{n}", "title": "t", "text": f"text {n * 7919 % 10007}"} for n in range(count)]
    )


# A column of another type: every row of the table is broken.
TYPES: dict[str, pa.Array] = {
    "integers": pa.array([1, 2]),
    "floats": pa.array([1.5, float("nan")]),
    "booleans": pa.array([True, False]),
    "lists of strings": pa.array([["x"], ["y"]]),
    "structs": pa.array([{"a": "x"}, {"a": "y"}]),
    "bytes": pa.array([b"x", b"y"]),
    "days": pa.array([datetime.date(2020, 1, 1)] * 2),
    "moments": pa.array([datetime.datetime(2020, 1, 1)] * 2),
    "moments beyond Python's years": pa.array([2**62, -(2**62)], pa.timestamp("us")),
    "nothing": pa.nulls(2),
    "decimals": pa.array([decimal.Decimal("1.5")] * 2),
    "maps": pa.array([[("a", "x")]] * 2, pa.map_(pa.string(), pa.string())),
}
FINE = {"id": pa.array(["a", "b"]), "title": pa.array(["t", "u"]), "text": pa.array(["x", "y"])}
for name, column in TYPES.items():
    # A title without a text is a passage, so texts that are missing are broken only where the titles are, too.
    others = {"id": FINE["id"]} if name == "nothing" else FINE
    whole(
        f"text-of-{name.replace(' ', '-')}.parquet",
        lambda draw, c=column, o=others: parquet_bytes(pa.table({**o, "text": c})),
    )
for name in ("floats", "booleans", "lists of strings", "structs", "bytes", "moments"):
    whole(
        f"id-of-{name.replace(' ', '-')}.parquet",
        lambda draw, n=name: parquet_bytes(pa.table({**FINE, "id": TYPES[n]})),
    )
for name in ("integers", "lists of strings", "bytes"):
    whole(
        f"title-of-{name.replace(' ', '-')}.parquet",
        lambda draw, n=name: parquet_bytes(pa.table({**FINE, "title": TYPES[n]})),
    )
for name in ("integers", "lists of strings", "bytes", "structs"):
    whole(
        f"text-of-{name.replace(' ', '-')}.arrow",
        lambda draw, n=name: stream_bytes(pa.table({**FINE, "text": TYPES[n]})),
    )


def table_kind(name: str, values: dict[str, Any], save: Callable[[pa.Table, Path], Path]) -> None:
    """One row of a table whose types are right is broken."""

    def kind(draw: Draw, folder: Path) -> Case:
        before, after = around(draw)
        passages = [as_row(p) for p in before] + [{"id": "bad", "title": "", "text": "x", **values}]
        path = save(pa.Table.from_pylist(passages + [as_row(p) for p in after]), folder)
        return Case(path, before + after, "record", [len(before)], path.name)

    add(name, kind)


def save_parquet(table: pa.Table, folder: Path) -> Path:
    return put(folder / "c.parquet", parquet_bytes(table, row_group_size=2))


def save_arrow(table: pa.Table, folder: Path) -> Path:
    return put(folder / "c.arrow", file_bytes(table))


def save_dataset(table: pa.Table, folder: Path) -> Path:
    datasets.disable_progress_bars()
    datasets.Dataset(table).save_to_disk(str(folder / "saved"))
    datasets.enable_progress_bars()
    return folder / "saved"


for form, save in {"parquet": save_parquet, "arrow": save_arrow, "saved dataset": save_dataset}.items():
    table_kind(f"{form}: text that is null", {"text": None}, save)
    table_kind(f"{form}: text that is blank", {"text": "\n"}, save)
    table_kind(f"{form}: id that is blank", {"id": " "}, save)
    table_kind(f"{form}: id that came before", {"id": "b0"}, save)


def bytes_as_strings(values: list[bytes]) -> pa.Array:
    binary = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(values), binary.buffers()[1], binary.buffers()[2])


def text_not_utf8(draw: Draw, folder: Path) -> Case:
    before, after = around(draw)
    everyone = [*before, Passage("bad", "", ""), *after]
    texts = bytes_as_strings([p.text.encode() or b"\xff\xfe" for p in everyone])
    table = pa.table({"id": [p.id for p in everyone], "title": [p.title for p in everyone], "text": texts})
    return Case(put(folder / "c.parquet", parquet_bytes(table)), before + after, "record", [len(before)], "c.parquet")


add("parquet: text that is not UTF-8", text_not_utf8)
whole("empty.parquet", lambda draw: b"")
whole("magic-only.parquet", lambda draw: b"PAR1")
whole("noise.parquet", lambda draw: b"PAR1" + draw(st.binary(max_size=100)) + b"PAR1")
whole("cut.parquet", lambda draw: truncated(parquet_bytes(passages_table()), draw))
whole("footer-length-wrong.parquet", lambda draw: changed(parquet_bytes(passages_table()), draw, -8, -5))
whole(
    "page-changed.parquet",
    lambda draw: changed(
        parquet_bytes(passages_table(2000), write_page_checksum=True, compression="none"), draw, 300, 5000
    ),
)
whole(
    "no-rows.parquet", lambda draw: parquet_bytes(passages_table(0) if draw(st.booleans()) else pa.table(FINE).slice(2))
)
whole("no-columns.parquet", lambda draw: parquet_bytes(pa.table({})))
whole("other-columns.parquet", lambda draw: parquet_bytes(pa.table({"body": ["x"], "key": ["k"]})))
whole("only-ids.parquet", lambda draw: parquet_bytes(pa.table({"id": ["x"]})))
whole(
    "text-column-twice.parquet",
    lambda draw: parquet_bytes(pa.Table.from_arrays([FINE["id"], FINE["text"], FINE["title"]], ["id", "text", "text"])),
)
whole("jsonl-in-disguise.parquet", lambda draw: rows(draw))
whole("encrypted.parquet", lambda draw: b"PARE" + draw(st.binary(min_size=20, max_size=100)) + b"\x10\0\0\0PARE")
whole("pointer.parquet", lambda draw: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")

whole("empty.arrow", lambda draw: b"")
whole("noise.arrow", lambda draw: b"ARROW1\0\0" + draw(st.binary(max_size=100)))
whole("noise-without-magic.arrow", lambda draw: draw(st.binary(min_size=1, max_size=100)))
whole("stream-cut.arrow", lambda draw: truncated(stream_bytes(passages_table()), draw))
whole("stream-without-end.arrow", lambda draw: stream_bytes(passages_table())[:-8])
whole("file-cut.arrow", lambda draw: truncated(file_bytes(passages_table()), draw))
whole("other-columns.arrow", lambda draw: stream_bytes(pa.table({"body": ["x"]})))
whole("no-batches.arrow", lambda draw: stream_bytes(passages_table(0)))
whole("not-utf8.arrow", lambda draw: file_bytes(pa.table({"id": ["a"], "text": bytes_as_strings([b"\xff"])})))
whole("old-feather.arrow", lambda draw: b"FEA1" + draw(st.binary(max_size=50)) + b"FEA1")
whole("parquet-in-disguise.arrow", lambda draw: parquet_bytes(passages_table()))


def offsets_outside(draw: Draw) -> bytes:
    """Offsets that point far behind the text; the bytes of the numbers 0, 1, 2 are found in the file itself."""
    table = pa.table({"text": pa.array(["q", "r"])})
    content = file_bytes(table)
    offsets = b"\0\0\0\0\1\0\0\0\2\0\0\0"
    far = draw(st.integers(2**20, 2**30)).to_bytes(4, "little")
    return content.replace(offsets, offsets[:8] + far)


whole("offsets-outside.arrow", offsets_outside)


def saved_kind(name: str, spoil: Callable[[Draw, Path], None], **options: Any) -> None:
    def kind(draw: Draw, folder: Path) -> Case:
        path = save_dataset(passages_table(), folder)
        spoil(draw, path)
        return Case(path, options=options)

    add(f"saved dataset: {name}", kind)


def data_file(folder: Path) -> Path:
    (file,) = folder.glob("*.arrow")
    return file


def cut_file(draw: Draw, file: Path) -> None:
    put(file, truncated(file.read_bytes(), draw))


saved_kind("state is no JSON", lambda draw, path: put(path / "state.json", b"{"))
saved_kind("state is a list", lambda draw, path: put(path / "state.json", b"[]"))
saved_kind("state is empty", lambda draw, path: put(path / "state.json", b"{}"))
saved_kind("information missing", lambda draw, path: (path / "dataset_info.json").unlink())
saved_kind("information is no JSON", lambda draw, path: put(path / "dataset_info.json", b"<>"))
saved_kind("passages missing", lambda draw, path: data_file(path).unlink())
saved_kind("passages cut", lambda draw, path: cut_file(draw, data_file(path)))
saved_kind("passages without end", lambda draw, path: put(data_file(path), data_file(path).read_bytes()[:-8]))
saved_kind("passages empty", lambda draw, path: put(data_file(path), b""))
saved_kind("split of something without splits", lambda draw, path: None, split="train")


def saved_with_columns(columns: dict[str, Any]) -> Kind:
    return lambda draw, folder: Case(save_dataset(pa.table(columns), folder))


add("saved dataset: text of integers", saved_with_columns({**FINE, "text": TYPES["integers"]}))
add("saved dataset: text of lists", saved_with_columns({**FINE, "text": TYPES["lists of strings"]}))
add("saved dataset: other columns", saved_with_columns({"question": pa.array(["?"])}))
add("saved dataset: id of booleans", saved_with_columns({**FINE, "id": TYPES["booleans"]}))


def splits_kind(draw: Draw, folder: Path) -> Case:
    put(folder / "saved/dataset_dict.json", draw(st.sampled_from((b"{}", b"[", b'{"splits": ["train"]}'))))
    return Case(folder / "saved")


add("saved dataset: splits without data", splits_kind)

# ---------------------------------------------------------------------------------------------------------
# Folders and paths
# ---------------------------------------------------------------------------------------------------------


def folder_kind(name: str, files: dict[str, bytes], **options: Any) -> None:
    def kind(draw: Draw, folder: Path) -> Case:
        (folder / "f").mkdir()
        for file, content in files.items():
            put(folder / "f" / file, content)
        return Case(folder / "f", options=options)

    add(f"folder: {name}", kind)


A, B = json_lines([Passage("a", "", "x")]), json_lines([Passage("b", "", "y")])
folder_kind("empty", {})
folder_kind("only hidden files", {".a.jsonl": A, ".b/c.txt": b"x"})
folder_kind("only files of unknown kinds", {"a.png": b"x", "b.json": A})
folder_kind("tables of delimited text", {"a.csv": b"id,text\na,x\n"})
folder_kind("shards and documents", {"a.jsonl": A, "b.txt": b"x"})
folder_kind("shards deeper than their README", {"README.md": b"# T\n\nx", "data/a.jsonl": A})
folder_kind("shards of two kinds", {"a.jsonl": A, "b.parquet": b"PAR1"})
folder_kind("shard missing in the middle", {"t-00000-of-00003.jsonl": A, "t-00002-of-00003.jsonl": B})
folder_kind("shard missing at the end", {"t-00000-of-00002.jsonl": A})
folder_kind("shards of two counts", {"t-00000-of-00001.jsonl": A, "t-00001-of-00002.jsonl": B})
folder_kind("shard twice", {"t-00000-of-00002.jsonl": A, "t-00000-of-00002-ab.jsonl": A, "t-00001-of-00002.jsonl": B})
folder_kind("several splits and none chosen", {"train.jsonl": A, "test.jsonl": B})
folder_kind("split that is not there", {"train.jsonl": A, "test.jsonl": B}, split="dev")
folder_kind("split of documents", {"a.txt": b"x"}, split="train")
folder_kind("questions without a corpus", {"queries.jsonl": A})
folder_kind("corpus beside another one", {"corpus.jsonl": A, "extra.jsonl": B})
folder_kind("corpus packed and unpacked", {"corpus.jsonl": A, "corpus.jsonl.gz": gzip.compress(A)})
folder_kind("second shard cut", {"a.jsonl": A, "b.jsonl.gz": gzip.compress(B)[:-5]})
folder_kind("second shard of other columns", {"a.parquet": parquet_bytes(pa.table(FINE)), "b.parquet": b"PAR1PAR1"})
folder_kind("shards without rows", {"a.jsonl": b"", "b.jsonl": b"\n"})


def path_kind(name: str, make: Callable[[Path], Path | str], **options: Any) -> None:
    add(f"path: {name}", lambda draw, folder: Case(make(folder), options=options))  # type: ignore[arg-type]


def linked(folder: Path, target: Path) -> Path:
    (folder / "c.jsonl").symlink_to(target)
    return folder / "c.jsonl"


path_kind("nothing there", lambda folder: folder / "none.jsonl")
path_kind("nothing there as a folder", lambda folder: folder / "none")
path_kind("folder named like a file", lambda folder: put(folder / "c.jsonl/x.bin", b"").parent)
path_kind("file used as a folder", lambda folder: put(folder / "c.jsonl", A) / "d.jsonl")
path_kind("link that leads nowhere", lambda folder: linked(folder, folder / "none"))
path_kind("link to itself", lambda folder: linked(folder, folder / "c.jsonl"))
path_kind("name too long", lambda folder: folder / ("x" * 5000 + ".jsonl"))
path_kind("NUL in the name", lambda folder: folder / "a\0.jsonl")
path_kind("surrogate in the name", lambda folder: folder / "a\udc80.jsonl")
path_kind("split of a file", lambda folder: put(folder / "c.jsonl", A), split="train")
path_kind("unknown scheme", lambda folder: "gopher://example.org/c.jsonl")
path_kind("address without a file", lambda folder: "http://127.0.0.1:9/")
path_kind("address nobody answers", lambda folder: "http://127.0.0.1:9/c.jsonl")
path_kind("address with a broken port", lambda folder: "http://127.0.0.1:port/c.jsonl")
path_kind("address without a host", lambda folder: "http:///c.jsonl")
path_kind("address with a broken host", lambda folder: "http://[::1/c.jsonl")
path_kind("address with a blank", lambda folder: "http://127.0.0.1:9/a b\n/c.jsonl")
path_kind("local address of nothing", lambda folder: (folder / "none.jsonl").as_uri())
path_kind("hub without a dataset", lambda folder: "hf://datasets/owner")
path_kind("hub with an unknown option", lambda folder: "hf://datasets/owner/name?confg=x")

# ---------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------


def document_kind(name: str, file: str, make: Callable[[Draw], bytes]) -> None:
    """A broken document between two sound ones."""

    def kind(draw: Draw, folder: Path) -> Case:
        texts = {n: words(draw, ASCII) for n in ("a.txt", "z.md")}
        for other, text in texts.items():
            put(folder / "docs" / other, text.encode())
        put(folder / "docs" / file, make(draw))
        good = [Passage(n, n[0], text) for n, text in texts.items()]
        return Case(folder / "docs", good, "file", [file], "docs")

    add(f"document: {name}", kind)


document_kind("text that is empty", "m.txt", lambda draw: b"")
document_kind("text that is blank", "m.txt", lambda draw: b" \n\t")
document_kind("text in Latin-1", "m.txt", lambda draw: b"m\xfcde")
document_kind("text in UTF-16", "m.txt", lambda draw: words(draw).encode("utf-16"))
document_kind("text in UTF-16 without a mark", "m.txt", lambda draw: words(draw, ASCII).encode("utf-16-le"))
document_kind("text that is a program", "m.txt", lambda draw: b"\x7fELF\x02\x01\x01" + b"\0" * 20)
document_kind("Markdown in Latin-1", "n/m.md", lambda draw: b"# T\xfc\n\nx")
document_kind("Markdown that is empty", "m.md", lambda draw: b"\xef\xbb\xbf")
document_kind("page without words", "m.html", lambda draw: b"<html><body><p> </p></body></html>")
document_kind("page that is empty", "m.htm", lambda draw: b"")
document_kind("page that is only a program", "m.html", lambda draw: b"<script>document.write('x')</script>")
document_kind("page that is only a picture", "m.html", lambda draw: b"<img src='x.png' alt='y'>")
document_kind("page in an undeclared encoding", "m.html", lambda draw: b"<p>m\xfcde</p>")
document_kind("page in an unknown encoding", "m.html", lambda draw: b"<meta charset='klingon'><p>x</p>")
document_kind("page in another encoding than declared", "m.html", lambda draw: b"<meta charset='utf-8'><p>\xfc</p>")
document_kind("page with a NUL", "m.html", lambda draw: b"<p>x\0y</p>")
document_kind("page nested too deep", "m.html", lambda draw: b"<div>" * draw(st.integers(3000, 5000)) + b"x")
document_kind("PDF that is empty", "m.pdf", lambda draw: b"")
document_kind("PDF that is noise", "m.pdf", lambda draw: draw(st.binary(min_size=1, max_size=200)))
document_kind("PDF that is only a header", "m.pdf", lambda draw: b"%PDF-1.7\n")
document_kind("PDF without pages", "m.pdf", lambda draw: pdf())
document_kind("PDF without text", "m.pdf", lambda draw: pdf(""))
document_kind("PDF cut", "m.pdf", lambda draw: truncated(pdf("First.", "Second."), draw).rstrip(b"%EOF\n"))
document_kind(
    "PDF with wrong places", "m.pdf", lambda draw: pdf("x").replace(b"%PDF-1.4\n", b"%PDF-1.4\n" + b"%" * 30 + b"\n")
)
document_kind("PDF that lost a page", "m.pdf", lambda draw: pdf("First.", "Second.").replace(b"6 0 R]", b"60 0 R]"))
document_kind(
    "PDF whose tree of pages is a loop", "m.pdf", lambda draw: pdf("x").replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]")
)
document_kind("page in disguise of a PDF", "m.pdf", lambda draw: b"<html>404</html>")
document_kind("Word file that is empty", "m.docx", lambda draw: b"")
document_kind("Word file that is noise", "m.docx", lambda draw: draw(st.binary(min_size=1, max_size=200)))
document_kind("Word file cut", "m.docx", lambda draw: truncated(docx(paragraph("x")), draw))
document_kind("Word file of another kind", "m.docx", lambda draw: packed("xl/workbook.xml", b"<workbook/>"))
document_kind("Word file with broken XML", "m.docx", lambda draw: docx("<w:p>"))
document_kind("Word file without words", "m.docx", lambda draw: docx(paragraph(" ")))
document_kind("Word file with a password", "m.docx", lambda draw: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600)
document_kind("Word file that is changed", "m.docx", lambda draw: docx(paragraph("whole")).replace(b"whole", b"wrong"))


def link_kind(name: str, target: Callable[[Path], Path], link: str) -> None:
    def kind(draw: Draw, folder: Path) -> Case:
        text = words(draw, ASCII)
        put(folder / "docs/a.txt", text.encode())
        put(folder / "outside/secret.txt", b"SECRET")
        (folder / "docs" / link).symlink_to(target(folder))
        return Case(folder / "docs", [Passage("a.txt", "a", text)], "file", [link], "docs")

    add(f"document: {name}", kind)


link_kind("link out of the folder", lambda folder: folder / "outside/secret.txt", "l.txt")
link_kind("relative link out of the folder", lambda folder: Path("../outside/secret.txt"), "l.txt")
link_kind("link to a folder outside", lambda folder: folder / "outside", "l")
link_kind("link to the folder above", lambda folder: Path(".."), "l")
link_kind("link that leads nowhere", lambda folder: folder / "docs/none.txt", "l.md")
link_kind("link to itself", lambda folder: folder / "docs/l.txt", "l.txt")


def undecodable_name(draw: Draw, folder: Path) -> Case:
    put(folder / "docs/a.txt", b"x")
    put(folder / "docs/b\udcff.txt", b"y")
    return Case(folder / "docs", [Passage("a.txt", "a", "x")], "file", ["b\\udcff.txt"], "docs")


def single(name: str, content: bytes) -> None:
    add(f"single document: {name}", lambda draw, folder: Case(put(folder / name, content)))


add("document: name that is not UTF-8", undecodable_name)
single("cut.pdf", pdf("x")[:200])
single("cut.docx", docx(paragraph("x"))[:100])
single("latin.txt", b"m\xfcde")
single("blank.md", b"\n")
single("nothing.html", b"<title>Only a title</title>")


# ---------------------------------------------------------------------------------------------------------
# What must come of them
# ---------------------------------------------------------------------------------------------------------


def refused(case: Case, **options: Any) -> str:
    """The message of the error that reading raises; any other exception fails the test."""
    with pytest.raises(RAGError) as caught:
        Corpus.from_file(case.path, cache_dir=options.pop("cache_dir"), **case.options, **options)
    message = str(caught.value)
    # What must hold, what was found, what to do.
    assert re.search(r"\b(must|needs)\b.*\bgot\b", message, re.S), message
    assert re.search(r"[.:;)] [A-Z][a-z]+ .*[.)\]\"]$", message, re.S), message
    return message


def check_whole(case: Case, folder: Path) -> None:
    name = Path(str(case.path)).name.encode("unicode_escape").decode()
    for options in ({}, {"on_error": "skip", "quarantine": folder / "q.jsonl"}):
        message = refused(case, cache_dir=folder / "cache", **options)
        assert name in message.encode("unicode_escape").decode().replace("\\\\", "\\") or "://" in str(case.path), (
            message
        )


def check_rows(case: Case, folder: Path) -> None:
    message = refused(case, cache_dir=folder / "cache")
    assert case.source in message
    shown = ascii(message).replace("\\\\", "\\")
    numbers = case.broken if case.named is None else [case.named]
    before = {"line": r"(:|\bline )", "record": r"\brecord ", "file": "/"}[case.unit]
    assert any(re.search(rf"{before}{re.escape(str(number))}\b", shown) for number in numbers), message
    quarantine = folder / "q.jsonl"
    corpus = Corpus.from_file(
        case.path, cache_dir=folder / "cache", on_error="skip", quarantine=quarantine, **case.options
    )
    assert list(corpus) == case.good
    assert corpus.fingerprint == Corpus.from_passages(case.good, cache_dir=folder / "cache").fingerprint
    entries = [json.loads(line) for line in quarantine.read_bytes().decode().splitlines()]
    assert sorted(entry[case.unit] for entry in entries) == sorted(case.broken)
    assert corpus.quarantined == len(case.broken)
    for entry in entries:
        assert set(entry) == {"source", case.unit, "error", "content"}
        json.dumps(entry, ensure_ascii=False).encode()
        assert len(entry["content"]) < 2100


@pytest.mark.parametrize("name", KINDS)
def test_broken_input_is_refused_or_left_out(name: str, tmp_path: Path) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),  # shrinking would take minutes where a kind fails
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        try:
            case = KINDS[name](data.draw, folder)
            (check_rows if case.good else check_whole)(case, folder)
            assert not list((folder / "cache").glob("download-*"))
        finally:
            shutil.rmtree(folder)

    check()


def test_at_least_200_kinds_of_damage_are_tested() -> None:
    print(f"{len(KINDS)} kinds of broken input")
    assert len(KINDS) >= 200
