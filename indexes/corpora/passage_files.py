"""Files of passages: written with `datasets`, so that others can read them as well."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets.arrow_writer import ArrowWriter
from datasets.table import InMemoryTable

from indexes.atomic_files import write_path
from indexes.corpora.passage import Passage
from indexes.corpora.passage_table import COLUMNS, PassageTable
from indexes.records.tables import BATCH_SIZE

PASSAGE_FEATURES = datasets.Features({name: datasets.Value("string") for name in COLUMNS})


def write_passages(file: Path, passages: Iterable[Passage]) -> int:
    """Stream passages into an Arrow file, atomically; equal passages give equal bytes. Returns how many there were."""
    count = 0

    def write(path: Path) -> None:
        nonlocal count
        with ArrowWriter(path=str(path), features=PASSAGE_FEATURES, writer_batch_size=BATCH_SIZE) as writer:
            for passage in passages:
                writer.write({"id": passage.id, "title": passage.title, "text": passage.text})
                count += 1
            writer.finalize()

    write_path(file, write)
    return count


def save_table(table: PassageTable, folder: str | Path, fingerprint: str) -> None:
    """Write passages as ``Dataset.save_to_disk`` does; equal passages in the same order give equal bytes."""
    info = datasets.DatasetInfo(features=PASSAGE_FEATURES)
    # `datasets` stores its own fingerprint, which is random unless it is given one.
    dataset = datasets.Dataset(InMemoryTable(table.to_arrow()), info=info, fingerprint=fingerprint[:16])
    with _quiet_datasets():
        dataset.save_to_disk(str(folder))


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Silence the progress bars of `datasets`, which has one switch for the whole process."""
    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
