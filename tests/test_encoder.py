"""The encoder is the model it wraps, with its prompts and weights pinned by a fingerprint."""

import gzip
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Router, Transformer
from tiny_models import PASSAGES, tiny_encoder
from transformers import BertConfig, BertModel, BertTokenizerFast

from indexes import DataError, Encoder, Passage, ResourceError, UsageError
from indexes.encoder import EncodingBar

WORDS = "who wrote hamlet was it shakespeare or goethe in the year of a play about devil and scholar".split()
TEXTS = [" ".join(WORDS[: n + 1]) for n in range(13)]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real (random, tiny) transformer with attention, padding and a length limit, saved in float16."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ":", "q"])}
    torch.manual_seed(3)
    size = {"hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=40, initializer_range=0.4, **size)
    BertModel(config).half().save_pretrained(folder / "hf")
    BertTokenizerFast(vocab=vocabulary, model_max_length=32).save_pretrained(folder / "hf")
    transformer = Transformer(str(folder / "hf"))
    pooling = Pooling(transformer.get_embedding_dimension(), "mean")
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu", prompts={"query": "q : "})
    model.save_pretrained(str(folder / "st"), create_model_card=False)
    return folder / "st"


@pytest.fixture(scope="module")
def bert(bert_folder: Path) -> Encoder:
    return Encoder.from_pretrained(bert_folder, device="cpu")


def test_vectors_are_the_models_own_after_normalisation(bert: Encoder) -> None:
    passages = [Passage(str(n), f"title {n}", text) for n, text in enumerate(TEXTS)]
    expected_Nd = bert.model.encode([f"title {n}\n{text}" for n, text in enumerate(TEXTS)], prompt="")
    expected_Nd /= np.sqrt((expected_Nd**2).sum(axis=1, keepdims=True))
    vectors_Nd = bert.encode_passages(passages)
    assert (vectors_Nd.shape, vectors_Nd.dtype, bert.dimension) == ((13, 20), np.float32, 20)
    np.testing.assert_allclose(vectors_Nd, expected_Nd, atol=1e-6)


def test_embeddings_do_not_depend_on_the_batch(bert: Encoder) -> None:
    together_Bd = bert.encode_questions(TEXTS, batch_size=5)
    alone_Bd = np.concatenate([bert.encode_questions([text]) for text in TEXTS])
    np.testing.assert_allclose(together_Bd, alone_Bd, atol=1e-6)
    np.testing.assert_array_equal(together_Bd, bert.encode_questions(TEXTS, batch_size=5))


def test_weights_are_loaded_in_float32_unless_asked_otherwise(bert: Encoder, bert_folder: Path) -> None:
    assert {p.dtype for p in bert.model.parameters()} == {torch.float32}
    half = Encoder.from_pretrained(bert_folder, device="cpu", dtype="bfloat16")
    assert (bert.dtype, half.dtype) == ("float32", "bfloat16")
    vectors_Bd = half.encode_questions(TEXTS[:3])
    assert vectors_Bd.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors_Bd, axis=1), 1, atol=1e-6)
    with pytest.raises(UsageError, match="float32, float16, bfloat16, but got 'int8'"):
        Encoder.from_pretrained(bert_folder, dtype="int8")


def test_mixed_keeps_float32_weights_and_multiplies_in_bfloat16(bert: Encoder, bert_folder: Path) -> None:
    mixed = Encoder.from_pretrained(bert_folder, device="cpu", dtype="mixed")
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    assert (mixed.dtype, mixed.fingerprint) == ("mixed", bert.fingerprint)
    products: list[torch.dtype] = []
    pooled: list[torch.dtype] = []
    transformer, pooling = mixed.model
    transformer.auto_model.encoder.layer[0].intermediate.dense.register_forward_hook(
        lambda module, args, out: products.append(out.dtype)
    )
    pooling.register_forward_hook(lambda module, args, out: pooled.append(out["sentence_embedding"].dtype))
    error = np.abs(mixed.encode_questions(TEXTS, batch_size=4) - bert.encode_questions(TEXTS)).max()
    assert set(products) == {torch.bfloat16} and set(pooled) == {torch.float32}
    assert 1e-5 < error < 3e-2, error  # 0 would mean that nothing ran in bfloat16
    np.testing.assert_array_equal(mixed.encode_questions(TEXTS), mixed.encode_questions(TEXTS))


