"""The list-wise selector `p_s(z | x)` of DRO (arXiv 2505.03075): a language model reads all candidates and names K.

The model reads all n candidates and names K of them in order, "[C] > [A] > ...". Its reply is never free text: at each
step only the n single-token identifiers are scored, used ones are masked, and the separators are forced. So no reply is
malformed and log p_s is exact.

Data flow: `_Batch` (prompts, prior) -> first logits -> either the same logits at every step (`single_pass`)
or K-1 further steps on the shared prompt (`autoregressive`) -> `retriever.permutations`.

Legend: B questions, m permutations each, n candidates, K selected, P prompt width, H hidden size,
S tokens that follow one choice (its id and the separator).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from generator.language_model import LanguageModel
from generator.prompts import (
    RANKING_OPEN,
    RANKING_SEPARATOR,
    Identifiers,
    QuestionPrompt,
    RankingPrompt,
    encode_without_special_tokens,
)
from indexes.batching import token_budget_batches
from indexes.errors import UsageError
from retriever.candidates import Candidates
from retriever.drawing import (
    Greedy,
    IndependentDraws,
    Policy,
    StepLogits,
    StochasticBeams,
    draw,
)
from retriever.permutations import Permutations, Proposal, sequential_log_prob
from retriever.replies import Replies, replies_to
from retriever.retriever import Retriever
from retriever.retriever_prior import RetrieverPrior
from retriever.selector import ROLE, Selector, standardise
from retriever.selector_config import SamplingConfig, SelectorConfig


@dataclass(frozen=True)
class _Batch:
    """The ranking prompts of several questions, and their candidates padded to a common number."""

    prompts: list[list[int]]
    absent_Bn: Tensor
    """True where a question has fewer than n candidates."""
    prior_Bn: Tensor
    """Standardised retriever scores, 0 where absent."""


class ListwiseSelector(Selector):
    """A language model that names K of n candidates; its logits are combined with the retriever's scores.

    Args:
        language_model: The base model; its adapter `"selector"` ranks.
        retriever: Its scores form the prior.
        prompt: The ranking prompt.
        config: Sizes and decoding.
        max_tokens_per_batch: Sequences x longest prompt of one forward pass.

    Raises:
        UsageError: The tokenizer has no single tokens for so many identifiers, or the configuration has `options`.
    """

    prompt: RankingPrompt

    def __init__(
        self,
        language_model: LanguageModel,
        retriever: Retriever,
        *,
        prompt: RankingPrompt | QuestionPrompt | None = None,
        config: SelectorConfig | None = None,
        max_tokens_per_batch: int = 16384,
    ) -> None:
        super().__init__(
            language_model, retriever, prompt=prompt, config=config, max_tokens_per_batch=max_tokens_per_batch
        )
        if self.config.options:
            raise UsageError(f"The list-wise selector has no further options, got {sorted(self.config.options)}.")
        self.prior = RetrieverPrior(strength=self.prior_strength).to(language_model.device)
        self.modules["prior"] = self.prior
        self.identifiers = Identifiers.for_tokenizer(
            language_model.tokenizer,
            self.config.num_candidates,
            style=self.config.identifiers,
            chat=language_model.chat,
        )
        # Between two choices of a reply; after the last of its tokens the next identifier is due.
        self.separator_ids = encode_without_special_tokens(
            language_model.tokenizer, RANKING_SEPARATOR, after=RANKING_OPEN + self.identifiers.names[0]
        )

    # -- the distribution --------------------------------------------------------------------------------------

    @torch.no_grad()
    def select(self, candidates: Sequence[Candidates]) -> list[Permutations]:
        """The mode by greedy steps: one permutation per question."""
        return self._in_batches(candidates, 1, lambda batch: self._draw(batch, 1, Proposal(), Greedy()))

    @torch.no_grad()
    def propose(
        self,
        candidates: Sequence[Candidates],
        sampling: SamplingConfig,
        *,
        generator: torch.Generator | None = None,
    ) -> list[Permutations]:
        """Draws from the selector tempered by `sampling.temperature`; arguments and result as `Selector.propose`."""
        make_policy = IndependentDraws if sampling.replacement else StochasticBeams
        m, proposal = sampling.num_permutations, Proposal(sampling.temperature)
        return self._in_batches(
            candidates,
            make_policy(generator).num_nodes(m),
            lambda batch: self._draw(batch, m, proposal, make_policy(generator)),
        )

    def _draw(self, batch: _Batch, m: int, proposal: Proposal, policy: Policy) -> list[Permutations]:
        """One prefill, then K masked choices for all permutations at once."""
        steps = _ListwiseSteps(self, batch, policy.num_nodes(m))
        return policy.permutations(draw(steps, self.config.num_selected, m, proposal, policy))

    def log_prob(
        self, candidates: Sequence[Candidates], permutations: Sequence[Tensor], *, teach_retriever: bool = True
    ) -> list[Tensor]:
        """Log p_s of given permutations with gradient, per question `[m_b]`; arguments as `Selector.log_prob`.

        A question's prompt is read once, followed by all its replies; a block mask and positions that restart after
        the prompt make that equal to m separate sequences.
        """
        with self.language_model.use(ROLE):
            batch = self._batch(candidates, self._prompts(candidates), teach_retriever=teach_retriever)
            m = max(len(z) for z in permutations)
            z_BmK = torch.stack([torch.cat([z, z[:1].expand(m - len(z), -1)]) for z in permutations])
            z_BmK = z_BmK.to(self.language_model.device)
            log_p_Bm = _log_prob_along(batch, self._teacher_forced_logits(batch, z_BmK), z_BmK)
        return [log_p_m[: len(z)] for log_p_m, z in zip(log_p_Bm, permutations, strict=True)]

    @property
    def prior_weights(self) -> dict[str, nn.Parameter]:
        """`gate` of the language model's logits and `strength` of the standardised retriever scores."""
        return {"gate": self.prior.gate, "strength": self.prior.strength}

    @torch.no_grad()
    def components(self, candidates: Candidates, permutations: Permutations) -> dict[str, Tensor]:
        """Id logits of the language model `[m, K, n]` and standardised retriever scores `[1, 1, n]`, on the CPU.

        Empty where only one of the two is used: then there is nothing to weight.
        """
        if not (self.config.use_prior and self.config.use_language_model):
            return {}
        lm_mKn = permutations.lm_logits
        if lm_mKn is None:
            with self.language_model.use(ROLE):
                batch = self._batch([candidates], [self.prompt_ids(candidates)])
                lm_mKn = self._lm_logits(batch, permutations.z[None].to(self.language_model.device))[0].float().cpu()
        prior_n = self.prior_scores(candidates).float().cpu()
        return {"gate": lm_mKn[..., : len(candidates)], "strength": prior_n[None, None, :]}

    @property
    def uses_retriever_scores(self) -> bool:
        """Whether the retriever prior is part of the logits."""
        return self.config.use_prior

    def retriever_logits(self, scores_n: Tensor) -> Tensor:
        """The prior's part of the logits `[n]`, at its present strength, without gradient to that."""
        strength = self.prior.strength.detach()
        return strength * standardise(scores_n).to(strength.device)

    def set_trainable(self, trainable: bool) -> None:
        """Let the prior weights learn, as far as they are used."""
        self.prior.requires_grad_(trainable and self.config.use_prior)
        self.prior.gate.requires_grad_(self.prior.gate.requires_grad and self.config.use_language_model)

    # -- prompts -----------------------------------------------------------------------------------------------

    @property
    def _reply_tokens(self) -> int:
        """Tokens that the reply adds to the prompt: K-1 choices, each with its separator."""
        if self.config.decoding == "single_pass":
            return 0
        return (self.config.num_selected - 1) * (1 + len(self.separator_ids))

    def prompt_ids(self, candidates: Candidates) -> list[int]:
        """Ranking prompt of one question, passages cut so that prompt and reply fit the context."""
        self._check_count(candidates)
        return self.prompt.encode(
            self.language_model.tokenizer,
            candidates.question,
            candidates.passages,
            self.identifiers,
            max_tokens=self._room,
            chat=self.language_model.chat,
        )

    @property
    def _room(self) -> int:
        """Tokens that a ranking prompt may have."""
        return self.language_model.context_length - self._reply_tokens

    def reads_prompts(self, *, learning: bool = False) -> bool:
        """Whether the language model reads ranking prompts: now, or once the gate has moved, where it is `learning`."""
        with torch.no_grad():
            return self.config.use_language_model and (learning or not self._skips_lm())

    def prompts(self, candidates: Candidates) -> list[list[int]]:
        """The one ranking prompt."""
        return [self.prompt_ids(candidates)]

    def why_too_long(self, question: str, *, learning: bool = False) -> str | None:
        """Why a question is too long for a ranking prompt whose passages are cut to nothing; None where it fits.

        Also None where no ranking prompt is read, as the gate of the language model is 0 and nothing is `learning`.
        """
        if not self.reads_prompts(learning=learning):
            return None
        model = self.language_model
        n = min(self.config.num_candidates, self.retriever.index.manifest.passages)
        needed = self.prompt.least_tokens(model.tokenizer, question, self.identifiers, n, chat=model.chat)
        if needed <= self._room:
            return None
        return (
            f"its ranking prompt with {n} passages must fit into {self._room} tokens ({self._reply_tokens} more are "
            f"for the reply) and takes {needed}"
        )

    def _prompts(self, candidates: Sequence[Candidates]) -> list[list[int]]:
        """Ranking prompts, or one token each where the language model is skipped."""
        if not self._skips_lm():
            return [self.prompt_ids(c) for c in candidates]
        for one in candidates:
            self._check_count(one)
        return [[self.language_model.end_of_answer_id] for _ in candidates]

    def check(self, candidates: Candidates, *, learning: bool = False) -> None:
        """Refuse candidates from which this selector cannot select; raises as `Selector.check`."""
        self._check_count(candidates)
        if self.reads_prompts(learning=learning):
            self.prompt_ids(candidates)

    def _check_count(self, candidates: Candidates) -> None:
        super().check(candidates)
        if (n := len(candidates)) > len(self.identifiers.names):
            raise UsageError(
                f"At most num_candidates={len(self.identifiers.names)} candidates can have identifiers, got {n}. "
                "Raise num_candidates or hand over fewer."
            )

    def _batch(
        self, candidates: Sequence[Candidates], prompts: Sequence[list[int]], *, teach_retriever: bool = True
    ) -> _Batch:
        n, device = max(len(c) for c in candidates), self.language_model.device
        absent_Bn = torch.tensor([[i >= len(c) for i in range(n)] for c in candidates], device=device)
        prior_Bn = torch.stack([self._padded_prior(c, n, teach_retriever) for c in candidates])
        return _Batch(list(prompts), absent_Bn, prior_Bn)

    def _padded_prior(self, candidates: Candidates, n: int, teach_retriever: bool) -> Tensor:
        scores_n = self.prior_scores(candidates, teach_retriever=teach_retriever)
        return nn.functional.pad(scores_n, (0, n - len(candidates)))

    def _combine(self, lm_logits: Tensor, prior: Tensor) -> Tensor:
        return self.prior(lm_logits, prior) if self.config.use_prior else lm_logits

    def _skips_lm(self) -> bool:
        """Whether the language model need not be asked: its logits would be multiplied by a gate of 0."""
        if not self.config.use_language_model:
            return True
        learning = torch.is_grad_enabled() and self.prior.gate.requires_grad
        return self.config.use_prior and not learning and not self.prior.gate.any()

    def _id_logits(self, hidden: Tensor, n: int) -> Tensor:
        ids_n = torch.tensor(self.identifiers.token_ids[:n], device=hidden.device)
        return self.language_model.logits_for_positions(hidden, ids_n)

    # -- log p_s of given permutations (E-step scoring, M-step) ------------------------------------------------

    def _teacher_forced_logits(self, batch: _Batch, z_BmK: Tensor) -> Tensor:
        """Combined id logits at every step of every permutation, `[B, m, K, n]`."""
        prior_B11n = batch.prior_Bn[:, None, None, :]
        if self._skips_lm():
            lm_BmKn = torch.zeros_like(prior_B11n).expand(*z_BmK.shape, -1)
        else:
            lm_BmKn = self._lm_logits(batch, z_BmK)
        return self._combine(lm_BmKn, prior_B11n)

    def _lm_logits(self, batch: _Batch, z_BmK: Tensor) -> Tensor:
        """Id logits of the language model at every step of every permutation, `[B, m, K, n]`."""
        B, m, K = z_BmK.shape
        n = batch.absent_Bn.shape[1]
        steps = 0 if self.config.decoding == "single_pass" else K - 1
        first_BH, later_BmkH = self._replies(batch).read(self._reply_ids(z_BmK[..., :steps]))
        first_Bn = self._id_logits(first_BH, n)[:, None, None, :].expand(B, m, 1, n)
        if self.config.decoding == "single_pass":
            return first_Bn.expand(B, m, K, n)
        return torch.cat([first_Bn, self._id_logits(later_BmkH, n)], dim=2)

    def _replies(self, batch: _Batch) -> Replies:
        return replies_to(
            self.language_model,
            batch.prompts,
            reply_tokens=self._reply_tokens,
            max_tokens_per_batch=self.max_tokens_per_batch,
        )

    def _reply_ids(self, chosen: Tensor) -> Tensor:
        """Token ids `[..., S]` of choices `[...]`: the id of each, then the separator that asks for the next."""
        device = chosen.device
        id_tokens_n = torch.tensor(self.identifiers.token_ids, device=device)
        separator_s = torch.tensor(self.separator_ids, device=device).expand(*chosen.shape, -1)
        return torch.cat([id_tokens_n[chosen].unsqueeze(-1), separator_s], dim=-1)

    def _in_batches(
        self, candidates: Sequence[Candidates], m: int, draw_batch: Callable[[_Batch], list[Permutations]]
    ) -> list[Permutations]:
        """What `draw_batch` makes of batches of questions, with room for m replies each, in order."""
        prompts = self._prompts(candidates)
        lengths = [len(prompt) + m * self._reply_tokens for prompt in prompts]
        drawn: dict[int, Permutations] = {}
        with self.language_model.use(ROLE):
            for rows in token_budget_batches(lengths, self.max_tokens_per_batch):
                batch = self._batch([candidates[i] for i in rows], [prompts[i] for i in rows])
                drawn |= dict(zip(rows, draw_batch(batch), strict=True))
        return [drawn[i] for i in range(len(candidates))]


