"""Options that were renamed: an old name on the command line or in YAML is answered with the new one.

The settings of training keep their own table (`training.config.RENAMED`).
"""

RENAMED = {
    "answering": "answer_mode",
    "dev": "eval_dataset",
    "dev_questions": "eval_questions",
    "exercises": "general_tasks",
    "exercises_seed": "general_tasks_seed",
    "generation": "decoding",
    "max_dev_samples": "max_eval_samples",
    "output": "output_dir",
    "probes": "retention",
    "resume": "resume_from_checkpoint",
    "support": "attribution",
    "test": "test_dataset",
    "train": "train_dataset",
    "window": "text_window",
}
"""Old name -> new name. A nested option counts by its group (`generation.top_p`)."""


def renamed(name: str, known: list[str]) -> str:
    """The present name of a renamed option, if the command has it; else an empty string.

    Args:
        name: What was given, without dashes.
        known: The options of the command.
    """
    group, dot, rest = name.partition(".")
    new = RENAMED.get(group, "") + dot + rest
    return new if group in RENAMED and new in known else ""
