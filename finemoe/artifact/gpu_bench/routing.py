"""The routing that a measurement serves: recorded from the miniature with a model's sizes, or from the real weights."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from finemoe.artifact.gpu_bench.settings import Settings, Target
from finemoe.errors import FinemoeError
from finemoe.runtime.loading import load, load_model, load_tokenizer
from finemoe.runtime.recorder import record
from finemoe.traces import RoutingTrace
from finemoe.workloads import read_prompts

_BATCH_SIZE = 16


def routing_of(target: Target, settings: Settings, folder: Path) -> RoutingTrace:
    """The recorded requests of a model: from the settings' folder of traces if it has them, otherwise recorded once into
    `folder`."""
    name = f"{target.recorded_from or target.name}-{settings.num_prompts}x{settings.num_tokens}.trace"
    shipped = None if settings.traces is None else Path(settings.traces) / name
    path = shipped if shipped is not None and shipped.is_file() else folder / name
    if not path.is_file():
        _record(target, settings).save(path)
    # Without the miniature's name: its recording stands for the measured model.
    return replace(RoutingTrace.load(path), model="")


def _record(target: Target, settings: Settings) -> RoutingTrace:
    rows = read_prompts("questions", limit=settings.num_prompts)
    if target.recorded_from is not None:
        model, tokenizer = load_model(target.recorded_from)
        return _trace_of(model, tokenizer, rows, settings.num_tokens, _BATCH_SIZE)
    model, engine = load(target.source, settings.baseline_memory, "on-demand")
    with engine:
        tokenizer = load_tokenizer(target.source)
        batch_size = _BATCH_SIZE if tokenizer.pad_token_id is not None else 1
        return _trace_of(model, tokenizer, rows, settings.num_tokens, batch_size)


def _trace_of(model: Any, tokenizer: Any, rows: list[dict[str, str]], num_tokens: int, batch_size: int) -> RoutingTrace:
    recorded = partial(
        record,
        model,
        [row["prompt"] for row in rows],
        tokenizer=tokenizer,
        max_new_tokens=num_tokens + 1,
        min_new_tokens=num_tokens + 1,
        batch_size=batch_size,
        splits=[row["split"] for row in rows],
    )
    try:
        return recorded(lookahead=(1,))
    except FinemoeError:  # the family's routers cannot be applied ahead; the policy that needs this will report it
        return recorded()
