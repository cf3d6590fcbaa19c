"""A corpus is what its file says, streamed, and every broken row is named with its place."""

import csv
import gc
import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from indexes import Corpus, DataError, Passage
from indexes.corpora.passage import passage_digest

ROWS = [
    {"id": "a", "title": "Alpha", "text": "The first letter."},
    {"id": "b", "title": "", "text": 'Has "quotes",\ta tab and\na newline.'},
    {"id": "c", "title": "Gämma", "text": "Ünïcödé 漢字"},
]
PASSAGES = [Passage(**row) for row in ROWS]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_delimited(path: Path, rows: list[dict], delimiter: str) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        # DPR's column order, which must not matter.
        writer = csv.DictWriter(stream, ["id", "text", "title"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_jsonl(folder: Path) -> Path:
    return write_jsonl(folder / "corpus.jsonl", ROWS)


def as_jsonl_gz(folder: Path) -> Path:
    path = folder / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(as_jsonl(folder).read_bytes()))
    return path


def as_csv(folder: Path) -> Path:
    return write_delimited(folder / "corpus.csv", ROWS, ",")


def as_tsv(folder: Path) -> Path:
    return write_delimited(folder / "psgs_w100.tsv", ROWS, "\t")


def as_parquet(folder: Path) -> Path:
    path = folder / "corpus.parquet"
    pq.write_table(pa.Table.from_pylist([{**row, "score": 1.5} for row in ROWS]), path)
    return path


def as_saved_dataset(folder: Path) -> Path:
    path = folder / "saved"
    datasets.Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


FORMATS = [as_jsonl, as_jsonl_gz, as_csv, as_tsv, as_parquet, as_saved_dataset]


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_gives_the_same_corpus(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    corpus = Corpus.from_file(path)
    assert list(corpus) == PASSAGES
    assert corpus.source == path.name
    assert corpus.fingerprint == Corpus.from_passages(PASSAGES).fingerprint


def test_contents_is_title_newline_text_and_only_text_without_a_title() -> None:
    assert [p.contents for p in PASSAGES[:2]] == ["Alpha\nThe first letter.", PASSAGES[1].text]


def test_flashrag_contents_hold_the_title_in_quotes_on_the_first_line(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "contents": '"Hamlet"\nA play.\nIn five acts.'},
        {"id": 8, "contents": "Faust\nAnother play."},
        {"id": 9, "contents": '"Only one line"'},
        {"id": 10, "contents": "Nothing follows\n \n"},
    ]
    assert list(Corpus.from_file(write_jsonl(tmp_path / "c.jsonl", rows))) == [
        Passage("7", "Hamlet", "A play.\nIn five acts."),
        Passage("8", "Faust", "Another play."),
        Passage("9", "", '"Only one line"'),
        Passage("10", "", "Nothing follows"),
    ]


@pytest.mark.parametrize(
    ("row", "title", "text"),
    [
        # Pyserini's JSON collections may have a title beside the contents; it was dropped.
        (
            {"title": "Mars", "contents": "Planet four.\nTwo moons."},
            "Mars",
            "Planet four.\nTwo moons.",
        ),
        ({"title": "Venus", "contents": "It has no moon."}, "Venus", "It has no moon."),
        # FlashRAG's corpora may have title, text and contents; contents repeat the title in their first line.
        ({"title": "Mars", "contents": "Mars\nTwo moons."}, "Mars", "Two moons."),
        ({"title": "Mars", "contents": '"Mars"\nTwo moons.'}, "Mars", "Two moons."),
        ({"title": "Mars", "contents": "Mars\n"}, "Mars", ""),
        ({"title": "Mars", "text": "Two moons.", "contents": "Mars\nTwo moons."}, "Mars", "Two moons."),
        ({"title": "Mars", "text": "", "contents": "Mars\nTwo moons."}, "Mars", "Two moons."),
        ({"title": " ", "contents": "Mars\nTwo moons."}, "Mars", "Two moons."),
        # Pyserini's Mr. TyDi: a blank line between title and text (--delimiter "\n\n").
        ({"contents": "Pluto\n\nIt was a planet once."}, "Pluto", "It was a planet once."),
        ({"contents": "Pluto\r\n\r\nIt was a planet.\n\nOnce."}, "Pluto", "It was a planet.\n\nOnce."),
        # FlashRAG's contents of a passage without a title begin with a newline.
        ({"contents": "\nNo title here.\nAt all."}, "", "No title here.\nAt all."),
    ],
)
def test_contents_beside_a_title_and_around_a_blank_line(row: dict, title: str, text: str) -> None:
    assert list(Corpus.from_passages([{"id": "1", **row}])) == [Passage("1", title, text)]


def test_beir_ids_and_missing_ids(tmp_path: Path) -> None:
    rows = [
        {"_id": "doc9", "title": None, "text": "x", "metadata": {}},
        {"text": "y"},
        {"id": 0, "text": "z"},
    ]
    corpus = Corpus.from_file(write_jsonl(tmp_path / "c.jsonl", rows))
    assert list(corpus.ids) == ["doc9", "1", "0"]


def test_text_folder_takes_paths_as_ids_and_headings_as_titles(tmp_path: Path) -> None:
    files = {
        "b.md": "# The *title* #\n\nBody.\n",
        "a/deep.txt": "# not a heading in a text file\r\nsecond line\r\n",
        "a/late.md": "Intro.\n```\n# code\n```\n## Late\nEnd.",
        "bare.md": "#hashtag is no heading",
        "only.md": "# Only a heading\n",
        "ignored.png": "PNG",
        ".hidden/secret.md": "# Secret",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    assert list(Corpus.from_file(tmp_path)) == [
        Passage("a/deep.txt", "deep", "# not a heading in a text file\nsecond line"),
        Passage("a/late.md", "Late", files["a/late.md"]),
        Passage("b.md", "The *title*", "Body."),
        Passage("bare.md", "bare", "#hashtag is no heading"),
        Passage("only.md", "Only a heading", "# Only a heading"),
    ]


def test_blank_lines_and_a_byte_order_mark_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"id": "a", "text": "x"}\n\n  \n{"id": "b", "text": "y"}')
    assert list(Corpus.from_file(path).ids) == ["a", "b"]


def test_a_changed_file_is_never_read_from_a_cache(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", ROWS[:2])
    before = path.stat()
    first = Corpus.from_file(path, cache_dir=tmp_path / "cache")
    path.write_text(path.read_text().replace("first", "FIRST"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = Corpus.from_file(path, cache_dir=tmp_path / "cache")
    assert (first[0].text, second[0].text) == ("The first letter.", "The FIRST letter.")
    assert first.fingerprint != second.fingerprint


def test_the_private_copy_is_removed_with_the_corpus_and_after_an_error(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    corpus = Corpus.from_passages(PASSAGES, cache_dir=cache)
    assert len(list(cache.iterdir())) == 1
    with pytest.raises(DataError):
        Corpus.from_passages([*PASSAGES, PASSAGES[0]], cache_dir=cache)
    gc.collect()
    assert len(list(cache.iterdir())) == 1
    del corpus
    gc.collect()
    assert list(cache.iterdir()) == []


def test_take_keeps_the_order_asked_for_and_repeats() -> None:
    corpus = Corpus.from_passages(PASSAGES)
    assert corpus.take([2, 0, 2]) == [PASSAGES[2], PASSAGES[0], PASSAGES[2]]
    assert corpus.take([]) == []
    assert (len(corpus), corpus[1]) == (3, PASSAGES[1])


@pytest.mark.parametrize("position", [-1, 3])
def test_a_position_outside_the_corpus_is_refused(position: int) -> None:
    with pytest.raises(IndexError, match=f"at least 0 and below 3, got {position}"):
        Corpus.from_passages(PASSAGES).take([0, position])


def test_position_finds_every_id_and_names_an_unknown_one() -> None:
    corpus = Corpus.from_passages(Passage(f"id-{i * 7 % 1501}", "", f"text {i}") for i in range(1501))
    assert [corpus.position(corpus[i].id) for i in (0, 1, 999, 1000, 1500)] == [0, 1, 999, 1000, 1500]
    with pytest.raises(DataError, match=r"got 'nope': the corpus holds 1501 passages"):
        corpus.position("nope")


def test_the_fingerprint_is_the_sum_of_the_digests_in_any_order() -> None:
    """Written out by hand: SHA-256 over three little-endian lengths of 8 bytes and the fields in UTF-8."""
    one = hashlib.sha256(bytes([1, *[0] * 7, 2, *[0] * 7, 3, *[0] * 7]) + b"1ab\xc3\xa4c")
    two = hashlib.sha256(bytes([1, *[0] * 7, 0, *[0] * 7, 1, *[0] * 7]) + b"2d")
    assert passage_digest(Passage("1", "ab", "äc")) == int(one.hexdigest(), 16)
    total = (int(one.hexdigest(), 16) + int(two.hexdigest(), 16)) % 2**256
    passages = [Passage("1", "ab", "äc"), Passage("2", "", "d")]
    assert Corpus.from_passages(passages).fingerprint == Corpus.from_passages(passages[::-1]).fingerprint
    assert Corpus.from_passages(passages).fingerprint == hex(total)[2:].rjust(64, "0")


def test_the_fingerprint_wraps_and_is_the_same_when_a_saved_corpus_is_read(tmp_path: Path) -> None:
    passages = [Passage(str(number), "", "x") for number in range(40)]
    total = sum(passage_digest(passage) for passage in passages)
    assert total > 2**256
    Corpus.from_passages(passages).save(tmp_path / "saved")
    assert int(Corpus.load(tmp_path / "saved").fingerprint, 16) == total % 2**256


def test_the_fingerprint_depends_on_every_passage_and_on_field_boundaries() -> None:
    one, two = Passage("1", "ab", "c"), Passage("2", "", "d")
    variants = [(one, two), (one,), (Passage("1", "a", "bc"), two), (Passage("1a", "b", "c"), two)]
    assert len({Corpus.from_passages(variant).fingerprint for variant in variants}) == len(variants)


def test_save_and_load_keep_everything_and_equal_corpora_become_equal_bytes(tmp_path: Path) -> None:
    Corpus.from_passages(PASSAGES).save(tmp_path / "one")
    Corpus.from_file(as_csv(tmp_path)).save(tmp_path / "two")
    loaded = Corpus.load(tmp_path / "one")
    assert list(loaded) == PASSAGES
    assert loaded.fingerprint == Corpus.from_passages(PASSAGES).fingerprint
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert [(tmp_path / "one" / n).read_bytes() for n in names] == [(tmp_path / "two" / n).read_bytes() for n in names]


def test_a_shuffled_dataset_keeps_its_new_order() -> None:
    dataset = datasets.Dataset.from_list(ROWS).select([2, 0])
    assert list(Corpus.from_dataset(dataset)) == [PASSAGES[2], PASSAGES[0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"id": "a", "text": "x"}\n\n{"id": "b", "text"\n',
            r"c\.jsonl:3: every line must be one JSON object, got .*Expecting ':'",
        ),
        (b'{"id": "a", "text": "x"}\n["b", "y"]\n', r"c\.jsonl:2: every record must be a JSON object, got list"),
        (b'{"id": "a", "text": "x"}\n{"id": "b", "body": "y"}\n', r"jsonl:2: .*got only \['body', 'id'\]"),
        (b'{"id": "a", "text": "x"}\n{"id": "b", "text": " \\n"}\n', r"jsonl:2: .*got neither \(id 'b'\)"),
        (
            b'{"id": "a", "text": "x"}\n{"id": "b", "text": 5}\n',
            r'jsonl:2: "text" must be a string, got int',
        ),
        (b'{"id": "a", "text": "x"}\n{"id": 1.5, "text": "y"}\n', r"jsonl:2: an id must be .*got 1\.5"),
        (
            b'{"id": "a", "text": "x"}\n{"id": "b", "text": "\xff"}\n',
            r"jsonl:2: text must be UTF-8, got invalid start byte at byte 22",
        ),
        (b'{"id": "a", "text": "\\ud800"}\n', r"jsonl:1: text must be valid Unicode, got a lone surrogate"),
        (
            b'{"text": "x", "id": 7}\n\n{"text": "y"}\n{"text": "z", "id": "7"}\n',
            r"got '7' twice: line 1 and line 4",
        ),
        (b"\n", r"c\.jsonl: a corpus must have at least one passage, got none"),
    ],
)
def test_a_broken_jsonl_file_is_refused_with_its_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        Corpus.from_file(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.csv", 'id,text\na,"open\nb,y\n', r"c\.csv:2: .*unexpected end of data"),
        ("c.tsv", "id\ttext\ttitle\n1\tx\n", r"c\.tsv:2: .*3 fields of the header .*, got 2"),
        ("c.csv", "id,text\na,x\na,y\n", r"got 'a' twice: line 2 and line 3"),
        ("c.csv", "", r"at least one passage, got none"),
        ("c.parquet", "no parquet", r"c\.parquet: this must be a readable Parquet file"),
        ("c.jsonl.gz", "no gzip", r"c\.jsonl\.gz:1: every line must be one JSON object"),
        ("c.doc", "x", r"'c\.doc': the suffix .* must be one of \.jsonl \(also with \.gz\), .*\.parquet, .*\.docx"),
        ("folder/c.md", "", r"folder/c\.md: a document must have some text, got none"),
    ],
)
def test_other_broken_files_are_refused(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        Corpus.from_file(path if path.parent == tmp_path else path.parent)


def test_a_truncated_gzip_file_is_refused(tmp_path: Path) -> None:
    path = as_jsonl_gz(tmp_path)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"break off after line \d"):
        Corpus.from_file(path)


@pytest.mark.parametrize("name", ["c.jsonl", "c.jsonl.gz", "c.csv", "c.csv.gz"])
@pytest.mark.parametrize("packed", [True, False])
def test_gzip_is_recognised_by_content_and_not_by_the_name(name: str, packed: bool, tmp_path: Path) -> None:
    content = b'{"id": "a", "text": "x"}\n' if ".jsonl" in name else b"id,text\na,x\n"
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    assert list(Corpus.from_file(tmp_path / name)) == [Passage("a", "", "x")]


def test_csv_rows_without_an_id_are_numbered(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_text("text\nfirst\nsecond\n")
    assert list(Corpus.from_file(path)) == [Passage("0", "", "first"), Passage("1", "", "second")]


def test_parquet_without_known_columns_names_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "key": ["k"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet: .*got \['body', 'key'\]"):
        Corpus.from_file(tmp_path / "c.parquet")


def test_missing_file_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nope\.jsonl: a corpus must be an existing file or folder"):
        Corpus.from_file(tmp_path / "nope.jsonl")
    with pytest.raises(DataError, match=r"must be a folder that Dataset\.save_to_disk wrote"):
        Corpus.load(tmp_path)
    datasets.Dataset.from_list([{"question": "?"}]).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"columns id, title and text, got \['question'\]"):
        Corpus.load(tmp_path / "other")
    splits = datasets.DatasetDict(dict.fromkeys(("train", "test"), datasets.Dataset.from_list(ROWS)))
    splits.save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(DataError, match=r"one of the splits \['test', 'train'\] must be chosen, got no split"):
        Corpus.from_file(tmp_path / "splits")


def test_progress_bars_are_silent_unless_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = as_jsonl(tmp_path)
    assert not datasets.are_progress_bars_disabled()
    Corpus.from_file(path).save(tmp_path / "saved")
    assert capfd.readouterr().err == ""
    assert not datasets.are_progress_bars_disabled()
    Corpus.from_file(path, progress=True)
    assert "reading: 3 passages" in capfd.readouterr().err


def test_importing_the_package_is_cheap_and_sets_the_openmp_wait_policy() -> None:
    code = (
        "import os, sys, indexes; heavy = {'torch', 'datasets', 'faiss', 'numpy', 'sentence_transformers'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE';"
        "from indexes import Passage; assert set(indexes.__all__) <= set(dir(indexes));"
        "assert 'torch' not in sys.modules;"
        "assert all(vars(sys.modules[indexes._EXPORTS[n]])[n] is getattr(indexes, n) for n in "
        "indexes.__all__ if getattr(indexes, n))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True)
    with pytest.raises(ImportError, match="nothing_of_that_name"):
        from indexes import nothing_of_that_name  # noqa: F401


def test_real_corpora_are_read_whole(data_dir: Path) -> None:
    corpus = Corpus.from_file(data_dir / "2wiki/corpus.jsonl.gz")
    with gzip.open(data_dir / "2wiki/corpus.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    assert len(corpus) == len(rows)
    assert [p.id for p in corpus] == [row["id"] for row in rows]
    assert corpus[17] == Passage(rows[17]["id"], rows[17]["title"], rows[17]["text"])
