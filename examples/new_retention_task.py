"""A new retention task: the share of words that a model repeats in their place when it is asked to repeat a text.

    python examples/new_retention_task.py

Registering the class is all: `rag forgetting` has the options ``--repeats FILE ...`` and ``--repeats_prompt``, a sweep
takes both in its setting `retention`, and the table compares every model with its base model on the same items.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from generator.generator import Generator
from rag.forgetting.file_tasks import FileTask
from rag.forgetting.measurement import load_base, measure_forgetting
from rag.forgetting.retention_items import Item, read_texts
from rag.forgetting.retention_task import RetentionOptions, Score
from rag.forgetting.retention_tasks import RETENTION_TASKS, RetentionTasks
from rag.text_tables import table


@RETENTION_TASKS.register("repeats")
@dataclass(frozen=True)
class Repeats(FileTask[str]):
    """Texts to repeat; the score of an item is the share of its words that the reply has in the same place."""

    kind = "repeats"
    sources = "texts to repeat: JSONL with text, or .txt"
    prompt: str = "Repeat exactly: "

    def read(self, file: str | Path) -> list[Item[str]]:
        """The texts of a file."""
        return read_texts(file)

    def encode(self, generator: Generator, item: Item[str], options: RetentionOptions) -> list[int]:
        """One chat turn."""
        return generator.language_model.chat.encode(self.prompt + item.content)

    def score(
        self, generator: Generator, role: str, prepared: Any, options: RetentionOptions, *, progress: bool = True
    ) -> list[Score]:
        """One value per item; the table averages, resamples and compares them."""
        shares = []
        for item, reply in zip(prepared.items, generator.continuations(prepared.encoded, role=role), strict=True):
            words = item.content.split()
            shares.append(sum(a == b for a, b in zip(words, reply.split(), strict=False)) / len(words))
        return [prepared.mean("word_accuracy", shares)]


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        file = Path(folder) / "words.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("lo mi", "ka tu re", "so na")))
        models = [("tuned", load_base("tiny", device="cpu"))]
        found = measure_forgetting(models, RetentionTasks(repeats=[file]), progress=False)
    rows = [[m.model, m.task, m.metric, str(m.value), str(m.interval)] for m in found.measurements]
    print(table(["model", "task", "metric", "value", "95 % interval"], rows))
