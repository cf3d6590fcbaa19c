"""What an encoder can read at most: found in every kind of model, said when texts are longer, and planned for."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from indexes import Corpus, Encoder, IndexWriter, Passage, PassageIndex, UsageError, build_index
from indexes.encoder import EncodingBar, Truncation
from rag.cli import main
from rag.planning.encoder_files import max_length

WORDS = [f"w{i}" for i in range(30)]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def make_encoder(folder: Path, kind: str = "bert", *, positions: int = 20, stated: int | None = None) -> Path:
    """A tiny random transformer that adds two special tokens, saved by sentence-transformers."""
    tokens = {token: i for i, token in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(WordLevel(tokens, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names: dict[str, Any] = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokens), max_position_embeddings=positions, pad_token_id=1, bos_token_id=0, **size
    )
    AutoModel.from_config(config).save_pretrained(folder / "hf")
    fast.save_pretrained(folder / "hf")
    transformer = Transformer(str(folder / "hf"))
    if stated is not None:
        transformer.max_seq_length = stated
    model = SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")
    model.save_pretrained(str(folder / "st"), create_model_card=False)
    return folder / "st"


def passage(id_: str, words: int, title: str = "") -> Passage:
    return Passage(id_, title, " ".join(WORDS[i % len(WORDS)] for i in range(words)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 20 positions whose own limit is 10 tokens."""
    return make_encoder(tmp_path_factory.mktemp("limited"), stated=10)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.from_pretrained(folder, device="cpu")


class TestPositions:
    """RoBERTa and its kin begin to count behind the padding token, so that its table has two positions too many."""

    @pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet"])
    @pytest.mark.parametrize("stated", [None, 20])
    def test_position_limit_of_roberta_like_models(self, kind: str, stated: int | None, tmp_path: Path) -> None:
        encoder = Encoder.from_pretrained(make_encoder(tmp_path, kind, stated=stated), device="cpu")
        assert (encoder.max_length, encoder.position_limit) == (18, 18)
        vectors_Nd = encoder.encode_passages([passage("a", 60), passage("b", 16)])
        np.testing.assert_allclose(vectors_Nd[0], vectors_Nd[1], atol=1e-6)  # 16 words and two special tokens are read

    def test_bert_uses_all_positions_and_a_lower_limit_is_kept(self, folder: Path, encoder: Encoder) -> None:
        assert (encoder.max_length, encoder.position_limit) == (10, 20)
        assert Encoder.from_pretrained(folder, device="cpu", max_length=20).max_length == 20

    @pytest.mark.parametrize("wanted", [21, 2])
    def test_more_positions_than_there_are_and_no_room_for_a_word_are_refused(self, folder: Path, wanted: int) -> None:
        with pytest.raises(UsageError, match=rf"at least 3 and at most 20, .* 2 special tokens .* but got {wanted}"):
            Encoder.from_pretrained(folder, device="cpu", max_length=wanted)

    def test_the_error_of_a_roberta_comes_before_the_first_passage(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"at most 18, .* but got 20"):
            Encoder.from_pretrained(make_encoder(tmp_path, "roberta"), device="cpu", max_length=20)


