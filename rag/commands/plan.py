"""`rag plan` and `rag plan index`: time and memory, before anything is loaded; with --measure also as measured."""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexes.errors import UsageError
from rag.commands.command import Command, Report
from rag.commands.options import (
    building_arguments,
    create_pipeline,
    eval_arguments,
    on_error_argument,
    pipeline_arguments,
    quoting_argument,
    training_config,
    training_options,
)

if TYPE_CHECKING:
    from indexes.corpora.passage import Passage
    from rag.planning.cost_plan import MeasuredPhase
    from rag.planning.index_job import IndexJob
    from rag.planning.text_sizes import TextSizes
    from rag.planning.training_job import TrainingJob


def _plan_arguments(parser: Any) -> None:
    """The options of `rag train`, none of them required, and numbers in place of files."""
    pipeline_arguments(parser)
    parser.add_argument("--corpus", type=str, help="what an index would be built from")
    parser.add_argument("--train_dataset", type=str, help="training questions with golden answers")
    eval_arguments(parser)
    for name, what in _PLAN_SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=what)
    training_options(parser)
    parser.add_argument("--output_dir", type=str, default="run", help="as in `rag train`; nothing is written")
    parser.add_argument(
        "--resume_from_checkpoint", type=bool | str, default=False, help="as in `rag train`; not modelled"
    )
    _measure_arguments(parser, "questions", "E-step, M-step and answering", "as many as the E-step's batch_size")


_PLAN_SIZES = {
    "passages": "number of passages, in place of a corpus or an index",
    "passage_tokens": "mean tokens of a passage (four characters count as one token)",
    "train_questions": "number of training questions, in place of a file",
    "eval_questions": "number of evaluation questions, in place of a file",
    "question_tokens": "mean tokens of a question",
    "answer_tokens": "mean tokens of an answer, end-of-answer token included",
}


def _measure_arguments(parser: Any, items: str, phases: str, default: str) -> None:
    parser.add_argument(
        "--measure", action="store_true", help=f"also load the model and run {phases} on a few {items} (takes minutes)"
    )
    parser.add_argument(f"--measured_{items}", type=int, help=f"how many {items} --measure takes (default: {default})")


def _check_count(args: Any, name: str) -> None:
    if args[name] is not None and args[name] < 1:
        raise UsageError(f"--{name} must be at least 1, got {args[name]}.")


def _plan(args: Any) -> Report:
    from rag.planning.plan_text import plan_text
    from rag.planning.training_plan import plan_training

    _check_count(args, "measured_questions")
    if args.measure and (args.train_dataset is None or not (args.index or args.corpus)):
        raise UsageError(
            "--measure runs on your data: it needs --train_dataset FILE, and --index DIR or --corpus FILE; got "
            f"--train_dataset {args.train_dataset}, --index {args.index}, --corpus {args.corpus}."
        )
    job = _training_job(args)
    plan = plan_training(job)
    if args.measure:
        plan = replace(plan, measured=_measured_phases(args, job))
    return Report(plan_text(plan), plan.to_dict())


def _measured_phases(args: Any, job: "TrainingJob") -> "tuple[MeasuredPhase, ...]":
    """Run the phases on the first training questions, with the index or with one of some passages of the corpus."""
    from rag.planning.training_measurement import measure_training
    from training import load_examples
    from training.questions.context_fit import filter_fitting_with_answers

    count = args.measured_questions or job.config.e_step.batch_size
    examples = load_examples(
        args.train_dataset,
        require_answers=True,
        limit=min(count, job.texts.questions),
        quoting=args.quoting,
        ignore_identical_ids=job.config.ignore_identical_ids,
    )
    with tempfile.TemporaryDirectory() as folder:
        options = args.clone()
        options.index = args.index or _small_index(args, job, Path(folder) / "index")
        rag = create_pipeline(options)
        fitting = filter_fitting_with_answers(examples, rag.selector, rag.generator).kept
        return measure_training(job, rag, fitting, Path(folder) / "m_step")


