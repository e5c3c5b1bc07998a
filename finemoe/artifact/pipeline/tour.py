"""Routing for the notebooks of the tour: what the pipeline recorded or, before it has run, a small recording made on the spot."""

from pathlib import Path

from finemoe.errors import FinemoeError
from finemoe.paths import MINIATURES, PROMPTS, RESULTS, ROOT, is_headless

_SMALL = RESULTS / "by-hand" / "small"
_NUM_PROMPTS, _NUM_TOKENS, _STRIDES = 20, 12, (1, 2, 3)


def recorded(trace: str) -> Path:
    """The path of a trace. If it is missing and named MINIATURE-DATASET, a small one is recorded in results/by-hand/small.

    Args:
        trace: a relative path starts at the repository root.
    Raises:
        FinemoeError: the trace is missing, and its name does not identify what to record.
    """
    path = ROOT / trace
    if path.exists():
        return path
    model, _, dataset = path.stem.rpartition("-")
    if not (MINIATURES / model).is_dir() or not (PROMPTS / f"{dataset}.jsonl").is_file():
        raise FinemoeError(
            f"{trace}: no such trace; record one with `finemoe record`, or choose data/traces/qwen-mini-40x32.trace"
        )
    small = _SMALL / path.name
    if not small.exists():
        print(f"{trace} does not exist yet; `make reproduce` makes it.\nRecording {_NUM_PROMPTS} requests instead:")
        _record(model, dataset, small)
    print(f"Using the small recording {small.relative_to(ROOT)}.")
    return small


def _record(model: str, dataset: str, path: Path) -> None:
    import finemoe
    from finemoe.artifact.prompts import load_prompts
    from finemoe.runtime.loading import load_model

    prompts = load_prompts(dataset, limit=_NUM_PROMPTS)
    module, tokenizer = load_model(str(MINIATURES / model))
    routing = finemoe.record(
        module,
        list(prompts["prompt"]),
        tokenizer=tokenizer,
        max_new_tokens=_NUM_TOKENS,
        lookahead=_STRIDES,
        splits=list(prompts["split"]),
        request_ids=list(prompts["id"]),
        progress=not is_headless(),
    )
    routing.save(path)
