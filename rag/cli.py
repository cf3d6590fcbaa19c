"""The `rag` command: one `Command` per verb, each with its arguments and what it runs.

Exit codes: 0 done, 2 usage, 3 data, 4 mismatch or damage, 5 missing resource, 130 interrupted, 1 anything else.
Every command takes `--json [FILE]` (machine-readable result), `--config FILE` (YAML, overridden by flags) and
`--debug` (tracebacks). Heavy imports happen inside the commands.
"""

import difflib
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexes.errors import RAGError, UsageError

INTERRUPTED = 130


@dataclass(frozen=True)
class Report:
    """What a command found: for people and for programs."""

    text: str
    data: Any


@dataclass(frozen=True)
class Command:
    """One verb of the command line."""

    help: str
    arguments: Callable[[Any], None]
    run: Callable[[Any], Report]
    json_file: bool = False
    """`--json FILE` beside the text, for a command whose text is worth having too; else `--json` replaces it."""


# -- index -----------------------------------------------------------------------------------------------------


def _build_arguments(parser: Any) -> None:
    _corpus_argument(parser)
    parser.add_argument("--split", type=str, help="of a dataset that has several, such as train")
    parser.add_argument("--output", type=str, required=True, help="index directory to write")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished build, or begin one")
    _on_error_argument(parser, "list it in quarantine.jsonl in the index")
    parser.add_argument("--question_prompt", type=str, help="prefix of questions (default: the encoder's own)")
    parser.add_argument("--passage_prompt", type=str, help="prefix of passages (default: the encoder's own)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an index, or an unfinished one, that is there"
    )
    _building_arguments(parser)


def _building_arguments(parser: Any) -> None:
    """What a build costs depends on these, so that a plan takes them too."""
    parser.add_argument("--encoder", type=str, default="pocket", help="sentence-transformers name or folder")
    parser.add_argument(
        "--factory", type=str, default="auto", help='FAISS factory string, or "auto" by size and memory'
    )
    parser.add_argument(
        "--max_memory", type=str, help='most memory of the process, such as "8GB" (default: by machine)'
    )
    parser.add_argument("--bm25", action="store_true", help="also build a BM25 index, for hybrid search")
    parser.add_argument("--milvus", type=str, help="keep vectors on this Milvus server, or in this file of Milvus Lite")
    parser.add_argument("--batch_size", type=int, default=256, help="the most passages encoded at once")
    parser.add_argument(
        "--dtype",
        choices=["float32", "mixed", "bfloat16", "float16"],
        default="float32",
        help="of the encoder: float32 is exact; mixed (float32 weights, bfloat16 products, float32 pooling) is faster "
        "on CPUs with AVX-512 BF16 or AMX and on GPUs, at a cosine of 0.9999 or more (all-MiniLM-L6-v2) with them",
    )
    _chunk_arguments(parser)
    parser.add_argument("--device", type=str, help="cpu, cuda, mps")


def _corpus_argument(parser: Any) -> None:
    parser.add_argument(
        "--corpus",
        type=str,
        required=True,
        help="JSONL(.gz), CSV, TSV, Parquet, HTML, PDF, DOCX, a folder of them, a BEIR folder or zip, or an address",
    )


def _on_error_argument(parser: Any, then: str) -> None:
    parser.add_argument(
        "--on_error",
        choices=["raise", "skip"],
        default="raise",
        help=f"of a broken row: stop, or leave it out and {then}",
    )


def _chunk_arguments(parser: Any) -> None:
    parser.add_argument("--chunk_tokens", type=int, help="passages are cut to at most this many encoder tokens")
    parser.add_argument("--chunk_overlap", type=int, default=16, help="tokens shared by neighbouring chunks")


def _chunker(args: Any, encoder: Any) -> Any:
    from indexes import Chunker

    if args.chunk_tokens is None:
        return None
    return Chunker(encoder.tokenizer, max_tokens=args.chunk_tokens, overlap=args.chunk_overlap)


def _build(args: Any) -> Report:
    from indexes import build_index
    from indexes.builder import Team
    from rag.pocket import load_encoder

    # Each process of `accelerate launch` encodes on its own device.
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    encoder = load_encoder(
        args.encoder,
        question_prompt=args.question_prompt,
        passage_prompt=args.passage_prompt,
        device=Team.of(True).device if distributed and args.device is None else args.device,
        dtype=args.dtype,
    )
    index = build_index(
        args.corpus,
        encoder,
        args.output,
        factory=args.factory,
        batch_size=args.batch_size,
        chunker=_chunker(args, encoder),
        split=args.split,
        bm25=args.bm25,
        milvus=args.milvus,
        max_memory=args.max_memory,
        on_error=args.on_error,
        overwrite=args.overwrite,
        resume=args.resume,
        distributed=distributed,
        progress=_progress(args),
    )
    info = index.info()
    return Report(f"Indexed {info['passages']} passages ({info['factory']}) in {args.output}", info)


