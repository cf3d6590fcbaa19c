"""Answers in scripts without blanks: what is equal, what is contained, and who asks; values by hand."""

# ruff: noqa: RUF001 (full-width marks are what is tested)

import math
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from indexes.corpora.passage import Passage
from rag.answering.answer import citations
from rag.evaluation.evaluation import filter_answerable
from rag.forgetting.retention_items import AnsweredPrompt, final_number
from rag.metrics import answer_recall, exact_match, f1, normalize_answer
from training.questions.example import QAExample

CHINESE = "中国的首都是北京。它位于华北平原，人口2,100万。"
JAPANESE = "日本の首都は東京です。「東京タワー」は1958年に完成した。"
THAI = "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย"
KHMER = "ភ្នំពេញ\u200bជា\u200bរាជធានី\u200bនៃ\u200bប្រទេស\u200bកម្ពុជា"


@pytest.mark.parametrize(
    ("prediction", "golden", "f1_value", "exact"),
    [
        ("北京市海淀区", "北京市", 2 / 3, 0),  # precision 3/6, recall 3/3
        ("北京。", "北京", 1, 1),
        ("\uff11\uff19\uff19\uff17年", "1997年", 1, 1),
        ("\uff11\uff19\uff19\uff17", "1997", 1, 1),  # nothing but full-width digits
        ("1997", "1997年", 2 / 3, 0),  # the number is one token
        ("《红楼梦》", "红楼梦", 1, 1),
        ("東京ﾀﾜｰ", "東京タワー", 1, 1),
        ("か\u3099く", "がく", 1, 1),
        ("葛\U000e0100城", "葛城", 1, 1),  # a variant of a character's shape
        ("Apple公司", "苹果公司", 2 * 2 / (3 + 4), 0),
        ("维生素A", "维生素", 2 * 3 / (4 + 3), 0),  # "A" is no article here
        ("京北", "北京", 1, 0),  # the bag of characters has no order
        ("上海", "北京", 0, 0),
        (KHMER, KHMER.replace("\u200b", ""), 1, 1),
        ("สี่", "สี", 0, 0),  # "four", "colour": a character is what stands over it too
        ("서울 시", "서울", 2 / 3, 0),  # Korean is spaced
        ("서울시", "서울", 0, 0),
    ],
)
def test_equal_and_similar(prediction: str, golden: str, f1_value: float, exact: int) -> None:
    assert math.isclose(f1(prediction, [golden]), f1_value)
    assert exact_match(prediction, [golden]) == exact


def test_one_golden_answer_does_not_change_the_rule_of_another() -> None:
    """ "the" is an article for the spaced pair, though the list holds a Chinese answer."""
    assert exact_match("Beatles", ["披头士", "The Beatles"]) == 1.0
    assert exact_match("披头士。", ["The Beatles", "披头士"]) == 1.0


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        (CHINESE, "北京", True),
        (CHINESE, "上海", False),
        (CHINESE, "华北平原，人口", True),
        (CHINESE, "2100万", True),
        (CHINESE, "100万", False),  # of "2,100"
        (JAPANESE, "東京ﾀﾜｰ", True),
        (JAPANESE, "\uff11\uff19\uff15\uff18年", True),
        (JAPANESE, "58年", False),
        (THAI, "ประเทศไทย", True),
        (THAI, "เวียงจันทน์", False),
        (KHMER, "ប្រទេសកម្ពុជា", True),
        ("ວຽງຈັນເປັນນະຄອນຫຼວງຂອງລາວ", "ນະຄອນຫຼວງ", True),
        ("နေပြည်တော်သည်မြန်မာနိုင်ငံ၏မြို့တော်", "မြန်မာ", True),
        ("สี่คน", "สี", False),  # "four people" holds no "colour"
        ("北\n京市", "北京", True),
        ("东京都", "京都", True),  # nothing says that this is no word: the price of having no dictionary
        ("15年前", "5年", False),
        ("1.5亿", "5亿", False),
        ("1997、1998年", "1998年", True),
        ("iPhone是苹果公司的", "iPhone", True),
        ("iPhone是苹果公司的", "Phone", False),
        ("苹果公司卖iPhone、iPad。", "iPad", True),
        ("party在北京", "art", False),
        ("美国（U.S.）在北美洲", "US", True),
        ("披头士（The Beatles）", "Beatles", True),
        ("Beatles乐队", "The Beatles", True),
        ("住在 New  York 市", "New York", True),
        ("NewYork在", "New York", False),
        ("Beijing (北京) is the capital of the republic", "capital of a republic", True),  # as SQuAD has it
        ("서울은 수도이다", "서울", False),  # Korean particles: as before
        ("서울 (首爾) 수도", "서울", True),
        ("A party.", "art", False),
        ("北京", "。", False),
    ],
)
def test_answers_are_found_within_unspaced_text(text: str, answer: str, found: bool) -> None:
    assert answer_recall([text], [answer], 1) == float(found)
    assert citations(answer, [Passage("p", "", text)]) == (["p"] if found else [])


def test_any_golden_answer_and_only_the_first_k() -> None:
    assert answer_recall(["上海。", CHINESE], ["东京", "北京"], 2) == 1.0
    assert answer_recall(["上海。", CHINESE], ["东京", "北京"], 1) == 0.0


def test_normal_forms_that_audits_compare() -> None:
    """Order bias and support ask whether two answers are the same by their normal forms."""
    assert normalize_answer("答案：\uff21\uff22\uff23。") == normalize_answer("答案:abc") == "答 案 abc"
    assert normalize_answer("The cat\u3002") == "cat\u3002"  # spaced: as SQuAD's script leaves it


def test_answerable_questions() -> None:
    """`--answerable_only` kept no question at all."""
    found = [SimpleNamespace(passages=[Passage("p", "", text)]) for text in (CHINESE, JAPANESE, THAI)]
    retriever = SimpleNamespace(search=lambda questions, k, **options: found)
    rag: Any = SimpleNamespace(retriever=retriever, num_candidates=1)
    examples = [QAExample("zh", "x", ("北京",)), QAExample("ja", "y", ("京都",)), QAExample("th", "z", ("ประเทศไทย",))]
    assert [example.id for example in filter_answerable(rag, examples)] == ["zh", "th"]


def test_replies_to_retention_tasks_in_unspaced_scripts() -> None:
    assert AnsweredPrompt("q", ("北京",), "normalised").is_right("「北京」。")
    assert not AnsweredPrompt("q", ("北京",), "normalised").is_right("北京市")
    assert final_number("所以答案是-5。") == Decimal(-5)
    assert final_number("答えは\uff0d\uff11\uff0c\uff12\uff15\uff10\uff0e\uff15です") == Decimal("-1250.5")
    assert final_number("需要10-12小时") == Decimal(12)
    assert final_number("x-3") == Decimal(3)
