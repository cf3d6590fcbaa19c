"""Looking inside: what the model reads, what one E-step drew and how it weighed it, and what the M-step makes of a row.

Everything shown comes from the functions that train (`training.estimation.EStep`, `training.maximization.JointModel`),
so what is seen here is what is learned from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from generator.generator import AnswerSequence
from generator.log_probs import answer_positions
from generator.padding import pad_right
from indexes.corpora.chunk_ids import gold_document
from rag.pipeline import RAG
from rag.text_tables import cell, table
from training import DROConfig, QAExample
from training.estimation import EStep
from training.joint_model import JointModel, MicroBatch
from training.losses import selfaug_positions
from training.posterior import Posterior


def inspect_prompts(rag: RAG, question: str) -> dict[str, Any]:
    """What the model reads for a question, to the letter.

    Returns:
        `question`; `ranking_prompt` of the selector, ending where the first identifier is due, and `answer_prompt` of
        the generator, both as text with all control tokens; `template_system_message`, which the base's chat template
        adds by itself where none is given (None: none that can be told apart); `chat`, the settings; `end_of_answer`,
        the token that closes an answer, and `stop_tokens`, every one that ends a reply.
    """
    model = rag.generator.language_model
    candidates = rag.retriever.search(question, rag.num_candidates)
    z = rag.selector.select([candidates])[0].z[0].tolist()
    ranking = rag.selector.prompts(candidates)
    answer = rag.generator.prompt_ids(question, [candidates.passages[i] for i in z])
    name = model.tokenizer.convert_ids_to_tokens
    return {
        "question": question,
        "ranking_prompt": "\n\n".join(str(model.tokenizer.decode(prompt)) for prompt in ranking),
        "answer_prompt": str(model.tokenizer.decode(answer)),
        "template_system_message": model.chat.template_system_message,
        "chat": asdict(model.chat.config),
        "end_of_answer": name(model.end_of_answer_id),
        "stop_tokens": [name(i) for i in model.chat.stop_ids],
    }


def prompts_text(data: Mapping[str, Any]) -> str:
    """What `inspect_prompts` found, for people."""
    own = data["template_system_message"]
    settings = ", ".join(f"{name}={value!r}" for name, value in data["chat"].items())
    lines = [
        f"system message of the chat template itself: {'none' if own is None else repr(own)}",
        f"settings of the chat template: {settings}",
        f"an answer is closed by {data['end_of_answer']!r}; a reply ends at any of {data['stop_tokens']}",
    ]
    prompts = [f"-- {kind} prompt --\n{data[f'{kind}_prompt']}" for kind in ("ranking", "answer")]
    return "\n\n".join(["\n".join(lines), *prompts])


def inspect_permutations(rag: RAG, example: QAExample, config: DROConfig, *, round: int = 1) -> dict[str, Any]:
    """The E-step of one question, as data.

    Guesses come from a model that is fitted to this question alone; in training the questions of a batch share it.

    Args:
        rag: The pipeline.
        example: A question with golden answers; with gold ids the gold passages are marked.
        config: How it samples and weighs.
        round: Number of the round, which with the seed fixes every draw.

    Returns:
        `candidates` in the order of the selector's prompt, each with its posterior `marginal` (the probability that
        it is read); `permutations`, heaviest first, each with how often it was drawn, log p_s, log q,
        log p(y|x,d_z) and whether that was `scored` or is a guess, w and b; and the `diagnostics` of the E-step.
    """
    posterior = EStep(rag.retriever, rag.selector, rag.generator, config)([example], round=round)[0]
    rows = _drawn(posterior)
    return {
        "question": example.question,
        "answer": posterior.answer,
        "candidates": _candidates(posterior, example),
        "permutations": sorted(rows, key=lambda row: -row["weight"]),
        "diagnostics": posterior.diagnostics().to_dict(),
    }


def _drawn(posterior: Posterior) -> list[dict[str, Any]]:
    """One row per distinct permutation."""
    drawn, d = posterior.permutations, posterior.distinct()
    inverse_m = drawn.distinct()[1].tolist()
    scored = set(range(len(drawn)) if posterior.scored is None else posterior.scored.index_m.tolist())
    rows = []
    for u, z_K in enumerate(d.z_uK.tolist()):
        first = inverse_m.index(u)
        rows.append(
            {
                "positions": z_K,
                "ids": [posterior.candidates.ids[i] for i in z_K],
                "times": inverse_m.count(u),
                "log_p": float(drawn.log_p[first]),
                "log_q": float(drawn.log_q[first]),
                "log_likelihood": float(posterior.log_likelihood_m[first]),
                "scored": first in scored,
                "weight": float(d.weights_u[u]),
                "baseline": None if d.baseline_u is None else float(d.baseline_u[u]),
            }
        )
    return rows


def _candidates(posterior: Posterior, example: QAExample) -> list[dict[str, Any]]:
    found, marginals = posterior.candidates, posterior.marginals().tolist()
    return [
        {
            "position": i,
            "id": passage.id,
            "title": passage.title,
            "score": float(score),
            "gold": gold_document(passage.id, example.gold_ids) is not None,
            "marginal": marginals[i],
        }
        for i, (passage, score) in enumerate(zip(found.passages, found.scores, strict=True))
    ]


def permutations_text(data: Mapping[str, Any]) -> str:
    """What `inspect_permutations` found, as text."""
    candidates = [
        [
            f"[{c['position'] + 1}]{' *' if c['gold'] else ''}",
            f"{c['marginal']:.3f}",
            cell(c["score"]),
            c["id"],
            c["title"],
        ]
        for c in data["candidates"]
    ]
    permutations = [
        [
            " > ".join(f"[{i + 1}]" for i in p["positions"]),
            str(p["times"]),
            f"{p['log_p']:.3f}",
            f"{p['log_q']:.3f}",
            f"{'' if p['scored'] else '~'}{p['log_likelihood']:.3f}",
            cell(p["weight"]),
            cell(p["baseline"]),
        ]
        for p in data["permutations"]
    ]
    notes = [] if all(p["scored"] for p in data["permutations"]) else ["~: predicted, not scored by the generator"]
    return "\n".join(
        [
            data["question"],
            f"answer that is scored: {data['answer']}",
            "",
            table(["candidate (* gold)", "P(read)", "score", "id", "title"], candidates),
            "",
            table(["permutation", "times", "log p", "log q", "log p(y|z)", "w", "b"], permutations),
            *notes,
            "",
            *(f"{name}: {value:.4g}" for name, value in data["diagnostics"].items()),
        ]
    )


# -- rows of the M-step ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """One token of a row, and what is asked of the prediction *of it* (made one position earlier)."""

    id: int
    text: str
    part: str
    """"prompt", "answer" or "padding"."""
    aligned: bool
    """SelfAug compares its prediction with the base's."""
    scored: bool
    """Its log-probability is part of log p(y | x, d_z)."""


