"""Hyperparameters of a training run, in groups. Names are those of `transformers.TrainingArguments` where it has them.

The groups are the parts of one run: supervised warm-up, E-step, M-step (of selector and generator), SelfAug, and the
two ways in which the retriever learns. Where a run is written is no hyperparameter: `DROTrainer(..., output_dir=...)`.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Self, get_args, get_type_hints

from indexes.errors import UsageError

AUTO = "auto"
"""A number that is fitted in every round (`training.tempering`)."""
FALLBACK_EXPONENT = 0.5
"""tau of lists of passages where "auto" cannot be fitted."""
FALLBACK_LSR_TEMPERATURE = 5.0
"""beta of single passages where "auto" cannot be fitted: tau is 0.2."""


def _at_least(minimum: float, group: Any, *names: str, none: bool = False) -> None:
    """Refuse values below a minimum (or None, unless `none` allows it)."""
    for name in names:
        value = getattr(group, name)
        if not ((none and value is None) or (value is not None and value >= minimum)):
            what = f"at least {minimum:g}" + " or None" * none
            raise UsageError(f"{name} must be {what}; got {value!r}.")


def _positive(group: Any, *names: str, auto: bool = False) -> None:
    """Refuse what is no positive, finite number (or "auto", where that is allowed)."""
    for name in names:
        value = getattr(group, name)
        if auto and value == AUTO:
            continue
        if isinstance(value, str) or not 0 < value < math.inf:
            what = "positive and finite" + f', or "{AUTO}"' * auto
            raise UsageError(f"{name} must be {what}; got {value!r}.")


def _check_choices(group: Any) -> None:
    """Refuse values that a field's `Literal` type does not list."""
    for name, hint in get_type_hints(type(group)).items():
        allowed = get_args(hint)
        if allowed and all(isinstance(choice, str) for choice in allowed) and getattr(group, name) not in allowed:
            raise UsageError(f"{name} must be one of {list(allowed)}; got {getattr(group, name)!r}.")


@dataclass(frozen=True, kw_only=True)
class SupervisedConfig:
    """Supervised warm-up before the first round."""

    num_train_epochs: int = 1
    """Passes over the training questions; 0 leaves the warm-up out."""
    target: Literal["auto", "gold", "retriever"] = "auto"
    """What the selector imitates: gold passages first, the retriever's order, or gold where the data has it."""

    def __post_init__(self) -> None:
        _at_least(0, self, "num_train_epochs")
        _check_choices(self)


