"""One side of `benchmarks.against`: does the same work with the library of one checkout.

Started by that benchmark, with PYTHONPATH naming the checkout; imports once, then forks a process for each case, which
builds the model and the index and works on request. Requests are lines of JSON on standard input, and so are replies on
standard output. What differs between checkouts is in `Present` and `Before`: names only. `Before` has those of commit
4da73a0.
"""

import contextlib
import gc
import importlib.util
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

PACKAGES = ("indexes", "generator", "retriever", "training", "rag")
Clocks = tuple[float, float]
"""Wall-clock and processor seconds."""


def _beside(name: str) -> Any:
    """A module beside this file; the package `benchmarks` is that of the checkout."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{name}.py must be beside {__file__}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MEMORY = _beside("process_memory")


# -- the names of each checkout --------------------------------------------------------------------------------------


class Present:
    """The library as it is here."""

    encoder = "tiny"
    settings: ClassVar[dict[str, str]] = {
        "m": "e_step.num_permutations",
        "proposals": "e_step.proposals_per_sample",
        "selfaug": "selfaug.permutations",
        "warm_up": "supervised.num_train_epochs",
        "rounds": "rounds",
    }

    def __init__(self) -> None:
        from generator.configs import DecodingConfig
        from indexes.corpora.corpus import Corpus
        from indexes.corpora.passage import Passage
        from indexes.directory.builder import build_index
        from rag.pipeline import RAG
        from retriever.selector_config import SelectorConfig
        from training.estimation import EStep
        from training.joint_model import JointModel
        from training.maximization import MStepTrainer
        from training.questions.example import QAExample

        self.Decoding, self.Corpus, self.Passage, self.build_index = DecodingConfig, Corpus, Passage, build_index
        self.RAG, self.SelectorConfig, self.EStep, self.JointModel = RAG, SelectorConfig, EStep, JointModel
        self.MStepTrainer, self.QAExample = MStepTrainer, QAExample

    def create(self, index: Path, base: str, dtype: str, case: dict[str, Any]) -> Any:
        """A new pipeline."""
        selector = self.SelectorConfig(num_candidates=case["n"], num_selected=case["K"])
        decoding = self.Decoding(max_new_tokens=case["new_tokens"])
        return self.RAG.create(
            index=index, base=base, dtype=dtype, device="cpu", selector=selector, **{self.decoding_name: decoding}
        )

    decoding_name = "decoding"

    def config(self, folder: Path, settings: dict[str, Any]) -> Any:
        """Settings of a run, given by the names of `settings`."""
        from training.config import DROConfig

        return DROConfig().with_settings({self.settings[name]: value for name, value in settings.items()})

    def trainer(self, rag: Any, config: Any, examples: list[Any], folder: Path) -> Any:
        """Of a whole run."""
        from rag.dro_trainer import DROTrainer

        return DROTrainer(rag, config, train_dataset=examples, output_dir=folder, progress=False)

    def m_step(self, joint: Any, config: Any, found: Any, folder: Path) -> Any:
        """The trainer of one M-step."""
        return self.MStepTrainer(joint, config, found, output_dir=folder, seed=0)


class Before(Present):
    """The library at commit 4da73a0."""

    encoder = "pocket"
    decoding_name = "generation"
    settings: ClassVar[dict[str, str]] = {
        "m": "num_samples",
        "proposals": "oversampling",
        "selfaug": "selfaug_rows",
        "warm_up": "warm_up_epochs",
        "rounds": "rounds",
    }

    def __init__(self) -> None:
        from generator.generator import GenerationConfig
        from indexes.builder import build_index
        from indexes.corpus import Corpus, Passage
        from rag.pipeline import RAG
        from retriever.selector import SelectorConfig
        from training.data import QAExample
        from training.estimation import EStep
        from training.maximization import JointModel, MStepTrainer

        self.Decoding, self.Corpus, self.Passage, self.build_index = GenerationConfig, Corpus, Passage, build_index
        self.RAG, self.SelectorConfig, self.EStep, self.JointModel = RAG, SelectorConfig, EStep, JointModel
        self.MStepTrainer, self.QAExample = MStepTrainer, QAExample

    def config(self, folder: Path, settings: dict[str, Any]) -> Any:
        """As in `Present`."""
        from training.config import DROConfig

        named = {self.settings[name]: value for name, value in settings.items()}
        return DROConfig(output_dir=folder, **named)

    def trainer(self, rag: Any, config: Any, examples: list[Any], folder: Path) -> Any:
        """As in `Present`."""
        from training.trainer import DROTrainer

        return DROTrainer(rag, config, examples, progress=False)

    def m_step(self, joint: Any, config: Any, found: Any, folder: Path) -> Any:
        """As in `Present`."""
        return self.MStepTrainer(joint, config, found, output_dir=folder, seed=0, max_rows=config.num_samples)


# -- what is done ----------------------------------------------------------------------------------------------------


class Work:
    """The pipeline of one case, and its runs."""

    def __init__(self, names: Present, case: dict[str, Any], folder: Path) -> None:
        self.names, self.case, self.folder = names, case, folder
        index = self._index()
        before = MEMORY.allocated_bytes()
        self.rag = names.create(index, case["base"], case["dtype"], case)
        self.pipeline_bytes = MEMORY.allocated_bytes() - before
        self._adapters()
        self.runs: dict[str, Callable[[], tuple[dict[str, Clocks], Any]]] = {
            "answer": self.answer,
            "one question": self.one_question,
            "load": self.load,
            "round": self.round,
            "e step": self.estimate,
            "m step": self.learn,
        }

    def _index(self) -> Path:
        names, texts = self.names, self.case["passages"]
        corpus = names.Corpus.from_passages([names.Passage(str(i), t, text) for i, (t, text) in enumerate(texts)])
        names.build_index(corpus, self._encoder(), self.folder / "index", progress=False)
        return self.folder / "index"

    def _encoder(self) -> Any:
        if isinstance(self.names, Before):
            from rag.pocket import load_encoder

            return load_encoder("pocket", device="cpu")
        from indexes.encoder import Encoder

        return Encoder.from_pretrained("tiny", device="cpu")

    def _adapters(self) -> None:
        """The weight that the selector's language model has, and adapters as of a trained pipeline where it has one."""
        import torch

        gate = self.case["gate"]
        model = self.rag.generator.language_model
        with torch.no_grad():
            self.rag.selector.prior.gate.fill_(gate)
            for role in ("selector", "generator") if gate else ():
                for name, weight in sorted(model.adapter_parameters(role).items()):
                    if "lora_B" in name:
                        generator = torch.Generator().manual_seed(len(name) + weight.numel())
                        weight.copy_(torch.randn(weight.shape, generator=generator) * self.case["adapter_std"])

    @property
    def examples(self) -> list[Any]:
        """Training questions."""
        return [
            self.names.QAExample(f"q{i}", q, (a,), ())
            for i, (q, a) in enumerate(zip(self.case["questions"], self.case["answers"], strict=True))
        ]

    def answer(self) -> tuple[dict[str, Clocks], Any]:
        """All questions in one call."""
        with clocked() as taken:
            found = self.rag.answer(self.case["questions"])
        return {"": taken()}, {"texts": [a.text for a in found], "log_probs": [a.log_prob for a in found]}

    def one_question(self) -> tuple[dict[str, Clocks], Any]:
        """One question, its answer as a stream: of one token, and of all.

        A streamer shows a token only when it is known where its word ends, so the first piece says little.
        """
        generator = self.rag.generator
        config = generator.config
        generator.config = replace(config, max_new_tokens=1)
        try:
            with clocked() as taken:
                list(self.rag.stream(self.case["questions"][0]))
            first = taken()
        finally:
            generator.config = config
        with clocked() as taken:
            text = "".join(self.rag.stream(self.case["questions"][0]))
        return {"first token": first, "last token": taken()}, {"texts": [text]}

    def load(self) -> tuple[dict[str, Clocks], Any]:
        """The language model, from its folder."""
        from generator.language_model import LanguageModel

        with clocked() as taken:
            LanguageModel.from_pretrained(self.case["base"], dtype=self.case["dtype"], device="cpu")
        return {"": taken()}, {}

    def round(self) -> tuple[dict[str, Clocks], Any]:
        """A run of default rounds, without warm-up and evaluation; also what it comes to over the default of five."""
        with tempfile.TemporaryDirectory(dir=self.folder) as output:
            config = self.names.config(Path(output) / "run", self.case["settings"])
            trainer = self.names.trainer(self.rag, config, self.examples, Path(output) / "run")
            ends: list[Clocks] = []
            finish = trainer._finish_round

            def noted(*arguments: Any) -> None:
                finish(*arguments)
                ends.append(taken())

            trainer._finish_round = noted
            with clocked() as taken:
                trainer.train()
        lengths = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ends)]
        first, later = lengths[0], lengths[-1]
        five = ((first[0] + 4 * later[0]) / 5, (first[1] + 4 * later[1]) / 5)
        marginals = [record["log_marginal"] for record in trainer.history if record["round"]]
        return {"first": first, "second": later, "mean of five": five}, {"log_marginal": marginals}

    @cached_property
    def posteriors(self) -> tuple[Any, Any]:
        """Settings, and what an E-step over all questions leaves."""
        rag, config = self.rag, self.names.config(self.folder / "unused", self.case["settings"])
        return config, self.names.EStep(rag.retriever, rag.selector, rag.generator, config)(self.examples, round=1)

    def estimate(self) -> tuple[dict[str, Clocks], Any]:
        """A first E-step over all questions."""
        self.__dict__.pop("posteriors", None)
        with clocked() as taken:
            _, found = self.posteriors
        return {"": taken()}, {"log_weights": [p.weights_m.log().tolist() for p in found]}

    def m_step(self, folder: str) -> Any:
        """The trainer of an M-step."""
        config, found = self.posteriors
        joint = self.names.JointModel(self.rag.selector, self.rag.generator, config)
        return self.names.m_step(joint, config, found, Path(folder))

    def learn(self) -> tuple[dict[str, Clocks], Any]:
        """The gradient steps of an M-step; the E-step before it is not timed."""
        with tempfile.TemporaryDirectory(dir=self.folder) as output:
            trainer = self.m_step(output)
            with clocked() as taken:
                trainer.train()
        return {"": taken()}, {}

    # -- memory ----------------------------------------------------------------------------------------------------

    def memory(self, name: str) -> dict[str, float]:
        """Megabytes at the peak of one run; measured in a fork, so that nothing of it is left behind.

        "beyond" is the peak above what was there before the run, "whole" that with the pipeline itself.
        """
        if name == "load":
            return self._base_memory()
        if name == "m step":
            _ = self.posteriors
        return in_fork(lambda: self._peak(name))

    def _peak(self, name: str) -> dict[str, float]:
        import torch

        torch.set_num_threads(1)  # OpenMP's other threads are not copied by a fork
        run = self.m_step(str(self.folder / "peak")).train if name == "m step" else self.runs[name]
        peak = MEMORY.peak_bytes(run)
        return {"beyond": peak / MEMORY.MEGABYTE, "whole": (peak + self.pipeline_bytes) / MEMORY.MEGABYTE}

    def _base_memory(self) -> dict[str, float]:
        """Of the frozen base: its tensors, each counted once, and what the process grew by with the pipeline."""
        model = self.rag.generator.language_model
        tensors = [t for n, t in model.base_model.state_dict(keep_vars=True).items() if "lora_" not in n]
        stored = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return {"beyond": sum(stored.values()) / MEMORY.MEGABYTE, "whole": self.pipeline_bytes / MEMORY.MEGABYTE}


