"""Workers with the library of a checkout, and the cases that `benchmarks.against` and `benchmarks.profile_shares` run.

A base with random weights is written to a folder once and loaded by every worker as users load one. It has the
embedded tokenizer; embeddings behind its vocabulary are zero, so that greedy answers are made of its tokens.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_weights import read_model, read_tokenizer
from benchmarks.setting import CONFIGS
from generator.prompts import ANSWER_TEMPLATE
from rag.tiny_base import base_path

ROOT = Path(__file__).parents[1]
ADAPTER_STD = 0.02
WORDS = (
    "the old harbour keeps a blue ship that sails north every spring and comes back with salt stone wool paper glass "
    "a garden behind the stone house was planted by two sisters who sold apples pears and honey in the market town "
    "river bridge king queen letter window winter summer song piano violin master student school book page ink road "
    "hill forest wolf horse cart wheel mill bread baker fire lamp night morning star moon sea wind rain snow cloud"
).split()


@dataclass(frozen=True)
class Workload:
    """What both checkouts do; sent to the workers."""

    base: str
    dtype: str
    questions: list[str]
    answers: list[str]
    passages: list[tuple[str, str]]
    """Title and text."""
    gate: float = 0.0
    """Weight of the selector's language model; at 0, as in an untrained pipeline, it reads no prompt."""
    n: int = 20
    K: int = 5
    new_tokens: int = 32
    threads: int = 1
    adapter_std: float = ADAPTER_STD
    settings: dict[str, Any] = field(default_factory=dict)
    """Of a training run."""

    def with_questions(self, count: int) -> "Workload":
        """The same with the first of the questions only."""
        return replace(self, questions=self.questions[:count], answers=self.answers[:count])


def texts(
    questions: int, passage_words: int, passages: int = 200
) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """Questions, their answers, and passages of random words; every question names words of one passage."""
    draw = random.Random(0)
    found = [
        (" ".join(draw.choices(WORDS, k=2)).title(), " ".join(draw.choices(WORDS, k=passage_words)))
        for _ in range(passages)
    ]
    asked, answers = [], []
    for i in range(questions):
        words = draw.sample(found[i % passages][1].split(), k=min(5, passage_words))
        asked.append(f"where do the {words[0]} and the {words[1]} of {' '.join(words[2:])} go")
        answers.append(f"to the {words[-1]}")
    return asked, answers, found


def write_base(shape: str, folder: Path, weights: str | None = None) -> str:
    """A base of this shape as a Hugging Face folder, in float32: random weights, or real ones with their tokenizer."""
    transformers.utils.logging.disable_progress_bar()
    if weights and Path(weights).is_dir():
        return weights
    if weights:
        read_model(weights, torch.float32).save_pretrained(folder)
        read_tokenizer(weights).save_pretrained(folder)
        return str(folder)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base_path("tiny"))
    config = CONFIGS[shape]()
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        # Larger than at the start of pretraining, so that the best tokens are no near ties.
        model.get_input_embeddings().weight.mul_(5.0)[len(tokenizer) :] = 0.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def prompt_tokens(work: Workload) -> int:
    """Tokens of an answer prompt, about."""
    tokenizer = AutoTokenizer.from_pretrained(work.base)
    passages = sum(len(tokenizer(f"[1] Title: {t} Text: {x}\n")["input_ids"]) for t, x in work.passages[: work.K])
    return passages + len(tokenizer(ANSWER_TEMPLATE + 2 * work.questions[0])["input_ids"])


class Worker:
    """A process that works with one checkout."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout.resolve()
        environment = {**os.environ, "PYTHONPATH": str(self.checkout), "OMP_WAIT_POLICY": "PASSIVE"}
        environment |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
        # -P: modules beside the script have the names of others.
        command = [sys.executable, "-P", str(ROOT / "benchmarks" / "against_worker.py"), str(self.checkout)]
        self.process = subprocess.Popen(
            command, env=environment, cwd=self.checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.names = self._reply()["names"]

    def _reply(self) -> Any:
        line = _pipe(self.process.stdout).readline()
        found = json.loads(line) if line else {"error": "the process ended; its message is above"}
        if "error" in found:
            raise RuntimeError(f"The worker of {self.checkout} must answer, but: {found['error']}.")
        return found

    def _ask(self, what: Any) -> Any:
        self.send(what)
        return self._reply()

    def send(self, what: Any) -> None:
        """A request whose reply is read later."""
        pipe = _pipe(self.process.stdin)
        pipe.write(json.dumps(what) + "\n")
        pipe.flush()

    @contextmanager
    def case(self, work: Workload) -> Iterator["Worker"]:
        """Inside, requests are about this case."""
        self._ask(asdict(work))
        yield self
        self._ask({"do": "close"})

    def run(self, name: str) -> Any:
        """Times of the parts of one run, and its results."""
        return self._ask({"do": "run", "run": name})

    def memory(self, name: str) -> dict[str, float]:
        """See `Work.memory` of the worker."""
        found: dict[str, float] = self._ask({"do": "memory", "run": name})
        return found

    def profile(self, name: str) -> dict[str, Any]:
        """See `profile` of the worker."""
        found: dict[str, Any] = self._ask({"do": "profile", "run": name})
        return found

    def close(self) -> None:
        """End the process."""
        _pipe(self.process.stdin).close()
        self.process.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise RuntimeError("A worker must have pipes.")
    return pipe
