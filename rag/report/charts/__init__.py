"""One module per chart; a new module is found without being listed anywhere (see `rag.report.chart`)."""

from pkgutil import iter_modules

from indexes.registry import Registry
from rag.report.chart import Chart

CHARTS: Registry[Chart | type[Chart]] = Registry(
    "chart", builtin={module.name: f"{__name__}.{module.name}:chart" for module in iter_modules(__path__)}
)
"""Every chart by its kind: those of this folder by the names of their modules."""
