"""Delimited text: fields of any length, quotes that are quotes, and quotes that are characters like any other."""

import csv
import gzip
import io
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from indexes import Corpus, DataError, Encoder, IndexWriter, Passage, UsageError, build_index
from indexes.records.delimited import BrokenLine, Line, delimited_records
from rag.cli import main
from training.questions.loading import load_examples

HEADER = ("id", "text", "title")


def written(rows: Sequence[Sequence[str]], **settings: object) -> str:
    """The rows as `csv.writer`, the reference, writes them."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", **settings).writerows(rows)
    return stream.getvalue()


def plain(rows: Sequence[Sequence[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def passages(rows: Sequence[Sequence[str]]) -> list[Passage]:
    return [Passage(id_, title, text) for id_, text, title in rows]


def put(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8", newline="")
    return path


# Fields beyond the limit of Python's csv module: 131,072 characters (LightRAG#1617)

LONG = [
    ("d1", "A short text, with a comma.", "Short"),
    ("d2", 'Section about "leases" and rents. ' * 6000, "Report"),
    ("d3", "Another text.", "Other"),
]


@pytest.fixture
def small_csv_limit() -> object:
    """What the module begins with; whoever imports it may have raised or lowered it."""
    before = csv.field_size_limit(131_072)
    yield
    csv.field_size_limit(before)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize(
    ("name", "delimiter"), [("c.csv", ","), ("c.tsv", "\t"), ("c.csv.gz", ","), ("c.tsv.gz", "\t")]
)
@pytest.mark.usefixtures("small_csv_limit")
def test_long_fields_are_read(name: str, delimiter: str, on_error: str, tmp_path: Path) -> None:
    content = written([HEADER, *LONG], delimiter=delimiter).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    corpus = Corpus.from_file(tmp_path / name, on_error=on_error)
    assert list(corpus) == passages(LONG)
    assert corpus.quarantined == 0


@pytest.mark.usefixtures("small_csv_limit")
def test_a_long_field_without_quotes(tmp_path: Path) -> None:
    rows = [("d1", '"Section" about leases. ' * 6000, ""), ("d2", 'He said "no" ' * 20_000, "T"), ("d3", "x", "")]
    assert list(Corpus.from_file(put(tmp_path / "c.tsv", plain([HEADER, *rows])))) == passages(rows)


@pytest.mark.usefixtures("small_csv_limit")
@pytest.mark.parametrize("quoted", [True, False])
def test_a_long_list_of_answers_is_read(quoted: bool, tmp_path: Path) -> None:
    """Also where the first line is longer than what is looked at to recognise the format."""
    answers = [f"answer {n}" for n in range(12_000)]
    rows = [("who?", repr(answers)), ("where?", "['y']"), ("what?" + "?" * 140_000, "['z']")]
    file = put(tmp_path / "q.tsv", written(rows, delimiter="\t") if quoted else plain(rows))
    assert [(e.question, list(e.golden_answers)) for e in load_examples(file)] == [
        ("who?", answers),
        ("where?", ["y"]),
        (rows[2][0], ["z"]),
    ]


def test_a_field_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a limit that a program has raised further is left as it is."""
    monkeypatch.setattr("indexes.records.delimited.LONGEST_LINE", 1000)
    before = csv.field_size_limit(2000)
    try:
        rows = [("a", "x" * 1500, ""), ("b", "y" * 2001, ""), ("c", "z", ""), ("d", "z", ""), ("e", "z", "")]
        file = put(tmp_path / "c.csv", written([HEADER, *rows]))
        with pytest.raises(DataError, match=r"c\.csv:3: .*at most 2,000 characters, got a broken line: field larger"):
            Corpus.from_file(file)
        assert list(Corpus.from_file(file, on_error="skip").ids) == ["a", "c", "d", "e"]
        assert csv.field_size_limit() == 2000
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    "text", ['"quoted, with ""quotes"" ' + "x" * 5000 + '"', '"' + "x" * 5000 + ' ""end"""', "x" * 5000]
)
def test_a_line_beyond_the_limit_breaks_no_other(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexes.records.text_lines.LONGEST_LINE", 1000)
    file = put(tmp_path / "c.csv", f"id,text,title\na,x,\nb,{text},\nc,z,\n")
    with pytest.raises(DataError, match=r"c\.csv:3: .*at most 1000 bytes, got more"):
        Corpus.from_file(file)
    corpus = Corpus.from_file(file, on_error="skip")
    assert (list(corpus.ids), corpus.quarantined) == (["a", "c"], 1)


# Quotes or none: tab-separated text says by its lines which

# primeqa#441: MS MARCO's and ColBERT's collections have no quoting; a field that begins with a quote is no quoted one.
PLAIN = [
    ("1", 'His fourth soundtrack for the ""Bond"" film.', "Barry"),
    ("2", '"Hello, he said.', "Greeting"),
    ("3", 'And so on, and so on."', "Rest"),
    ("4", '"Weird Al" Yankovic is a singer.', '"Weird Al"'),
    ("5", "No quotes.", '"Heroes"'),
]


def in_memory(content: str, quoting: str = "auto") -> list[list[str]]:
    lines = [Line(number, text) for number, text in enumerate(content.splitlines(keepends=True), start=1)]
    values = []
    for record in delimited_records(iter(lines), "f", delimiter="\t", quoting=quoting):
        if isinstance(record, BrokenLine):
            raise record.error
        values.append(record.values)
    return values


@pytest.mark.parametrize("order", [HEADER, ("id", "title", "text"), ("text", "title", "id")])
def test_text_without_quoting_keeps_quotes_and_records(order: tuple[str, ...], tmp_path: Path) -> None:
    rows = [[dict(zip(HEADER, row, strict=True))[name] for name in order] for row in PLAIN]
    file = put(tmp_path / "c.tsv", plain([order, *rows]))
    assert list(Corpus.from_file(file)) == passages(PLAIN)
    assert list(Corpus.from_file(file, quoting="none")) == passages(PLAIN)
    packed = tmp_path / "c.tsv.gz"
    packed.write_bytes(gzip.compress(file.read_bytes().replace(b"\n", b"\r\n")))
    assert list(Corpus.from_file(packed)) == passages(PLAIN)


@pytest.mark.parametrize("first", ['"Hello, he said.', '"He said "no" twice.', '""'])
@pytest.mark.parametrize("second", ['And so on."', '"x', 'a "quoted" word', 'She "left".', "no quote"])
def test_two_records_are_never_joined(first: str, second: str) -> None:
    """Every pair is two rows, or an error that names the first; the text between two quotes may look like a field."""
    content = plain([HEADER, ("1", first, "T"), ("2", second, "U")])
    try:
        records = in_memory(content)
    except DataError as error:
        assert "f:2: " in str(error)
        return
    assert [record[0] for record in records] == ["id", "1", "2"]


STYLES = [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(20))
def test_output_of_csv_writer_is_read_back(style: int, seed: int) -> None:
    """Random texts of quotes and tabs, or quotes and line ends, against the module that wrote them."""
    draw = random.Random(seed)
    rows = []
    for number in range(30):
        parts = draw.choices(['"', draw.choice("\t\n"), "a", "b c", " "], k=draw.randrange(9))
        rows.append([str(number), "".join(parts) + "x", draw.choice(["T", '"U"', ""])])
    content = written([HEADER, *rows], delimiter="\t", quoting=style)
    assert in_memory(content) == [list(HEADER), *rows]
    assert in_memory(content, "csv") == [list(HEADER), *rows]


@pytest.mark.parametrize("seed", range(20))
def test_unquoted_output_is_read_back(seed: int) -> None:
    draw = random.Random(seed)
    rows = []
    for number in range(30):
        parts = draw.choices(['"', "a", "b c", " "], k=draw.randrange(9))
        rows.append([str(number), "".join(parts) + "x", draw.choice(["T", 'U"', ""])])
    content = plain([HEADER, *rows])
    assert in_memory(content, "none") == [list(HEADER), *rows]
    assert in_memory(content) == [list(HEADER), *rows]


def test_the_last_column_may_contain_line_ends_from_the_first_record_on() -> None:
    """Without the quote its first line has as many fields as a row."""
    rows = [("1", "T", "first\n\nsecond"), ("2", "U", "third\nfourth"), ("3", "V", "fifth")]
    content = written([("id", "title", "text"), *rows], delimiter="\t")
    assert in_memory(content)[1:] == [list(row) for row in rows]


def test_one_column_of_quoted_lines() -> None:
    rows = [["first\nsecond"], ['third "or"\nfourth'], ["fifth"]]
    assert in_memory(written([["text"], *rows], delimiter="\t"))[1:] == rows
    ambiguous = 'text\n"first\nsecond"\nthird\n'  # one row of two lines, or two rows
    with pytest.raises(DataError, match=r":2: .*broken line: its quotes join 2 lines"):
        in_memory(ambiguous)
    assert in_memory(ambiguous, "csv") == [["text"], ["first\nsecond"], ["third"]]
    assert in_memory(ambiguous, "none") == [["text"], ['"first'], ['second"'], ["third"]]


def test_quoting_is_decided_from_the_first_quote_even_after_many_lines(tmp_path: Path) -> None:
    rows = [(str(n), f"text {n}", "") for n in range(2500)]
    late = [*rows, ("q", '"Unclosed', ""), ("r", 'closed"', ""), *[(f"s{n}", "x", "") for n in range(3)]]
    assert list(Corpus.from_file(put(tmp_path / "c.tsv", plain([HEADER, *late])))) == passages(late)


def test_records_of_a_quoted_file_are_not_joined(tmp_path: Path) -> None:
    """Most rows are quoted, so one that is not is broken: it is named, and what follows it is kept."""
    rows = [(str(n), f'text "{n}"', "T") for n in range(9)]
    content = written([HEADER, *rows], delimiter="\t") + '9\t"open\tT\n10\tclosed"\tT\n'
    content += written([(f"s{n}", "x", "T") for n in range(3)], delimiter="\t")
    file = put(tmp_path / "c.tsv", content)
    with pytest.raises(DataError, match=r"c\.tsv:11: .*its quotes join 2 lines.*quoting='none'"):
        Corpus.from_file(file)
    corpus = Corpus.from_file(file, on_error="skip")
    assert list(corpus.ids) == [*map(str, range(9)), "s0", "s1", "s2"]
    joined = Corpus.from_file(file, quoting="csv")
    assert joined[9] == Passage("9", "T", "open\tT\n10\tclosed")


def test_csv_is_quoted_by_default(tmp_path: Path) -> None:
    file = put(tmp_path / "c.csv", 'id,text\n1,"one\ntwo, three"\n2,"x"\n')
    assert list(Corpus.from_file(file)) == [Passage("1", "", "one\ntwo, three"), Passage("2", "", "x")]
    file = put(tmp_path / "d.csv", 'id,text\n1,"Hello\n2,there"\n')
    assert list(Corpus.from_file(file, quoting="none")) == [Passage("1", "", '"Hello'), Passage("2", "", 'there"')]


def test_questions_keep_their_quotes(tmp_path: Path) -> None:
    """DPR's own files are written by csv.writer; a line of one that is not was cut, or lost its quotes."""
    rows = [
        ('"Heroes" is by whom', "['David Bowie']"),
        ('"who let the dogs out', "['Baha Men']"),
        ('what is 5" in cm', "['12.7']"),
        ("and last", '["Oduya\'s"]'),
    ]
    file = put(tmp_path / "q.tsv", plain(rows))
    assert [e.question for e in load_examples(file)] == [question for question, _ in rows]
    assert [e.golden_answers for e in load_examples(file)][-1] == ("Oduya's",)
    file = put(tmp_path / "w.csv", written(rows, delimiter="\t"))
    assert [e.question for e in load_examples(file)] == [question for question, _ in rows]
    assert [e.golden_answers for e in load_examples(file, quoting="csv")][-1] == ("Oduya's",)


def test_judgements_keep_the_quotes_of_ids(tmp_path: Path) -> None:
    """Ids that are titles, as in BEIR's FEVER, may begin with a quote."""
    (tmp_path / "qrels").mkdir()
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "who?"}\n')
    judged = [("q", '"Heroes"_(song)', "1"), ("q", '"Open', "1"), ("q", 'closed"', "2")]
    rows = [("query-id", "corpus-id", "score"), *judged]
    for content in (plain(rows), written(rows, delimiter="\t")):
        (tmp_path / "qrels/test.tsv").write_text(content)
        (example,) = load_examples(tmp_path)
        assert example.gold_ids == tuple(id_ for _, id_, _ in judged)
    (tmp_path / "qrels/test.tsv").write_text(plain([*rows[:1], ("q", '"Heroes"', "1")]))
    assert load_examples(tmp_path, quoting="none")[0].gold_ids == ('"Heroes"',)