def _log_prob_along(batch: _Batch, logits_BmKn: Tensor, z_BmK: Tensor) -> Tensor:
    """Log-probability `[B, m]` of permutations with these combined logits at every step."""
    B, m, K, n = logits_BmKn.shape
    absent = batch.absent_Bn[:, None].expand(B, m, n).reshape(B * m, n)
    return sequential_log_prob(logits_BmKn.reshape(B * m, K, n), z_BmK.reshape(B * m, K), absent).view(B, m)


class _ListwiseSteps(StepLogits):
    """Id logits of the language model, step by step; where it is switched off it is not asked.

    Args:
        selector: Whose prompts are read.
        batch: The questions.
        b: Nodes of each question.
    """

    def __init__(self, selector: ListwiseSelector, batch: _Batch, b: int) -> None:
        super().__init__(batch.absent_Bn)
        self._selector, self._batch = selector, batch
        self._skips_lm = selector._skips_lm()
        self._one_pass = self._skips_lm or selector.config.decoding == "single_pass"
        self._replies = selector._replies(batch)
        self._first_Bbn = None if self._skips_lm else self._after_prompt(b)[:, None].expand(-1, b, -1)

    def _after_prompt(self, b: int) -> Tensor:
        grow = not self._one_pass and self._selector.config.num_selected > 1
        return self._id_logits(self._replies.begin(b, grow=grow))

    def _id_logits(self, hidden: Tensor) -> Tensor:
        return self._selector._id_logits(hidden, self._batch.absent_Bn.shape[1])

    def lm_logits(self, z_Bbk: Tensor, parents_Bb: Tensor | None) -> Tensor | None:
        """As `StepLogits.lm_logits`."""
        if not z_Bbk.shape[-1] or self._one_pass:
            return self._first_Bbn
        return self._id_logits(self._replies.extend(self._selector._reply_ids(z_Bbk[..., -1]), parents_Bb))

    def logits(self, lm_Bbn: Tensor | None) -> Tensor:
        """The logits of the language model combined with the retriever prior."""
        lm_logits = torch.zeros_like(self._batch.prior_Bn)[:, None] if lm_Bbn is None else lm_Bbn
        return self._selector._combine(lm_logits, self._batch.prior_Bn[:, None])
