"""An encoder that is compared by the dot product is searched by it, everywhere (sentence-transformers 6.2).

multi-qa-mpnet-base-dot-v1 and msmarco-*-dot-v5 say so in their config (`similarity_fn_name`); the length of their
vectors is part of the similarity.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers.util import cos_sim, dot_score
from tiny_models import PASSAGES, tiny_encoder

from indexes import Corpus, Encoder, IndexWriter, MismatchError, PassageIndex, UsageError, build_index
from indexes.directory.manifest import MANIFEST_FILE, Manifest
from indexes.vectors.faiss.faiss_index import FaissIndex
from retriever import BM25Retriever, DenseRetriever, HybridRetriever
from retriever.question_adapter import QuestionAdapter
from training.encoder_update import _loss, open_trained_retrieval, train_encoder_and_reindex

QUESTIONS = ["who wrote Hamlet", "a river in France", "the capital of Germany", "chemical element symbol"]
TEXTS = [p.contents for p in PASSAGES] + QUESTIONS


def dot_encoder(seed: int = 0) -> Encoder:
    """Bags of words that differ much in length, so that the dot product and the cosine rank differently."""
    model = tiny_encoder(TEXTS, seed=seed).model
    generator = torch.Generator().manual_seed(1)
    table = model[0].embedding.weight
    with torch.no_grad():
        table.mul_(torch.exp(1.5 * torch.randn(len(table), 1, generator=generator)))
    return Encoder(model, name="dot", similarity="dot")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dot") / "encoder"
    dot_encoder().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def index(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> PassageIndex:
    return build_index(
        Corpus.from_passages(PASSAGES), encoder, tmp_path_factory.mktemp("dot") / "index", bm25=True, progress=False
    )


def own_scores(encoder: Encoder) -> torch.Tensor:
    """By sentence-transformers itself: [B, N]."""
    questions_Bd = encoder.model.encode_query(QUESTIONS, convert_to_tensor=True)
    passages_Nd = encoder.model.encode_document([p.contents for p in PASSAGES], convert_to_tensor=True)
    return encoder.model.similarity(questions_Bd, passages_Nd)


def test_the_ranking_follows_the_models_similarity(encoder: Encoder, index: PassageIndex) -> None:
    scores_BN = own_scores(encoder)
    found = DenseRetriever(index, encoder).search(QUESTIONS, 12)
    for candidates, scores_N in zip(found, scores_BN, strict=True):
        assert candidates.ids == [PASSAGES[i].id for i in scores_N.argsort(descending=True).tolist()]
        np.testing.assert_allclose(candidates.scores, scores_N.sort(descending=True).values, rtol=1e-5)
    by_cosine = Encoder(encoder.model, similarity="cosine").encode_passages(PASSAGES)
    encoder.model.similarity_fn_name = "dot"
    assert not np.allclose(by_cosine, encoder.encode_passages(PASSAGES))


def test_similarity_is_recorded_and_restored(encoder: Encoder, index: PassageIndex, folder: Path) -> None:
    assert (encoder.similarity, index.info()["similarity"], index.manifest.metric) == ("dot", "dot", "inner_product")
    assert json.loads((index.path / MANIFEST_FILE).read_text())["encoder"]["similarity"] == "dot"
    assert json.loads((folder / "config_sentence_transformers.json").read_text())["similarity_fn_name"] == "dot"


def test_an_index_of_the_other_similarity_is_refused(index: PassageIndex, folder: Path) -> None:
    other = Encoder.from_pretrained(folder, device="cpu", similarity="cosine")
    with pytest.raises(MismatchError, match="its similarity is 'cosine' instead of 'dot'"):
        PassageIndex.open(index.path, encoder=other)
    with pytest.raises(MismatchError, match="similarity"):
        DenseRetriever(index, other)


def test_an_older_manifest_means_the_cosine(folder: Path, tmp_path: Path) -> None:
    """Such an index holds unit vectors of the same encoder: it is opened as it was built, by its cosine."""
    cosine = Encoder.from_pretrained(folder, device="cpu", similarity="cosine")
    build_index(Corpus.from_passages(PASSAGES), cosine, tmp_path / "index", progress=False)
    file = tmp_path / "index" / MANIFEST_FILE
    data = json.loads(file.read_text())
    del data["encoder"]["similarity"], data["truncation"]
    file.write_text(json.dumps(data))
    old = PassageIndex.open(tmp_path / "index")
    assert (old.info()["similarity"], old.info()["truncated_passages"]) == ("cosine", None)
    assert old.load_encoder().similarity == "cosine"
    with IndexWriter(tmp_path / "index", progress=False) as writer:
        writer.delete(["p0"])
    assert PassageIndex.open(tmp_path / "index").manifest.truncation == {}


def test_the_fingerprint_of_a_cosine_encoder_is_unchanged(encoder: Encoder) -> None:
    """Computed as releases did that knew no other similarity."""
    import hashlib

    cosine = tiny_encoder(TEXTS)
    settings = {
        "modules": ["StaticEmbedding"],
        "pooling": [],
        "question_prompt": "",
        "passage_prompt": "",
        "max_length": None,
        "truncate_dim": None,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(cosine.model.state_dict().items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.numpy().tobytes())
    assert cosine.fingerprint == digest.hexdigest()
    assert Encoder(cosine.model, similarity="dot").fingerprint != digest.hexdigest()


@pytest.mark.parametrize("similarity", ["euclidean", "manhattan"])
def test_other_similarities_are_refused(similarity: str) -> None:
    model = tiny_encoder(TEXTS).model
    model.similarity_fn_name = similarity
    with pytest.raises(UsageError, match=f"one of cosine, dot, but got '{similarity}'.*--similarity"):
        Encoder(model)
    assert Encoder(model, similarity="cosine").similarity == "cosine"


def test_a_manifest_with_another_similarity_is_refused(index: PassageIndex) -> None:
    data = json.loads(index.manifest.to_json())
    data["encoder"]["similarity"] = "euclidean"
    with pytest.raises(MismatchError, match="one of cosine, dot, but the manifest says 'euclidean'"):
        Manifest.from_json(json.dumps(data))


def test_an_index_that_normalises_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'L2norm,Flat' normalises them"):
        build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", factory="L2norm,Flat", progress=False)


def test_verify_checks_the_norm_of_vectors(encoder: Encoder, tmp_path: Path) -> None:
    index = build_index(Corpus.from_passages(PASSAGES), encoder, tmp_path / "index", progress=False)
    assert index.verify(encoder=encoder)["lowest_cosine"] == pytest.approx(1, abs=1e-6)
    scaled = 1.1 * encoder.encode_passages(PASSAGES)
    index.vectors.reconstruct = lambda rows: scaled[np.asarray(rows)]  # type: ignore[method-assign]
    with pytest.raises(MismatchError, match="'p0' must be as long as what the encoder gives"):
        index.verify(encoder=encoder)


def test_added_vectors_keep_their_length(encoder: Encoder, tmp_path: Path) -> None:
    build_index(Corpus.from_passages(PASSAGES[:9]), encoder, tmp_path / "index", progress=False)
    with IndexWriter(tmp_path / "index", encoder, progress=False) as writer:
        writer.add(PASSAGES[9:])
        writer.compact()
    changed = PassageIndex.open(tmp_path / "index", encoder=encoder)
    order = [changed.corpus.position(p.id) for p in PASSAGES]
    np.testing.assert_array_equal(changed.vectors.reconstruct(order), encoder.encode_passages(PASSAGES))


def test_prefilter_in_bfloat16_finds_the_same_for_vectors_of_any_length() -> None:
    generator = np.random.default_rng(0)
    lengths_N1 = np.exp(generator.normal(0, 1.5, (700, 1)))
    vectors_Nd = (generator.normal(size=(700, 24)) * lengths_N1).astype(np.float32)
    queries_Bd = (generator.normal(size=(40, 24)) * np.exp(generator.normal(0, 1.5, (40, 1)))).astype(np.float32)
    index = FaissIndex.build(vectors_Nd)
    exact_BN = queries_Bd.astype(np.float64) @ vectors_Nd.T.astype(np.float64)
    scores_Bk, rows_Bk = index.search(queries_Bd, 5, prefilter=True)
    np.testing.assert_array_equal(rows_Bk, np.argsort(-exact_BN, axis=1)[:, :5])
    np.testing.assert_allclose(scores_Bk, -np.sort(-exact_BN, axis=1)[:, :5], rtol=1e-4)


class TestQuestionAdapter:
    def test_an_adapted_question_keeps_the_length_of_the_question(self, encoder: Encoder, index: PassageIndex) -> None:
        adapter = QuestionAdapter(encoder.dimension, rank=3)
        with torch.no_grad():
            adapter.up.normal_(generator=torch.Generator().manual_seed(2))
        retriever = DenseRetriever(index, encoder, adapter=adapter)
        base_Bd = torch.from_numpy(encoder.encode_questions(QUESTIONS))
        changed_Bd = base_Bd + base_Bd @ adapter.down.T @ adapter.up.T
        expected_Bd = changed_Bd * (base_Bd.norm(dim=1) / changed_Bd.norm(dim=1)).unsqueeze(1)
        scores_BN = expected_Bd @ torch.from_numpy(encoder.encode_passages(PASSAGES)).T
        for candidates, scores_N in zip(retriever.search(QUESTIONS, 12), scores_BN, strict=True):
            torch.testing.assert_close(candidates.scores, scores_N.sort(descending=True).values, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(retriever.score(candidates), candidates.scores, rtol=1e-4, atol=1e-3)

    def test_an_untrained_adapter_scores_what_was_found(self, encoder: Encoder, index: PassageIndex) -> None:
        for retriever in (
            DenseRetriever(index, encoder),
            HybridRetriever(index, encoder, index.load_bm25()),
            BM25Retriever(index, encoder, index.load_bm25()),
        ):
            candidates = retriever.search(QUESTIONS[1], 7)
            torch.testing.assert_close(retriever.score(candidates), candidates.scores, rtol=1e-5, atol=1e-5)

    def test_fused_scores_change_by_cosines_and_not_by_dot_products(
        self, encoder: Encoder, index: PassageIndex
    ) -> None:
        retriever = HybridRetriever(index, encoder, index.load_bm25())
        candidates = retriever.search(QUESTIONS[1], 7)
        before = retriever.score(candidates).detach()
        with torch.no_grad():
            retriever.adapter.up.normal_(generator=torch.Generator().manual_seed(2))
        question_d, passages_nd = candidates.question_vector, candidates.passage_vectors
        adapted_d = retriever.adapter(question_d.unsqueeze(0))[0] * question_d.norm()
        scale = question_d.norm() * passages_nd.norm(dim=1).mean()
        expected_n = (passages_nd @ (adapted_d - question_d)) / scale
        torch.testing.assert_close(retriever.score(candidates) - before, expected_n, rtol=1e-4, atol=1e-4)


class TestRefresh:
    @pytest.mark.parametrize(("similarity", "scale"), [("cosine", 20.0), ("dot", 1.0)])
    def test_the_loss_is_that_of_the_similarity(self, similarity: str, scale: float) -> None:
        model = tiny_encoder(TEXTS).model
        texts = [QUESTIONS[:3], [PASSAGES[i].contents for i in (0, 7, 4)]]
        vectors = [model(model.preprocess(column))["sentence_embedding"] for column in texts]
        compare = {"cosine": cos_sim, "dot": dot_score}[similarity]
        expected = torch.nn.functional.cross_entropy(scale * compare(*vectors), torch.arange(3))
        found = _loss(model, similarity)([model.preprocess(column) for column in texts], torch.zeros(3))
        torch.testing.assert_close(found, expected)

    def test_a_refreshed_encoder_and_its_index_keep_the_similarity(
        self, encoder: Encoder, index: PassageIndex, tmp_path: Path
    ) -> None:
        from training import DROConfig

        config = DROConfig()
        train_encoder_and_reindex(DenseRetriever(index, encoder), [], tmp_path / "new", config, seed=0, progress=False)
        new_index, new_encoder = open_trained_retrieval(tmp_path / "new", encoder)
        assert (new_index.info()["similarity"], new_encoder.similarity) == ("dot", "dot")
        assert new_encoder.fingerprint == encoder.fingerprint