def test_unknown_quoting_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path / "c.tsv", plain([HEADER, *PLAIN]))
    for read in (Corpus.from_file, load_examples):
        with pytest.raises(UsageError, match="quoting must be one of auto, csv, none, got 'minimal'"):
            read(file, quoting="minimal")


def test_the_option_reaches_builds_writers_and_commands(
    tmp_path: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("1", '"A quotation."', "T"), ("2", '"Another one."', "U")]  # auto takes such texts for quoted ones
    file = put(tmp_path / "c.tsv", plain([HEADER, *rows]))
    index = build_index(file, encoder, tmp_path / "built", quoting="none", progress=False)
    assert list(index.corpus) == passages(rows)
    with IndexWriter(tmp_path / "built", encoder, quoting="csv", progress=False) as writer:
        assert writer.sync(file).updated == 2
    made, plainly = str(tmp_path / "made"), ["--quoting", "none"]
    assert main(["index", "build", "--corpus", str(file), "--output_dir", made, "--quiet", *plainly]) == 0
    verify = ["index", "verify", made, "--corpus", str(file)]
    assert main([*verify, *plainly]) == 0
    assert main(verify) != 0
    questions = put(tmp_path / "q.tsv", plain([('"A quotation."', "['T']")]))
    capsys.readouterr()
    for quoting, asked in (("none", '"A quotation."'), ("csv", "A quotation.")):
        options = ["--questions", str(questions), "--quoting", quoting, "-k", "1", "--explain"]
        assert main(["search", "--index", made, *options]) == 0
        assert capsys.readouterr().out.startswith(f"{asked}\n")


# The index of pandas in CSV: the first column, without a name


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (",text\n10,x\n20,y\n", ["10", "20"]),
        ('"","text"\n"1","x"\n"2","y"\n', ["1", "2"]),  # R's write.csv
        (",id,text\n10,a,x\n20,b,y\n", ["a", "b"]),
        ("text,\nx,10\ny,20\n", ["0", "1"]),  # no index, but a last column that is empty
    ],
)
def test_a_first_column_without_a_name_is_the_id(content: str, ids: list[str], tmp_path: Path) -> None:
    assert list(Corpus.from_file(put(tmp_path / "c.csv", content)).ids) == ids
