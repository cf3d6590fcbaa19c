"""The recipes of this library: no training, the baselines, DRO, and two ablations of it.

| recipe | what it is |
|---|---|
| no_training | the base model reads the retriever's top K |
| sft | LoRA, supervised on the retriever's top K: an E-step whose posterior is a point mass |
| replug | REPLUG LSR (arXiv 2301.12652): the retriever learns from a frozen model that reads one passage at a time |
| rag_sequence | RAG-Sequence (arXiv 2005.11401): a sum over single passages, of whole answers |
| rag_token | RAG-Token (the same paper): a sum over single passages at every token |
| dro_no_selector | DRO whose selector keeps the retriever's order |
| dro_no_generator | DRO whose generator stays the base model |
| dro | DRO (arXiv 2505.03075) |
"""

from rag.experiments.recipe import Recipe, delta_posterior, exact_posterior

_TRAINED = {"train_selector": True, "train_generator": True}
_KEEPS_RETRIEVER = {"train_selector": False, "train_encoder": False}
_WHOLE_ANSWERS = {"e_step.marginalization": "sequence"}
_SINGLE_PASSAGES = {**_TRAINED, **_WHOLE_ANSWERS, **exact_posterior()}
_BY_RETRIEVER_SCORES = {"use_prior": True, "use_language_model": False}
# Without the prior, the order of an untrained selector is the language model's.
_WITH_PRIOR = {"use_prior": True}

NO_TRAINING = Recipe(name="no_training", label="base model, retrieved top K", selector=_WITH_PRIOR)
SFT = Recipe(
    name="sft",
    label="supervised LoRA on top K",
    training={**_KEEPS_RETRIEVER, **_WHOLE_ANSWERS, "train_generator": True, **delta_posterior()},
    selector=_WITH_PRIOR,
)
REPLUG = Recipe(
    name="replug",
    label="REPLUG LSR (generator frozen)",
    training=_SINGLE_PASSAGES
    | {
        "train_generator": False,
        "train_retriever": True,
        "retriever_training.objective": "lsr",
        "train_encoder": False,
        "supervised.num_train_epochs": 0,
    },
    selector=_BY_RETRIEVER_SCORES,
    single_passage=True,
    passages_summed="candidates",
    answer_mode="rag_token",
)
RAG_SEQUENCE = Recipe(
    name="rag_sequence",
    label="RAG-Sequence (single documents)",
    training=_SINGLE_PASSAGES,
    selector=_BY_RETRIEVER_SCORES,
    single_passage=True,
    answer_mode="rag_sequence",
)
RAG_TOKEN = Recipe(
    name="rag_token",
    label="RAG-Token (single documents, token by token)",
    training=_SINGLE_PASSAGES | {"e_step.marginalization": "token"},
    selector=_BY_RETRIEVER_SCORES,
    single_passage=True,
    answer_mode="rag_token",
)
DRO_NO_SELECTOR = Recipe(
    name="dro_no_selector",
    label="DRO, selector not trained",
    training=_TRAINED | _KEEPS_RETRIEVER | _WHOLE_ANSWERS,
    selector=_WITH_PRIOR,
)
DRO_NO_GENERATOR = Recipe(
    name="dro_no_generator",
    label="DRO, generator not trained",
    training=_TRAINED | _WHOLE_ANSWERS | {"train_generator": False},
)
DRO = Recipe(name="dro", label="DRO", training=_TRAINED | _WHOLE_ANSWERS)
