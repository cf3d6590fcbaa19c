"""Warm-up before the first round: both models start from supervised targets (DRO, arXiv 2505.03075).

The selector imitates a target order (gold passages first, or the retriever's own), the generator learns the
answer from the passages of that order. A target is a posterior with a single permutation of weight 1, so warm-up
is an ordinary M-step over such posteriors.

A selector that does not start as the retriever would forget what it knows by imitating the retriever. Where the
retriever's order is not asked for and there are no gold ids, its target is what it selects itself, as an expected
outcome (b = w = 1): from that only the generator learns.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from indexes.corpora.chunk_ids import gold_document
from indexes.errors import DataError
from retriever.candidates import Candidates
from retriever.permutations import Permutations
from retriever.retriever import Retriever
from retriever.selector import Selector
from training.config import DROConfig
from training.posterior import Posterior, stable_seed
from training.questions.example import QAExample
from training.questions.loading import draw_alias
from training.questions.self_retrieval import retrieve


def target_permutation(candidates: Candidates, gold_ids: Sequence[str], k: int) -> Tensor:
    """The first k candidates, int64 `[k]`: gold ones (in the order of `gold_ids`) first, the rest by score.

    Of a gold document that was cut into chunks only the best chunk counts.
    """
    by_score = torch.argsort(candidates.scores, descending=True, stable=True).tolist()
    best: dict[str | None, int] = {}
    for i in by_score:
        best.setdefault(gold_document(candidates.ids[i], gold_ids), i)
    gold = [best[id] for id in gold_ids if id in best]
    return torch.tensor((gold + [i for i in by_score if i not in gold])[:k], dtype=torch.long)


def warm_up_posteriors(
    examples: Sequence[QAExample],
    retriever: Retriever,
    selector: Selector,
    config: DROConfig,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Posterior]:
    """One supervised target per question; candidates are shuffled, or their position would be the label.

    Args:
        examples: The questions.
        retriever: Finds their candidates.
        selector: Whose K and n count; it selects where it is its own target.
        config: Which target is wanted.
        progress: Called with the number of questions just finished.

    Raises:
        DataError: `warm_up_target="gold"` and a question has no gold ids.
    """
    without = [e.id for e in examples if not e.gold_ids]
    if config.supervised.target == "gold" and without:
        raise DataError(
            f"warm_up_target='gold' needs gold_ids on every training question; {len(without)} have none, the first "
            f"is {without[0]!r}. Add them, or use warm_up_target='auto'."
        )
    posteriors: list[Posterior] = []
    for start in range(0, len(examples), config.e_step.batch_size):
        batch = examples[start : start + config.e_step.batch_size]
        found = retrieve(retriever, batch, selector.config.num_candidates)
        candidates = [_in_training_order(e, c, config) for e, c in zip(batch, found, strict=True)]
        own = [i for i, e in enumerate(batch) if _is_own_target(e, selector, config)]
        selected = dict(zip(own, selector.select([candidates[i] for i in own]), strict=True)) if own else {}
        posteriors += [
            _target(e, c, selected.get(i), selector, config)
            for i, (e, c) in enumerate(zip(batch, candidates, strict=True))
        ]
        progress(len(batch))
    return posteriors


def _in_training_order(example: QAExample, candidates: Candidates, config: DROConfig) -> Candidates:
    if config.e_step.candidate_order != "shuffled":
        return candidates
    generator = torch.Generator().manual_seed(stable_seed(config.seed, "warm-up", example.id))
    return candidates.reordered(torch.randperm(len(candidates), generator=generator).tolist())


def _is_own_target(example: QAExample, selector: Selector, config: DROConfig) -> bool:
    return not (selector.starts_as_retriever or example.gold_ids) and config.supervised.target == "auto"


def _target(
    example: QAExample, candidates: Candidates, selected: Permutations | None, selector: Selector, config: DROConfig
) -> Posterior:
    """The posterior of a question whose target is what the selector selected, or else a target order."""
    zero, one = torch.zeros(1), torch.ones(1)
    if selected is not None:
        z_K = selected.z[0]
    else:
        gold_ids = () if config.supervised.target == "retriever" else example.gold_ids
        z_K = target_permutation(candidates, gold_ids, selector.config.num_selected)
    return Posterior(
        example=example,
        answer=draw_alias(example, seed=config.seed, round=0),
        candidates=candidates,
        permutations=Permutations(z_K.unsqueeze(0), zero, zero),
        log_likelihood_m=zero,
        weights_m=one,
        baseline_m=None if selected is None else one,
        log_omega_m=zero,
    )
