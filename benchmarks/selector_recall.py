"""Which selector finds the gold passages: recall among the first candidates, with intervals.

    python -m benchmarks.selector_recall --index DIR --base smollm2 --questions FILE --cache FILE [--candidates 10]
    python -m benchmarks.selector_recall ... --bundle RUN/bundle [--bundle ...]      # trained selectors beside them

Each question is read once; its numbers go to `--cache`, a line of JSON for each, which a later call continues. With
`--seconds` it ends in time; a complete cache loads no model. Questions need gold ids.

| row | ranking |
|---|---|
| retriever | its order |
| identifiers | the list-wise selector without the retriever's scores, untrained, of shuffled candidates; up to 26 |
| question likelihood | mean log p(question given passage) alone, untrained |
| pooled | the untrained selector `kind="question_likelihood"`: both, with its start weights |
| the name of a bundle | its selector |
| all candidates | the share of the gold ids among the n candidates, which nothing exceeds |

`recall@k` is the share of a question's gold ids among the first k; behind it the 95 % bootstrap interval over
questions. The last column is the paired difference of recall@3 from the retriever's.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.question_cache import Record, cache_arguments, cached_records, print_rows
from rag import RAG, SelectorConfig
from rag.evaluation.significance import estimate, paired_bootstrap
from rag.metrics import gold_recall
from retriever.candidates import Candidates
from retriever.listwise_selector import ListwiseSelector
from retriever.question_likelihood_selector import QuestionLikelihoodSelector
from retriever.selector import Selector, standardise
from training import load_examples
from training.posterior import stable_seed
from training.questions.example import QAExample

CUTS = (1, 3, 5)
LETTERS = 26
RETRIEVER, IDENTIFIERS, LIKELIHOOD = "retriever", "identifiers", "question likelihood"
POOLED, CEILING = "pooled", "all candidates"


def main() -> None:
    """Parse the arguments and print the table, or the rows as JSON."""
    args = _arguments()
    print_rows(args, _records(args), table_rows, _text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache_arguments(parser)
    parser.add_argument("--base", default="smollm2", help="causal LM: name, Hub id, folder or GGUF file")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--candidates", type=int, default=10, help="n")
    parser.add_argument("--passage_tokens", type=int, default=160, help="tokens of a passage that are read")
    parser.add_argument("--bundle", action="append", default=[], help="of a trained pipeline over the same base")
    parser.add_argument("--without_identifiers", action="store_true", help="leave the list-wise selector out")
    return parser.parse_args()


# -- rankings --------------------------------------------------------------------------------------------------------


SETTINGS = ("index", "base", "dtype", "candidates", "passage_tokens", "bundle", "without_identifiers")


def _records(args: argparse.Namespace) -> Iterator[Record]:
    """The rankings of every question."""
    examples = [e for e in load_examples(args.questions, limit=args.limit) if e.gold_ids]
    return cached_records(args, SETTINGS, examples, lambda: _selectors(args))


def _selectors(args: argparse.Namespace) -> Callable[[QAExample], Record]:
    options = {"passage_tokens": args.passage_tokens}
    config = SelectorConfig(kind="question_likelihood", num_candidates=args.candidates, num_selected=1, options=options)
    rag = RAG.create(index=args.index, encoder=args.encoder, base=args.base, dtype=args.dtype, selector=config)
    trained = {
        Path(bundle).parent.name: RAG.from_pretrained(bundle, index=args.index, dtype=args.dtype).selector
        for bundle in args.bundle
    }
    with_letters = args.candidates <= LETTERS and not args.without_identifiers
    letters = {IDENTIFIERS: _identifiers(rag, args.candidates)} if with_letters else {}

    def measure(example: QAExample) -> Record:
        candidates = rag.retriever.search(example.question, args.candidates)
        orders = {**untrained_orders(rag.selector, candidates), **_orders(trained, candidates)}
        orders |= _orders_of_shuffled(letters, candidates, example.id)
        ids = [passage.id for passage in candidates.passages]
        return {"id": example.id, "gold_ids": list(example.gold_ids), "ids": ids, "orders": orders}

    return measure


def _identifiers(rag: RAG, candidates: int) -> Selector:
    sizes = SelectorConfig(num_candidates=candidates, num_selected=min(max(CUTS), candidates), use_prior=False)
    return ListwiseSelector(rag.selector.language_model, rag.retriever, config=sizes)


@torch.no_grad()
def untrained_orders(selector: Selector, candidates: Candidates) -> dict[str, list[int]]:
    """Orders by each half of the logits alone and by both together, from one reading."""
    assert isinstance(selector, QuestionLikelihoodSelector)
    u_n = standardise(selector.question_log_likelihoods([candidates])[0]).cpu()
    r_n = selector.prior_scores(candidates).cpu()
    gate, strength = (float(selector.prior_weights[name]) for name in ("gate", "strength"))
    found = {RETRIEVER: r_n, LIKELIHOOD: u_n, POOLED: gate * u_n + strength * r_n}
    return {name: logits_n.argsort(descending=True, stable=True).tolist() for name, logits_n in found.items()}


def _orders(selectors: dict[str, Selector], candidates: Candidates) -> dict[str, list[int]]:
    """The beginning of each selector's order: as many candidates as it selects."""
    return {name: selector.select([candidates])[0].z[0].tolist() for name, selector in selectors.items()}


def _orders_of_shuffled(selectors: dict[str, Selector], candidates: Candidates, seed: str) -> dict[str, list[int]]:
    """As `_orders`, of candidates in random order: always the first letters would be the retriever's."""
    generator = torch.Generator().manual_seed(stable_seed("shuffled candidates", seed))
    places = torch.randperm(len(candidates), generator=generator).tolist()
    found = _orders(selectors, candidates.reordered(places))
    return {name: [places[i] for i in order] for name, order in found.items()}


# -- the table -------------------------------------------------------------------------------------------------------


def table_rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """One row for each ranking, the ceiling last."""
    rows = []
    names = list(records[0]["orders"])
    by_retriever = _recalls(records, RETRIEVER, 3)
    for name in names:
        row: dict[str, Any] = {"selector": name}
        for k in CUTS:
            if min(len(record["orders"][name]) for record in records) >= k:
                found = estimate(_recalls(records, name, k))
                row |= {f"recall@{k}": found.value, f"interval@{k}": found.interval}
        if name != RETRIEVER and "recall@3" in row:
            against = paired_bootstrap(_recalls(records, name, 3), by_retriever)
            row |= {"difference": against.difference, "interval": against.interval, "p": against.p}
        rows.append(row)
    ceiling = estimate([gold_recall(r["ids"], r["gold_ids"], len(r["ids"])) for r in records])
    return [*rows, {"selector": CEILING, **{f"recall@{k}": ceiling.value for k in CUTS}}]


def _recalls(records: Sequence[Record], name: str, k: int) -> list[float]:
    return [gold_recall([r["ids"][i] for i in r["orders"][name]], r["gold_ids"], k) for r in records]


def _text(rows: Sequence[Record], questions: int) -> str:
    header = ["selector", *(f"recall@{k}" for k in CUTS), "recall@3 - retriever's"]
    lines = [f"{questions} questions", "", f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for row in rows:
        cells = [row["selector"], *(_with_interval(row.get(f"recall@{k}"), row.get(f"interval@{k}")) for k in CUTS)]
        cells.append(_with_interval(row.get("difference"), row.get("interval"), sign="+"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _with_interval(value: float | None, interval: tuple[float, float] | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value:{sign}.3f}" + ("" if interval is None else " [{:.3f}, {:.3f}]".format(*interval))


if __name__ == "__main__":
    main()
