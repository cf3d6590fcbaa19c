"""The RAG-Sequence baseline: log sum_d p(d|x) p(y|x,d) from the logits of all documents.

    python -m benchmarks.rag_sequence_loss [--device cuda] [--json] [--quick]

Rival: `RagSequenceForGeneration.get_nll` of transformers' RAG, written again: log-softmax over the whole vocabulary, a
second sum for label smoothing that is off, then the sum over documents. Ours: gather and logsumexp.
"""

from functools import partial

import torch
from torch import Tensor

from benchmarks.setting import agree
from benchmarks.timing import Case, Make, Options, main
from generator.log_probs import token_log_probs


def build(options: Options, vocabulary: int, target: float | None) -> Case:
    """B = 4 questions, 5 documents each, targets of 32 tokens."""
    B, D, T = 4, 5, 32
    torch.manual_seed(0)
    logits_BDTV = 3 * torch.randn(B, D, T, vocabulary, device=options.device)
    targets_BT = torch.randint(vocabulary, (B, T), device=options.device)
    scores_BD = torch.randn(B, D, device=options.device)
    expected = lambda: rival(logits_BDTV, targets_BT, scores_BD)  # noqa: E731
    found = lambda: ours(logits_BDTV, targets_BT, scores_BD)  # noqa: E731

    def check() -> None:
        wrong = ours(logits_BDTV, targets_BT.roll(1, 0), scores_BD)
        errors = (float(((x - expected()) / expected()).abs().max()) for x in (found(), wrong))
        agree("RAG-Sequence", *errors, tolerance=1e-5)

    return Case(
        path="RAG-Sequence likelihood",
        shape=f"{B} x {D} documents x {T} tokens, V = {vocabulary:,}",
        rival=expected,
        ours=found,
        check=check,
        bytes=4 * logits_BDTV.numel(),
        dtype=torch.float32,
        target=target,
    )


def rival(logits_BDTV: Tensor, targets_BT: Tensor, scores_BD: Tensor) -> Tensor:
    """Log p(y|x) `[B]` through log-probabilities of the whole vocabulary."""
    log_probs_BDTV = torch.nn.functional.log_softmax(logits_BDTV, dim=-1)
    targets_BDT1 = targets_BT[:, None, :, None].expand(*logits_BDTV.shape[:3], 1)
    log_p_BDT1 = log_probs_BDTV.gather(-1, targets_BDT1)
    smooth_BDT1 = log_probs_BDTV.sum(-1, keepdim=True)
    prior_BD = scores_BD.log_softmax(-1)
    log_p_BD = log_p_BDT1.squeeze(-1).sum(-1) + prior_BD
    smooth_BD = smooth_BDT1.squeeze(-1).sum(-1) + prior_BD
    epsilon = 0.0
    return (1 - epsilon) * log_p_BD.logsumexp(-1) + epsilon / logits_BDTV.shape[-1] * smooth_BD.logsumexp(-1)


def ours(logits_BDTV: Tensor, targets_BT: Tensor, scores_BD: Tensor) -> Tensor:
    """The same from what the targets need."""
    log_p_BD = token_log_probs(logits_BDTV, targets_BT[:, None].expand(*logits_BDTV.shape[:3])).sum(-1)
    return (log_p_BD + scores_BD.log_softmax(-1)).logsumexp(-1)


MAKES = [
    Make(partial(build, vocabulary=50265, target=1.5)),
    Make(partial(build, vocabulary=151936, target=None), quick=False),
]

if __name__ == "__main__":
    raise SystemExit(main(str(__doc__), MAKES))
