"""A passage: the unit that is embedded, retrieved, selected and cited."""

import hashlib
import struct
from dataclasses import dataclass

FINGERPRINT_MODULUS = 2**256


@dataclass(frozen=True, slots=True)
class Passage:
    """One unit of retrieval.

    Attributes:
        id: Unique within its corpus.
        title: May be empty.
        text: May be empty where there is a title (BEIR's TREC-COVID has titles whose abstracts are missing); in a
            corpus at least one of the two holds more than white space.
    """

    id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """The string that is embedded and searched: title, newline, text; only one of them where the other is blank."""
        if not self.title.strip():
            return self.text
        return f"{self.title}\n{self.text}" if self.text.strip() else self.title


def passage_digest(passage: Passage) -> int:
    """The SHA-256 of a passage's id, title and text as an integer.

    `Corpus.fingerprint` is the sum over all passages modulo 2^256, so it can be updated when passages are added or
    removed.

    Raises:
        UnicodeEncodeError: A field holds a lone surrogate; no passage of a corpus does.
    """
    fields = _length_prefixed(passage.id, passage.title, passage.text)
    return int.from_bytes(hashlib.sha256(fields).digest(), "big")


def hexadecimal(digest: int) -> str:
    """A fingerprint as 64 hex digits."""
    return f"{digest:064x}"


def _length_prefixed(*fields: str) -> bytes:
    """The lengths of the fields and the fields, so that moving a character from one field to the next changes it."""
    encoded = [field.encode() for field in fields]
    return struct.pack(f"<{len(encoded)}Q", *map(len, encoded)) + b"".join(encoded)
