"""Models with Python code of their own: refused with the reason, run where the user says so, and never otherwise."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_models import PASSAGES, byte_tokenizer, tiny_encoder, tiny_model

from generator.configs import AdapterConfig, DecodingConfig
from generator.language_model import LanguageModel
from indexes import IndexWriter
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.builder import build_index
from indexes.directory.manifest import Manifest
from indexes.directory.passage_index import PassageIndex
from indexes.encoder import Encoder
from indexes.errors import ResourceError
from rag.bundle import load_generator
from rag.cli import main
from rag.experiments.sweep_settings import SweepSettings
from rag.pipeline import RAG
from rag.planning.model_sizes import base_shape, encoder_shape
from retriever.selector_config import SelectorConfig

QUESTION = "who wrote Hamlet?"
SMALL = SelectorConfig(num_candidates=4, num_selected=2)
REFUSED = r"comes with Python code of its own, .* set trust_remote_code=True \(--trust_remote_code\)"

BASE_CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

Path({ran!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

class OwnModel(LlamaModel):
    config_class = OwnConfig
"""

ENCODER_CODE = """
from pathlib import Path
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

Path({ran!r}).touch()

class OwnEmbedding(StaticEmbedding):
    @classmethod
    def load(cls, *args, **kwargs):
        loaded = super().load(*args, **kwargs)
        loaded.__class__ = cls  # sentence-transformers 6.2 makes a plain StaticEmbedding of any
        return loaded

    def forward(self, features, **kwargs):
        features = super().forward(features, **kwargs)
        features["sentence_embedding"] = features["sentence_embedding"].flip(-1)
        return features
"""


@pytest.fixture(autouse=True)
def modules_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """transformers copies the code of a model into a cache and imports it from there; here that is temporary."""
    cache = tmp_path / "modules"
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that the code of the models makes when it is run."""
    return tmp_path / "ran"


@pytest.fixture
def own_base(tmp_path: Path, ran: Path) -> Path:
    """A Llama whose architecture only the code in its folder knows."""
    folder = tmp_path / "own-base"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    names["AutoModel"] = "modeling_own.OwnModel"
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"], "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_own.py").write_text(BASE_CODE.format(ran=str(ran)))
    return folder


@pytest.fixture
def own_encoder(tmp_path: Path, ran: Path) -> Path:
    """Word vectors whose module is the one in the folder: it turns every vector round."""
    folder = tmp_path / "own-encoder"
    tiny_encoder([p.contents for p in PASSAGES]).save_pretrained(folder)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "own_modules.OwnEmbedding"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "own_modules.py").write_text(ENCODER_CODE.format(ran=str(ran)))
    return folder


def own_index(own_encoder: Path, folder: Path) -> PassageIndex:
    corpus = Corpus.from_passages(PASSAGES)
    return build_index(corpus, str(own_encoder), folder, trust_remote_code=True, progress=False)


def test_a_base_with_code_is_refused_and_its_code_does_not_run(own_base: Path, ran: Path) -> None:
    with pytest.raises(ResourceError, match=REFUSED):
        LanguageModel.from_pretrained(own_base, device="cpu")
    with pytest.raises(ResourceError, match=REFUSED):
        base_shape(str(own_base))
    assert not ran.exists()


def test_a_base_with_code_runs_where_that_is_allowed(own_base: Path, ran: Path) -> None:
    model = LanguageModel.from_pretrained(own_base, device="cpu", adapter=AdapterConfig(r=2), trust_remote_code=True)
    assert ran.exists()
    assert type(model.base_model).__name__ == "OwnForCausalLM"
    assert model.trust_remote_code
    ids = torch.tensor([[20, 30, 40]])
    with torch.no_grad():
        expected = tiny_model().eval()(input_ids=ids).logits
        torch.testing.assert_close(model.head(model.hidden(ids, None)), expected)
    shape, context = base_shape(str(own_base), trust_remote_code=True)
    assert (shape.hidden, context) == (32, 4096)


def test_a_base_without_code_runs_none(base: Path) -> None:
    assert not LanguageModel.from_pretrained(base, device="cpu", trust_remote_code=True).trust_remote_code


def test_an_encoder_with_code_needs_trust_remote_code(own_encoder: Path, ran: Path) -> None:
    with pytest.raises(ResourceError, match=REFUSED):
        Encoder.from_pretrained(own_encoder)
    assert not ran.exists()
    encoder = Encoder.from_pretrained(own_encoder, trust_remote_code=True)
    assert ran.exists()
    assert encoder.trust_remote_code
    plain = tiny_encoder([p.contents for p in PASSAGES])
    assert not plain.trust_remote_code
    assert (encoder.encode_questions([QUESTION]) == plain.encode_questions([QUESTION])[:, ::-1]).all()


def test_an_encoder_with_a_configuration_of_its_own(own_base: Path) -> None:
    """`auto_map` in config.json, without any modules.json."""
    with pytest.raises(ResourceError, match=REFUSED):
        Encoder.from_pretrained(own_base)
    with pytest.raises(ResourceError, match=REFUSED):
        encoder_shape(str(own_base))
    assert encoder_shape(str(own_base), trust_remote_code=True).dimension == 32


def test_an_index_records_trust_remote_code_without_granting_it(own_encoder: Path, ran: Path, tmp_path: Path) -> None:
    index = own_index(own_encoder, tmp_path / "index")
    assert index.manifest.encoder.trust_remote_code is True
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["encoder"]["trust_remote_code"] is True
    ran.unlink()
    with pytest.raises(ResourceError, match=r"records the option does not set it"):
        index.load_encoder()
    with (
        pytest.raises(ResourceError, match=REFUSED),
        IndexWriter(tmp_path / "index", progress=False) as writer,
    ):
        writer.add([Passage("new", "New", "something new")])
    assert not ran.exists()
    encoder = index.load_encoder(trust_remote_code=True)
    with IndexWriter(tmp_path / "index", encoder=encoder, progress=False) as writer:
        writer.add([Passage("new", "New", "something new")])
    assert len(index.newest()) == len(PASSAGES) + 1


def test_manifests_from_before_there_was_the_option(index: PassageIndex) -> None:
    data = json.loads(index.manifest.to_json())
    assert data["encoder"].pop("trust_remote_code") is False
    assert Manifest.from_json(json.dumps(data)) == index.manifest


def test_a_bundle_records_trust_remote_code_without_granting_it(
    own_base: Path, own_encoder: Path, ran: Path, tmp_path: Path
) -> None:
    """Everything is inside the bundle, so that what it records could speak for nobody else's code."""
    index = own_index(own_encoder, tmp_path / "index")
    settings = {"selector": SMALL, "decoding": DecodingConfig(max_new_tokens=3), "device": "cpu"}
    with pytest.raises(ResourceError, match=REFUSED):
        RAG.create(index=index, base=own_base, **settings)
    rag = RAG.create(index=index, base=own_base, trust_remote_code=True, **settings)
    before = rag.answer(QUESTION)
    bundle = rag.save_pretrained(tmp_path / "b", include_index=True, include_encoder=True, include_base=True)
    config = json.loads((bundle / "rag_config.json").read_text())
    assert config["base"]["trust_remote_code"] is True
    assert config["encoder"]["trust_remote_code"] is True
    for folder in (own_base, own_encoder):
        shutil.rmtree(folder)
    ran.unlink()
    with pytest.raises(ResourceError, match=r"records the option does not set it"):
        RAG.from_pretrained(bundle, device="cpu")
    with pytest.raises(ResourceError, match=r"The base .*records the option does not set it"):
        load_generator(bundle, device="cpu")
    assert not ran.exists()
    assert RAG.from_pretrained(bundle, device="cpu", trust_remote_code=True).answer(QUESTION) == before
    assert load_generator(bundle, device="cpu", trust_remote_code=True).language_model.trust_remote_code


