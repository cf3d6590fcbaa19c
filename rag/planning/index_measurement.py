"""`rag plan index --measure`: encoding some passages with the real encoder, extrapolated to the whole build."""

from rag.planning.cost_plan import MeasuredPhase, Plan
from rag.planning.encoder_files import find_tokenizer, stored_passage_prompt
from rag.planning.index_job import IndexJob, IndexSetting
from rag.planning.passage_measurements import split_sample
from rag.planning.phase_measurement import measure_work

ENCODING = "encode"
"""The plan's name of the phase."""
WARM_UP = 8
"""Passages that are encoded before time is taken: kernels are chosen and pages mapped once per process."""


def measure_encoding(job: IndexJob, plan: Plan, items: int) -> tuple[MeasuredPhase, ...]:
    """Load the encoder, and encode this many passages of the sample (or all, where it has fewer).

    Args:
        job: The build that is planned.
        plan: Its plan.
        items: Passages, after splitting into chunks.
    """
    from indexes.directory.shards import evenly_spaced
    from indexes.encoder import Encoder

    prompt = stored_passage_prompt(job.encoder) if job.passage_prompt is None else job.passage_prompt
    chunks = split_sample(job, find_tokenizer(job.encoder), prompt)
    chosen = [chunks[i] for i in evenly_spaced(len(chunks), items).tolist()]
    encoder = Encoder.from_pretrained(
        job.encoder,
        passage_prompt=job.passage_prompt,
        device=job.device,
        dtype=job.dtype,
        max_length=job.max_length,
        trust_remote_code=job.trust_remote_code,
    )
    encoder.encode_passages(chosen[:WARM_UP], batch_size=job.batch_size)
    measured = measure_work(lambda: encoder.encode_passages(chosen, batch_size=job.batch_size), job.device)
    phase, setting = plan.phase(ENCODING), plan.setting
    if not isinstance(setting, IndexSetting):
        raise TypeError(f"The plan must be one of an index, got {plan.kind!r}.")
    share = len(chosen) / setting.indexed
    return (
        MeasuredPhase(
            name=ENCODING,
            items=len(chosen),
            seconds=measured.seconds,
            predicted_seconds=phase.seconds * setting.encoding_speedup * share,
            run_items=round(setting.indexed / setting.encoding_speedup),
            peak=measured.peak,
            predicted_peak=phase.peak,
        ),
    )
