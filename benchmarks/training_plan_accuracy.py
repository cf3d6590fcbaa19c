"""What `rag plan` predicts against what a run takes: memory and seconds of an E-step, two optimizer steps, and answers.

    python -m benchmarks.training_plan_accuracy [--quick] [--json FILE]

Every case is a process of its own: a base with random weights, an index by the tiny encoder, and the library's own
`EStep`, `JointModel` and `MStepTrainer` on two questions with short passages, on one thread. Prompt lengths are taken
from the run, so that formulas are judged and not the guess of four characters per token. Peak memory is the high-water
mark of the process (VmHWM, set back before each phase), seconds are those of the processor; on a GPU memory is torch's
own count of allocated bytes, and seconds are the clock's.

glibc's malloc keeps what was freed in pieces up to 32 MB, as holes that fit nothing, and that is no property of a
shape: the formulas are about live memory, and blocks of a megabyte or more are given back at once here
(MALLOC_MMAP_THRESHOLD_, also a way to run with less memory). `--malloc default` shows what is kept without that.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "0.1B": {
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
    "SmolLM2": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "0.5B": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}
QUESTIONS, ANSWERED = 2, 8
PHASES = {"E": "E-step", "M": "M-step", "A": "answering"}
RETURNING = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**20)}
WORDS = "the old harbour keeps a blue ship that sails to the north every spring and comes back with salt and stone"


@dataclass(frozen=True)
class Case:
    """One process."""

    shape: str
    dtype: str
    num_permutations: int
    checkpointing: bool
    device: str = "cpu"

    def __str__(self) -> str:
        kept = "checkpointing" if self.checkpointing else "all kept"
        return f"{self.shape} {self.dtype} m={self.num_permutations} {kept}"


def main() -> None:
    """Run the cases one after the other; print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smaller base, m = 4 only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--malloc", choices=["returning", "default"], default="returning")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", metavar="FILE", help="also write everything to FILE")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(run(Case(**json.loads(args.case)))))
        return
    results = []
    print(f"{'':<36}" + "".join(f"{title:>32}" for title in PHASES.values()) + f"{'seconds':>36}")
    print(f"{'':<36}" + "predicted  measured    ratio ".rjust(32) * 3 + "E, M, A pred/meas".rjust(36))
    settings = RETURNING if args.malloc == "returning" else {}
    for case in (c for c in cases(args.quick, args.device) if args.only in str(c)):
        results.append({**asdict(case), "malloc": args.malloc, **_in_own_process(case, settings)})
        print(line(case, results[-1]), flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=2) + "\n")


def cases(quick: bool, device: str) -> list[Case]:
    """Both shapes, m = 4 and 8, with and without gradient checkpointing, and the two narrower dtypes once each."""
    shapes, samples = (["0.1B"], [4]) if quick else (["0.1B", "0.5B"], [4, 8])
    found = [Case(s, "float32", m, c, device) for s in shapes for m in samples for c in (False, True)]
    found += [Case("SmolLM2", dtype, 4, False, device) for dtype in ("float32", "mixed")]
    return found + [Case("0.1B", dtype, 4, False, device) for dtype in ("mixed", "bfloat16")]


def line(case: Case, found: dict[str, Any]) -> str:
    """One row of the table."""
    cells = ""
    for phase in PHASES:
        predicted, measured = found["predicted"][phase]["peak"], found["measured"][phase]["peak"]
        cells += f"{predicted / 2**20:,.0f} MiB {measured / 2**20:,.0f} MiB {predicted / measured:8.2f}".rjust(32)
    for phase in PHASES:
        cells += f"{found['predicted'][phase]['seconds']:.1f}/{found['measured'][phase]['seconds']:.1f}".rjust(12)
    return f"{case!s:<36}{cells}"


def _in_own_process(case: Case, settings: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training_plan_accuracy", "--case", json.dumps(asdict(case))]
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **quiet, **settings}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- in the child ----------------------------------------------------------------------------------------------------


def run(case: Case) -> dict[str, Any]:
    """Measure and predict one case."""
    from indexes.host_memory import resident_bytes
    from rag.answering.permutation_mode import PermutationMode
    from rag.planning.training_plan import measure_machine
    from training.config import DROConfig, EStepConfig, MStepConfig
    from training.estimation import EStep
    from training.joint_model import JointModel
    from training.maximization import MStepTrainer

    with tempfile.TemporaryDirectory() as folder:
        retriever = _retriever(Path(folder))
        process = resident_bytes()
        selector, generator = _pipeline(case, retriever)
        config = DROConfig(
            e_step=EStepConfig(num_permutations=case.num_permutations, batch_size=QUESTIONS),
            m_step=MStepConfig(gradient_checkpointing=case.checkpointing, gradient_accumulation_steps=1),
        )
        examples = _examples()
        job = _job(case, config, selector, generator, examples[0])
        before = measure_machine(job)
        e_step = EStep(retriever, selector, generator, config)
        posteriors, e_found = _measured(case, lambda: e_step(examples, round=1))
        model = JointModel(selector, generator, config)
        trainer = MStepTrainer(model, config, posteriors, output_dir=Path(folder), seed=0)

        def train() -> None:
            with model.language_model.gradient_checkpointing(case.checkpointing):
                trainer.train()

        _, m_found = _measured(case, train)
        mode = PermutationMode(retriever, selector, generator)
        candidates = retriever.search([f"where does the ship {i} sail" for i in range(ANSWERED)], 8)
        mode.answer_from(candidates[:1])
        _, a_found = _measured(case, lambda: mode.answer_from(candidates))
        after = measure_machine(job)
    return {
        "measured": {"E": e_found, "M": m_found, "A": a_found},
        "predicted": _predicted(job, process, before, after),
    }