def test_the_commands_have_the_option(
    own_base: Path, own_encoder: Path, ran: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is refused without it, with the exit code of a missing resource, and works with it."""
    corpus, question = tmp_path / "corpus.jsonl", tmp_path / "questions.jsonl"
    corpus.write_text("".join(json.dumps({"id": p.id, "title": p.title, "text": p.text}) + "\n" for p in PASSAGES))
    question.write_text(json.dumps({"id": "q", "question": QUESTION, "golden_answers": ["Shakespeare"]}) + "\n")
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "new", "text": "something new"}\n')
    index = str(tmp_path / "index")
    small = ["--selector.num_candidates", "4", "--selector.num_selected", "2", "--decoding.max_new_tokens", "3"]
    probes = ["--drift", str(tmp_path / "drift.jsonl"), "--max_new_tokens", "2"]
    (tmp_path / "drift.jsonl").write_text('{"prompt": "some words"}\n')
    counts = ["--passages", "20", "--train_questions", "3"]
    commands = [
        ["index", "build", "--corpus", str(corpus), "--encoder", str(own_encoder), "--output_dir", index],
        ["search", QUESTION, "--index", index],
        ["index", "verify", index, "--encoder", str(own_encoder)],
        ["index", "add", index, "--corpus", str(more)],
        ["index", "tune", index, "--questions", str(question), "-k", "3", "--dry_run"],
        ["ask", QUESTION, "--index", index, "--base", str(own_base), "--device", "cpu", *small],
        ["plan", "--base", str(own_base), *counts],
        ["plan", "index", "--passages", "20", "--encoder", str(own_base), "--device", "cpu"],
        ["forgetting", "--base", str(own_base), "--device", "cpu", *probes],
    ]
    for words in commands:
        ran.unlink(missing_ok=True)
        assert main(words) == 5, words
        assert "trust_remote_code" in capsys.readouterr().err, words
        assert not ran.exists(), words
        assert main([*words, "--trust_remote_code"]) == 0, (words, capsys.readouterr().err)


def test_every_command_that_loads_a_model_has_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    named = [["train"], ["evaluate"], ["sweep"], ["plan"], ["plan", "index"], ["inspect", "permutations"], ["inspect"]]
    named = [*named[:-1], ["inspect", "batch"], ["index", "add"], ["index", "update"], ["index", "delete"]]
    for words in [*named, ["index", "compact"]]:
        with pytest.raises(SystemExit) as stopped:
            main([*words, "--help"])
        assert stopped.value.code == 0
        assert "--trust_remote_code" in capsys.readouterr().out, words


def test_worker_processes_of_a_sweep_get_the_option() -> None:
    """They are processes of their own, which read the settings that the user's command has written."""
    settings = SweepSettings(
        index="i", train_dataset="t", eval_dataset="d", test_dataset="e", trust_remote_code=True, context_length=700
    )
    again = SweepSettings.from_json(settings.to_json())
    assert (again.trust_remote_code, again.context_length) == (True, 700)
    assert SweepSettings(index="i", train_dataset="t", eval_dataset="d", test_dataset="e").trust_remote_code is False
