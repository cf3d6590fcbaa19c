"""Warm-up before the first round: both models start from supervised targets (DRO, arXiv 2505.03075).

The selector imitates a target order (gold passages first, or the retriever's own), the generator learns the
answer from the passages of that order. A target is a posterior with a single permutation of weight 1, so warm-up
is an ordinary M-step over such posteriors.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from indexes.corpora.chunk_ids import gold_document
from indexes.errors import DataError
from retriever.candidates import Candidates
from retriever.permutations import Permutations
from retriever.retriever import Retriever
from retriever.selector_config import SelectorConfig
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
    selector: SelectorConfig,
    config: DROConfig,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Posterior]:
    """One supervised target per question; candidates are shuffled, or their position would be the label.

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
        found = retrieve(retriever, batch, selector.num_candidates)
        posteriors += [_target(e, c, selector, config) for e, c in zip(batch, found, strict=True)]
        progress(len(batch))
    return posteriors


def _target(example: QAExample, candidates: Candidates, selector: SelectorConfig, config: DROConfig) -> Posterior:
    if config.e_step.candidate_order == "shuffled":
        generator = torch.Generator().manual_seed(stable_seed(config.seed, "warm-up", example.id))
        candidates = candidates.reordered(torch.randperm(len(candidates), generator=generator).tolist())
    gold_ids = () if config.supervised.target == "retriever" else example.gold_ids
    z_K = target_permutation(candidates, gold_ids, selector.num_selected)
    zero, one = torch.zeros(1), torch.ones(1)
    return Posterior(
        example=example,
        answer=draw_alias(example, seed=config.seed, round=0),
        candidates=candidates,
        permutations=Permutations(z_K.unsqueeze(0), zero, zero),
        log_likelihood_m=zero,
        weights_m=one,
        baseline_m=None,
        log_omega_m=zero,
    )
