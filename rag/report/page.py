"""A page: a title, an introduction and sections, each drawn by a template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rag.report.formatting import count
from rag.report.html.environment import render
from rag.report.report_data import Dataset, ReportData
from rag.report.series_style import SeriesStyles


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        key: Its id.
        heading: Its heading.
        template: The template that draws it, which sees `content`, `data` and `styles`.
        content: What the template shows; a section without content is left out.
    """

    key: str
    heading: str
    template: str
    content: Any


@dataclass(frozen=True)
class Fact:
    """A term and what is known of it; hashes are shortened, and warnings are coloured."""

    term: str
    text: str
    is_hash: bool = False
    is_warning: bool = False


@dataclass(frozen=True)
class Page:
    """Everything that `page.html.jinja` shows.

    Attributes:
        title: Of the document, and its first heading.
        introduction: The template of the introduction, which sees `sentence`, `data` and `styles`.
        data: The result.
        styles: Colours, marks and labels of its series.
        sections: Its sections.
        facts: A list below the introduction; those without a text are left out.
        sentence: What the introduction says about the size of this run.
    """

    title: str
    introduction: str
    data: ReportData
    styles: SeriesStyles
    sections: Sequence[Section]
    facts: Sequence[Fact] = ()
    sentence: str = ""

    def html(self) -> str:
        """The whole document."""
        return render(
            "page.html.jinja",
            title=self.title,
            introduction=self.introduction,
            sentence=self.sentence,
            data=self.data,
            styles=self.styles,
            sections=[section for section in self.sections if section.content],
            facts=[fact for fact in self.facts if fact.text],
        )


def dataset_facts(dataset: Dataset) -> list[Fact]:
    """What a page says at its top about the questions."""
    skipped = f", {count(dataset.skipped)} skipped" if dataset.skipped else ""
    return [
        Fact("Questions", "" if dataset.n is None else count(dataset.n) + skipped),
        Fact("Question file", dataset.file),
        Fact("Its questions, sha256", dataset.sha256, is_hash=True),
    ]


def settings_section(content: Sequence[tuple[str, dict[str, str]]]) -> Section:
    """The last section of every page: tables of settings by their labels; empty tables are left out."""
    return Section("settings", "Settings", "settings.html.jinja", [entry for entry in content if entry[1]])
