"""Ids of chunks, and the documents that they belong to; does not import the chunker."""

from collections.abc import Collection


def document_of(passage_id: str) -> str:
    """The id of the document that a passage is a chunk of, by the form of the passage id; else the id itself.

    >>> [document_of(id) for id in ("a", "a#12", "b#x", "b#x#0")]
    ['a', 'a', 'b#x', 'b#x']
    """
    document, mark, number = passage_id.rpartition("#")
    return document if mark and number.isdecimal() else passage_id


def gold_document(passage_id: str, gold_ids: Collection[str]) -> str | None:
    """The gold document that a passage is, or is a chunk of; None if it is none of them.

    Question files name whole documents, while an index of chunks returns ``{id}#{n}``.

    >>> [gold_document(id, ["a", "b#x"]) for id in ("a", "a#12", "b#x#0", "b#1", "ab")]
    ['a', 'a', 'b#x', None, None]
    """
    if passage_id in gold_ids:
        return passage_id
    document = document_of(passage_id)
    return document if document in gold_ids else None
