"""The selector `p_s(z | x)` of DRO (arXiv 2505.03075): a distribution over ordered K-subsets of the candidates.

A list-wise language model reads all n candidates and names K of them in order, "[C] > [A] > ...". Its reply is
never free text: at each step only the n single-token identifiers are scored, used ones are masked, and the
separators are forced. So no reply is malformed and log p_s is exact.

The data's way: `_Batch` (prompts, prior) -> first logits -> either the same logits at every step (`single_pass`)
or K-1 further steps on the shared prompt (`autoregressive`) -> `retriever.permutations`.

Legend: B questions, m permutations each, n candidates, K selected, P prompt width, H hidden size,
S tokens that follow one choice (its id and the separator).
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import Cache

from generator.language_model import LanguageModel
from generator.padding import Branches, pad_right
from generator.prompts import RANKING_OPEN, RANKING_SEPARATOR, Identifiers, RankingPrompt, encode_without_special_tokens
from indexes.batching import token_budget_batches
from indexes.errors import DataError, UsageError
from retriever.dense import Candidates, Retriever
from retriever.permutations import (
    NEGATIVE_INFINITY,
    Permutations,
    Proposal,
    check_selection,
    enumerate_permutations,
    log_inclusion,
    mark_used,
    mask_used,
    perturbed_children,
    sample_step,
    sequential_log_prob,
    standard_gumbel,
)

logger = logging.getLogger(__name__)

ROLE = "selector"
DECODINGS = ("autoregressive", "single_pass")


@dataclass(frozen=True, kw_only=True)
class SelectorConfig:
    """What the selector reads and writes."""

    num_candidates: int = 20
    """n: candidates the retriever hands over. More raises recall and prompt length."""
    num_selected: int = 5
    """K: passages that reach the generator, in order."""
    decoding: str = "autoregressive"
    """`"autoregressive"`: each id conditions on the ids before it (the paper). `"single_pass"`: one prefill, its
    id logits are Plackett-Luce scores; faster, but cannot say "given C, A adds nothing"."""
    identifiers: str = "letters"
    """`"letters"` (A..T) or `"numbers"` (as the paper writes them; few tokenizers have 20 in single tokens)."""
    use_prior: bool = True
    """Add the retriever's scores to the id logits, so that an untrained selector ranks as the retriever does.
    False is the paper's selector: the language model alone."""
    use_language_model: bool = True
    """False ranks by the retriever's scores alone, as pipelines without a selector do: the gate of the language model
    stays 0, and what learns is the weight of the scores and the retriever's question side."""
    prior_strength: float = 1.0
    """Where the learned weight of the standardised retriever scores starts; 1 keeps the first samples diverse."""

    def __post_init__(self) -> None:
        check_selection(self.num_candidates, self.num_selected)
        if self.decoding not in DECODINGS:
            raise UsageError(f"decoding must be one of {list(DECODINGS)}; {self.decoding!r} came.")
        if not (self.use_prior or self.use_language_model):
            raise UsageError(
                "A selector must listen to somebody: use_prior and use_language_model are both false. Set one of them."
            )
        if self.prior_strength <= 0:
            raise UsageError(
                f"prior_strength must be positive (0 would forget the retriever); {self.prior_strength} came. "
                "Use use_prior=False to leave the retriever out."
            )


class RetrieverPrior(nn.Module):
    """`s_i = gate * l_i + strength * standardise(r)_i`: language model logits l and retriever scores r, pooled.

    Both weights are learned. `gate` starts at 0 and `strength` above it, so an untrained selector reproduces the
    retriever's order exactly, whatever the base model would have said; log-linear pooling then moves weight to the
    language model as far as the posterior rewards it. Scores are standardised over the candidates of a question,
    which makes the start independent of the encoder's scale.
    """

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        # One-element vectors, not scalars: FSDP cannot shard a scalar.
        self.gate = nn.Parameter(torch.zeros(1))
        self.strength = nn.Parameter(torch.tensor([float(strength)]))

    def forward(self, lm_logits: Tensor, standardised: Tensor) -> Tensor:
        """Pooled logits, any common shape `[..., n]`."""
        return self.gate * lm_logits + self.strength * standardised


