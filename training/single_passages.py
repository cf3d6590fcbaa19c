"""What each candidate says of the answer by itself, log p_g(y | x, d_i), kept over the rounds of a run.

The predictions of the E-step (`training.imputation`) are linear in these numbers, with slopes that are fitted in every
E-step to log-likelihoods of that E-step. They need not be those of the present generator, only tell passages apart; so
an answer is scored once with each passage, and not in every round.

Legend: n candidates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from generator.generator import Generator
from indexes.atomic_files import read_json, write_json
from indexes.corpora.passage import Passage

KEPT_FILE = "single_passages.json"
"""In the checkpoint of a round, where some are kept."""
Key = tuple[str, str, str]
"""Ids of question and passage, and the answer."""


@dataclass(frozen=True)
class SinglePassageQuestion:
    """An answer that is to be scored with each of several passages by itself."""

    id: str
    question: str
    answer: str
    passages: Sequence[Passage]

    def keys(self) -> list[Key]:
        """One for each passage."""
        return [(self.id, passage.id, self.answer) for passage in self.passages]


class SinglePassages:
    """Log-likelihoods of answers given single passages, with the round in which each was computed.

    Args:
        generator: Scores them.
        rounds: In how many rounds a number is used, that of its computation included; None: in all of a run.
    """

    def __init__(self, generator: Generator, rounds: int | None) -> None:
        self._generator, self._rounds = generator, rounds
        self._kept: dict[Key, tuple[int, float]] = {}
        self._new: dict[Key, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def log_likelihoods(self, questions: Sequence[SinglePassageQuestion], round: int) -> list[Tensor]:
        """Log p_g(y | x, d_i) of every passage, in nats, per question float32 `[n]`; what is not kept is scored.

        Args:
            questions: With their passages.
            round: Number of the present round.
        """
        missing = {
            key: (one, passage)
            for one in questions
            for key, passage in zip(one.keys(), one.passages, strict=True)
            if not self._is_valid(key, round)
        }
        scores = self._generator.log_probs(
            [self._generator.answer_sequence(one.question, [passage], one.answer) for one, passage in missing.values()]
        )
        found = {key: (round, score) for key, score in zip(missing, scores.tolist(), strict=True)}
        self._new |= found
        self._kept |= found
        return [torch.tensor([self._kept[key][1] for key in one.keys()]) for one in questions]

    def _is_valid(self, key: Key, round: int) -> bool:
        return key in self._kept and (self._rounds is None or round < self._kept[key][0] + self._rounds)

    # -- over processes and runs -------------------------------------------------------------------------------

    def take_new(self) -> dict[Key, tuple[int, float]]:
        """What was computed since the last call, for the other processes of a run."""
        taken, self._new = self._new, {}
        return taken

    def add(self, entries: Mapping[Key, tuple[int, float]]) -> None:
        """Keep what another process has computed."""
        self._kept |= entries

    def write(self, folder: Path) -> None:
        """Write what is kept into the folder of a checkpoint."""
        nested: dict[str, dict[str, dict[str, tuple[int, float]]]] = {}
        for (question, passage, answer), (round, value) in self._kept.items():
            if math.isfinite(value):  # JSON has no number for others
                nested.setdefault(question, {}).setdefault(answer, {})[passage] = (round, value)
        write_json(folder / KEPT_FILE, nested, indent=None)

    def read(self, folder: Path) -> None:
        """Keep what `write` wrote, and nothing else; nothing, where there is no such file.

        Raises:
            MismatchError: The file is damaged.
        """
        file = folder / KEPT_FILE
        found = read_json(file, f"Delete {folder} and later rounds, and resume.") if file.is_file() else {}
        self._new = {}
        self._kept = {
            (question, passage, answer): (int(round), float(value))
            for question, by_answer in found.items()
            for answer, by_passage in by_answer.items()
            for passage, (round, value) in by_passage.items()
        }
