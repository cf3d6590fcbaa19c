"""`RAG`: question -> retriever -> selector -> generator -> `Answer`."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, overload

from generator.architecture_findings import ArchitectureFindings
from generator.configs import AdapterConfig, ChatConfig, DecodingConfig, ModelConfig, ModelOptions
from generator.generator import Generator
from generator.prompts import AnswerPrompt, QuestionPrompt, RankingPrompt
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import DataError, UsageError, check_on_error
from indexes.tiny_encoder import TINY
from rag.answering.answer import Answer
from rag.answering.answer_mode import AnswerMode
from rag.answering.answer_modes import PERMUTATION, answer_mode_to_dict, create_answer_mode
from rag.bundle import base_config, bundled_encoder, bundled_index, load_weights, push_bundle, read_config, save_bundle
from rag.hub import bundle_folder
from rag.model_loading import load_language_model
from retriever.candidates import Candidates
from retriever.dense import DenseRetriever
from retriever.retriever import Retriever
from retriever.retrievers import create_retriever
from retriever.selector import Selector
from retriever.selector_config import SelectorConfig
from retriever.selectors import create_selector

logger = logging.getLogger(__name__)


class RAG:
    """A retriever, a selector and a generator over one base model.

    Use `RAG.create` for a new pipeline and `RAG.from_pretrained` for a saved one.

    Args:
        retriever: Question to candidates.
        selector: Candidates to a permutation.
        generator: Passages to an answer; shares the selector's language model.
        answer_mode: How answers are produced from candidates, a kind of `ANSWER_MODES`: "permutation" generates from
            the selector's whole permutation, "rag_sequence" and "rag_token" marginalise over single documents; or a
            mapping with "kind" and options. Fixed at construction; a bundle records it.

    Raises:
        UsageError: Selector and generator have different language models, `answer_mode` is unknown or its options are,
            or it reads single documents and the selector selects more.
    """

    def __init__(
        self,
        retriever: Retriever,
        selector: Selector,
        generator: Generator,
        *,
        answer_mode: str | Mapping[str, Any] = PERMUTATION,
    ) -> None:
        if selector.language_model is not generator.language_model:
            raise UsageError(
                "Selector and generator must share one LanguageModel (two adapters on one base model, trained and "
                "saved together), got two. Pass the same object to both."
            )
        self._answer_mode = create_answer_mode(answer_mode, retriever, selector, generator)

    @classmethod
    def create(
        cls,
        *,
        index: str | Path | PassageIndex,
        base: str | Path | ModelConfig = TINY,
        encoder: str | Path | Encoder | None = None,
        retriever: str | Mapping[str, Any] = DenseRetriever.kind,
        selector: SelectorConfig | None = None,
        decoding: DecodingConfig | None = None,
        adapter: AdapterConfig | None = None,
        answer_prompt: AnswerPrompt | None = None,
        ranking_prompt: RankingPrompt | QuestionPrompt | None = None,
        answer_mode: str | Mapping[str, Any] = PERMUTATION,
        chat: ChatConfig | None = None,
        **model_options: Unpack[ModelOptions],
    ) -> "RAG":
        """A new, untrained pipeline: it answers as the base model does, and ranks as the retriever does.

        With `SelectorConfig(kind="question_likelihood")` it ranks by the retriever and by what the base knows.

        Args:
            index: Index directory, or an opened index.
            base: Causal LM: a Hub id, a folder, a GGUF file, "tiny" for the built-in tiny model, or a
                `ModelConfig`.
            encoder: The encoder that built the index; default: the one its manifest names.
            retriever: How candidates are found: "dense", "bm25" or "hybrid", or a mapping with that as its "kind" and
                options of the class, {"kind": "hybrid", "depth": 200}.
            selector: Kind of the selector, n, K, decoding, prior.
            decoding: How answers are decoded.
            adapter: LoRA settings.
            answer_prompt: Replaces the paper's answer prompt.
            ranking_prompt: Replaces the prompt by which the selector ranks: the paper's `RankingPrompt` of the
                list-wise selector, or the `QuestionPrompt` of that by question likelihood.
            answer_mode: As for the class.
            chat: What the base model's chat template is given, and how reasoning is separated from answers.
            model_options: Fields of `ModelConfig` in place of a `ModelConfig`: `revision`, `dtype`, `device`,
                `quantization`, `context_length`, `trust_remote_code`. The device and `trust_remote_code` hold for the
                encoder too.

        Raises:
            MismatchError: The encoder did not build this index, or the index is damaged.
            ResourceError: Base model or encoder cannot be loaded.
            UsageError: K > n, an unknown retriever, options in addition to a `ModelConfig`, and the like.
        """
        return cls._create(
            _model_config(base, model_options),
            None,
            index=index,
            encoder=encoder,
            retriever=retriever,
            selector=selector,
            decoding=decoding,
            adapter=adapter,
            answer_prompt=answer_prompt,
            ranking_prompt=ranking_prompt,
            answer_mode=answer_mode,
            chat=chat,
        )

    @classmethod
    def _create(
        cls,
        config: ModelConfig,
        findings: ArchitectureFindings | None,
        *,
        index: str | Path | PassageIndex,
        encoder: str | Path | Encoder | None,
        retriever: str | Mapping[str, Any],
        selector: SelectorConfig | None,
        decoding: DecodingConfig | None,
        adapter: AdapterConfig | None,
        answer_prompt: AnswerPrompt | None,
        ranking_prompt: RankingPrompt | QuestionPrompt | None,
        answer_mode: str | Mapping[str, Any],
        chat: ChatConfig | None,
    ) -> "RAG":
        """As `create`; `findings` are those of an earlier pipeline over this base."""
        opened = index if isinstance(index, PassageIndex) else PassageIndex.open(index)
        trust = config.trust_remote_code
        # Not checked here: the retriever compares the fingerprint, which reads all weights.
        used = opened.load_encoder(encoder, device=config.device, trust_remote_code=trust, check=False)
        found = create_retriever(opened, used, retriever)
        model = load_language_model(config, adapter=adapter, chat=chat, findings=findings)
        found.adapter.to(model.device)
        return cls(
            found,
            create_selector(selector or SelectorConfig(), model, found, prompt=ranking_prompt),
            Generator(model, prompt=answer_prompt, config=decoding),
            answer_mode=answer_mode,
        )

    @property
    def retriever(self) -> Retriever:
        """Question to candidates; fixed at construction, as are the other parts."""
        return self._answer_mode.retriever

    @property
    def selector(self) -> Selector:
        """Candidates to a permutation."""
        return self._answer_mode.selector

    @property
    def generator(self) -> Generator:
        """Passages to an answer."""
        return self._answer_mode.generator

    @property
    def answer_mode(self) -> AnswerMode:
        """How answers are produced from candidates."""
        return self._answer_mode

    @property
    def num_candidates(self) -> int:
        """n, the number of candidates that the selector reads."""
        return self.selector.config.num_candidates

    def __repr__(self) -> str:
        index, config, model = self.retriever.index, self.selector.config, self.generator.language_model
        return (
            f"RAG(base={model.name!r}, index={str(index.path)!r} with {len(index):,} passages, "
            f"retriever={self.retriever.kind!r}, num_candidates={config.num_candidates}, "
            f"num_selected={config.num_selected}, answer_mode={self.answer_mode.kind!r}, device={str(model.device)!r})"
        )

    # -- answering ---------------------------------------------------------------------------------------------

    def why_too_long(self, question: str) -> str | None:
        """Why a question does not fit the model's context; None if it fits. See `AnswerMode.why_too_long`."""
        return self._answer_mode.why_too_long(question)

    @overload
    def answer(  # type: ignore[overload-overlap]
        self,
        question: str,
        *,
        k: int | None = None,
        decoding: DecodingConfig | None = None,
        on_error: str = "raise",
        log_prob: bool = True,
    ) -> Answer: ...
    @overload
    def answer(
        self,
        question: Sequence[str],
        *,
        k: int | None = None,
        decoding: DecodingConfig | None = None,
        on_error: Literal["raise"] = "raise",
        log_prob: bool = True,
    ) -> list[Answer]: ...
    @overload
    def answer(
        self,
        question: Sequence[str],
        *,
        k: int | None = None,
        decoding: DecodingConfig | None = None,
        on_error: str,
        log_prob: bool = True,
    ) -> list[Answer | None]: ...

    def answer(
        self,
        question: str | Sequence[str],
        *,
        k: int | None = None,
        decoding: DecodingConfig | None = None,
        on_error: str = "raise",
        log_prob: bool = True,
    ) -> Any:
        """Answer one question or several (batched); an answer does not depend on what else is asked.

        Args:
            question: One question, or several.
            k: Passages that the answer is generated from, for this call: K of a permutation, or the documents that
                "rag_sequence" and "rag_token" marginalise over. None: as the pipeline is configured.
            decoding: How answers are decoded, for this call. None: as the pipeline is configured.
            on_error: For several questions, what to do with one that is empty or does not fit the model's context:
                "raise" refuses all of them before any is answered, "skip" puts None in its place, with a warning.
                A single question that cannot be answered is always an error.
            log_prob: Whether answers get their `log_prob`. It comes from the pass that generates them
                (`Generator.complete_scored`), so False saves little. Modes that choose answers by their probability
                fill it in either way.

        Raises:
            DataError: An empty question, or one that does not fit the context.
            UsageError: Another `on_error`, or a k that the selector cannot select.
        """
        check_on_error(on_error)
        mode = self._mode_for(k, decoding)
        if isinstance(question, str):
            return self._answers(mode, [question], "raise", log_prob)[0]
        return self._answers(mode, list(question), on_error, log_prob)

    def _mode_for(self, k: int | None, decoding: DecodingConfig | None) -> AnswerMode:
        """The answer mode of one call: over copies with other settings, which share all weights."""
        if k is None and decoding is None:
            return self._answer_mode
        selector, generator = copy.copy(self.selector), copy.copy(self.generator)
        if k is not None:
            selector.config = self._answer_mode.config_for(k)
        if decoding is not None:
            generator.config = decoding
        return create_answer_mode(answer_mode_to_dict(self._answer_mode), self.retriever, selector, generator)

    def _answers(self, mode: AnswerMode, questions: list[str], on_error: str, log_prob: bool) -> list[Answer | None]:
        reasons = [_why_not_answerable(mode, question) for question in questions]
        if any(reasons):
            if on_error == "raise":
                raise _cannot_be_answered(reasons)
            logger.warning("Left out: %s", _cannot_be_answered(reasons))
        asked = [q for q, reason in zip(questions, reasons, strict=True) if reason is None]
        found = self.retriever.search(asked, mode.selector.config.num_candidates) if asked else []
        answers = iter(mode.answer_from(found, log_prob=log_prob) if asked else [])
        return [next(answers) if reason is None else None for reason in reasons]

    def answer_from(self, candidates: Sequence[Candidates], *, log_prob: bool = True) -> list[Answer]:
        """Answers from candidates that are already retrieved; `log_prob` as in `answer`."""
        return self._answer_mode.answer_from(candidates, log_prob=log_prob)

    def stream(self, question: str, *, k: int | None = None, decoding: DecodingConfig | None = None) -> Iterator[str]:
        """The answer to one question in pieces (in one piece, unless the answer mode generates from one prompt).

        Args:
            question: One question.
            k: As in `answer`.
            decoding: As in `answer`.

        Raises:
            DataError: As `answer`, before the first piece.
        """
        mode = self._mode_for(k, decoding)
        if reason := _why_not_answerable(mode, question):
            raise _cannot_be_answered([reason])
        yield from mode.stream(self.retriever.search(question, mode.selector.config.num_candidates))

    # -- the bundle --------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        include_index: bool = False,
        include_encoder: bool = False,
        include_base: bool = False,
        report: Sequence[Mapping[str, Any]] = (),
    ) -> Path:
        """Write a bundle: adapters, question adapter, prompts, config and a model card.

        Index, encoder and base model are pointed to by default and copied on request; with all three the bundle
        answers on another machine without a network. Parts that are already in `folder` stay in it.

        Args:
            folder: New, empty, or an earlier bundle (replaced).
            include_index: Copy the index into the bundle.
            include_encoder: Copy the encoder into the bundle.
            include_base: Copy weights and tokenizer of the base model into the bundle.
            report: Training history for the model card.

        Returns:
            The folder.

        Raises:
            MismatchError: The index is gone, or the copy of the base model, read back, has other weights.
            UsageError: `folder` is a file, or holds something that is not a bundle.
        """
        folder = Path(folder)
        save_bundle(
            self,
            folder,
            include_index=include_index,
            include_encoder=include_encoder,
            include_base=include_base,
            report=report,
        )
        return folder

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
                name takes precedence.
            index: Use this index instead of the one the bundle points to (same corpus required).
            encoder: Use this copy of the encoder.
            dtype: As in `ModelConfig`; "auto" is what it was saved with.
            device: As in `ModelConfig`.
            quantization: As in `ModelConfig`; default: what it was saved with.
            revision: Branch, tag or commit of the bundle's repository.
            token: Access token of the Hub; None takes the one that is logged in.
            cache_dir: Where snapshots of the Hub are kept; default: its cache (HF_HOME).
            local_files_only: Take the repository from the cache, without the network.
            trust_remote_code: As in `ModelConfig`; what the bundle records about it is ignored.

        Raises:
            MismatchError: Not a bundle, damaged, or an index of another corpus.
            ResourceError: The bundle, its base model or its encoder cannot be found.
            UsageError: The bundle was uploaded without its index, and none is given; a revision of a local folder; or a
                part of an unregistered kind.
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
        opened = bundled_index(config, folder, index)
        base = base_config(
            config,
            folder,
            dtype=dtype,
            device=device,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
        )
        if encoder is None:
            encoder = bundled_encoder(config, folder, opened, device=device, trust_remote_code=trust_remote_code)
        rag = cls._create(
            base,
            config.findings,
            index=opened,
            encoder=encoder,
            retriever=config.retriever,
            selector=config.selector,
            decoding=config.decoding,
            adapter=config.adapter,
            answer_prompt=config.answer_prompt,
            ranking_prompt=config.ranking_prompt,
            answer_mode=config.answer_mode,
            chat=config.chat,
        )
        load_weights(rag, config, folder)
        return rag

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

        Nothing that is uploaded points to a folder of this machine: a part that exists only here must be included.

        Args:
            repo_id: "user/name"; created if it does not exist.
            include_index: True uploads the index. False leaves it out on purpose: then an index of the same corpus must
                be given to open the bundle. None is refused, because an index is always a local folder.
            include_encoder: Upload the encoder; otherwise it must be on the Hub, or "tiny".
            include_base: Upload the base model; otherwise it must be on the Hub, or "tiny".
            private: Whether a new repository is private; None takes the default of the organisation.
            token: Access token; None takes the one that is logged in.
            revision: Branch to commit to, created if it does not exist; default: the main branch.
            commit_message: Of the commit.
            create_pr: Open a pull request instead.

        Returns:
            The address of the commit.

        Raises:
            UsageError: A part that exists only on this machine is not included.
        """
        return push_bundle(
            self,
            repo_id,
            include_index=include_index,
            include_encoder=include_encoder,
            include_base=include_base,
            private=private,
            token=token,
            revision=revision,
            commit_message=commit_message,
            create_pr=create_pr,
        )


def _model_config(base: str | Path | ModelConfig, options: ModelOptions) -> ModelConfig:
    if not isinstance(base, ModelConfig):
        return ModelConfig(name=str(base), **options)
    if options:
        raise UsageError(
            f"A base=ModelConfig(...) has all settings of the base model, got {sorted(options)} in addition. "
            "Set them in the ModelConfig."
        )
    return base


def _why_not_answerable(mode: AnswerMode, question: str) -> str | None:
    return mode.why_too_long(question) if question.strip() else "it is empty"


def _cannot_be_answered(reasons: Sequence[str | None]) -> DataError:
    """What is wrong with the questions that have a reason, numbered from 1."""
    found = [(number, reason) for number, reason in enumerate(reasons, 1) if reason is not None]
    several = f"{len(found)} of {len(reasons)} do not (number {', '.join(str(number) for number, _ in found[:20])})"
    which, advice = ("this one does not", "") if len(reasons) == 1 else (several, ", or leave it out with on_error")
    return DataError(
        "A question must hold at least one visible character and fit into the model's context together with passages "
        f"that are truncated to nothing; {which}: {found[0][1]}. Shorten the question, use fewer passages, or take a "
        f"model with a longer context{advice}."
    )
