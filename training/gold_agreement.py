"""Whether the posterior, which teaches, knows more of the gold passages than the selector, which learns.

Where examples have gold ids, both are scored over the same drawn permutations: the posterior by its weights w, the
selector by b, the self-normalised p_s/q weights. A posterior that is no better costs an M-step and teaches nothing, so
the first round says so. Nothing is trained by gold ids here.

Legend: m permutations, K selected, n candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indexes.corpora.chunk_ids import gold_document

FEW_QUESTIONS = 20
"""With fewer questions an interval says little, and the mean alone is judged."""
QUANTILE = 1.96
"""Of the normal distribution, for intervals of 95 %."""


@dataclass(frozen=True)
class GoldAgreement:
    """How much of the gold passages a distribution over drawn permutations holds, for one question."""

    gold_share: float
    """Expected share of the gold ids among the passages of a permutation."""
    recall: float
    """Share of the gold ids among the K candidates of largest marginal probability."""
    cross_entropy: float | None
    """From the gold candidates, all alike, to the marginals divided by K, nats; a candidate that no permutation holds
    counts as half a permutation of average weight. None where no candidate is gold."""

    @classmethod
    def of(cls, ids: Sequence[str], gold_ids: Sequence[str], z_mK: Tensor, weights_m: Tensor) -> "GoldAgreement":
        """Of permutations with weights that sum to 1.

        Args:
            ids: Of the candidates; a chunk of a gold document counts as the document.
            gold_ids: At least one.
            z_mK: The permutations.
            weights_m: Of each.
        """
        gold = [gold_document(i, gold_ids) for i in ids]
        total, K = len(set(gold_ids)), z_mK.shape[1]
        shares_m = torch.tensor([len({gold[i] for i in z} - {None}) / total for z in z_mK.tolist()])
        marginals_n = torch.zeros(len(ids)).index_add(0, z_mK.flatten(), weights_m[:, None].expand_as(z_mK).flatten())
        best = marginals_n.argsort(descending=True, stable=True)[:K].tolist()
        return cls(
            gold_share=float((weights_m * shares_m).sum()),
            recall=len({gold[i] for i in best} - {None}) / total,
            cross_entropy=_cross_entropy(marginals_n, z_mK, [i for i, found in enumerate(gold) if found is not None]),
        )


def _cross_entropy(marginals_n: Tensor, z_mK: Tensor, gold: Sequence[int]) -> float | None:
    if not gold:
        return None
    drawn_n = torch.zeros(len(marginals_n), dtype=torch.bool).index_fill(0, z_mK.flatten(), True)
    known_n = torch.where(drawn_n, marginals_n.clamp_min(1e-12), 0.5 / len(z_mK))
    return -float((known_n / known_n.sum()).log()[list(gold)].mean())


@dataclass(frozen=True)
class Comparison:
    """A mean over questions under the posterior and under the selector, and their paired difference."""

    posterior: float
    selector: float
    lowest: float
    """Lower end of the 95 % interval of posterior minus selector; the mean where there are few questions."""
    questions: int

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> "Comparison":
        """Of (posterior, selector) of every question."""
        posterior, selector = torch.tensor(pairs, dtype=torch.float64).T
        difference = posterior - selector
        error = float(difference.std(correction=1)) / math.sqrt(len(pairs)) if len(pairs) >= FEW_QUESTIONS else 0.0
        return cls(
            float(posterior.mean()), float(selector.mean()), float(difference.mean()) - QUANTILE * error, len(pairs)
        )


def teacher_warning(
    gold_shares: Sequence[tuple[float, float]], cross_entropies: Sequence[tuple[float, float]], exponent: float
) -> str | None:
    """What is wrong with a posterior as a teacher, and what to try; None where nothing is, or without gold ids.

    Args:
        gold_shares: Expected share of gold ids under (posterior, selector), for every question that has gold ids.
        cross_entropies: The same of the cross-entropy from the gold candidates.
        exponent: tau.
    """
    if not gold_shares:
        return None
    share = Comparison.of(gold_shares)
    if not share.lowest > 0:
        return (
            f"The posterior is no better a teacher than the selector already is: its lists hold {share.posterior:.3f} "
            f"of the gold passages and the selector's own {share.selector:.3f} ({share.questions} questions, "
            f"likelihood exponent {exponent:g}), so the selector has nothing to learn from it. Let the generator learn "
            "to read first (supervised.num_train_epochs), score more permutations (e_step.num_permutations), or take "
            "a larger base."
        )
    entropy = Comparison.of(cross_entropies) if cross_entropies else None
    if entropy is not None and entropy.lowest > 0:
        return (
            f"The posterior is surer than it is right: its cross-entropy to the gold passages is "
            f"{entropy.posterior:.3f} nats and the selector's own {entropy.selector:.3f} ({entropy.questions} "
            f'questions, likelihood exponent {exponent:g}). Lower the exponent, 0.2 or "auto" '
            "(e_step.likelihood_exponent; of REPLUG retriever_training.lsr_temperature, its inverse)."
        )
    return None