@dataclass(frozen=True, kw_only=True)
class EStepConfig:
    """Proposal, importance weights and candidates of the E-step (arXiv 2505.03075)."""

    num_permutations: int = 4
    """m: permutations per question that the generator scores (E-step) and learns from (M-step); the paper: 8."""
    proposals_per_sample: int = 8
    """How many different permutations are drawn for each one that the generator scores: the log-likelihoods of the
    others are predicted from those of single passages (n short sequences per question). Needs replacement=False."""
    single_passage_rounds: int | None = None
    """In how many rounds the log-likelihood of an answer given a single passage is used before it is computed again;
    1: computed in every round; None: once in a run. The slopes of the predictions are fitted in every round."""
    proposal_temperature: float = 1.0
    """tau of the proposal q; weights are corrected by log p_s - log q. Above 1 explores more."""
    replacement: bool = False
    """False draws different permutations (stochastic beam search), weighted by their inclusion probability."""
    exact: bool = False
    """Enumerate all n!/(n-K)! permutations instead of sampling (small n and K only)."""
    likelihood_exponent: float | Literal["auto"] = 1.0
    """tau, the power to which p_g(y|x,d_z) is raised in the importance weights. Below 1 flattens a posterior that is
    too sharp (a power posterior); 1 is the paper's; "auto" fits it in every round, without gold ids."""
    marginalization: Literal["sequence", "token"] = "sequence"
    """What the latent permutation is drawn for: once for the whole answer, p(y|x) = sum_z p_s(z|x) p_g(y|x,d_z), or for
    each of its tokens, p(y|x) = prod_i sum_z p_s(z|x) p_g(y_i|x,d_z,y_<i) (RAG-Token, arXiv 2005.11401). The latter
    needs exact=True."""
    control_variate: bool = True
    """Subtract b_j from the selector's weights (lower variance); False is the paper's estimator."""
    candidate_pool: int | None = None
    """Number of retrieved passages that the candidates of a training question are taken from: half of them are the
    first n/2, the others are drawn from the rest in each round, so that the retriever also learns about passages that
    it does not rank high yet. None: the first n."""
    candidate_order: Literal["shuffled", "retriever"] = "shuffled"
    """Order in which the selector sees the candidates in training; "retriever" is the paper's."""
    batch_size: int = 8
    """Questions that are retrieved, ranked and scored together."""

    def __post_init__(self) -> None:
        _at_least(1, self, "num_permutations", "proposals_per_sample", "batch_size")
        _at_least(1, self, "candidate_pool", "single_passage_rounds", none=True)
        _positive(self, "proposal_temperature")
        _positive(self, "likelihood_exponent", auto=True)
        _check_choices(self)
        if self.proposals_per_sample > 1 and self.replacement and not self.exact:
            raise UsageError(
                "proposals_per_sample draws different permutations; set replacement=False, or proposals_per_sample=1."
            )
        if self.marginalization == "token" and not (self.exact and self.likelihood_exponent == 1):
            raise UsageError(
                "marginalization='token' weighs every permutation at every token: it needs exact=True and "
                f"likelihood_exponent=1; got exact={self.exact} and likelihood_exponent={self.likelihood_exponent}."
            )

    @property
    def first_exponent(self) -> float:
        """tau; with "auto" the one that permutations are chosen by until it is fitted to all questions of a round."""
        return FALLBACK_EXPONENT if self.likelihood_exponent == AUTO else float(self.likelihood_exponent)


