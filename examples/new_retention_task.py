"""A new retention task: the share of words that a model repeats exactly, of prompts that ask it to repeat a text.

    python examples/new_retention_task.py

Registering the class is all: `rag forgetting` has the options ``--repeats FILE ...`` and ``--repeats_prompt``, a sweep
takes both in its setting `retention`, and the table compares every model with its base model on the same items.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from generator.generator import Generator
from rag.commands.command import table
from rag.forgetting.file_tasks import FileTask, PreparedFile
from rag.forgetting.measurement import load_base, measure_forgetting
from rag.forgetting.retention_items import Item, read_texts
from rag.forgetting.retention_task import RetentionOptions, Score
from rag.forgetting.retention_tasks import RETENTION_TASKS, RetentionTasks


@RETENTION_TASKS.register("repeats")
@dataclass(frozen=True)
class Repeats(FileTask[str]):
    """Texts to repeat; the score of an item is the share of its words at the same position of the reply."""

    kind = "repeats"
    sources = "texts to repeat: JSONL with text, or .txt"

    prompt: str = "Repeat exactly: "

    def read(self, file: str | Path) -> list[Item[str]]:
        """Texts, as plain-text tasks read them."""
        return read_texts(file)

    def encode(self, generator: Generator, item: Item[str], options: RetentionOptions) -> list[int]:
        """One chat turn."""
        return generator.language_model.chat.encode(self.prompt + item.content)

    def score(
        self,
        generator: Generator,
        role: str,
        prepared: PreparedFile[str],
        options: RetentionOptions,
        *,
        progress: bool = True,
    ) -> list[Score]:
        """Mean over items."""
        replies = generator.continuations(prepared.encoded, role=role)
        expected = [item.content.split() for item in prepared.items]
        pairs = [zip(words, reply.split(), strict=False) for words, reply in zip(expected, replies, strict=True)]
        right = [sum(a == b for a, b in pair) / len(words) for pair, words in zip(pairs, expected, strict=True)]
        return [prepared.mean("word_accuracy", right)]


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        file = Path(folder) / "words.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("lo mi", "ka tu re", "so na")))
        found = measure_forgetting(
            [("tuned", load_base("tiny", device="cpu"))], RetentionTasks(repeats=[file]), progress=False
        )
    rows = [[m.model, m.task, m.metric, str(m.value), str(m.interval)] for m in found.measurements]
    print(table(["model", "task", "metric", "value", "95 % interval"], rows))
