"""What a run will take, before anything is loaded: `rag plan`.

Operations follow from `flops`, bytes from `training_memory`; seconds are operations over the rate at which this
machine multiplies matrices of the base's own sizes, measured in a fraction of a second, times a measured efficiency.
"""

import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from generator.base_config import choose_context, stated_context, text_config
from generator.prompts import ANSWER_TEMPLATE, PASSAGE_TEMPLATE, RANKING_TEMPLATE
from indexes.errors import ResourceError, UsageError
from indexes.host_memory import format_seconds
from indexes.records.delimited import Quoting
from indexes.remote_code import code_refused, is_refusal
from indexes.tiny_encoder import encoder_path
from rag.planning.flops import (
    ModelShape,
    Question,
    causal_pairs,
    e_sample_flops,
    e_score_flops,
    forward_flops,
    m_generator_flops,
    m_selector_flops,
)
from rag.planning.machine import CUDA_CONTEXT, Machine, measure
from rag.planning.training_memory import (
    PRECISIONS,
    Phase,
    adapter_bytes,
    base_bytes,
    e_sample_bytes,
    e_score_bytes,
    m_generator_bytes,
    m_selector_bytes,
    optimizer_bytes,
)
from rag.tiny_base import base_path
from retriever.selector_config import SelectorConfig
from training.config import DROConfig

if TYPE_CHECKING:
    from indexes.corpora.passage import Passage

GIB = 2**30
CHARACTERS_PER_TOKEN = 4
"""English under the vocabularies of current models; `--passage_tokens` and its like say it better."""
EFFICIENCY = {"float32": 0.7, "mixed": 0.4, "bfloat16": 0.25}
"""Share of the probe's rate that whole steps reach on a CPU, by dtype
(`python -m benchmarks.training_plan_accuracy`); the rest is norms,
activations, casts and attention's softmax, which narrow numbers make no faster."""
UNMEASURED_EFFICIENCY = 0.4
"""The same elsewhere: an assumption."""
USABLE = 0.85
"""Share of the free memory that may be planned: measured peaks were up to a fifth above the formulas, by what an
allocator keeps of freed memory in small pieces."""
GPUS = {"24 GB GPU": 24 * GIB, "80 GB GPU": 80 * GIB}
NOT_MODELLED = (
    "padding, rows of unequal length, and passages cut to fit the context",
    "loading: a checkpoint in another dtype is read beside the converted weights",
    "memory that malloc keeps after it was freed: with glibc on a CPU a peak was 1.6 times the plan; "
    "MALLOC_MMAP_THRESHOLD_=1048576 in the environment gives it back (then 15 % are enough, and left free here)",
    "several processes on one machine",
    "decoding, which reads all weights per token: evaluation may take several times as long on a GPU",
    "a GPU: its efficiency is assumed, and 4bit and 8bit follow from their formats; neither was measured",
    "adapters on some linear layers only, a separate encoder device",
    "a selector without supervised warm-up (supervised.num_train_epochs: 0): its first draws run no language model",
    "train_encoder, attention that is no SDPA",
)


@dataclass(frozen=True, kw_only=True)
class EncoderShape:
    """The encoder's sizes; no layers: a table of word vectors."""

    dimension: int
    layers: int = 0
    intermediate: int = 0
    parameters: int = 0

    def flops(self, tokens: int) -> int:
        """One passage of so many tokens."""
        body = self.layers * (4 * self.dimension**2 + 2 * self.dimension * self.intermediate)
        return 2 * body * tokens + 4 * self.layers * self.dimension * tokens**2

    def bytes(self, tokens: int, batch: int = 256) -> int:
        """Alive within one layer of a pass over a batch, float32."""
        return 4 * batch * tokens * (2 * self.intermediate + 6 * self.dimension) if self.layers else 0


