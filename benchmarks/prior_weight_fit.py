"""How fast the pooling weights find their place: EM steps against maximising the gain, on problems of known utility.

    python benchmarks/prior_weight_fit.py

N questions with n candidates, one of them gold. Retriever and language model each see it through Gaussian noise; the
utility of a permutation is known (`--utility` nats if it holds the gold passage, a third more if it comes first, plus
noise). Both methods start at the retriever's order (gate 0, strength 1) and draw m permutations of K in each round from
the selector as it is. EM maximises the weighted likelihood of the samples *exactly*, so it has no step size to blame.
"""

import argparse

import torch
from torch import Tensor

from retriever.permutations import sequential_log_prob
from training.prior_weights import best_prior_weights


def main() -> None:
    """Parse the arguments, simulate, print one line per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=9)
    parser.add_argument("--selected", type=int, default=3)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--utility", type=float, default=6.0)
    parser.add_argument("--noise", type=float, default=1.0, help="standard deviation of the utility, nats")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    world = World(args)
    start = world.first(torch.tensor([0.0, 1.0]))
    print(f"gold first by the retriever {start:.3f}, by the best weights {world.best():.3f}")
    for method in ("EM, exact M-step", "gain"):
        pooling, line = torch.tensor([0.0, 1.0]), []
        for _ in range(args.rounds):
            stack = world.estimate(pooling, with_baseline=method == "gain")
            pooling = best_prior_weights([stack], pooling, args.questions)
            line.append(f"gate {pooling[0]:.2f} strength {pooling[1]:.2f} first {world.first(pooling):.3f}")
        print(f"{method:17s} " + " | ".join(line))


class World:
    """Questions, two noisy opinions about their candidates, and utilities."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.gold_Nn = torch.nn.functional.one_hot(
            torch.randint(args.candidates, (args.questions,)), args.candidates
        ).float()
        shape = self.gold_Nn.shape
        retriever_Nn = 1.5 * self.gold_Nn + torch.randn(shape)
        self.prior_Nn = (retriever_Nn - retriever_Nn.mean(-1, keepdim=True)) / retriever_Nn.std(-1, keepdim=True)
        self.lm_Nn = 3.0 * self.gold_Nn + 2.0 * torch.randn(shape)

    def estimate(self, pooling: Tensor, *, with_baseline: bool) -> tuple[Tensor, ...]:
        """One E-step: what `training.prior_weights` makes of posteriors of one shape."""
        a = self.args
        N, n, m, K = a.questions, a.candidates, a.samples, a.selected
        logits_Nn = pooling[0] * self.lm_Nn + pooling[1] * self.prior_Nn
        # The order of Gumbel-perturbed logits is a draw of successive choices without replacement.
        gumbel_Nmn = -torch.empty(N, m, n).exponential_().log()
        z_NmK = (logits_Nn[:, None] + gumbel_Nmn).topk(K, -1).indices
        steps_NmKn = logits_Nn[:, None, None].expand(N, m, K, n)
        absent = torch.zeros(N * m, n, dtype=torch.bool)
        old_Nm = sequential_log_prob(steps_NmKn.reshape(-1, K, n), z_NmK.reshape(-1, K), absent).view(N, m)
        held_NmK = self.gold_Nn[:, None].expand(N, m, n).gather(-1, z_NmK)
        utility_Nm = a.utility * (held_NmK.sum(-1) + held_NmK[..., 0] / 3) + a.noise * torch.randn(N, m)
        b_Nm = torch.full((N, m), 1 / m) if with_baseline else torch.zeros(N, 0)
        lm_NmKn = self.lm_Nn[:, None, None].expand(N, m, K, n)
        return lm_NmKn, self.prior_Nn, z_NmK, old_Nm, utility_Nm.softmax(-1), b_Nm

    def first(self, pooling: Tensor) -> float:
        """Share of questions whose gold passage has the highest pooled logit."""
        logits_Nn = pooling[0] * self.lm_Nn + pooling[1] * self.prior_Nn
        return float(self.gold_Nn.gather(-1, logits_Nn.argmax(-1, keepdim=True)).mean())

    def best(self) -> float:
        """The same at the best ratio of the two weights on a grid."""
        return max(self.first(torch.tensor([gate, 1.0])) for gate in torch.arange(0, 3, 0.05).tolist())


if __name__ == "__main__":
    main()
