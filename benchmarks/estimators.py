"""How wrong each way to estimate the posterior and the selector's gradient is, against the enumerated truth.

    python -m benchmarks.estimators [--json]
    python -m benchmarks.estimators --pipeline DIR --questions FILE [--limit 40] [--json]

A problem is a selector over permutations of K of n candidates (logits that depend on what was chosen before) and a
log-likelihood of the answer for every permutation: candidates are useful or not, those that are read first count more,
and a part belongs to the permutation alone. Sharpness scales the selector's logits; a mild likelihood spans a few
nats, a peaked one several times as much. Each candidate alone is seen with noise of its own. With a pipeline, the
problems are questions: its selector and its generator are asked about every permutation, so n and K must be small.

| method | proposal | weights |
|---|---|---|
| none | none: the selector as it is for the posterior, and 0 for the gradient | |
| paper | T = 0.7, with replacement, duplicates dropped | the likelihood alone, not corrected |
| snis | the selector, with replacement | self-normalised p/q times the likelihood |
| without | the selector, without replacement | the same by inclusion probabilities (Kool et al. 2019) |
| + cv | as before it | less the control variate b |
| guided | half selector, half guided, without replacement | the same, with the control variate |
| imputed | 8 m different ones from the selector, of which m are scored | the same, the others guessed |
| imputed, scored ones | the same | of the scored ones alone: what the generator learns from |
| ..., same cost | as many permutations fewer as n rows of one passage cost | |

Guided and imputed need what each candidate says alone, n rows of one passage; "same cost" pays for them with n/K
permutations. Guesses are those of `training.imputation`, with one model for all problems of a regime.

Errors are means over problems, relative to nothing: `posterior_mse` sums over permutations, `gradient_bias` (squared),
`gradient_variance` and their sum `gradient_mse` over the logits of the tree.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rag import RAG
from retriever.permutations import enumerate_permutations, log_inclusion, standard_gumbel
from training import DROConfig, load_examples
from training.config import EStepConfig
from training.estimation import EStep
from training.imputation import Surrogate, choose_permutations_to_score, features
from training.losses import baseline_weights, log_importance_weights, posterior_weights
from training.posterior import Posterior

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
    parser.add_argument("--pipeline", help="folder of a saved pipeline whose questions are the problems")
    parser.add_argument("--questions", help="with --pipeline: file of questions with answers")
    parser.add_argument("--limit", type=int, default=40, help="with --pipeline: only the first so many")
    parser.add_argument("--repeats", type=int, default=600, help="E-steps of each problem")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    args = parser.parse_args()
    rows = list(measure(args))
    print(json.dumps(rows) if args.json else _text(rows))


def measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every method at every m in every regime."""
    for likelihood, sharpness, problems in _regimes(args):
        for m in args.samples:
            generator = torch.Generator().manual_seed(args.seed)
            for name, method in METHODS.items():
                estimates = method(problems, m, args.repeats, generator)
                errors = [p.errors(*estimate) for p, estimate in zip(problems, estimates, strict=True)]
                posterior, bias, variance = torch.stack(errors).mean(0).tolist()
                yield {
                    "method": name,
                    "m": m,
                    "sharpness": sharpness,
                    "likelihood": likelihood,
                    "posterior_mse": posterior,
                    "gradient_bias": bias,
                    "gradient_variance": variance,
                    "gradient_mse": bias + variance,
                }


def _regimes(args: argparse.Namespace) -> Iterator[tuple[str, str, list["Problem"]]]:
    if args.pipeline:
        yield "measured", "measured", measured(args)
        return
    tree = Tree.of(args.candidates, args.selected)
    for likelihood, scale in LIKELIHOOD.items():
        for sharpness, spread in SHARPNESS.items():
            seeds = [1000 * args.seed + number for number in range(args.problems)]
            yield likelihood, sharpness, [Problem.drawn(tree, spread, scale, seed) for seed in seeds]


def measured(args: argparse.Namespace) -> list["Problem"]:
    """Questions of a saved pipeline."""
    rag = RAG.from_pretrained(args.pipeline)
    settings = DROConfig(e_step=EStepConfig(exact=True, candidate_order="retriever"))
    selector = rag.selector.config
    tree = Tree.of(selector.num_candidates, selector.num_selected)
    examples = load_examples(args.questions, limit=args.limit)
    return [
        Problem.of(tree, rag, p) for p in EStep(rag.retriever, rag.selector, rag.generator, settings)(examples, round=1)
    ]


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
    single_passage_log_likelihood_n: Tensor
    """Log-likelihood of each candidate alone, as the guide sees it."""

    @classmethod
    def of(cls, tree: Tree, rag: RAG, exact: Posterior) -> "Problem":
        """An enumerated question: logits from the log-probabilities of the leaves, step by step."""
        # A choice is as probable as the leaves behind it together; what all choices of a node have in common cancels.
        prob_N = exact.permutations.log_p.double().softmax(-1)
        P, n = tree.used_Pn.shape
        prob_Pn = torch.zeros(P * n, dtype=torch.float64)
        for nodes_N, choices_N in zip(tree.nodes_NK.T, tree.leaves_NK.T, strict=True):
            prob_Pn.index_add_(0, nodes_N * n + choices_N, prob_N)
        logits_Pn = prob_Pn.view(P, n).clamp_min(1e-300).log().float()
        found = exact.candidates
        single_passage_log_likelihood_n = rag.generator.log_probs(
            [rag.generator.answer_sequence(found.question, [p], exact.answer) for p in found.passages]
        )
        return cls(
            tree,
            logits_Pn,
            tree.log_prob(logits_Pn),
            exact.log_likelihood_m.float(),
            single_passage_log_likelihood_n.float(),
        )

    @classmethod
    def drawn(cls, tree: Tree, sharpness: float, scale: float, seed: int) -> "Problem":
        """Two useful candidates, one of them half as much; what is read first counts more."""
        generator = torch.Generator().manual_seed(seed)
        (P, n), k = tree.used_Pn.shape, tree.leaves_NK.shape[1]
        own_n = sharpness * torch.randn(n, generator=generator)
        logits_Pn = own_n + 0.3 * sharpness * torch.randn(P, n, generator=generator)
        useful_n = torch.zeros(n)
        useful_n[torch.randperm(n, generator=generator)[:2]] = torch.tensor([1.0, 0.5])
        place_K = torch.linspace(1.0, 0.6, k)
        read_N = (useful_n[tree.leaves_NK] * place_K).sum(-1)
        likelihood_N = scale * (read_N + 0.15 * torch.randn(len(read_N), generator=generator))
        single_passage_log_likelihood_n = scale * (useful_n + 0.15 * torch.randn(n, generator=generator))
        return cls(tree, logits_Pn, tree.log_prob(logits_Pn), likelihood_N, single_passage_log_likelihood_n)

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
Method = Callable[[Sequence[Problem], int, int, torch.Generator], list[Estimate]]