@dataclass(frozen=True, kw_only=True)
class Texts:
    """How much there is to read: counts, and mean lengths in tokens of the base."""

    passages: int
    passage_tokens: int
    questions: int
    question_tokens: int = 16
    answer_tokens: int = 6
    eval_questions: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, as far as its costs depend on it."""

    base: str
    shape: ModelShape
    context: int
    """Tokens that the base reads."""
    dtype: str
    """A key of `rag.planning.training_memory.PRECISIONS`."""
    device: str
    config: DROConfig
    selector: SelectorConfig
    encoder: EncoderShape
    texts: Texts
    question: Question
    """The mean question, with m scored permutations."""
    alone_row: int
    """Tokens of an answer row with one passage."""
    max_new_tokens: int = 32

    @property
    def drawn(self) -> Question:
        """The same with all permutations that the selector draws and learns from."""
        times = 1 if self.config.e_step.exact else self.config.e_step.proposals_per_sample
        possible = math.perm(self.selector.num_candidates, self.selector.num_selected)
        return replace(self.question, num_permutations=min(self.question.num_permutations * times, possible))

    @property
    def alone(self) -> Question:
        """Each candidate alone with the answer."""
        return replace(self.question, num_permutations=self.question.num_candidates, row=self.alone_row)

    @property
    def hears_alone(self) -> bool:
        """Whether candidates are read alone."""
        return not self.config.e_step.exact and self.config.e_step.proposals_per_sample > 1

    @property
    def rows(self) -> int:
        """Generator rows of one micro-batch."""
        m = self.question.num_permutations
        most = self.config.m_step.sequences_per_micro_batch
        parts = math.ceil(m / most) if most else 1
        return math.ceil(m / parts) * self.config.m_step.per_device_train_batch_size

    def aligned(self, rows: int, questions: int) -> int:
        """How many of the rows of so many questions SelfAug runs on."""
        if not self.config.selfaug.alpha:
            return 0
        return rows if self.config.selfaug.permutations == "all" else min(rows, questions)

    @property
    def roles(self) -> int:
        """Adapters that are trained."""
        return self.config.train_selector + self.config.train_generator


def mean_question(selector: SelectorConfig, config: DROConfig, texts: Texts, context: int) -> tuple[Question, int]:
    """The mean question under the default prompts, and the tokens of an answer row with one passage."""
    n, K = selector.num_candidates, selector.num_selected
    scored = math.perm(n, K) if config.e_step.exact else config.e_step.num_permutations
    prompt = min(_tokens(RANKING_TEMPLATE, n, texts), context)
    row, alone = (min(_tokens(ANSWER_TEMPLATE, k, texts) + texts.answer_tokens, context) for k in (K, 1))
    return Question(n, K, scored, prompt, row, texts.answer_tokens), alone


def _tokens(template: str, passages: int, texts: Texts) -> int:
    """Both prompts hold the question twice."""
    around = len(PASSAGE_TEMPLATE.format(identifier="A", title="", text="")) // CHARACTERS_PER_TOKEN + 2
    fixed = len(template) // CHARACTERS_PER_TOKEN + 2 * texts.question_tokens
    return fixed + passages * (texts.passage_tokens + around)


# -- what is asked about ---------------------------------------------------------------------------------------------

SAMPLED_LINES = 1000


def shape_of(
    base: str,
    *,
    revision: str | None = None,
    rank: int = 16,
    context_length: int | None = None,
    trust_remote_code: bool = False,
) -> tuple[ModelShape, int]:
    """The base's sizes and its context, from its config.json (and its tokenizer, where that names no context).

    Raises:
        ResourceError: There is no such model, or it has code of its own that may not run.
        UsageError: A model of another kind, or a context that is longer than the model's.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(
            base_path(base), revision=revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        if is_refusal(error):
            raise code_refused("The base", base) from error
        raise ResourceError(
            f"A causal language model's config.json must be found at {base!r}; reading it failed: "
            f"{(str(error).strip().splitlines() or ['no reason given'])[0]} Give a Hub name that this machine can "
            "reach or a local folder; weights are not needed."
        ) from error
    text = text_config(config)
    if missing := [name for name in _SIZES if not getattr(text, name, None)]:
        raise UsageError(
            f"A plan is made for decoders with gated feed-forward layers (Llama, Qwen, Mistral, Gemma); the config of "
            f"{base!r} ({config.model_type}) has no {missing}."
        )
    tokenizer = None if stated_context(config) else _tokenizer(base, revision, trust_remote_code)
    return ModelShape.of(config, rank=rank), choose_context(config, tokenizer, context_length)


_SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "vocab_size")