def _retriever(folder: Path) -> Any:
    from indexes.corpora.corpus import Corpus
    from indexes.corpora.passage import Passage
    from indexes.directory.builder import build_index
    from indexes.encoder import Encoder
    from retriever.dense import DenseRetriever

    words = WORDS.split()
    texts = [" ".join(words[(i + j) % len(words)] for j in range(10)) for i in range(40)]
    encoder = Encoder.from_pretrained("tiny", device="cpu")
    corpus = Corpus.from_passages([Passage(str(i), "", text) for i, text in enumerate(texts)])
    return DenseRetriever(build_index(corpus, encoder, folder / "index", progress=False), encoder)


def _examples() -> list[Any]:
    from training.questions.example import QAExample

    return [QAExample(str(i), f"where does the ship {i} sail", ("to the north",)) for i in range(QUESTIONS)]


def _pipeline(case: Case, retriever: Any) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

    from generator.generator import Generator
    from generator.language_model import LanguageModel
    from rag.tiny_base import base_path
    from retriever.listwise_selector import ListwiseSelector
    from retriever.selector_config import SelectorConfig

    torch.manual_seed(0)
    config = Qwen2Config(**SHAPES[case.shape], max_position_embeddings=4096, tie_word_embeddings=True)
    dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32
    base = AutoModelForCausalLM.from_config(config, dtype=dtype).to(case.device)
    model = LanguageModel(base, AutoTokenizer.from_pretrained(base_path("tiny")))
    if case.dtype == "mixed":
        model.use_mixed_precision()
    retriever.adapter.to(model.device)
    selector = ListwiseSelector(model, retriever, config=SelectorConfig(num_candidates=8, num_selected=3))
    with torch.no_grad():
        selector.prior.gate.fill_(0.5)  # else the language model goes unheard, and costs nothing
    return selector, Generator(model)


def _measured(case: Case, work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What the work returns, its seconds and its peak."""
    import torch

    from indexes.host_memory import resident_bytes

    on_gpu = case.device.startswith("cuda")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
    clock = time.perf_counter if on_gpu else time.process_time  # of one thread: others on the machine hardly count
    started = clock()
    result = work()
    seconds = clock() - started
    return result, {
        "peak": torch.cuda.max_memory_allocated() if on_gpu else resident_bytes("VmHWM"),
        "seconds": seconds,
    }


def _job(case: Case, config: Any, selector: Any, generator: Any, example: Any) -> Any:
    from rag.planning.flops import ModelShape, QuestionShape
    from rag.planning.model_sizes import EncoderShape
    from rag.planning.text_sizes import TextSizes
    from rag.planning.training_job import TrainingJob

    n, K = selector.config.num_candidates, selector.config.num_selected
    found, answer = selector.retriever.search(example.question, n), example.golden_answers[0]
    row, alone = (generator.answer_sequence(example.question, found.passages[:k], answer) for k in (K, 1))
    choice = 1 + len(selector.separator_ids)
    prompt = len(selector.prompt_ids(found))
    return TrainingJob(
        base=case.shape,
        shape=ModelShape.of(selector.language_model.base_model.config),
        context=4096,
        dtype=case.dtype,
        device=case.device,
        config=config,
        selector=selector.config,
        encoder=EncoderShape(dimension=256),
        texts=TextSizes(passages=40, passage_tokens=0, questions=QUESTIONS, eval_questions=ANSWERED),
        question=QuestionShape(n, K, case.num_permutations, prompt, len(row.input_ids), len(row.answer_ids), choice),
        single_passage_sequence=len(alone.input_ids),
    )


def _predicted(job: Any, process: int, before: Any, after: Any) -> dict[str, dict[str, float]]:
    """The plan's numbers for the E-step, one M-step and answers, with the mean of the rates before and after them."""
    from rag.planning.training_plan import peaks, plan_training

    rates = {name: (getattr(before, name) + getattr(after, name)) / 2 for name in vars(after) if name.endswith("_rate")}
    machine = replace(after, **rates)
    found = peaks(job, process if job.device == "cpu" else 0)
    phases = {phase.name: phase.seconds for phase in plan_training(job, machine).phases}
    parts = {part: [name for name in phases if name.startswith(f"{part}:")] for part in ("E", "M")}
    return {
        part: {"peak": max(found[name] for name in names), "seconds": sum(phases[name] for name in names)}
        for part, names in (parts | {"A": ["evaluation"]}).items()
    } | {"question": asdict(job.question), "phases": phases, "peaks": found, "rates": asdict(machine)}


if __name__ == "__main__":
    main()
