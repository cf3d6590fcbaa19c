"""Every source is read as its owner ships it: the test writes it in that format and knows what must come out."""

import builtins
import contextlib
import gzip
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexes import Corpus, DataError, Passage, ResourceError, UsageError
from indexes.corpora.documents import read_document

ROOT = Path(__file__).parents[1]
BEIR = (
    b'{"_id": "4983", "title": "Microstructural development", "text": "Alterations of the brain.", "metadata": {}}\n'
    b'{"_id": "5836", "title": "", "text": "Myelodysplastic syndromes.", "metadata": {"url": "x"}}\n'
)
BEIR_PASSAGES = [
    Passage("4983", "Microstructural development", "Alterations of the brain."),
    Passage("5836", "", "Myelodysplastic syndromes."),
]
BEIR_QUERIES = b'{"_id": "0", "text": "0-dimensional biomaterials show inductive properties.", "metadata": {}}\n'
OLD_ENTRY = b'{"source": "old.jsonl", "line": 1, "error": "broken", "content": "{"}\n'
# The first line of the file is its header; texts stand in quotes, and quotes inside them are doubled.
DPR = (
    'id\ttext\ttitle\n1\t"Aaron Aaron ( or ; ""Ahärôn"") is a prophet, high priest"\tAaron\n'
    '2\t"God at Sinai granted Aaron\tthe priesthood"\t"The ""Exodus"""\n'
).encode()
DPR_PASSAGES = [
    Passage("1", "Aaron", 'Aaron Aaron ( or ; "Ahärôn") is a prophet, high priest'),
    Passage("2", 'The "Exodus"', "God at Sinai granted Aaron\tthe priesthood"),
]


def passage(name: str) -> Passage:
    return Passage(name, f"Title {name}", f"Text of {name}.")


def row(name: str) -> dict[str, str]:
    return {"id": name, "title": f"Title {name}", "text": f"Text of {name}."}


def jsonl(*names: str) -> bytes:
    return "".join(json.dumps(row(name)) + "\n" for name in names).encode()


def parquet(path: Path, *names: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row(name) for name in names]), path)
    return path


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def pdf(*pages: str) -> bytes:
    """The smallest PDF with these pages of text."""
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {5 + 2 * number} 0 R >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return (out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}").encode("ascii")