def _folder_argument(parser: Any) -> None:
    parser.add_argument("index", type=str, help="index directory")


def _info(args: Any) -> Report:
    from indexes import PassageIndex

    info = PassageIndex.open(args.index).info()
    return Report("\n".join(f"{name}: {value}" for name, value in info.items()), info)


def _verify_arguments(parser: Any) -> None:
    _folder_argument(parser)
    parser.add_argument("--encoder", type=str, help="also check this encoder and re-encode a sample")
    parser.add_argument("--corpus", type=str, help="also check that the index holds exactly this corpus")
    _on_error_argument(parser, "go on")


def _verify(args: Any) -> Report:
    from indexes import Chunker, Corpus, PassageIndex
    from rag.pipeline import encoder_of

    index = PassageIndex.open(args.index)
    encoder = None if args.encoder is None else encoder_of(index, args.encoder)
    corpus = None if args.corpus is None else Corpus.from_file(args.corpus, on_error=args.on_error)
    if corpus is not None and index.manifest.chunking:
        tokenizer = (encoder or encoder_of(index)).tokenizer
        corpus = corpus.chunked(Chunker(tokenizer, **index.manifest.chunking))
    result = index.verify(encoder=encoder, corpus=corpus)
    return Report(f"{args.index} is whole: {result}", result)


def _corpus_change_arguments(parser: Any) -> None:
    _folder_argument(parser)
    _corpus_argument(parser)
    parser.add_argument("--encoder", type=str, help="encoder folder, when it is no longer where it was")
    parser.add_argument("--batch_size", type=int, default=256, help="the most passages encoded at once")
    _on_error_argument(parser, "list it with --quarantine")
    parser.add_argument("--quarantine", type=str, help="file for the rows that --on_error skip leaves out")


def _delete_arguments(parser: Any) -> None:
    _folder_argument(parser)
    parser.add_argument("ids", type=str, nargs="*", help="ids of passages, or of documents that were cut into chunks")
    parser.add_argument("--ids_file", type=str, help="a file with an id on each line")


def _changing(change: Callable[[Any, Any], Any]) -> Callable[[Any], Report]:
    """A command that makes one change with an `IndexWriter`."""

    def run(args: Any) -> Report:
        from dataclasses import asdict

        from indexes import IndexWriter, PassageIndex
        from indexes.factory import survives_moving
        from rag.pipeline import encoder_of

        options: dict[str, Any] = {}
        if "corpus" in args:
            options = {name: args[name] for name in ("batch_size", "on_error", "quarantine")}
        index = PassageIndex.open(args.index, verify="none", mmap=True)
        if "corpus" in args or not (index.manifest.milvus or survives_moving(index.manifest.factory)):
            options["encoder"] = encoder_of(index, args.encoder if "encoder" in args else None)
        with IndexWriter(args.index, progress=_progress(args), **options) as writer:
            done = change(writer, args)
        return Report("\n".join(f"{name}: {value}" for name, value in asdict(done).items()), asdict(done))

    return run


