"""Settings of training: groups, names, checks, and what became of old names."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from indexes.errors import UsageError
from rag.cli import main
from rag.commands.options import training_config, training_options
from training.config import REMOVED, RENAMED, DROConfig, EStepConfig, MStepConfig

CONFIGS = Path(__file__).parents[1] / "examples" / "configs"


def groups() -> dict[str, object]:
    config = DROConfig()
    return {f.name: getattr(config, f.name) for f in fields(config) if is_dataclass(getattr(config, f.name))}


def test_there_are_at_most_six_groups_and_each_checks_itself() -> None:
    assert len(groups()) <= 6
    for group in groups().values():
        assert "__post_init__" in vars(type(group))
    with pytest.raises(UsageError, match="num_permutations must be at least 1; got 0"):
        EStepConfig(num_permutations=0)
    with pytest.raises(UsageError, match=r"tokens_per_optimizer_step must be at least 1 or None; got 0"):
        MStepConfig(tokens_per_optimizer_step=0)


def test_settings_survive_their_dictionary() -> None:
    config = DROConfig.from_dict({"rounds": 2, "e_step": {"exact": True}, "selfaug.alpha": 0.0})
    assert (config.rounds, config.e_step.exact, config.selfaug.alpha) == (2, True, 0.0)
    assert DROConfig.from_dict(config.to_dict()) == config
    assert {name: config.get(name) for name in config.names()} == {
        **{name: value for name, value in config.to_dict().items() if name not in groups()},
        **{f"{group}.{name}": v for group in groups() for name, v in config.to_dict()[group].items()},
    }


def test_every_old_name_says_the_new_one() -> None:
    known = DROConfig.names()
    assert set(RENAMED.values()) <= set(known)
    assert not (RENAMED.keys() | REMOVED.keys()) & set(known)
    for old, new in RENAMED.items():
        with pytest.raises(UsageError, match=f"'{old}' is no training setting. It is now called '{new}'."):
            DROConfig.from_dict({old: 1})
    for old, instead in REMOVED.items():
        with pytest.raises(UsageError) as error:
            DROConfig.from_dict({old: 1})
        assert f"It was removed: {instead}." in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("round", "Did you mean 'rounds'?"),
        ("num_permutation", "Did you mean 'e_step.num_permutations'?"),
        ("e_step.exakt", "Did you mean 'e_step.exact'?"),
        ("zzz", "Known: ['rounds', "),
    ],
)
def test_an_unknown_name_says_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        DROConfig().with_settings({name: 1})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"e_step": {"replacement": True}}, "set replacement=False, or proposals_per_sample=1"),
        ({"e_step": {"marginalization": "token"}}, "needs exact=True and likelihood_exponent=1; got exact=False"),
        ({"train_selector": False, "train_generator": False}, "both are false"),
        (
            {"retriever_training": {"objective": "lsr"}},
            "got {'e_step.exact': False, 'supervised.num_train_epochs': 1",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        DROConfig.from_dict(changes)


def test_python_yaml_and_shell_have_the_same_names(tmp_path: Path) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    training_options(parser)
    options = {action.option_strings[0] for action in parser._actions if action.option_strings}
    assert {f"--{name}" for name in DROConfig.names()} <= options
    file = tmp_path / "train.yaml"
    file.write_text("rounds: 3\ne_step:\n  num_permutations: 6\nm_step:\n  learning_rate: 0.01\n")
    args = parser.parse_args(
        ["--config", str(file), "--e_step.num_permutations", "8", "--training_arguments.bf16", "true"]
    )
    expected = {"rounds": 3, "e_step.num_permutations": 8, "m_step.learning_rate": 0.01}
    assert training_config(args) == DROConfig.from_dict(expected | {"training_arguments": {"bf16": True}})


@pytest.mark.parametrize("command", ["train", "sweep", "plan", "inspect batch"])
def test_a_command_says_the_new_name_of_an_old_option(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("selfaug_rows: one\n")
    required = {"train": ["--train_dataset", "a", "--output_dir", "b"], "sweep": ["--output_dir", "a"]}
    words = [*command.split(), *required.get(command, [])] + (["--questions", "a"] if "batch" in command else [])
    for wrong in (["--selfaug_rows", "one"], ["--config", str(file)]):
        assert main([*words, *wrong]) == 2
        assert "It is now called 'selfaug.permutations'." in capsys.readouterr().err
    if command != "plan":
        assert main([*words, "--guidance", "0.5"]) == 2
        assert "It was removed: at equal cost" in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_example_configs_name_settings_of_training(file: Path) -> None:
    """Whatever is no option of the pipeline or of a sweep is a setting of training, by its present name."""
    written = yaml.safe_load(file.read_text())
    known = {f.name for f in fields(DROConfig)}
    config = DROConfig.from_dict({name: value for name, value in written.items() if name in known})
    assert config.rounds == written["rounds"]
    assert not (RENAMED.keys() | REMOVED.keys()) & written.keys()
