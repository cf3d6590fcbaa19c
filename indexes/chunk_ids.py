"""What the id of a chunk says: a module of its own, as whoever asks need not cut anything."""

from collections.abc import Collection


def gold_document(passage_id: str, gold_ids: Collection[str]) -> str | None:
    """The gold document that a passage is, or is a chunk of; None if it is none of them.

    Files of questions name whole documents, and an index of chunks answers with ``{id}#{n}``.

    >>> [gold_document(id, ["a", "b#x"]) for id in ("a", "a#12", "b#x#0", "b#1", "ab")]
    ['a', 'a', 'b#x', None, None]
    """
    if passage_id in gold_ids:
        return passage_id
    document, mark, number = passage_id.rpartition("#")
    return document if mark and number.isdecimal() and document in gold_ids else None