def _ids(args: Any) -> list[str]:
    ids = list(args.ids)
    if args.ids_file is not None:
        try:
            ids += filter(str.strip, Path(args.ids_file).read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--ids_file needs a readable file of ids, one on each line: {error}") from error
    if not ids:
        raise UsageError("Say what to delete: ids as words, or --ids_file FILE; none came.")
    return ids


def _tune_arguments(parser: Any) -> None:
    _folder_argument(parser)
    parser.add_argument("--questions", type=str, required=True, help="question file: what is searched for")
    parser.add_argument("--recall", type=float, default=0.95, help="share of the exact top k that must be found")
    parser.add_argument("-k", "--k", type=int, default=20, help="results per question")
    parser.add_argument("--limit", type=int, default=1000, help="use only the first so many questions")
    parser.add_argument("--reference", type=str, help="an exact index of the same corpus, where this one is lossy")
    parser.add_argument("--encoder", type=str, help="encoder folder, when it is no longer where it was")
    parser.add_argument("--dry_run", action="store_true", help="only measure; leave the index as it is")


def _tune(args: Any) -> Report:
    from dataclasses import asdict

    from indexes import IndexWriter, PassageIndex
    from indexes.tuning import tune
    from rag.pipeline import encoder_of
    from training import load_examples

    index = PassageIndex.open(args.index)
    questions = [e.question for e in load_examples(args.questions, limit=args.limit)]
    queries = encoder_of(index, args.encoder).encode_questions(questions)
    exact = None if args.reference is None else index.exact_results(PassageIndex.open(args.reference), queries, args.k)
    found = tune(index.vectors, queries, recall=args.recall, k=args.k, exact_ids_Bk=exact)
    if not args.dry_run:
        with IndexWriter(args.index) as writer:
            writer.set_search_parameters(found.parameters)
    return Report(found.summary, asdict(found))


# -- search ----------------------------------------------------------------------------------------------------


def _search_arguments(parser: Any) -> None:
    parser.add_argument("question", type=str, nargs="*", help="questions to search for")
    parser.add_argument("--index", type=str, required=True, help="index directory")
    parser.add_argument("--questions", type=str, help="question file; recall is printed when it has answers")
    parser.add_argument("-k", "--k", type=int, default=20, help="passages per question")
    parser.add_argument("--encoder", type=str, help="encoder folder, when it is no longer where it was")
    parser.add_argument("--batch_size", type=int, default=256, help="questions searched at once")
    _retriever_argument(parser)
    parser.add_argument(
        "--explain",
        action="store_true",
        help="rank and score of each hit in each ranking, and the words it shares with the question",
    )


def _retriever_argument(parser: Any) -> None:
    parser.add_argument(
        "--retriever",
        choices=["dense", "bm25", "hybrid"],
        default="dense",
        help="how candidates are found: by vectors, by words (BM25), or by both rankings together",
    )


def _search(args: Any) -> Report:
    from indexes import PassageIndex
    from rag.evaluation import search_metrics
    from rag.pipeline import encoder_of, retriever_of
    from retriever import Candidates

    if args.batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, but {args.batch_size} came.")
    examples = _questions(args)
    index = PassageIndex.open(args.index)
    retriever = retriever_of(index, encoder_of(index, args.encoder), args.retriever)
    found: list[Candidates] = []
    for start in range(0, len(examples), args.batch_size):
        found += retriever.search([e.question for e in examples[start : start + args.batch_size]], args.k)
    explanations = [retriever.explain(c) for c in found] if args.explain else None
    results = [
        {"id": e.id, "hits": _hits(c, explanations[i] if explanations else None)}
        for i, (e, c) in enumerate(zip(examples, found, strict=True))
    ]
    metrics = search_metrics(examples, found, args.k)
    hits = [] if args.questions and not args.explain else [_hits_text(found, explanations)]
    text = "\n\n".join([*hits, *([_metrics_text(metrics)] if args.questions else [])])
    return Report(text, {"results": results, "metrics": metrics})


def _hits(candidates: Any, explanations: Sequence[Any] | None) -> list[dict[str, Any]]:
    from dataclasses import asdict

    hits = [{"id": i, "score": s} for i, s in zip(candidates.ids, candidates.scores_n.tolist(), strict=True)]
    if explanations is None:
        return hits
    return [{**hit, "explanation": asdict(e)} for hit, e in zip(hits, explanations, strict=True)]


def _questions(args: Any) -> list[Any]:
    from training import QAExample, load_examples

    if bool(args.question) == bool(args.questions):
        raise UsageError("Give either questions as words or a file with --questions (exactly one of the two).")
    if args.questions:
        return load_examples(args.questions)
    return [QAExample(id=str(i), question=text) for i, text in enumerate(args.question)]


def _hits_text(found: Sequence[Any], explanations: Sequence[Sequence[Any]] | None) -> str:
    lines = []
    for i, candidates in enumerate(found):
        lines.append(candidates.question)
        for n, (passage, score) in enumerate(zip(candidates.passages, candidates.scores_n.tolist(), strict=True)):
            lines.append(f"  {score:.4f}  {passage.id}  {passage.title}")
            if explanations:
                lines.append(f"          {_explanation_text(explanations[i][n])}")
    return "\n".join(lines)


def _explanation_text(explanation: Any) -> str:
    parts = [
        f"{name} {'-' if rank is None else f'#{rank}'} ({score:.4f})"
        for name, rank, score in (
            ("dense", explanation.dense_rank, explanation.dense_score),
            ("bm25", explanation.bm25_rank, explanation.bm25_score),
        )
        if score is not None
    ]
    if explanation.fused_score is not None:
        parts.append(f"fused {explanation.fused_score:.4f}")
    if explanation.terms is not None:
        parts.append(" + ".join(f"{word} {added:.4f}" for word, added in explanation.terms.items()) or "no word shared")
    return ", ".join(parts)


def _metrics_text(metrics: dict[str, float]) -> str:
    return "\n".join(f"{name:>28}: {value:.4f}" for name, value in metrics.items())


# -- pipelines -------------------------------------------------------------------------------------------------


def _pipeline_arguments(parser: Any) -> None:
    from generator import AdapterConfig, GenerationConfig
    from retriever import SelectorConfig

    parser.add_argument("--index", type=str, help="index directory")
    parser.add_argument("--base", type=str, default="pocket", help='causal LM: Hub name, folder, or "pocket"')
    parser.add_argument("--revision", type=str, help="revision of the base on the Hub")
    parser.add_argument("--encoder", type=str, help="encoder folder, when it is no longer where it was")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, float32, bfloat16, float16, mixed")
    parser.add_argument("--device", type=str, help="cpu, cuda, mps")
    parser.add_argument("--quantization", type=str, help="4bit or 8bit (needs the quantization extra)")
    _retriever_argument(parser)
    parser.add_class_arguments(SelectorConfig, "selector")
    parser.add_class_arguments(GenerationConfig, "generation")
    parser.add_class_arguments(AdapterConfig, "adapter")


def _create(args: Any) -> Any:
    from generator import AdapterConfig, GenerationConfig
    from rag import RAG
    from retriever import SelectorConfig

    if args.index is None:
        raise UsageError("An index is needed: give --index DIR (build one with `rag index build`).")
    return RAG.create(
        index=args.index,
        base=args.base,
        encoder=args.encoder,
        retriever=args.retriever,
        selector=SelectorConfig(**vars(args.selector)),
        generation=GenerationConfig(**vars(args.generation)),
        adapter=AdapterConfig(**vars(args.adapter)),
        revision=args.revision,
        dtype=args.dtype,
        device=args.device,
        quantization=args.quantization,
    )


def _train_arguments(parser: Any) -> None:
    from training import DROConfig

    _pipeline_arguments(parser)
    parser.add_argument("--train", type=str, required=True, help="training questions with golden answers")
    _dev_arguments(parser)
    parser.add_class_arguments(DROConfig, skip={"training_arguments"})
    parser.add_argument("--training_arguments", type=dict[str, Any], default={}, help="more TrainingArguments")


def _dev_arguments(parser: Any) -> None:
    parser.add_argument("--dev", type=str, help="dev questions; they pick the round to keep")
    parser.add_argument("--max_eval_samples", type=int, help="use only the first so many dev questions")
    parser.add_argument(
        "--answerable_only", type=bool, default=False, help="leave out training questions no candidate answers"
    )


def _train(args: Any) -> Report:
    from dataclasses import fields

    from training import DROConfig, DROTrainer, load_examples

    config = DROConfig(**{f.name: getattr(args, f.name) for f in fields(DROConfig)})
    dev = None if args.dev is None else load_examples(args.dev, require_answers=True, limit=args.max_eval_samples)
    rag = _create(args)
    train = load_examples(args.train, require_answers=True, limit=config.max_train_samples)
    if args.answerable_only:
        from rag.evaluation import answerable

        train = answerable(rag, train)
    trainer = DROTrainer(rag, config, train, dev, progress=_progress(args))
    history = trainer.train()
    bundle = rag.save_pretrained(Path(config.output_dir) / "bundle", report=history)
    data = {"bundle": str(bundle), "best_round": trainer.best_round(), "rounds": history}
    return Report(f"{_history_text(history)}\nKept round {trainer.best_round()}; bundle in {bundle}", data)


def _plan_arguments(parser: Any) -> None:
    """Those of `rag train`, none of them required, and numbers in place of files."""
    from training import DROConfig

    _pipeline_arguments(parser)
    parser.add_argument("--corpus", type=str, help="what an index would be built from")
    parser.add_argument("--train", type=str, help="training questions with golden answers")
    _dev_arguments(parser)
    for name, what in _PLAN_SIZES.items():
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_class_arguments(DROConfig, skip={"training_arguments", "output_dir"})
    parser.add_argument("--output_dir", type=str, default="run", help="as in `rag train`; nothing is written")
    parser.add_argument("--training_arguments", type=dict[str, Any], default={}, help="as in `rag train`; not modelled")


_PLAN_SIZES = {
    "passages": "number of passages, in place of a corpus or an index",
    "passage_tokens": "mean tokens of a passage (four characters are taken for one token)",
    "train_questions": "number of training questions, in place of a file",
    "dev_questions": "number of dev questions, in place of a file",
    "question_tokens": "mean tokens of a question",
    "answer_tokens": "mean tokens of an answer, end-of-answer token included",
}


def _plan(args: Any) -> Report:
    from dataclasses import fields, replace

    from rag.plan import Job, encoder_shape, mean_question, plan, plan_dtype, render, shape_of
    from retriever import SelectorConfig
    from training import DROConfig

    config = DROConfig(**{f.name: getattr(args, f.name) for f in fields(DROConfig)})
    selector = SelectorConfig(**vars(args.selector))
    shape, context = shape_of(args.base, revision=args.revision, rank=args.adapter.r)
    texts, dimension = _plan_texts(args, config.max_train_samples)
    encoder = encoder_shape(args.encoder or "pocket")
    device, dtype = plan_dtype(args.dtype, args.device, args.quantization)
    question, alone_row = mean_question(selector, config, texts, context)
    data = plan(
        Job(
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
            alone_row=alone_row,
            max_new_tokens=args.generation.max_new_tokens,
        )
    )
    return Report(render(data), data)


def _plan_texts(args: Any, limit: int | None) -> tuple[Any, int | None]:
    """Counts and lengths, from numbers where they are given, else from files; and the dimension of an index."""
    from rag.plan import Texts, count_questions

    passages, tokens, dimension = _plan_passages(args)
    found: dict[str, int] = {"passages": passages, "passage_tokens": tokens}
    if args.train is not None:
        count, question, answer = count_questions(args.train, limit)
        found |= {"questions": count, "question_tokens": question, "answer_tokens": answer}
    if args.dev is not None:
        found["eval_questions"] = count_questions(args.dev, args.max_eval_samples)[0]
    given = {"train_questions": "questions", "dev_questions": "eval_questions"}
    given |= {name: name for name in ("question_tokens", "answer_tokens")}
    found |= {field: args[name] for name, field in given.items() if args[name] is not None}
    if "questions" not in found:
        raise UsageError("Say how much there is to learn from: --train FILE or --train_questions N; neither came.")
    return Texts(**found), dimension


def _plan_index_arguments(parser: Any) -> None:
    """Those of `rag index build` that cost something, none of them required, and numbers in place of the corpus."""
    parser.add_argument("--corpus", type=str, help="what the index would be built from, as in `rag index build`")
    for name in ("passages", "passage_tokens"):
        parser.add_argument(f"--{name}", type=int, help=_PLAN_SIZES[name])
    parser.add_argument("--processes", type=int, default=1, help="of `accelerate launch`, which share out the encoding")
    parser.add_argument("--output", type=str, help="where the index would go; only its free space is looked at")
    _on_error_argument(parser, "go on")
    _building_arguments(parser)


def _plan_index(args: Any) -> Report:
    from generator.language_model import best_device
    from indexes.memory import parse_bytes
    from rag.plan import encoder_shape
    from rag.plan_index import IndexJob, plan_index, render

    for name in ("passages", "passage_tokens", "processes", "batch_size"):
        if args[name] is not None and args[name] < 1:
            raise UsageError(f"--{name} must be at least 1, but {args[name]} came.")
    count, sample, basis = _plan_sample(args)
    data = plan_index(
        IndexJob(
            encoder=args.encoder,
            shape=encoder_shape(args.encoder),
            count=count,
            sample=sample,
            basis=basis,
            passage_tokens=args.passage_tokens if args.corpus else args.passage_tokens or 130,
            factory=args.factory,
            dtype=args.dtype,
            device=args.device or best_device(),
            batch_size=args.batch_size,
            chunk_tokens=args.chunk_tokens,
            chunk_overlap=args.chunk_overlap,
            max_memory=None if args.max_memory is None else parse_bytes(args.max_memory),
            bm25=args.bm25,
            milvus=args.milvus is not None,
            processes=args.processes,
            output=None if args.output is None else Path(args.output),
        )
    )
    return Report(render(data), data)


def _plan_sample(args: Any) -> tuple[int, Any, str]:
    """How many passages, some of them, and where both come from; numbers win over files."""
    from rag.plan import sample_passages
    from rag.plan_index import invented_passages

    if args.corpus is not None:
        count, sample = sample_passages(args.corpus, on_error=args.on_error)
        counted = "counted" if args.passages is None else "as many as you say"
        return args.passages or count, sample, f"{counted}, judged by {len(sample):,} of {args.corpus}"
    if args.passages is None:
        raise UsageError(
            "Say how much there is to index: --corpus FILE, or --passages N --passage_tokens L; none came."
        )
    return args.passages, invented_passages(args.passages, args.passage_tokens or 130), "as many as you say, made up"


def _plan_passages(args: Any) -> tuple[int, int, int | None]:
    from rag.plan import count_index, count_passages

    if args.passages is not None:
        return args.passages, args.passage_tokens or 130, None
    if args.corpus is None and args.index is None:
        raise UsageError(
            "Say how much there is to index: --corpus FILE, --index DIR, or --passages N --passage_tokens L; none came."
        )
    if args.corpus is None:
        count, tokens, dimension = count_index(args.index)
        return count, args.passage_tokens or tokens, dimension
    count, tokens = count_passages(args.corpus)
    return count, args.passage_tokens or tokens, None


def _history_text(history: Sequence[dict[str, Any]]) -> str:
    wanted = ["round", "eval_exact_match", "eval_f1", "eval_selector_recall@1", "eval_retriever_recall@1"]
    wanted += [
        "ess",
        "distinct_permutations",
        "log_marginal",
        "selector_loss",
        "generator_loss",
        "selfaug_kl",
        "seconds",
    ]
    columns = [name for name in wanted if any(name in row for row in history)]
    rows = [[_cell(row.get(name)) for name in columns] for row in history]
    return _table([name.removeprefix("eval_") for name in columns], rows)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in [header, *rows]]
    return "\n".join(lines)


