"""How much Transformers' other experts implementations differ from eager.

`python -m finemoe.artifact.analysis.implementations [MODEL ...]` runs one forward per prompt with the same weights. The
implementations differ in the order in which sums are rounded. If two experts are almost equally probable, this can change which
one a later router selects.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from finemoe.models.shipped import NAMES
from finemoe.workloads import read_prompts

IMPLEMENTATIONS = ("grouped_mm", "batched_mm")  # compared with "eager"; the first is Transformers' default
DTYPES = ("float32", "bfloat16")
_NUM_PROMPTS = 16


def implementation_table(models: Sequence[str] = NAMES, num_prompts: int = _NUM_PROMPTS) -> pd.DataFrame:
    """The largest difference of a logit from eager's over the first embedded questions.

    Args:
        models: names, folders or hub ids.
        num_prompts: number of questions.
    Returns:
        Rows (model, dtype, implementation, largest_difference, largest_logit, share): the difference, eager's largest logit by
        magnitude, and the first over the second.
    """
    prompts = [prompt["prompt"] for prompt in read_prompts("questions", limit=num_prompts)]
    return pd.DataFrame([row for model in models for dtype in DTYPES for row in _rows(model, dtype, prompts)])


def _rows(source: str, dtype: str, prompts: Sequence[str]) -> Iterator[dict[str, Any]]:
    from finemoe.runtime.loading import load_model

    model, tokenizer = load_model(source, dtype)
    inputs = [tokenizer(prompt, return_tensors="pt") for prompt in prompts]
    eager = _logits(model, "eager", inputs)
    largest = max(float(one.abs().max()) for one in eager)
    for name in IMPLEMENTATIONS:
        others = _logits(model, name, inputs)
        apart = max(float((other - one).abs().max()) for other, one in zip(others, eager, strict=True))
        found = {"largest_difference": apart, "largest_logit": largest, "share": apart / largest}
        yield {"model": source, "dtype": dtype, "implementation": name} | found


def _logits(model: Any, implementation: str, inputs: Sequence[Any]) -> list[Any]:
    import torch

    model.set_experts_implementation(implementation)
    with torch.inference_mode():
        return [model(**one).logits.float() for one in inputs]


if __name__ == "__main__":
    import sys

    print(implementation_table(sys.argv[1:] or NAMES).to_string(index=False, float_format="{:.3g}".format))