_PASSAGES_PER_CANDIDATE = 5


def _small_index(args: Any, job: "TrainingJob", folder: Path) -> str:
    """An index of so many passages of the corpus that the candidates of questions differ."""
    from indexes.corpora.corpus import Corpus
    from indexes.directory.builder import build_index
    from indexes.encoder import Encoder
    from rag.planning.text_sizes import sample_passages

    _, sample = sample_passages(args.corpus, quoting=args.quoting)
    encoder = Encoder.from_pretrained(
        args.encoder or "tiny", device=args.device, trust_remote_code=args.trust_remote_code
    )
    chosen = sample[: _PASSAGES_PER_CANDIDATE * job.selector.num_candidates]
    build_index(Corpus.from_passages(chosen), encoder, folder, bm25=args.retriever != "dense", progress=False)
    return str(folder)


def _training_job(args: Any) -> "TrainingJob":
    from rag.planning.model_sizes import base_shape, encoder_shape, planned_dtype
    from rag.planning.training_job import TrainingJob, mean_question
    from retriever import SelectorConfig

    config, selector = training_config(args), SelectorConfig(**vars(args.selector))
    shape, context = base_shape(
        args.base,
        revision=args.revision,
        rank=args.adapter.r,
        context_length=args.context_length,
        trust_remote_code=args.trust_remote_code,
    )
    texts, dimension = _text_sizes(args, config.max_train_samples)
    encoder = encoder_shape(args.encoder or "tiny", trust_remote_code=args.trust_remote_code)
    device, dtype = planned_dtype(args.dtype, args.device, args.quantization)
    question, single_passage_sequence = mean_question(selector, config, texts, context)
    return TrainingJob(
        base=args.base,
        shape=shape,
        context=context,
        dtype=dtype,
        device=device,
        config=config,
        selector=selector,
        encoder=encoder if dimension is None else replace(encoder, dimension=dimension),
        texts=texts,
        question=question,
        single_passage_sequence=single_passage_sequence,
        max_new_tokens=args.decoding.max_new_tokens,
    )


def _text_sizes(args: Any, limit: int | None) -> "tuple[TextSizes, int | None]":
    """Counts and lengths, from numbers where they are given, else from files; and the dimension of an index."""
    from rag.planning.text_sizes import TextSizes, question_sizes
    from training.questions.loading import load_examples

    passages, tokens, dimension = _passage_sizes(args)
    found: dict[str, int] = {"passages": passages, "passage_tokens": tokens}
    if args.train_dataset is not None:
        found |= asdict(question_sizes(args.train_dataset, limit, quoting=args.quoting))
    if args.eval_dataset is not None:
        examples = load_examples(
            args.eval_dataset,
            require_answers=True,
            allow_unanswerable=True,
            limit=args.max_eval_samples,
            quoting=args.quoting,
        )
        found["eval_questions"] = len(examples)
    given = {"train_questions": "questions", "eval_questions": "eval_questions"}
    given |= {name: name for name in ("question_tokens", "answer_tokens")}
    found |= {field: args[name] for name, field in given.items() if args[name] is not None}
    if "questions" not in found:
        raise UsageError(
            "A plan needs the number of training questions: --train_dataset FILE or --train_questions N, got neither."
        )
    return TextSizes(**found), dimension


def _passage_sizes(args: Any) -> tuple[int, int, int | None]:
    """Number of passages, tokens of each, and the dimension of the vectors where an index is given."""
    from rag.planning.text_sizes import DEFAULT_PASSAGE_TOKENS, count_passages, index_sizes

    if args.passages is not None:
        return args.passages, args.passage_tokens or DEFAULT_PASSAGE_TOKENS, None
    if args.corpus is not None:
        count, tokens = count_passages(args.corpus, quoting=args.quoting)
        return count, args.passage_tokens or tokens, None
    if args.index is None:
        raise UsageError(
            "A plan needs the number of passages: --corpus FILE, --index DIR, or --passages N --passage_tokens L; "
            "got none."
        )
    index = index_sizes(args.index)
    return index.passages, args.passage_tokens or index.passage_tokens, index.dimension


