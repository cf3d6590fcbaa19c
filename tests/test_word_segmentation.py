"""Where words end in scripts without blanks, by hand."""

# ruff: noqa: RUF001 (full-width marks are what is tested)

from indexes.corpora.passage import Passage
from indexes.vectors.bm25_index import BM25Index
from indexes.word_segmentation import folded, has_unspaced, mixed_tokens, runs, visible, word_count


def test_words_of_a_text() -> None:
    """WikiText quotes Japanese titles; the harness counts what stands between blanks there, and so is it here."""
    assert word_count("Valkyria Chronicles III ( 戦場のヴァルキュリア3 ) is a game .") == 10
    assert word_count("它位于华北平原。") == 7
    assert word_count("") == word_count(" \n") == 0


def test_unspaced_scripts_are_recognised() -> None:
    assert [has_unspaced(t) for t in ("Zürich\u3002", "서울", "हिन्दी", "ไทย", "\uff21", "ー")] == [
        False,
        False,
        False,
        True,
        True,
        True,
    ]
    assert mixed_tokens("GPT-4o是OpenAI于2024年5月发布的。") == [
        *("gpt4o", "是", "openai", "于", "2024", "年", "5", "月", "发", "布", "的"),
    ]


def test_punctuation_of_any_script_and_symbols_of_ascii_vanish() -> None:
    """Unicode calls "$+<=>^`|~" symbols, SQuAD's and MLQA's scripts punctuation; "¥" is a symbol for all."""
    assert mixed_tokens("《北》、[京]\\^`$+<=>|~-。・……") == ["北", "京"]
    assert mixed_tokens("￥100元") == ["¥100", "元"]


def test_characters_keep_marks_and_lose_invisible_characters() -> None:
    assert mixed_tokens("สี่") == ["สี่"]
    assert mixed_tokens("葛\U000e0100城") == ["葛", "城"]
    assert visible("ភាសា\u200bខ្មែរ\n\u3000x") == "ភាសាខ្មែរ x"


def test_bm25_and_metrics_cut_alike() -> None:
    """BM25 also has pairs of neighbours; its single characters are the runs that the metrics cut."""
    text = "iPhone是苹果公司的，Ｗｉｎ９８"
    assert list(runs(folded(text))) == [("", "iphone"), ("是苹果公司的", ""), ("", "win98")]
    bm25 = BM25Index.build([Passage("a", "", text), Passage("b", "", "nothing")], stemmer=None)
    for token in mixed_tokens(text):
        assert bm25.search([token], 1)[1].tolist() == [[0]]
