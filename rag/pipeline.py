"""`RAG`: question -> retriever -> selector -> generator -> `Answer`, and its bundle on disk."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from generator.generator import AnswerRow, GenerationConfig, Generator
from generator.language_model import AdapterConfig, LanguageModel
from generator.prompts import AnswerPrompt, RankingPrompt
from indexes.corpus import Passage
from indexes.durable import read_json, replace_folder
from indexes.encoder import Encoder
from indexes.errors import MismatchError, UsageError
from indexes.passage_index import PassageIndex
from rag.evaluation import evaluate
from rag.metrics import answer_recall
from rag.pocket import POCKET, base_path
from retriever.dense import Candidates, DenseRetriever, QuestionAdapter, Retriever
from retriever.hybrid import BM25Retriever, HybridRetriever
from retriever.selector import Selector, SelectorConfig
from training.checkpoint import load_learned, write_learned
from training.data import QAExample

if TYPE_CHECKING:
    from rag.rag_sequence import RAGSequence
    from rag.rag_token import RAGToken

CONFIG_FILE = "rag_config.json"
LEARNED_FOLDER = "learned"
FORMAT_VERSION = 1
RETRIEVERS = (DenseRetriever.kind, BM25Retriever.kind, HybridRetriever.kind)
SELECTION = "selection"
ANSWERING = (SELECTION, "rag_sequence", "rag_token")
_HYBRID_OPTIONS = ("depth", "rrf_k", "weights")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """An answer and where it comes from."""

    question: str
    text: str
    citations: list[str]
    """Ids of the selected passages that contain the answer; empty when none does."""
    passages: list[Passage]
    """What the generator read, in the order of the permutation."""
    permutation: list[int]
    """Ranks that the retriever had given those passages (0 is its best)."""
    log_prob: float
    """log p(text | question, passages) in nats, end of answer included."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