def _bundle_arguments(parser: Any) -> None:
    parser.add_argument("--bundle", type=str, help="a trained pipeline; else --index and --base make a fresh one")
    _pipeline_arguments(parser)


def _open(args: Any) -> Any:
    from rag import RAG

    if args.bundle is None:
        return _create(args)
    fresh = _parser("ask").get_defaults()
    given = [
        key for key in ("base", "revision", "retriever", "selector", "generation", "adapter") if args[key] != fresh[key]
    ]
    if given:
        raise UsageError(f"A bundle brings its own {given}; leave those options out, or make a new pipeline.")
    return RAG.from_pretrained(
        args.bundle,
        index=args.index,
        encoder=args.encoder,
        dtype=args.dtype,
        device=args.device,
        quantization=args.quantization,
    )


def _evaluate_arguments(parser: Any) -> None:
    _bundle_arguments(parser)
    parser.add_argument("--questions", type=str, required=True, help="questions with golden answers")
    parser.add_argument("--limit", type=int, help="use only the first so many")


def _evaluate(args: Any) -> Report:
    from rag import evaluate
    from training import load_examples

    examples = load_examples(args.questions, require_answers=True, limit=args.limit)
    result = evaluate(_open(args), examples, progress=_progress(args))
    return Report(_metrics_text(result.metrics), {"metrics": result.metrics, "rows": result.rows})


