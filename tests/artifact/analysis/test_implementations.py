"""How far other experts implementations are from eager, against plain Transformers."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from finemoe.artifact.analysis.implementations import DTYPES, IMPLEMENTATIONS, implementation_table
from finemoe.paths import MINIATURES
from finemoe.workloads import read_prompts


def test_differences_are_those_of_plain_transformers():
    table = implementation_table(["mixtral-mini"], num_prompts=1).set_index(["dtype", "implementation"])
    assert list(table.index) == [(dtype, name) for dtype in DTYPES for name in IMPLEMENTATIONS]
    folder = MINIATURES / "mixtral-mini"
    inputs = AutoTokenizer.from_pretrained(folder)(read_prompts("questions", limit=1)[0]["prompt"], return_tensors="pt")
    logits = {}
    for name in ("eager", "grouped_mm"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, experts_implementation=name).eval()
        with torch.inference_mode():
            logits[name] = model(**inputs).logits.float()
    found = table.loc["bfloat16", "grouped_mm"]
    assert found.largest_logit == logits["eager"].abs().max().item()
    assert found.largest_difference == (logits["grouped_mm"] - logits["eager"]).abs().max().item()
    assert found.share == pytest.approx(found.largest_difference / found.largest_logit)
    assert table.loc["float32"].largest_difference.max() < 1e-3  # rounding, and no other experts