class RAG:
    """A retriever, a selector and a generator over one base model.

    Use `RAG.create` for a new pipeline and `RAG.from_pretrained` for a saved one.

    Args:
        retriever: Question to candidates.
        selector: Candidates to a permutation.
        generator: Passages to an answer; shares the selector's language model.
        answering: How an answer comes about: "selection" reads the selector's list, "rag_sequence" and "rag_token" sum
            over single documents (`rag.rag_sequence`, `rag.rag_token`). A bundle remembers it.

    Raises:
        UsageError: Selector and generator have different language models, or `answering` is unknown, or sums over
            single documents with a selector that picks more.
    """

    def __init__(
        self, retriever: Retriever, selector: Selector, generator: Generator, *, answering: str = SELECTION
    ) -> None:
        if selector.language_model is not generator.language_model:
            raise UsageError(
                "Selector and generator must share one LanguageModel (two adapters on one base, trained and saved "
                "together); two different ones came. Hand the same object to both."
            )
        self.retriever = retriever
        self.selector = selector
        self.generator = generator
        self._answering = answering
        self._answerer = None if answering == SELECTION else _summing(self)

    @classmethod
    def create(
        cls,
        *,
        index: str | Path | PassageIndex,
        base: str | Path = POCKET,
        encoder: str | Path | Encoder | None = None,
        retriever: str | Mapping[str, Any] = DenseRetriever.kind,
        selector: SelectorConfig | None = None,
        generation: GenerationConfig | None = None,
        adapter: AdapterConfig | None = None,
        answer_prompt: AnswerPrompt | None = None,
        ranking_prompt: RankingPrompt | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        quantization: str | None = None,
        context_length: int | None = None,
        trust_remote_code: bool = False,
        answering: str = SELECTION,
    ) -> "RAG":
        """A new, untrained pipeline: it ranks as the retriever does and answers as the base model does.

        Args:
            index: Index directory, or an opened index.
            base: Causal LM: a Hub name, a folder, or "pocket" for the tiny model inside this package.
            encoder: The encoder that built the index; default: the one its manifest names.
            retriever: How candidates are found: "dense", "bm25" or "hybrid", or a mapping with that as its "kind" and
                options of the class, {"kind": "hybrid", "depth": 200}.
            selector: n, K, decoding, prior.
            generation: How answers are decoded.
            adapter: LoRA settings.
            answer_prompt: Replaces the paper's answer prompt.
            ranking_prompt: Replaces the paper's ranking prompt.
            revision: Of the base on the Hub.
            dtype: Of the base; "auto" chooses by hardware.
            device: Of the base; default: the best there is.
            quantization: None, "4bit" or "8bit".
            context_length: Tokens that the base reads at once, prompt and answer together; passages are cut to fit.
                None: what its config or tokenizer states, else 2048.
            trust_remote_code: Run Python code that comes with base or encoder, where they have some.
            answering: As for the class.

        Raises:
            MismatchError: The encoder did not build this index, or the index is damaged.
            ResourceError: Base or encoder cannot be loaded.
            UsageError: K > n, an unknown retriever, and the like.
        """
        opened = index if isinstance(index, PassageIndex) else PassageIndex.open(index)
        used = encoder_of(opened, encoder, device=device, trust_remote_code=trust_remote_code)
        finder = retriever_of(opened, used, retriever)
        model = LanguageModel.from_pretrained(
            base_path(base),
            adapter=adapter,
            revision=revision,
            dtype=dtype,
            device=device,
            quantization=quantization,
            context_length=context_length,
            trust_remote_code=trust_remote_code,
        )
        model.name = str(base)
        finder.adapter.to(model.device)
        return cls(
            finder,
            Selector(model, finder, prompt=ranking_prompt, config=selector),
            Generator(model, prompt=answer_prompt, config=generation),
            answering=answering,
        )

    @property
    def answering(self) -> str:
        """How an answer comes about: "selection", "rag_sequence" or "rag_token"; fixed when the pipeline is made."""
        return self._answering

    @property
    def num_candidates(self) -> int:
        """n, the number of candidates that the selector reads."""
        return self.selector.config.num_candidates

    # -- answering ---------------------------------------------------------------------------------------------

    @overload
    def answer(self, question: str) -> Answer: ...  # type: ignore[overload-overlap]
    @overload
    def answer(self, question: Sequence[str]) -> list[Answer]: ...

    def answer(self, question: str | Sequence[str]) -> Answer | list[Answer]:
        """Answer one question or several (batched); an answer does not depend on what else is asked.

        Raises:
            DataError: An empty question, or one that does not fit the context.
        """
        questions = [question] if isinstance(question, str) else list(question)
        answers = self.answer_from(self.retriever.search(questions, self.num_candidates)) if questions else []
        return answers[0] if isinstance(question, str) else answers

    def answer_from(self, candidates: Sequence[Candidates]) -> list[Answer]:
        """Answers from candidates that are already retrieved."""
        if self._answerer is not None:
            return self._answerer.answer_from(candidates)
        permutations = [p.z_mK[0].tolist() for p in self.selector.select(candidates)]
        passages = [[c.passages[i] for i in z] for c, z in zip(candidates, permutations, strict=True)]
        questions = [c.question for c in candidates]
        texts = self.generator.generate(questions, passages)
        rows = [self.row(q, p, t) for q, p, t in zip(questions, passages, texts, strict=True)]
        log_probs = self.generator.log_probs(rows).tolist()
        return [
            Answer(question, text, citations(text, chosen), chosen, permutation, log_prob)
            for question, text, chosen, permutation, log_prob in zip(
                questions, texts, passages, permutations, log_probs, strict=True
            )
        ]

    def row(self, question: str, passages: Sequence[Passage], text: str) -> AnswerRow:
        """The answer behind the very prompt that it was generated from."""
        prompt_ids = self.generator.prompt_ids(question, passages)
        if text.strip():
            return AnswerRow(prompt_ids, self.generator.encode_answer(text))
        # The model may well end its answer at once; that is scored too, though nobody would train on it.
        return AnswerRow(prompt_ids, [self.generator.language_model.end_of_answer_id])

    def stream(self, question: str) -> Iterator[str]:
        """The answer to one question, piece by piece (in one piece where it is not read from one prompt)."""
        candidates = self.retriever.search(question, self.num_candidates)
        if self._answerer is not None:
            yield self._answerer.answer_from([candidates])[0].text
            return
        z = self.selector.select([candidates])[0].z_mK[0].tolist()
        yield from self.generator.stream(question, [candidates.passages[i] for i in z])

    def evaluate(self, examples: Sequence[QAExample], *, progress: bool = True) -> dict[str, Any]:
        """Mean metrics over questions with golden answers, and their `intervals` by name; see `rag.evaluation`."""
        result = evaluate(self, examples, progress=progress)
        return {**result.metrics, "intervals": {name: list(ends) for name, ends in result.intervals.items()}}

    # -- the bundle --------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        include_index: bool = False,
        include_encoder: bool = False,
        include_base: bool = False,
        report: Sequence[dict[str, Any]] = (),
    ) -> Path:
        """Write a bundle: adapters, question adapter, prompts, config and a model card.

        The index, the encoder and the base are pointed to by default and copied on request; with all three the
        bundle answers on another machine with no network. Parts that already live in `folder` stay in it.

        Args:
            folder: New, empty, or an earlier bundle (replaced).
            include_index: Copy the index into the bundle.
            include_encoder: Copy the encoder into the bundle.
            include_base: Copy the base weights and tokenizer into the bundle.
            report: Training history for the model card.

        Raises:
            MismatchError: The copy of the base, read back, has other weights.
            UsageError: `folder` holds something that is not a bundle.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
            raise UsageError(f"A bundle needs a new or empty folder; {folder} already holds something else.")
        include_index |= _is_inside(self.retriever.index.path, folder)
        include_encoder |= _is_inside(self.retriever.encoder.name, folder)
        include_base |= _is_inside(self.generator.language_model.name, folder)
        config = self._config(folder, include_index, include_encoder, include_base)

        def write(partial: Path) -> None:
            write_learned(self.selector, partial / LEARNED_FOLDER)
            _write_json(partial / CONFIG_FILE, config)
            if include_index:
                shutil.copytree(self.retriever.index.path, partial / "index")
            if include_encoder:
                self.retriever.encoder.save_pretrained(partial / "encoder")
            if include_base:
                # The adapters are beside it, and selector, generator and the reference of SelfAug need it unmerged.
                self.generator.language_model.save_base(partial / "base")
            (partial / "README.md").write_text(_model_card(config, report), encoding="utf-8")

        replace_folder(folder, write)
        return folder

    def _config(self, folder: Path, index: bool, encoder: bool, base: bool) -> dict[str, Any]:
        model, manifest = self.generator.language_model, self.retriever.index.manifest
        encoder_name = self.retriever.encoder.name
        index_path = os.path.relpath(self.retriever.index.path.resolve(), folder.resolve())
        return {
            "format_version": FORMAT_VERSION,
            "created_by": f"dro-rag {version('dro-rag')}",
            "base": {
                "name": "base" if base else _pointer(model.name, folder),
                "is_folder": base or _is_folder(model.name),
                "revision": None if base else model.revision,
                "dtype": str(model.base_model.dtype).removeprefix("torch."),
                "quantization": model.quantization,
                "context_length": model.context_length,
                "trust_remote_code": model.trust_remote_code,
            },
            "adapter": asdict(model.adapter),
            "selector": asdict(self.selector.config),
            "generation": asdict(self.generator.config),
            "answering": self.answering,
            "answer_prompt": asdict(self.generator.prompt),
            "ranking_prompt": asdict(self.selector.prompt),
            "retriever": {"kind": self.retriever.kind, **self.retriever.settings},
            "question_adapter_rank": self.retriever.adapter.down_rd.shape[0],
            "index": {
                "path": "index" if index else index_path,
                "corpus_fingerprint": manifest.corpus_fingerprint,
                "origin": manifest.origin,
            },
            "encoder": {
                "name": "encoder" if encoder else _pointer(encoder_name, folder),
                "is_folder": encoder or _is_folder(encoder_name),
                "trust_remote_code": self.retriever.encoder.trust_remote_code,
            },
        }

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        index: str | Path | PassageIndex | None = None,
        encoder: str | Path | Encoder | None = None,
        dtype: str = "auto",
        device: str | None = None,
        quantization: str | None = None,
        trust_remote_code: bool = False,
    ) -> "RAG":
        """Open a bundle; it answers as it did when it was saved.

        Args:
            folder: What `save_pretrained` wrote (a Hub repository: download it first with huggingface_hub).
            index: Use this index instead of the one the bundle points to (same corpus required).
            encoder: Use this copy of the encoder.
            dtype: As in `create`; "auto" is what it was saved with.
            device: As in `create`.
            quantization: As in `create`; default: what it was saved with.
            trust_remote_code: As in `create`; what the bundle records about it does not count.

        Raises:
            MismatchError: Not a bundle, damaged, or an index of another corpus.
            ResourceError: Base or encoder cannot be found.
        """
        folder = Path(folder)
        config = read_config(folder)
        where = index if index is not None else folder / config["index"]["path"]
        base = config["base"]
        rag = cls.create(
            index=where,
            base=_resolve(base, folder),
            encoder=encoder if encoder is not None else _resolve(config["encoder"], folder),
            retriever=config.get("retriever", DenseRetriever.kind),  # bundles were dense before they said so
            selector=SelectorConfig(**config["selector"]),
            generation=GenerationConfig(**config["generation"]),
            adapter=AdapterConfig(**config["adapter"]),
            answer_prompt=AnswerPrompt(**config["answer_prompt"]),
            ranking_prompt=RankingPrompt(**config["ranking_prompt"]),
            revision=base["revision"],
            dtype=base["dtype"] if dtype == "auto" else dtype,
            device=device,
            quantization=quantization or base["quantization"],
            context_length=base.get("context_length"),  # bundles took what the base states before they said so
            trust_remote_code=trust_remote_code,
            answering=config.get("answering", SELECTION),  # bundles selected before they said so
        )
        rag._check_corpus(config, folder)
        rag._set_question_adapter(config["question_adapter_rank"])
        load_learned(rag.selector, folder / LEARNED_FOLDER)
        return rag

    def _check_corpus(self, config: dict[str, Any], folder: Path) -> None:
        expected, manifest = config["index"]["corpus_fingerprint"], self.retriever.index.manifest
        found = manifest.corpus_fingerprint
        if expected == found:
            return
        # What was learned stays of use while passages come and go; another corpus would be a mistake.
        if manifest.origin not in (expected, config["index"].get("origin")):
            raise MismatchError(
                f"The bundle {folder} was trained over a corpus with fingerprint {expected[:12]}; the index at "
                f"{self.retriever.index.path} holds another ({found[:12]}). Give the right index with index=..."
            )
        path, version = self.retriever.index.path, manifest.version
        logger.warning("%s has changed since %s was trained: it is at version %d now.", path, folder, version)

    def _set_question_adapter(self, rank: int) -> None:
        adapter = QuestionAdapter(self.retriever.encoder.dimension, rank)
        self.retriever.adapter = adapter.to(self.generator.language_model.device)

    def push_to_hub(self, repo_id: str, *, private: bool = False, include_index: bool = False) -> str:
        """Upload the bundle to the Hugging Face Hub; returns the commit's address."""
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as work:
            bundle = self.save_pretrained(Path(work) / "bundle", include_index=include_index)
            return str(api.upload_folder(repo_id=repo_id, folder_path=str(bundle)))