def _ask_arguments(parser: Any) -> None:
    parser.add_argument("question", type=str, nargs="+", help="one or more questions, each in quotes")
    _bundle_arguments(parser)


def _ask(args: Any) -> Report:
    answers = _open(args).answer(args.question)
    return Report("\n\n".join(_answer_text(a) for a in answers), {"answers": [a.to_dict() for a in answers]})


def _answer_text(answer: Any) -> str:
    lines = [answer.question, f"  {answer.text or '(no answer)'}   (log p = {answer.log_prob:.2f})"]
    for passage, rank in zip(answer.passages, answer.permutation, strict=True):
        mark = "*" if passage.id in answer.citations else " "
        lines.append(f"  {mark} {passage.id}  {passage.title}  (retriever rank {rank + 1})")
    return "\n".join(lines)


# -- inspect ---------------------------------------------------------------------------------------------------


def _inspect_permutations_arguments(parser: Any) -> None:
    parser.add_argument("question", type=str, help="one question, in quotes")
    parser.add_argument("--answer", type=str, nargs="+", required=True, help="golden answers; one of them is explained")
    parser.add_argument("--gold_ids", type=str, nargs="+", default=[], help="ids of gold passages, to mark them")
    _inspect_arguments(parser)


def _inspect_arguments(parser: Any) -> None:
    from training import DROConfig

    _bundle_arguments(parser)
    parser.add_class_arguments(DROConfig, skip={"training_arguments", "output_dir"})
    parser.add_argument("--round", type=int, default=1, help="round whose draws are shown")


