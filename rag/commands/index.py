"""`rag index ...`: build, inspect, verify, change and tune an index."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexes.errors import UsageError
from rag.commands.command import Command, Report, progress
from rag.commands.options import (
    building_arguments,
    corpus_argument,
    identical_ids_argument,
    on_error_argument,
    quoting_argument,
    split_argument,
    trust_argument,
    workers_argument,
)


def _build_arguments(parser: Any) -> None:
    corpus_argument(parser)
    parser.add_argument("--split", type=str, help="of a dataset that has several, such as train")
    parser.add_argument("--output_dir", type=str, required=True, help="index directory to write")
    parser.add_argument("--resume", action="store_true", help="continue an unfinished build, or start one")
    quoting_argument(parser)
    on_error_argument(parser, "list it in quarantine.jsonl in the index")
    parser.add_argument("--question_prompt", type=str, help="prefix of questions (default: the encoder's own)")
    parser.add_argument(
        "--similarity", choices=["cosine", "dot"], help="of questions and passages (default: the encoder's own)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing index or an unfinished build")
    parser.add_argument("--store", type=str, default="faiss", help="vector store: faiss, milvus, or a plugin's kind")
    building_arguments(parser)


def _chunker(args: Any, encoder: Any) -> Any:
    from indexes import Chunker

    if args.chunk_tokens is None:
        return None
    return Chunker(
        encoder.tokenizer,
        max_tokens=args.chunk_tokens,
        overlap=args.chunk_overlap,
        text_format=args.chunk_format,
        prompt=encoder.passage_prompt,
    )


def _build(args: Any) -> Report:
    from indexes import Encoder, build_index
    from indexes.directory.builder import DistributedContext
    from indexes.launcher_check import warn_of_one_process

    # Each process of `accelerate launch` encodes on its own device.
    warn_of_one_process("index build ...")
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    encoder = Encoder.from_pretrained(
        args.encoder,
        question_prompt=args.question_prompt,
        passage_prompt=args.passage_prompt,
        device=DistributedContext.of(True).device if distributed and args.device is None else args.device,
        dtype=args.dtype,
        max_length=args.max_length,
        similarity=args.similarity,
        trust_remote_code=args.trust_remote_code,
    )
    index = build_index(
        args.corpus,
        encoder,
        args.output_dir,
        factory=args.factory,
        batch_size=args.batch_size,
        chunker=_chunker(args, encoder),
        split=args.split,
        quoting=args.quoting,
        bm25=args.bm25,
        store=args.store,
        milvus=args.milvus,
        max_memory=args.max_memory,
        allow_untested=args.allow_untested,
        on_error=args.on_error,
        overwrite=args.overwrite,
        resume=args.resume,
        distributed=distributed,
        workers=args.workers,
        progress=progress(args),
    )
    info = index.info()
    return Report(f"Indexed {info['passages']} passages ({info['factory']}) in {args.output_dir}", info)


def _folder_argument(parser: Any) -> None:
    parser.add_argument("index", type=str, help="index directory")


def _compact_arguments(parser: Any) -> None:
    _folder_argument(parser)
    trust_argument(parser, "the encoder")


def _info(args: Any) -> Report:
    from indexes import PassageIndex

    info = PassageIndex.open(args.index).info()
    return Report("\n".join(f"{name}: {value}" for name, value in info.items()), info)


def _verify_arguments(parser: Any) -> None:
    _folder_argument(parser)
    parser.add_argument("--encoder", type=str, help="also check this encoder and re-encode a sample")
    trust_argument(parser, "the encoder")
    parser.add_argument("--corpus", type=str, help="also check that the index holds exactly this corpus")
    quoting_argument(parser)
    on_error_argument(parser, "continue")


def _verify(args: Any) -> Report:
    from indexes import Chunker, Corpus, PassageIndex

    index = PassageIndex.open(args.index)
    trust = args.trust_remote_code
    encoder = None if args.encoder is None else index.load_encoder(args.encoder, trust_remote_code=trust, check=False)
    corpus = None
    if args.corpus is not None:
        corpus = Corpus.from_file(args.corpus, quoting=args.quoting, on_error=args.on_error)
    if corpus is not None and index.manifest.chunking:
        tokenizer = (encoder or index.load_encoder(trust_remote_code=trust, check=False)).tokenizer
        corpus = corpus.chunked(Chunker(tokenizer, **dict[str, Any](index.manifest.chunking)))
    result = index.verify(encoder=encoder, corpus=corpus)
    return Report(f"{args.index} is complete: {result}", result)


def _corpus_change_arguments(parser: Any) -> None:
    _folder_argument(parser)
    corpus_argument(parser)
    parser.add_argument("--encoder", type=str, help="encoder folder, if it has moved since the index was built")
    trust_argument(parser, "the encoder")
    parser.add_argument("--batch_size", type=int, default=256, help="the most passages encoded at once")
    workers_argument(parser)
    quoting_argument(parser)
    on_error_argument(parser, "list it with --quarantine")
    parser.add_argument("--quarantine", type=str, help="file for the records that --on_error skip leaves out")


def _delete_arguments(parser: Any) -> None:
    _folder_argument(parser)
    parser.add_argument("ids", type=str, nargs="*", help="ids of passages, or of documents that were cut into chunks")
    parser.add_argument("--ids_file", type=str, help="a file with an id on each line")
    trust_argument(parser, "the encoder")


def _changing(change: Callable[[Any, Any], Any]) -> Callable[[Any], Report]:
    """The `run` of a command that makes one change with an `IndexWriter`."""

    def run(args: Any) -> Report:
        from dataclasses import asdict

        from indexes import IndexWriter
        from indexes.directory.passage_index import load_manifest

        options: dict[str, Any] = {}
        if "corpus" in args:
            options = {name: args[name] for name in ("batch_size", "workers", "quoting", "on_error", "quarantine")}
        options["trust_remote_code"] = args.trust_remote_code
        if args.get("encoder") is not None:
            record = load_manifest(Path(args.index)).encoder
            options["encoder"] = record.load(args.encoder, trust_remote_code=args.trust_remote_code)
        with IndexWriter(args.index, progress=progress(args), **options) as writer:
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
        raise UsageError("Deleting needs ids: as words, or --ids_file FILE; got none.")
    return ids


def _tune_arguments(parser: Any) -> None:
    _folder_argument(parser)
    parser.add_argument("--questions", type=str, required=True, help="question file: what is searched for")
    split_argument(parser)
    identical_ids_argument(parser)
    quoting_argument(parser)
    parser.add_argument("--recall", type=float, default=0.95, help="share of the exact top k that must be found")
    parser.add_argument("-k", "--k", type=int, default=20, help="results per question")
    parser.add_argument("--limit", type=int, default=1000, help="use only the first so many questions")
    parser.add_argument("--reference", type=str, help="an exact index of the same corpus, where this one is lossy")
    parser.add_argument("--encoder", type=str, help="encoder folder, if it has moved since the index was built")
    trust_argument(parser, "the encoder")
    parser.add_argument("--dry_run", action="store_true", help="only measure; leave the index as it is")


def _tune(args: Any) -> Report:
    from dataclasses import asdict

    from indexes import IndexWriter, PassageIndex
    from indexes.vectors.tuning import tune
    from training import identical_ids, load_examples

    index = PassageIndex.open(args.index)
    examples = load_examples(
        args.questions,
        limit=args.limit,
        split=args.split,
        quoting=args.quoting,
        ignore_identical_ids=args.ignore_identical_ids,
    )
    identical = identical_ids(examples, index)
    ignored = [index.corpus.document_positions(e.id) if e.ignore_identical_id else [] for e in examples]
    encoder = index.load_encoder(args.encoder, trust_remote_code=args.trust_remote_code)
    queries = encoder.encode_questions([e.question for e in examples])
    deep = args.k + max(map(len, ignored))
    exact = None if args.reference is None else index.exact_results(PassageIndex.open(args.reference), queries, deep)
    found = tune(index.vectors, queries, recall=args.recall, k=args.k, exact_ids_Bk=exact, ignored=ignored)
    if not args.dry_run:
        with IndexWriter(args.index) as writer:
            writer.set_search_parameters(found.parameters)
    note = [str(identical)] if identical.ignoring else []
    return Report("\n".join([found.summary, *note]), {**asdict(found), "identical_ids": identical._asdict()})


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
        "rewrite an index without what is deleted", _compact_arguments, _changing(lambda w, args: w.compact())
    ),
    "index tune": Command("find the fastest search that reaches a recall, and keep it", _tune_arguments, _tune),
}
