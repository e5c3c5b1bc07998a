"""Import routing recorded by other tools as a `RoutingTrace`; `read_trace` detects the format (see docs/importing.md)."""

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
    """Read routing from a file of any known format, gzipped or not.

    The same routing gives the same trace in every format: the experts of a token and layer are sorted by descending weight (equal
    weights by ascending id), weights sum to 1, the prompt is step 0, and `has_weights` is False if only ids were recorded.

    Args:
        path: a file (for gpt-oss fingerprints also a folder).
        format: one of `FORMATS`; by default detected from the content.
        num_experts, num_layers, top_k: J, L and K, if the file does not state them; J defaults to the largest id + 1.
        prompt_tokens: number of rows at the start of every request that belong to its prompt, if the file does not state it.
        model: identity of the model. The name of a configuration in data/models/configs, a configuration file or a model folder
            also supplies the sizes.
    Raises:
        FinemoeError: the format is unknown, or the file is damaged or malformed; one line with the file and the position in it.
    """
    options = Options(num_experts, num_layers, top_k, prompt_tokens, model)
    return import_trace(Path(path), format, options).trace