def _inspect_config(args: Any) -> Any:
    from dataclasses import fields

    from training import DROConfig

    names = {f.name for f in fields(DROConfig)} - {"training_arguments", "output_dir"}
    return DROConfig(output_dir="unused", **{name: getattr(args, name) for name in names})


def _inspect_permutations(args: Any) -> Report:
    from rag.inspection import inspect_permutations, permutations_text
    from training import QAExample

    example = QAExample("inspected", args.question, tuple(args.answer), tuple(args.gold_ids))
    data = inspect_permutations(_open(args), example, _inspect_config(args), round=args.round)
    return Report(permutations_text(data), data)


def _inspect_batch_arguments(parser: Any) -> None:
    parser.add_argument("--questions", type=str, required=True, help="training questions with golden answers")
    _inspect_arguments(parser)


def _inspect_batch(args: Any) -> Report:
    from rag.inspection import batch_text, inspect_batch
    from training import load_examples

    config, rag = _inspect_config(args), _open(args)
    examples = load_examples(args.questions, require_answers=True, limit=config.per_device_train_batch_size)
    rows = inspect_batch(rag, examples, config, round=args.round)
    return Report(batch_text(rows, rag.generator.language_model.tokenizer.decode), {"rows": rows})


# -- demo and doctor -------------------------------------------------------------------------------------------


