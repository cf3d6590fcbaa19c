"""Settings of selectors, as dataclasses.

This module imports neither torch nor transformers, so that `--help` and argument errors of the command line are fast.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Self

from indexes.errors import UsageError

DECODINGS = ("autoregressive", "single_pass")
QUESTION_LIKELIHOOD = "question_likelihood"
"""A kind of selector."""


@dataclass(frozen=True, kw_only=True)
class SelectorConfig:
    """Which selector, and its settings."""

    kind: str = "listwise"
    """The selector's name in `retriever.selectors.SELECTORS`. `"listwise"`: the language model reads all candidates and
    names K. `"question_likelihood"`: it reads each by itself, and says how probable the question is after it."""
    num_candidates: int = 20
    """n: candidates the retriever hands over. More raises recall and prompt length."""
    num_selected: int = 5
    """K: passages that reach the generator, in order."""
    decoding: str = "autoregressive"
    """Of `"listwise"`. `"autoregressive"`: each id conditions on the ids before it (the paper). `"single_pass"`: one
    prefill, its id logits are Plackett-Luce scores; faster, but cannot say "given C, A adds nothing"."""
    identifiers: str = "letters"
    """Of `"listwise"`: `"letters"` (A..T) or `"numbers"` (as the paper writes them; few tokenizers have 20 in single
    tokens)."""
    use_prior: bool = True
    """Add the retriever's scores to the language model's logits. False leaves them out: the language model alone, as in
    the paper."""
    use_language_model: bool = True
    """False ranks by the retriever's scores alone, as pipelines without a selector do: no language model is asked, and
    what learns is the weight of the scores and the retriever's question side."""
    prior_strength: float | None = None
    """Where the learned weight of the standardised retriever scores starts. None: as the kind has it, 1 for
    `"listwise"`, which keeps the first samples diverse, and 0.43 for `"question_likelihood"`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further settings that only one kind has, by name, ready for JSON: those of `"question_likelihood"` are the fields
    of `QuestionLikelihoodOptions`, `"listwise"` has none."""

    def __post_init__(self) -> None:
        check_selection(self.num_candidates, self.num_selected)
        if self.decoding not in DECODINGS:
            raise UsageError(f"decoding must be one of {list(DECODINGS)}, got {self.decoding!r}.")
        if not (self.use_prior or self.use_language_model):
            raise UsageError(
                "A selector must use the retriever's scores or the language model, but use_prior and "
                "use_language_model are both false. Set one of them."
            )
        if self.prior_strength is not None and not _is_positive(self.prior_strength):
            raise UsageError(
                "prior_strength must be a positive, finite number (0 would ignore the retriever), got "
                f"{self.prior_strength!r}. Use use_prior=False to leave the retriever out."
            )
        if self.kind == QUESTION_LIKELIHOOD:
            QuestionLikelihoodOptions.of(self)


@dataclass(frozen=True, kw_only=True)
class QuestionLikelihoodOptions:
    """What only the selector by question likelihood can be told; fields of `SelectorConfig.options`."""

    gate: float = 1.05
    """Where the weight of the standardised question log-likelihoods starts."""
    passage_tokens: int = 160
    """Tokens of a passage, its title included, that are read; the rest is cut."""
    prefilter: int | None = None
    """In the M-step all candidates are read without gradient first, and then with gradient only so many, the best by
    the logits found, and those that occur in a given permutation; the others count as constants. None: all learn."""

    def __post_init__(self) -> None:
        # They come from files and the command line as they are: no parser checks the values of `options`.
        if not _is_positive(self.gate):
            raise UsageError(
                f"gate must be a positive, finite number (0 would ignore the language model), got {self.gate!r}. "
                "Use use_language_model=False to leave the language model out."
            )
        if not _is_whole(self.passage_tokens) or self.passage_tokens < 1:
            raise UsageError(f"passage_tokens must be a whole number of at least 1, got {self.passage_tokens!r}.")
        if self.prefilter is not None and (not _is_whole(self.prefilter) or self.prefilter < 0):
            raise UsageError(f"prefilter must be a whole number of at least 0, or null, got {self.prefilter!r}.")

    @classmethod
    def of(cls, config: SelectorConfig) -> Self:
        """Those of a configuration.

        Raises:
            UsageError: An option that there is not, or a value that is not allowed.
        """
        known = [f.name for f in fields(cls)]
        if unknown := sorted(config.options.keys() - set(known)):
            raise UsageError(f"The options of kind={QUESTION_LIKELIHOOD!r} must be of {known}, got {unknown}.")
        return cls(**config.options)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How permutations are drawn from a selector."""

    num_permutations: int = 1
    """m: draws per question; without replacement there are fewer where fewer permutations exist."""
    temperature: float = 1.0
    """Divides the logits of every step; above 1 explores more, 1 is the selector itself."""
    replacement: bool = True
    """False draws m different permutations, by stochastic beam search (Kool et al. 2019, arXiv 1903.06059)."""

    def __post_init__(self) -> None:
        if self.num_permutations < 1 or not _is_positive(self.temperature):
            raise UsageError(
                "num_permutations must be at least 1 and temperature positive and finite, got "
                f"num_permutations={self.num_permutations}, temperature={self.temperature}."
            )


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_selection(n: int, k: int) -> None:
    """Raise UsageError unless 1 <= K <= n."""
    if not 1 <= k <= n:
        raise UsageError(
            f"The number of selected passages K must lie between 1 and the number of candidates n, got K={k}, n={n}. "
            "Lower num_selected, raise num_candidates, or index more passages."
        )
