"""The opt-in for long prompts against eager: equal but for rounding, and the same accounting."""

import pytest
import torch

import finemoe
from finemoe.errors import FinemoeError
from tests.runtime.models import FAMILIES, build

PROMPT = torch.arange(40)[None] % 90


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prompts_differ_from_eager_by_rounding_only(family, share, dtype):
    model = build(family).to(dtype)
    with torch.inference_mode():
        expected = model(input_ids=PROMPT).logits
        with finemoe.offload(model, share, "on-demand", grouped_from=16) as engine:
            found = model(input_ids=PROMPT).logits
            grouped = engine.report()
        with finemoe.offload(model, share, "on-demand") as engine:
            assert torch.equal(model(input_ids=PROMPT).logits, expected)
            looped = engine.report()
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(found, expected, atol=tolerance * expected.abs().max().item(), rtol=0)
    assert (grouped.accesses, grouped.hits, grouped.misses) == (looped.accesses, looped.hits, looped.misses)


@pytest.mark.parametrize(
    ("share", "options"),
    [
        pytest.param(1.0, {"grouped_from": 41}, id="fewer tokens than asked for"),
        pytest.param(0.01, {"grouped_from": 1}, id="a set larger than the cache"),
        pytest.param(1.0, {"grouped_from": 1, "devices": 2}, id="several devices"),
    ],
)
def test_what_cannot_be_grouped_goes_through_the_loop_and_stays_bit_equal(share, options):
    model = build("qwen2_moe")
    with torch.inference_mode():
        expected = model(input_ids=PROMPT).logits
        with finemoe.offload(model, share, "on-demand", **options):
            assert torch.equal(model(input_ids=PROMPT).logits, expected)


def test_a_number_of_tokens_is_needed():
    with pytest.raises(FinemoeError, match="grouped_from is 0; give a number of tokens"):
        finemoe.offload(build("mixtral"), 0.5, grouped_from=0)