def _tokenizer(base: str, revision: str | None, trust_remote_code: bool) -> Any:
    """That of a base; None where there is none yet, since a plan needs no more than the config."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base_path(base), revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError):
        return None


def plan_dtype(dtype: str, device: str | None, quantization: str | None) -> tuple[str, str]:
    """Where a run would take place and in which numbers: what loading the base would choose.

    Raises:
        UsageError: Unknown name.
    """
    from generator.language_model import best_device, resolve_dtype

    device = device or best_device()
    name = dtype if dtype == "mixed" else str(resolve_dtype(dtype, device)).removeprefix("torch.")
    if quantization not in (None, "4bit", "8bit"):
        raise UsageError(f"quantization must be None, '4bit' or '8bit'; {quantization!r} came.")
    return device, quantization or name


def encoder_shape(encoder: str, *, trust_remote_code: bool = False) -> EncoderShape:
    """The encoder's sizes, from its config, or from the header of its table of word vectors.

    Raises:
        ResourceError: There is no such encoder, or it has code of its own that may not run.
        UsageError: Its config does not say how large it is.
    """
    from transformers import AutoConfig

    folder = Path(encoder_path(encoder))
    if (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        return _word_vectors(folder)
    try:
        config: Any = AutoConfig.from_pretrained(encoder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        if is_refusal(error):
            raise code_refused("The encoder", encoder) from error
        raise ResourceError(
            f"An encoder's config.json must be found at {encoder!r}; there is none that can be read. Give a Hub name "
            'that this machine can reach, a local folder, or "tiny".'
        ) from error
    H, ffn, layers = (_encoder_size(config, encoder, names) for names in _ENCODER_SIZES)
    parameters = layers * (4 * H**2 + 2 * H * ffn) + config.vocab_size * H
    if (folder / "model.safetensors").is_file():
        parameters = sum(map(math.prod, _stored_shapes(folder)))
    return EncoderShape(dimension=H, layers=layers, intermediate=ffn, parameters=parameters)


# Width, inner width and number of layers; DistilBERT, T5, Nomic and XLNet have names of their own for the inner width.
_ENCODER_SIZES = (
    ("hidden_size",),
    ("intermediate_size", "hidden_dim", "d_ff", "n_inner", "d_inner"),
    ("num_hidden_layers",),
)


def _encoder_size(config: Any, encoder: str, names: Sequence[str]) -> int:
    for name in names:
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise UsageError(
        f"A plan needs the sizes of the encoder; the config of {encoder!r} ({config.model_type}) has none of "
        f"{list(names)}. Plan with another encoder of its size."
    )


def _word_vectors(folder: Path) -> EncoderShape:
    rows, dimension = max(_stored_shapes(folder), key=math.prod)
    return EncoderShape(dimension=dimension, parameters=rows * dimension)


def _stored_shapes(folder: Path) -> list[Sequence[int]]:
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), framework="np") as file:
        return [file.get_slice(name).get_shape() for name in file.keys()]


def count_passages(corpus: str, *, quoting: Quoting = "auto") -> tuple[int, int]:
    """How many passages a corpus has and how many tokens each; of a JSONL file only the first lines are read.

    Raises:
        DataError: It cannot be read.
    """
    count, sample = sample_passages(corpus, quoting=quoting)
    return count, _mean_tokens(p.contents for p in sample)


def sample_passages(
    corpus: str, *, quoting: Quoting = "auto", on_error: Literal["raise", "skip"] = "raise"
) -> tuple[int, "list[Passage]"]:
    """How many passages a corpus has, and some of them: of a JSONL file the first, which are all that is read of it.

    Args:
        corpus: What `Corpus.from_file` reads.
        quoting: As there.
        on_error: As there.

    Raises:
        DataError: It cannot be read.
    """
    from indexes.corpora.corpus import Corpus
    from indexes.directory.shards import evenly_spaced

    path = Path(corpus)
    with tempfile.TemporaryDirectory() as folder:
        if path.suffix != ".jsonl" or not path.is_file():
            found = Corpus.from_file(corpus, cache_dir=folder, quoting=quoting, on_error=on_error)
            return len(found), found.take(evenly_spaced(len(found), SAMPLED_LINES).tolist())
        with path.open("rb") as file:
            lines = list(itertools.islice(file, SAMPLED_LINES))
        head = Path(folder) / path.name
        head.write_bytes(b"".join(lines))
        sample = Corpus.from_file(head, cache_dir=folder, on_error=on_error)
        return round(len(sample) * path.stat().st_size / head.stat().st_size), list(sample)


def count_index(index: str) -> tuple[int, int, int]:
    """Passages of an index, tokens of each, and the dimension of its vectors."""
    from indexes.directory.passage_index import PassageIndex

    opened = PassageIndex.open(index, verify="none")
    sample = opened.corpus.take(list(range(min(len(opened.corpus), SAMPLED_LINES))))
    return opened.manifest.passages, _mean_tokens(p.contents for p in sample), opened.manifest.dimension


def count_questions(file: str, limit: int | None = None, *, quoting: Quoting = "auto") -> tuple[int, int, int]:
    """How many questions a file has, and how many tokens question and answer have."""
    from training.questions.loading import load_examples

    examples = load_examples(file, require_answers=True, limit=limit, quoting=quoting)
    answers = (example.golden_answers[0] for example in examples)
    return len(examples), _mean_tokens(e.question for e in examples), _mean_tokens(answers) + 1


def _mean_tokens(texts: Iterable[str]) -> int:
    return max(1, round(statistics.fmean(map(len, texts)) / CHARACTERS_PER_TOKEN))


# -- operations ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One phase: its operations over the whole data, and its memory beyond what is always there."""

    name: str
    often: int
    """How many times in a run."""
    body: int
    """Operations of the model's layers, once over the data."""
    head: int
    """Operations of the output head, once over the data."""
    memory: Phase
    learning: bool = False

    @property
    def flops(self) -> int:
        """Both."""
        return self.body + self.head


