"""How the exponent of the likelihood changes the teacher, and what a selector learns from it: the tau curve.

    python -m benchmarks.tau_curve --index DIR --base DIR --questions FILE --cache FILE [--limit 100] [--json]
    python -m benchmarks.tau_curve ... --selected 1 --exact          # single passages (REPLUG, RAG-Sequence)

One E-step scores every question; its numbers go to `--cache`, a line of JSON for each question, and all exponents come
from those. `--seconds` ends the E-step in time; called again with the same cache it goes on, and with `--limit` already
reached no model is loaded. Questions need gold ids, which nothing is fitted to.

| column | what it is |
|---|---|
| tau | 0 is the selector itself; auto is `training.tempering`'s |
| gold share | expected share of the gold ids in a list that the posterior draws, and its paired difference to tau 0 |
| recall | share of the gold ids among the K candidates of largest marginal, and that difference |
| cross-entropy | from the gold candidates to the marginals, nats |
| ESS | of the permutations |
| log p_g | expected log-likelihood of the answer over the posterior's lists, nats |
| student share, recall | of the selector after its prior weights were fitted to the posteriors of the other half |

Differences have 95 % intervals (normal approximation, over questions).
"""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.question_cache import Record, cache_arguments, cached_records, print_rows
from indexes.corpora.passage import Passage
from rag import RAG
from retriever.candidates import Candidates
from retriever.permutations import Permutations
from retriever.selector_config import SelectorConfig
from training import DROConfig, load_examples
from training.config import FALLBACK_EXPONENT, EStepConfig
from training.estimation import EStep
from training.gold_agreement import GoldAgreement
from training.losses import baseline_weights
from training.posterior import Posterior
from training.prior_weights import Components, current_weights, fit_prior_weights, log_prob
from training.questions.example import QAExample
from training.tempering import fit_exponent

TAUS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)


def main() -> None:
    """Parse the arguments and print the table, or the rows as JSON."""
    args = _arguments()
    print_rows(args, _records(args), curve, _text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache_arguments(parser)
    parser.add_argument("--base", default="tiny", help="causal LM: name, Hub id, folder or GGUF file")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default=None)
    parser.add_argument("--selector", default="listwise", help="its kind")
    parser.add_argument("--candidates", type=int, default=10, help="n")
    parser.add_argument("--selected", type=int, default=3, help="K")
    parser.add_argument("--permutations", type=int, default=16, help="m, all of them scored")
    parser.add_argument("--exact", action="store_true", help="enumerate the permutations in place of drawing m")
    return parser.parse_args()


# -- one E-step ----------------------------------------------------------------------------------------------------


SETTINGS = ("index", "base", "dtype", "selector", "candidates", "selected", "permutations", "exact")


def _records(args: argparse.Namespace) -> Iterator[Record]:
    """The numbers of every question."""
    examples = [e for e in load_examples(args.questions, require_answers=True, limit=args.limit) if e.gold_ids]
    return cached_records(args, SETTINGS, examples, lambda: _e_step(args))


def _e_step(args: argparse.Namespace) -> Callable[[QAExample], Record]:
    rag = RAG.create(
        index=args.index,
        encoder=args.encoder,
        base=args.base,
        dtype=args.dtype,
        device=args.device,
        selector=SelectorConfig(kind=args.selector, num_candidates=args.candidates, num_selected=args.selected),
    )
    config = DROConfig(
        e_step=EStepConfig(num_permutations=args.permutations, proposals_per_sample=1, exact=args.exact, batch_size=1)
    )
    e_step = EStep(rag.retriever, rag.selector, rag.generator, config)
    return lambda example: _record(rag, *e_step([example], round=1))


def _record(rag: RAG, posterior: Posterior) -> Record:
    drawn = posterior.permutations
    weights = rag.selector.prior_weights
    components = rag.selector.components(posterior.candidates, drawn) if weights else {}
    return {
        "id": posterior.example.id,
        "gold_ids": list(posterior.example.gold_ids),
        "candidates": posterior.candidates.ids,
        "z": drawn.z.tolist(),
        "log_p": drawn.log_p.tolist(),
        "log_q": drawn.log_q.tolist(),
        "log_likelihood": posterior.log_likelihood_m.tolist(),
        "start": {name: weight.item() for name, weight in weights.items()} if components else {},
        "components": {name: components[name].tolist() for name in weights} if components else {},
    }


