"""Documents as passages: a text, Markdown, HTML, PDF or Word file becomes one record with a title and a text.

HTML goes through beautifulsoup4 and markdownify, Word through mammoth, PDF through pypdf: the extra ``documents``.
None of them runs code of a document, opens what it links to, or loads an external entity.
"""

import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from indexes.corpora.corpus_format import CorpusFormat, ReadOptions
from indexes.errors import DataError, RAGError, ResourceError
from indexes.records.record import BrokenRecord, Place, Record, RecordStream

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

DOCUMENT_SUFFIXES = (".txt", ".md", ".html", ".htm", ".pdf", ".docx")
MARKDOWN_SUFFIXES = (".md", ".html", ".htm", ".docx")
"""The text of these is Markdown, as written or as converted."""
# A larger file is no passage; a small archive can unpack to gigabytes.
_LARGEST_TEXT = 64 * 2**20
_LARGEST_DOCX = 512 * 2**20
_NOT_READ = ("script", "style", "noscript", "template", "title")


class Document(CorpusFormat):
    """A document as a corpus of one passage, whose id is the name of the file."""

    suffixes = DOCUMENT_SUFFIXES

    def records(self, path: Path, name: str, options: ReadOptions) -> RecordStream:
        """See `CorpusFormat.records`."""
        yield document_record(path, Place(name, "file", path.name), path.name)


def document_record(path: Path, place: Place, id: str) -> Record | BrokenRecord:
    """A document as a record; a broken one where it cannot be read."""
    try:
        title, text = read_document(path, str(place))
    except DataError as error:
        return BrokenRecord(place, error)
    return Record(place, {"id": id, "title": title, "text": text})


def read_document(path: Path, name: str) -> tuple[str, str]:
    """The title and the text of a document.

    The title is the first heading (Markdown, HTML, Word), else HTML's own title, else the file's name without its
    suffix. Text and Markdown must be UTF-8, HTML may declare another encoding. Only the text layer of a PDF is read.

    Args:
        path: A file with one of `DOCUMENT_SUFFIXES`.
        name: How errors call it.

    Raises:
        DataError: The document cannot be read, or holds no text; the message names it.
        ResourceError: It needs the extra ``documents``, which is not installed.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in (".txt", ".md"):
            title, text = "", _decoded(_bytes_of(path, name), "utf-8-sig", name).replace("\r\n", "\n")
        else:
            title, text = _converted(path, suffix, name)
    except OSError as error:
        raise DataError(f"{name}: a document must be readable, got: {error}. Check the file.") from error
    heading, text = ("", text) if suffix in (".txt", ".pdf") else _split_markdown(text)
    if not text.strip():
        raise DataError(
            f"{name}: a document must have some text, got none. Remove or fill it; scanned pages need text recognition "
            "(OCR) first."
        )
    return heading or title or path.stem, text.strip()


def _bytes_of(path: Path, name: str) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        raise DataError(
            f"{name}: a text document must have at most {_LARGEST_TEXT} bytes, got more. Split it into several."
        )
    return content


def _decoded(content: bytes, encoding: str, name: str) -> str:
    try:
        text = content.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise DataError(
            f"{name}: a document must be UTF-8, or HTML that declares its encoding, got text that is not {encoding} "
            f"({error}). Convert it, for instance with iconv."
        ) from error
    if "\0" in text:
        raise DataError(
            f"{name}: a text document must not hold NUL characters, got one: it is in another encoding such as UTF-16, "
            "or not text at all. Convert or remove it."
        )
    return text


def _converted(path: Path, suffix: str, name: str) -> tuple[str, str]:
    convert = {".pdf": _from_pdf, ".docx": _from_docx}.get(suffix, _from_html)
    try:
        # The converters warn about details of a document; only a failure to get its text matters here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return convert(path, name)
    except ImportError as error:
        raise ResourceError(
            f"{name}: reading {suffix} documents needs the extra `documents`, got no module {error.name or error}. "
            'Install it with: pip install "dro-rag[documents]"'
        ) from error
    except RAGError:
        raise
    # A parser may fail anywhere in a damaged document, and does not document with which exception.
    except Exception as error:
        raise DataError(
            f"{name}: a {suffix} document must be complete and well-formed, got {type(error).__name__}: {error}. Open "
            "and save it again, or remove it."
        ) from error


def _from_pdf(path: Path, name: str) -> tuple[str, str]:
    from pypdf import PdfReader

    # strict: the lenient reader silently leaves pages of a damaged file out.
    with PdfReader(path, strict=True) as reader:
        if reader.is_encrypted:
            raise DataError(
                f"{name}: a PDF must be readable without a password, got an encrypted one. Save it without encryption."
            )
        return "", "\n\n".join(page.extract_text().strip() for page in reader.pages)


def _from_docx(path: Path, name: str) -> tuple[str, str]:
    import mammoth

    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _LARGEST_DOCX:
        raise DataError(f"{name}: a .docx document must unpack to at most {_LARGEST_DOCX} bytes, got {size}. Split it.")
    with path.open("rb") as stream:
        html = mammoth.convert_to_html(
            stream,
            style_map="p[style-name='Title'] => h1:fresh",
            convert_image=mammoth.images.img_element(lambda image: {}),
            external_file_access=False,
        ).value
    return "", _markdown(_parsed_html(html))


def _from_html(path: Path, name: str) -> tuple[str, str]:
    from bs4.dammit import EncodingDetector

    content, bom = EncodingDetector.strip_byte_order_mark(_bytes_of(path, name))
    declared = EncodingDetector.find_declared_encoding(content, is_html=True)
    soup = _parsed_html(_decoded(content, bom or declared or "utf-8", name))
    title = soup.title.get_text() if soup.title else ""
    return " ".join(title.split()), _markdown(soup)


def _parsed_html(html: str) -> "BeautifulSoup":
    from bs4 import BeautifulSoup

    return BeautifulSoup(html, "html.parser")


def _markdown(soup: "BeautifulSoup") -> str:
    """Keeps headings, lists and tables; of links and pictures only the words, since an encoder reads this."""
    from markdownify import MarkdownConverter

    for tag in soup(_NOT_READ):
        tag.decompose()
    converter = MarkdownConverter(
        heading_style="atx", strip=["a", "img"], escape_asterisks=False, escape_underscores=False
    )
    markdown: str = converter.convert_soup(soup.body or soup)
    return markdown


def _split_markdown(markdown: str) -> tuple[str, str]:
    """The first heading and the rest; a heading in the middle becomes the title and also stays in place."""
    fenced = False
    lines = markdown.split("\n")
    for number, line in enumerate(lines):
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        hashes, _, heading = line.strip().partition(" ")
        if not fenced and 0 < len(hashes) <= 6 and set(hashes) == {"#"} and heading.strip():
            rest = "\n".join(lines[number + 1 :])
            leads = not "".join(lines[:number]).strip() and bool(rest.strip())
            return heading.strip().rstrip("#").strip(), rest if leads else markdown
    return "", markdown