def _demo_arguments(parser: Any) -> None:
    parser.add_argument("--quick", action="store_true", help="a smoke run of about a minute")
    parser.add_argument("--full", action="store_true", help="every baseline and ablation: 20 minutes on two cores")
    parser.add_argument("--output", type=str, help="folder of the run; an unfinished one is continued")
    parser.add_argument("--seed", type=int, default=42, help="of the world and of every draw")
    parser.add_argument("--rows", type=str, nargs="+", help="which rows of the table, as `--json` names them")
    for name, what in _DEMO_SIZES.items():
        parser.add_argument(f"--{name}", type=_DEMO_TYPES.get(name, int), help=what)


_DEMO_SIZES = {
    "domain": "what the world is about: harbour (the pocket base never read of it) or encyclopedia",
    "train_questions": "questions to train on",
    "test_questions": "held-out questions behind the table",
    "rounds": "E-step and M-step pairs",
    "lora_r": "rank of the adapters",
    "learning_rate": "of the adapters",
    "selfaug_alpha": "weight of the SelfAug term",
    "workers": "rows done at the same time, each in its own process (default: one for each core; one on a GPU)",
}
_DEMO_TYPES: dict[str, type] = {"domain": str, "learning_rate": float, "selfaug_alpha": float}


def _demo(args: Any) -> Report:
    from rag.demo import run_demo

    if args.quick and args.full:
        raise UsageError("A demo is either quick or full; both --quick and --full came.")
    sizes = {name: args[name] for name in _DEMO_SIZES if args[name] is not None}
    if args.rows:
        sizes["rows"] = tuple(args.rows)
    result = run_demo(
        mode="quick" if args.quick else "full" if args.full else "default",
        output=args.output,
        seed=args.seed,
        progress=_progress(args),
        **sizes,
    )
    return Report(result.text, result.data)


def _check_json_file(args: Any) -> None:
    if isinstance(args.json, str) and not Path(args.json).resolve().parent.is_dir():
        raise UsageError(f"--json needs a file in a folder that exists; {args.json} came.")


def _doctor_arguments(parser: Any) -> None:
    parser.add_argument("--no_measure", action="store_true", help="do not time torch's threads (ten seconds)")


def _doctor(args: Any) -> Report:
    from rag.doctor import diagnose, render

    report = diagnose(measure=not args.no_measure)
    return Report(render(report), report)


COMMANDS: dict[str, Command] = {
    "index build": Command("embed a corpus into an index directory", _build_arguments, _build),
    "index info": Command("print what an index is", _folder_argument, _info),
    "index verify": Command("check an index against its checksums, encoder and corpus", _verify_arguments, _verify),
    "index add": Command(
        "add passages with new ids",
        _corpus_change_arguments,
        _changing(lambda writer, args: writer.add(args.corpus)),
    ),
    "index delete": Command("delete passages", _delete_arguments, _changing(lambda w, args: w.delete(_ids(args)))),
    "index update": Command(
        "add passages, each in place of the one with its id",
        _corpus_change_arguments,
        _changing(lambda writer, args: writer.update(args.corpus)),
    ),
    "index sync": Command(
        "make an index hold exactly a corpus, encoding only what differs",
        _corpus_change_arguments,
        _changing(lambda writer, args: writer.sync(args.corpus)),
    ),
    "index compact": Command(
        "rewrite an index without what is deleted", _folder_argument, _changing(lambda w, args: w.compact())
    ),
    "index tune": Command("find the fastest search that reaches a recall, and keep it", _tune_arguments, _tune),
    "search": Command("retrieve passages, and score recall on a question file", _search_arguments, _search),
    "train": Command("train selector, generator and question adapter jointly", _train_arguments, _train),
    "plan": Command(
        "time and memory of an index and a training run, before anything is loaded", _plan_arguments, _plan
    ),
    "plan index": Command(
        "time, memory and disk of `rag index build`, before its encoder is loaded",
        _plan_index_arguments,
        _plan_index,
    ),
    "evaluate": Command("score a pipeline on questions with answers", _evaluate_arguments, _evaluate),
    "ask": Command("answer questions", _ask_arguments, _ask),
    "inspect permutations": Command(
        "what the E-step draws for a question, and how much each permutation explains the answer",
        _inspect_permutations_arguments,
        _inspect_permutations,
    ),
    "inspect batch": Command(
        "the generator's rows of a training batch, with the role of every token",
        _inspect_batch_arguments,
        _inspect_batch,
    ),
    "demo": Command(
        "the laboratory: baselines, DRO and SelfAug on an invented world, with a tiny model",
        _demo_arguments,
        _demo,
        json_file=True,
    ),
    "doctor": Command("versions, devices, OpenMP runtimes and advice", _doctor_arguments, _doctor),
}