@contextlib.contextmanager
def clocked() -> Iterator[Callable[[], Clocks]]:
    """Wall-clock and processor seconds since the beginning of the block."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    yield lambda: (time.perf_counter() - wall, time.process_time() - cpu)


# -- processes -------------------------------------------------------------------------------------------------------


def in_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns, done in a copy of this process."""
    receiver, sender = os.pipe()
    if not (child := os.fork()):
        code = 1
        try:
            os.close(receiver)
            with os.fdopen(sender, "w") as file:
                json.dump(work(), file)
            code = 0
        finally:
            os._exit(code)
    os.close(sender)
    with os.fdopen(receiver) as file:
        text = file.read()
    os.waitpid(child, 0)
    if not text:
        raise RuntimeError("A measurement of memory did not end; its error is above.")
    return json.loads(text)


def check_origin(checkout: Path) -> None:
    """No module of the library may come from another place than the checkout, as an editable install would lend it."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in PACKAGES and file and not Path(file).resolve().is_relative_to(checkout):
            raise RuntimeError(f"{name} must be imported from {checkout}, but is from {file}.")


def serve(checkout: Path, requests: Any, reply: Callable[[Any], None]) -> None:
    """Fork a process for each case; it answers requests until "close"."""
    names = Present() if (checkout / "rag" / "planning").is_dir() else Before()
    check_origin(checkout)
    reply({"names": type(names).__name__})
    while line := requests.readline():
        case = json.loads(line)
        if not (child := os.fork()):
            try:
                work_on(case, names, checkout, requests, reply)
            except BaseException as error:
                import traceback

                traceback.print_exc()
                reply({"error": f"{type(error).__name__}: {error}"})
            finally:
                os._exit(0)
        os.waitpid(child, 0)


def work_on(case: dict[str, Any], names: Present, checkout: Path, requests: Any, reply: Callable[[Any], None]) -> None:
    """In the process of one case."""
    import torch

    torch.set_num_threads(case["threads"])
    with tempfile.TemporaryDirectory() as folder:
        work = Work(names, case, Path(folder))
        reply({"ready": True})
        while (request := json.loads(requests.readline()))["do"] != "close":
            if request["do"] == "memory":
                reply(work.memory(request["run"]))
            elif request["do"] == "profile":
                reply(profile(work, request["run"]))
            else:
                parts, result = work.runs[request["run"]]()
                reply({"parts": parts, "result": result})
        check_origin(checkout)
    reply({"closed": True})


def profile(work: Work, name: str) -> dict[str, Any]:
    """The operations of one run, with the shapes of their inputs, and the seconds of a run without the profiler."""
    from torch.profiler import ProfilerActivity, profile

    work.runs[name]()
    plain, _ = work.runs[name]()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        parts, _ = work.runs[name]()
    found = [
        {"name": event.key, "shapes": event.input_shapes, "calls": event.count, "self_us": event.self_cpu_time_total}
        for event in recorded.key_averages(group_by_input_shape=True)
    ]
    plain_seconds, seconds = (max(cpu for _, cpu in taken.values()) for taken in (plain, parts))
    return {"operations": found, "seconds": seconds, "plain_seconds": plain_seconds}


def main() -> None:
    """Talks with the benchmark."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not taken for a reply

    def reply(what: Any) -> None:
        replies.write(json.dumps(what) + "\n")
        replies.flush()

    serve(Path(sys.argv[1]).resolve(), open(0, "rb", buffering=0), reply)  # unbuffered: forks read on


if __name__ == "__main__":
    main()
