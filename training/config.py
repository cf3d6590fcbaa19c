"""Settings of the EM loop. Field names are those of `transformers.TrainingArguments` where it has them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from indexes.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DROConfig:
    """One EM run: `rounds` times an E-step and an M-step (arXiv 2505.03075), with SelfAug (arXiv 2509.03934)."""

    output_dir: str | Path
    """Run directory: config, metrics.jsonl, one checkpoint per round, logs."""
    rounds: int = 5
    """E-step and M-step pairs (the paper: 5)."""

    num_permutations: int = 4
    """m: permutations per question that the generator scores (E-step) and learns from (M-step); the paper: 8."""
    proposal_temperature: float = 1.0
    """tau of the proposal q; weights are corrected by log p_s - log q. Above 1 explores more."""
    replacement: bool = False
    """False draws different permutations (stochastic beam search), weighted by their probability of being drawn."""
    proposals_per_sample: int = 8
    """How many different permutations are drawn for each one that the generator scores: the log-likelihoods of the
    others are guessed from what each candidate says alone (n short rows per question). Needs replacement=False."""
    proposal: Literal["selector", "single_pass"] = "selector"
    """single_pass draws all ids from the selector's first logits, one pass instead of K; log p_s stays exact."""
    ess_floor: float = 0.0
    """Least effective sample size of a question's weights (all it drew, guesses included). One below it gets twice as
    many permutations, up to max_samples; if it is still below, p(y|z) is raised only to the power at which the floor
    holds (to 0 where the proposal itself is too uneven). 0: neither."""
    max_samples: int | None = None
    """The most permutations that a question may have scored, with ess_floor; None: num_permutations."""
    guidance: float = 0.0
    """gamma: half of the proposal follows the selector's scores plus gamma log p(y|x,d_i) of each candidate alone.
    It costs n short rows per question; weights are corrected for it. 0 leaves it out."""
    exact: bool = False
    """Enumerate all n!/(n-K)! permutations instead of sampling (small n and K only)."""
    marginalization: Literal["sequence", "token"] = "sequence"
    """What the latent list is drawn for: once for the whole answer, p(y|x) = sum_z p_s(z|x) p_g(y|x,d_z), or anew for
    each of its tokens, p(y|x) = prod_i sum_z p_s(z|x) p_g(y_i|x,d_z,y_<i) (RAG-Token, arXiv 2005.11401). The latter
    needs exact=True."""
    likelihood: Literal["sum", "mean"] = "sum"
    """log p(y|x,d) as the sum over answer tokens (the maths), or their mean (flattens weights of long answers)."""
    candidate_pool: int | None = None
    """Passages that the candidates of a training question are taken from: half of them as found, the other half
    drawn anew in each round, so that the retriever learns of passages that it does not find yet. None: as found."""
    candidate_order: Literal["shuffled", "retriever"] = "shuffled"
    """Order in which the selector sees the candidates in training; "retriever" is the paper's."""

    control_variate: bool = True
    """Subtract b_j from the selector's weights (lower variance); False is the paper's estimator."""
    loss_normalization: Literal["token", "sum"] = "token"
    """Divide each question's log-likelihood by its tokens (as the released codes do) or not."""

    selfaug_alpha: float = 0.5
    """Weight of the SelfAug KL; 0 leaves it out."""
    selfaug_direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(base || tuned), the released code; reverse: KL(tuned || base), the paper's formula."""
    selfaug_include_last: bool = False
    """Also align the position that predicts the first answer token (it then fights the answer loss)."""
    selfaug_rows: Literal["all", "one"] = "all"
    """Align on all m rows of a question, or on one drawn uniformly: unbiased, a little noisier, much less work."""
    selfaug_token_share: float = 1.0
    """Share of a row's input tokens to align on, drawn uniformly: unbiased; saves work of the head, not of the body."""
    selfaug_chunk_tokens: int | None = None
    """Tokens whose full-vocabulary logits exist at a time; None: by the vocabulary and the kind of device."""

    train_selector: bool = True
    """False leaves the selector (and the retriever) as they are: an ablation of the paper."""
    train_generator: bool = True
    """False leaves the generator as it is: an ablation of the paper."""
    train_retriever: bool = True
    """Train the question adapter; the index stays as it is."""
    retriever_objective: Literal["prior", "distillation", "both", "lsr"] = "prior"
    """What it learns from: the gradient of log p_s through the retriever prior; how the answer
    changed the log-odds that each candidate is read, which its softmax should follow; or the sum of both. "lsr" is
    REPLUG's (arXiv 2301.12652): its softmax follows the likelihood of the answer given each candidate alone, and
    nothing else of the selector learns; it needs exact=True and a selector that picks one."""
    lsr_temperature: float = 1.0
    """beta of REPLUG: candidates are wanted in proportion to p_g(y|x,d)^(1/beta). Above 1 is more even."""
    refresh_index: bool = False
    """After each round also train the whole encoder on the posterior (by sentence-transformers' own trainer) and encode
    the corpus anew, into the run's folder."""

    supervised_epochs: int = 1
    """Passes of supervised warm-up before the first round; 0 leaves it out."""
    warm_up_target: Literal["auto", "gold", "retriever"] = "auto"
    """What the selector imitates: gold passages first, the retriever's order, or gold where the data has it."""

    learning_rate: float = 1e-4
    """Of both LoRA adapters."""
    selector_learning_rate: float | None = None
    """Of the selector's adapter, when it should differ."""
    fit_prior_weights: bool = True
    """Fit the two pooling weights of the retriever prior on all questions before the gradient steps of an M-step."""
    prior_learning_rate: float = 1e-2
    """Of these two weights in the gradient steps."""
    retriever_learning_rate: float = 1e-3
    """Of the question adapter."""
    encoder_learning_rate: float = 2e-5
    """Of the encoder, with refresh_index."""
    encoder_epochs: int = 1
    """Passes over a round's pairs of question and passage, with refresh_index."""
    encoder_batch_size: int = 32
    """Pairs per step, each of which is a negative of the others, with refresh_index."""
    num_train_epochs: int = 1
    """Passes over one E-step's samples in the M-step."""
    per_device_train_batch_size: int = 1
    """Questions per micro-batch (each brings its m permutations)."""
    gradient_accumulation_steps: int = 8
    """Question batches per optimizer step."""
    rows_per_micro_batch: int | None = None
    """Split a question batch's generator rows into micro-batches of at most this many; None keeps them together."""
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    warmup_steps: float = 0.0
    """Learning-rate warm-up of each M-step: steps, or below 1 a share of them."""
    lr_scheduler_type: str = "linear"
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, one more forward pass."""
    report_to: str = "none"
    """"tensorboard", "wandb", ... as transformers knows them."""
    logging_steps: int = 10
    seed: int = 42
    training_arguments: dict[str, Any] = field(default_factory=dict)
    """Anything else for `transformers.TrainingArguments` (DeepSpeed, FSDP, bf16, ...), passed on as it is."""

    e_step_batch_size: int = 8
    """Questions that the E-step retrieves and ranks together."""
    metric_for_best_model: str = "f1"
    """Dev metric that picks the round to keep."""
    early_stopping_patience: int | None = None
    """Stop after this many rounds without a better dev metric."""
    max_train_samples: int | None = None
    """Use only the first so many training questions."""
    ignore_identical_ids: bool | None = None
    """A question is not given the passage with its own id as a candidate, nor a chunk of that document: it would be the
    question itself. None: as the files say, which BEIR's do and others do not."""
    resume: bool = False
    """Continue the run in output_dir after its last finished round."""

    def __post_init__(self) -> None:
        for name in (
            "rounds",
            "num_permutations",
            "proposals_per_sample",
            "num_train_epochs",
            "per_device_train_batch_size",
        ):
            self._need(getattr(self, name) >= 1, name, "at least 1")
        for name in ("gradient_accumulation_steps", "e_step_batch_size"):
            self._need(getattr(self, name) >= 1, name, "at least 1")
        for name in ("encoder_epochs", "encoder_batch_size"):
            self._need(getattr(self, name) >= 1, name, "at least 1")
        for name in (
            "selfaug_alpha",
            "supervised_epochs",
            "learning_rate",
            "prior_learning_rate",
            "guidance",
            "ess_floor",
        ):
            self._need(getattr(self, name) >= 0, name, "at least 0")
        for name in ("proposal_temperature", "lsr_temperature"):
            self._need(getattr(self, name) > 0, name, "positive")
        for name, allowed in _CHOICES.items():
            self._need(getattr(self, name) in allowed, name, f"one of {list(allowed)}")
        for name in (
            "rows_per_micro_batch",
            "selfaug_chunk_tokens",
            "early_stopping_patience",
            "max_train_samples",
            "candidate_pool",
        ):
            self._need(getattr(self, name) is None or getattr(self, name) >= 1, name, "at least 1 or None")
        self._need(0 < self.selfaug_token_share <= 1, "selfaug_token_share", "above 0 and at most 1")
        self._need(
            self.max_samples is None or self.max_samples >= self.num_permutations,
            "max_samples",
            "at least num_permutations",
        )
        if self.max_samples is not None and not self.ess_floor:
            raise UsageError("max_samples needs ess_floor, which says which questions get more; ess_floor is 0.")
        self._need(self.ess_floor < self.num_permutations, "ess_floor", "below num_permutations")
        if self.exact and self.ess_floor:
            raise UsageError(
                "exact needs no ess_floor: every permutation is scored, and the weights are the posterior."
            )
        if self.proposals_per_sample > 1 and self.replacement and not self.exact:
            raise UsageError(
                "proposals_per_sample draws different permutations; set replacement=False, or proposals_per_sample=1."
            )
        if self.marginalization == "token" and not (self.exact and self.likelihood == "sum"):
            raise UsageError(
                "marginalization='token' weighs every list at every token: it needs exact=True and likelihood='sum'; "
                f"exact={self.exact} and likelihood={self.likelihood!r} came."
            )
        if self.retriever_objective == "lsr":
            wanted = {"exact": True, "train_selector": True, "train_retriever": True, "supervised_epochs": 0}
            if came := {name: getattr(self, name) for name, value in wanted.items() if getattr(self, name) != value}:
                raise UsageError(
                    "retriever_objective='lsr' teaches the retriever what each candidate alone explains: it needs "
                    f"{wanted}; {came} came."
                )
        if not (self.train_selector or self.train_generator):
            raise UsageError("At least one of train_selector and train_generator must be true; both are false.")

    def _need(self, holds: bool, name: str, what: str) -> None:
        if not holds:
            raise UsageError(f"{name} must be {what}; {getattr(self, name)!r} came.")


_CHOICES: dict[str, tuple[str, ...]] = {
    "marginalization": ("sequence", "token"),
    "likelihood": ("sum", "mean"),
    "proposal": ("selector", "single_pass"),
    "candidate_order": ("shuffled", "retriever"),
    "loss_normalization": ("token", "sum"),
    "selfaug_direction": ("forward", "reverse"),
    "selfaug_rows": ("all", "one"),
    "retriever_objective": ("prior", "distillation", "both", "lsr"),
    "warm_up_target": ("auto", "gold", "retriever"),
}
