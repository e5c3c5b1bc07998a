"""Every model family of Transformers' experts seam, built tiny: logits and greedy tokens are bit-equal to eager.

All of them run with `make families`; a plain test run takes a part that the commit decides, so that a family that fails does so
on every day, and all are seen within a few commits.
"""

import os
from functools import cache

import pytest
import torch
import transformers

import finemoe
from finemoe.errors import FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.policies import LIVE_POLICIES, POLICIES
from finemoe.runtime.expert_layout import ExpertLayout
from tests.parts import NUM_PARTS, part
from tests.runtime import families

pytestmark = pytest.mark.timeout(300)  # every policy at three cache sizes

NAMES = families.family_names()
CHOSEN = NAMES if os.environ.get("FINEMOE_FAMILIES") == "all" else NAMES[part(NUM_PARTS) :: NUM_PARTS]
UNSUPPORTED = {"diffusion_gemma": "shares experts between its layers"}
NO_LOOKAHEAD = (
    "deepseek_v4",
    "ernie4_5_vl_moe",
    "flex_olmo",
    "gemma4",
    "glm5_next",
    "hy_v4",
    "inkling2",
    "minimax",
    "muse_spark",
    "qwen4_exp",
    "zaya",
)
GENERATION = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}


@cache
def reference(name: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """`outputs` of the family under Transformers' own eager experts."""
    model = families.build(name, dtype)
    assert {layer.experts.config._experts_implementation for layer in find_moe_layers(model)} == {"eager"}
    return outputs(model, name)


@torch.no_grad()
def outputs(model, name: str) -> tuple[torch.Tensor, ...]:
    """Logits of a batch, and of every step of a generation with its tokens: a step of one row may round as no batch does."""
    batch = families.batch(model)
    logits = families.logits_of(model, batch)
    if not families.family(name).can_generate:
        return (logits,)
    one = {key: value[:1] for key, value in batch.items()}
    steps = [model.generate(**rows, **GENERATION, return_dict_in_generate=True, output_logits=True) for rows in (batch, one)]
    return logits, *(part for done in steps for part in (done.sequences, torch.stack(done.logits)))


def assert_equal(found, expected, where: str) -> None:
    assert len(found) == len(expected)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(one, other), (
            f"{('logits', 'tokens', 'steps', 'tokens of one row', 'steps of one row')[number]}, {where}"
        )


def compare_with_eager(name: str, dtype: torch.dtype) -> None:
    """Every policy at three cache sizes, from one expert to all of them."""
    expected = reference(name, dtype)
    model = families.build(name, dtype)
    layers = find_moe_layers(model)
    num_experts = sum(layer.num_experts for layer in layers)
    record_bytes = max(ExpertLayout.of(layer).nbytes for layer in layers)
    for policy in LIVE_POLICIES:
        if POLICIES[policy].lookahead and name in NO_LOOKAHEAD:
            with pytest.raises(FinemoeError, match="cannot be applied ahead"):
                finemoe.offload(model, 0.5, policy)
            continue
        for slots in (1, num_experts // 3, num_experts):
            with finemoe.offload(model, slots * record_bytes, policy) as engine:
                assert_equal(outputs(model, name), expected, f"{policy}, {slots} slots")
                assert engine.report().accesses > 0
    assert_equal(outputs(model, name), expected, "after close")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in CHOSEN if name not in UNSUPPORTED])
def test_bit_equal_to_eager(name, dtype):
    compare_with_eager(name, dtype)


@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_unsupported_families_are_refused_with_the_reason(name):
    with pytest.raises(FinemoeError, match=UNSUPPORTED[name]):
        finemoe.offload(families.build(name), 0.5)


def test_the_page_of_models_names_every_family():
    from tests.runtime.support_matrix import MARKS, PAGE

    text = PAGE.read_text(encoding="utf-8")
    matrix = text[text.index(MARKS[0]) : text.index(MARKS[1])]
    if f"Transformers {transformers.__version__} " not in matrix:
        pytest.skip("the matrix was written for the reference environment")
    assert [name for name in NAMES if f"`{name}`" not in matrix] == []
    assert all(f"| `{name}` |" in matrix for name in UNSUPPORTED)


def test_nearly_every_family_is_built():
    built = [name for name in NAMES if name not in families.CANNOT_BUILD]
    assert len(built) >= min(58, len(NAMES) - 6)
