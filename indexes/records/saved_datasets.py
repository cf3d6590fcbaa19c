"""Folders that ``Dataset.save_to_disk`` wrote, `datasets.Dataset` objects, and the choice among their splits."""

from collections.abc import Iterable
from pathlib import Path

import datasets
import pyarrow as pa

from indexes.errors import DataError, UsageError
from indexes.records.formats import ColumnChoice, table_records
from indexes.records.record import RecordStream
from indexes.records.tables import dataset_table, refuse_cut_stream


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is what ``save_to_disk`` writes."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def load_saved_dataset(folder: Path, split: str | None = None) -> datasets.Dataset:
    """A dataset that ``save_to_disk`` wrote.

    Raises:
        DataError: The folder holds none or a damaged one, or several splits and none is chosen.
        UsageError: A split is asked for where there are none.
    """
    try:
        dataset = datasets.load_from_disk(str(folder))
        for part in dataset.values() if isinstance(dataset, datasets.DatasetDict) else [dataset]:
            for file in part.cache_files:
                refuse_cut_stream(Path(file["filename"]))
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{folder}: this must be a folder that Dataset.save_to_disk wrote, got: {error}. Save the dataset again."
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        return dataset[choose_split(dataset, split, str(folder))]
    refuse_split(split, str(folder))
    return dataset


def read_dataset(dataset: datasets.Dataset, name: str, choose: ColumnChoice) -> RecordStream:
    """The records of a dataset in its order, whatever format it is set to."""
    try:
        yield from table_records(dataset_table(dataset), name, choose)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: a dataset must be readable, got: {error}. Save it again.") from error


def choose_split(splits: Iterable[str], split: str | None, name: str) -> str:
    """The split that is asked for, or the only one.

    Raises:
        DataError: There are several and none is asked for, or there is no such split.
    """
    known = sorted(splits)
    if split is None and len(known) == 1:
        return known[0]
    if split is not None and split in known:
        return split
    given = f"split={split!r}" if split is not None else "no split"
    raise DataError(f"{name}: one of the splits {known} must be chosen, got {given}. Pass split=... with one of them.")


def refuse_split(split: str | None, name: str) -> None:
    """Refuse a split where the source has none.

    Raises:
        UsageError: One is asked for.
    """
    if split is not None:
        raise UsageError(f"{name}: a split must be part of a dataset with splits, got split={split!r}. Leave it out.")
