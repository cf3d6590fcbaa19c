"""Time, memory and disk space of a training run, predicted from shapes before anything is loaded: `rag plan`.

Operations follow from `flops`, bytes from `training_memory`; seconds are operations over the rate at which this
machine does them, measured in about two seconds: products of the base's sizes, attention, and what is neither.
"""

from dataclasses import replace
from typing import Any

from indexes.errors import UsageError
from rag.planning.cost_plan import Change, Fit, Plan, PlannedDisk, PlannedMemory, PlannedPhase
from rag.planning.flops import ModelShape
from rag.planning.machine import CUDA_CONTEXT, USABLE, Machine, measure
from rag.planning.text_sizes import CHARACTERS_PER_TOKEN
from rag.planning.training_job import TrainingJob, TrainingSetting
from rag.planning.training_memory import PRECISIONS, StepMemory, adapter_bytes, base_bytes, optimizer_bytes
from rag.planning.training_steps import ENCODING, TrainingStep, training_steps

GIB = 2**30
GPU_EFFICIENCY = 0.4
"""Share of the measured rates that whole steps reach on a GPU: an assumption."""
GPUS = {"24 GB GPU": 24 * GIB, "80 GB GPU": 80 * GIB}
NOT_MODELLED = (
    "padding, sequences of unequal length, and passages cut to fit the context",
    "loading: a checkpoint in another dtype is in memory together with the converted weights",
    "memory that malloc keeps after it was freed: with glibc on a CPU a peak was 1.6 times the plan; "
    "MALLOC_MMAP_THRESHOLD_=1048576 in the environment returns it (then 15 % are enough, and are left free here)",
    "several processes on one machine",
    "answers that end before max_new_tokens: evaluation then takes less time",
    "a GPU: its efficiency is assumed, and 4bit and 8bit follow from their formats; neither was measured",
    "adapters on some linear layers only, a separate encoder device",
    "a selector without supervised warm-up (supervised.num_train_epochs: 0): its first samples run no language model",
    "train_encoder, attention other than SDPA",
)


def plan_training(job: TrainingJob, machine: Machine | None = None) -> Plan:
    """Predict time, memory and disk space of a run.

    Args:
        job: The run.
        machine: Where it runs; measured when not given.

    Raises:
        UsageError: A dtype without a formula.
    """
    if job.dtype not in PRECISIONS:
        raise UsageError(f"dtype must be one of {sorted(PRECISIONS)}, but got {job.dtype!r}.")
    machine = machine or measure_machine(job)
    efficiency = product_share(job.shape, machine)
    steps, found = training_steps(job), peaks(job, machine.process)
    phases = tuple(_planned_phase(step, machine, efficiency, found[step.name]) for step in steps)
    fits, changes = _fits(job, machine, max(found.values()))
    return Plan(
        kind="training",
        setting=TrainingSetting.of(job, machine, efficiency),
        phases=phases,
        round_seconds=sum(phase.seconds * step.per_round for phase, step in zip(phases, steps, strict=True)),
        memory=_memory(job, machine, found),
        disk=_disk(job),
        fits=fits,
        changes=changes,
        not_modelled=NOT_MODELLED,
    )


def measure_machine(job: TrainingJob) -> Machine:
    """This machine's memory, and its rate of matrix products of the base's sizes."""
    return measure(job.shape, job.dtype, job.device, step_rows=job.answers_together)


def _planned_phase(step: TrainingStep, machine: Machine, efficiency: float, peak: int) -> PlannedPhase:
    return PlannedPhase(
        name=step.name,
        seconds=step_seconds(step, machine, efficiency),
        times=step.times,
        flops=step.flops,
        basis=f"{step.flops / 1e12:,.2f} TFLOP",
        peak=peak,
        parts=_parts(step.memory),
    )


def product_share(shape: ModelShape, machine: Machine) -> float:
    """Share of the time of the layers that is not spent on norms, activations and sums."""
    weights = (shape.body_parameters + shape.adapter_parameters) / shape.layers
    products, others = 2 * weights / machine.body_rate, shape.elementwise_numbers / machine.elementwise_rate
    return products / (products + others) * (1.0 if machine.device == "cpu" else GPU_EFFICIENCY)


def step_seconds(step: TrainingStep, machine: Machine, efficiency: float) -> float:
    """Of one execution: reading and learning by the rates of products and attention, writing at the speed of memory.

    Args:
        step: The phase.
        machine: Its rates.
        efficiency: Of the products in the layers, see `product_share`.
    """
    writing = step.writing
    reading = step.body / machine.body_rate / efficiency + step.head / machine.head_rate
    reading += step.attention / machine.attention_rate
    steps = writing.body / machine.step_rate + writing.head / machine.step_head_rate
    return reading + steps + writing.cache_read / machine.read_rate + writing.calls * machine.call_seconds


