"""The selector by question likelihood: a language model reads each candidate alone and says how well the question fits.

    s_i = gate * standardise(u)_i + strength * standardise(r)_i,    u_i = mean_t log p(x_t | prompt(d_i), x_<t)

with r the retriever's scores, both standardised over the candidates of the question; lists follow Plackett-Luce. That a
language model ranks passages by the likelihood of the question, untrained, is UPR (Sachan et al. 2022, arXiv
2204.07496); here its LoRA adapter `"selector"` learns from there. gate and strength start above 0, so that a pipeline
that was never trained ranks by both, and change only by `training.prior_weights`: gradient steps over a few questions
would let them run away.

Passages are read apart from each other, so the number of candidates has no limit but time, their order has no effect,
and one pass gives the probability of every permutation. Where the model packs sequences, those of all questions of a
batch are read in rows without padding, what they begin with once; logits exist for the tokens of questions only.

Legend: B questions, n candidates, m permutations, K selected, N question tokens, H hidden size.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from generator.adapters import BASE
from generator.answer_sequences import AnswerSequence, answer_batches, read_sequences
from generator.language_model import LanguageModel
from generator.prompts import QuestionPrompt, RankingPrompt
from indexes.errors import DataError
from retriever.candidates import Candidates
from retriever.drawing import Policy
from retriever.permutations import Permutations, Proposal
from retriever.plackett_luce_selector import PlackettLuceSelector, log_probs_by
from retriever.retriever import Retriever
from retriever.retriever_prior import RetrieverPrior
from retriever.selector import ROLE, standardise
from retriever.selector_config import QuestionLikelihoodOptions, SelectorConfig


class QuestionLikelihoodSelector(PlackettLuceSelector):
    """Ranks candidates by the likelihood of the question after each of them, and by the retriever's scores.

    Args:
        language_model: The base model; its adapter `"selector"` reads.
        retriever: Its scores are the other half of the logits.
        prompt: How a passage is put to the model.
        config: Sizes; its `options` are `QuestionLikelihoodOptions`.
        max_tokens_per_batch: Tokens of one forward pass, those of padding included.

    Raises:
        UsageError: The prompt is for selectors of another kind, or an option is refused.
    """

    prompt_class = QuestionPrompt
    prompt: QuestionPrompt
    default_prior_strength = 0.43
    starts_as_retriever = False
    fits_prior_weights_only = True

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
        self.options = QuestionLikelihoodOptions.of(self.config)
        prior = RetrieverPrior(gate=self.options.gate, strength=self.prior_strength)
        self.prior = prior.to(language_model.device).requires_grad_(False)
        self.modules["prior"] = self.prior

    # -- the distribution --------------------------------------------------------------------------------------

    def logits(self, candidates: Candidates, *, teach_retriever: bool = True) -> Tensor:
        """As `PlackettLuceSelector.logits`."""
        return self._logits([candidates], teach_retriever)[0]

    def log_prob(
        self, candidates: Sequence[Candidates], permutations: Sequence[Tensor], *, teach_retriever: bool = True
    ) -> list[Tensor]:
        """As `Selector.log_prob`; with `prefilter` some of the candidates are constants."""
        return log_probs_by(self._learning_logits(candidates, permutations, teach_retriever), permutations)

    @property
    def measures_drift(self) -> bool:
        """Whether there is a language model that can drift."""
        return self.config.use_language_model

    def log_prob_and_kl(
        self, candidates: Sequence[Candidates], permutations: Sequence[Tensor], *, teach_retriever: bool = True
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As `Selector.log_prob_and_kl`; the untrained selector has the retriever's scores as they were searched."""
        if not self.measures_drift:
            return super().log_prob_and_kl(candidates, permutations, teach_retriever=teach_retriever)
        untrained = self._untrained_logits(candidates)
        logits = self._learning_logits(candidates, permutations, teach_retriever)
        pairs = zip(untrained, logits, strict=True)
        kl = [_kl(base_n.log_softmax(-1), logits_n.log_softmax(-1)) for base_n, logits_n in pairs]
        return log_probs_by(logits, permutations), kl

    def _logits(self, candidates: Sequence[Candidates], teach_retriever: bool) -> list[Tensor]:
        self._check_counts(candidates)
        u = self._question_log_likelihoods(candidates)
        return self._combine(candidates, u, teach_retriever)

    def _learning_logits(
        self, candidates: Sequence[Candidates], permutations: Sequence[Tensor], teach_retriever: bool
    ) -> list[Tensor]:
        """Logits with gradient, of all candidates or of those that `prefilter` lets learn."""
        best = self.options.prefilter
        if best is None or not torch.is_grad_enabled() or not self.config.use_language_model:
            return self._logits(candidates, teach_retriever)
        self._check_counts(candidates)
        with torch.no_grad():
            u = self._question_log_likelihoods(candidates)
            found = self._combine(candidates, u, False)
        learning = [_best_and_given(s_n, z, best) for s_n, z in zip(found, permutations, strict=True)]
        again = self._question_log_likelihoods(
            [c.reordered(chosen) for c, chosen in zip(candidates, learning, strict=True)]
        )
        places = [torch.tensor(chosen, device=u_n.device) for u_n, chosen in zip(u, learning, strict=True)]
        mixed = [u_n.index_copy(0, at, new) for u_n, at, new in zip(u, places, again, strict=True)]
        return self._combine(candidates, mixed, teach_retriever)

    @torch.no_grad()
    def _untrained_logits(self, candidates: Sequence[Candidates]) -> list[Tensor]:
        u = self._question_log_likelihoods(candidates, role=BASE)
        return self._combine(candidates, u, False)

    def _draw(self, candidates: Sequence[Candidates], m: int, proposal: Proposal, policy: Policy) -> list[Permutations]:
        self._check_counts(candidates)
        u = self._question_log_likelihoods(candidates)
        drawn = self._draw_by(self._combine(candidates, u, False), m, proposal, policy)
        return self._with_lm_logits(drawn, u)

    @torch.no_grad()
    def enumerate(self, candidates: Sequence[Candidates], *, rows_per_pass: int = 64) -> list[Permutations]:
        """As `PlackettLuceSelector.enumerate`."""
        self._check_counts(candidates)
        u = self._question_log_likelihoods(candidates)
        every = [self.every_permutation(logits_n) for logits_n in self._combine(candidates, u, False)]
        return self._with_lm_logits(every, u)

    def _with_lm_logits(self, drawn: Sequence[Permutations], u: Sequence[Tensor]) -> list[Permutations]:
        """Keep what was read, the same for every permutation and step and in memory once, for `components`."""
        if not self.config.use_language_model:
            return list(drawn)
        standardised = [standardise(u_n).cpu() for u_n in u]
        return [
            replace(one, lm_logits=u_n.expand(*one.z.shape, -1)) for one, u_n in zip(drawn, standardised, strict=True)
        ]

    def _combine(self, candidates: Sequence[Candidates], u: Sequence[Tensor], teach_retriever: bool) -> list[Tensor]:
        """Logits `[n]` of each question from its log-likelihoods `[n]`."""
        standardised = [standardise(u_n) for u_n in u]  # 0 where no language model is asked
        if not self.config.use_prior:
            return [self.prior.gate * u_n for u_n in standardised]
        return [
            self.prior(u_n, self.prior_scores(c, teach_retriever=teach_retriever))
            for c, u_n in zip(candidates, standardised, strict=True)
        ]

    # -- log p(question | passage) -------------------------------------------------------------------------------

    def question_log_likelihoods(self, candidates: Sequence[Candidates]) -> list[Tensor]:
        """u: mean log p of a question token after each passage, nats, per question float32 `[n]`.

        With gradient to the adapter where that learns; on the device of the model.

        Raises:
            DataError: A question of no tokens, or one that does not fit the context.
        """
        self._check_counts(candidates)
        return self._question_log_likelihoods(candidates)

    def _question_log_likelihoods(self, candidates: Sequence[Candidates], role: str = ROLE) -> list[Tensor]:
        device = self.language_model.device
        if not self.config.use_language_model:
            return [torch.zeros(len(c), device=device) for c in candidates]
        sequences = [sequence for c in candidates for sequence in self.sequences(c)]
        # Rows hold the same, however the candidates are ordered, so that the numbers are the same too.
        order = sorted(range(len(sequences)), key=lambda i: sequences[i].input_ids)
        in_order = [sequences[i] for i in order]
        found: list[Tensor] = []
        places: list[int] = []
        with self.language_model.use(role):
            for batch in answer_batches(self.language_model, in_order, self.max_tokens_per_batch):
                found.append(self._read([in_order[i] for i in batch]))
                places += [order[i] for i in batch]
        u = torch.cat(found)[torch.tensor(places, device=device).argsort()]
        return list(u.split([len(c) for c in candidates]))

    def _read(self, sequences: Sequence[AnswerSequence]) -> Tensor:
        """Mean log p of the question tokens of each sequence, in one forward pass."""
        read = read_sequences(self.language_model, sequences)
        return read.log_probs(self.language_model.head, in_chunks=True) / read.answer_lengths_B

    def sequences(self, candidates: Candidates) -> list[AnswerSequence]:
        """What is read for one question: the prompt of each passage, and the question as its answer.

        Raises:
            DataError: As `question_log_likelihoods`.
        """
        model = self.language_model
        question_ids = self.prompt.encode_question(model.tokenizer, candidates.question, chat=model.chat)
        _refuse(candidates, self._why_too_long(len(question_ids)))
        room = model.context_length - len(question_ids)
        prompts = [
            self.prompt.encode(
                model.tokenizer,
                passage,
                passage_tokens=self.options.passage_tokens,
                max_tokens=room,
                chat=model.chat,
            )
            for passage in candidates.passages
        ]
        return [AnswerSequence(prompt_ids, question_ids) for prompt_ids in prompts]

    # -- what learns -------------------------------------------------------------------------------------------

    @property
    def prior_weights(self) -> dict[str, nn.Parameter]:
        """`gate` of the question log-likelihoods and `strength` of the retriever scores, as far as they are used."""
        used = {"gate": self.config.use_language_model, "strength": self.config.use_prior}
        return {name: getattr(self.prior, name) for name in used if used[name]}

    @property
    def start_weights(self) -> dict[str, float]:
        """Where gate and strength start, as far as they are used."""
        starts = {"gate": self.options.gate, "strength": self.prior_strength}
        return {name: starts[name] for name in self.prior_weights}

    @torch.no_grad()
    def components(self, candidates: Candidates, permutations: Permutations) -> dict[str, Tensor]:
        """Standardised question log-likelihoods and retriever scores, each `[1, 1, n]`, on the CPU."""
        found: dict[str, Tensor] = {}
        if self.config.use_language_model:
            if permutations.lm_logits is not None:
                u_n = permutations.lm_logits[0, 0]
            else:
                u_n = standardise(self.question_log_likelihoods([candidates])[0])
            found["gate"] = u_n.float().cpu()[None, None]
        if self.config.use_prior:
            found["strength"] = self.prior_scores(candidates).float().cpu()[None, None]
        return found

    @property
    def uses_retriever_scores(self) -> bool:
        """Whether the retriever's scores are part of the logits."""
        return self.config.use_prior

    def retriever_logits(self, scores_n: Tensor) -> Tensor:
        """The retriever's part of the logits `[n]`, at its present strength."""
        return self.prior.strength * standardise(scores_n.to(self.prior.strength.device))

    def set_trainable(self, trainable: bool) -> None:
        """Nothing: gate and strength change by their fit only."""

    # -- limits ------------------------------------------------------------------------------------------------

    def why_too_long(self, question: str, *, learning: bool = False) -> str | None:
        """Why a question is too long to follow a passage that is cut to nothing; None where it fits."""
        if not self.config.use_language_model:
            return None
        model = self.language_model
        return self._why_too_long(len(self.prompt.encode_question(model.tokenizer, question, chat=model.chat)))

    def _why_too_long(self, question_tokens: int) -> str | None:
        model = self.language_model
        needed = self.prompt.least_tokens(model.tokenizer, chat=model.chat) + question_tokens
        if needed <= model.context_length:
            return None
        return f"its question prompt with the question must fit into {model.context_length} tokens and takes {needed}"

    def check(self, candidates: Candidates, *, learning: bool = False) -> None:
        """Refuse candidates from which this selector cannot select; raises as `Selector.check`."""
        super().check(candidates)
        _refuse(candidates, self.why_too_long(candidates.question, learning=learning))

    def _check_counts(self, candidates: Sequence[Candidates]) -> None:
        for one in candidates:
            super().check(one)

    def prompts(self, candidates: Candidates) -> list[list[int]]:
        """Token ids of each passage's prompt with the question after it."""
        return [s.input_ids for s in self.sequences(candidates)] if self.config.use_language_model else []


def _refuse(candidates: Candidates, reason: str | None) -> None:
    """Refuse a question, if there is a reason to."""
    if reason is not None:
        raise DataError(f"A question must fit the base's context; of {candidates.question!r} {reason}.")


def _kl(log_p_n: Tensor, log_q_n: Tensor) -> Tensor:
    """KL(p || q), nats."""
    return (log_p_n.exp() * (log_p_n - log_q_n)).sum()


def _best_and_given(logits_n: Tensor, z_mK: Tensor, best: int) -> list[int]:
    """The candidates of largest logits and those in the permutations, in order of their position."""
    top = logits_n.topk(min(best, len(logits_n))).indices.tolist()
    return sorted({*top, *z_mK.flatten().tolist()})
