"""Words of text in scripts without blanks between words (Chinese, Japanese, Thai, ...), and of mixed text.

BM25 and the metrics of answers share this module, so that both segment such text in the same way. Korean, Vietnamese
and the scripts of India have blanks between words and are segmented at them.
"""

import string
import unicodedata
from collections.abc import Iterator

import regex

# Scripts without blanks between words, in which a whole sentence would be one word. The prolonged sound mark belongs to
# both kana, so Unicode assigns it to neither.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# Marks count as letters: without them the words of most Indian scripts would fall apart at their vowels.
LETTERS = r"\p{L}\p{M}\p{N}"
# Unicode calls "$+<=>^`|~" symbols; evaluation scripts since SQuAD's call them punctuation.
PUNCTUATION = rf"\p{{P}}{regex.escape(string.punctuation, special_only=False)}"

# Full-width letters and digits are used only in Chinese and Japanese text.
_HAS_UNSPACED = regex.compile(rf"[{UNSPACED}\uff10-\uff19\uff21-\uff3a\uff41-\uff5a]")
_RUN = regex.compile(rf"([{UNSPACED}]+)|([[{LETTERS}]--[{UNSPACED}]]+)", regex.V1)
# A character is kept together with the vowel and tone marks over, under and behind it.
_CHARACTER = regex.compile(rf"[{UNSPACED}]\p{{M}}*")
_LETTER = regex.compile(r"[\p{L}\p{M}]")
_PUNCTUATION = regex.compile(rf"[{PUNCTUATION}]+")
# Zero-width spaces (where a Khmer or Thai word may be broken), joiners, variation selectors of ideographs.
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")


def has_unspaced(text: str) -> bool:
    r"""Whether a text holds a character of a script without blanks, or a full-width letter or digit.

    >>> [has_unspaced(text) for text in ("iPhone是苹果公司", "서울은 수도", "\uff11\uff19\uff19\uff17", "Zürich, 1997")]
    [True, False, True, False]
    """
    return not text.isascii() and _HAS_UNSPACED.search(text) is not None


def folded(text: str) -> str:
    """Unify full and half width, ligatures and case (Unicode's NFKC_Casefold, but with invisible characters kept).

    >>> folded("ｶﾞｲﾄﾞ №5 Ⅳ")
    'ガイド no5 iv'
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def visible(text: str) -> str:
    r"""Folded, without invisible characters, and with single spaces.

    >>> visible("Khmer\n ភាសា\u200bខ្មែរ")
    'khmer ភាសាខ្មែរ'
    """
    return " ".join(_INVISIBLE.sub("", folded(text)).split())


def runs(text: str) -> Iterator[tuple[str, str]]:
    """Runs of letters, marks and digits of a folded text: (run of an unspaced script, "") or ("", word).

    >>> list(runs("iphone是苹果"))
    [('', 'iphone'), ('是苹果', '')]
    """
    yield from _RUN.findall(text)


def mixed_tokens(text: str) -> list[str]:
    r"""Tokens of text with unspaced scripts: each of their characters, and the other text split at blanks.

    This is the mixed segmentation of the evaluation scripts of CMRC 2018 and MLQA, without punctuation, and without
    removing articles. Both split Chinese characters only and do not fold; here all unspaced scripts are split, with the
    marks that belong to a character, and full-width forms are folded first.

    >>> mixed_tokens("《iPhone》是Apple Inc.的、\uff11\uff19\uff19\uff17年。")
    ['iphone', '是', 'apple', 'inc', '的', '1997', '年']
    >>> mixed_tokens("สี่")
    ['สี่']
    """
    bare = _PUNCTUATION.sub("", visible(text))
    spaced: str = _CHARACTER.sub(r" \g<0> ", bare)
    return spaced.split()


def word_count(text: str) -> int:
    """The number of words of a text: parts between blanks, as lm-evaluation-harness counts them.

    For a text whose letters are mostly of unspaced scripts it is the number of mixed tokens instead; foreign names in a
    spaced text, as in WikiText, do not change its count.

    >>> [word_count(text) for text in ("two words.", "Beijing (北京) it is.", "北京 2008年。")]
    [2, 4, 4]
    """
    unspaced = sum(map(len, _CHARACTER.findall(text)))
    is_unspaced = 2 * unspaced > len(_LETTER.findall(text))
    return len(mixed_tokens(text)) if is_unspaced else len(text.split())