def docx(body: str, *, declaration: str = "") -> bytes:
    """The smallest Word file: content types, relations and a document."""
    types = "http://schemas.openxmlformats.org/package/2006/content-types"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{types}">'
        '<Default Extension="xml" ContentType="application/xml"/></Types>',
        "_rels/.rels": '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        f'<Relationship Id="r1" Type="{office}" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'{declaration}<w:document xmlns:w="{word}"><w:body>{body}</w:body></w:document>',
    }
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def paragraph(text: str, style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


# -- datasets as they are published ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_beir_folder_is_its_corpus_and_not_its_queries(name: str, tmp_path: Path) -> None:
    content = gzip.compress(BEIR) if name.endswith(".gz") else BEIR
    folder = write(
        tmp_path / "scifact",
        {name: content, "queries.jsonl": BEIR_QUERIES, "qrels/test.tsv": b"query-id\tcorpus-id\tscore\n0\t4983\t1\n"},
    )
    corpus = Corpus.from_file(folder)
    assert list(corpus) == BEIR_PASSAGES
    assert corpus.source == "scifact"


def test_a_beir_zip_is_streamed_and_never_unpacked(tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "scifact.zip",
        {
            "scifact/corpus.jsonl": BEIR,
            "scifact/queries.jsonl": BEIR_QUERIES,
            "__MACOSX/scifact/corpus.jsonl": b"\0\5\26\7",
            "../../escaped.txt": b"out",
        },
    )
    assert list(Corpus.from_file(path, cache_dir=tmp_path / "cache")) == BEIR_PASSAGES
    assert not list(tmp_path.parent.rglob("escaped.txt"))
    assert not list(tmp_path.rglob("corpus.jsonl"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/corpus.jsonl": BEIR, "b/corpus.jsonl": BEIR}, r"one corpus\.jsonl, got 2 \(\['a/corpus\.jsonl'"),
        ({"a/queries.jsonl": BEIR_QUERIES}, r"one corpus\.jsonl, got 0"),
    ],
)
def test_a_zip_with_no_or_several_corpora_is_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        Corpus.from_file(zipped(tmp_path / "x.zip", files))


@pytest.mark.parametrize("name", ["psgs_w100.tsv", "psgs_w100.tsv.gz"])
def test_dpr_passages(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(DPR) if name.endswith(".gz") else DPR)
    assert list(Corpus.from_file(tmp_path / name)) == DPR_PASSAGES


def test_flashrag_records(tmp_path: Path) -> None:
    (tmp_path / "wiki18.jsonl").write_bytes(b'{"id": "0", "contents": "\\"Aaron\\"\\nAaron is a prophet."}\n')
    assert list(Corpus.from_file(tmp_path / "wiki18.jsonl")) == [Passage("0", "Aaron", "Aaron is a prophet.")]


@pytest.mark.parametrize("kind", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_of_both_kinds(kind: Callable[..., Any], tmp_path: Path) -> None:
    path, table = tmp_path / "c.arrow", pa.Table.from_pylist([row(str(number)) for number in range(2500)])
    with kind(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1200)
    assert list(Corpus.from_file(path)) == [passage(str(number)) for number in range(2500)]


def test_large_and_dictionary_strings_and_integer_ids_of_parquet(tmp_path: Path) -> None:
    table = pa.table(
        {
            "_id": pa.array([7, 2**40], pa.int64()),
            "title": pa.array(["t", None]).dictionary_encode(),
            "text": pa.array(["x", "y"], pa.large_string()),
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    assert list(Corpus.from_file(tmp_path / "c.parquet")) == [Passage("7", "t", "x"), Passage("1099511627776", "", "y")]


# -- shards ----------------------------------------------------------------------------------------------


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for number, names in [(2, "e"), (0, "ab"), (1, "cd")]:
        parquet(tmp_path / f"train-0000{number}-of-00003.parquet", *names)
    write(tmp_path, {"README.md": b"# A dataset", ".gitattributes": b"", "LICENSE.txt": b"free"})
    assert list(Corpus.from_file(tmp_path)) == [passage(name) for name in "abcde"]


def test_jsonl_shards_may_be_packed_and_errors_name_the_shard(tmp_path: Path) -> None:
    write(tmp_path, {"part-1.jsonl": jsonl("a", "b"), "part-2.jsonl.gz": gzip.compress(jsonl("c"))})
    assert list(Corpus.from_file(tmp_path).ids) == ["a", "b", "c"]
    write(tmp_path, {"part-3.jsonl": b"\n" + jsonl("b")})
    with pytest.raises(DataError, match=r"got 'b' twice: .*part-1\.jsonl:2 and .*part-3\.jsonl:2"):
        Corpus.from_file(tmp_path)


def test_a_split_is_chosen_where_there_are_several(tmp_path: Path) -> None:
    parquet(tmp_path / "train-00000-of-00001.parquet", "a")
    parquet(tmp_path / "test-00000-of-00001-0f3a.parquet", "b")
    with pytest.raises(
        DataError, match=r"one of the splits \['test', 'train'\] must be chosen, got no split\. Pass split="
    ):
        Corpus.from_file(tmp_path)
    assert list(Corpus.from_file(tmp_path, split="test").ids) == ["b"]
    with pytest.raises(DataError, match=r"splits \['test', 'train'\] must be chosen, got split='dev'"):
        Corpus.from_file(tmp_path, split="dev")
    both = datasets.DatasetDict({n: datasets.Dataset.from_list([row(n)]) for n in ("train", "test")})
    both.save_to_disk(str(tmp_path / "saved"))
    assert list(Corpus.from_file(tmp_path / "saved", split="test").ids) == ["test"]
    with pytest.raises(UsageError, match=r"c\.jsonl: a split must be .*, got split='train'"):
        Corpus.from_file(write(tmp_path / "one", {"c.jsonl": jsonl("a")}) / "c.jsonl", split="train")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train-00000-of-00003.jsonl": b"", "train-00002-of-00003.jsonl": b""}, "all its shards.* got 2 files of 3"),
        ({"a.jsonl": b"", "notes.txt": b"x"}, r"one kind of corpus, got \['a\.jsonl', 'notes\.txt'\]"),
        ({"a.jsonl": b"", "deep/er/n.pdf": b"x"}, r"one kind of corpus, got \['a\.jsonl', 'deep/er/n\.pdf'\]"),
        ({"a.jsonl": b"", "b.parquet": b""}, r"one kind of corpus, got \['a\.jsonl', 'b\.parquet'\]"),
        ({"corpus.jsonl": BEIR, "more.jsonl": b""}, r"one corpus\.jsonl and its queries, got .*more\.jsonl"),
        ({"queries.jsonl": BEIR_QUERIES}, r"one corpus\.jsonl and its queries, got"),
        ({"a.jpg": b"x"}, r"at least one passage, got none"),
        ({"README.md": b"# x", "data/t.parquet": b""}, r"its shards itself, or only .* got t\.parquet in 'data'"),
    ],
)
def test_a_folder_that_could_mean_several_things_is_refused(
    files: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        Corpus.from_file(write(tmp_path, files))


# -- documents -------------------------------------------------------------------------------------------

HTML = """<!DOCTYPE html><html><head><title>The page's
title</title><style>p {color: red}</style></head>
<body><script>alert(1)</script><p>Before <a href="http://x.example/">a link</a> and snake_case.</p>
<ul><li>one</li><li>two</li></ul><img src="http://x.example/i.png" alt="picture"></body></html>"""


def test_html_becomes_text_with_its_heading_or_title(tmp_path: Path) -> None:
    write(tmp_path, {"a.html": HTML.encode(), "b.htm": b"<h2>Heading</h2><p>Body &amp; soul</p>", "c.html": b"bare"})
    assert list(Corpus.from_file(tmp_path)) == [
        Passage("a.html", "The page's title", "Before a link and snake_case.\n\n* one\n* two"),
        Passage("b.htm", "Heading", "Body & soul"),
        Passage("c.html", "c", "bare"),
    ]


def test_html_is_decoded_as_it_declares_and_never_guessed(tmp_path: Path) -> None:
    declared = '<meta charset="iso-8859-1"><p>Grüße</p>'.encode("latin-1")
    marked = "<p>Grüße</p>".encode("utf-16")
    write(tmp_path, {"a.html": declared, "b.html": marked})
    assert [p.text for p in Corpus.from_file(tmp_path)] == ["Grüße", "Grüße"]
    write(tmp_path / "x", {"a.html": "<p>Grüße</p>".encode("latin-1")})
    with pytest.raises(
        DataError, match=r"a\.html: .*UTF-8, or HTML that declares its encoding, got text that is not utf-8"
    ):
        Corpus.from_file(tmp_path / "x")


def test_pdf_pages_are_one_passage_under_the_name_of_the_file(tmp_path: Path) -> None:
    write(tmp_path, {"report.pdf": pdf("First page.", "Second page.")})
    expected = [Passage("report.pdf", "report", "First page.\n\nSecond page.")]
    assert list(Corpus.from_file(tmp_path)) == list(Corpus.from_file(tmp_path / "report.pdf")) == expected


def test_word_headings_and_tables(tmp_path: Path) -> None:
    cell = f"<w:tc>{paragraph('cell')}</w:tc>"
    body = (
        paragraph("Heading", "Heading1") + paragraph("Bread &amp; butter") + f"<w:tbl><w:tr>{cell}{cell}</w:tr></w:tbl>"
    )
    (tmp_path / "letter.docx").write_bytes(docx(body))
    (found,) = Corpus.from_file(tmp_path / "letter.docx")
    assert (found.id, found.title) == ("letter.docx", "Heading")
    assert found.text.startswith("Bread & butter")
    assert found.text.count("cell") == 2


def test_documents_of_all_kinds_in_the_order_of_their_paths(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "b.txt": b"plain",
            "a/z.docx": docx(paragraph("word")),
            "a/b/x.pdf": pdf("paper"),
            "a.md": b"# M\nmarked",
            "c.HTML": b"<p>page</p>",
        },
    )
    expected = [
        ("a/b/x.pdf", "paper"),
        ("a/z.docx", "word"),
        ("a.md", "marked"),
        ("b.txt", "plain"),
        ("c.HTML", "page"),
    ]
    assert [(p.id, p.text) for p in Corpus.from_file(tmp_path)] == expected


def test_external_entities_are_not_loaded_and_entity_expansion_is_limited(tmp_path: Path) -> None:
    secret = write(tmp_path / "s", {"secret": b"SECRET"}) / "secret"
    outside = f'<!DOCTYPE d [<!ENTITY x SYSTEM "{secret.as_uri()}">]>'
    (tmp_path / "a.docx").write_bytes(docx(paragraph("seen &x;"), declaration=outside))
    with contextlib.suppress(DataError):
        assert "SECRET" not in Corpus.from_file(tmp_path / "a.docx")[0].text
    entities = '<!ENTITY a0 "ha">' + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    (tmp_path / "b.docx").write_bytes(docx(paragraph("&a11;"), declaration=f"<!DOCTYPE d [{entities}]>"))
    with pytest.raises(DataError, match=r"b\.docx: .* must be complete and well-formed, got"):
        Corpus.from_file(tmp_path / "b.docx")


def test_a_word_file_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexes.corpora.documents._LARGEST_DOCX", 10_000)
    (tmp_path / "a.docx").write_bytes(docx(paragraph("x" * 20_000)))
    with pytest.raises(DataError, match=r"a\.docx: .* unpack to at most 10000 bytes, got 2\d{4}"):
        Corpus.from_file(tmp_path / "a.docx")


@pytest.mark.parametrize(("name", "content"), [("a.pdf", pdf("x")), ("a.docx", docx("")), ("a.html", b"<p>x</p>")])
def test_a_missing_extra_is_named(name: str, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.partition(".")[0] in ("bs4", "mammoth", "markdownify", "pypdf"):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    write(tmp_path, {name: content, "b.txt": b"plain"})
    with pytest.raises(ResourceError, match=r'extra `documents`, got no module .*pip install "dro-rag\[documents\]"'):
        Corpus.from_file(tmp_path, on_error="skip")
    assert read_document(tmp_path / "b.txt", "b.txt") == ("b", "plain")


def test_links_out_of_the_folder_are_never_opened(tmp_path: Path) -> None:
    write(tmp_path / "private", {"secret.txt": b"SECRET", "deep/other.txt": b"SECRET"})
    folder = write(tmp_path / "docs", {"a.txt": b"public", "in/b.txt": b"inside"})
    (folder / "link.txt").symlink_to(tmp_path / "private/secret.txt")
    with pytest.raises(DataError, match=r"docs/link\.txt: .*must lie inside it, got a link that leads out"):
        Corpus.from_file(folder)
    (folder / "dir").symlink_to(tmp_path / "private")
    (folder / "dangling.txt").symlink_to(folder / "nothing.txt")
    (folder / "loop").symlink_to(folder)
    (folder / "same.txt").symlink_to(folder / "a.txt")
    quarantine = tmp_path / "q.jsonl"
    corpus = Corpus.from_file(folder, on_error="skip", quarantine=quarantine)
    assert {p.id: p.text for p in corpus} == {"a.txt": "public", "in/b.txt": "inside", "same.txt": "public"}
    left_out = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [entry["file"] for entry in left_out] == ["dangling.txt", "dir", "link.txt"]
    assert "SECRET" not in quarantine.read_text()


# -- leaving rows out ------------------------------------------------------------------------------------


def test_broken_records_are_left_out_and_quarantined(tmp_path: Path) -> None:
    path, quarantine = tmp_path / "c.jsonl", tmp_path / "deep/broken.jsonl"
    lines = [
        b'{"id": "a", "text": "x"}',
        b"nonsense",
        b"",
        b'{"text": "y"}',
        b'{"id": "a", "text": "again"}',
        b"\xff{}",
    ]
    path.write_bytes(b"\n".join(lines))
    corpus = Corpus.from_file(path, on_error="skip", quarantine=quarantine)
    # A row without an id is named by its number among all rows, so it keeps its name once the others are mended.
    assert list(corpus) == [Passage("a", "", "x"), Passage("2", "", "y")]
    assert corpus.quarantined == 3
    assert corpus.fingerprint == Corpus.from_passages(list(corpus)).fingerprint
    entries = [json.loads(line) for line in quarantine.read_text(encoding="utf-8").splitlines()]
    assert [set(entry) for entry in entries] == [{"source", "line", "error", "content"}] * 3
    assert [(entry["source"], entry["line"]) for entry in entries] == [(str(path), line) for line in (2, 6, 5)]
    assert entries[0]["content"] == "nonsense\n"
    assert "every line must be one JSON object" in entries[0]["error"]
    assert "line 1 and line 5" in entries[2]["error"]
    assert json.loads(entries[2]["content"])["text"] == "again"


def test_without_broken_records_there_is_no_quarantine_and_an_older_one_is_removed(tmp_path: Path) -> None:
    path, quarantine = write(tmp_path, {"c.jsonl": jsonl("a"), "q.jsonl": OLD_ENTRY}) / "c.jsonl", tmp_path / "q.jsonl"
    assert Corpus.from_file(path, on_error="skip", quarantine=quarantine).quarantined == 0
    assert not quarantine.exists()
    assert Corpus.from_file(path, on_error="skip").quarantined == 0
    assert Corpus.from_file(path).quarantined == 0


def test_a_corpus_without_valid_records_is_an_error_with_the_first_reason(tmp_path: Path) -> None:
    path = write(tmp_path, {"c.jsonl": b"[]\n{}\n"}) / "c.jsonl"
    with pytest.raises(DataError, match=r"c\.jsonl: .*got 2 broken records and no other\. The first: .*:1: .*got list"):
        Corpus.from_file(path, on_error="skip", quarantine=tmp_path / "q.jsonl")
    assert len((tmp_path / "q.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("compared", [1, 2, 100])
def test_the_first_of_equal_ids_is_kept(compared: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexes.corpora.ingest._HASHES_PER_PASS", compared)
    ids = [number * 7 % 5 for number in range(12)] + list(range(5, 3000))
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps({"id": id_, "text": f"t{n}"}) + "\n" for n, id_ in enumerate(ids)))
    with pytest.raises(DataError, match=r"got '0' twice: line 1 and line 6"):
        Corpus.from_file(path)
    corpus = Corpus.from_file(path, on_error="skip", quarantine=tmp_path / "q.jsonl", cache_dir=tmp_path / "cache")
    expected = [Passage(str(n * 7 % 5), "", f"t{n}") for n in range(5)]
    expected += [Passage(str(id_), "", f"t{id_ + 7}") for id_ in range(5, 3000)]
    assert list(corpus) == expected
    assert [corpus.position(p.id) for p in expected[::500]] == list(range(0, len(expected), 500))
    assert corpus.fingerprint == Corpus.from_passages(expected).fingerprint
    entries = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert sorted(entry["line"] for entry in entries) == list(range(6, 13))
    corpus.save(tmp_path / "saved")
    assert list(Corpus.load(tmp_path / "saved")) == expected


def test_a_long_record_is_shortened_in_the_quarantine_and_stays_valid_utf8(tmp_path: Path) -> None:
    rows = [{"id": "a", "text": "x"}, {"id": "b", "text": "y", "title": ["ä" * 5000]}, {"id": "c\ud800", "text": "z"}]
    path = tmp_path / "c.jsonl"
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[:2]) + json.dumps(rows[2]) + "\n"
    )
    Corpus.from_file(path, on_error="skip", quarantine=tmp_path / "q.jsonl")
    long, surrogate = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(long["content"]) < 2100
    assert long["content"].endswith(f"... ({len(json.dumps(rows[1], ensure_ascii=False)) + 1} characters)")
    assert json.loads(surrogate["content"])["id"] == "c\ud800"
    for entry in (long, surrogate):
        json.dumps(entry, ensure_ascii=False).encode()


def test_a_line_longer_than_the_limit_is_left_out_without_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexes.records.text_lines.LONGEST_LINE", 1000)
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl("a") + b'{"text": "' + b"0" * 5000 + b'"}\n' + jsonl("b")))
    corpus = Corpus.from_file(path, on_error="skip", quarantine=tmp_path / "q.jsonl")
    assert list(corpus.ids) == ["a", "b"]
    (entry,) = map(json.loads, (tmp_path / "q.jsonl").read_text().splitlines())
    assert entry["line"] == 2
    assert "at most 1000 bytes" in entry["error"]


def test_after_a_broken_quote_lines_are_skipped_until_three_valid_records(tmp_path: Path) -> None:
    """Row d is lost although it is sound: nothing tells it from the middle of the text that was opened in row c."""
    lines = [
        "id,title,text",
        "a,A,x",
        'b,B,"broken" quote',
        'c,C,"two',
        'lines, with, commas"',
        "d,D,y",
        'e,E,"z',
        'z"',
    ]
    lines += ["f,F,1", "g,G,2", "h,H,3", 'i,I,"i ""i"', 'j,J,"two', 'lines"']
    path = tmp_path / "c.csv"
    path.write_text("\n".join(lines) + "\n")
    corpus = Corpus.from_file(path, on_error="skip", quarantine=tmp_path / "q.jsonl")
    assert [(p.id, p.text) for p in corpus] == [
        ("a", "x"),
        ("f", "1"),
        ("g", "2"),
        ("h", "3"),
        ("i", 'i "i'),
        ("j", "two\nlines"),
    ]
    entries = [json.loads(line) for line in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in entries] == [3, 4, 5, 6, 7, 8]
    assert [entry["content"] for entry in entries] == [f"{line}\n" for line in lines[2:8]]
    assert "c.csv:3: " in entries[0]["error"]
    assert "broken line: ',' expected after '\"'" in entries[0]["error"]
    assert "got a line after line 3, whose quotes are broken" in entries[1]["error"]


def test_contradicting_options_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "in", {"c.jsonl": jsonl("a")}) / "c.jsonl"
    before = path.read_bytes()
    with pytest.raises(UsageError, match='on_error must be "raise" or "skip", got \'ignore\''):
        Corpus.from_file(path, on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r'quarantine needs on_error="skip"'):
        Corpus.from_file(path, quarantine=tmp_path / "q.jsonl")
    for taken, read in [(path, path), (path.parent / "q.jsonl", path.parent)]:
        with pytest.raises(UsageError, match="must lie outside of the corpus that is read"):
            Corpus.from_file(read, on_error="skip", quarantine=taken)
    assert path.read_bytes() == before
    for content in (b"important", b'{"id": "a", "text": "x"}\n'):
        (tmp_path / "notes").write_bytes(content)
        with pytest.raises(UsageError, match=r"nothing but an earlier quarantine, got '.*notes', another file"):
            Corpus.from_file(path, on_error="skip", quarantine=tmp_path / "notes")
        assert (tmp_path / "notes").read_bytes() == content
    with pytest.raises(ResourceError, match="needs writable folders"):
        Corpus.from_file(path, on_error="skip", quarantine=tmp_path)


# -- addresses -------------------------------------------------------------------------------------------


class Files(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if "short" not in self.path:
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(jsonl("a"))
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "served").mkdir()

    def handler(*args: Any) -> Files:
        return Files(*args, directory=str(tmp_path / "served"))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_a_download_is_read_and_removed(server: str, tmp_path: Path) -> None:
    write(
        tmp_path / "served", {"a b/corpus.jsonl.gz": gzip.compress(jsonl("a")), "x.tsv": DPR, "d.html": HTML.encode()}
    )
    zipped(tmp_path / "served/scifact.zip", {"scifact/corpus.jsonl": BEIR})
    cache = tmp_path / "cache"
    corpus = Corpus.from_file(f"{server}/a%20b/corpus.jsonl.gz?download=true#top", cache_dir=cache)
    assert (list(corpus), corpus.source) == ([passage("a")], "corpus.jsonl.gz")
    assert [entry.name.partition("-")[0] for entry in cache.iterdir()] == ["corpus"]
    assert list(Corpus.from_file(f"{server}/x.tsv")) == DPR_PASSAGES
    assert list(Corpus.from_file(f"{server}/scifact.zip")) == BEIR_PASSAGES
    assert Corpus.from_file(f"{server}/d.html")[0].id == "d.html"


def test_errors_of_a_download_name_the_address(server: str, tmp_path: Path) -> None:
    write(tmp_path / "served", {"c.jsonl": jsonl("a") + b"[]\n"})
    with pytest.raises(DataError, match=rf"{server}/c\.jsonl:2: .*got list"):
        Corpus.from_file(f"{server}/c.jsonl")
    Corpus.from_file(f"{server}/c.jsonl", on_error="skip", quarantine=tmp_path / "q.jsonl")
    assert json.loads((tmp_path / "q.jsonl").read_text())["source"] == f"{server}/c.jsonl"
    with pytest.raises(ResourceError, match=r"/none\.jsonl: an address must be reachable, got: .*404.* or download it"):
        Corpus.from_file(f"{server}/none.jsonl")
    with pytest.raises(ResourceError, match=r"short\.jsonl: .*, got: \d+ of 1000 bytes"):
        Corpus.from_file(f"{server}/short.jsonl")
    with pytest.raises(DataError, match="the suffix of a corpus file must be"):
        Corpus.from_file(f"{server}/page")


def test_an_unreachable_address_is_a_resource_error() -> None:
    with pytest.raises(ResourceError, match=r"http://127\.0\.0\.1:9/c\.jsonl: an address must be reachable"):
        Corpus.from_file("http://127.0.0.1:9/c.jsonl")


def test_file_addresses_are_read_in_place(tmp_path: Path) -> None:
    write(tmp_path / "a b", {"c.jsonl": jsonl("a")})
    assert list(Corpus.from_file((tmp_path / "a b/c.jsonl").as_uri())) == [passage("a")]
    assert list(Corpus.from_file((tmp_path / "a b").as_uri())) == [passage("a")]
    with pytest.raises(DataError, match=r"file:///.*nope\.jsonl: a corpus must be an existing file"):
        Corpus.from_file((tmp_path / "nope.jsonl").as_uri())


@pytest.mark.parametrize("address", ["s3://bucket/c.jsonl", "ftp://host/c.jsonl", "data://x"])
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(DataError, match=r"must begin with http://, https://, file://, hf://, got"):
        Corpus.from_file(address)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands in for a dataset of the hub; `load_dataset` and its streaming are the real ones."""
    real = datasets.load_dataset

    def load(repository: str, config: str | None, **kwargs: Any) -> Any:
        assert repository == "owner/name"
        assert kwargs.pop("revision") is None
        return real(str(tmp_path / "repository"), config, **kwargs)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    return tmp_path / "repository"


def test_a_dataset_of_the_hub_is_streamed(hub: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parquet(hub / "data/train-00000-of-00001.parquet", "a", "b")
    corpus = Corpus.from_file("hf://datasets/owner/name")
    assert (list(corpus), corpus.source) == ([passage("a"), passage("b")], "name")
    parquet(hub / "data/test-00000-of-00001.parquet", "c")
    with pytest.raises(DataError, match=r"one of the splits \['test', 'train'\] must be chosen"):
        Corpus.from_file("hf://datasets/owner/name")
    assert list(Corpus.from_file("hf://datasets/owner/name?split=test")) == [passage("c")]
    assert list(Corpus.from_file("hf://datasets/owner/name", split="test")) == [passage("c")]
    with pytest.raises(UsageError, match=r"\?split=test: .*got split='train'"):
        Corpus.from_file("hf://datasets/owner/name?split=test", split="train")
    with pytest.raises(DataError, match=r"split=dev: .*config and split asked for and be readable"):
        Corpus.from_file("hf://datasets/owner/name?split=dev")
    with pytest.raises(DataError, match=r"config=none.*: a dataset must have the config"):
        Corpus.from_file("hf://datasets/owner/name?config=none&split=test")
    assert capfd.readouterr().err == ""


def test_records_of_the_hub_are_checked(hub: Path, tmp_path: Path) -> None:
    (hub / "x.jsonl").parent.mkdir()
    (hub / "x.jsonl").write_bytes(jsonl("a", "a") + b'{"id": "b", "title": "", "text": ""}\n')
    with pytest.raises(DataError, match=r"hf://datasets/owner/name, record 2: .*got neither \(id 'b'\)"):
        Corpus.from_file("hf://datasets/owner/name")
    corpus = Corpus.from_file("hf://datasets/owner/name", on_error="skip", quarantine=tmp_path / "q.jsonl")
    assert (list(corpus), corpus.quarantined) == ([passage("a")], 2)
    assert [json.loads(line)["record"] for line in (tmp_path / "q.jsonl").read_text().splitlines()] == [2, 1]


def test_a_file_of_the_hub_is_fetched_by_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repository: str, file: str, *, repo_type: str, revision: str | None) -> str:
        asked.append((repository, file, repo_type, revision))
        return str(parquet(tmp_path / "snapshot" / Path(file).name, "a"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    assert list(Corpus.from_file("hf://datasets/owner/name@v2/data/file.parquet")) == [passage("a")]
    assert asked == [("owner/name", "data/file.parquet", "dataset", "v2")]


@pytest.mark.parametrize("address", ["hf://datasets/owner/name", "hf://datasets/owner/name/c.jsonl"])
def test_an_unreachable_hub_is_a_resource_error(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run with HF_HUB_OFFLINE, and the cache is empty."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ResourceError, match=rf"{address}: an address must be reachable"):
        Corpus.from_file(address)


@pytest.mark.parametrize(
    "address", ["hf://owner/name", "hf://datasets/name", "hf://spaces/owner/name", "hf://datasets"]
)
def test_an_address_of_the_hub_must_name_a_dataset(address: str) -> None:
    with pytest.raises(DataError, match=r"must be hf://datasets/owner/name, followed by a path"):
        Corpus.from_file(address)


# -- memory ----------------------------------------------------------------------------------------------

MEASURE = """
import re, sys
from pathlib import Path
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage

def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def sampled(passages):
    global peak
    for number, passage in enumerate(passages):
        if number % 5000 == 0:
            peak = max(peak, anonymous())
        yield passage
    peak = max(peak, anonymous())

def build(count):
    global peak
    peak = 0
    corpus = Corpus.from_passages(sampled(Passage(f"p{n}", "title", "word " * 40) for n in range(count)))
    peak = max(peak, anonymous())
    return corpus

start = anonymous()
warm = build(20_000)
base = anonymous()
corpus = build(320_000)
print("bytes per row of reading:", (peak - base) / 300_000)
before = peak = anonymous()
for _ in sampled(corpus):
    pass
print("bytes per row of a pass:", (peak - before) / len(corpus))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_memory_of_reading_is_bounded_and_that_of_a_pass_does_not_grow(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", MEASURE]
    out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    reading, a_pass = (float(number) for number in re.findall(r": (-?[\d.e-]+)", out))
    assert reading < 26, out
    assert a_pass < 4, out
