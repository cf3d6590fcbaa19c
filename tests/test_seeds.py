"""Mean and spread over seeds, against numbers worked out by hand."""

import importlib.util
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[1] / "examples/tiny_models/seeds.py"


def _summary(runs: list[dict[str, Any]]) -> list[str]:
    spec = importlib.util.spec_from_file_location("tiny_seeds", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.summary(runs)).splitlines()


def _run(exact_match: float, difference: float, *, relative: float | None = 0.1) -> dict[str, Any]:
    scores = {
        "f1": 0.5,
        "selector_recall@1": 0.5,
        "selector_recall@3": 0.5,
        "general": 1.0,
        "kl_drift": 0.25,
        "seconds": 61.0,
    }
    compared = {"metric": "exact_match", "difference": difference, "relative": relative, "p": 0.03}
    return {
        "trials": [
            {"name": "base", **scores, "exact_match": 0.5},
            {"name": "dro", **scores, "exact_match": exact_match},
        ],
        "comparisons": [{"name": "dro", "against": "base", **compared}],
    }


def test_mean_and_spread() -> None:
    """0.6, 0.7, 0.8: mean 0.7, sample standard deviation 0.1."""
    lines = _summary([_run(0.6, 0.1), _run(0.7, 0.2), _run(0.8, 0.3)])
    assert "| dro | 70.0 ± 10.0 | 50.0 ± 0.0 |" in "\n".join(lines)
    (base,) = [line for line in lines if line.startswith("| base |")]
    assert base.endswith("| 0.250 ± 0.000 | 61 ± 0 |")
    assert lines[-1] == "| dro - base | exact_match | 20.0 ± 10.0 | 10.0 ± 0.0 % | 0.0300, 0.0300, 0.0300 |"


def test_one_seed_has_no_spread_and_a_missing_number_is_no_number() -> None:
    lines = _summary([_run(0.6, 0.1, relative=None)])
    assert any(line.startswith("| dro | 60.0 | 50.0 |") for line in lines)
    assert lines[-1] == "| dro - base | exact_match | 10.0 | - | 0.0300 |"


def test_only_metrics_that_every_seed_has() -> None:
    short = _run(0.6, 0.1)
    del short["trials"][1], short["comparisons"][0]
    lines = _summary([_run(0.6, 0.1), short])
    assert not any(line.startswith("| dro") for line in lines)
