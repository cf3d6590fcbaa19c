"""Options that several commands share, and the pipelines that they describe."""

from collections.abc import Set
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


def identical_ids_argument(parser: Any) -> None:
    """`--ignore_identical_ids`: whether a question that is a passage may find itself."""
    parser.add_argument(
        "--ignore_identical_ids",
        type=bool | None,
        default=None,
        help="leave out the passage with the question's own id, or its chunks (default: for BEIR's questions, as BEIR "
        "does, and not for others)",
    )


def quoting_argument(parser: Any) -> None:
    """`--quoting`: what a double quote is in delimited text."""
    parser.add_argument(
        "--quoting",
        choices=["auto", "csv", "none"],
        default="auto",
        help="of .csv and .tsv: fields may stand in double quotes (csv), or a quote is a character like any other "
        "(none); auto is csv for commas, and for tabs what fits the lines",
    )


def on_error_argument(parser: Any, then: str) -> None:
    """`--on_error`: what happens to broken records."""
    parser.add_argument(
        "--on_error",
        choices=["raise", "skip"],
        default="raise",
        help=f"for a broken record: stop, or leave it out and {then}",
    )


def building_arguments(parser: Any) -> None:
    """Options that affect the cost of a build, so that a plan takes them too."""
    parser.add_argument("--encoder", type=str, default="tiny", help="sentence-transformers name or folder")
    parser.add_argument("--passage_prompt", type=str, help="prefix of passages (default: the encoder's own)")
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
    workers_argument(parser)
    parser.add_argument(
        "--dtype",
        choices=["float32", "mixed", "bfloat16", "float16"],
        default="float32",
        help="of the encoder: float32 is exact; mixed (float32 weights, bfloat16 products, float32 pooling) is faster "
        "on CPUs with AVX-512 BF16 or AMX and on GPUs, at a cosine of 0.9999 or more (all-MiniLM-L6-v2) with them",
    )
    parser.add_argument(
        "--max_length", type=int, help="the most tokens of a text that the encoder reads (default: its own limit)"
    )
    _chunk_arguments(parser)
    parser.add_argument("--device", type=str, help="cpu, cuda, mps")
    trust_argument(parser, "the encoder")


def workers_argument(parser: Any) -> None:
    """`--workers`: processes that encode."""
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        help="processes that share the encoding on a CPU, each with its share of the threads (OMP_NUM_THREADS)",
    )


def _chunk_arguments(parser: Any) -> None:
    parser.add_argument(
        "--chunk_tokens",
        type=int,
        help="passages are cut to at most this many encoder tokens, with title, prompt and special tokens",
    )
    parser.add_argument(
        "--chunk_overlap", type=int, default=16, help="the most tokens shared by neighbouring chunks; at least half are"
    )
    parser.add_argument(
        "--chunk_format",
        choices=["auto", "text", "markdown"],
        default="auto",
        help="auto: what is read from .md, .html and .docx files is cut as Markdown",
    )


def retriever_argument(parser: Any) -> None:
    """`--retriever`: how candidates are found."""
    parser.add_argument(
        "--retriever",
        type=str,
        default="dense",
        help="how candidates are found: dense (vectors), bm25 (words), hybrid (both fused), or a plugin's kind",
    )


def answer_mode_argument(parser: Any) -> None:
    """`--answer_mode`: how answers are produced from candidates."""
    parser.add_argument(
        "--answer_mode",
        type=str,
        default="permutation",
        help="how answers are produced from candidates: permutation, rag_sequence, rag_token, or a plugin's kind",
    )


def trust_argument(parser: Any, whose: str) -> None:
    """`--trust_remote_code`: whether models may run code that comes with them."""
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help=f"run Python code that comes with {whose}; read it first: it has all your permissions",
    )


def context_argument(parser: Any) -> None:
    """`--context_length`: how many tokens the base model reads."""
    parser.add_argument(
        "--context_length",
        type=int,
        help="tokens that the base reads at once (default: what its config or tokenizer states, else 2048)",
    )