def _parts(memory: StepMemory) -> dict[str, int]:
    return {
        "kept": memory.kept,
        "cache": memory.cache,
        "in a layer": memory.passing,
        "logits": memory.logits,
    }


# -- memory and disk -------------------------------------------------------------------------------------------------


def always_used(job: TrainingJob, process: int) -> dict[str, int]:
    """Bytes that are in use in every phase, by what they hold.

    Args:
        job: The run.
        process: Bytes of Python and its libraries, or of the driver on a GPU.
    """
    found = {
        "process": process,
        "base": base_bytes(job.shape, PRECISIONS[job.dtype]),
        "adapters": adapter_bytes(job.shape),
        "encoder": 4 * job.encoder.parameters,
    }
    if job.device.startswith("cuda"):
        return found
    return found | {"index": auto_index_bytes(job.texts.passages, job.encoder.dimension)}


def auto_index_bytes(passages: int, dimension: int) -> int:
    """Bytes of the index that `factory="auto"` builds."""
    from indexes.vectors.faiss.faiss_factory import bytes_per_vector, choose_factory, fixed_bytes

    factory = choose_factory(passages, dimension)[0]
    return round(bytes_per_vector(factory, dimension) * passages) + fixed_bytes(factory, dimension)


def peaks(job: TrainingJob, process: int) -> dict[str, int]:
    """Peak memory of each phase, in bytes; the corpus is encoded by a command of its own, without the base."""
    always = always_used(job, process)
    optimizer = optimizer_bytes(job.shape, job.trained_adapters)
    found = {}
    for step in training_steps(job):
        in_use = sum(always.values())
        if step.name == ENCODING:
            in_use -= always["base"] + always["adapters"]
        found[step.name] = in_use + optimizer * step.training + step.memory.peak
    return found


def _memory(job: TrainingJob, machine: Machine, found: dict[str, int]) -> PlannedMemory:
    worst = max(found, key=lambda name: found[name])
    return PlannedMemory(
        always=always_used(job, machine.process),
        optimizer=optimizer_bytes(job.shape, job.trained_adapters),
        peak=found[worst],
        peak_phase=worst,
        resident=found[worst],
    )


def _disk(job: TrainingJob) -> PlannedDisk:
    t = job.texts
    passages = t.passages * t.passage_tokens * CHARACTERS_PER_TOKEN
    parts = {
        "index": auto_index_bytes(t.passages, job.encoder.dimension) + passages,
        "checkpoints": (job.config.rounds + 2) * adapter_bytes(job.shape),  # round 0, and the bundle
    }
    return PlannedDisk(parts=parts, peak=sum(parts.values()))


# -- what fits -------------------------------------------------------------------------------------------------------


def _fits(job: TrainingJob, machine: Machine, peak: int) -> tuple[tuple[Fit, ...], tuple[Change, ...]]:
    """Whether the run fits here and on GPUs of two sizes, and what would make it fit."""
    room = int(USABLE * machine.available)
    fits = [Fit(limit="here", fits=peak <= room, needed=peak, available=room)]
    changes = _changes("here", job, machine.process, room)
    for name, memory in GPUS.items():
        # A GPU takes bfloat16 by itself, unless the base is quantized.
        dtype = job.dtype if job.dtype in ("4bit", "8bit") else "bfloat16"
        on_gpu, room = replace(job, device="cuda", dtype=dtype), int(USABLE * memory)
        needed = max(peaks(on_gpu, CUDA_CONTEXT).values())
        fits.append(Fit(limit=name, fits=needed <= room, needed=needed, available=room))
        changes += _changes(name, on_gpu, CUDA_CONTEXT, room)
    return tuple(fits), tuple(changes)


def possible_changes(job: TrainingJob) -> list[tuple[str, TrainingJob]]:
    """Settings that lower the peak, those that cost least first, each on top of those before."""
    wanted: dict[str, Any] = {
        "selfaug.chunk_tokens": 64,
        "m_step.gradient_checkpointing": True,
        "selfaug.permutations": "one",
        "m_step.tokens_per_micro_batch": 1,
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


def _changes(limit: str, job: TrainingJob, process: int, room: int) -> list[Change]:
    """The first changes that each lower the peak, until it fits."""
    best = max(peaks(job, process).values())
    found: list[Change] = []
    for name, changed in possible_changes(job) if best > room else []:
        peak = max(peaks(changed, process).values())
        if peak < 0.99 * best:
            found.append(Change(limit=limit, change=name, peak=peak, fits=peak <= room))
            best = peak
        if peak <= room:
            break
    return found
