"""The opt-in for long prompts against eager: equal but for rounding, and the same accounting."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import finemoe
from finemoe.errors import FinemoeError
from finemoe.runtime.grouped import grouped_forward
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


def plain_sum(stacked, groups, hidden_states, top_k_index, top_k_weights) -> torch.Tensor:
    """Token by token and expert by expert, in double precision."""
    output = torch.zeros(hidden_states.shape, dtype=torch.float64)
    for token, experts in enumerate(top_k_index.tolist()):
        for place, expert in enumerate(experts):
            if expert < len(groups):
                weights = {name: weight[groups[expert]].double() for name, weight in stacked.items()}
                gate, up = (weights["gate_up_proj"] @ hidden_states[token].double()).chunk(2)
                result = weights["down_proj"] @ (torch.nn.functional.silu(gate) * up)
                output[token] += top_k_weights[token, place].double() * result
    return output


@pytest.mark.parametrize("weights_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_result_is_added_as_it_comes(monkeypatch, dtype, weights_dtype):
    """Such adds, which are atomic on a GPU, come in another order each time. Expert 6 is foreign."""
    for name in ("index_add_", "index_add", "scatter_add_", "scatter_add", "index_reduce_", "scatter_reduce_"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_, **__: pytest.fail("results are added as they come"))
    monkeypatch.setattr(torch, "index_add", lambda *_, **__: pytest.fail("results are added as they come"))
    generator = torch.Generator().manual_seed(0)
    num_tokens, hidden, inner, num_experts, top_k = 50, 32, 16, 6, 3
    groups = np.array([4, 0, 2, 5, 1, 7])
    stacked = {
        "gate_up_proj": torch.randn(8, 2 * inner, hidden, generator=generator).to(dtype) / 6,
        "down_proj": torch.randn(8, hidden, inner, generator=generator).to(dtype) / 4,
    }
    hidden_states = torch.randn(num_tokens, hidden, generator=generator).to(dtype)
    index = torch.stack([torch.randperm(num_experts + 1, generator=generator)[:top_k] for _ in range(num_tokens)]).numpy()
    weights = torch.rand(num_tokens, top_k, generator=generator).to(weights_dtype)
    module = SimpleNamespace(num_experts=num_experts, act_fn=torch.nn.functional.silu)
    found = [grouped_forward(module, stacked, groups, hidden_states, index, weights) for _ in range(2)]
    assert found[0].dtype == dtype
    assert torch.equal(*found)
    expected = plain_sum(stacked, groups, hidden_states, index, weights)
    tolerance = (1e-5 if dtype == torch.float32 else 1e-2) * expected.abs().max().item()
    torch.testing.assert_close(found[0].double(), expected, atol=tolerance, rtol=0)
