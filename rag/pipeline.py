"""`RAG`: question -> retriever -> selector -> generator -> `Answer`, and its bundle on disk."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor

from generator.chat import ChatConfig
from generator.generator import DecodingConfig, Generator
from generator.language_model import AdapterConfig, LanguageModel
from generator.prompts import AnswerPrompt, RankingPrompt
from indexes.atomic_files import read_json, replace_folder
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import DataError, MismatchError, UsageError, check_on_error
from indexes.tiny_encoder import TINY
from rag.answering.answer import Answer
from rag.answering.answer_mode import AnswerMode
from rag.answering.answer_modes import ANSWER_MODES, PERMUTATION
from rag.hub import bundle_folder, can_be_found_elsewhere
from rag.tiny_base import base_path
from retriever.dense import Candidates, DenseRetriever, QuestionAdapter, Retriever
from retriever.hybrid import BM25Retriever, HybridRetriever
from retriever.selector import Selector, SelectorConfig
from retriever.selectors import config_from_dict, config_to_dict, create_selector
from training.checkpoint import load_learned, write_learned

CONFIG_FILE = "rag_config.json"
LEARNED_FOLDER = "learned"
FORMAT_VERSION = 1
RETRIEVERS = (DenseRetriever.kind, BM25Retriever.kind, HybridRetriever.kind)
_HYBRID_OPTIONS = ("depth", "rrf_k", "weights")

logger = logging.getLogger(__name__)


class RAG:
    """A retriever, a selector and a generator over one base model.

    Use `RAG.create` for a new pipeline and `RAG.from_pretrained` for a saved one.

    Args:
        retriever: Question to candidates.
        selector: Candidates to a permutation.
        generator: Passages to an answer; shares the selector's language model.
        answering: The answer mode: "permutation" reads the selector's permutation in one prompt, "rag_sequence" and
            "rag_token" marginalise over single documents (`rag.answering`). A bundle records it.

    Raises:
        UsageError: Selector and generator have different language models, or `answering` is unknown, or sums over
            single documents with a selector that picks more.
    """

    def __init__(
        self, retriever: Retriever, selector: Selector, generator: Generator, *, answering: str = PERMUTATION
    ) -> None:
        if selector.language_model is not generator.language_model:
            raise UsageError(
                "Selector and generator must share one LanguageModel (two adapters on one base, trained and saved "
                "together); two different ones came. Hand the same object to both."
            )
        self.retriever = retriever
        self.selector = selector
        self.generator = generator
        self._answer_mode = ANSWER_MODES.get(answering)(retriever, selector, generator)

    @classmethod
    def create(
        cls,
        *,
        index: str | Path | PassageIndex,
        base: str | Path = TINY,
        encoder: str | Path | Encoder | None = None,
        retriever: str | Mapping[str, Any] = DenseRetriever.kind,
        selector: SelectorConfig | None = None,
        generation: DecodingConfig | None = None,
        adapter: AdapterConfig | None = None,
        answer_prompt: AnswerPrompt | None = None,
        ranking_prompt: RankingPrompt | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        quantization: str | None = None,
        context_length: int | None = None,
        trust_remote_code: bool = False,
        answering: str = PERMUTATION,
        chat: ChatConfig | None = None,
    ) -> "RAG":
        """A new, untrained pipeline: it ranks as the retriever does and answers as the base model does.

        Args:
            index: Index directory, or an opened index.
            base: Causal LM: a Hub name, a folder, or "tiny" for the tiny model inside this package.
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
            chat: What the base's chat template is given, and how thoughts are told from answers.

        Raises:
            MismatchError: The encoder did not build this index, or the index is damaged.
            ResourceError: Base or encoder cannot be loaded.
            UsageError: K > n, an unknown retriever, and the like.
        """
        opened = index if isinstance(index, PassageIndex) else PassageIndex.open(index)
        used = encoder_of(opened, encoder, device=device, trust_remote_code=trust_remote_code)
        finder = retriever_of(opened, used, retriever)
        model = load_language_model(
            base,
            adapter=adapter,
            revision=revision,
            dtype=dtype,
            device=device,
            quantization=quantization,
            context_length=context_length,
            chat=chat,
            trust_remote_code=trust_remote_code,
        )
        finder.adapter.to(model.device)
        return cls(
            finder,
            create_selector(selector or SelectorConfig(), model, finder, prompt=ranking_prompt),
            Generator(model, prompt=answer_prompt, config=generation),
            answering=answering,
        )

    @property
    def answer_mode(self) -> AnswerMode:
        """How answers are produced from candidates; fixed at construction."""
        return self._answer_mode

    @property
    def answering(self) -> str:
        """How an answer comes about: "permutation", "rag_sequence" or "rag_token"; fixed when the pipeline is made."""
        return self._answer_mode.kind

    @property
    def num_candidates(self) -> int:
        """n, the number of candidates that the selector reads."""
        return self.selector.config.num_candidates

    # -- answering ---------------------------------------------------------------------------------------------

    def why_too_long(self, question: str) -> str | None:
        """Why a question is too long for the model's context; None where it fits.

        Passages are cut, down to nothing, where a prompt is too long, and the question never is: so this depends on the
        question alone. A selector that does not use its language model, as its gate is 0, reads no prompt.
        """
        return self._answer_mode.why_too_long(question)

    @overload
    def answer(self, question: str, *, on_error: str = "raise", log_prob: bool = True) -> Answer: ...  # type: ignore[overload-overlap]
    @overload
    def answer(
        self, question: Sequence[str], *, on_error: Literal["raise"] = "raise", log_prob: bool = True
    ) -> list[Answer]: ...
    @overload
    def answer(self, question: Sequence[str], *, on_error: str, log_prob: bool = True) -> list[Answer | None]: ...

    def answer(self, question: str | Sequence[str], *, on_error: str = "raise", log_prob: bool = True) -> Any:
        """Answer one question or several (batched); an answer does not depend on what else is asked.

        Args:
            question: One question, or several.
            on_error: Of several questions, what becomes of one that is empty or does not fit the model's context:
                "raise" refuses all of them before any is answered, "skip" leaves None in its place, with a warning.
                A single question that cannot be answered is an error either way.
            log_prob: Whether answers get their `log_prob`. It comes from the pass that generates where it can
                (`Generator.log_probs_of_generated` says where not); False saves the second pass of the others. Answers
                that are summed over single documents have it anyway, since they are chosen by it.

        Raises:
            DataError: An empty question, or one that does not fit the context.
            UsageError: Another `on_error`.
        """
        check_on_error(on_error)
        if isinstance(question, str):
            return self._answers([question], "raise", log_prob)[0]
        return self._answers(list(question), on_error, log_prob)

    def _answers(self, questions: list[str], on_error: str, log_prob: bool) -> list[Answer | None]:
        reasons = [self._why_not_asked(question) for question in questions]
        if any(reasons):
            if on_error == "raise":
                raise _cannot_be_asked(reasons)
            logger.warning("Left out: %s", _cannot_be_asked(reasons))
        asked = [q for q, reason in zip(questions, reasons, strict=True) if reason is None]
        candidates = self.retriever.search(asked, self.num_candidates) if asked else []
        answers = iter(self.answer_from(candidates, log_prob=log_prob) if asked else [])
        return [next(answers) if reason is None else None for reason in reasons]

    def _why_not_asked(self, question: str) -> str | None:
        return self.why_too_long(question) if question.strip() else "it is empty"

    def answer_from(self, candidates: Sequence[Candidates], *, log_prob: bool = True) -> list[Answer]:
        """Answers from candidates that are already retrieved; `log_prob` as in `answer`."""
        return self._answer_mode.answer_from(candidates, log_prob=log_prob)

    def stream(self, question: str) -> Iterator[str]:
        """The answer to one question, piece by piece (in one piece where it is not read from one prompt).

        Raises:
            DataError: As `answer`, before the first piece.
        """
        if reason := self._why_not_asked(question):
            raise _cannot_be_asked([reason])
        yield from self._answer_mode.stream(self.retriever.search(question, self.num_candidates))

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
            MismatchError: The index is gone, or the copy of the base, read back, has other weights.
            UsageError: `folder` is a file, or holds something that is not a bundle.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"A bundle is a folder, and {folder} is a file. Choose another place.")
        if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file():
            raise UsageError(f"A bundle needs a new or empty folder; {folder} already holds something else.")
        if not self.retriever.index.path.is_dir():
            raise MismatchError(
                f"The index of a bundle must be where it was opened, but {self.retriever.index.path} is gone. Open the "
                "index again."
            )
        include_index |= _is_inside(self.retriever.index.path, folder)
        include_encoder |= _is_inside(self.retriever.encoder.name, folder)
        include_base |= _is_inside(self.generator.language_model.name, folder)
        config = self._config(folder, include_index, include_encoder, include_base)
        self._write_bundle(folder, config, report)
        return folder

    def _write_bundle(self, folder: Path, config: dict[str, Any], report: Sequence[dict[str, Any]] = ()) -> None:
        """Write a bundle with the parts that its configuration says are inside."""

        def write(partial: Path) -> None:
            write_learned(self.selector, partial / LEARNED_FOLDER)
            _write_json(partial / CONFIG_FILE, config)
            if config["index"]["path"] == "index":
                shutil.copytree(self.retriever.index.path, partial / "index")
            if _is_copy(config["encoder"], "encoder"):
                self.retriever.encoder.save_pretrained(partial / "encoder")
            if _is_copy(config["base"], "base"):
                # The adapters are beside it, and selector, generator and the reference of SelfAug need it unmerged.
                self.generator.language_model.save_base(partial / "base")
            (partial / "README.md").write_text(_model_card(config, report), encoding="utf-8")

        replace_folder(folder, write)

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
                "dtype": model.dtype_name(),
                "quantization": model.quantization,
                "context_length": model.context_length,
                "trust_remote_code": model.trust_remote_code,
            },
            "adapter": asdict(model.adapter),
            "selector": config_to_dict(self.selector.config),
            "generation": asdict(self.generator.config),
            "chat": asdict(model.chat.config),
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
                "revision": None if encoder else self.retriever.encoder.revision,
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
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> "RAG":
        """Open a bundle; it answers as it did when it was saved.

        Args:
            folder: What `save_pretrained` wrote, or the id of a repository that `push_to_hub` filled; a folder of that
                name always wins.
            index: Use this index instead of the one the bundle points to (same corpus required).
            encoder: Use this copy of the encoder.
            dtype: As in `create`; "auto" is what it was saved with.
            device: As in `create`.
            quantization: As in `create`; default: what it was saved with.
            revision: Branch, tag or commit of the bundle's repository.
            token: Access token of the Hub; None takes the one that is logged in.
            cache_dir: Where snapshots of the Hub are kept; default: its cache (HF_HOME).
            local_files_only: Take the repository from the cache, without the network.
            trust_remote_code: As in `create`; what the bundle records about it does not count.

        Raises:
            MismatchError: Not a bundle, damaged, or an index of another corpus.
            ResourceError: The bundle, its base or its encoder cannot be found.
            UsageError: The bundle was uploaded without its index, and none is given; or a revision of a local folder.
        """
        given = {"index": index, "encoder": encoder}
        folder = bundle_folder(
            folder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            leave_out=[part for part, value in given.items() if value is not None],
        )
        config = read_config(folder)
        where = index if index is not None else _index_path(config, folder)
        opened = where if isinstance(where, PassageIndex) else PassageIndex.open(where)
        if encoder is None:
            encoder = _encoder_of_bundle(config, folder, opened, device=device, trust_remote_code=trust_remote_code)
        rag = cls.create(
            index=opened,
            encoder=encoder,
            retriever=config.get("retriever", DenseRetriever.kind),  # bundles were dense before they said so
            selector=config_from_dict(config["selector"]),
            generation=DecodingConfig(**config["generation"]),
            answer_prompt=AnswerPrompt(**config["answer_prompt"]),
            ranking_prompt=RankingPrompt(**config["ranking_prompt"]),
            answering=config.get("answering", PERMUTATION),  # bundles selected before they said so
            **_model_settings(
                config,
                folder,
                dtype=dtype,
                device=device,
                quantization=quantization,
                trust_remote_code=trust_remote_code,
            ),
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

    def push_to_hub(
        self,
        repo_id: str,
        *,
        include_index: bool | None = None,
        include_encoder: bool = False,
        include_base: bool = False,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a RAG bundle",
        create_pr: bool = False,
    ) -> str:
        """Upload the bundle to the Hugging Face Hub; `from_pretrained(repo_id)` opens it anywhere.

        Nothing that is uploaded points to a folder of this machine: a part that only this machine has must be included.

        Args:
            repo_id: "user/name"; made if it is not there.
            include_index: True uploads the index. False leaves it out on purpose: whoever opens the bundle must then
                give an index of the same corpus. None refuses, because an index is always a local folder.
            include_encoder: Upload the encoder; else it must be on the Hub, or "tiny".
            include_base: Upload the base; else it must be on the Hub, or "tiny".
            private: Whether a new repository is private; None takes the default of the organisation.
            token: Access token; None takes the one that is logged in.
            revision: Branch to commit to, made if it is not there; default: the main branch.
            commit_message: Of the commit.
            create_pr: Open a pull request instead.

        Returns:
            The address of the commit.

        Raises:
            UsageError: A part that only this machine has is not included.
        """
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        self._check_parts_travel(include_index, include_encoder, include_base)
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        with TemporaryDirectory() as work:
            bundle = Path(work) / "bundle"
            config = self._config(bundle, bool(include_index), include_encoder, include_base)
            if not include_index:
                config["index"]["path"] = None
            self._write_bundle(bundle, config)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=str(bundle),
                revision=revision,
                commit_message=commit_message,
                create_pr=create_pr,
                # A commit replaces the bundle as a whole: files of an earlier one would not belong to this one.
                delete_patterns=["learned/**", "index/**", "encoder/**", "base/**"],
            )
        return str(commit)

    def _check_parts_travel(self, index: bool | None, encoder: bool, base: bool) -> None:
        """Refuse a bundle that would point to a folder of this machine."""
        names = {"encoder": (encoder, self.retriever.encoder.name)}
        names["base"] = (base, self.generator.language_model.name)
        for part, (included, name) in names.items():
            if not (included or can_be_found_elsewhere(name)):
                raise UsageError(
                    f"What is uploaded must be complete elsewhere, but the {part} is only here ({name or 'unnamed'}). "
                    f"Upload it too with include_{part}=True, or use one from the Hub."
                )
        if index is None:
            raise UsageError(
                f"What is uploaded must be complete elsewhere, but the index is only here "
                f"({self.retriever.index.path}). Upload it too with include_index=True, or leave it out with "
                "include_index=False: whoever opens the bundle must then give one of the same corpus."
            )


def load_generator(
    folder: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    quantization: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    trust_remote_code: bool = False,
) -> Generator:
    """The language model of a bundle with both adapters, without its index and encoder: for what asks no question.

    Args:
        folder: What `RAG.save_pretrained` wrote, or the id of a repository on the Hub.
        dtype: As in `RAG.from_pretrained`.
        device: As in `RAG.from_pretrained`.
        quantization: As in `RAG.from_pretrained`.
        revision: As in `RAG.from_pretrained`.
        token: As in `RAG.from_pretrained`.
        cache_dir: As in `RAG.from_pretrained`.
        local_files_only: As in `RAG.from_pretrained`.
        trust_remote_code: As in `RAG.from_pretrained`.

    Raises:
        MismatchError: Not a bundle, or damaged.
        ResourceError: The bundle or its base cannot be found.
        UsageError: A revision of a local folder.
    """
    folder = bundle_folder(
        folder,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        leave_out=("index", "encoder"),
    )
    config = read_config(folder)
    settings = _model_settings(
        config, folder, dtype=dtype, device=device, quantization=quantization, trust_remote_code=trust_remote_code
    )
    model = load_language_model(**settings)
    model.load_adapters(folder / LEARNED_FOLDER)
    return Generator(
        model, prompt=AnswerPrompt(**config["answer_prompt"]), config=DecodingConfig(**config["generation"])
    )


def load_language_model(base: str | Path, **settings: Any) -> LanguageModel:
    """The language model of a base: a Hub name, a folder or "tiny"; the rest as `LanguageModel.from_pretrained`."""
    model = LanguageModel.from_pretrained(base_path(base), **settings)
    # "tiny" means the same everywhere, and its folder does not; any other folder must be found when the process has
    # changed its directory.
    model.name = str(Path(base).absolute()) if _is_folder(str(base)) else str(base)
    return model


def _model_settings(
    config: Mapping[str, Any],
    folder: Path,
    *,
    dtype: str,
    device: str | None,
    quantization: str | None,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """What `load_language_model` is given for the configuration of a bundle, and what its user asks instead."""
    base = config["base"]
    return {
        "base": _resolve(base, folder),
        "adapter": AdapterConfig(**config["adapter"]),
        "revision": base["revision"],
        "dtype": base["dtype"] if dtype == "auto" else dtype,
        "device": device,
        "quantization": quantization or base["quantization"],
        "context_length": base.get("context_length"),  # bundles took what the base states before they said so
        "chat": ChatConfig(**config.get("chat", {})),  # bundles before that had no such settings
        "trust_remote_code": trust_remote_code,
    }


def _encoder_of_bundle(
    config: Mapping[str, Any], folder: Path, index: PassageIndex, *, device: str | None, trust_remote_code: bool
) -> Encoder:
    """The encoder that a bundle names, at its revision."""
    part = config["encoder"]
    return index.manifest.encoder.load(
        _resolve(part, folder),
        revision=part.get("revision"),  # bundles before that did not say; the index does, for a name that is its own
        device=device,
        trust_remote_code=trust_remote_code,
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


def _cannot_be_asked(reasons: Sequence[str | None]) -> DataError:
    """What is wrong with the questions that have a reason, numbered from 1."""
    found = [(number, reason) for number, reason in enumerate(reasons, 1) if reason is not None]
    several = f"{len(found)} of {len(reasons)} do not (number {', '.join(str(number) for number, _ in found[:20])})"
    which, advice = ("this one does not", "") if len(reasons) == 1 else (several, ", or leave it out with on_error")
    return DataError(
        "A question must hold at least one visible character and fit into the model's context beside passages that are "
        f"cut to nothing; {which}: {found[0][1]}. Shorten the question, use fewer passages, take a model with a longer "
        f"context{advice}."
    )


def _index_path(config: Mapping[str, Any], folder: Path) -> Path:
    if (path := config["index"]["path"]) is None:
        raise UsageError(
            f"The bundle {folder} was uploaded without its index. Give one of the same corpus, whose fingerprint is "
            f"{config['index']['corpus_fingerprint'][:16]}, with index=... (--index DIR)."
        )
    return folder / str(path)


def _is_copy(part: Mapping[str, Any], name: str) -> bool:
    """Whether a bundle holds this part itself, in the folder of its own that is called so."""
    return bool(part["is_folder"]) and part["name"] == name


def _is_folder(name: str) -> bool:
    return name != TINY and Path(name).is_dir()


def _pointer(name: str, folder: Path) -> str:
    """A model in a folder is pointed to relative to the bundle; a Hub name (or "tiny") stays as it is."""
    return os.path.relpath(Path(name).resolve(), folder.resolve()) if _is_folder(name) else name


def _resolve(part: Mapping[str, Any], folder: Path) -> str | Path:
    return (folder / part["name"]).resolve() if part["is_folder"] else str(part["name"])


def _is_inside(name: str | Path, folder: Path) -> bool:
    return name != TINY and Path(name).exists() and Path(name).resolve().is_relative_to(folder.resolve())


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
    arguments = "folder" if config["index"]["path"] else "folder, index=an_index_of_this_corpus"
    lines = [
        "---",
        "library_name: dro-rag",
        f"base_model: {config['base']['name']}",
        "tags: [retrieval-augmented-generation, dro, selfaug, lora]",
        "---",
        "# RAG bundle",
        "",
        f"Selector and generator adapters (LoRA, rank {config['adapter']['r']}) over one frozen base, a question "
        f"adapter for the retriever, prompts and settings. Open it with `RAG.from_pretrained({arguments})`.",
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
