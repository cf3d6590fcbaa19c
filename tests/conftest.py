"""Fixtures of all tests, and the marks that tests get by what they use. Heavy imports wait for the first fixture.

Nothing is downloaded and nothing is written outside `tmp_path`.
"""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import durations
import marks
import pytest

if TYPE_CHECKING:
    from generator.generator import Generator
    from generator.language_model import LanguageModel
    from indexes.directory.passage_index import PassageIndex
    from indexes.encoder import Encoder
    from rag.pipeline import RAG
    from retriever.dense import DenseRetriever
    from retriever.listwise_selector import ListwiseSelector
    from training.estimation import EStep


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--write_golden`, the only way to write the golden files again."""
    parser.addoption("--write_golden", action="store_true", help="write the content of tests/golden/*.json again")
    parser.addoption("--write-durations", action="store_true", help="measure every test and write durations.json")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-durations"):
        config.pluginmanager.register(durations.DurationWriter())


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test by what it uses (marks.py), and by what it took when it was last measured (durations.py)."""
    measured = durations.read_durations()
    for item in items:
        if isinstance(item, pytest.Function):
            # pytest has no public way from a test to the functions of its fixtures.
            fixtures = [found[-1] for found in item._fixtureinfo.name2fixturedefs.values()]
            parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
            for kind in marks.kinds(item.function, [f.func for f in fixtures], parameters):
                item.add_marker(kind)
            shared = [durations.fixture_id(f) for f in fixtures if f.scope != "function"]
            if durations.is_slow(item.nodeid, shared, measured):
                item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[object]:
    """Write lone surrogates, which a failing test on broken text may show, so that a worker can send its report."""
    return _without_surrogates((yield))


def _without_surrogates(value: object) -> object:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case dict():
            return {key: _without_surrogates(item) for key, item in value.items()}
        case list() | tuple():
            return type(value)(_without_surrogates(item) for item in value)
        case _:
            return value


def pytest_collection_finish() -> None:
    """Keep the collector off what was imported: full collections, one after each round of training, would walk it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real data; tests that need it skip when it is missing."""
    folder = Path(os.environ.get("RAG_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip("real data is missing: set RAG_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def real_encoder_dir(data_dir: Path) -> Path:
    """A real sentence-transformers encoder on disk, beside the real data."""
    folder = Path(os.environ.get("RAG_ENCODER", data_dir.parent / "models/all-MiniLM-L6-v2"))
    if not folder.is_dir():
        pytest.skip("a real encoder is missing: set RAG_ENCODER to its folder")
    return folder


@pytest.fixture
def language_model() -> "LanguageModel":
    """A tiny Llama with shaken adapters."""
    from tiny_models import randomize_adapters, tiny_language_model

    model = tiny_language_model()
    randomize_adapters(model)
    return model


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> "Encoder":
    """A tiny encoder over the toy passages, saved and loaded, so that its name is a real folder."""
    from tiny_models import PASSAGES, tiny_encoder

    from indexes.encoder import Encoder

    folder = tmp_path_factory.mktemp("encoder") / "tiny-encoder"
    tiny_encoder([p.contents for p in PASSAGES] + ["who what where wrote capital of river designed"]).save_pretrained(
        folder
    )
    return Encoder.from_pretrained(folder)


@pytest.fixture(scope="session")
def index(encoder: "Encoder", tmp_path_factory: pytest.TempPathFactory) -> "PassageIndex":
    """The twelve toy passages, indexed."""
    from tiny_models import PASSAGES

    from indexes.corpora.corpus import Corpus
    from indexes.directory.builder import build_index

    folder = tmp_path_factory.mktemp("index") / "toy"
    return build_index(Corpus.from_passages(PASSAGES), encoder, folder, progress=False)


@pytest.fixture
def retriever(index: "PassageIndex", encoder: "Encoder") -> "DenseRetriever":
    """A dense retriever with a fresh question adapter."""
    from retriever.dense import DenseRetriever

    return DenseRetriever(index, encoder)


@pytest.fixture
def make_selector(retriever: "DenseRetriever") -> "Callable[..., ListwiseSelector]":
    """Builds a selector with a gate that lets the language model speak."""
    import torch

    from retriever.listwise_selector import ListwiseSelector
    from retriever.selector_config import SelectorConfig

    def make(
        model: "LanguageModel",
        *,
        gate: float = 0.7,
        strength: float = 0.9,
        prior: bool = True,
        **settings: object,
    ) -> "ListwiseSelector":
        config = SelectorConfig(**{"num_candidates": 6, "num_selected": 3, "use_prior": prior, **settings})
        selector = ListwiseSelector(model, retriever, config=config)
        with torch.no_grad():
            selector.prior.gate.fill_(gate)
            selector.prior.strength.fill_(strength)
        return selector

    return make


@pytest.fixture
def generator(language_model: "LanguageModel") -> "Generator":
    """A generator over the tiny model."""
    from generator.configs import DecodingConfig
    from generator.generator import Generator

    return Generator(language_model, config=DecodingConfig(max_new_tokens=5))


@pytest.fixture
def passes(language_model: "LanguageModel") -> Iterator[list[int]]:
    """Grows by one with every forward pass of the tiny model."""
    seen: list[int] = []
    hook = language_model.base_model.model.register_forward_hook(lambda *_: seen.append(1))
    yield seen
    hook.remove()


@pytest.fixture
def make_e_step(
    language_model: "LanguageModel",
    retriever: "DenseRetriever",
    make_selector: "Callable[..., ListwiseSelector]",
    generator: "Generator",
) -> "Callable[..., EStep]":
    """E-steps that read two of four candidates, with any settings."""
    from tiny_models import dro_config

    from training.estimation import EStep

    def make(**settings: object) -> "EStep":
        selector = make_selector(language_model, num_candidates=4, num_selected=2)
        return EStep(retriever, selector, generator, dro_config(**settings))

    return make


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer."""
    from tiny_models import byte_tokenizer, tiny_model

    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_rag(base: Path, index: "PassageIndex") -> "Callable[..., RAG]":
    """Builds untrained pipelines over the toy passages."""
    from generator.configs import AdapterConfig, DecodingConfig
    from rag.pipeline import RAG
    from retriever.selector_config import SelectorConfig

    def make(num_candidates: int = 5) -> RAG:
        return RAG.create(
            index=index,
            base=base,
            selector=SelectorConfig(num_candidates=num_candidates, num_selected=2),
            decoding=DecodingConfig(max_new_tokens=3),
            adapter=AdapterConfig(r=3),
            device="cpu",
        )

    return make
