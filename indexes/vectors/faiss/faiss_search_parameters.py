"""Search parameters of FAISS indexes: read from text, their defaults, and FAISS's own objects for one search."""

import math
from collections.abc import Mapping
from typing import Any

from indexes.errors import UsageError
from indexes.vectors.faiss.faiss_factory import parse
from indexes.vectors.faiss.faiss_kinds import SEARCH_PARAMETERS
from indexes.vectors.faiss.faiss_layers import faiss, kind_of, layers_of, untyped_faiss


def parse_parameters(parameters: str) -> dict[str, float]:
    """Search parameters from FAISS's notation.

    Args:
        parameters: Such as "nprobe=32,k_factor_rf=4"; "" names none.

    Returns:
        A value for each name.

    Raises:
        UsageError: It is not a list of known names and possible numbers.
    """
    found: dict[str, float] = {}
    for assignment in filter(None, (part.strip() for part in parameters.split(","))):
        name, _, text = (part.strip() for part in assignment.partition("="))
        if name not in SEARCH_PARAMETERS:
            raise UsageError(
                f"A search parameter must be one of {', '.join(SEARCH_PARAMETERS)}, written as name=number with commas "
                f"between, but got {assignment!r}."
            )
        found[name] = _checked_value(name, text)
    return found


def _checked_value(name: str, text: str) -> float:
    limits = SEARCH_PARAMETERS[name]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    is_number = math.isfinite(value) and (limits.is_fraction or value == math.floor(value))
    if not (is_number and limits.lowest <= value <= limits.highest):
        kind = "a number" if limits.is_fraction else "a whole number"
        bounded = limits.highest < SEARCH_PARAMETERS["nprobe"].highest
        room = f"from {limits.lowest} to {limits.highest}" if bounded else f"of at least {limits.lowest}"
        raise UsageError(f"The search parameter {name} must be {kind} {room}, but got {text!r}.")
    return value


def default_search_parameters(index: Any, factory: str) -> dict[str, float]:
    """The search parameters of an index with values that find most true neighbours; FAISS's own find fewer."""
    found: dict[str, float] = {}
    for layer in layers_of(index):
        if isinstance(layer, faiss.IndexRefine):
            found["k_factor_rf"] = 4
        if isinstance(layer, faiss.IndexHNSW):
            found["efSearch"] = 128
        if isinstance(layer, faiss.IndexIVF):
            found["nprobe"] = min(layer.nlist, max(8, layer.nlist // 16))
            if isinstance(faiss.downcast_index(layer.quantizer), faiss.IndexHNSW):
                found["quantizer_efSearch"] = max(64, 2 * found["nprobe"])
    if (kind := parse(factory).kind) is not None:
        found |= {name: SEARCH_PARAMETERS[name].highest for name in kind.parameters}
    return found


def merge_search_parameters(defaults: Mapping[str, float], parameters: str, factory: str) -> dict[str, float]:
    """The search parameters of an index, with those that are named replaced.

    Args:
        defaults: All that the index has.
        parameters: As in `parse_parameters`.
        factory: The index, for the error message.

    Raises:
        UsageError: A parameter is not one of the index.
    """
    named = parse_parameters(parameters)
    if "quantizer_efSearch" in defaults and "efSearch" in named:  # FAISS accepts both names
        named["quantizer_efSearch"] = named.pop("efSearch")
    for name in named:
        if name not in defaults:
            known = ", ".join(defaults) or "none, since there is nothing to trade"
            raise UsageError(
                f"Search parameters must be those of an index {factory!r} ({known}), but got {name!r}. Leave {name} "
                "out."
            )
    return {**defaults, **named}


def faiss_search_parameters(index: Any, values: Mapping[str, float]) -> Any:
    """FAISS's objects for these values, nested as the index is; None where nothing is to be set."""
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexRefine):
        inner = faiss_search_parameters(index.base_index, values)
        base = {} if inner is None else {"base_index_params": inner}
        return untyped_faiss.IndexRefineSearchParameters(k_factor=values["k_factor_rf"], **base)
    if isinstance(index, faiss.IndexPreTransform):
        inner = faiss_search_parameters(index.index, values)
        return None if inner is None else untyped_faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexHNSW):
        return untyped_faiss.SearchParametersHNSW(efSearch=int(values["efSearch"]))
    settings = _code_parameters(index, values)
    if isinstance(index, faiss.IndexIVF):
        settings["nprobe"] = min(index.nlist, int(values["nprobe"]))
        if "quantizer_efSearch" in values:
            settings["quantizer_params"] = untyped_faiss.SearchParametersHNSW(
                efSearch=int(values["quantizer_efSearch"])
            )
    if not settings:
        return None
    kind = kind_of(index)
    parameter_class = (kind.parameter_class if kind else "") or "SearchParametersIVF"
    return getattr(faiss, parameter_class)(**settings)


def _code_parameters(index: Any, values: Mapping[str, float]) -> dict[str, Any]:
    kind = kind_of(index)
    return {name: int(values[name]) for name in kind.parameters if name in values} if kind else {}
