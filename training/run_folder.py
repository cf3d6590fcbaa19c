"""The files of one training run: settings, metrics of the finished rounds, and a checkpoint for each of them.

    run.json        what must be the same when the run is continued
    metrics.jsonl   one record per finished round
    round-N/        the learned weights after round N (`training.checkpoint`), and what the E-step keeps over rounds
                    (`training.single_passages`)
    retrieval-N/    encoder and index after round N, with `train_encoder`
    logs/           of the trackers

Every file is replaced as a whole, so a killed process leaves the old one or the new one.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from indexes.atomic_files import read_json, restore_replaced, write_text
from indexes.errors import MismatchError, UsageError
from training.config import flatten

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"


class RunFolder:
    """Reads and writes the files of a run.

    Args:
        path: The folder; it is made when the run begins.

    Raises:
        UsageError: There is a file at this path.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"output_dir must be a folder; {self.path} is a file.")

    @property
    def logs(self) -> Path:
        """Where trackers write."""
        return self.path / "logs"

    def checkpoint(self, round: int) -> Path:
        """The learned weights after a round."""
        return self.path / f"round-{round}"

    def retrieval(self, round: int) -> Path:
        """Encoder and index after a round."""
        return self.path / f"retrieval-{round}"

    # -- beginning and continuing ------------------------------------------------------------------------------

    def check(self, *, resume: bool) -> None:
        """Refuse a folder that holds something else, or, with `resume`, no run.

        Raises:
            UsageError: It says what the folder holds.
        """
        holds_run = (self.path / RUN_FILE).is_file()
        if resume and not holds_run:
            raise UsageError(f"resume_from_checkpoint needs a run in output_dir; {self.path} holds no {RUN_FILE}.")
        if not resume and self.path.exists() and any(self.path.iterdir()):
            what = "an earlier run; continue it with resume_from_checkpoint" if holds_run else "something else"
            raise UsageError(f"output_dir must be new or empty; {self.path} holds {what}, or choose another folder.")

    def round_to_resume(self, resume: bool | str | Path) -> int | None:
        """Number of the round that `resume_from_checkpoint` names; None: the last finished one.

        Raises:
            UsageError: A path that is neither this folder nor a checkpoint in it.
        """
        if isinstance(resume, bool) or Path(resume).resolve() == self.path.resolve():
            return None
        folder = Path(resume).resolve()
        number = folder.name.removeprefix("round-")
        if folder != self.checkpoint(int(number) if number.isdigit() else 0).resolve():
            raise UsageError(
                f"resume_from_checkpoint must be true, or a folder round-N in output_dir ({self.path}); got "
                f"{str(resume)!r}."
            )
        return int(number)

    def write_fingerprint(self, fingerprint: Mapping[str, Any]) -> None:
        """Write what a continued run must have in common with this one."""
        write_text(self.path / RUN_FILE, json.dumps(fingerprint, indent=2, sort_keys=True, default=str) + "\n")

    def check_fingerprint(self, fingerprint: Mapping[str, Any]) -> None:
        """Refuse to continue a run that was started with other settings, data or models.

        Raises:
            MismatchError: `run.json` is damaged, or something is different, which it names.
        """
        written = read_json(self.path / RUN_FILE, f"Delete {self.path} and train again, or restore the file.")
        now = json.loads(json.dumps(fingerprint, default=str))
        config = written.get("config")
        settings = flatten(now["config"])
        before = flatten(config) if isinstance(config, dict) else {}
        different = sorted(name for name, value in settings.items() if value != before.get(name))
        different += [name for name in now if name != "config" and now[name] != written.get(name)]
        if different:
            raise MismatchError(
                f"A resumed run must keep its settings; {self.path} was started with other values of {different}. Use "
                "those, or another output_dir."
            )

    # -- rounds ------------------------------------------------------------------------------------------------

    def write_metrics(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write the records of all finished rounds."""
        write_text(self.path / METRICS_FILE, "".join(json.dumps(r, sort_keys=True) + "\n" for r in records))

    def finished_rounds(self, last_round: int | None = None, *, with_retrieval: bool = False) -> list[dict[str, Any]]:
        """Records of the rounds whose checkpoint exists; what comes after them is removed.

        Args:
            last_round: Keep the rounds up to this one; None: all.
            with_retrieval: The last round that is kept also needs its encoder and its index (round 0 has none).

        Raises:
            MismatchError: `metrics.jsonl` is damaged.
            UsageError: `last_round` is not finished, or its encoder and index were removed.
        """
        records: list[dict[str, Any]] = []
        for record in read_metrics(self.path / METRICS_FILE):
            folder = self.checkpoint(len(records))
            restore_replaced(folder)
            if record["round"] != len(records) or not folder.is_dir():
                break
            records.append(record)
        finished = len(records)
        if last_round is not None:
            self._check_last(last_round, finished, with_retrieval)
            records = records[: last_round + 1]
        self.write_metrics(records)
        for round in range(len(records), finished + 1):
            shutil.rmtree(self.checkpoint(round), ignore_errors=True)
        return records

    def _check_last(self, last_round: int, finished: int, with_retrieval: bool) -> None:
        if last_round >= finished:
            raise UsageError(
                f"resume_from_checkpoint must be a finished round of {self.path}, which has rounds 0 to "
                f"{finished - 1}; got round {last_round}."
            )
        if with_retrieval and last_round and not self.retrieval(last_round).is_dir():
            raise UsageError(
                f"Continuing after round {last_round} needs its encoder and index, but {self.retrieval(last_round)} is "
                "missing: only those of the best and the last round are kept. Use resume_from_checkpoint=True."
            )

    def remove_retrieval(self, *, keep: int, last: int) -> None:
        """Remove the encoders and indexes of all rounds before `last` but one: they are large."""
        for round in set(range(1, last)) - {keep}:
            shutil.rmtree(self.retrieval(round), ignore_errors=True)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The records of a run's finished rounds; none if there is no file.

    A last line that is cut off is left out: earlier versions appended lines, and a kill could cut one.

    Raises:
        MismatchError: Any other line is damaged.
    """
    lines = file.read_bytes().splitlines() if file.is_file() else []
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise MismatchError(
                f"Every line of {file} must be JSON, but line {number} is damaged ({error}). Restore the file, or cut "
                f"it before that line to train again from round {number - 1}."
            ) from error
        if not isinstance(record, dict) or not isinstance(record.get("round"), int):
            raise MismatchError(f'Every line of {file} must be an object with a "round", but line {number} is not.')
        records.append(record)
    return records