def standardise(scores_n: Tensor) -> Tensor:
    """Scores to mean 0 and standard deviation 1 over the candidates (all equal: all 0)."""
    centred = scores_n.float() - scores_n.float().mean()
    return centred / centred.square().mean().clamp_min(1e-12).sqrt()


@dataclass(frozen=True)
class _Batch:
    """Several questions' ranking prompts, padded to common sizes."""

    prompt_ids_BP: Tensor
    prompt_lengths_B: Tensor
    absent_Bn: Tensor
    """True where a question has fewer than n candidates."""
    prior_Bn: Tensor
    """Standardised retriever scores, 0 where absent."""
    tokens: int
    """Of all prompts together."""


class Selector:
    """Selects, samples and scores permutations of candidates.

    Args:
        language_model: The model; the adapter `"selector"` ranks.
        retriever: Whose scores form the prior.
        prompt: The ranking prompt.
        config: Sizes and decoding.
        prior: The two learned weights; made from `config` when not given.
        max_tokens_per_batch: Rows x longest prompt of one forward pass.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        retriever: Retriever,
        *,
        prompt: RankingPrompt | None = None,
        config: SelectorConfig | None = None,
        prior: RetrieverPrior | None = None,
        max_tokens_per_batch: int = 16384,
    ) -> None:
        self.language_model = language_model
        self.retriever = retriever
        self.prompt = prompt or RankingPrompt()
        self.config = config or SelectorConfig()
        self.prior = (prior or RetrieverPrior(self.config.prior_strength)).to(language_model.device)
        self.max_tokens_per_batch = max_tokens_per_batch
        self.identifiers = Identifiers.for_tokenizer(
            language_model.tokenizer,
            self.config.num_candidates,
            style=self.config.identifiers,
            chat=language_model.chat,
        )
        # Between two choices of a reply; after the last of its tokens the next identifier is due.
        self.separator_ids = encode_without_special_tokens(
            language_model.tokenizer, RANKING_SEPARATOR, behind=RANKING_OPEN + self.identifiers.names[0]
        )

    # -- what callers use --------------------------------------------------------------------------------------

    @torch.no_grad()
    def select(self, candidates: Sequence[Candidates]) -> list[Permutations]:
        """The mode by greedy steps: one permutation per question."""
        return self._in_batches(
            candidates, 1, lambda batch, rows: self._decode(batch, 1, Proposal(), None, greedy=True)
        )

    @torch.no_grad()
    def sample(
        self,
        candidates: Sequence[Candidates],
        m: int,
        *,
        temperature: float = 1.0,
        guides: Sequence[Tensor] | None = None,
        guided_share: float = 0.5,
        replacement: bool = True,
        decoding: str | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Permutations]:
        """M draws per question from the selector tempered by `temperature` (1: the selector itself).

        Args:
            candidates: One set per question.
            m: Draws per question; without replacement there are fewer where fewer permutations exist.
            temperature: Above 1 explores more.
            guides: Per question one number for each candidate `[n]`, added to its id logit at every step: what is known
                about the posterior. The proposal is then a mixture of the selector and the guided selector, so that a
                guide that is wrong costs draws and never a large weight.
            guided_share: Share of the guided one in the mixture.
            replacement: False draws m different permutations, by stochastic beam search over the tree of ids (Kool
                et al. 2019, arXiv 1903.06059).
            decoding: How the proposal decodes; None: as the selector. "single_pass" draws every id from the first
                logits and scores the permutations under the selector in one further pass.
            generator: Of the draws.

        Returns:
            Per question: z, its log-probability under the selector (`log_p_m`) and under the proposal (`log_q_m`;
            without replacement the log-probability of being drawn at all, less log m).
        """
        if m < 1 or temperature <= 0 or not 0 < guided_share < 1:
            raise UsageError(
                "m must be at least 1, temperature positive and guided_share between 0 and 1; "
                f"m={m}, temperature={temperature}, guided_share={guided_share} came."
            )
        if decoding not in (None, "single_pass", self.config.decoding):
            raise UsageError(
                f"decoding must be 'single_pass' or the selector's own, {self.config.decoding!r}; {decoding!r} came."
            )
        ahead = decoding == "single_pass" != self.config.decoding

        def draw(batch: _Batch, rows: list[int]) -> list[Permutations]:
            guide_Bn = None if guides is None else _padded([guides[i] for i in rows], batch.absent_Bn)
            proposal = Proposal(temperature, guide_Bn, guided_share)
            return (self._decode if replacement else self._search)(batch, m, proposal, generator, ahead=ahead)

        # One beam more than asked for: the first one left out is the threshold of the inclusion probabilities.
        return self._in_batches(candidates, m if replacement else m + 1, draw)

    @torch.no_grad()
    def enumerate(self, candidates: Sequence[Candidates], *, rows_per_pass: int = 64) -> list[Permutations]:
        """Every permutation of every question, as a proposal that is uniform over them (exact mode)."""
        result = []
        with self.language_model.use(ROLE):
            for one in candidates:
                self._check(one)
                z_NK = enumerate_permutations(len(one), self.config.num_selected)
                parts = [self.score([one], [part])[0] for part in z_NK.split(rows_per_pass)]
                log_q_N = torch.full((len(z_NK),), -float(torch.tensor(float(len(z_NK))).log()))
                result.append(Permutations(z_NK, torch.cat(parts).cpu(), log_q_N))
        return result

    @torch.no_grad()
    def log_prob(self, candidates: Candidates, z_mK: Tensor) -> Tensor:
        """Log p_s(z | x) of given permutations, float32 `[m]` on the CPU."""
        with self.language_model.use(ROLE):
            return self.score([candidates], [z_mK])[0].cpu()

    def score(
        self, candidates: Sequence[Candidates], permutations: Sequence[Tensor], *, teach_retriever: bool = True
    ) -> list[Tensor]:
        """Log p_s of given permutations with gradient, per question `[m_b]`, under whatever adapter is active.

        A question's prompt is read once, with all its replies behind it; a block mask and positions that restart after
        the prompt make that equal to m separate rows. Without `teach_retriever` the gradient stops at the retriever's
        scores.
        """
        batch = self._batch(candidates, self._prompts(candidates), teach_retriever=teach_retriever)
        m = max(len(z) for z in permutations)
        z_BmK = torch.stack([torch.cat([z, z[:1].expand(m - len(z), -1)]) for z in permutations])
        z_BmK = z_BmK.to(self.language_model.device)
        log_p_Bm = _log_prob_along(batch, self._teacher_forced_logits(batch, z_BmK), z_BmK)
        return [log_p_m[: len(z)] for log_p_m, z in zip(log_p_Bm, permutations, strict=True)]

    @torch.no_grad()
    def prior_components(self, candidates: Candidates, permutations: Permutations) -> tuple[Tensor, Tensor]:
        """What the two pooled opinions were at every step of drawn permutations of one question.

        Returns:
            `(lm_mKn, prior_n)`: id logits of the language model and standardised retriever scores, on the CPU.
        """
        prior_n = self._prior_scores(candidates, len(candidates)).float().cpu()
        if permutations.lm_logits_mKn is not None:
            return permutations.lm_logits_mKn[..., : len(candidates)], prior_n
        with self.language_model.use(ROLE):
            batch = self._batch([candidates], [self.prompt_ids(candidates)])
            lm_1mKn = self._unpooled_logits(batch, permutations.z_mK[None].to(self.language_model.device))
        return lm_1mKn[0].float().cpu(), prior_n

    # -- prompts -----------------------------------------------------------------------------------------------

    @property
    def _reply_tokens(self) -> int:
        """Tokens that the reply adds to the prompt: K-1 choices, each with its separator."""
        if self.config.decoding == "single_pass":
            return 0
        return (self.config.num_selected - 1) * (1 + len(self.separator_ids))

    def prompt_ids(self, candidates: Candidates) -> list[int]:
        """Ranking prompt of one question, passages cut so that prompt and reply fit the context."""
        self._check(candidates)
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

    def why_too_long(self, question: str) -> str | None:
        """Why a question is too long for a ranking prompt whose passages are cut to nothing; None where it fits."""
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
        """Ranking prompts, or one token each where nobody will read them."""
        if not self._skips_lm():
            return [self.prompt_ids(c) for c in candidates]
        for one in candidates:
            self._check(one)
        return [[self.language_model.end_of_answer_id] for _ in candidates]

    def _check(self, candidates: Candidates) -> None:
        n, k = len(candidates), self.config.num_selected
        if n < k:
            raise DataError(
                f"At least K={k} candidates must be retrieved; question {candidates.question!r} has {n}. "
                "Index more passages or lower num_selected."
            )
        if n > len(self.identifiers.names):
            raise UsageError(
                f"At most num_candidates={len(self.identifiers.names)} candidates can be named; {n} came. "
                "Raise num_candidates or hand over fewer."
            )

    def _batch(
        self, candidates: Sequence[Candidates], prompts: Sequence[list[int]], *, teach_retriever: bool = True
    ) -> _Batch:
        model = self.language_model
        prompt_ids_BP, lengths_B = pad_right(list(prompts), model.end_of_answer_id, model.device)
        n = max(len(c) for c in candidates)
        absent_Bn = torch.tensor([[i >= len(c) for i in range(n)] for c in candidates], device=model.device)
        prior_Bn = torch.stack([self._prior_scores(c, n, teach_retriever) for c in candidates])
        return _Batch(prompt_ids_BP, lengths_B, absent_Bn, prior_Bn, sum(map(len, prompts)))

    def _prior_scores(self, candidates: Candidates, n: int, teach_retriever: bool = True) -> Tensor:
        adapter = self.retriever.adapter
        learning = teach_retriever and torch.is_grad_enabled() and adapter.up_dr.requires_grad
        # With gradients on, scores are recomputed through the question adapter: this is the path by which
        # log p_s(z|x) teaches the retriever. Otherwise those of the search are used as they are.
        scores_n = self.retriever.score(candidates) if learning else candidates.scores_n
        scores_n = standardise(scores_n.to(self.language_model.device))
        return nn.functional.pad(scores_n, (0, n - len(candidates)))

    def _pool(self, lm_logits: Tensor, prior: Tensor) -> Tensor:
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
        """Pooled id logits at every step of every permutation, `[B, m, K, n]`."""
        prior_B11n = batch.prior_Bn[:, None, None, :]
        if self._skips_lm():
            lm_BmKn = torch.zeros_like(prior_B11n).expand(*z_BmK.shape, -1)
        else:
            lm_BmKn = self._unpooled_logits(batch, z_BmK)
        return self._pool(lm_BmKn, prior_B11n)

    def _unpooled_logits(self, batch: _Batch, z_BmK: Tensor) -> Tensor:
        """The same, of the language model alone."""
        B, m, K = z_BmK.shape
        n = batch.absent_Bn.shape[1]
        steps = 0 if self.config.decoding == "single_pass" else K - 1
        hidden_first_BH, hidden_later_BmkH = self._hidden_of_replies(batch, z_BmK[..., :steps])
        first_Bn = self._id_logits(hidden_first_BH, n)[:, None, None, :].expand(B, m, 1, n)
        if self.config.decoding == "single_pass":
            return first_Bn.expand(B, m, K, n)
        return torch.cat([first_Bn, self._id_logits(hidden_later_BmkH, n)], dim=2)

    def _hidden_of_replies(self, batch: _Batch, chosen_Bmk: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states where ids are due: after the prompt `[B, H]` and after each choice `[B, m, k, H]`."""
        B, m, k = chosen_Bmk.shape
        if k and not self.language_model.reads_branches:
            return self._hidden_of_prompt(batch, None), self._hidden_in_rows(batch, chosen_Bmk)
        if self.language_model.is_checkpointing and torch.is_grad_enabled():
            return self._hidden_in_one_pass(batch, chosen_Bmk)
        cache = self.language_model.new_cache() if k else None
        first_BH = self._hidden_of_prompt(batch, cache)
        if cache is None:
            return first_BH, first_BH.new_zeros(B, m, 0, first_BH.shape[-1])
        none = Branches.of(m, 0, 0, self.language_model.device)
        later_BmkH, _ = self._hidden_of_choices(batch, chosen_Bmk, none, cache)
        return first_BH, later_BmkH

    def _hidden_of_prompt(self, batch: _Batch, cache: Cache | None) -> Tensor:
        """Hidden state `[B, H]` at the end of each prompt.

        Prompts are padded on the right, where no real token looks: causal attention needs no mask, and without one
        its kernels skip what lies above the diagonal.
        """
        self.language_model.tokens_read += batch.tokens
        hidden_BPH = self.language_model.hidden(batch.prompt_ids_BP, None, cache=cache)
        return hidden_BPH[torch.arange(len(hidden_BPH), device=hidden_BPH.device), batch.prompt_lengths_B - 1]

    def _hidden_of_choices(
        self, batch: _Batch, chosen_Bmk: Tensor, read: Branches, cache: Cache
    ) -> tuple[Tensor, Branches]:
        """Hidden states `[B, m, k, H]` after k more choices of each reply, and what of the replies is read by then."""
        model = self.language_model
        B, m, k = chosen_Bmk.shape
        ids_BmkS = self._reply_ids(chosen_Bmk)
        P, S = batch.prompt_ids_BP.shape[1], ids_BmkS.shape[-1]
        tokens = Branches.of(m, len(read.depth) // m, k * S, model.device)
        read = read.followed_by(tokens)
        model.tokens_read += ids_BmkS.numel()
        hidden_BTH = model.hidden(
            ids_BmkS.reshape(B, m * k * S),
            model.shared_prefix_masks(batch.prompt_lengths_B, P, tokens, read),
            position_ids_BQ=tokens.positions(batch.prompt_lengths_B),
            cache=cache,
        )
        return hidden_BTH.reshape(B, m, k, S, -1)[..., -1, :], read

    def _hidden_in_one_pass(self, batch: _Batch, chosen_Bmk: Tensor) -> tuple[Tensor, Tensor]:
        """The same with prompt and replies in one row, because gradient checkpointing leaves no cache to read from."""
        model = self.language_model
        B, m, k = chosen_Bmk.shape
        P, S = batch.prompt_ids_BP.shape[1], 1 + len(self.separator_ids)
        model.tokens_read += batch.tokens + B * m * k * S
        replies = Branches.of(m, 0, k * S, model.device)
        tokens = Branches.prompt(P, model.device).followed_by(replies)
        hidden_BTH = model.hidden(
            torch.cat([batch.prompt_ids_BP, self._reply_ids(chosen_Bmk).reshape(B, m * k * S)], dim=1),
            model.shared_prefix_masks(batch.prompt_lengths_B, P, tokens, replies),
            position_ids_BQ=tokens.positions(batch.prompt_lengths_B),
        )
        first_BH = hidden_BTH[torch.arange(B, device=model.device), batch.prompt_lengths_B - 1]
        later_BmkH = hidden_BTH[:, P:].reshape(B, m, k, S, hidden_BTH.shape[-1])[..., -1, :]
        return first_BH, later_BmkH

    def _hidden_in_rows(self, batch: _Batch, chosen_Bmk: Tensor) -> Tensor:
        """Hidden states `[B, m, k, H]` after k choices, each reply in a row of its own behind its prompt.

        For models whose layers keep a state or make masks of their own, so that one prompt cannot serve several
        replies: the same probabilities, at the price of reading the prompt m times.
        """
        model = self.language_model
        B, m, k = chosen_Bmk.shape
        ids_BmkS = self._reply_ids(chosen_Bmk)
        replies = ids_BmkS.reshape(B * m, -1).tolist()
        prompts = [
            ids[:n] for ids, n in zip(batch.prompt_ids_BP.tolist(), batch.prompt_lengths_B.tolist(), strict=True)
        ]
        rows = [prompts[i // m] + reply for i, reply in enumerate(replies)]
        ends_k = torch.arange(k, 0, -1, device=model.device) * ids_BmkS.shape[-1] - ids_BmkS.shape[-1] + 1
        found: dict[int, Tensor] = {}
        for numbers in token_budget_batches([len(row) for row in rows], self.max_tokens_per_batch):
            ids_RT, lengths_R = pad_right([rows[i] for i in numbers], model.end_of_answer_id, model.device)
            model.tokens_read += sum(len(rows[i]) for i in numbers)
            hidden_RTH = model.hidden(ids_RT, None)
            at_Rk = lengths_R[:, None] - ends_k
            found |= dict(zip(numbers, hidden_RTH[torch.arange(len(numbers))[:, None], at_Rk], strict=True))
        return torch.stack([found[i] for i in range(B * m)]).reshape(B, m, k, -1)

    def _reply_ids(self, chosen_Bmk: Tensor) -> Tensor:
        """Token ids `[B, m, k, S]`: the id of each choice, then the separator that asks for the next."""
        device = chosen_Bmk.device
        id_tokens_n = torch.tensor(self.identifiers.token_ids, device=device)
        separator_s = torch.tensor(self.separator_ids, device=device).expand(*chosen_Bmk.shape, -1)
        return torch.cat([id_tokens_n[chosen_Bmk].unsqueeze(-1), separator_s], dim=-1)

    # -- drawing permutations ----------------------------------------------------------------------------------

    def _in_batches(
        self, candidates: Sequence[Candidates], m: int, draw: Callable[[_Batch, list[int]], list[Permutations]]
    ) -> list[Permutations]:
        """What `draw` makes of batches of questions (with their numbers), with room for m replies each, in order."""
        prompts = self._prompts(candidates)
        lengths = [len(prompt) + m * self._reply_tokens for prompt in prompts]
        drawn: dict[int, Permutations] = {}
        with self.language_model.use(ROLE):
            for rows in token_budget_batches(lengths, self.max_tokens_per_batch):
                batch = self._batch([candidates[i] for i in rows], [prompts[i] for i in rows])
                drawn |= dict(zip(rows, draw(batch, rows), strict=True))
        return [drawn[i] for i in range(len(candidates))]

    def _decode(
        self,
        batch: _Batch,
        m: int,
        proposal: Proposal,
        generator: torch.Generator | None,
        *,
        greedy: bool = False,
        ahead: bool = False,
    ) -> list[Permutations]:
        """One prefill, then K masked choices for all m permutations at once; `ahead` makes them by the first logits."""
        stepper = _Stepper(self, batch, m, ahead=ahead)
        B, n = batch.absent_Bn.shape
        used_Bmn = batch.absent_Bn[:, None].expand(B, m, n)
        log_CBm = proposal.start(B, m, used_Bmn.device)
        z: list[Tensor] = []
        lm: list[Tensor] = []
        for _ in range(self.config.num_selected):
            lm.append(stepper.lm_logits(z))
            logits_Bmn = mask_used(self._pool(lm[-1], batch.prior_Bn[:, None]), used_Bmn)
            log_CBmn = proposal.children(log_CBm, logits_Bmn)
            chosen_Bm = log_CBmn[0].argmax(-1) if greedy else sample_step(proposal.log_q(log_CBmn), generator)
            log_CBm = log_CBmn.gather(-1, chosen_Bm.expand(len(log_CBmn), -1, -1).unsqueeze(-1)).squeeze(-1)
            used_Bmn = mark_used(used_Bmn, chosen_Bm)
            z.append(chosen_Bm)
        z_BmK, log_p_Bm, log_q_Bm = torch.stack(z, dim=-1).cpu(), log_CBm[0].cpu(), proposal.log_q(log_CBm).cpu()
        lm_BmKn = torch.stack(lm, dim=-2)
        if ahead:
            log_p_Bm, lm_BmKn = self._rescore_draft(batch, stepper, z_BmK)
        heard_B = stepper.heard(lm_BmKn)
        return [Permutations(*one) for one in zip(z_BmK, log_p_Bm, log_q_Bm, heard_B, strict=True)]

    def _search(
        self, batch: _Batch, m: int, proposal: Proposal, generator: torch.Generator | None, *, ahead: bool = False
    ) -> list[Permutations]:
        """Stochastic beam search: at every step, the m + 1 children of largest perturbed log-probability."""
        stepper = _Stepper(self, batch, m + 1, ahead=ahead)
        B, n = batch.absent_Bn.shape
        used_Bbn = batch.absent_Bn[:, None].expand(B, m + 1, n)
        log_CBb = proposal.start(B, m + 1, torch.device("cpu")).double()
        perturbed_Bb = torch.full_like(log_CBb[0], NEGATIVE_INFINITY)
        perturbed_Bb[:, 0] = standard_gumbel((B,), generator)  # at first only the root exists
        z_Bbk = torch.zeros(B, m + 1, 0, dtype=torch.long)
        lm_Bbkn = torch.zeros(B, m + 1, 0, n)
        for _ in range(self.config.num_selected):
            lm_Bbn = stepper.lm_logits_after(z_Bbk)
            logits_Bbn = mask_used(self._pool(lm_Bbn, batch.prior_Bn[:, None]), used_Bbn).cpu().double()
            log_CBbn = proposal.children(log_CBb, logits_Bbn)
            children_Bbn = perturbed_children(proposal.log_q(log_CBbn), perturbed_Bb, generator)
            perturbed_Bb, best_Bb = children_Bbn.flatten(1).topk(m + 1, dim=-1)
            parent_Bb, chosen_Bb = best_Bb // n, best_Bb % n
            log_CBb = log_CBbn.flatten(2).gather(2, best_Bb.expand(len(log_CBbn), -1, -1))
            parents_Bbk = parent_Bb.unsqueeze(-1).expand(-1, -1, z_Bbk.shape[-1])
            z_Bbk = torch.cat([z_Bbk.gather(1, parents_Bbk), chosen_Bb.unsqueeze(-1)], dim=-1)
            lm_Bbkn = torch.cat([lm_Bbkn, lm_Bbn.float().cpu().unsqueeze(2)], dim=2)
            lm_Bbkn = lm_Bbkn.gather(1, parent_Bb[:, :, None, None].expand_as(lm_Bbkn))
            used_Bbn = batch.absent_Bn[:, None].expand(B, m + 1, n)
            used_Bbn = used_Bbn.scatter(-1, z_Bbk.to(used_Bbn.device), True)
        log_p_Bb, log_q_Bb = log_CBb[0], proposal.log_q(log_CBb)
        if ahead:
            log_p_Bb, lm_Bbkn = self._rescore_draft(batch, stepper, z_Bbk)
        heard_B = stepper.heard(lm_Bbkn)
        return [_drawn(*one) for one in zip(z_Bbk, log_p_Bb, log_q_Bb, perturbed_Bb, heard_B, strict=True)]

    def _rescore_draft(self, batch: _Batch, stepper: "_Stepper", z_BmK: Tensor) -> tuple[Tensor, Tensor]:
        """Log p_s `[B, m]` of permutations that were drawn ahead, on the CPU, and the language model's logits."""
        z_BmK = z_BmK.to(batch.absent_Bn.device)
        lm_BmKn = stepper.lm_logits_along(z_BmK)
        return _log_prob_along(batch, self._pool(lm_BmKn, batch.prior_Bn[:, None, None, :]), z_BmK).cpu(), lm_BmKn


def _log_prob_along(batch: _Batch, logits_BmKn: Tensor, z_BmK: Tensor) -> Tensor:
    """Log-probability `[B, m]` of permutations with these pooled logits at every step."""
    B, m, K, n = logits_BmKn.shape
    absent = batch.absent_Bn[:, None].expand(B, m, n).reshape(B * m, n)
    return sequential_log_prob(logits_BmKn.reshape(B * m, K, n), z_BmK.reshape(B * m, K), absent).view(B, m)


def _padded(guides: Sequence[Tensor], absent_Bn: Tensor) -> Tensor:
    """Guides of several questions `[B, n]`; a candidate that does not exist has 0, and is masked anyway."""
    guide_Bn = torch.zeros_like(absent_Bn, dtype=torch.float32)
    for row_n, guide_n in zip(guide_Bn, guides, strict=True):
        row_n[: len(guide_n)] = guide_n
    return guide_Bn


def _drawn(z_bK: Tensor, log_p_b: Tensor, log_q_b: Tensor, perturbed_b: Tensor, lm_bKn: Tensor | None) -> Permutations:
    """The sample of one question: all beams but the last, as far as they exist."""
    m = int(perturbed_b[:-1].isfinite().sum())
    log_q_m = log_inclusion(log_q_b[:m], perturbed_b[-1]) - math.log(m)
    lm_mKn = None if lm_bKn is None else lm_bKn[:m]
    return Permutations(z_bK[:m], log_p_b[:m].float(), log_q_m.float(), lm_mKn)


class _Stepper:
    """Id logits of the language model, step by step on a key-value cache that holds each prompt once for all replies.

    A language model that goes unheard is not asked: its logits are given as 0. With `ahead` the logits of every step
    are the first ones, and `lm_logits_along` tells afterwards what they should have been.
    """

    def __init__(self, selector: Selector, batch: _Batch, m: int, *, ahead: bool = False) -> None:
        self.selector, self.batch, self.m, self.ahead = selector, batch, m, ahead
        self.unheard = selector._skips_lm()
        self.one_pass = self.unheard or selector.config.decoding == "single_pass"
        shared = selector.language_model.reads_branches and not self.one_pass
        self.cache = selector.language_model.new_cache() if shared else None
        self.read = Branches.of(m, 0, 0, selector.language_model.device)
        self.first_Bmn = self._after_prompt()[:, None].expand(-1, m, -1)

    def _after_prompt(self) -> Tensor:
        if self.unheard:
            return torch.zeros_like(self.batch.prior_Bn)
        hidden_BH = self.selector._hidden_of_prompt(self.batch, self.cache)
        return self.selector._id_logits(hidden_BH, self.batch.absent_Bn.shape[1])

    def lm_logits(self, z: list[Tensor]) -> Tensor:
        """Id logits `[B, m, n]` after the choices `z` (a list of `[B, m]`)."""
        if not z or self.one_pass or self.ahead:
            return self.first_Bmn
        if self.cache is None:
            return self._in_rows(torch.stack(z, dim=-1))[:, :, -1]
        return self._step(z[-1].unsqueeze(-1), self.cache)[:, :, -1]

    def lm_logits_after(self, z_Bmk: Tensor) -> Tensor:
        """The same after whole replies `[B, m, k]`, which need not continue those asked about before."""
        if not z_Bmk.shape[-1] or self.one_pass or self.ahead:
            return self.first_Bmn
        if self.cache is None:
            return self._in_rows(z_Bmk.to(self.batch.prompt_ids_BP.device))[:, :, -1]
        # Beams change their parents, and a reply is short beside the prompt: it is read anew.
        if read := len(self.read.depth):
            self.cache.crop(-read)
        self.read = Branches.of(self.m, 0, 0, self.selector.language_model.device)
        return self._step(z_Bmk.to(self.batch.prompt_ids_BP.device), self.cache)[:, :, -1]

    def lm_logits_along(self, z_BmK: Tensor) -> Tensor:
        """Id logits `[B, m, K, n]` at every step of whole permutations, none of which was read before."""
        first_Bm1n, K = self.first_Bmn.unsqueeze(2), z_BmK.shape[-1]
        if self.one_pass:
            return first_Bm1n.expand(-1, -1, K, -1)
        if K == 1:
            return first_Bm1n
        later = self._in_rows(z_BmK[..., :-1]) if self.cache is None else self._step(z_BmK[..., :-1], self.cache)
        return torch.cat([first_Bm1n, later], dim=2)

    def _in_rows(self, chosen_Bmk: Tensor) -> Tensor:
        """Id logits `[B, m, k, n]` after each of all k choices so far, each reply in a row of its own."""
        hidden_BmkH = self.selector._hidden_in_rows(self.batch, chosen_Bmk)
        return self.selector._id_logits(hidden_BmkH, self.batch.absent_Bn.shape[1])

    def _step(self, chosen_Bmk: Tensor, cache: Cache) -> Tensor:
        """Id logits `[B, m, k, n]` after each of k more choices."""
        hidden_BmkH, self.read = self.selector._hidden_of_choices(self.batch, chosen_Bmk, self.read, cache)
        return self.selector._id_logits(hidden_BmkH, self.batch.absent_Bn.shape[1])

    def heard(self, lm_BmKn: Tensor) -> Sequence[Tensor | None]:
        """What the language model said of each question, on the CPU; None if it was not asked."""
        return [None] * len(lm_BmKn) if self.unheard else list(lm_BmKn.float().cpu())
