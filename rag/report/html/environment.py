"""The jinja2 environment of the templates in this folder.

Everything that a template prints is escaped; nothing from data is ever marked as safe. Control characters, which HTML
does not have, become U+FFFD.
"""

import functools
import re
from typing import TYPE_CHECKING, Any

from rag.report import formatting, metric_labels
from rag.report.drawing import bars
from rag.report.series_style import brief

if TYPE_CHECKING:
    from jinja2 import Environment

_CONTROLS = {code: "\ufffd" for code in range(32) if code not in (9, 10, 13)}
# A line break and its indentation between two tags, expressions or statements; as in the "condense" mode of Vue.
_LINE_BREAK = re.compile(r"(?<=[>}])[ \t]*\n\s*(?=[<{])")
_FILTERS = (
    *(formatting.decimal, formatting.count, formatting.between, formatting.score_format, formatting.p_value),
    *(formatting.short_hash, formatting.shortened, brief),
    *(metric_labels.metric_label, metric_labels.metric_within_sentence, metric_labels.metric_meaning),
    *(metric_labels.round_label, metric_labels.audit_label),
    *(bars.value_bar, bars.difference_bar),
)


def render(template: str, **context: Any) -> str:
    """A template of this folder, filled in."""
    return environment().get_template(template).render(**context)


@functools.cache
def environment() -> "Environment":
    """The environment, made on first use: importing jinja2 takes longer than most commands run."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from jinja2.ext import Extension

    class CondenseWhitespace(Extension):
        def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
            return _LINE_BREAK.sub("", source)

    found = Environment(
        loader=PackageLoader("rag.report", "html"),
        extensions=[CondenseWhitespace],
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        finalize=_printable,
    )
    found.filters |= {function.__name__: function for function in _FILTERS}
    found.globals["MISSING"] = formatting.MISSING
    return found


def _printable(value: object) -> object:
    return value.translate(_CONTROLS) if type(value) is str else value
