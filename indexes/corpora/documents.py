"""Documents as passages: a text, Markdown, HTML, PDF or Word file becomes one title and one text.

HTML goes through beautifulsoup4 and markdownify, Word through mammoth, PDF through pypdf: the extra ``documents``.
None of them runs what a document contains, opens what it links to, or loads an external entity.
"""

import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from indexes.errors import DataError, RAGError, ResourceError

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

DOCUMENT_SUFFIXES = (".txt", ".md", ".html", ".htm", ".pdf", ".docx")
MARKDOWN_SUFFIXES = (".md", ".html", ".htm", ".docx")
"""Of these the text is Markdown, as it was written or was converted to."""
# A larger file is no passage, and a file that unpacks to more is no letter.
_LARGEST_TEXT = 64 * 2**20
_LARGEST_DOCX = 512 * 2**20
_NOT_READ = ("script", "style", "noscript", "template", "title")


def read_document(path: Path, name: str) -> tuple[str, str]:
    """The title and the text of a document.

    The title is the first heading (Markdown, HTML, Word), else HTML's own title, else the file's name without its
    suffix. Text and Markdown must be UTF-8, HTML may declare another encoding. Only the text layer of a PDF is read.

    Args:
        path: A file with one of `DOCUMENT_SUFFIXES`.
        name: What an error calls it.

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
        raise DataError(f"A document must be readable, but {name} is not: {error}. Check the file.") from error
    heading, text = ("", text) if suffix in (".txt", ".pdf") else _split_markdown(text)
    if not text.strip():
        raise DataError(
            f"A document needs some text, but {name} has an empty one. Remove or fill it; pages that are only "
            "pictures need text recognition (OCR) first."
        )
    return heading or title or path.stem, text.strip()


def _bytes_of(path: Path, name: str) -> bytes:
    with path.open("rb") as stream:
        content = stream.read(_LARGEST_TEXT + 1)
    if len(content) > _LARGEST_TEXT:
        raise DataError(
            f"A document of text must have at most {_LARGEST_TEXT} bytes, but {name} has more. Cut it into several."
        )
    return content


def _decoded(content: bytes, encoding: str, name: str) -> str:
    try:
        text = content.decode(encoding)
    except (UnicodeDecodeError, LookupError) as error:
        raise DataError(
            f"A document must be UTF-8, or HTML that declares its encoding, but {name} is not {encoding} ({error}). "
            "Convert it, for instance with iconv."
        ) from error
    if "\0" in text:
        raise DataError(
            f"A document of text must not hold NUL characters, but {name} does: it is another encoding such as "
            "UTF-16, or no text at all. Convert or remove it."
        )
    return text


def _converted(path: Path, suffix: str, name: str) -> tuple[str, str]:
    convert = {".pdf": _from_pdf, ".docx": _from_docx}.get(suffix, _from_html)
    try:
        # The converters warn about oddities of a document; what matters is whether they get its text.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return convert(path, name)
    except ImportError as error:
        raise ResourceError(
            f"Reading {suffix} documents needs the extra `documents`, but {error.name or error} is not installed. "
            'Install it with: pip install "dro-rag[documents]"'
        ) from error
    except RAGError:
        raise
    # A parser that is fed a damaged document may stumble anywhere, and which exception that is is not its contract.
    except Exception as error:
        raise DataError(
            f"A {suffix} document must be whole and well-formed, but {name} is not: {type(error).__name__}: {error}. "
            "Open and save it again, or remove it."
        ) from error


def _from_pdf(path: Path, name: str) -> tuple[str, str]:
    from pypdf import PdfReader

    # strict: the lenient reader makes what it can of a damaged file, and nobody would know which pages are missing.
    with PdfReader(path, strict=True) as reader:
        if reader.is_encrypted:
            raise DataError(
                f"A PDF must be readable without a password, but {name} is encrypted. Save a copy without encryption."
            )
        return "", "\n\n".join(page.extract_text().strip() for page in reader.pages)


def _from_docx(path: Path, name: str) -> tuple[str, str]:
    import mammoth

    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > _LARGEST_DOCX:
        raise DataError(
            f"A .docx document may unpack to at most {_LARGEST_DOCX} bytes, but {name} unpacks to {size}. Split it."
        )
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
    """Headings, lists and tables survive; links and pictures are their words, since an encoder reads this."""
    from markdownify import MarkdownConverter

    for tag in soup(_NOT_READ):
        tag.decompose()
    converter = MarkdownConverter(
        heading_style="atx", strip=["a", "img"], escape_asterisks=False, escape_underscores=False
    )
    markdown: str = converter.convert_soup(soup.body or soup)
    return markdown


def _split_markdown(markdown: str) -> tuple[str, str]:
    """The first heading and the rest; a heading in the middle is the title and also stays where it is."""
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