@pytest.mark.parametrize("dtype", ["float32", "mixed"])
def test_autocast_of_the_caller_has_no_effect(bert_folder: Path, dtype: str) -> None:
    encoder = Encoder.from_pretrained(bert_folder, device="cpu", dtype=dtype)
    expected_Bd = encoder.encode_questions(TEXTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(encoder.encode_questions(TEXTS), expected_Bd)
        # A bfloat16 copy of a weight that is left over from encoding has no gradient.
        loss = encoder.model(encoder.model.preprocess(TEXTS[:2]))["sentence_embedding"].square().sum()
    loss.backward()
    assert encoder.model[0].auto_model.encoder.layer[0].intermediate.dense.weight.grad.abs().sum() > 0


def test_texts_are_tokenised_once_and_read_longest_first_within_the_budget(
    bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.from_pretrained(bert_folder, device="cpu", question_prompt="")
    monkeypatch.setattr("indexes.encoder._CPU_TOKENS", 24)
    tokenised: list[int] = []
    shapes: list[tuple[int, ...]] = []
    preprocess = encoder.model.preprocess
    monkeypatch.setattr(encoder.model, "preprocess", lambda t, **k: tokenised.append(len(t)) or preprocess(t, **k))
    encoder.model[0].register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0]["input_ids"].shape)))
    # With [CLS] and [SEP] these are 3 to 7 tokens.
    texts = [TEXTS[n] for n in (0, 4, 1, 3, 2, 4, 0)]
    vectors_Bd = encoder.encode_questions(texts, batch_size=3)
    # 7 7 6 are padded to 21 tokens; 5 4 3 3 would be 20, but three rows are the most.
    assert (tokenised, shapes) == ([7], [(3, 7), (3, 5), (1, 3)])
    monkeypatch.setattr("indexes.encoder._CPU_TOKENS", 13)
    np.testing.assert_allclose(encoder.encode_questions(texts), vectors_Bd, atol=1e-6)
    assert shapes[3:] == [(1, 7), (1, 7), (2, 6), (3, 4)]
    np.testing.assert_allclose(vectors_Bd[[0, 1]], vectors_Bd[[6, 5]], atol=1e-6)