def steps(job: Job) -> list[Step]:
    """All phases of a run, in order."""
    return [_encoding(job), *_warm_up(job), *_round(job), *_evaluation(job)]


def _encoding(job: Job) -> Step:
    t = job.texts
    memory = Phase(passing=job.encoder.bytes(t.passage_tokens))
    return Step("encode corpus", 1, t.passages * job.encoder.flops(t.passage_tokens), 0, memory)


def _warm_up(job: Job) -> list[Step]:
    if not job.config.supervised.num_train_epochs:
        return []
    single = {"e_step.num_permutations": 1, "e_step.proposals_per_sample": 1, "e_step.exact": False}
    one = job.config.with_settings(single | {"e_step.marginalization": "sequence"})
    taught = _learning(replace(job, config=one, question=replace(job.question, num_permutations=1)))
    body, head = sum(s.body for s in taught), sum(s.head for s in taught)
    memory = max((s.memory for s in taught), key=lambda phase: phase.peak)
    return [Step("warm-up", job.config.supervised.num_train_epochs, body, head, memory, learning=True)]


def _round(job: Job) -> list[Step]:
    shape, precision, rounds = job.shape, PRECISIONS[job.dtype], job.config.rounds
    together = job.config.e_step.batch_size
    found = [
        _step(
            job,
            "E: draw",
            rounds,
            lambda s: _drawing_flops(s, job),
            e_sample_bytes(shape, precision, job.drawn, questions=together, decoding=job.selector.decoding),
        )
    ]
    if job.hears_alone:
        found.append(_scoring(job, "E: candidates alone", job.alone, together))
    return [*found, _scoring(job, "E: score", job.question, together), *_learning(job, rounds)]


def _drawing_flops(shape: ModelShape, job: Job) -> int:
    if job.config.e_step.exact:
        return m_selector_flops(shape, job.drawn, decoding=job.selector.decoding) // 2
    return e_sample_flops(shape, job.drawn, decoding=job.selector.decoding, replacement=job.config.e_step.replacement)


def _scoring(job: Job, name: str, q: Question, together: int) -> Step:
    memory = e_score_bytes(job.shape, PRECISIONS[job.dtype], q, rows=together * q.num_permutations)
    return _step(job, name, job.config.rounds, lambda s: e_score_flops(s, q), memory)


def _learning(job: Job, rounds: int = 1) -> list[Step]:
    """The M-step's phases, with one more forward pass where activations are computed again."""
    config, drawn, q = job.config, job.drawn, job.question
    precision, checkpointing = PRECISIONS[job.dtype], config.m_step.gradient_checkpointing
    often, size, found = rounds * config.m_step.num_train_epochs, config.m_step.per_device_train_batch_size, []
    if config.train_selector:
        memory = m_selector_bytes(
            job.shape, precision, drawn, questions=size, checkpointing=checkpointing, decoding=job.selector.decoding
        )
        found.append(_step(job, "M: selector", often, lambda s: _selector_flops(s, job), memory, learning=True))
    if config.train_generator:
        memory = m_generator_bytes(
            job.shape,
            precision,
            q,
            rows=job.rows,
            aligned_rows=job.aligned(job.rows, size),
            chunk=config.selfaug.chunk_tokens,
            checkpointing=checkpointing,
            stored_attention=_stores_attention(job),
            cuda=job.device.startswith("cuda"),
        )
        found.append(
            _step(job, "M: generator + SelfAug", often, lambda s: _generator_flops(s, job), memory, learning=True)
        )
    return found