def _plan_index_arguments(parser: Any) -> None:
    """The options of `rag index build` that affect its cost, none of them required; numbers replace the corpus."""
    parser.add_argument("--corpus", type=str, help="what the index would be built from, as in `rag index build`")
    for name in ("passages", "passage_tokens"):
        parser.add_argument(f"--{name}", type=int, help=_PLAN_SIZES[name])
    parser.add_argument(
        "--output_dir", type=str, help="where the index would be written; only its free space is checked"
    )
    quoting_argument(parser)
    on_error_argument(parser, "continue")
    building_arguments(parser)
    _measure_arguments(parser, "passages", "encoding", str(_MEASURED_PASSAGES))


_MEASURED_PASSAGES = 256


def _plan_index(args: Any) -> Report:
    from rag.planning.index_plan import plan_index
    from rag.planning.plan_text import plan_text

    for name in ("passages", "passage_tokens", "workers", "batch_size", "measured_passages"):
        _check_count(args, name)
    job = _index_job(args)
    plan = plan_index(job)
    if args.measure:
        from rag.planning.index_measurement import measure_encoding

        plan = replace(plan, measured=measure_encoding(job, plan, args.measured_passages or _MEASURED_PASSAGES))
    return Report(plan_text(plan), plan.to_dict())


def _index_job(args: Any) -> "IndexJob":
    from generator.language_model import best_device
    from indexes.host_memory import parse_bytes
    from rag.planning.index_job import IndexJob
    from rag.planning.model_sizes import encoder_shape
    from rag.planning.text_sizes import DEFAULT_PASSAGE_TOKENS

    count, sample, basis = _passage_sample(args)
    return IndexJob(
        encoder=args.encoder,
        shape=encoder_shape(args.encoder, trust_remote_code=args.trust_remote_code),
        trust_remote_code=args.trust_remote_code,
        count=count,
        sample=sample,
        basis=basis,
        passage_tokens=args.passage_tokens if args.corpus else args.passage_tokens or DEFAULT_PASSAGE_TOKENS,
        factory=args.factory,
        dtype=args.dtype,
        device=args.device or best_device(),
        batch_size=args.batch_size,
        max_length=args.max_length,
        passage_prompt=args.passage_prompt,
        chunk_tokens=args.chunk_tokens,
        chunk_overlap=args.chunk_overlap,
        chunk_format=args.chunk_format,
        max_memory=None if args.max_memory is None else parse_bytes(args.max_memory),
        allow_untested=args.allow_untested,
        bm25=args.bm25,
        milvus=args.milvus is not None,
        processes=args.workers,
        output=None if args.output_dir is None else Path(args.output_dir),
    )


def _passage_sample(args: Any) -> "tuple[int, list[Passage], str]":
    """The number of passages, some of them, and where both are from; numbers take precedence over files."""
    from rag.planning.text_sizes import DEFAULT_PASSAGE_TOKENS, sample_passages, synthetic_passages

    if args.corpus is not None:
        count, sample = sample_passages(args.corpus, quoting=args.quoting, on_error=args.on_error)
        counted = "counted" if args.passages is None else "number as given"
        return args.passages or count, sample, f"{counted}, sizes from {len(sample):,} of {args.corpus}"
    if args.passages is None:
        raise UsageError(
            "A plan needs the number of passages: --corpus FILE, or --passages N --passage_tokens L, got none."
        )
    tokens = args.passage_tokens or DEFAULT_PASSAGE_TOKENS
    return args.passages, synthetic_passages(args.passages, tokens), "number as given, synthetic texts"


COMMANDS: dict[str, Command] = {
    "plan": Command(
        "time and memory of an index and a training run, before anything is loaded", _plan_arguments, _plan
    ),
    "plan index": Command(
        "time, memory and disk of `rag index build`, before its encoder is loaded",
        _plan_index_arguments,
        _plan_index,
    ),
}
