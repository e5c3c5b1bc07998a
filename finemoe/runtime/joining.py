"""Joins the two parts of an interrupted recording into the trace that one recording would have given."""

from dataclasses import fields
from typing import Any

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.trace_arrays import ROW_ARRAYS
from finemoe.traces import RoutingTrace


def joined(first: RoutingTrace, second: RoutingTrace) -> RoutingTrace:
    """The requests of both parts, those of `first` first.

    Raises:
        FinemoeError: the parts are of different models, or were recorded with different options.
    """
    for name in ("model", "num_layers", "num_experts", "top_k", "lookahead_strides", "has_weights", "expert_bytes"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            raise FinemoeError(f"the parts of the recording differ in {name}: {one!r} and {other!r}; record both again")
    for name in (*ROW_ARRAYS, "embedding_table"):
        if (getattr(first, name) is None) != (getattr(second, name) is None):
            raise FinemoeError(f"only one part of the recording has {name}; record both again")
    found: dict[str, Any] = {field.name: getattr(first, field.name) for field in fields(RoutingTrace)}
    found |= {name: _stacked(first, second, name) for name in ROW_ARRAYS if found[name] is not None}
    found["offsets"] = np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]])
    found |= {name: (*getattr(first, name), *getattr(second, name)) for name in ("request_ids", "splits")}
    return RoutingTrace(**(found | _embeddings(first, second)))


def _stacked(first: RoutingTrace, second: RoutingTrace, name: str) -> np.ndarray:
    return np.concatenate([getattr(first, name), getattr(second, name)])


def _embeddings(first: RoutingTrace, second: RoutingTrace) -> dict[str, np.ndarray]:
    """One table of distinct embeddings, in the order in which the recorder sorts them, and every row's index in it."""
    if first.embedding_table is None or second.embedding_table is None:
        return {}
    table, index = np.unique(_stacked(first, second, "embedding_table"), axis=0, return_inverse=True)
    index = index.reshape(-1).astype(np.int32)
    of_first, of_second = index[: len(first.embedding_table)], index[len(first.embedding_table) :]
    rows = [of_first[first.embedding_index], of_second[second.embedding_index]]
    return {"embedding_table": table, "embedding_index": np.concatenate(rows)}
