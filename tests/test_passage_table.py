"""Passages by position, through files, batches and deleted rows, against a plain list; and corpora saved from them."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.corpora.passage_files import write_passages
from indexes.corpora.passage_table import PASSAGE_SCHEMA, PassageTable, mapped_batches
from indexes.directory.segments import open_passages
from indexes.errors import DataError

PASSAGES = [Passage(f"id-{n}", f"title {n}" if n % 3 else "", f"text {n} ä") for n in range(2600)]


def in_batches(sizes: list[int]) -> Iterator[pa.RecordBatch]:
    start = 0
    for size in sizes:
        here = PASSAGES[start : start + size]
        columns = [[p.id for p in here], [p.title for p in here], [p.text for p in here]]
        yield pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=PASSAGE_SCHEMA)
        start += size


def differences(table: PassageTable, expected: list[Passage], draw: random.Random) -> list[str]:
    """Which ways of reading give something else than a list does."""
    some = [draw.randrange(len(expected)) for _ in range(50)]
    runs = [*range(40, 90), *range(88, 30, -1), 0, len(expected) - 1]
    read = {
        "length": (len(table), len(expected)),
        "scattered": (table.take(some), [expected[i] for i in some]),
        "runs": (table.take(runs), [expected[i] for i in runs]),
        "array": (table.take(np.arange(7)), expected[:7]),
        "nothing": (table.take([]), []),
        "batches": ([p for batch in table.batches() for p in batch], expected),
        "ids": (list(table.ids), [p.id for p in expected]),
        "slice of ids": (table.ids[5:2000:3], [p.id for p in expected[5:2000:3]]),
        "last id": (table.ids[-1], expected[-1].id),
        "arrow": (table.to_arrow().column("text").to_pylist(), [p.text for p in expected]),
    }
    return [name for name, (found, wanted) in read.items() if found != wanted]


@pytest.mark.parametrize("sizes", [[2600], [1000, 1000, 600], [1, 0, 999, 1500, 100], [100] * 26])
def test_a_table_reads_as_a_list_does_whatever_its_batches_are(sizes: list[int]) -> None:
    assert differences(PassageTable(list(in_batches(sizes))), PASSAGES, random.Random(0)) == []


def test_only_the_selected_rows_count_and_a_selection_that_is_off_by_one_is_detected() -> None:
    draw = random.Random(1)
    live = np.array(sorted(draw.sample(range(2599), 2100)), dtype=np.int64)
    expected = [PASSAGES[row] for row in live.tolist()]
    table = PassageTable(list(in_batches([700, 1900])))
    assert differences(table.select(live), expected, random.Random(2)) == []
    control = differences(table.select(live + 1), expected, random.Random(2))
    assert set(control) == {"scattered", "runs", "array", "batches", "ids", "slice of ids", "last id", "arrow"}


def test_files_are_read_one_after_the_other_without_their_deleted_rows(tmp_path: Path) -> None:
    files = [tmp_path / "one.arrow", tmp_path / "two.arrow"]
    assert [write_passages(files[0], PASSAGES[:1500]), write_passages(files[1], PASSAGES[1500:])] == [1500, 1100]
    deleted = np.array([0, 7, 8, 1499, 1500, 2599], dtype=np.int64)
    expected = [p for row, p in enumerate(PASSAGES) if row not in deleted.tolist()]
    assert list(open_passages(files)) == PASSAGES
    corpus = open_passages(files, deleted)
    assert list(corpus) == expected
    assert corpus.take([5, 0, 1495]) == [expected[5], expected[0], expected[1495]]


def test_a_corpus_with_deleted_rows_is_saved_without_them_as_the_same_bytes(tmp_path: Path) -> None:
    write_passages(tmp_path / "p.arrow", PASSAGES)
    kept = [p for row, p in enumerate(PASSAGES) if row not in (3, 1700)]
    open_passages([tmp_path / "p.arrow"], np.array([3, 1700])).save(tmp_path / "saved")
    assert list(Corpus.load(tmp_path / "saved")) == kept
    Corpus.from_passages(kept).save(tmp_path / "again")
    names = sorted(file.name for file in (tmp_path / "again").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "saved").iterdir())
    for name in names:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("content", [b"", b"no Arrow", None])
def test_a_damaged_file_is_refused_by_name(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "passages.arrow"
    if content is None:  # cut inside a batch
        write_passages(file, PASSAGES)
        file.write_bytes(file.read_bytes()[:5000])
    else:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"readable, but .*passages\.arrow is damaged"):
        open_passages([file])


def test_a_file_with_other_columns_is_refused_by_both(tmp_path: Path) -> None:
    file = tmp_path / "passages.arrow"
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.record_batch([pa.array(["a"]), pa.array(["b"])], schema=schema))
    with pytest.raises(pa.ArrowInvalid, match=r"columns \{'id': 'string', 'title'.*but has \{'id': 'string', 'text'"):
        mapped_batches(file)
    with pytest.raises(DataError, match=r"passages\.arrow is damaged .*but has"):
        open_passages([file])
