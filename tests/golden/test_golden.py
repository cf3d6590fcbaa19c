"""Tiny runs, indexes, evaluations and tables give the numbers in the JSON files of this folder.

Each JSON file names the output that it freezes (`file`), the keys that are left out (`ignored`: times, versions,
settings, digests of settings or of trained weights), keys that need a tolerance above 1e-6 (`tolerances`), and the
expected values (`content`). A key that is renamed in the library is renamed there; a value changes only where the
mathematics is meant to change. Only `pytest tests/golden --write_golden` writes `content` again.

CPUs differ in how they round, so the base model runs in float64. What the library computes in float32 anyway remains:
importance weights come from log-likelihoods of about -70, which float32 rounds to 8e-6, hence 1e-5 for what is derived
from them. `fit_prior_weights` is off for the same reason: L-BFGS stops anywhere on a flat optimum, to about 1e-3
(`test_pooling.py` tests it). Bytes are compared where nothing is rounded: the encoder's vectors are exact.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import EXAMPLES_FOR_WORKERS, byte_tokenizer, tiny_encoder, tiny_model

from generator import language_model
from generator.configs import AdapterConfig, DecodingConfig
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.builder import build_index
from indexes.encoder import Encoder
from rag.experiments.sweep_runner import Sweep
from rag.experiments.sweep_settings import SweepSettings
from retriever.selector_config import SelectorConfig
from training.questions.example import QAExample
from training.questions.loading import write_examples

HERE = Path(__file__).parent
FROZEN = ("dro_selfaug", "sft", "rag_sequence", "evaluation", "sweep", "index_flat", "index_trained")
# Title and text have 4 or 8 words together.
PASSAGES = [
    Passage("p0", "Hamlet", "the play that Shakespeare wrote in 1600"),
    Passage("p1", "Columbus", "capital of Ohio"),
    Passage("p2", "Paris", "city on the Seine and the capital"),
    Passage("p3", "Danube", "river into the Black Sea from Germany"),
    Passage("p4", "Berlin", "capital of Germany"),
    Passage("p5", "Faust", "Goethe wrote a play about the devil"),
    Passage("p6", "Ohio", "state in America"),
    Passage("p7", "Seine", "river of France"),
]
QUESTIONS = [
    *EXAMPLES_FOR_WORKERS,
    QAExample("q3", "which river flows into the Black Sea?", ("the Danube",), ("p3",)),
]


def fill(model: torch.nn.Module, step: float) -> None:
    """Give every matrix whole multiples of `step`: normal draws differ between kinds of CPU."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (w for w in model.parameters() if w.ndim > 1):
            weight.copy_(torch.randint(-8, 9, weight.shape, generator=draws) * step)


@pytest.fixture(scope="session")
def whole_encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """An encoder whose vectors are means of small integers, so that the vectors of passages are exact."""
    made = tiny_encoder([p.contents for p in PASSAGES] + [q.question for q in QUESTIONS], dimension=16)
    fill(made.model, 1.0)
    folder = tmp_path_factory.mktemp("encoder") / "integers"
    made.save_pretrained(folder)
    return Encoder.from_pretrained(folder, similarity="dot", device="cpu")


@pytest.fixture(scope="session")
def results(whole_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that is frozen."""
    folder = tmp_path_factory.mktemp("golden")
    corpus = Corpus.from_passages(PASSAGES)
    for name, factory in (("flat", "Flat"), ("again", "Flat"), ("trained", "IVF2,SQ8")):
        build_index(corpus, whole_encoder, folder / name, factory=factory, progress=False)
    base = tiny_model()
    fill(base, 1 / 16)
    base.save_pretrained(folder / "base")
    byte_tokenizer().save_pretrained(folder / "base")
    files = {split: folder / f"{split}.jsonl" for split in ("train", "eval", "test")}
    for file in files.values():
        write_examples(QUESTIONS, file)
    settings = SweepSettings(
        recipes=("dro_selfaug", "sft", "rag_sequence"),
        index=str(folder / "flat"),
        **{f"{split}_dataset": str(file) for split, file in files.items()},
        base=str(folder / "base"),
        device="cpu",
        selector=SelectorConfig(num_candidates=6, num_selected=2),
        documents=4,
        decoding=DecodingConfig(max_new_tokens=3),
        adapter=AdapterConfig(r=2, lora_alpha=4),
        training={
            "rounds": 2,
            "e_step.num_permutations": 2,
            "e_step.single_passage_rounds": 1,
            "m_step.learning_rate": 1e-3,
            "m_step.gradient_accumulation_steps": 2,
            "m_step.fit_prior_weights": False,
        },
        general_tasks=2,
        answerable_only=False,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "resolve_dtype", lambda dtype, device: torch.float64)
        Sweep(folder / "sweep", settings, progress=False).run()
    return folder


def content_of(file: Path, ignored: set[str]) -> Any:
    """The JSON values in a file without the ignored keys; a list of them where it has one in each line."""

    def kept(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if key not in ignored}

    text = file.read_text()
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    found = [json.loads(line, object_pairs_hook=kept) for line in lines]
    return found if file.suffix == ".jsonl" else found[0]


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every number and string by its path."""
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: leaf for key, part in items for name, leaf in leaves(part, f"{path}/{key}").items()}
    return {path: value}


def agree(value: Any, expected: Any, tolerance: float) -> bool:
    """Numbers to a tolerance, relative or absolute; everything else exactly."""
    if type(value) is float and type(expected) is float:
        return bool(value == pytest.approx(expected, rel=tolerance, abs=tolerance))
    return type(value) is type(expected) and value == expected


@pytest.mark.parametrize("name", FROZEN)
def test_numbers_equal_the_golden_file(name: str, results: Path, pytestconfig: pytest.Config) -> None:
    golden = HERE / f"{name}.json"
    frozen = json.loads(golden.read_text())
    content = content_of(results / frozen["file"], set(frozen["ignored"]))
    if pytestconfig.getoption("write_golden"):
        golden.write_text(json.dumps(frozen | {"content": content}, ensure_ascii=False, indent=1) + "\n")
    before, now = leaves(json.loads(golden.read_text())["content"]), leaves(content)
    assert set(now) == set(before)
    assert now, "nothing is frozen"
    changed = {
        path: (before[path], value)
        for path, value in now.items()
        if not agree(value, before[path], frozen["tolerances"].get(path.rpartition("/")[2], 1e-6))
    }
    assert not changed


def test_the_same_index_is_the_same_bytes(results: Path) -> None:
    flat, again = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (results / "flat", results / "again")
    )
    assert flat == again