def _stores_attention(job: Job) -> bool:
    """No fused kernel of a GPU shares keys between heads in float32."""
    return job.device.startswith("cuda") and job.dtype == "float32" and job.shape.kv_heads < job.shape.heads


def _selector_flops(shape: ModelShape, job: Job) -> int:
    drawn, decoding = job.drawn, job.selector.decoding
    replies = drawn.num_permutations * drawn.reply if decoding == "autoregressive" else 0
    again = _again(shape, job, [drawn.prompt + replies])
    return m_selector_flops(shape, drawn, decoding=decoding) + again


def _generator_flops(shape: ModelShape, job: Job) -> int:
    q = job.question
    again = _again(shape, job, [q.row] * q.num_permutations)
    return m_generator_flops(shape, q, aligned_rows=job.aligned(q.num_permutations, 1)) + again


def _again(shape: ModelShape, job: Job, rows: Sequence[int]) -> int:
    return forward_flops(shape, sum(rows), causal_pairs(rows)) if job.config.m_step.gradient_checkpointing else 0


def _evaluation(job: Job) -> list[Step]:
    """Greedy selection and a greedy answer of every evaluation question, before the first round and after each."""
    if not job.texts.eval_questions:
        return []
    one = replace(
        job.question, num_permutations=1, row=job.question.row + job.max_new_tokens, answer=job.max_new_tokens
    )

    def flops(shape: ModelShape) -> int:
        return e_sample_flops(shape, one, decoding=job.selector.decoding) + e_score_flops(shape, one)

    memory = e_score_bytes(job.shape, PRECISIONS[job.dtype], one, rows=job.config.e_step.batch_size)
    return [_step(job, "evaluation", job.config.rounds + 1, flops, memory, questions=job.texts.eval_questions)]


def _step(
    job: Job,
    name: str,
    often: int,
    flops: Callable[[ModelShape], int],
    memory: Phase,
    *,
    learning: bool = False,
    questions: int | None = None,
) -> Step:
    """The head's share is what a model without a vocabulary would not have."""
    count = job.texts.questions if questions is None else questions
    body = flops(replace(job.shape, vocabulary=0))
    return Step(name, often, count * body, count * (flops(job.shape) - body), memory, learning)


# -- memory ----------------------------------------------------------------------------------------------------------


def always(job: Job, process: int) -> dict[str, int]:
    """What is there all the time, by name, bytes.

    Args:
        job: The run.
        process: Of Python and its libraries, or of the driver on a GPU.
    """
    t = job.texts
    found = {
        "process": process,
        "base": base_bytes(job.shape, PRECISIONS[job.dtype]),
        "adapters": adapter_bytes(job.shape),
        "encoder": 4 * job.encoder.parameters,
    }
    return found if job.device.startswith("cuda") else found | {"index": index_size(t.passages, job.encoder.dimension)}


def index_size(passages: int, dimension: int) -> int:
    """Bytes of the index that `factory="auto"` builds."""
    from indexes.vectors.faiss.faiss_factory import bytes_per_vector, choose_factory, fixed_bytes

    factory = choose_factory(passages, dimension)[0]
    return round(bytes_per_vector(factory, dimension) * passages) + fixed_bytes(factory, dimension)


def peaks(job: Job, process: int) -> dict[str, int]:
    """Peak of each phase, bytes; the corpus is encoded by a command of its own, without the base."""
    resident = always(job, process)
    learned = optimizer_bytes(job.shape, job.roles)
    found = {}
    for step in steps(job):
        there = sum(resident.values())
        if step.name == "encode corpus":
            there -= resident["base"] + resident["adapters"]
        found[step.name] = there + learned * step.learning + step.memory.peak
    return found