def one_by_one(method: Callable[[Problem, int, int, torch.Generator], Estimate]) -> Method:
    """A method that looks at one problem at a time."""
    return lambda problems, m, repeats, generator: [method(p, m, repeats, generator) for p in problems]


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
    guide_n = GAMMA * problem.single_passage_log_likelihood_n
    guided_N = problem.tree.log_prob(problem.logits_Pn + guide_n)
    return torch.logaddexp(problem.log_p_N, guided_N) - math.log(2)


def imputed(problems: Sequence[Problem], m: int, repeats: int, generator: torch.Generator) -> list[Estimate]:
    """Many permutations, few of them scored, the others guessed from those of all problems."""
    drawn = [_oversampled(p, m, repeats, generator) for p in problems]
    scored = [choose_permutations_to_score(x, ratio_RM, m, generator)[0] for _, ratio_RM, x in drawn]
    known = [
        p.log_likelihood_N[index_RM.gather(1, scored_Rm)]
        for p, (index_RM, _, _), scored_Rm in zip(problems, drawn, scored, strict=True)
    ]
    scored_features = [
        x.gather(1, scored_Rm[..., None].expand(-1, -1, x.shape[-1]))
        for (_, _, x), scored_Rm in zip(drawn, scored, strict=True)
    ]
    surrogate = Surrogate.fit(scored_features, known)
    estimates: list[Estimate] = []
    for p, (index_RM, ratio_RM, x), scored_Rm, known_Rm in zip(problems, drawn, scored, known, strict=True):
        weights_RM = posterior_weights(ratio_RM + surrogate.complete(x, scored_Rm, known_Rm))
        N = len(p.log_p_N)
        estimates.append((_spread(index_RM, weights_RM, N), _spread(index_RM, ratio_RM.softmax(-1), N)))
    return estimates


def _oversampled(problem: Problem, m: int, repeats: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """8 m different permutations `[R, M]`, their log p_s - log q, and what their candidates say alone `[R, M, F]`."""
    index_RM, log_q_RM = _different(problem.log_p_N, min(8 * m, len(problem.log_p_N) - 1), repeats, generator)
    said = features(problem.single_passage_log_likelihood_n, problem.tree.leaves_NK[index_RM])
    return index_RM, (problem.log_p_N[index_RM] - log_q_RM).float(), said


def _at_same_cost(method: Method) -> Method:
    """Paying for the n rows of one passage with permutations of K."""

    def paid(problems: Sequence[Problem], m: int, repeats: int, generator: torch.Generator) -> list[Estimate]:
        n, k = len(problems[0].single_passage_log_likelihood_n), problems[0].tree.leaves_NK.shape[1]
        return method(problems, max(m - math.ceil(n / k), 1), repeats, generator)

    return paid


def _without_baseline(method: Method) -> Method:
    return lambda *arguments: [(weights_RN, None) for weights_RN, _ in method(*arguments)]


def nothing(problem: Problem, m: int, repeats: int, generator: torch.Generator) -> Estimate:
    """What any estimate must be better than."""
    prob_RN = problem.log_p_N.exp().expand(repeats, -1)
    return prob_RN, prob_RN


def scored_only(problem: Problem, m: int, repeats: int, generator: torch.Generator) -> Estimate:
    """What the generator learns from where others are guessed: the scored ones, which stand for all."""
    index_RM, ratio_RM, said = _oversampled(problem, m, repeats, generator)
    scored_Rm, log_inclusion_Rm = choose_permutations_to_score(said, ratio_RM, m, generator)
    index_Rm = index_RM.gather(1, scored_Rm)
    log_ratio_Rm = ratio_RM.gather(1, scored_Rm) - log_inclusion_Rm
    weights_Rm = posterior_weights(log_ratio_Rm + problem.log_likelihood_N[index_Rm])
    return _spread(index_Rm, weights_Rm, len(problem.log_p_N)), None


METHODS: dict[str, Method] = {
    "none": one_by_one(nothing),
    "paper": one_by_one(paper),
    "snis": _without_baseline(one_by_one(with_replacement)),
    "snis + cv": one_by_one(with_replacement),
    "without": _without_baseline(one_by_one(without_replacement)),
    "without + cv": one_by_one(without_replacement),
    "guided": one_by_one(guided),
    "guided, same cost": _at_same_cost(one_by_one(guided)),
    "imputed": imputed,
    "imputed, scored ones": one_by_one(scored_only),
    "imputed, same cost": _at_same_cost(imputed),
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
