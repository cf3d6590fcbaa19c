"""What writers of tables keep beside the columns: JSON in a column of mixed types, and the index of pandas."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from indexes import Corpus, DataError, Passage
from training.questions.loading import load_examples

Write = Callable[[datasets.Dataset, Path], object]


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    datasets.disable_progress_bars()


def loaded(rows: list[dict], folder: Path) -> datasets.Dataset:
    """What `datasets` makes of JSON lines; it sees the mixed types where a frame of pandas would not."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return datasets.load_dataset(
        "json", data_files=str(folder / "rows.jsonl"), split="train", cache_dir=str(folder / "cache")
    )


def itself(dataset: datasets.Dataset, folder: Path) -> object:
    return dataset


def formatted(dataset: datasets.Dataset, folder: Path) -> object:
    return dataset.with_format("numpy")


def saved(dataset: datasets.Dataset, folder: Path) -> object:
    dataset.save_to_disk(str(folder / "saved"))
    return folder / "saved"


def parquet(dataset: datasets.Dataset, folder: Path) -> object:
    dataset.to_parquet(str(folder / "t.parquet"))
    return folder / "t.parquet"


def parquet_of_another_writer(dataset: datasets.Dataset, folder: Path) -> object:
    """Parquet has a logical type JSON of its own, which fastparquet writes; no Arrow schema is beside it."""
    pq.write_table(dataset.with_format("arrow")[:], folder / "t.parquet", store_schema=False)
    return folder / "t.parquet"


def arrow_file(dataset: datasets.Dataset, folder: Path) -> object:
    pyarrow.feather.write_feather(dataset.with_format("arrow")[:], str(folder / "t.arrow"))
    return folder / "t.arrow"