@dataclass(frozen=True, kw_only=True)
class MStepConfig:
    """Optimisation of selector and generator."""

    learning_rate: float = 1e-4
    """Of both LoRA adapters."""
    selector_learning_rate: float | None = None
    """Of the selector's adapter; None: `learning_rate`."""
    fit_prior_weights: bool = True
    """Fit the two weights of the retriever prior on all questions before the gradient steps of an M-step."""
    prior_learning_rate: float = 1e-2
    """Of these two weights in the gradient steps; a selector by question likelihood has none of these."""
    num_train_epochs: int = 1
    """Passes over one E-step's samples in the M-step."""
    per_device_train_batch_size: int = 1
    """Questions per process in one batch; an optimizer step takes several batches."""
    gradient_accumulation_steps: int = 8
    """Batches per optimizer step."""
    tokens_per_optimizer_step: int | None = None
    """In place of a number of batches, as many of them as so many tokens hold in all processes together, and at least
    one: questions with short passages then share a step with more others. The loss is still the mean over questions."""
    tokens_per_micro_batch: int = 2048
    """Tokens that are read in one forward and backward pass, whichever question of the step they belong to; one
    sequence is never divided. It decides on memory and speed and changes no gradient."""
    loss_normalization: Literal["token", "sum"] = "token"
    """Divide each question's log-likelihood by its tokens (as the released codes do) or not."""
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    warmup_steps: float = 0.0
    """Learning-rate warm-up of each M-step: steps, or below 1 a share of them."""
    lr_scheduler_type: str = "linear"
    selector_kl: float = 0.0
    """Weight of `KL(untrained || trained)`, nats per question, between the selector's first choices with its adapter
    off and on: it keeps the selector near what the base knows, as SelfAug keeps the generator. 0 leaves it out."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, one more forward pass."""

    def __post_init__(self) -> None:
        _at_least(1, self, "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
        _at_least(1, self, "tokens_per_micro_batch")
        _at_least(1, self, "tokens_per_optimizer_step", none=True)
        _at_least(0, self, "learning_rate", "prior_learning_rate", "max_grad_norm", "weight_decay", "warmup_steps")
        _at_least(0, self, "selector_kl")
        _at_least(0, self, "selector_learning_rate", none=True)
        _check_choices(self)


@dataclass(frozen=True, kw_only=True)
class SelfAugConfig:
    """Alignment of the generator with the base model on the input tokens (SelfAug, arXiv 2509.03934)."""

    alpha: float = 0.5
    """Weight of the KL; 0 leaves it out."""
    direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(base || tuned), the released code; reverse: KL(tuned || base), the paper's formula."""
    permutations: Literal["all", "one"] = "all"
    """Align on the prompts of all m permutations of a question, or on one drawn uniformly: unbiased, a little noisier,
    much less work."""
    chunk_tokens: int | None = None
    """Tokens whose full-vocabulary logits exist at a time; None: by the vocabulary and the kind of device."""

    def __post_init__(self) -> None:
        _at_least(0, self, "alpha")
        _at_least(1, self, "chunk_tokens", none=True)
        _check_choices(self)


@dataclass(frozen=True, kw_only=True)
class RetrieverTrainingConfig:
    """What the question adapter learns from, with `train_retriever`."""

    objective: Literal["prior", "distillation", "both", "lsr"] = "prior"
    """The gradient of log p_s through the retriever prior; how the answer changed the log-odds that each candidate is
    selected, which the retriever's softmax should follow; or the sum of both. "lsr" is REPLUG's (arXiv 2301.12652): its
    softmax follows the likelihood of the answer given each single candidate, and nothing else of the selector learns;
    it needs e_step.exact and a selector that picks one."""
    lsr_temperature: float | Literal["auto"] = 1.0
    """beta of REPLUG: candidates are wanted in proportion to p_g(y|x,d)^(1/beta). Above 1 is more even: 1/beta is to
    single passages what e_step.likelihood_exponent is to lists; "auto" fits it in every round, without gold ids."""
    learning_rate: float = 1e-3
    """Of the question adapter."""

    def __post_init__(self) -> None:
        _positive(self, "lsr_temperature", auto=True)
        _at_least(0, self, "learning_rate")
        _check_choices(self)

    @property
    def first_lsr_temperature(self) -> float:
        """beta; with "auto" the one that is used until it is fitted to all questions of a round."""
        return FALLBACK_LSR_TEMPERATURE if self.lsr_temperature == AUTO else float(self.lsr_temperature)


@dataclass(frozen=True, kw_only=True)
class EncoderTrainingConfig:
    """Training of the whole encoder after each round, with `train_encoder`."""

    learning_rate: float = 2e-5
    num_train_epochs: int = 1
    """Passes over a round's pairs of question and passage."""
    per_device_train_batch_size: int = 32
    """Pairs per step, each of which is a negative of the others."""

    def __post_init__(self) -> None:
        _at_least(0, self, "learning_rate")
        _at_least(1, self, "num_train_epochs", "per_device_train_batch_size")


@dataclass(frozen=True, kw_only=True)
class DROConfig:
    """Hyperparameters of one run: `rounds` times an E-step and an M-step (DRO, arXiv 2505.03075).

    Raises:
        UsageError: A value that is not allowed, or values that do not go together.
    """

    rounds: int = 5
    """E-step and M-step pairs (the paper: 5)."""
    seed: int = 42

    train_selector: bool = True
    """False leaves the selector (and the retriever) as they are: an ablation of the paper."""
    train_generator: bool = True
    """False leaves the generator as it is: an ablation of the paper."""
    train_retriever: bool = True
    """Train the question adapter; the index stays as it is."""
    train_encoder: bool = False
    """After each round also train the whole encoder on the posterior (by sentence-transformers' own trainer) and encode
    the corpus again, into the run's folder."""

    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    e_step: EStepConfig = field(default_factory=EStepConfig)
    m_step: MStepConfig = field(default_factory=MStepConfig)
    selfaug: SelfAugConfig = field(default_factory=SelfAugConfig)
    retriever_training: RetrieverTrainingConfig = field(default_factory=RetrieverTrainingConfig)
    encoder_training: EncoderTrainingConfig = field(default_factory=EncoderTrainingConfig)

    metric_for_best_model: str = "f1"
    """Evaluation metric that picks the round to keep."""
    early_stopping_patience: int | None = None
    """Stop after this many rounds without a better evaluation metric."""
    max_train_samples: int | None = None
    """Use only the first so many training questions."""
    max_eval_samples: int | None = None
    """Use only the first so many evaluation questions."""
    ignore_identical_ids: bool | None = None
    """Leave the passage with a question's own id, and chunks of that document, out of its candidates: it would be the
    question itself. None: as the files say, which BEIR's do and others do not."""
    report_to: str = "none"
    """"tensorboard", "wandb", ... as transformers knows them."""
    logging_steps: int = 10
    training_arguments: dict[str, Any] = field(default_factory=dict)
    """Anything else for `transformers.TrainingArguments` (DeepSpeed, FSDP, bf16, ...), passed on as it is."""

    def __post_init__(self) -> None:
        _at_least(1, self, "rounds", "logging_steps")
        _at_least(1, self, "early_stopping_patience", "max_train_samples", "max_eval_samples", none=True)
        if self.retriever_training.objective == "lsr":
            self._check_lsr()
        if not (self.train_selector or self.train_generator):
            raise UsageError("At least one of train_selector and train_generator must be true; both are false.")

    def _check_lsr(self) -> None:
        needed = {
            "e_step.exact": True,
            "train_selector": True,
            "train_retriever": True,
            "supervised.num_train_epochs": 0,
        }
        if wrong := {name: self.get(name) for name, value in needed.items() if self.get(name) != value}:
            raise UsageError(
                "retriever_training.objective='lsr' teaches the retriever how well each single candidate explains the "
                f"answer: it needs {needed}; got {wrong}."
            )

    # -- settings by name ----------------------------------------------------------------------------------------

    @classmethod
    def names(cls) -> list[str]:
        """Every setting as the command line spells it, groups with a dot (`e_step.num_permutations`)."""
        return [
            f"{setting.name}.{inner.name}" if inner is not None else setting.name
            for setting in fields(cls)
            for inner in (fields(_GROUPS[setting.name]) if setting.name in _GROUPS else [None])
        ]

    def get(self, name: str) -> Any:
        """The value of a setting of `names`."""
        value: Any = self
        for part in name.split("."):
            value = getattr(value, part)
        return value

    def with_settings(self, changes: Mapping[str, Any]) -> Self:
        """A copy with other values, by the names of `names`.

        Raises:
            UsageError: An unknown name, or a value that is not allowed.
        """
        self.check_names(changes)
        top = {name: value for name, value in changes.items() if "." not in name}
        grouped: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            group, dot, inner = name.partition(".")
            if dot:
                grouped.setdefault(group, {})[inner] = value
        groups = {group: replace(getattr(self, group), **values) for group, values in grouped.items()}
        return replace(self, **top, **groups)

    @classmethod
    def check_names(cls, names: Mapping[str, Any]) -> None:
        """Refuse names that are no settings.

        Raises:
            UsageError: It says the new name of a renamed setting, why a removed one is gone, or the nearest.
        """
        known = cls.names()
        for name in names:
            if name not in known:
                raise UsageError(f"{name!r} is no training setting. {what_became_of(name) or _nearest(name, known)}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """From what `to_dict` made; names may also be dotted, and what is missing is the default.

        Raises:
            UsageError: As for `with_settings`.
        """
        return cls().with_settings(flatten(data))

    def to_dict(self) -> dict[str, Any]:
        """Nested and ready for JSON."""
        return asdict(self)


_GROUPS: dict[str, type] = {
    name: hint for name, hint in get_type_hints(DROConfig).items() if is_dataclass(hint) and isinstance(hint, type)
}


def flatten(data: Mapping[str, Any]) -> dict[str, Any]:
    """`{"e_step": {"exact": True}}` as `{"e_step.exact": True}`."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if name in _GROUPS and isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        else:
            flat[name] = value
    return flat


def _nearest(name: str, known: list[str]) -> str:
    """Whole names first, then only their last parts: `num_permutation` is near `e_step.num_permutations`."""
    found = difflib.get_close_matches(name, known, n=1)
    by_last = {full.rpartition(".")[2]: full for full in known}
    found = found or [by_last[last] for last in difflib.get_close_matches(name, by_last, n=1)]
    return f"Did you mean {found[0]!r}?" if found else f"Known: {known}."


RENAMED = {
    "num_permutations": "e_step.num_permutations",
    "num_samples": "e_step.num_permutations",
    "proposals_per_sample": "e_step.proposals_per_sample",
    "oversampling": "e_step.proposals_per_sample",
    "proposal_temperature": "e_step.proposal_temperature",
    "replacement": "e_step.replacement",
    "exact": "e_step.exact",
    "marginalization": "e_step.marginalization",
    "control_variate": "e_step.control_variate",
    "candidate_pool": "e_step.candidate_pool",
    "candidate_order": "e_step.candidate_order",
    "e_step_batch_size": "e_step.batch_size",
    "questions_per_batch": "e_step.batch_size",
    "supervised_epochs": "supervised.num_train_epochs",
    "warm_up_epochs": "supervised.num_train_epochs",
    "warm_up_target": "supervised.target",
    "learning_rate": "m_step.learning_rate",
    "selector_learning_rate": "m_step.selector_learning_rate",
    "fit_prior_weights": "m_step.fit_prior_weights",
    "fit_pooling": "m_step.fit_prior_weights",
    "prior_learning_rate": "m_step.prior_learning_rate",
    "num_train_epochs": "m_step.num_train_epochs",
    "per_device_train_batch_size": "m_step.per_device_train_batch_size",
    "gradient_accumulation_steps": "m_step.gradient_accumulation_steps",
    "loss_normalization": "m_step.loss_normalization",
    "max_grad_norm": "m_step.max_grad_norm",
    "weight_decay": "m_step.weight_decay",
    "warmup_steps": "m_step.warmup_steps",
    "lr_scheduler_type": "m_step.lr_scheduler_type",
    "gradient_checkpointing": "m_step.gradient_checkpointing",
    "selfaug_alpha": "selfaug.alpha",
    "selfaug_direction": "selfaug.direction",
    "selfaug_rows": "selfaug.permutations",
    "selfaug_chunk_tokens": "selfaug.chunk_tokens",
    "retriever_objective": "retriever_training.objective",
    "retriever_learning_rate": "retriever_training.learning_rate",
    "lsr_temperature": "retriever_training.lsr_temperature",
    "refresh_index": "train_encoder",
    "encoder_learning_rate": "encoder_training.learning_rate",
    "encoder_epochs": "encoder_training.num_train_epochs",
    "encoder_batch_size": "encoder_training.per_device_train_batch_size",
}
"""Settings by their old names."""

_BY_TOKENS = "set m_step.tokens_per_micro_batch, which bounds the tokens of every pass"
REMOVED = {
    "rows_per_micro_batch": _BY_TOKENS,
    "sequences_per_micro_batch": _BY_TOKENS,
    "m_step.sequences_per_micro_batch": _BY_TOKENS,
    "output_dir": "give it to the trainer: DROTrainer(..., output_dir=...)",
    "resume": "continue a run with train(resume_from_checkpoint=True), in the shell --resume_from_checkpoint true",
    "guidance": "at equal cost it was no better than e_step.proposals_per_sample",
    "ess_floor": "use e_step.likelihood_exponent for weights that are too uneven",
    "max_samples": "use e_step.num_permutations or e_step.proposals_per_sample",
    "likelihood": "use e_step.likelihood_exponent to flatten the weights",
    "proposal": "nothing was gained by drawing from the first logits; the proposal is the selector's own",
    "selfaug_include_last": "aligning the position that predicts the answer works against the answer's loss",
    "selfaug_token_share": "use selfaug.permutations='one', which saves more",
}
"""Settings that are gone, with what to do instead."""


def what_became_of(name: str) -> str:
    """What to write instead of a renamed or removed setting; empty for any other name."""
    if name in RENAMED:
        return f"It is now called {RENAMED[name]!r}."
    return f"It was removed: {REMOVED[name]}." if name in REMOVED else ""
