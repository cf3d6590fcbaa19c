"""What every selector is: a distribution `p_s(z | x)` over ordered K-subsets z of the candidates (arXiv 2505.03075).

A new selector is one class, in any module, registered under the kind by which configurations and bundles name it:

    @SELECTORS.register("nearest")
    class NearestSelector(Selector): ...

It implements `propose`, `log_prob` and `select`, keeps what it learns in `modules` and, where its logits are a weighted
sum, gives `prior_weights` and `components`. The E-step, the M-step, checkpoints, bundles and evaluation use nothing but
this class. `retriever.selectors` holds the registry; `examples/new_selector.py` is a complete one.

Legend: B questions, m permutations each, n candidates, K selected.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from generator.language_model import LanguageModel
from generator.prompts import QuestionPrompt, RankingPrompt
from indexes.errors import DataError, UsageError
from retriever.candidates import Candidates
from retriever.permutations import Permutations, enumerate_permutations
from retriever.retriever import Retriever
from retriever.selector_config import SamplingConfig, SelectorConfig

ROLE = "selector"
"""The adapter of the language model that a selector uses, where it uses one."""


def standardise(scores_n: Tensor) -> Tensor:
    """Scores to mean 0 and standard deviation 1 over the candidates (all equal: all 0), whatever their order."""
    scores_n = scores_n.float()
    # Sums of float32 depend on the order; those of sorted numbers do not depend on that of the candidates.
    sorted_n = scores_n.sort().values
    mean = sorted_n.mean()
    return (scores_n - mean) / (sorted_n - mean).square().mean().clamp_min(1e-12).sqrt()


class Selector(ABC):
    """Selects, draws and scores permutations of candidates.

    Args:
        language_model: The base model; the adapter `"selector"` is the selector's own to train.
        retriever: The retriever that finds the candidates; its scores may be part of log p_s.
        prompt: How question and passages are put to the language model, an instance of `prompt_class`.
        config: Sizes and settings.
        max_tokens_per_batch: Sequences x longest prompt of one forward pass.

    Raises:
        UsageError: The prompt is for selectors of another kind.
    """

    prompt_class: ClassVar[type[RankingPrompt] | type[QuestionPrompt]] = RankingPrompt
    """What this selector's prompt is made of."""
    default_prior_strength: ClassVar[float] = 1.0
    """`SelectorConfig.prior_strength` where that is left to the kind."""
    starts_as_retriever: ClassVar[bool] = True
    """Whether an untrained one ranks as the retriever does."""
    fits_prior_weights_only: ClassVar[bool] = False
    """Whether the prior weights change by the fit over all posteriors only, and never by gradient steps."""

    def __init__(
        self,
        language_model: LanguageModel,
        retriever: Retriever,
        *,
        prompt: RankingPrompt | QuestionPrompt | None = None,
        config: SelectorConfig | None = None,
        max_tokens_per_batch: int = 16384,
    ) -> None:
        self.language_model = language_model
        self.retriever = retriever
        if prompt is not None and not isinstance(prompt, self.prompt_class):
            raise UsageError(
                f"The prompt of a {type(self).__name__} must be a {self.prompt_class.__name__}, got a "
                f"{type(prompt).__name__}. Give the right one as ranking_prompt, or leave it out."
            )
        self.prompt = prompt or self.prompt_class()
        config = config or SelectorConfig()
        strength = self.default_prior_strength if config.prior_strength is None else config.prior_strength
        self.config = replace(config, prior_strength=strength)
        self.prior_strength = strength
        self.max_tokens_per_batch = max_tokens_per_batch
        self.modules = nn.ModuleDict()
        """What training changes besides the adapter `"selector"` and the retriever's question adapter, by name."""

    def __repr__(self) -> str:
        learned = {name: value.item() for name, value in self.state_dict().items() if value.numel() == 1}
        weights = "".join(f", {name}={value:.3g}" for name, value in learned.items())
        return f"{type(self).__name__}({self.config}{weights})"

    # -- the distribution --------------------------------------------------------------------------------------

    @abstractmethod
    def select(self, candidates: Sequence[Candidates]) -> list[Permutations]:
        """The mode by greedy steps: one permutation per question, without gradient."""

    @abstractmethod
    def propose(
        self,
        candidates: Sequence[Candidates],
        sampling: SamplingConfig,
        *,
        generator: torch.Generator | None = None,
    ) -> list[Permutations]:
        """Draws per question, without gradient.

        Args:
            candidates: One set per question.
            sampling: How many permutations, and how they are drawn.
            generator: Of the draws.

        Returns:
            Per question: z, its log-probability under the selector (`log_p`) and under the proposal (`log_q`;
            without replacement the log-probability of being drawn at all, less log m).
        """

    @abstractmethod
    def log_prob(
        self, candidates: Sequence[Candidates], permutations: Sequence[Tensor], *, teach_retriever: bool = True
    ) -> list[Tensor]:
        """Log p_s(z | x) of given permutations, with gradient to everything that learns.

        Args:
            candidates: One set per question.
            permutations: Positions of the selected candidates, per question int64 `[m_b, K]`.
            teach_retriever: False stops the gradient at the retriever's scores.

        Returns:
            Per question float32 `[m_b]`, on the device of the language model.
        """

    @property
    def measures_drift(self) -> bool:
        """Whether `log_prob_and_kl` is there."""
        return False

    def log_prob_and_kl(
        self, candidates: Sequence[Candidates], permutations: Sequence[Tensor], *, teach_retriever: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What `log_prob` returns, and how far each question's first choice is from that of the untrained model.

        The latter is `KL(untrained || this)` of the distributions of the first choice, nats, with gradient; the
        untrained one has the adapter of the language model off and the same prior weights, so it is 0 at first.

        Raises:
            UsageError: This kind of selector has no such comparison.
        """
        raise UsageError(
            f"m_step.selector_kl needs a selector that is compared with its untrained model, such as "
            f"kind='question_likelihood' with its language model; got {type(self).__name__} with use_language_model="
            f"{self.config.use_language_model}. Set m_step.selector_kl=0."
        )

    @torch.no_grad()
    def enumerate(self, candidates: Sequence[Candidates], *, rows_per_pass: int = 64) -> list[Permutations]:
        """Every permutation of every question, as a proposal that is uniform over them (exact mode)."""
        result = []
        for one in candidates:
            self.check(one)
            z_NK = enumerate_permutations(len(one), self.config.num_selected)
            parts = [self.log_prob([one], [part])[0] for part in z_NK.split(rows_per_pass)]
            log_q_N = torch.full((len(z_NK),), -float(torch.tensor(float(len(z_NK))).log()))
            result.append(Permutations(z_NK, torch.cat(parts).cpu(), log_q_N))
        return result

    # -- what learns -------------------------------------------------------------------------------------------

    @property
    def prior_weights(self) -> dict[str, nn.Parameter]:
        """One-element parameters in which the logits of every step are linear, by name; may be empty.

        `training.prior_weights` sets them to their optimum over all posteriors, where gradient steps over a few
        questions would mostly follow noise.
        """
        return {}

    @property
    def start_weights(self) -> dict[str, float]:
        """Where `prior_weights` start in a pipeline that was never trained, for those whose fall is worth a warning."""
        return {}

    def components(self, candidates: Candidates, permutations: Permutations) -> dict[str, Tensor]:
        """What each of the prior weights multiplies, at every step of drawn permutations of one question.

        Returns:
            For each name in `prior_weights` a tensor on the CPU that broadcasts to `[m, K, n]`; the logits are the sum
            of weight times component. Empty where the weights are not to be fitted.
        """
        return {}

    @property
    def uses_retriever_scores(self) -> bool:
        """Whether log p_s depends on the retriever's scores, so that its gradient can reach the question adapter."""
        return False

    def prior_scores(self, candidates: Candidates, *, teach_retriever: bool = True) -> Tensor:
        """Standardised retriever scores `[n]` on the device of the model, for selectors that use them.

        Where the question adapter learns they are computed again through it, with gradient: this is the path by which
        log p_s(z | x) teaches the retriever. Otherwise those of the search are used as they are.
        """
        adapter = self.retriever.adapter
        learning = teach_retriever and torch.is_grad_enabled() and adapter.up.requires_grad
        scores_n = self.retriever.score(candidates) if learning else candidates.scores
        return standardise(scores_n.to(self.language_model.device))

    def retriever_logits(self, scores_n: Tensor) -> Tensor:
        """The retriever's scores as logits `[n]` of a distribution over candidates, on the device of the model.

        Objectives that teach the retriever directly (distillation, REPLUG) use it.
        """
        return standardise(scores_n.to(self.language_model.device))

    def set_trainable(self, trainable: bool) -> None:
        """Let the parameters in `modules` learn, or not."""
        self.modules.requires_grad_(trainable)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What learns in `modules`."""
        return self.modules.parameters()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything learned in `modules`, by name: what checkpoints and bundles hold."""
        return dict(self.modules.state_dict())

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` gave.

        Raises:
            RuntimeError: Names or shapes differ.
        """
        self.modules.load_state_dict(tensors)

    # -- limits ------------------------------------------------------------------------------------------------

    def why_too_long(self, question: str, *, learning: bool = False) -> str | None:
        """Why a question does not fit into the selector's prompts with all passages cut; None where it does.

        Args:
            question: The question.
            learning: Whether the selector is about to learn, and may then read prompts that it does not read now.
        """
        return None

    def check(self, candidates: Candidates, *, learning: bool = False) -> None:
        """Refuse candidates from which this selector cannot select.

        Raises:
            DataError: Fewer than K candidates, or a question that is too long.
            UsageError: More candidates than the selector can tell apart.
        """
        n, k = len(candidates), self.config.num_selected
        if n < k:
            raise DataError(
                f"At least K={k} candidates must be retrieved; question {candidates.question!r} has {n}. "
                "Index more passages or lower num_selected."
            )

    def prompts(self, candidates: Candidates) -> list[list[int]]:
        """Token ids of the prompts that the language model reads for one question; empty where it reads none."""
        return []