def _posterior(record: Mapping[str, Any]) -> Posterior:
    """As the E-step left it, without texts and vectors."""
    ids = record["candidates"]
    nothing = torch.zeros(len(ids), 1)
    drawn = Permutations(torch.tensor(record["z"]), torch.tensor(record["log_p"]), torch.tensor(record["log_q"]))
    log_likelihood_m = torch.tensor(record["log_likelihood"])
    candidates = Candidates("", [Passage(i, i, "") for i in ids], nothing[:, 0], nothing[0], nothing)
    return Posterior(
        example=QAExample(record["id"], "", ("",), tuple(record["gold_ids"])),
        answer="",
        candidates=candidates,
        permutations=drawn,
        log_likelihood_m=log_likelihood_m,
        weights_m=torch.zeros(len(drawn)),
        baseline_m=baseline_weights(drawn.log_p, drawn.log_q),
        log_omega_m=log_likelihood_m,
    ).tempered(1.0)


# -- the curve -----------------------------------------------------------------------------------------------------


def curve(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each exponent."""
    posteriors = [_posterior(record) for record in records]
    components = [tuple(torch.tensor(part) for part in record["components"].values()) for record in records]
    known: Components = components if all(components) else []
    start = records[0]["start"]
    found = fit_exponent(_selector(start), posteriors, known, fallback=FALLBACK_EXPONENT)
    rows: list[dict[str, Any]] = []
    plain = _figures([p.tempered(0.0) for p in posteriors])
    for name, tau in [*((f"{tau:g}", tau) for tau in TAUS), ("auto", found.exponent)]:
        tempered = [p.tempered(tau) for p in posteriors]
        figures = _figures(tempered)
        student = _student(tempered, known, start) if known else {}
        rows.append(
            {
                "tau": name,
                "exponent": tau,
                "agreement": found.agreement.get(tau),
                **{key: _mean(values) for key, values in figures.items()},
                **{f"{key}_gain": _difference(figures[key], plain[key]) for key in ("gold_share", "recall")},
                **student,
            }
        )
    return rows


def _selector(weights: Mapping[str, float]) -> Any:
    """What the fits need of a selector: its prior weights."""
    return SimpleNamespace(prior_weights={name: torch.tensor([value]) for name, value in weights.items()})


def _figures(posteriors: Sequence[Posterior]) -> dict[str, list[float]]:
    diagnostics = [p.diagnostics() for p in posteriors]
    names = {
        "gold_share": "posterior_gold_share",
        "recall": "posterior_recall",
        "cross_entropy": "posterior_cross_entropy",
        "ess": "ess",
        "log_likelihood": "log_likelihood",
    }
    return {key: [value for d in diagnostics if (value := getattr(d, name)) is not None] for key, name in names.items()}


def _student(posteriors: Sequence[Posterior], components: Components, start: Mapping[str, float]) -> dict[str, float]:
    """Gold figures of selectors that were fitted to the posteriors of one half, on the questions of the other."""
    found: list[GoldAgreement] = []
    for half in (0, 1):
        taught: Any = _selector(start)
        others = slice(1 - half, None, 2)
        fit_prior_weights(taught, posteriors[others], components=components[others])
        for i in range(half, len(posteriors), 2):
            drawn = posteriors[i].permutations
            log_p_m = log_prob(current_weights(taught), [part[None] for part in components[i]], drawn.z[None])[0]
            found.append(
                GoldAgreement.of(
                    posteriors[i].candidates.ids,
                    posteriors[i].example.gold_ids,
                    drawn.z,
                    baseline_weights(log_p_m, drawn.log_q),
                )
            )
    return {
        "student_gold_share": _mean([one.gold_share for one in found]),
        "student_recall": _mean([one.recall for one in found]),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _difference(values: Sequence[float], plain: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval of paired differences."""
    difference = torch.tensor(values, dtype=torch.float64) - torch.tensor(plain, dtype=torch.float64)
    mean = float(difference.mean())
    half = 1.96 * float(difference.std(correction=0)) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _text(rows: Sequence[Mapping[str, Any]], questions: int) -> str:
    lines = [f"{questions} questions"]
    columns = ("gold_share", "recall", "cross_entropy", "ess", "log_likelihood", "student_gold_share", "student_recall")
    lines.append("tau".ljust(12) + "".join(name.rjust(20) for name in columns))
    for row in rows:
        name = row["tau"] if row["tau"] != "auto" else f"auto ({row['exponent']:g})"
        cells = []
        for column in columns:
            cell = f"{row[column]:.3f}" if column in row else ""
            if f"{column}_gain" in row and row["exponent"]:
                mean, low, high = row[f"{column}_gain"]
                cell += f" {mean:+.3f}"
                cell += f" [{low:+.2f},{high:+.2f}]" if low > 0 or high < 0 else ""
            cells.append(cell.rjust(20))
        lines.append(name.ljust(12) + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
