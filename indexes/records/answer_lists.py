"""Lists of answers that are stored as one text: as Python prints them, or as JSON."""

import ast
import io
import json
import re
import tokenize

from indexes.errors import DataError

# A literal is parsed, never evaluated; its syntax tree takes up to 180 times the memory of its text.
_LONGEST_LITERAL = 2**20
_LIST = re.compile(r"\s*\[.*\]\s*", re.DOTALL)
_LIST_OF_TEXTS = re.compile(r"""\s*\[\s*(?:['"]|array\()""")
# SQuAD's answers in a CSV file that pandas wrote.
_ANSWER_SPANS = re.compile(r"""\s*\{\s*['"](?:text|answer_start)['"]\s*:""")


def answer_literal(text: str, where: str) -> list[str]:
    """The list of texts that a Python literal stands for, without evaluating anything.

    Raises:
        DataError: It is longer than 1,048,576 characters, is no literal of a list of texts, or has two texts without a
            comma between them.
    """
    answers = _texts_of(text)
    if answers is not None:
        return answers
    raise DataError(
        f"{where}: the answers must be a list of texts such as ['Paris', 'the city of Paris'], got {text[:60]!r}. "
        f"{_advice(text)}"
    )


def list_in_text(text: str, where: str) -> list[str] | None:
    """The texts of a list that is stored as text in a field for several answers; None where the text is no such list.

    JSON's lists (PopQA's `possible_answers`) and Python's are read. A list of anything but texts, such as [0, 1], may
    be the answer itself.

    Raises:
        DataError: It begins as a list of texts, or as SQuAD's object of answers, and cannot be read as one.
    """
    if _ANSWER_SPANS.match(text):
        raise DataError(f"{where}: the answers must be texts, got {text[:60]!r}, an object. {_advice('array(')}")
    if not _LIST.fullmatch(text):
        return None
    answers = _json_texts(text)
    if answers is None:
        answers = _texts_of(text)
    return answer_literal(text, where) if answers is None and _LIST_OF_TEXTS.match(text) else answers


def _json_texts(text: str) -> list[str] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and all(isinstance(entry, str) for entry in value) else None


def _texts_of(text: str) -> list[str] | None:
    """The texts of a list or tuple as Python prints it; None where it is something else."""
    if len(text) > _LONGEST_LITERAL:
        return None
    try:
        value = ast.parse(text.strip(), mode="eval").body
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    if not isinstance(value, ast.List | ast.Tuple):
        return None
    texts = [e.value for e in value.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
    # Python concatenates adjacent string literals (language reference, 2.4.2), and numpy (2.4.6) prints the entries of
    # an array without commas, as pandas (3.1.1) writes it to CSV: ['New York' 'NYC'].
    return texts if len(texts) == len(value.elts) == _string_literals(text) else None


def _string_literals(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text.strip()).readline)
    return sum(token.type == tokenize.STRING for token in tokens)


def _advice(text: str) -> str:
    if "array(" in text or re.search(r"""['"]\s+['"]""", text):
        return (
            "This is how numpy prints an array, and so what pandas writes to CSV; where one text ends is ambiguous. "
            "Write the table as Parquet or JSONL, or the column with json.dumps(list(answers))."
        )
    return "Correct the record."