def pipeline_arguments(parser: Any, *, answer_mode: bool = True) -> None:
    """The parts of a new pipeline, with or without its answer mode."""
    from generator import AdapterConfig, ChatConfig, DecodingConfig
    from retriever import SelectorConfig

    parser.add_argument("--index", type=str, help="index directory")
    parser.add_argument(
        "--base",
        type=str,
        default="tiny",
        help='causal LM: Hub name, folder, GGUF file (also owner/repo:file.gguf), or "tiny"',
    )
    parser.add_argument("--revision", type=str, help="revision on the Hub: of --bundle, or else of --base")
    parser.add_argument("--encoder", type=str, help="encoder folder, if it has moved since the index was built")
    parser.add_argument("--dtype", type=str, default="auto", help="auto, float32, bfloat16, float16, mixed")
    parser.add_argument("--device", type=str, help="cpu, cuda, mps")
    parser.add_argument("--quantization", type=str, help="4bit or 8bit (needs the quantization extra)")
    context_argument(parser)
    trust_argument(parser, "base or encoder")
    retriever_argument(parser)
    if answer_mode:
        answer_mode_argument(parser)
    parser.add_class_arguments(SelectorConfig, "selector")
    parser.add_class_arguments(DecodingConfig, "decoding")
    parser.add_class_arguments(AdapterConfig, "adapter")
    parser.add_class_arguments(ChatConfig, "chat")


def create_pipeline(args: Any) -> Any:
    """The new pipeline that `pipeline_arguments` describe."""
    if args.index is None:
        raise UsageError("An index is needed: give --index DIR (build one with `rag index build`).")
    options = {**config_options(args), "base": model_config(args)}  # refused settings are found before torch is loaded
    options |= {name: args[name] for name in ("index", "encoder", "retriever", "answer_mode")}
    from rag import RAG

    return RAG.create(**options)


def config_options(args: Any) -> dict[str, Any]:
    """The nested options of `pipeline_arguments` as the dataclasses that `RAG.create` takes, by name."""
    from generator import AdapterConfig, ChatConfig, DecodingConfig
    from retriever import SelectorConfig

    return {
        "selector": SelectorConfig(**vars(args.selector)),
        "decoding": DecodingConfig(**vars(args.decoding)),
        "adapter": AdapterConfig(**vars(args.adapter)),
        "chat": ChatConfig(**vars(args.chat)),
    }


def model_config(args: Any) -> Any:
    """The `ModelConfig` that the options describe."""
    from generator import ModelConfig

    names = ("revision", "dtype", "device", "quantization", "context_length", "trust_remote_code")
    return ModelConfig(name=args.base, **{name: args[name] for name in names})


def bundle_arguments(parser: Any) -> None:
    """A trained pipeline, or the parts of a new one."""
    parser.add_argument(
        "--bundle",
        type=str,
        help="a trained pipeline: a folder or a repository on the Hub; else --index and --base make a fresh one",
    )
    pipeline_arguments(parser)


def open_pipeline(args: Any) -> Any:
    """The pipeline that `bundle_arguments` describe."""
    from jsonargparse import ArgumentParser

    if args.bundle is None:
        return create_pipeline(args)
    untouched = ArgumentParser()
    pipeline_arguments(untouched)
    fresh = untouched.get_defaults()
    own = ("base", "context_length", "retriever", "answer_mode", "selector", "decoding", "adapter", "chat")
    given = [key for key in own if args[key] != fresh[key]]
    if given:
        raise UsageError(f"A bundle brings its own {given}; leave those options out, or create a new pipeline.")
    from rag import RAG

    return RAG.from_pretrained(
        args.bundle,
        index=args.index,
        encoder=args.encoder,
        dtype=args.dtype,
        device=args.device,
        quantization=args.quantization,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
    )


def training_options(parser: Any, *, skip: Set[str] = frozenset()) -> None:
    """The settings of `DROConfig`, under the names that Python and YAML have (`--e_step.num_permutations`)."""
    from training import DROConfig

    parser.add_class_arguments(DROConfig, skip={"training_arguments", *skip})
    if "training_arguments" not in skip:
        parser.add_argument("--training_arguments", type=dict[str, Any], default={}, help="more TrainingArguments")


def training_config(args: Any) -> Any:
    """The `DROConfig` that the options describe."""
    from training import DROConfig

    return DROConfig.from_dict(training_settings(args))


def training_settings(args: Any) -> dict[str, Any]:
    """The values of the settings of `DROConfig` that are options of the command, by their dotted names."""
    from training import DROConfig

    return {name: args[name] for name in DROConfig.names() if name in args}


def eval_arguments(parser: Any) -> None:
    """Which questions choose the round that is kept, and which training questions are left out."""
    parser.add_argument("--eval_dataset", type=str, help="evaluation questions, which choose the round that is kept")
    quoting_argument(parser)
    answerable_argument(parser)


def answerable_argument(parser: Any) -> None:
    """`--answerable_only`: whether training questions without an answer in their candidates are left out."""
    parser.add_argument(
        "--answerable_only",
        type=bool,
        default=True,
        help="leave out training questions whose answer is in none of their candidates: they would teach to guess",
    )
