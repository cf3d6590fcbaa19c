"""Questions that are passages themselves: nobody gives them to a question, and k others come in their place.

beir 2.2 ignores identical ids in `EvaluateRetrieval.evaluate` and in its exact search, for every data set; what it is
wanted for is ArguAna, where each question is a passage of the corpus.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tiny_models import PASSAGES

from indexes.corpora.chunk_ids import document_of
from indexes.corpora.corpus import Corpus
from indexes.corpora.passage import Passage
from indexes.directory.builder import PassageIndex, build_index
from indexes.encoder import Encoder
from indexes.errors import MismatchError, UsageError
from indexes.vectors.tuning import tune
from indexes.vectors.vector_store import StoreProperties
from rag import RAG
from rag.cli import main
from rag.evaluation.evaluation import evaluate, filter_answerable
from rag.evaluation.evaluation_file import dataset_digest, evaluation_file
from rag.evaluation.order_bias import order_bias
from rag.experiments.sweep_runner import Sweep
from rag.experiments.sweep_settings import SPLITS, SweepSettings
from retriever.hybrid import reciprocal_rank_fusion
from retriever.retriever import Retriever
from retriever.retrievers import create_retriever
from training.config import DROConfig
from training.estimation import EStep
from training.questions.example import QAExample
from training.questions.gold_ids import check_gold_ids
from training.questions.loading import load_examples, write_examples
from training.questions.self_retrieval import identical_ids
from training.trainer import DROTrainer
from training.warm_up import warm_up_posteriors

KINDS = ("dense", "bm25", "hybrid")
ASKED = [QAExample(p.id, p.contents, ("river", "is"), ignore_identical_id=True) for p in PASSAGES[:4]]


@pytest.fixture(params=KINDS)
def finder(request: pytest.FixtureRequest, index: PassageIndex, encoder: Encoder) -> Retriever:
    return create_retriever(index, encoder, request.param)


@pytest.fixture
def argu(tmp_path: Path) -> Path:
    """ArguAna's shape: six passages, three of which are also the questions; their counterparts are gold."""
    texts = {
        "t1a": "Zoos should be closed because wild animals suffer in small cages of zoos.",
        "t1b": "Zoos should be open because wild animals are fed in large cages of zoos.",
        "t2a": "A sugar tax is unfair, for poor families spend more of their income on drinks.",
        "t2b": "A sugar tax helps poor families, whose income drinks harm less than their health.",
        "t3a": "Voting at sixteen is too early, for young people lack experience.",
        "t3b": "Voting at sixteen makes young people learn early.",
    }
    folder = tmp_path / "argu"
    (folder / "qrels").mkdir(parents=True)
    rows = [{"_id": id, "title": "", "text": text} for id, text in texts.items()]
    questions = [{"_id": f"t{n}a", "text": texts[f"t{n}a"]} for n in (1, 2, 3)]
    for name, content in (("corpus", rows), ("queries", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    judged = "".join(f"t{n}a\tt{n}b\t1\n" for n in (1, 2, 3))
    (folder / "qrels/test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


def run(words: Sequence[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


# -- which passages a question is ----------------------------------------------------------------------------------


def test_positions_of_a_passage_and_of_the_chunks_of_a_document() -> None:
    ids = ["a#0", "b", "a#1", "c#1", "b#0", "a#12", "c#1#0", "ab", "d#3", "e#0"]
    corpus = Corpus.from_passages([Passage(id, "", f"text of {id}") for id in ids])
    assert corpus.document_positions("a") == [0, 2, 5]
    assert corpus.document_positions("b") == [1]  # it is there as a whole, so "b#0" is another passage
    assert corpus.document_positions("c#1") == [3]
    assert corpus.document_positions("c") == [3]
    assert corpus.document_positions("d") == [8]  # though its first chunks are gone
    assert corpus.document_positions("x") == corpus.document_positions("a#2") == []
    assert [document_of(id) for id in ids] == ["a", "b", "a", "c", "b", "a", "c#1", "ab", "d", "e"]


# -- search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, len(PASSAGES) - 1, 50])
def test_the_ranking_without_the_passage(finder: Retriever, k: int) -> None:
    """k others in the order of the whole ranking; where all are wanted, all but one come."""
    for example in ASKED:
        whole = finder.search(example.question, len(PASSAGES))
        assert whole.ids[0] == example.id
        found = finder.search(example.question, k, ignored_ids=[example.id])
        assert found.ids == [id for id in whole.ids if id != example.id][:k]
        assert len(found) == min(k, len(PASSAGES) - 1)


def test_a_hybrid_fuses_the_rankings_without_the_passage(index: PassageIndex, encoder: Encoder) -> None:
    """Left out of the fused list only, it would still have pushed others down."""
    hybrid = create_retriever(index, encoder, {"kind": "hybrid", "depth": 4})
    question, own = "the capital of France is Paris; the Seine flows there", "p3"
    dense = [id for id in create_retriever(index, encoder, "dense").search(question, 5).ids if id != own][:4]
    found = create_retriever(index, encoder, "bm25").search(question, 5)
    words = [e for e, s in zip(found.ids, found.scores.tolist(), strict=True) if e != own and s > 0][:4]
    numbers = [[int(id[1:]) for id in ranking] for ranking in (dense, words)]
    expected = reciprocal_rank_fusion(numbers, rrf_k=hybrid.rrf_k)  # type: ignore[attr-defined]
    got = hybrid.search(question, 4, ignored_ids=[own], explain=True)
    assert [int(id[1:]) for id in got.ids] == list(expected)[:4]
    torch.testing.assert_close(got.scores, torch.tensor(list(expected.values())[:4]))
    ranks = [(e.dense_rank, e.bm25_rank) for e in got.explanations or []]
    assert (1 in [d for d, _ in ranks]) and (1 in [w for _, w in ranks])  # counted without it


def test_other_questions_of_a_batch_are_searched_as_before(finder: Retriever) -> None:
    questions = ["who wrote Hamlet?", PASSAGES[3].contents, "capital of France"]
    before = finder.search(questions, 5)
    after = finder.search(questions, 5, ignored_ids=[None, "p3", "not in the index"])
    for i in (0, 2):
        assert after[i].ids == before[i].ids
        assert torch.equal(after[i].scores, before[i].scores)
    assert "p3" in before[1].ids and "p3" not in after[1].ids and len(after[1]) == 5
    assert [c.question for c in after] == questions


@pytest.mark.parametrize("ids", [["p0"], "p0"])
def test_one_ignored_id_for_each_question(finder: Retriever, ids: Any) -> None:
    with pytest.raises(UsageError, match="for each of 2 questions"):
        finder.search(["a river", "a capital"], 3, ignored_ids=ids)


@pytest.mark.parametrize("kind", KINDS)
def test_no_chunk_of_the_own_document(encoder: Encoder, tmp_path: Path, kind: str) -> None:
    chunks = [Passage(f"{p.id}#{n}", p.title, f"{p.text} {n}") for p in PASSAGES[:5] for n in range(3)]
    index = build_index(Corpus.from_passages(chunks), encoder, tmp_path / "index", progress=False)
    found = create_retriever(index, encoder, kind).search(PASSAGES[0].contents, 9, ignored_ids=["p0"])
    assert len(found) == 9
    assert not any(id.startswith("p0#") for id in found.ids)


# -- files ---------------------------------------------------------------------------------------------------------


def test_beir_files_ignore_identical_ids_and_others_where_asked(argu: Path, tmp_path: Path) -> None:
    beir = load_examples(argu)
    assert [e.ignored_id for e in beir] == ["t1a", "t2a", "t3a"]
    assert [e.ignored_id for e in load_examples(argu, ignore_identical_ids=False)] == [None] * 3
    write_examples([QAExample("q1", "a river?", ("Seine",))], tmp_path / "plain.jsonl")
    assert load_examples(tmp_path / "plain.jsonl")[0].ignored_id is None
    assert load_examples(tmp_path / "plain.jsonl", ignore_identical_ids=True)[0].ignored_id == "q1"
    write_examples(beir, tmp_path / "beir.jsonl")
    assert load_examples(tmp_path / "beir.jsonl") == beir
    assert all(e.ignore_identical_id for e in load_examples(tmp_path / "beir.jsonl"))


def test_digests_of_questions_that_ignore_nothing_are_what_they_were() -> None:
    example = QAExample("q1", "a river?", ("Seine",))
    before = {name: value for name, value in asdict(example).items() if name != "ignore_identical_id"}
    assert example.to_dict() == before
    ignoring = replace(example, ignore_identical_id=True)
    assert ignoring.to_dict() == {**before, "ignore_identical_id": True}
    assert dataset_digest([example]) != dataset_digest([ignoring])


def test_the_message_about_identical_ids(index: PassageIndex) -> None:
    asked = [*ASKED[:2], QAExample("elsewhere", "q", ignore_identical_id=True), QAExample("p5", "q")]
    assert identical_ids(asked, index) == (3, 2, 0)
    gold = [replace(ASKED[0], gold_ids=("p0", "p1"))]
    counted = identical_ids(gold, index)
    assert counted == (1, 1, 1)
    assert "1 of 1 questions" in str(counted) and "gold passage, which counts as not found" in str(counted)
    assert check_gold_ids(gold, index) == gold


# -- who retrieves -------------------------------------------------------------------------------------------------


@pytest.fixture
def found_ids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Every question that any retriever was asked, with what it found."""
    seen: list[tuple[str, list[str]]] = []
    search = Retriever.search

    def watched(self: Retriever, question: Any, k: int = 20, **options: Any) -> Any:
        found = search(self, question, k, **options)
        seen.extend((c.question, c.ids) for c in ([found] if isinstance(question, str) else found))
        return found

    monkeypatch.setattr(Retriever, "search", watched)
    return seen


def no_question_found_itself(seen: Sequence[tuple[str, list[str]]], k: int) -> bool:
    own = {e.question: e.id for e in ASKED}
    return bool(seen) and all(own[question] not in ids and len(ids) == k for question, ids in seen)


def test_evaluation_audit_and_answerable_questions(
    make_rag: Callable[..., RAG], found_ids: list[tuple[str, list[str]]]
) -> None:
    rag = make_rag()
    evaluation = evaluate(rag, ASKED, progress=False)
    assert [len(row) for row in evaluation.candidates] == [5] * 4
    order_bias(rag, evaluation, shuffles=1, progress=False)
    filter_answerable(rag, ASKED)
    assert len(found_ids) == 12
    assert no_question_found_itself(found_ids, 5)
    data = evaluation_file(rag, evaluation, name="x")
    assert data.dataset.identical_ids == {"ignoring": 4, "found": 4, "gold": 0}
    plain = [replace(example, ignore_identical_id=False) for example in ASKED]
    own = evaluate(rag, plain, progress=False)
    assert [candidates[0].id for candidates in own.candidates] == [e.id for e in ASKED]
    assert "identical_ids" not in evaluation_file(rag, own, name="x").to_dict()["dataset"]


def test_warm_up_and_e_step(make_e_step: Callable[..., EStep], found_ids: list[tuple[str, list[str]]]) -> None:
    """A question whose own passage is a candidate would teach the selector to look for the question."""
    e_step = make_e_step(e_step__num_permutations=2)
    warm_up_posteriors(ASKED, e_step.retriever, e_step.selector, e_step.config)
    assert no_question_found_itself(found_ids, 4)
    posteriors = e_step(ASKED, round=1)
    assert all(p.example.id not in p.candidates.ids for p in posteriors)
    make_e_step(e_step__num_permutations=2, e_step__candidate_pool=9)(ASKED, round=1)
    assert all(ids for _, ids in found_ids) and len(found_ids) == 12


def test_a_trainer_takes_the_option(make_rag: Callable[..., RAG], tmp_path: Path) -> None:
    write_examples([replace(e, ignore_identical_id=False) for e in ASKED], tmp_path / "train.jsonl")

    def examples(source: Any, ignore: bool | None) -> list[bool]:
        config = DROConfig(ignore_identical_ids=ignore)
        trainer = DROTrainer(
            make_rag(),
            config,
            train_dataset=source,
            eval_dataset=source,
            output_dir=tmp_path / "run",
            compute_metrics=evaluate,
            progress=False,
        )
        assert trainer.eval_examples is not None
        return [e.ignore_identical_id for e in [*trainer.train_examples, *trainer.eval_examples]]

    assert examples(tmp_path / "train.jsonl", None) == [False] * 8
    assert examples(tmp_path / "train.jsonl", True) == [True] * 8
    assert examples(ASKED, None) == [True] * 8
    assert examples(ASKED, False) == [False] * 8


@pytest.mark.parametrize("ignore", [None, True])
def test_a_sweep_takes_the_option(index: PassageIndex, tmp_path: Path, ignore: bool | None) -> None:
    file = tmp_path / "questions.jsonl"
    write_examples([replace(e, ignore_identical_id=False) for e in ASKED], file)
    files = {f"{split}_dataset": str(file) for split in SPLITS}
    settings = SweepSettings(
        index=str(index.path), **files, recipes=("no_training",), answerable_only=False, ignore_identical_ids=ignore
    )
    assert SweepSettings.from_json(settings.to_json()) == settings
    questions = Sweep(tmp_path / "sweep", settings, progress=False).questions.load()
    assert {split: [e.ignore_identical_id for e in found] for split, found in questions.items()} == {
        split: [bool(ignore)] * 4 for split in SPLITS
    }


# -- tuning --------------------------------------------------------------------------------------------------------


class FindsItselfOnly:
    """Four vectors; every search finds the query's own row and, behind it, rows that are none of the best."""

    factory = "Flat"
    properties = StoreProperties()
    search_parameters: ClassVar[dict[str, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return 4

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        return np.eye(4, dtype=np.float32)[rows] + np.array([[0.0, 0.0, 0.4, 0.2]], dtype=np.float32)

    def search(self, queries_Bd: np.ndarray, k: int, *, parameters: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((1, k), np.float32), np.array([[0, 1, 3, 2][:k]])


def test_tuning_does_not_count_the_query_itself() -> None:
    """Inner products of the rows with the query: 9.5, 0.5, 1.5, 1.0."""
    query = np.array([[9.0, 0.0, 1.0, 0.5]], dtype=np.float32)
    index = FindsItselfOnly()
    assert tune(index, query, k=1).recall == 1.0
    assert tune(index, query, k=1, ignored=[[0]]).recall == 0.0
    assert tune(index, query, k=2, ignored=[[0]]).recall == 0.5  # {1, 3} of {2, 3}
    assert tune(index, query, k=1, ignored=[[0, 1]], exact_ids_Bk=[[0, 3, 2]]).recall == 1.0
    with pytest.raises(MismatchError, match="each of 1 queries, but got them for 2"):
        tune(index, query, k=1, ignored=[[0], [1]])


# -- commands ------------------------------------------------------------------------------------------------------


def test_search_of_argu_ana(argu: Path, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With identical ids the counterpart is second at best: nDCG@3 is 1 / log2(3) = .6309."""
    folder = tmp_path / "index"
    assert run(["index", "build", "--corpus", argu, "--output_dir", folder, "--quiet"], capsys)[0] == 0
    asked = ["search", "--index", folder, "--questions", argu, "--split", "test", "-k", 3]
    code, out, err = run(asked, capsys)
    assert (code, err) == (0, "")
    assert "ndcg@3: 1.0000" in out
    assert "ignored, as in BEIR: 3 of 3 questions have one" in out
    data = json.loads(run([*asked, "--json"], capsys)[1])
    assert data["identical_ids"] == {"ignoring": 3, "found": 3, "gold": 0}
    assert [len(r["hits"]) for r in data["results"]] == [3] * 3
    code, out, _ = run([*asked, "--ignore_identical_ids", "false"], capsys)
    assert code == 0 and "ndcg@3: 0.6309" in out and "ignored" not in out
    code, out, _ = run(["index", "tune", folder, "--questions", argu, "-k", 3, "--dry_run"], capsys)
    assert code == 0 and "3 of 3 questions have one" in out
    code, _, err = run(["search", "why?", "--index", folder, "--ignore_identical_ids", "true"], capsys)
    assert code == 2 and "ids of a file" in err
