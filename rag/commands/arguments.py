"""Arguments that several commands share, and the pipelines that they describe."""

from typing import Any

from indexes.errors import UsageError


def corpus_argument(parser: Any) -> None:
    """`--corpus`: what an index is made from."""
    parser.add_argument(
        "--corpus",
        type=str,
        required=True,
        help="JSONL(.gz), CSV, TSV, Parquet, HTML, PDF, DOCX, a folder of them, a BEIR folder or zip, or an address",
    )


def split_argument(parser: Any) -> None:
    """`--split`: which part of a dataset of questions."""
    parser.add_argument("--split", type=str, help="part of BEIR's folder or of a saved dataset, such as test")


def on_error_argument(parser: Any, then: str) -> None:
    """`--on_error`: what becomes of broken rows."""
    parser.add_argument(
        "--on_error",
        choices=["raise", "skip"],
        default="raise",
        help=f"of a broken row: stop, or leave it out and {then}",
    )


def building_arguments(parser: Any) -> None:
    """What a build costs depends on these, so that a plan takes them too."""
    parser.add_argument("--encoder", type=str, default="pocket", help="sentence-transformers name or folder")
    parser.add_argument(
        "--factory", type=str, default="auto", help='FAISS factory string, or "auto" by size and memory'
    )
    parser.add_argument(
        "--allow_untested",
        action="store_true",
        help="also a FAISS factory string whose results this library has not compared with exact ones",
    )
    parser.add_argument(
        "--max_memory", type=str, help='most memory of the process, such as "8GB" (default: by machine)'
    )
    parser.add_argument("--bm25", action="store_true", help="also build a BM25 index, for hybrid search")
    parser.add_argument(
        "--milvus",
        type=str,
        help="keep vectors on this Milvus server, or in this file of Milvus Lite; --factory is then an index type of "
        "Milvus, such as FLAT for exact results (default: AUTOINDEX, approximate)",
    )
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
    trust_argument(parser, "the encoder")


def _chunk_arguments(parser: Any) -> None:
    parser.add_argument("--chunk_tokens", type=int, help="passages are cut to at most this many encoder tokens")
    parser.add_argument("--chunk_overlap", type=int, default=16, help="tokens shared by neighbouring chunks")


def retriever_argument(parser: Any) -> None:
    """`--retriever`: how candidates are found."""
    parser.add_argument(
        "--retriever",
        choices=["dense", "bm25", "hybrid"],
        default="dense",
        help="how candidates are found: by vectors, by words (BM25), or by both rankings together",
    )


def trust_argument(parser: Any, whose: str) -> None:
    """`--trust_remote_code`: whether models may run code that they bring."""
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help=f"run Python code that comes with {whose}; read it first, since it may do whatever you may",
    )


def context_argument(parser: Any) -> None:
    """`--context_length`: how much of a prompt the base reads."""
    parser.add_argument(
        "--context_length",
        type=int,
        help="tokens that the base reads at once (default: what its config or tokenizer states, else 2048)",
    )


def pipeline_arguments(parser: Any) -> None:
    """What a new pipeline is made of."""
    from generator import AdapterConfig, GenerationConfig
    from retriever import SelectorConfig

    parser.add_argument("--index", type=str, help="index directory")
    parser.add_argument("--base", type=str, default="pocket", help='causal LM: Hub name, folder, or "pocket"')
    parser.add_argument("--revision", type=str, help="revision of the base on the Hub")
    parser.add_argument("--encoder", type=str, help="encoder folder, when it is no longer where it was")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, float32, bfloat16, float16, mixed")
    parser.add_argument("--device", type=str, help="cpu, cuda, mps")
    parser.add_argument("--quantization", type=str, help="4bit or 8bit (needs the quantization extra)")
    context_argument(parser)
    trust_argument(parser, "base or encoder")
    retriever_argument(parser)
    parser.add_class_arguments(SelectorConfig, "selector")
    parser.add_class_arguments(GenerationConfig, "generation")
    parser.add_class_arguments(AdapterConfig, "adapter")


def create_pipeline(args: Any) -> Any:
    """The new pipeline that `pipeline_arguments` describe."""
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
        context_length=args.context_length,
        trust_remote_code=args.trust_remote_code,
    )


def bundle_arguments(parser: Any) -> None:
    """A trained pipeline, or what a new one is made of."""
    parser.add_argument("--bundle", type=str, help="a trained pipeline; else --index and --base make a fresh one")
    pipeline_arguments(parser)


def open_pipeline(args: Any) -> Any:
    """The pipeline that `bundle_arguments` describe."""
    from jsonargparse import ArgumentParser

    from rag import RAG

    if args.bundle is None:
        return create_pipeline(args)
    untouched = ArgumentParser()
    pipeline_arguments(untouched)
    fresh = untouched.get_defaults()
    own = ("base", "revision", "context_length", "retriever", "selector", "generation", "adapter")
    given = [key for key in own if args[key] != fresh[key]]
    if given:
        raise UsageError(f"A bundle brings its own {given}; leave those options out, or make a new pipeline.")
    return RAG.from_pretrained(
        args.bundle,
        index=args.index,
        encoder=args.encoder,
        dtype=args.dtype,
        device=args.device,
        quantization=args.quantization,
        trust_remote_code=args.trust_remote_code,
    )


def dev_arguments(parser: Any) -> None:
    """Which questions a run is steered by, and which it leaves out."""
    parser.add_argument("--dev", type=str, help="dev questions; they pick the round to keep")
    parser.add_argument("--max_eval_samples", type=int, help="use only the first so many dev questions")
    parser.add_argument(
        "--answerable_only", type=bool, default=False, help="leave out training questions no candidate answers"
    )
