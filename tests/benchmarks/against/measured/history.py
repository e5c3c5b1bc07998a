"""What FineMoE knows beforehand: routing that one tree recorded and both read."""

import functools
from pathlib import Path
from typing import Any

import finemoe
from finemoe.maps.store import ExpertMapStore
from finemoe.policies.finemoe import fill_store
from finemoe.runtime.loading import load_model
from finemoe.traces import RoutingTrace

_DISTANCE, _CAPACITY = 3, 1000
_BATCH, _LOOKAHEAD = 16, (1, 2, 3)


def recorded(model: str, prompts: list[list[str]], num_tokens: int, path: str) -> None:
    """Keep a model's routing for some prompts.

    Args:
        prompts: (text, split) of each request. num_tokens: generated for each. path: of the file that keeps it; who finds none
            records, and the other tree then reads that.
    """
    if not Path(path).is_file():
        lm, tokenizer = load_model(model)
        texts, splits = zip(*prompts, strict=True)
        options = {"max_new_tokens": num_tokens, "batch_size": _BATCH, "lookahead": _LOOKAHEAD, "splits": list(splits)}
        names = [f"request {number}" for number in range(len(texts))]
        finemoe.record(lm, list(texts), tokenizer=tokenizer, request_ids=names, **options).save(path)


def store_of(told: dict[str, Any]) -> ExpertMapStore:
    """An Expert Map Store of the history's requests, as the pipeline fills it; told: arguments of `recorded`."""
    recorded(**told)
    return _store_from(told["path"])


@functools.cache
def _store_from(path: str) -> ExpertMapStore:
    history = RoutingTrace.load(path).split("history")
    sizes = history.num_layers, history.num_experts, history.embeddings(slice(0, 1)).shape[1]
    return fill_store(ExpertMapStore(*sizes, _CAPACITY, _DISTANCE, model=history.model), history)
