"""Registries of kinds: registration, unknown kinds, and plugins found by entry points."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from indexes import registry
from indexes.errors import UsageError
from indexes.registry import GROUP, Registry


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """The entry points of the group, empty at first; loaded anew in this test."""
    found: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == GROUP else [])
    monkeypatch.setattr(registry, "_plugins_loaded", False)
    return found


def test_a_class_is_registered_and_found(plugins: list[EntryPoint]) -> None:
    selectors: Registry[type] = Registry("selector")

    @selectors.register("nearest")
    class Nearest:
        pass

    assert selectors.get("nearest") is Nearest
    assert selectors.kinds() == ["nearest"]
    assert selectors.package_of("nearest") == __name__.partition(".")[0]
    assert "nearest" in selectors
    assert "farthest" not in selectors


def test_built_in_kinds_are_listed_without_an_import_and_imported_on_use(plugins: list[EntryPoint]) -> None:
    sys.modules.pop("wave", None)
    readers: Registry[type] = Registry("reader", builtin={"wave": "wave:Wave_read"})
    assert readers.kinds() == ["wave"]
    assert "wave" not in sys.modules
    assert readers.get("wave").__name__ == "Wave_read"
    assert readers.package_of("wave") == "wave"


def test_an_unknown_kind_names_the_known_ones_the_nearest_and_the_package(plugins: list[EntryPoint]) -> None:
    metrics: Registry[int] = Registry("metric")
    metrics.register("exact_match", 1)
    metrics.register("f1", 2)
    with pytest.raises(UsageError) as error:
        metrics.get("exactmatch", package="their_metrics")
    assert str(error.value) == (
        "The metric must be one of ['exact_match', 'f1'], got 'exactmatch'. Did you mean 'exact_match'? "
        "It is registered by the package 'their_metrics': install or import it."
    )


def test_a_kind_is_registered_once(plugins: list[EntryPoint]) -> None:
    metrics: Registry[int] = Registry("metric", builtin={"f1": "rag.metrics:f1"})
    metrics.register("bleu", 1)
    assert metrics.register("bleu", 1) == 1  # a module that is imported twice registers the same
    for taken in ("bleu", "f1"):
        with pytest.raises(UsageError, match=f"'{taken}' is registered"):
            metrics.register(taken, 2)


def test_plugins_register_by_entry_point(
    plugins: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_plugin.py").write_text(
        "from indexes import registry\nimport test_registry\ntest_registry.KINDS.register('theirs', 7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])
    plugins.append(EntryPoint("theirs", "their_plugin", GROUP))
    assert KINDS.get("theirs") == 7


KINDS: Registry[int] = Registry("kind")


def test_a_plugin_that_fails_to_import_is_one_error_with_its_entry_point(
    plugins: list[EntryPoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_plugin.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    plugins.append(EntryPoint("broken", "broken_plugin", GROUP))
    with pytest.raises(UsageError) as error:
        Registry("selector").get("anything")  # type: ignore[var-annotated]
    assert "'broken' = 'broken_plugin'" in str(error.value)
    assert "No module named 'no_such_module_anywhere'" in str(error.value)