def changes(job: Job) -> list[tuple[str, Job]]:
    """What lowers the peak, cheapest first, each on top of those before."""
    wanted: dict[str, Any] = {
        "selfaug.chunk_tokens": 64,
        "m_step.per_device_train_batch_size": 1,
        "m_step.gradient_checkpointing": True,
        "selfaug.permutations": "one",
        "m_step.sequences_per_micro_batch": 1,
        "e_step.batch_size": 1,
    }
    found = []
    for name, value in wanted.items():
        if job.config.get(name) != value:
            job = replace(job, config=job.config.with_settings({name: value}))
            found.append((f"{name}: {str(value).lower()}", job))
    if job.dtype in ("float32", "mixed"):
        job = replace(job, dtype="bfloat16")
        found.append(("dtype: bfloat16", job))
    if job.device.startswith("cuda") and job.dtype not in ("4bit", "8bit"):
        found.append(("quantization: 4bit", replace(job, dtype="4bit")))
    return found


def _needed(job: Job, process: int, room: int) -> list[dict[str, Any]]:
    """The first changes, each of which lowers the peak, until it fits."""
    best = max(peaks(job, process).values())
    found: list[dict[str, Any]] = []
    for name, changed in changes(job) if best > room else []:
        peak = max(peaks(changed, process).values())
        if peak < 0.99 * best:
            found.append({"change": name, "peak": peak, "fits": peak <= room})
            best = peak
        if peak <= room:
            break
    return found


# -- the answer ------------------------------------------------------------------------------------------------------


def plan(job: Job, machine: Machine | None = None) -> dict[str, Any]:
    """Everything that can be said of a run before it starts; sizes in bytes, times in seconds.

    Args:
        job: The run.
        machine: Where; measured when not given.

    Raises:
        UsageError: K > n, or a dtype without a formula.
    """
    if job.dtype not in PRECISIONS:
        raise UsageError(f"dtype must be one of {sorted(PRECISIONS)}; {job.dtype!r} came.")
    machine = machine or measured(job)
    share = EFFICIENCY.get(job.dtype, UNMEASURED_EFFICIENCY) if machine.device == "cpu" else UNMEASURED_EFFICIENCY
    phases = [_phase(step, machine, share) for step in steps(job)]
    found = peaks(job, machine.process)
    worst = max(found, key=lambda name: found[name])
    room = int(USABLE * machine.available)
    return {
        "base": {"name": job.base, "dtype": job.dtype, "parameters": job.shape.parameters, **asdict(job.shape)},
        "adapter_parameters": job.shape.adapter_parameters,
        "encoder": asdict(job.encoder),
        "texts": asdict(job.texts),
        "question": asdict(job.question) | {"drawn": job.drawn.num_permutations, "alone": job.alone.row},
        "machine": asdict(machine),
        "time": _times(phases, share),
        "memory": {
            "always": always(job, machine.process),
            "optimizer": optimizer_bytes(job.shape, job.roles),
            "phases": {s.name: asdict(s.memory) | {"peak": found[s.name]} for s in steps(job)},
            "peak": found[worst],
            "peak_phase": worst,
        },
        "disk": _disk(job),
        "fits": {"here": found[worst] <= room, **{name: _on_gpu(job, size) for name, size in GPUS.items()}},
        "room": room,
        "changes": _needed(job, machine.process, room),
        "not_modelled": list(NOT_MODELLED),
    }


def measured(job: Job) -> Machine:
    """This machine, by products of the base's own sizes."""
    return measure(job.shape.hidden, job.shape.intermediate, job.shape.vocabulary, job.dtype, job.device)


def _phase(step: Step, machine: Machine, share: float) -> dict[str, Any]:
    seconds = (step.body / machine.body_rate + step.head / machine.head_rate) / share
    return {"name": step.name, "times": step.often, "flops": step.flops, "seconds": seconds}


def _times(phases: list[dict[str, Any]], efficiency: float) -> dict[str, Any]:
    per_round = sum(p["seconds"] for p in phases if p["name"][:2] in ("E:", "M:") or p["name"] == "evaluation")
    total = sum(p["seconds"] * p["times"] for p in phases)
    return {"phases": phases, "efficiency": efficiency, "round_seconds": per_round, "run_seconds": total}


def _disk(job: Job) -> dict[str, int]:
    t = job.texts
    passages = t.passages * t.passage_tokens * CHARACTERS_PER_TOKEN
    return {
        "index": index_size(t.passages, job.encoder.dimension) + passages,
        "checkpoints": (job.config.rounds + 2) * adapter_bytes(job.shape),  # round 0, and the bundle
    }