class TestTruncation:
    def test_tokens_are_counted_with_prompt_title_and_special_tokens(self, folder: Path) -> None:
        encoder = Encoder.from_pretrained(folder, device="cpu", passage_prompt="w1 ")
        bar = EncodingBar(3, "passage", shown=False)
        # 2 special tokens, 1 of the prompt, 2 of the title: 5 + 4 = 9, 5 + 5 = 10 and 5 + 11 = 16 of 10.
        encoder.encode_passages([passage(str(n), n, "w2 w3") for n in (4, 5, 11)], progress=bar)
        assert bar.truncation == Truncation(passages=3, truncated=1, tokens=9 + 10 + 16, lost=6)

    def test_direct_calls_warn_once_with_share_and_cure(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        encoder = Encoder.from_pretrained(folder, device="cpu")
        for _ in range(2):
            encoder.encode_passages([passage("a", 18), passage("b", 3)])
            encoder.encode_questions([passage("q", 18).text])
        of_passages, of_questions = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "1 of 2 passages (50 %) are longer than the 10 tokens" in of_passages
        assert "10 of 25 tokens (40 %) are in no vector. Cut them into chunks (--chunk_tokens 10" in of_passages
        assert "--max_length, at most 20" in of_passages
        assert "1 of 1 questions (100 %)" in of_questions

    def test_no_warning_without_truncation(self, encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
        encoder.encode_passages([passage("a", 8)])
        assert not caplog.records

    def test_truncation_is_in_manifest_and_info(
        self, encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        corpus = Corpus.from_passages([passage("a", 18), passage("b", 3), passage("c", 8)])
        index = build_index(corpus, encoder, tmp_path / "index", progress=False)
        assert index.manifest.truncation == {"passages": 3, "truncated": 1, "tokens": 35, "lost": 10}
        shown = {name: index.info()[name] for name in ("truncated_passages", "tokens", "tokens_lost")}
        assert shown == {"truncated_passages": 1, "tokens": 35, "tokens_lost": 10}
        assert index.info()["truncated_share"] == pytest.approx(1 / 3)
        warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(warnings) == 1 and "1 of 3 passages (33.3 %)" in warnings[0]
        with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
            writer.add([passage("d", 12), passage("e", 1)])
            writer.delete(["a"])
        counts = PassageIndex.open(tmp_path / "index").manifest.truncation
        assert counts == {"passages": 5, "truncated": 2, "tokens": 35 + 14 + 3, "lost": 14}

    def test_a_resumed_build_counts_what_was_encoded_before(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("indexes.directory.shards.ROWS", 2)
        corpus = Corpus.from_passages([passage("a", 18), passage("b", 3), passage("c", 18), passage("d", 9)])
        encoder = Encoder.from_pretrained(folder, device="cpu")
        encode, calls = encoder.encode_passages, []

        def interrupted(*args: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return encode(*args, **options)

        monkeypatch.setattr(encoder, "encode_passages", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_index(corpus, encoder, tmp_path / "index", progress=False)
        index = build_index(corpus, encoder, tmp_path / "index", progress=False, resume=True)
        assert len(calls) == 3  # the first shard was not encoded again
        assert index.manifest.truncation == {"passages": 4, "truncated": 3, "tokens": 20 + 5 + 20 + 11, "lost": 21}


def test_max_length_from_the_shell_is_recorded(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "a", "title": "", "text": "' + passage("a", 14).text + '"}\n')
    build = ["index", "build", "--corpus", str(corpus), "--encoder", str(folder), "--quiet"]
    assert main([*build, "--output_dir", str(tmp_path / "index"), "--max_length", "16"]) == 0
    manifest = PassageIndex.open(tmp_path / "index").manifest
    assert (manifest.encoder.max_length, manifest.truncation["truncated"]) == (16, 0)
    assert PassageIndex.open(tmp_path / "index").load_encoder().max_length == 16
    assert main([*build, "--output_dir", str(tmp_path / "other"), "--max_length", "21"]) == 2
    assert "at most 20" in capsys.readouterr().err


class TestPlannedLength:
    """`rag plan index` reads no weights, and must find the length that `Encoder` finds."""

    @pytest.mark.parametrize(
        ("kind", "stated", "length"),
        [("bert", 10, 10), ("bert", None, 20), ("roberta", None, 18), ("roberta", 20, 18), ("mpnet", 12, 12)],
    )
    def test_max_length_without_weights_equals_the_encoders(
        self, kind: str, stated: int | None, length: int, tmp_path: Path
    ) -> None:
        folder = make_encoder(tmp_path, kind, stated=stated)
        encoder = Encoder.from_pretrained(folder, device="cpu")
        assert (encoder.max_length, max_length(str(folder))) == (length, length)
        # Saved again after it has read a batch; tokenizer.json then holds another length.
        encoder.encode_questions(["w1 w2"])
        encoder.model.tokenizer.backend_tokenizer.enable_truncation(max_length=5)
        encoder.save_pretrained(tmp_path / "again")
        assert max_length(str(tmp_path / "again")) == length

    def test_the_file_of_older_releases_counts_first(self, tmp_path: Path) -> None:
        folder = make_encoder(tmp_path)
        (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 7, "do_lower_case": false}')
        assert (max_length(str(folder)), Encoder.from_pretrained(folder, device="cpu").max_length) == (7, 7)

    def test_a_wanted_length_is_taken_or_refused(self, folder: Path) -> None:
        assert max_length(str(folder), 15) == 15
        with pytest.raises(UsageError, match=r"at most 20, .* but got 30"):
            max_length(str(folder), 30)

    @pytest.mark.parametrize("options", [[], ["--max_length", "15"]])
    def test_the_command_reads_max_length_tokens(
        self, folder: Path, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        corpus = tmp_path / "corpus.jsonl"
        rows = [f'{{"id": "{n}", "title": "", "text": "{passage("a", 400).text}"}}\n' for n in range(3)]
        corpus.write_text("".join(rows))
        assert main(["plan", "index", "--corpus", str(corpus), "--encoder", str(folder), *options]) == 0
        assert f"{15 if options else 10} tokens each" in capsys.readouterr().out
