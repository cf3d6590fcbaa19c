"""Settings of selectors, as dataclasses.

This module imports neither torch nor transformers, so that `--help` and argument errors of the command line are fast.
"""

from dataclasses import dataclass, field
from typing import Any

from indexes.errors import UsageError

DECODINGS = ("autoregressive", "single_pass")


@dataclass(frozen=True, kw_only=True)
class SelectorConfig:
    """Which selector, and its settings."""

    kind: str = "listwise"
    """The selector's name in `retriever.selectors.SELECTORS`."""
    num_candidates: int = 20
    """n: candidates the retriever hands over. More raises recall and prompt length."""
    num_selected: int = 5
    """K: passages that reach the generator, in order."""
    decoding: str = "autoregressive"
    """`"autoregressive"`: each id conditions on the ids before it (the paper). `"single_pass"`: one prefill, its
    id logits are Plackett-Luce scores; faster, but cannot say "given C, A adds nothing"."""
    identifiers: str = "letters"
    """`"letters"` (A..T) or `"numbers"` (as the paper writes them; few tokenizers have 20 in single tokens)."""
    use_prior: bool = True
    """Add the retriever's scores to the id logits, so that an untrained selector ranks as the retriever does.
    False is the paper's selector: the language model alone."""
    use_language_model: bool = True
    """False ranks by the retriever's scores alone, as pipelines without a selector do: the gate of the language model
    stays 0, and what learns is the weight of the scores and the retriever's question side."""
    prior_strength: float = 1.0
    """Where the learned weight of the standardised retriever scores starts; 1 keeps the first samples diverse."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further settings of selectors of other kinds, by name, ready for JSON; the built-in ones have none."""

    def __post_init__(self) -> None:
        check_selection(self.num_candidates, self.num_selected)
        if self.decoding not in DECODINGS:
            raise UsageError(f"decoding must be one of {list(DECODINGS)}, got {self.decoding!r}.")
        if not (self.use_prior or self.use_language_model):
            raise UsageError(
                "A selector must use the retriever's scores or the language model, but use_prior and "
                "use_language_model are both false. Set one of them."
            )
        if self.prior_strength <= 0:
            raise UsageError(
                f"prior_strength must be positive (0 would ignore the retriever), got {self.prior_strength}. "
                "Use use_prior=False to leave the retriever out."
            )


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
        if self.num_permutations < 1 or self.temperature <= 0:
            raise UsageError(
                "num_permutations must be at least 1 and temperature positive, got "
                f"num_permutations={self.num_permutations}, temperature={self.temperature}."
            )


def check_selection(n: int, k: int) -> None:
    """Raise UsageError unless 1 <= K <= n."""
    if not 1 <= k <= n:
        raise UsageError(
            f"The number of selected passages K must lie between 1 and the number of candidates n, got K={k}, n={n}. "
            "Lower num_selected, raise num_candidates, or index more passages."
        )
