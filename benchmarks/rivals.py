"""The rivals' way, written from what their code does: the DRO authors' scripts, SelfAug's, Hugging Face's RAG.

Where theirs is not the mathematics (means instead of sums, a weight of 1 for all), the mathematics is kept, so that
results can be compared; how the work is done is theirs: inputs repeated before the prefill, one sequence for each
permutation, logits of all tokens over the whole vocabulary, copies, rows in file order.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from benchmarks.setting import Pipeline, rows_of
from generator.adapters import BASE
from generator.answer_sequences import AnswerSequence
from generator.language_model import LanguageModel
from generator.padding import length_mask, pad_right
from retriever.permutations import sequential_log_prob
from retriever.selector import standardise
from training.posterior import Posterior

REPLY_TOKENS = 24
"""That "[3] > [1] > [20] > [7] > [12]" takes."""


def sample(p: Pipeline, m: int) -> Tensor:
    """M free replies to each ranking prompt: `generate(num_return_sequences=m)`, which repeats the prompt first."""
    model = p.model
    prompts = [p.selector.prompt_ids(c) for c in p.candidates]
    ids_BP, _ = pad_right(prompts, model.end_of_answer_id, model.device)
    settings = GenerationConfig(
        max_new_tokens=REPLY_TOKENS,
        min_new_tokens=REPLY_TOKENS,
        do_sample=True,
        temperature=0.7,
        top_p=0.95,
        num_return_sequences=m,
        eos_token_id=model.end_of_answer_id,
        pad_token_id=model.end_of_answer_id,
    )
    with torch.no_grad(), model.use("selector"), model.autocast():
        return model.base_model.generate(ids_BP, attention_mask=torch.ones_like(ids_BP), generation_config=settings)


def log_probs(model: LanguageModel, rows: Sequence[AnswerSequence], batch_size: int = 8) -> Tensor:
    """Log p(y | x, d) with logits of every token over the whole vocabulary, in file order."""
    found = []
    with torch.no_grad(), model.use("generator"):
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            found.append(-_cross_entropy(*_logits(model, batch), batch))
    return torch.cat(found)


def _logits(model: LanguageModel, rows: Sequence[AnswerSequence]) -> tuple[Tensor, Tensor]:
    ids_BT, lengths_B = pad_right([row.input_ids for row in rows], model.end_of_answer_id, model.device)
    mask_BT = length_mask(lengths_B, ids_BT.shape[1])
    with model.autocast():
        return model.base_model(input_ids=ids_BT, attention_mask=mask_BT).logits, ids_BT


def _labels(rows: Sequence[AnswerSequence], ids_BT: Tensor) -> Tensor:
    labels_BT = torch.full_like(ids_BT, -100)
    for i, row in enumerate(rows):
        labels_BT[i, len(row.prompt_ids) : len(row.input_ids)] = ids_BT[i, len(row.prompt_ids) : len(row.input_ids)]
    return labels_BT


def _cross_entropy(logits_BTV: Tensor, ids_BT: Tensor, rows: Sequence[AnswerSequence]) -> Tensor:
    """Of each row, from logits of all its tokens."""
    labels_BT = _labels(rows, ids_BT)
    shifted_BTV = logits_BTV[..., :-1, :].float().contiguous()
    losses = nn.functional.cross_entropy(
        shifted_BTV.view(-1, shifted_BTV.shape[-1]), labels_BT[..., 1:].reshape(-1), reduction="none"
    )
    return losses.view(len(rows), -1).sum(-1)


def selector_loss(p: Pipeline, posteriors: Sequence[Posterior]) -> Tensor:
    """The M-step of the selector with one sequence for each permutation and logits of all tokens."""
    total = torch.zeros((), device=p.model.device)
    for posterior in posteriors:
        log_p_m = selector_log_probs(p, posterior)
        weights_m = posterior.weights_m.to(log_p_m)
        total = total - (weights_m * log_p_m).sum() / p.selector.config.num_selected
    return total


def selector_log_probs(p: Pipeline, posterior: Posterior, *, steps_late: int = 0) -> Tensor:
    """Log p_s of each permutation, from a sequence of its own. `steps_late` reads the logits at the wrong place."""
    selector, z_mK = p.selector, posterior.permutations.z.to(p.model.device)
    prompt = torch.tensor(selector.prompt_ids(posterior.candidates), device=p.model.device)
    names_n = torch.tensor(selector.identifiers.token_ids, device=p.model.device)
    separator = torch.tensor(selector.separator_ids, device=p.model.device)
    m, K = z_mK.shape
    replies = torch.cat([names_n[z_mK].unsqueeze(-1), separator.expand(m, K, -1)], dim=-1).flatten(1)
    ids_mT = torch.cat([prompt.expand(m, -1), replies], dim=1)
    with p.model.autocast():
        logits_mTV = p.model.base_model(input_ids=ids_mT, attention_mask=torch.ones_like(ids_mT)).logits.float()
    due_K = len(prompt) - 1 + (1 + len(separator)) * torch.arange(K, device=ids_mT.device) + steps_late
    lm_mKn = logits_mTV[:, due_K][..., names_n]
    prior_n = standardise(posterior.candidates.scores.to(lm_mKn.device))
    pooled_mKn = selector.prior(lm_mKn, prior_n)
    return sequential_log_prob(pooled_mKn, z_mK, torch.zeros(m, len(prior_n), dtype=torch.bool, device=z_mK.device))


def selfaug_head(tuned_BTV: Tensor, base_BTV: Tensor, prompt_BT: Tensor) -> Tensor:
    """SelfAug's KL from two full tensors of logits: upcast, softmax of everything, then masked copies."""
    tuned_BTV, base_BTV = tuned_BTV.float(), base_BTV.float()
    log_q = nn.functional.log_softmax(tuned_BTV, dim=-1)[prompt_BT]
    p = nn.functional.softmax(base_BTV, dim=-1)[prompt_BT]
    return nn.functional.kl_div(log_q, p, reduction="batchmean")


def generator_loss(p: Pipeline, posteriors: Sequence[Posterior], alpha: float = 0.5) -> Tensor:
    """The M-step of the generator with SelfAug: full logits of the tuned model and of the base."""
    model = p.model
    total = torch.zeros((), device=model.device)
    for posterior in posteriors:
        rows = rows_of(p, posterior)
        with torch.no_grad(), model.use(BASE):
            base_BTV, _ = _logits(model, rows)
        with model.use("generator"):
            tuned_BTV, ids_BT = _logits(model, rows)
        weights_B = posterior.weights_m.to(model.device)
        nll = (weights_B * _cross_entropy(tuned_BTV, ids_BT, rows) / len(rows[0].answer_ids)).sum()
        # Positions that predict a prompt token; theirs counts padding and the last prompt token too.
        lengths_B = torch.tensor([len(row.prompt_ids) - 1 for row in rows], device=model.device)
        total = total + nll + alpha * selfaug_head(tuned_BTV, base_BTV, length_mask(lengths_B, ids_BT.shape[1]).bool())
    return total