def arrow_stream(dataset: datasets.Dataset, folder: Path) -> object:
    table = dataset.with_format("arrow")[:]
    with pa.OSFile(str(folder / "t.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return folder / "t.arrow"


WRITERS = [itself, formatted, saved, parquet, parquet_of_another_writer, arrow_file, arrow_stream]


def corpus_of(source: object) -> Corpus:
    return Corpus.from_dataset(source) if isinstance(source, datasets.Dataset) else Corpus.from_file(source)


# Mixed types: datasets 5.2 stores such columns as JSON text, of the Arrow type arrow.json


@pytest.mark.parametrize("write", WRITERS)
def test_ids_of_mixed_types_are_restored(write: Write, tmp_path: Path) -> None:
    """`datasets` itself reads "007" as 7 and "1e5" as 100000.0: it leaves a text that is JSON as it is."""
    ids = [1, "x2", "007", "1e5", "-0", "a b", "NaN"]
    dataset = loaded([{"id": id_, "text": f"text {id_}"} for id_ in ids], tmp_path)
    assert dataset.features["id"] == datasets.Json()
    corpus = corpus_of(write(dataset, tmp_path))
    assert list(corpus) == list(Corpus.from_file(tmp_path / "rows.jsonl"))
    assert list(corpus.ids) == [str(id_) for id_ in ids]


@pytest.mark.parametrize("write", WRITERS)
def test_answers_of_mixed_types_are_restored(write: Write, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "q?", "golden_answers": "Paris"},
        {"id": "b", "question": "r?", "golden_answers": ["Rome", "Roma"]},
        {"id": "c", "question": "s?", "golden_answers": 1912},
        {"id": "d", "question": "t?", "golden_answers": None},
        {"id": "e", "question": "u?", "golden_answers": "1.50"},
    ]
    examples = load_examples(write(loaded(rows, tmp_path), tmp_path))
    answers = [("Paris",), ("Rome", "Roma"), ("1912",), (), ("1.50",)]
    assert [(e.id, e.golden_answers) for e in examples] == list(zip("abcde", answers, strict=True))


@pytest.mark.parametrize("write", WRITERS)
def test_hotpotqas_own_file_through_load_dataset(write: Write, tmp_path: Path) -> None:
    rows = [
        {
            "_id": f"h{n}",
            "question": "q?",
            "answer": "a",
            "supporting_facts": [["T", 0], ["U", 1]],
            "context": [["T", ["One.", "Two."]], ["U", [f"Number {n}.", "Three."]], ["V", ["Four."]]],
        }
        for n in range(3)
    ]
    (tmp_path / "h.json").write_text(json.dumps(rows))
    dataset = datasets.load_dataset(
        "json", data_files=str(tmp_path / "h.json"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert dataset.features["context"] == datasets.List(datasets.List(datasets.Json()))
    source = write(dataset, tmp_path)
    corpus, questions = corpus_of(source), load_examples(source)
    assert [(p.title, p.text) for p in corpus] == [
        ("T", "One. Two."),
        ("U", "Number 0. Three."),
        ("V", "Four."),
        ("U", "Number 1. Three."),
        ("U", "Number 2. Three."),
    ]
    assert list(corpus) == list(Corpus.from_file(tmp_path / "h.json"))
    assert questions == load_examples(tmp_path / "h.json")
    assert [corpus.known_ids(q.gold_ids) == set(q.gold_ids) for q in questions] == [True] * 3


def test_json_inside_structs_and_lists(tmp_path: Path) -> None:
    """KILT's output with answers and provenance of mixed types, some of them missing."""
    output = [
        [{"answer": '"Rome"', "provenance": ['{"wikipedia_id": 12}']}, {"answer": "1912"}],
        None,
        [{"answer": None}],
    ]
    text, json_text = (
        pa.list_(pa.struct({"answer": kind, "provenance": pa.large_list(kind)})) for kind in (pa.string(), pa.json_())
    )
    table = pa.table(
        {"id": ["a", "b", "c"], "input": ["q?", "r?", "s?"], "output": pa.array(output, text).cast(json_text)}
    )
    pq.write_table(table, tmp_path / "k.parquet")
    assert [(e.golden_answers, e.gold_ids) for e in load_examples(tmp_path / "k.parquet")] == [
        (("Rome", "1912"), ("12",)),
        ((), ()),
        ((), ()),
    ]


# The index of pandas


def as_parquet(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_parquet(folder / "t.parquet")
    return folder / "t.parquet"


def as_feather(frame: pd.DataFrame, folder: Path) -> Path:
    frame.to_feather(folder / "t.arrow")
    return folder / "t.arrow"


def as_stream(frame: pd.DataFrame, folder: Path) -> Path:
    table = pa.Table.from_pandas(frame)
    with pa.OSFile(str(folder / "t.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    return folder / "t.arrow"


FRAME_WRITERS = [as_parquet, as_feather, as_stream]
TEXTS = {"text": ["x", "y", "z"]}
INDEXES: list[tuple[object, list[str]]] = [
    # pandas 3 makes a RangeIndex of evenly spaced numbers, which to_parquet keeps in the metadata alone.
    (pd.RangeIndex(10, 40, 10, name="id"), ["10", "20", "30"]),
    (pd.RangeIndex(10, 40, 10), ["10", "20", "30"]),
    (pd.RangeIndex(2, -1, -1), ["2", "1", "0"]),
    (pd.RangeIndex(7, 10, name="docid"), ["7", "8", "9"]),
    # Any other one is a column: __index_level_0__ without a name.
    (pd.Index([3, 1, 7]), ["3", "1", "7"]),
    (pd.Index(["q", "p", "r"], name="docid"), ["q", "p", "r"]),
    (pd.CategoricalIndex(["q", "p", "r"]), ["q", "p", "r"]),
    (pd.Index([3, 1, 7], name="_id"), ["3", "1", "7"]),
    (pd.RangeIndex(3), ["0", "1", "2"]),
]


@pytest.mark.parametrize("write", FRAME_WRITERS)
@pytest.mark.parametrize(("index", "ids"), INDEXES)
def test_the_index_is_the_id_where_no_column_is(
    write: Callable[[pd.DataFrame, Path], Path], index: pd.Index, ids: list[str], tmp_path: Path
) -> None:
    corpus = Corpus.from_file(write(pd.DataFrame(TEXTS, index=index), tmp_path))
    assert list(corpus) == [Passage(id_, "", text) for id_, text in zip(ids, "xyz", strict=True)]
    questions = load_examples(write(pd.DataFrame({"question": ["x", "y", "z"], "answer": "a"}, index=index), tmp_path))
    assert [(e.id, e.question) for e in questions] == list(zip(ids, "xyz", strict=True))


def test_evenly_spaced_ids_set_as_index_are_kept(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [10, 20, 30], **TEXTS}).set_index("id")
    frame.to_parquet(tmp_path / "t.parquet")
    assert pq.read_schema(tmp_path / "t.parquet").names == ["text"]
    assert list(Corpus.from_file(tmp_path / "t.parquet").ids) == ["10", "20", "30"]


@pytest.mark.parametrize(("index", "ids"), INDEXES)
def test_a_column_of_ids_wins_over_the_index(index: pd.Index, ids: list[str], tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": ["a", "b", "c"], **TEXTS}, index=index)
    assert list(Corpus.from_file(as_parquet(frame, tmp_path)).ids) == ["a", "b", "c"]
    frame = pd.DataFrame({"_id": ["a", "b", "c"], **TEXTS}, index=index.rename("docid"))
    assert list(Corpus.from_file(as_parquet(frame, tmp_path)).ids) == ["a", "b", "c"]


def test_an_index_named_as_another_field_is_that_field(tmp_path: Path) -> None:
    frame = pd.DataFrame({"title": ["A", "B", "C"], **TEXTS}).set_index("title")
    assert list(Corpus.from_file(as_parquet(frame, tmp_path))) == [
        Passage("0", "A", "x"),
        Passage("1", "B", "y"),
        Passage("2", "C", "z"),
    ]
    questions = pd.DataFrame({"question": ["x", "y"], "answer": ["a", "b"]}).set_index("question")
    assert [(e.id, e.question) for e in load_examples(as_parquet(questions, tmp_path))] == [("0", "x"), ("1", "y")]


def test_records_without_ids_are_numbered_over_all_shards(tmp_path: Path) -> None:
    for number in range(2):
        pd.DataFrame(TEXTS).to_parquet(tmp_path / f"train-0000{number}-of-00002.parquet")
    assert list(Corpus.from_file(tmp_path).ids) == ["0", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("write", [itself, saved, parquet])
def test_datasets_keeps_the_column_of_an_index_and_not_its_meaning(write: Write, tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_pandas(pd.DataFrame(TEXTS, index=[3, 1, 7]))
    assert dataset.column_names == ["text", "__index_level_0__"]
    assert list(corpus_of(write(dataset.select([2, 0]), tmp_path))) == [Passage("7", "", "z"), Passage("3", "", "x")]


@pytest.mark.parametrize("write", FRAME_WRITERS)
@pytest.mark.parametrize(
    ("index", "found"),
    [
        (pd.MultiIndex.from_tuples([(1, 2), (1, 3), (2, 1)]), "the levels"),
        (pd.MultiIndex.from_tuples([(1, 2), (1, 3), (2, 1)], names=["document", "part"]), "the levels"),
        (pd.date_range("2020-01-01", periods=3), "values of the type timestamp"),
        (pd.Index([0.5, 1.5, 2.0]), "values of the type double"),
    ],
)
def test_an_index_that_is_no_id_is_refused_where_an_id_is_needed(
    write: Callable[[pd.DataFrame, Path], Path], index: pd.Index, found: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"an index with {found}"):
        Corpus.from_file(write(pd.DataFrame(TEXTS, index=index), tmp_path))
    with pytest.raises(DataError, match=f"an index with {found}"):
        load_examples(write(pd.DataFrame({"question": ["x", "y", "z"], "answer": "a"}, index=index), tmp_path))
    with_ids = pd.DataFrame({"id": ["a", "b", "c"], **TEXTS}, index=index)
    assert list(Corpus.from_file(write(with_ids, tmp_path)).ids) == ["a", "b", "c"]
    without = pd.DataFrame(TEXTS, index=index)
    without.to_parquet(tmp_path / "without.parquet", index=False)
    assert list(Corpus.from_file(tmp_path / "without.parquet").ids) == ["0", "1", "2"]


@pytest.mark.parametrize("kept", [slice(0, 2), slice(0, 0)])
def test_an_index_of_another_length_is_refused(kept: slice, tmp_path: Path) -> None:
    """Rows that another program took out leave the range of all of them in the metadata."""
    table = pa.Table.from_pandas(pd.DataFrame(TEXTS, index=pd.RangeIndex(10, 40, 10)))
    pq.write_table(pa.concat_tables([table, table]), tmp_path / "longer.parquet")
    pq.write_table(table[kept], tmp_path / "shorter.parquet")
    for name in ("longer", "shorter"):
        with pytest.raises(DataError, match="each of its records, got 3 values"):
            Corpus.from_file(tmp_path / f"{name}.parquet")


def test_a_missing_label_is_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame(TEXTS, index=pd.Index(["a", None, "c"]))
    with pytest.raises(DataError, match="each of its records, got missing values"):
        Corpus.from_file(as_parquet(frame, tmp_path))


def test_an_index_of_another_programs_metadata(tmp_path: Path) -> None:
    table = pa.table(TEXTS)
    for metadata, message in [
        (b"{", None),
        (b"[]", None),
        (b'{"index_columns": 3}', None),
        (b'{"index_columns": ["gone"]}', None),
        (b'{"index_columns": [{"kind": "range", "name": null, "start": 0, "stop": 6}]}', "a column or a range"),
    ]:
        pq.write_table(table.replace_schema_metadata({b"pandas": metadata}), tmp_path / "t.parquet")
        if message:
            with pytest.raises(DataError, match=message):
                Corpus.from_file(tmp_path / "t.parquet")
        else:
            assert list(Corpus.from_file(tmp_path / "t.parquet").ids) == ["0", "1", "2"]