def test_vectors_do_not_depend_on_the_sorting_window(bert: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_Bd = bert.encode_questions(TEXTS)
    monkeypatch.setattr("indexes.encoder._WINDOW", 5)
    np.testing.assert_allclose(bert.encode_questions(TEXTS), whole_Bd, atol=1e-6)
    monkeypatch.setattr("indexes.encoder._WINDOW_TOKENS", 70)  # 2 texts of at most 32 tokens
    np.testing.assert_allclose(bert.encode_questions(TEXTS), whole_Bd, atol=1e-6)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("mode", ["mean", "lasttoken", "cls", "weightedmean"])
def test_pooling_prompt_and_padding_side_are_taken_from_the_model(
    bert_folder: Path, mode: str, padding_side: str
) -> None:
    """The prompt stays out of pooling, a vector is cut short, and pads stand on either side."""
    loaded = Encoder.from_pretrained(bert_folder, device="cpu").model
    pooling = Pooling(20, mode, include_prompt=False)
    model = SentenceTransformer(modules=[loaded[0], pooling], device="cpu", truncate_dim=17)
    model.tokenizer.padding_side = padding_side
    encoder = Encoder(model, question_prompt="q : ")
    expected_Bd = model.encode(TEXTS, prompt="q : ", normalize_embeddings=True, batch_size=1)
    vectors_Bd = encoder.encode_questions(TEXTS, batch_size=4 if padding_side == "right" else 1)
    assert vectors_Bd.shape == (13, 17)
    np.testing.assert_allclose(vectors_Bd, expected_Bd, atol=1e-6)
    model[1].include_prompt = True
    assert np.abs(encoder.encode_questions(TEXTS)[3] - vectors_Bd[3]).max() > 1e-3 or mode in ("cls", "lasttoken")


def test_other_models_are_encoded_by_sentence_transformers(bert_folder: Path) -> None:
    loaded = Encoder.from_pretrained(bert_folder, device="cpu").model
    towers = Router.for_query_document([loaded[0], loaded[1]], [loaded[0], Pooling(20, "cls")])
    for dtype_is_mixed in (False, True):
        routed = Encoder(SentenceTransformer(modules=[towers], device="cpu"), mixed=dtype_is_mixed)
        expected_Bd = routed.model.encode(TEXTS, task="document", normalize_embeddings=True)
        passages = [Passage(str(n), "", text) for n, text in enumerate(TEXTS)]
        np.testing.assert_allclose(routed.encode_passages(passages), expected_Bd, atol=1e-6)
        assert np.abs(routed.encode_questions(TEXTS) - expected_Bd).max() > 1e-3
    bag = tiny_encoder(TEXTS)
    expected_Bd = bag.model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(bag.encode_questions(TEXTS), expected_Bd, atol=1e-6)


def test_the_progress_bar_counts_passages_and_tokens(bert: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    passages = [Passage(str(n), "", text) for n, text in enumerate(TEXTS)]
    with EncodingBar(26, "passage", shown=True) as bar:
        for _ in range(2):
            bert.encode_passages(passages, batch_size=4, progress=bar)
    shown = capsys.readouterr().err
    assert "26/26" in shown and " passages/s, " in shown and " tokens/s]" in shown
    bert.encode_questions(TEXTS, progress=True)
    assert "13/13" in (shown := capsys.readouterr().err) and " questions/s" in shown
    with pytest.raises(UsageError, match="batch_size must be at least 1, but got 0"):
        bert.encode_questions(TEXTS, batch_size=0)


def test_prompts_come_from_the_model_and_explicit_ones_replace_them(bert: Encoder, bert_folder: Path) -> None:
    assert (bert.question_prompt, bert.passage_prompt) == ("q : ", "")
    plain = Encoder.from_pretrained(bert_folder, device="cpu", question_prompt="", passage_prompt="a ")
    np.testing.assert_allclose(plain.encode_questions(["q : hamlet"]), bert.encode_questions(["hamlet"]), atol=1e-6)
    np.testing.assert_allclose(
        plain.encode_passages([Passage("1", "", "hamlet")]), plain.encode_questions(["a hamlet"]), atol=1e-6
    )
    assert np.abs(plain.encode_questions(["hamlet"]) - bert.encode_questions(["hamlet"])).max() > 1e-3


def test_fingerprint_survives_saving_and_carries_every_setting(
    bert: Encoder, bert_folder: Path, tmp_path: Path
) -> None:
    def load(folder: Path = bert_folder, **settings: object) -> Encoder:
        return Encoder.from_pretrained(folder, device="cpu", **settings)  # type: ignore[arg-type]

    changed = load(question_prompt="Q: ", passage_prompt="P: ", max_length=9)
    changed.save_pretrained(tmp_path / "changed")
    again = load(tmp_path / "changed")
    assert again.fingerprint == changed.fingerprint
    assert (again.question_prompt, again.passage_prompt, again.max_length) == ("Q: ", "P: ", 9)
    assert load().fingerprint == bert.fingerprint
    variants = [bert, changed, load(question_prompt=""), load(passage_prompt="p "), load(max_length=9)]
    variants.append(load(dtype="float16"))
    assert len({encoder.fingerprint for encoder in variants}) == len(variants)


def test_fingerprint_changes_with_one_weight_or_the_pooling(bert_folder: Path) -> None:
    encoder = Encoder.from_pretrained(bert_folder, device="cpu")
    before = encoder.fingerprint
    weight = next(encoder.model.parameters())
    with torch.no_grad():
        weight[3, 2] += 1e-4
    assert encoder.fingerprint != before
    with torch.no_grad():
        weight[3, 2] -= 1e-4
    other = SentenceTransformer(modules=[encoder.model[0], Pooling(20, "cls")], device="cpu")
    assert Encoder(other, question_prompt="q : ").fingerprint != Encoder(encoder.model).fingerprint


def test_max_length_truncates(bert_folder: Path) -> None:
    # Two of the five tokens are [CLS] and [SEP], so three words remain.
    short = Encoder.from_pretrained(bert_folder, device="cpu", question_prompt="", max_length=5)
    vectors_Bd = short.encode_questions([TEXTS[2], TEXTS[3], TEXTS[1]])
    np.testing.assert_allclose(vectors_Bd[0], vectors_Bd[1], atol=1e-6)
    assert np.abs(vectors_Bd[0] - vectors_Bd[2]).max() > 1e-3


def test_an_encoder_without_a_length_limit_says_so(tmp_path: Path) -> None:
    tiny_encoder(TEXTS).save_pretrained(tmp_path / "bag")
    encoder = Encoder.from_pretrained(tmp_path / "bag")
    assert encoder.max_length is None
    assert encoder.name == str(tmp_path / "bag")
    with pytest.raises(UsageError, match="max_length=5 needs a model with a length limit"):
        Encoder.from_pretrained(tmp_path / "bag", max_length=5)


def test_empty_input() -> None:
    encoder = tiny_encoder(TEXTS, dimension=6)
    assert encoder.encode_questions([]).shape == (0, 6)
    assert encoder.encode_passages([]).shape == (0, 6)
    with pytest.raises(DataError, match="question 1 is empty"):
        encoder.encode_questions(["who", " \n"])
    with pytest.raises(UsageError, match="but got a string"):
        encoder.encode_questions("who")


def test_a_text_of_unknown_words_only_scores_zero_instead_of_nan() -> None:
    encoder = tiny_encoder(TEXTS)
    with torch.no_grad():
        encoder.model[0].embedding.weight[0] = 0
    assert np.abs(encoder.encode_questions(["zzz"])).max() == 0


def test_a_vector_that_is_not_finite_names_the_passage() -> None:
    encoder = tiny_encoder([p.contents for p in PASSAGES])
    with torch.no_grad():
        encoder.model[0].embedding.weight[encoder.model.tokenizer.token_to_id("oxygen")] = torch.nan
    with pytest.raises(DataError, match=r"NaN or infinity for 1 passages, the first is 'p2'"):
        encoder.encode_passages(PASSAGES)
    with pytest.raises(DataError, match=r"for 1 questions, the first is 'is oxygen\?'"):
        encoder.encode_questions(["what?", "is oxygen?"])


@pytest.mark.parametrize("name", ["no-such-folder/at-all", "deeply/nested/missing/folder"])
def test_a_missing_model_is_a_resource_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = rf"'{name}' cannot be\. Tried the Hugging Face hub, .* Pass the path of a local folder"
    with pytest.raises(ResourceError, match=message) as caught:
        Encoder.from_pretrained(name)
    assert caught.value.exit_code == 5


def test_a_folder_without_a_model_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match=r"Tried the local folder \("):
        Encoder.from_pretrained(tmp_path)


def test_the_real_encoder_ranks_an_answer_first(real_encoder_dir: Path) -> None:
    encoder = Encoder.from_pretrained(real_encoder_dir, device="cpu")
    question_d = encoder.encode_questions(["Which river flows through Paris?"])[0]
    scores = encoder.encode_passages(PASSAGES) @ question_d
    assert {PASSAGES[i].title for i in np.argsort(-scores)[:2]} == {"Paris", "Seine"}
    assert (encoder.dimension, encoder.max_length, encoder.dtype) == (384, 256, "float32")


def test_mixed_vectors_of_real_text_are_the_float32_ones(real_encoder_dir: Path, data_dir: Path) -> None:
    with gzip.open(data_dir / "nq/corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, 64)]
    passages = [Passage(str(n), row["title"], row["text"]) for n, row in enumerate(rows)]
    exact, mixed = (Encoder.from_pretrained(real_encoder_dir, device="cpu", dtype=d) for d in ("float32", "mixed"))
    cosines = (exact.encode_passages(passages) * mixed.encode_passages(passages)).sum(axis=1)
    assert 0.9999 <= cosines.min() < 1 - 1e-6