def _on_gpu(job: Job, size: int) -> dict[str, Any]:
    """The same run on a GPU of so many bytes: in bfloat16, which it takes by itself, unless it is quantized."""
    there = replace(job, device="cuda", dtype=job.dtype if job.dtype in ("4bit", "8bit") else "bfloat16")
    peak = max(peaks(there, CUDA_CONTEXT).values())
    room = int(USABLE * size)
    return {"peak": peak, "fits": peak <= room, "changes": _needed(there, CUDA_CONTEXT, room)}


def render(data: dict[str, Any]) -> str:
    """The plan as text."""
    return "\n\n".join(part(data) for part in (_heading, _time_text, _memory_text, _verdict))


def _heading(data: dict[str, Any]) -> str:
    base, q, t, machine = data["base"], data["question"], data["texts"], data["machine"]
    return "\n".join(
        [
            f"{base['name']}: {base['parameters'] / 1e6:,.1f} M parameters in {base['dtype']}, "
            f"{data['adapter_parameters'] / 1e6:,.2f} M in each of two adapters (rank {base['rank']})",
            f"{t['passages']:,} passages of {t['passage_tokens']} tokens, {t['questions']:,} training questions; "
            f"ranking prompt {q['prompt']:,} tokens, answer row {q['row']:,}, "
            f"{q['drawn']} lists drawn and {q['num_permutations']} scored",
            f"{machine['device']}, {machine['threads']} threads: {machine['body_rate'] / 1e9:,.0f} GFLOP/s in the "
            f"layers, {machine['head_rate'] / 1e9:,.0f} in the head, {data['time']['efficiency']:.0%} of it expected",
        ]
    )


def _time_text(data: dict[str, Any]) -> str:
    times = data["time"]
    lines = [f"{'time':<26}{'TFLOP':>12}{'each':>12}{'times':>7}{'in all':>12}"]
    lines += [
        f"  {p['name']:<24}{p['flops'] / 1e12:>12,.2f}{format_seconds(p['seconds']):>12}{p['times']:>7}"
        f"{format_seconds(p['seconds'] * p['times']):>12}"
        for p in times["phases"]
    ]
    return "\n".join(
        [
            *lines,
            f"  a round {format_seconds(times['round_seconds'])}, index and run {format_seconds(times['run_seconds'])}",
        ]
    )


def _memory_text(data: dict[str, Any]) -> str:
    memory = data["memory"]
    there = ", ".join(f"{name} {size(value)}" for name, value in memory["always"].items())
    lines = [f"memory: {there}", f"  in M-steps also gradients and Adam {size(memory['optimizer'])}"]
    lines += [f"{'':<26}{'kept':>11}{'cache':>11}{'in a layer':>12}{'logits':>11}{'peak':>11}"]
    lines += [
        f"  {name:<24}{size(p['kept']):>11}{size(p['cache']):>11}{size(p['passing']):>12}{size(p['logits']):>11}"
        f"{size(p['peak']):>11}"
        for name, p in memory["phases"].items()
    ]
    disk = ", ".join(f"{name} {size(value)}" for name, value in data["disk"].items())
    return "\n".join([*lines, f"disk: {disk}"])


def _verdict(data: dict[str, Any]) -> str:
    memory, fits, machine = data["memory"], data["fits"], data["machine"]
    lines = [
        f"Peak {size(memory['peak'])} ({memory['peak_phase']}): {'fits' if fits['here'] else 'DOES NOT FIT'} "
        f"{machine['device']} with {size(machine['available'])} free of {size(machine['memory'])}."
    ]
    lines += _changes_text(data["changes"], fits["here"])
    for name in GPUS:
        found, article = fits[name], "an" if name.startswith("8") else "a"
        lines.append(f"On {article} {name}: {size(found['peak'])}, {'fits' if found['fits'] else 'does not fit'}.")
        lines += _changes_text(found["changes"], found["fits"])
    return "\n".join([*lines, "Not modelled:", *(f"  {what}" for what in data["not_modelled"])])


def _changes_text(found: list[dict[str, Any]], fits: bool) -> list[str]:
    lines = [f"  {c['change']:<32} {size(c['peak'])}{'  fits' if c['fits'] else ''}" for c in found]
    if fits or (found and found[-1]["fits"]):
        return lines
    return [*lines, "  That is not enough: take a smaller base, shorter passages or fewer candidates."]


def size(count: float) -> str:
    """Bytes for people."""
    if not count:
        return "-"
    return f"{count / GIB:,.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:,.1f} MiB"