# -- the frame -------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = [_underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
    if not words or words[0] in _HELP:
        print(_overview())
        return 0 if words else UsageError.exit_code
    if words[1:] and words[1] in _HELP and _verbs(words[0]) and words[0] not in COMMANDS:
        print(_overview(words[0]))
        return 0
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"dro-rag {version('dro-rag')}")
        return 0
    debug = "--debug" in words
    set_up_logs(debug, quiet="--quiet" in words)
    try:
        name, rest = _split_command(words)
        args = _parse(name, rest)
        _check_json_file(args)
        _print(COMMANDS[name].run(args), args)
        return 0
    except RAGError as error:
        return _fail(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _fail("interrupted; what was finished is kept", INTERRUPTED, debug)
    except BrokenPipeError:  # the reader of our output went away (`rag ... | head`); not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        kind = type(error).__name__
        return _fail(f"{kind}: {error} (an unexpected error; run again with --debug for the traceback)", 1, debug)


def _underscored(word: str) -> str:
    """`--max-memory` is `--max_memory`, as in `accelerate launch`; values stay as they are."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _overview(noun: str = "") -> str:
    """All commands, or those of one noun ("index")."""
    lines = ["usage: rag COMMAND [options]     (rag COMMAND --help explains one)", ""]
    lines += [f"  {name:<20} {COMMANDS[name].help}" for name in (_verbs(noun) if noun else COMMANDS)]
    return "\n".join(lines if noun else [*lines, "", "  --version            print the version"])


_HELP = ("-h", "--help")


def _verbs(noun: str) -> list[str]:
    """The commands that begin with it and have a second word."""
    return [name for name in COMMANDS if name.startswith(f"{noun} ")]


def _split_command(words: list[str]) -> tuple[str, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    if verbs := [name.split()[1] for name in _verbs(words[0])]:
        raise UsageError(f"`rag {words[0]}` needs one of {verbs}; {' '.join(words[1:2]) or 'nothing'!r} came.")
    raise UsageError(f"The command must be one of {list(COMMANDS)}; {words[0]!r} came.{_nearest(words[0], COMMANDS)}")


def _nearest(word: str, known: Any) -> str:
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""


def _parser(name: str) -> Any:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=f"rag {name}", description=COMMANDS[name].help, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file with any of these options")
    if COMMANDS[name].json_file:
        parser.add_argument("--json", metavar="FILE", type=str, help="also write the result as JSON to FILE")
    else:
        parser.add_argument("--json", action="store_true", help="print the result as JSON and nothing else")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and library logs")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    COMMANDS[name].arguments(parser)
    return parser


def _parse(name: str, words: list[str]) -> Any:
    from jsonargparse import ArgumentError

    parser = _parser(name)
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        message = str(error).removeprefix("error: ").strip()
        raise UsageError(f"rag {name}: {message}{_suggestion(message, parser)}") from error


def _suggestion(message: str, parser: Any) -> str:
    unknown = re.search(r"(?:[Kk]ey|[Oo]ption|arguments?)[ :]+['\"]?(?:--)?([\w.-]+)", message)
    known = [action.dest for action in parser._actions if action.dest not in ("help", "==SUPPRESS==")]
    return _nearest(unknown.group(1), known) if unknown and unknown.group(1) not in known else ""


def _progress(args: Any) -> bool:
    return not args.quiet and sys.stderr.isatty()


def set_up_logs(debug: bool, quiet: bool) -> None:
    """Our own news on stderr, library chatter only with --debug. Runs before any library is imported."""
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s: %(message)s")
    for package in ("indexes", "generator", "retriever", "training", "rag"):
        logging.getLogger(package).setLevel(logging.WARNING if quiet else logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not debug:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _print(report: Report, args: Any) -> None:
    if args.json is True:
        print(json.dumps(report.data, ensure_ascii=False))
        return
    print(report.text)
    if args.json:
        text = json.dumps(report.data, ensure_ascii=False, indent=2)
        Path(args.json).write_text(text + "\n", encoding="utf-8")


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code