def _summing(rag: RAG) -> "RAGSequence | RAGToken":
    """Who answers for a pipeline that sums over single documents."""
    from rag.rag_sequence import RAGSequence
    from rag.rag_token import RAGToken

    kinds: dict[str, type[RAGSequence] | type[RAGToken]] = {"rag_sequence": RAGSequence, "rag_token": RAGToken}
    if rag.answering not in kinds:
        raise UsageError(f"answering must be one of {list(ANSWERING)}; {rag.answering!r} came.")
    return kinds[rag.answering](rag)


def load_generator(
    folder: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> Generator:
    """The language model of a bundle with both adapters, without its index and encoder: for what asks no question.

    Args:
        folder: What `RAG.save_pretrained` wrote.
        dtype: As in `RAG.from_pretrained`.
        device: As in `RAG.from_pretrained`.
        quantization: As in `RAG.from_pretrained`.
        trust_remote_code: As in `RAG.from_pretrained`.

    Raises:
        MismatchError: Not a bundle, or damaged.
        ResourceError: The base cannot be found.
    """
    folder = Path(folder)
    config = read_config(folder)
    base, name = config["base"], _resolve(config["base"], folder)
    model = LanguageModel.from_pretrained(
        base_path(name),
        adapter=AdapterConfig(**config["adapter"]),
        revision=base["revision"],
        dtype=base["dtype"] if dtype == "auto" else dtype,
        device=device,
        quantization=quantization or base["quantization"],
        context_length=base.get("context_length"),
        trust_remote_code=trust_remote_code,
    )
    model.name = str(name)
    model.load_adapters(folder / LEARNED_FOLDER)
    return Generator(
        model, prompt=AnswerPrompt(**config["answer_prompt"]), config=GenerationConfig(**config["generation"])
    )


def base_weights(model: LanguageModel) -> dict[str, Tensor]:
    """The weights of the base by the names that they have without adapters."""
    return model.base_weights()


def encoder_of(
    index: PassageIndex,
    encoder: str | Path | Encoder | None = None,
    *,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """The encoder of an index: the one its manifest names, or the given copy of it, with the same prompts."""
    if isinstance(encoder, Encoder):
        return encoder
    return index.manifest.encoder.load(encoder, device=device, trust_remote_code=trust_remote_code)


def retriever_of(index: PassageIndex, encoder: Encoder, settings: str | Mapping[str, Any]) -> Retriever:
    """The retriever of a name, or of a mapping with its "kind" and its options, over an index.

    Raises:
        MismatchError: The encoder did not build this index.
        UsageError: There is no such retriever, or it has no such option.
    """
    options = {"kind": settings} if isinstance(settings, str) else dict(settings)
    kind = options.pop("kind", None)
    if kind not in RETRIEVERS:
        raise UsageError(f"The retriever must be one of {list(RETRIEVERS)}; {kind!r} came.")
    known = _HYBRID_OPTIONS if kind == HybridRetriever.kind else ()
    if unknown := sorted(set(options) - set(known)):
        raise UsageError(f"The options of a {kind} retriever are {list(known)}; {unknown} came.")
    if kind == DenseRetriever.kind:
        return DenseRetriever(index, encoder)
    if kind == BM25Retriever.kind:
        return BM25Retriever(index, encoder, index.load_bm25())
    return HybridRetriever(index, encoder, index.load_bm25(), **options)


def citations(text: str, passages: Sequence[Passage]) -> list[str]:
    """Ids of the passages that contain the text of an answer; none for an empty answer."""
    if not text.strip():
        return []
    return [p.id for p in passages if answer_recall([p.contents], [text], 1)]


def _is_folder(name: str) -> bool:
    return name != POCKET and Path(name).is_dir()


def _pointer(name: str, folder: Path) -> str:
    """A model in a folder is pointed to relative to the bundle; a Hub name (or "pocket") stays as it is."""
    return os.path.relpath(Path(name).resolve(), folder.resolve()) if _is_folder(name) else name


def _resolve(part: dict[str, Any], folder: Path) -> str | Path:
    return (folder / part["name"]).resolve() if part["is_folder"] else str(part["name"])


def _is_inside(name: str | Path, folder: Path) -> bool:
    return name != POCKET and Path(name).exists() and Path(name).resolve().is_relative_to(folder.resolve())


def _write_json(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a bundle.

    Raises:
        MismatchError: Not a bundle, damaged, or of another version.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise MismatchError(f"A bundle is a folder with {CONFIG_FILE}; {folder} has none. Check the path.")
    config = read_json(file, "Restore the bundle.")
    if config.get("format_version") != FORMAT_VERSION:
        raise MismatchError(
            f"{file} must have format_version {FORMAT_VERSION}; it has {config.get('format_version')!r}. "
            "Install the version of dro-rag that wrote it."
        )
    if missing := sorted({"index", "base", "encoder", "adapter", "selector", "generation"} - config.keys()):
        raise MismatchError(f"{file} must describe a whole pipeline, but it has no {missing[0]!r}. Restore the bundle.")
    return config


def _model_card(config: dict[str, Any], report: Sequence[dict[str, Any]]) -> str:
    lines = [
        "---",
        "library_name: dro-rag",
        f"base_model: {config['base']['name']}",
        "tags: [retrieval-augmented-generation, dro, selfaug, lora]",
        "---",
        "# RAG bundle",
        "",
        f"Selector and generator adapters (LoRA, rank {config['adapter']['r']}) over one frozen base, a question "
        "adapter for the retriever, prompts and settings. Open it with `RAG.from_pretrained(folder)`.",
        "",
        f"- base: `{config['base']['name']}`",
        f"- candidates n = {config['selector']['num_candidates']}, selected K = {config['selector']['num_selected']}",
        f"- corpus fingerprint: `{config['index']['corpus_fingerprint'][:16]}`",
    ]
    if report:
        columns = [k for k in ("round", "eval_exact_match", "eval_f1", "ess", "log_marginal") if k in report[-1]]
        lines += ["", "## Training", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for row in report]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
