"""A new recipe: supervised fine-tuning on the retriever's single best passage, compared with the base model.

    python examples/new_recipe.py

A recipe is settings of the one trainer and the one pipeline. Registering it is all: `rag sweep --recipes` knows it, and
`best_passage_selfaug` is the same with the SelfAug term. In a package of your own, name the module as an entry point of
the group ``dro_rag.plugins``, so that every `rag` command and every worker process of a sweep loads it.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from generator.configs import AdapterConfig, DecodingConfig
from rag.evaluation.metric import columns
from rag.experiments.recipe import Recipe, delta_posterior
from rag.experiments.recipes import RECIPES
from rag.experiments.sweep_options import WorldSettings
from rag.experiments.sweep_runner import Sweep
from rag.experiments.sweep_settings import SweepSettings
from rag.text_tables import table
from retriever import SelectorConfig

RECIPES.register(
    "best_passage",
    Recipe(
        name="best_passage",
        label="supervised LoRA on the best passage",
        training={"train_selector": False, "train_encoder": False, "train_generator": True, **delta_posterior()},
        selector={"use_prior": True, "use_language_model": False},
        single_passage=True,
    ),
)

SETTINGS = SweepSettings(
    recipes=("no_training", "best_passage"),
    world=WorldSettings(train_questions=8, eval_questions=4, test_questions=8),
    selector=SelectorConfig(num_candidates=3, num_selected=1, identifiers="numbers"),
    decoding=DecodingConfig(max_new_tokens=16),
    adapter=AdapterConfig(r=4, lora_alpha=8),
    training={"rounds": 1, "m_step.learning_rate": 2e-3},
    general_tasks=4,
)

if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        data = Sweep(Path(folder) / "sweep", SETTINGS, progress=False).run()
    shown = [column for column in columns("trials") if column.name in data["trials"][0]]
    rows = [
        [trial["label"], *(c.metric.format(trial[c.name], trial["intervals"].get(c.name)) for c in shown)]
        for trial in data["trials"]
    ]
    print(table(["", *(column.heading for column in shown)], rows))
