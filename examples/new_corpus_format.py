"""A new corpus format in one file: PubMed's MEDLINE records (``.nbib``), one passage for each article.

    python examples/new_corpus_format.py

In a package of your own, name the module as an entry point of the group ``dro_rag.plugins``; then
``rag index build --corpus export.nbib`` reads such files as well.
"""

from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from indexes import CORPUS_FORMATS, Corpus, CorpusFormat, DataError
from indexes.corpora.corpus_format import ReadOptions
from indexes.records.record import BrokenRecord, Place, Record, RecordStream
from indexes.records.text_lines import plain_or_gzip, read_lines

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
    """Lines ``TAG - value``; six blanks at the start of a line continue the value, a blank line ends the article."""

    suffixes = (".nbib",)
    may_be_gzipped = True

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        for is_blank, article in groupby(read_lines(plain_or_gzip(path), name), lambda line: not line.text.strip()):
            if is_blank:
                continue
            lines = list(article)
            place, tag, fields = Place(name, "line", lines[0].number), "", dict[str, str]()
            for line in lines:
                tag = line.text[:4].strip() or tag
                fields[tag] = f"{fields.get(tag, '')} {line.text[6:].strip()}".strip()
            if "PMID" in fields:
                yield Record(place, {"id": fields["PMID"], "title": fields.get("TI"), "text": fields.get("AB", "")})
            else:  # an error, or left out with on_error="skip"
                yield BrokenRecord(place, DataError(f"{place}: an article must have a PMID, got {sorted(fields)}."))


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        (Path(folder) / "export.nbib").write_text(EXPORT, encoding="utf-8")
        print(*Corpus.from_file(Path(folder) / "export.nbib"), sep="\n")
