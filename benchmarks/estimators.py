"""How wrong each way to estimate the posterior and the selector's gradient is, against the enumerated truth.

    python -m benchmarks.estimators [--json]

A problem is a selector over permutations of K of n candidates (logits that depend on what was chosen before) and a
log-likelihood of the answer for every permutation: candidates are useful or not, those that are read first count more,
and a part belongs to the permutation alone. Sharpness scales the selector's logits; a mild likelihood spans a few nats,
a peaked one several times as much. The guide sees each candidate alone, with noise of its own.

| method | proposal | weights |
|---|---|---|
| paper | T = 0.7, with replacement, duplicates dropped | the likelihood alone, not corrected |
| snis | the selector, with replacement | self-normalised p/q times the likelihood |
| without | the selector, without replacement | the same by inclusion probabilities (Kool et al. 2019) |
| + cv | as before it | less the control variate b |
| guided | half selector, half guided, without replacement | the same, with the control variate |
| imputed | 8 m different ones from the guided proposal, of which m are scored | the others by a surrogate |
| guided, same cost | guided, with as many permutations fewer as the guide costs (n rows of one passage) | the same |

The surrogate of an unscored permutation is a linear function of what its candidates say alone, place by place, with
slopes fitted to the scored ones of all E-steps and an offset for each E-step. "Same cost" pays for the guide's n rows
of one passage with n/K permutations.

Errors are means over problems, relative to nothing: `posterior_mse` sums over permutations, `gradient_bias` (squared),
`gradient_variance` and their sum `gradient_mse` over the logits of the tree.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retriever.permutations import Proposal, enumerate_permutations, log_inclusion, standard_gumbel
from training.losses import baseline_weights, log_importance_weights, posterior_weights

SHARPNESS = {"flat": 0.5, "medium": 1.5, "sharp": 3.0}
LIKELIHOOD = {"mild": 1.5, "peaked": 6.0}
GAMMA = 0.6


def main() -> None:
    """Parse the arguments and print the table, or the rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--selected", type=int, default=3)
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=600, help="E-steps of each problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    args = parser.parse_args()
    rows = list(measure(args))
    print(json.dumps(rows) if args.json else _text(rows))


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every method at every m in every regime."""
    tree = Tree.of(args.candidates, args.selected)
    for likelihood, scale in LIKELIHOOD.items():
        for sharpness, spread in SHARPNESS.items():
            for m in args.samples:
                sums: dict[str, Tensor] = {}
                for number in range(args.problems):
                    generator = torch.Generator().manual_seed(1000 * args.seed + number)
                    problem = Problem.drawn(tree, spread, scale, generator)
                    for name, method in METHODS.items():
                        errors = problem.errors(*method(problem, m, args.repeats, generator))
                        sums[name] = sums.get(name, torch.zeros(3)) + errors / args.problems
                for name, (posterior, bias, variance) in sums.items():
                    yield {
                        "method": name,
                        "m": m,
                        "sharpness": sharpness,
                        "likelihood": likelihood,
                        "posterior_mse": float(posterior),
                        "gradient_bias": float(bias),
                        "gradient_variance": float(variance),
                        "gradient_mse": float(bias + variance),
                    }


# -- problems --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """All permutations of K of n candidates as leaves of the tree of choices; N leaves, P inner nodes."""

    leaves_NK: Tensor
    nodes_NK: Tensor
    """The inner node at which each choice of each leaf is made."""
    used_Pn: Tensor
    """What cannot be chosen at a node."""

    @classmethod
    def of(cls, n: int, k: int) -> "Tree":
        """Number the nodes in the order in which leaves meet them."""
        leaves_NK = enumerate_permutations(n, k)
        numbers: dict[tuple[int, ...], int] = {}
        nodes_NK = torch.tensor(
            [[numbers.setdefault(tuple(z[:step]), len(numbers)) for step in range(k)] for z in leaves_NK.tolist()]
        )
        used_Pn = torch.zeros(len(numbers), n, dtype=torch.bool)
        for chosen, node in numbers.items():
            used_Pn[node, list(chosen)] = True
        return cls(leaves_NK, nodes_NK, used_Pn)

    def log_prob(self, logits_Pn: Tensor) -> Tensor:
        """Of every leaf `[N]`."""
        return self._along(logits_Pn.masked_fill(self.used_Pn, -math.inf).log_softmax(-1))

    def _along(self, step_Pn: Tensor) -> Tensor:
        return step_Pn[self.nodes_NK, self.leaves_NK].sum(-1)

    def gradients(self, logits_Pn: Tensor, weights_RN: Tensor) -> Tensor:
        """Gradient of `sum_N weights log p` by the logits, for R weightings at once `[R, P n]`."""
        prob_Pn = logits_Pn.masked_fill(self.used_Pn, -math.inf).softmax(-1)
        R, (P, n) = len(weights_RN), logits_Pn.shape
        chosen_RPn, visits_RP = torch.zeros(R, P * n), torch.zeros(R, P)
        for nodes_N, choices_N in zip(self.nodes_NK.T, self.leaves_NK.T, strict=True):
            chosen_RPn.index_add_(1, nodes_N * n + choices_N, weights_RN)
            visits_RP.index_add_(1, nodes_N, weights_RN)
        return chosen_RPn - (visits_RP[..., None] * prob_Pn).flatten(1)


@dataclass(frozen=True)
class Problem:
    """A selector and a likelihood."""

    tree: Tree
    logits_Pn: Tensor
    log_p_N: Tensor
    log_likelihood_N: Tensor
    alone_n: Tensor
    """Log-likelihood of each candidate alone, as the guide sees it."""

    @classmethod
    def drawn(cls, tree: Tree, sharpness: float, scale: float, generator: torch.Generator) -> "Problem":
        """Two useful candidates, one of them half as much; what is read first counts more."""
        (P, n), k = tree.used_Pn.shape, tree.leaves_NK.shape[1]
        own_n = sharpness * torch.randn(n, generator=generator)
        logits_Pn = own_n + 0.3 * sharpness * torch.randn(P, n, generator=generator)
        useful_n = torch.zeros(n)
        useful_n[torch.randperm(n, generator=generator)[:2]] = torch.tensor([1.0, 0.5])
        place_K = torch.linspace(1.0, 0.6, k)
        read_N = (useful_n[tree.leaves_NK] * place_K).sum(-1)
        likelihood_N = scale * (read_N + 0.15 * torch.randn(len(read_N), generator=generator))
        alone_n = scale * (useful_n + 0.15 * torch.randn(n, generator=generator))
        return cls(tree, logits_Pn, tree.log_prob(logits_Pn), likelihood_N, alone_n)

    def errors(self, weights_RN: Tensor, baseline_RN: Tensor | None) -> Tensor:
        """Squared error of the posterior, squared bias and variance of the gradient: `[3]`."""
        truth_N = (self.log_p_N + self.log_likelihood_N).softmax(-1)
        expected = self.tree.gradients(self.logits_Pn, truth_N[None])
        found = self.tree.gradients(self.logits_Pn, weights_RN if baseline_RN is None else weights_RN - baseline_RN)
        mean = found.mean(0, keepdim=True)
        posterior = (weights_RN - truth_N).square().sum(-1).mean()
        return torch.stack([posterior, (mean - expected).square().sum(), (found - mean).square().sum(-1).mean()])


# -- methods: R E-steps with m permutations each, as weights over all N ----------------------------------------------

Estimate = tuple[Tensor, Tensor | None]
Method = Callable[[Problem, int, int, torch.Generator], Estimate]


def _spread(index_Rm: Tensor, values_Rm: Tensor, n: int) -> Tensor:
    return torch.zeros(len(index_Rm), n).scatter_add_(1, index_Rm, values_Rm)


def paper(problem: Problem, m: int, repeats: int, generator: torch.Generator) -> Estimate:
    """The released way."""
    log_q_N = problem.tree.log_prob(problem.logits_Pn / 0.7)
    index_Rm = torch.multinomial(log_q_N.exp().expand(repeats, -1), m, replacement=True, generator=generator)
    drawn_RN = _spread(index_Rm, torch.ones(index_Rm.shape), len(log_q_N)) > 0
    return problem.log_likelihood_N.expand(repeats, -1).masked_fill(~drawn_RN, -math.inf).softmax(-1), None


def with_replacement(problem: Problem, m: int, repeats: int, generator: torch.Generator) -> Estimate:
    """Self-normalised importance sampling from the selector."""
    log_q_N = problem.log_p_N
    index_Rm = torch.multinomial(log_q_N.exp().expand(repeats, -1), m, replacement=True, generator=generator)
    return _weighted(problem, index_Rm, log_q_N[index_Rm])


def _without(problem: Problem, log_q_N: Tensor, m: int, repeats: int, generator: torch.Generator) -> Estimate:
    return _weighted(problem, *_different(log_q_N, m, repeats, generator))


def _different(log_q_N: Tensor, m: int, repeats: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # Of the leaves' perturbed log-probabilities stochastic beam search finds the largest without seeing all of them.
    perturbed_RN = log_q_N + standard_gumbel((repeats, len(log_q_N)), generator)
    top_Rm, index_Rm = perturbed_RN.topk(m + 1, dim=-1)
    return index_Rm[:, :m], log_inclusion(log_q_N[index_Rm[:, :m]], top_Rm[:, m:])


def _weighted(problem: Problem, index_Rm: Tensor, log_q_Rm: Tensor) -> Estimate:
    log_p_Rm, N = problem.log_p_N[index_Rm], len(problem.log_p_N)
    w_Rm = posterior_weights(log_importance_weights(log_p_Rm, log_q_Rm, problem.log_likelihood_N[index_Rm]))
    return _spread(index_Rm, w_Rm, N), _spread(index_Rm, baseline_weights(log_p_Rm, log_q_Rm), N)


def without_replacement(problem: Problem, m: int, repeats: int, generator: torch.Generator) -> Estimate:
    """Different permutations, from the selector."""
    return _without(problem, problem.log_p_N, m, repeats, generator)


def guided(problem: Problem, m: int, repeats: int, generator: torch.Generator) -> Estimate:
    """Different permutations, half of the proposal guided by what each candidate alone says of the answer."""
    return _without(problem, _guided_log_q(problem), m, repeats, generator)


def _guided_log_q(problem: Problem) -> Tensor:
    guide_n = GAMMA * problem.alone_n
    leaves_CN = torch.stack([problem.log_p_N, problem.log_p_N, problem.tree.log_prob(problem.logits_Pn + guide_n)])
    return Proposal(guide_Bn=guide_n[None]).log_q(leaves_CN)


def imputed(problem: Problem, m: int, repeats: int, generator: torch.Generator) -> Estimate:
    """Many permutations, few of them scored, the others guessed from those."""
    log_q_N = _guided_log_q(problem)
    index_RM, log_q_RM = _different(log_q_N, min(8 * m, len(log_q_N) - 1), repeats, generator)
    log_p_RM, true_RM = problem.log_p_N[index_RM], problem.log_likelihood_N[index_RM]
    alone_RMK = problem.alone_n[problem.tree.leaves_NK[index_RM]]
    # Scored are those that matter most if the candidates alone are to be believed.
    promise_RM = log_p_RM - log_q_RM + alone_RMK.mean(-1)
    scored_Rm = (promise_RM + standard_gumbel(promise_RM.shape, generator)).topk(m, dim=-1).indices
    known_RM = torch.zeros_like(log_p_RM, dtype=torch.bool).scatter_(1, scored_Rm, True)
    guess_RM = _surrogate(alone_RMK, true_RM, scored_Rm)
    log_omega_RM = log_importance_weights(log_p_RM, log_q_RM, torch.where(known_RM, true_RM, guess_RM))
    N = len(log_q_N)
    return (
        _spread(index_RM, posterior_weights(log_omega_RM), N),
        _spread(index_RM, baseline_weights(log_p_RM, log_q_RM), N),
    )


def _surrogate(alone_RMK: Tensor, true_RM: Tensor, scored_Rm: Tensor) -> Tensor:
    """Least squares over the scored permutations of all E-steps: a slope for each place, an offset for each E-step."""
    K = alone_RMK.shape[-1]
    x_RmK = alone_RMK.gather(1, scored_Rm[..., None].expand(-1, -1, K))
    y_Rm = true_RM.gather(1, scored_Rm)
    x_mean, y_mean = x_RmK.mean(1, keepdim=True), y_Rm.mean(1, keepdim=True)
    centred_DK, centred_D = (x_RmK - x_mean).flatten(0, 1), (y_Rm - y_mean).flatten()
    slopes_K = torch.linalg.solve(centred_DK.T @ centred_DK + 1e-3 * torch.eye(K), centred_DK.T @ centred_D)
    return (alone_RMK - x_mean) @ slopes_K + y_mean


def guided_at_same_cost(problem: Problem, m: int, repeats: int, generator: torch.Generator) -> Estimate:
    """The same, paying for the guide's n rows of one passage with permutations of K."""
    return guided(problem, _paid(problem, m), repeats, generator)


