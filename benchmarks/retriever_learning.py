"""Does the question adapter find more on held-out questions? Trained from a posterior, the index as it is.

    python benchmarks/retriever_learning.py --index DIR --train FILE --test FILE [--objectives prior distillation both]

The E-step is the library's, with a reader that knows the gold passages in place of a language model: an answer is
`--utility` nats likelier for each gold passage that is read (`gold_ids` in the question file). The selector is the
retriever alone (the gate to its language model stays closed), and only the question adapter learns, by the library's
losses. Half of the candidates are drawn from a larger pool, as the adapter cannot learn of a passage it never meets.
Every round searches again, so that candidates follow what was learned. Recall is the share of a question's gold
passages among the first k; intervals are of the paired difference to the retriever before.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from indexes import Passage, PassageIndex
from rag import RAG
from rag.evaluation.significance import paired_bootstrap
from rag.tiny_base import TINY
from retriever import DenseRetriever, SelectorConfig
from training import DROConfig, QAExample, load_examples, retrieve
from training.config import EStepConfig
from training.estimation import EStep
from training.joint_model import distilled_loss, selection_losses
from training.posterior import Posterior

CUTS = (1, 5, 20)


def main() -> None:
    """Parse the arguments; train and measure once per objective and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--objectives", nargs="+", default=["prior", "distillation", "both"])
    parser.add_argument("--limit", type=int, help="use only the first so many questions of each file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--selected", type=int, default=5)
    parser.add_argument("--pool", type=int, default=100, help="passages the candidates are drawn from; 0: the first")
    parser.add_argument("--samples", type=int, default=100, help="permutations per question; the reader costs nothing")
    parser.add_argument("--utility", type=float, default=20.0, help="nats per gold passage that is read")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    args = parser.parse_args()
    index = PassageIndex.open(args.index)
    encoder = index.load_encoder()
    train, test = (load_examples(file, limit=args.limit) for file in (args.train, args.test))
    rows = []
    for objective in args.objectives:
        for seed in args.seeds:
            rag = RAG.create(
                index=index,
                encoder=encoder,
                base=TINY,
                selector=SelectorConfig(num_candidates=args.candidates, num_selected=args.selected),
            )
            before = recalls(rag.retriever, test)
            learn(rag, train, objective, seed, args)
            rows += compared(before, recalls(rag.retriever, test), objective, seed)
    print(json.dumps(rows) if args.json else _text(rows, len(train), len(test)))


class GoldReader:
    """Stands where the E-step has a generator: it finds the answer in gold passages and nowhere else."""

    def __init__(self, examples: Sequence[QAExample], utility: float) -> None:
        self._gold = {e.question: set(e.gold_ids) for e in examples}
        self._utility = utility

    def row(self, question: str, passages: Sequence[Passage], answer: str) -> float:
        """What would be scored: here, the score itself."""
        return self._utility * sum(p.id in self._gold[question] for p in passages)

    def log_probs(self, rows: Sequence[float]) -> Tensor:
        """Of the answer, up to a constant, nats `[R]`."""
        return torch.tensor(rows)


def learn(rag: RAG, examples: Sequence[QAExample], objective: str, seed: int, args: argparse.Namespace) -> None:
    """Rounds of an E-step and one pass over its posteriors."""
    config = DROConfig(
        seed=seed,
        e_step=EStepConfig(
            num_permutations=args.samples,
            replacement=False,
            proposals_per_sample=1,
            candidate_pool=args.pool or None,
            batch_size=64,
        ),
    )
    reader: Any = GoldReader(examples, args.utility)
    e_step = EStep(rag.retriever, rag.selector, reader, config)
    rag.selector.prior.requires_grad_(False)  # so the language model behind its gate is never asked
    optimizer = torch.optim.Adam(rag.retriever.adapter.parameters(), lr=args.learning_rate)
    for round in range(1, args.rounds + 1):
        posteriors = e_step(examples, round=round)
        order = torch.randperm(len(posteriors), generator=torch.Generator().manual_seed(1000 * seed + round)).tolist()
        for start in range(0, len(order), args.batch_size):
            batch = [posteriors[i] for i in order[start : start + args.batch_size]]
            optimizer.zero_grad()
            loss_of(rag, batch, objective).backward()
            optimizer.step()


def loss_of(rag: RAG, posteriors: Sequence[Posterior], objective: str) -> Tensor:
    """Mean loss of the adapter over some questions."""
    losses: list[Tensor] = []
    if objective in ("prior", "both"):
        losses += selection_losses(rag.selector, posteriors) / rag.selector.config.num_selected
    if objective in ("distillation", "both"):
        losses += [distilled_loss(rag.selector, p) for p in posteriors]
    return torch.stack(losses).sum() / len(posteriors)


def recalls(retriever: DenseRetriever, examples: Sequence[QAExample]) -> dict[int, list[float]]:
    """Per cut, every question's share of gold passages among the first so many."""
    found = retrieve(retriever, examples, max(CUTS))
    return {
        k: [len(set(c.ids[:k]) & set(e.gold_ids)) / len(set(e.gold_ids)) for c, e in zip(found, examples, strict=True)]
        for k in CUTS
    }


def compared(
    before: dict[int, list[float]], after: dict[int, list[float]], objective: str, seed: int
) -> list[dict[str, Any]]:
    """One row per cut."""
    rows = []
    for k in CUTS:
        difference = paired_bootstrap(after[k], before[k])
        rows.append(
            {
                "objective": objective,
                "seed": seed,
                "k": k,
                "before": sum(before[k]) / len(before[k]),
                "after": sum(after[k]) / len(after[k]),
                "difference": difference.difference,
                "interval": list(difference.interval),
                "p": difference.p,
            }
        )
    return rows


def _text(rows: Sequence[dict[str, Any]], trained: int, tested: int) -> str:
    lines = [f"{trained} training questions, {tested} held out", ""]
    lines += ["| objective | seed | recall@ | before | after | difference, 95 % interval | p |", "|---" * 7 + "|"]
    for r in rows:
        low, high = r["interval"]
        difference = f"{r['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
        numbers = f"{r['before']:.3f} | {r['after']:.3f} | {difference} | {r['p']:.4f}"
        lines.append(f"| {r['objective']} | {r['seed']} | {r['k']} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