def inspect_batch(
    rag: RAG, examples: Sequence[QAExample], config: DROConfig, *, round: int = 1
) -> list[dict[str, Any]]:
    """The generator's rows of one micro-batch, token by token.

    Args:
        rag: The pipeline.
        examples: The questions of the micro-batch.
        config: How it is trained.
        round: Number of the round.

    Returns:
        Per row: `question`, the permutation's ids, its posterior `weight`, and its `tokens` (`Token` as dictionaries),
        padded as in training.
    """
    posteriors = EStep(rag.retriever, rag.selector, rag.generator, config)(examples, round=round)
    joint = JointModel(rag.selector, rag.generator, config)
    micro_batch = MicroBatch("generator", tuple(posteriors), num_questions=len(posteriors), seed=config.seed)
    rows, weights_R, aligned = joint.sequences(micro_batch)
    tokens = _tokens(rag, rows, set(aligned.sequences))
    owners = [(p.example, p.candidates, z) for p in posteriors for z in p.distinct_scored().z_uK.tolist()]
    return [
        {
            "question": example.question,
            "ids": [candidates.ids[i] for i in z],
            "weight": float(weight),
            "tokens": [asdict(token) for token in row],
        }
        for (example, candidates, z), weight, row in zip(owners, weights_R, tokens, strict=True)
    ]


def _tokens(rag: RAG, rows: Sequence[AnswerSequence], aligned_rows: set[int]) -> list[list[Token]]:
    model = rag.generator.language_model
    ids_BT, lengths_B = pad_right([row.input_ids for row in rows], model.end_of_answer_id, torch.device("cpu"))
    answers_B = torch.tensor([len(row.answer_ids) for row in rows])
    prompts_B = lengths_B - answers_B
    scored_BT = _predicted(ids_BT, *answer_positions(prompts_B, answers_B))
    aligned_BT = _predicted(ids_BT, *selfaug_positions(prompts_B, torch.ones(len(rows)))[:2])
    result = []
    for b in range(len(rows)):
        parts = ["prompt"] * int(prompts_B[b]) + ["answer"] * int(answers_B[b])
        parts += ["padding"] * (ids_BT.shape[1] - len(parts))
        result.append(
            [
                Token(int(i), str(model.tokenizer.decode([int(i)])), part, bool(a) and b in aligned_rows, bool(s))
                for i, part, a, s in zip(ids_BT[b], parts, aligned_BT[b], scored_BT[b], strict=True)
            ]
        )
    return result


def _predicted(ids_BT: Tensor, rows_N: Tensor, positions_N: Tensor) -> Tensor:
    """True at the tokens that these positions predict: each the one after it."""
    mask_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    mask_BT[rows_N, positions_N + 1] = True
    return mask_BT


def batch_text(rows: Sequence[Mapping[str, Any]], decode: Any) -> str:
    """What `inspect_batch` found, for people: neighbouring tokens of one role together.

    Args:
        rows: What it returned.
        decode: From token ids to text.
    """
    lines: list[str] = []
    for number, row in enumerate(rows, 1):
        lines += [f"row {number}: {row['question']}   w = {row['weight']:.4f}   reads {', '.join(row['ids'])}"]
        start = 0
        for role, group in groupby(row["tokens"], key=_role):
            tokens = list(group)
            text = decode([token["id"] for token in tokens])
            lines.append(f"  {start:5d}-{start + len(tokens) - 1:<5d} {role:<18} {text!r}")
            start += len(tokens)
    return "\n".join(lines)


def _role(token: Mapping[str, Any]) -> str:
    return " + ".join([token["part"], *(["KL"] if token["aligned"] else []), *(["scored"] if token["scored"] else [])])
