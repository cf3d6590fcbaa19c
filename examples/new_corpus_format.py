"""A new corpus format in one file: PubMed's MEDLINE records (``.nbib``), one passage for each article.

    python examples/new_corpus_format.py

The same class in an installed package is found without an import: name its module in the entry points
``dro_rag.plugins``, and ``rag index build --corpus export.nbib`` reads it as well.
"""

from collections.abc import Iterator
from pathlib import Path

from indexes import Corpus, DataError
from indexes.corpora.corpus_format import CorpusFormat, ReadOptions
from indexes.corpora.sources import CORPUS_FORMATS
from indexes.records.record import BrokenRecord, Place, Record, RecordStream
from indexes.records.text_lines import Line, plain_or_gzip, read_lines

EXPORT = """\
PMID- 101
TI  - Neap tides
AB  - Neap tides are the smallest tides
      of a fortnight.

PMID- 102
TI  - Spring tides
AB  - Spring tides follow the full moon.
"""


@CORPUS_FORMATS.register("medline")
class Medline(CorpusFormat):
    """Lines ``TAG - value``; a line that begins with six blanks continues the value, an empty line ends the article."""

    suffixes = (".nbib",)
    may_be_gzipped = True

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        for lines in self._articles(read_lines(plain_or_gzip(path), name)):
            place = Place(name, "line", lines[0].number)
            fields: dict[str, str] = {}
            for line in lines:
                tag, text = line.text[:4].strip() or tag, line.text[6:].strip()
                fields[tag] = f"{fields.get(tag, '')} {text}".strip()
            if "PMID" in fields:
                yield Record(place, {"id": fields["PMID"], "title": fields.get("TI"), "text": fields.get("AB", "")})
            else:  # left out by on_error="skip"
                yield BrokenRecord(place, DataError(f"{place}: an article must have a PMID, got {sorted(fields)}."))

    def _articles(self, lines: Iterator[Line]) -> Iterator[list[Line]]:
        article: list[Line] = []
        for line in [*lines, Line(0, "")]:
            if line.text.strip():
                article.append(line)
            elif article:
                yield article
                article = []


if __name__ == "__main__":
    Path("export.nbib").write_text(EXPORT, encoding="utf-8")
    print(*Corpus.from_file("export.nbib"), sep="\n")
