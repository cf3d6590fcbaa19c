"""Reciprocal rank fusion by hand, what the fused scores teach, duplicates, and the parts that use a retriever."""

from pathlib import Path

import pytest
import torch
from tiny_models import PASSAGES

from generator.generator import Generator
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.builder import PassageIndex, build_index
from indexes.encoder import Encoder
from indexes.errors import MismatchError, UsageError
from indexes.vectors.bm25_index import BM25Index
from retriever.dense import DenseRetriever
from retriever.hybrid import BM25Retriever, HybridRetriever, LexicalRetriever, reciprocal_rank_fusion
from retriever.listwise_selector import ListwiseSelector
from retriever.retriever import Retriever
from retriever.selector_config import SamplingConfig, SelectorConfig
from training.config import DROConfig, EStepConfig
from training.estimation import EStep
from training.questions.example import QAExample

QUESTIONS = ["who wrote Hamlet?", "capital of France"]


@pytest.fixture(scope="module")
def bm25(index: PassageIndex) -> BM25Index:
    return index.load_bm25()


@pytest.fixture
def hybrid(index: PassageIndex, encoder: Encoder, bm25: BM25Index) -> HybridRetriever:
    return HybridRetriever(index, encoder, bm25)


def learn_something(retriever: Retriever, *, seed: int = 0) -> None:
    """Move the question adapter away from the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        retriever.adapter.up.copy_(torch.randn(retriever.adapter.up.shape, generator=generator) * 3)


# -- fusion ----------------------------------------------------------------------------------------------------


def test_fusion_by_hand() -> None:
    """rrf_k = 60: 7 is first and third, 8 second and first, 9 third, 5 second of the other; scale 61 / 2."""
    fused = reciprocal_rank_fusion([[7, 8, 9], [8, 5, 7]])
    assert list(fused) == [8, 7, 5, 9]
    assert fused == pytest.approx(
        {
            8: 61 / 2 * (1 / 62 + 1 / 61),
            7: 61 / 2 * (1 / 61 + 1 / 63),
            5: 61 / 2 * (1 / 62),
            9: 61 / 2 * (1 / 63),
        }
    )


def test_first_in_both_is_one_and_weights_scale() -> None:
    fused = reciprocal_rank_fusion([[3, 1], [3, 2]], rrf_k=0, weights=[3.0, 1.0])
    assert fused == pytest.approx({3: 1.0, 1: 3 / 2 / 4, 2: 1 / 2 / 4})
    assert list(fused) == [3, 1, 2]


def test_ties_go_to_the_first_ranking() -> None:
    assert list(reciprocal_rank_fusion([[4, 9], [2, 1]])) == [4, 2, 9, 1]


def test_the_search_is_the_fusion_of_both_rankings(
    hybrid: HybridRetriever, retriever: DenseRetriever, bm25: BM25Index
) -> None:
    for question, found in zip(QUESTIONS, hybrid.search(QUESTIONS, 7), strict=True):
        dense = [int(id_[1:]) for id_ in retriever.search(question, 100).ids]
        words = [row for row in bm25.search([question], 12)[1][0].tolist() if row >= 0]
        expected = reciprocal_rank_fusion([dense, words], rrf_k=10)
        assert [int(id_[1:]) for id_ in found.ids] == list(expected)[:7]
        torch.testing.assert_close(found.scores, torch.tensor(list(expected.values())[:7], dtype=torch.float32))


def test_one_question_or_many_and_fewer_passages_than_k(hybrid: HybridRetriever) -> None:
    found = hybrid.search(QUESTIONS, 5)[1]
    assert hybrid.search(QUESTIONS[1], 5).ids == found.ids
    everything = hybrid.search(QUESTIONS[1], 50)
    assert sorted(everything.ids) == sorted(p.id for p in PASSAGES)
    assert everything.ids[:5] == found.ids


def test_weights_choose_a_ranking(
    index: PassageIndex, encoder: Encoder, bm25: BM25Index, retriever: DenseRetriever
) -> None:
    dense_only = HybridRetriever(index, encoder, bm25, weights=(1.0, 0.0))
    assert dense_only.search(QUESTIONS[0], 12).ids == retriever.search(QUESTIONS[0], 12).ids
    words_only = HybridRetriever(index, encoder, bm25, weights=(0.0, 1.0))
    assert words_only.search(QUESTIONS[0], 2).ids[0] == "p0"


def test_depth_ends_the_rankings(index: PassageIndex, encoder: Encoder, bm25: BM25Index) -> None:
    """At depth 1 only the two first passages are found; for more, depth follows k."""
    shallow = HybridRetriever(index, encoder, bm25, depth=1)
    explanations = shallow.search(QUESTIONS[1], 1, explain=True).explanations
    assert explanations is not None
    assert {explanations[0].dense_rank, explanations[0].bm25_rank} <= {1, None}
    assert len(shallow.search(QUESTIONS[1], 9)) == 9


# -- duplicates ------------------------------------------------------------------------------------------------


@pytest.fixture
def doubled(encoder: Encoder, tmp_path: Path) -> HybridRetriever:
    """Every passage under three ids: as it is, in capitals with other spaces, and in full-width letters."""

    def wide(text: str) -> str:
        return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)

    copies = [
        *PASSAGES,
        *(Passage(f"{p.id}-caps", p.title.upper(), p.text.upper().replace(" ", "  ")) for p in PASSAGES),
        *(Passage(f"{p.id}-wide", wide(p.title), wide(p.text)) for p in PASSAGES),
    ]
    index = build_index(Corpus.from_passages(copies), encoder, tmp_path / "doubled", progress=False)
    return HybridRetriever(index, encoder, index.load_bm25(), depth=4)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_the_same_text_is_found_once(doubled: HybridRetriever, k: int) -> None:
    for found in doubled.search(QUESTIONS, k):
        originals = [id_.partition("-")[0] for id_ in found.ids]
        assert len(originals) == k
        assert len(set(originals)) == k


def test_search_returns_at_most_all_passages(doubled: HybridRetriever) -> None:
    assert len(doubled.search(QUESTIONS[0], 30)) == len(PASSAGES)


def test_the_best_of_equal_passages_is_kept(doubled: HybridRetriever) -> None:
    everything = HybridRetriever(doubled.index, doubled.encoder, doubled.bm25)
    dense = DenseRetriever(doubled.index, doubled.encoder).search(QUESTIONS[0], 36).ids
    rows = doubled.bm25.search([QUESTIONS[0]], 36)[1][0].tolist()
    fused = reciprocal_rank_fusion([dense, [doubled.index.corpus[row].id for row in rows if row >= 0]])
    expected: dict[str, str] = {}
    for id_ in fused:
        expected.setdefault(id_.partition("-")[0], id_)
    assert everything.search(QUESTIONS[0], 12).ids == list(expected.values())


def test_a_title_counts_as_text(encoder: Encoder, tmp_path: Path) -> None:
    """Equal texts under other titles say different things."""
    passages = [
        Passage("a", "Seine", "A river."),
        Passage("b", "Danube", "A river."),
        Passage("c", "Seine", "a  RIVER."),
    ]
    index = build_index(Corpus.from_passages(passages), encoder, tmp_path / "rivers", progress=False)
    assert set(HybridRetriever(index, encoder, index.load_bm25()).search("river Seine", 3).ids) == {"a", "b"}


# -- scores and what they teach --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BM25Retriever, HybridRetriever])
@pytest.mark.parametrize("learned", [False, True])
def test_score_is_that_of_the_search(
    kind: type[Retriever], learned: bool, index: PassageIndex, encoder: Encoder, bm25: BM25Index
) -> None:
    """At the start, and after a search with what was learned by then: a ratio p_new / p_old starts at 1."""
    retriever = kind(index, encoder, bm25)
    if learned:
        learn_something(retriever)
    for found in retriever.search(QUESTIONS, 6):
        torch.testing.assert_close(retriever.score(found).detach(), found.scores, rtol=1e-5, atol=1e-5)
        moved = found.reordered([5, 0, 3])
        torch.testing.assert_close(retriever.score(moved).detach(), moved.scores, rtol=1e-5, atol=1e-5)


def test_score_moves_with_the_dense_scores(hybrid: HybridRetriever, retriever: DenseRetriever) -> None:
    found = hybrid.search(QUESTIONS[0], 6)
    learn_something(hybrid)
    vectors_nd, question_d = found.passage_vectors, found.question_vector
    adapted_d = hybrid.adapter(question_d[None])[0].detach()
    expected = found.scores + vectors_nd @ (adapted_d - question_d)
    torch.testing.assert_close(hybrid.score(found).detach(), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, found.scores, atol=1e-3)


def test_the_gradient_is_the_dense_one(hybrid: HybridRetriever, retriever: DenseRetriever) -> None:
    found = hybrid.search(QUESTIONS[1], 5)
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0])
    (fused,) = torch.autograd.grad((hybrid.score(found) * weights).sum(), hybrid.adapter.up)
    (dense,) = torch.autograd.grad((retriever.score(found) * weights).sum(), retriever.adapter.up)
    torch.testing.assert_close(fused, dense)
    assert fused.abs().sum() > 0


def test_candidates_of_another_retriever_keep_its_scores(hybrid: HybridRetriever, retriever: DenseRetriever) -> None:
    found = retriever.search(QUESTIONS[0], 5)
    torch.testing.assert_close(hybrid.score(found), retriever.score(found))


def test_a_learned_adapter_changes_the_fused_search(hybrid: HybridRetriever) -> None:
    before = hybrid.search(QUESTIONS[0], 12).ids
    learn_something(hybrid)
    assert hybrid.search(QUESTIONS[0], 12).ids != before


# -- BM25 alone ------------------------------------------------------------------------------------------------


def test_bm25_retriever(index: PassageIndex, encoder: Encoder, bm25: BM25Index) -> None:
    """Two passages hold "capital" and "France", two more one of them; the others follow with 0."""
    retriever = BM25Retriever(index, encoder, bm25)
    found = retriever.search("capital of France", 7)
    scores, rows = bm25.search(["capital of France"], 4)
    assert found.ids == [f"p{row}" for row in rows[0]] + ["p0", "p1", "p2"]
    torch.testing.assert_close(found.scores, torch.tensor([*scores[0].tolist(), 0.0, 0.0, 0.0]))
    torch.testing.assert_close(found.passage_vectors @ found.question_vector, found.dense_scores)
    (gradient,) = torch.autograd.grad(retriever.score(found).sum(), retriever.adapter.up)
    assert not gradient.any()


# -- explanations ----------------------------------------------------------------------------------------------


def test_explanations(hybrid: HybridRetriever, retriever: DenseRetriever, bm25: BM25Index) -> None:
    found = hybrid.search("capital of France", 12, explain=True)
    dense = retriever.search("capital of France", 12)
    scores, rows = (a[0].tolist() for a in bm25.search(["capital of France"], 4))
    for id_, score, why in zip(found.ids, found.scores.tolist(), found.explanations or [], strict=True):
        at = dense.ids.index(id_)
        assert why.dense_rank == at + 1
        assert why.dense_score == pytest.approx(float(dense.scores[at]), abs=1e-6)
        assert why.fused_score == pytest.approx(score)
        row = int(id_[1:])
        if row in rows:
            assert why.bm25_rank == rows.index(row) + 1
            assert why.bm25_score == pytest.approx(scores[rows.index(row)])
            assert why.terms == bm25.contributions("capital of France", row)
        else:
            assert (why.bm25_rank, why.bm25_score, why.terms) == (None, 0.0, {})


def test_explanations_of_dense_retrieval_list_no_words(retriever: DenseRetriever) -> None:
    found = retriever.search(QUESTIONS[0], 2, explain=True)
    assert [(e.dense_rank, e.bm25_rank, e.terms) for e in found.explanations or []] == [
        (1, None, None),
        (2, None, None),
    ]
    assert [e.dense_rank for e in found.reordered([1, 0]).explanations or []] == [2, 1]


@pytest.mark.parametrize("kind", [BM25Retriever, HybridRetriever])
def test_explanations_are_made_only_when_asked_for(
    kind: type[LexicalRetriever],
    index: PassageIndex,
    encoder: Encoder,
    bm25: BM25Index,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finder = kind(index, encoder, bm25)
    explained = finder.search(QUESTIONS, 4, explain=True)
    monkeypatch.setattr(bm25, "contributions", lambda *args: pytest.fail("nobody asked for an explanation"))
    plain = finder.search(QUESTIONS, 4)
    assert [c.explanations for c in plain] == [None, None]
    assert [c.ids for c in plain] == [c.ids for c in explained]


# -- the parts that use a retriever ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [BM25Retriever, HybridRetriever])
def test_selector_and_e_step(
    kind: type[Retriever], index: PassageIndex, encoder: Encoder, bm25: BM25Index, generator: Generator
) -> None:
    """An untrained selector ranks as the retriever does, draws, and teaches the question adapter of a hybrid."""
    retriever = kind(index, encoder, bm25)
    selector = ListwiseSelector(
        generator.language_model, retriever, config=SelectorConfig(num_candidates=5, num_selected=2)
    )
    found = retriever.search(QUESTIONS, 5)
    assert [p.z.tolist() for p in selector.select(found)] == [[[0, 1]], [[0, 1]]]
    drawn = selector.propose(found, SamplingConfig(num_permutations=4), generator=torch.Generator().manual_seed(0))
    assert [p.z.shape for p in drawn] == [(4, 2), (4, 2)]
    scored = selector.log_prob(found, [p.z for p in drawn])
    for log_p_m, permutations in zip(scored, drawn, strict=True):
        torch.testing.assert_close(log_p_m.detach().cpu(), permutations.log_p, rtol=1e-4, atol=1e-4)
    torch.stack([log_p_m.sum() for log_p_m in scored]).sum().backward()
    assert retriever.adapter.up.grad is not None
    assert bool(retriever.adapter.up.grad.any()) == (kind is HybridRetriever)
    config = DROConfig(e_step=EStepConfig(candidate_pool=9))
    posterior = EStep(retriever, selector, generator, config)(
        [QAExample("q1", QUESTIONS[0], ("Shakespeare",), ("p0",))], round=1
    )[0]
    assert len(posterior.candidates) == 5
    assert posterior.candidates.dense_scores is not None
    assert len(posterior.candidates.dense_scores) == 5


def test_another_encoder_for_the_same_passages(
    hybrid: HybridRetriever, encoder: Encoder, tmp_path: Path, index: PassageIndex
) -> None:
    again = build_index(index.corpus, encoder, tmp_path / "again", progress=False)
    learn_something(hybrid)
    hybrid.replace(again, encoder)
    assert hybrid.index is again
    assert hybrid.adapter.is_identity
    # The words follow the new positions.
    before = hybrid.search(QUESTIONS, 5)
    backwards = build_index(Corpus.from_passages(PASSAGES[::-1]), encoder, tmp_path / "backwards", progress=False)
    hybrid.replace(backwards, encoder)
    for old, new in zip(before, hybrid.search(QUESTIONS, 5), strict=True):
        torch.testing.assert_close(old.scores, new.scores)
        assert set(old.ids) == set(new.ids)


def test_bm25_index_of_other_passages_is_refused(index: PassageIndex, encoder: Encoder) -> None:
    with pytest.raises(MismatchError, match=r"must hold the 12 passages .*, got 3"):
        HybridRetriever(index, encoder, BM25Index.build(PASSAGES[:3]))


@pytest.mark.parametrize(
    "settings", [{"depth": 0}, {"rrf_k": -1}, {"weights": (-1.0, 2.0)}, {"weights": (0.0, 0.0)}, {"weights": (1.0,)}]
)
def test_invalid_settings_are_refused(index: PassageIndex, encoder: Encoder, bm25: BM25Index, settings: dict) -> None:
    with pytest.raises(UsageError, match="depth must be at least 1, rrf_k at least 0, and weights two numbers"):
        HybridRetriever(index, encoder, bm25, **settings)
