"""Routing that others recorded, as a `RoutingTrace`: `read_trace` finds a file's format by itself (see docs/importing.md)."""

from pathlib import Path

from finemoe.importers.formats import FORMATS, import_trace
from finemoe.importers.routing import Imported, Options
from finemoe.traces import RoutingTrace

__all__ = ["FORMATS", "Imported", "Options", "import_trace", "read_trace"]


def read_trace(
    path: str | Path,
    format: str | None = None,
    *,
    num_experts: int | None = None,
    num_layers: int | None = None,
    top_k: int | None = None,
    prompt_tokens: int | None = None,
    model: str = "",
) -> RoutingTrace:
    """Routing from a file of any known format, gzipped or not.

    The same routing gives the same trace whatever the format: experts of a token and layer lie by descending weight (equal ones
    by ascending id), weights sum to 1, a prompt is step 0, and where only ids were recorded, `has_weights` is False.

    Args:
        path: a file (of gpt-oss fingerprints also a folder).
        format: one of `FORMATS`; found by content if left out.
        num_experts, num_layers, top_k: J, L and K, where the file does not state them; of J else the greatest id + 1 is taken.
        prompt_tokens: how many rows at the beginning of every request are its prompt, where the file does not say.
        model: identity of the model; a name in data/models/configs, a configuration's file or a model's folder says sizes, too.
    Raises:
        FinemoeError: the format is unknown, or the file is damaged or malformed; one line with the file and the place in it.
    """
    options = Options(num_experts, num_layers, top_k, prompt_tokens, model)
    return import_trace(Path(path), format, options).trace