def _paid(problem: Problem, m: int) -> int:
    return max(m - math.ceil(len(problem.alone_n) / problem.tree.leaves_NK.shape[1]), 1)


def _without_baseline(method: Method) -> Method:
    return lambda *arguments: (method(*arguments)[0], None)


METHODS: dict[str, Method] = {
    "paper": paper,
    "snis": _without_baseline(with_replacement),
    "snis + cv": with_replacement,
    "without": _without_baseline(without_replacement),
    "without + cv": without_replacement,
    "guided": guided,
    "guided, same cost": guided_at_same_cost,
    "imputed": imputed,
    "imputed, same cost": lambda problem, m, repeats, generator: imputed(
        problem, _paid(problem, m), repeats, generator
    ),
}


def _text(rows: list[dict[str, Any]]) -> str:
    reference = {
        (r["likelihood"], r["sharpness"]): r for r in rows if r["method"] == "paper" and r["m"] == max(_eight(rows))
    }
    lines = [
        f"| {' | '.join(['likelihood', 'selector', 'm', 'method', 'posterior', 'bias', 'variance', 'gradient'])} |"
    ]
    lines.append("|---" * 8 + "|")
    for r in rows:
        paper_row = reference[r["likelihood"], r["sharpness"]]
        numbers = [r["posterior_mse"] / paper_row["posterior_mse"]]
        numbers += [
            r[name] / paper_row["gradient_mse"] for name in ("gradient_bias", "gradient_variance", "gradient_mse")
        ]
        cells = [r["likelihood"], r["sharpness"], str(r["m"]), r["method"], *(f"{x:.2f}" for x in numbers)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"relative to the paper's way at m = {max(_eight(rows))}"])


def _eight(rows: list[dict[str, Any]]) -> list[int]:
    """Sizes up to 8, or the smallest there is."""
    return [r["m"] for r in rows if r["m"] <= 8] or [min(r["m"] for r in rows)]


if __name__ == "__main__":
    main()
