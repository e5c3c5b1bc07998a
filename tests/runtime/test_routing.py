"""For every family: the greatest entries of a map are the experts selected, and a router applied ahead to the exact residual
stream selects what the layer's own router will select (`python -m tests.runtime.routing` prints the shares)."""

import re

import numpy as np
import pytest
import torch

import finemoe
from finemoe.errors import EngineError, FinemoeError
from finemoe.maps import expert_map
from finemoe.models.layers import find_moe_layers
from finemoe.paths import ROOT
from finemoe.runtime.gates import SPARSE, Said, distribution_of
from tests.runtime import families, routing
from tests.runtime.test_families import CHOSEN, NO_LOOKAHEAD, UNSUPPORTED

NAMES = [name for name in CHOSEN if name not in UNSUPPORTED]  # all of them by `make families`
CANNOT_RECORD = {"ernie4_5_vl_moe": "do not all run once on every token of a text", "openai_privacy_filter": "does not generate"}


@pytest.mark.parametrize("name", NAMES)
def test_maps_say_what_routers_do(name):
    assert routing.live(name).is_right
    recorded = routing.recorded(name)
    assert recorded.is_right
    assert CANNOT_RECORD.get(name, "") in recorded.reason
    assert bool(recorded.reason) == (name in CANNOT_RECORD)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in CANNOT_RECORD])
def test_routers_ahead_name_what_will_be_selected(name):
    ahead = routing.ahead(name)
    assert ahead.is_right
    assert bool(ahead.reason) == (name in NO_LOOKAHEAD)


def test_a_column_past_the_last_expert_is_no_expert():
    scores = np.array([[1.0, 2.0, 0.0, 5.0], [0.0, 1.0, 2.0, -4.0]], dtype=np.float32)
    probs = distribution_of(scores, np.array([[3], [2]]), num_experts=3, layer=0)
    expected = torch.softmax(torch.from_numpy(scores[:, :3]), -1).numpy()
    np.testing.assert_allclose(probs, expected, atol=1e-3)


@pytest.mark.parametrize("num_experts", [1, 7, 8, 60, 129, 257])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_a_gate_s_distribution_is_that_of_a_trace_bit_for_bit(num_experts, scale):
    scores = (np.random.default_rng(num_experts).standard_normal((5, num_experts)) * scale).astype(np.float32)
    recorded = expert_map.from_logits(scores).astype(np.float16).astype(np.float32)
    greatest = np.argsort(-recorded, axis=1, kind="stable")[:, :3]
    np.testing.assert_array_equal(distribution_of(scores, greatest, num_experts, layer=0), recorded)
    shares = recorded / recorded.sum(axis=1, keepdims=True)  # a router may give them instead of logits
    expected = shares.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(distribution_of(shares, greatest, num_experts, layer=0), expected)


@pytest.mark.parametrize("place", [0, 2, 5])
def test_a_router_s_nan_is_named_wherever_it_is(place):
    scores = np.array([[1.0, 2.0, -np.inf, 3.0, 0.0, 4.0]], dtype=np.float32)
    assert distribution_of(scores, np.array([[5]]), num_experts=6, layer=3)[0, 2] == 0
    scores[0, place] = np.nan
    with pytest.raises(EngineError, match="layer 3 emitted NaN"):
        distribution_of(scores, np.array([[5]]), num_experts=6, layer=3)


def test_a_selected_expert_without_weight_is_known_to_be_selected():
    probs = Said(np.array([[0.0, 0.5]], dtype=np.float32), np.array([[4, 1]]), SPARSE).distribution(6, layer=0)
    assert set(np.argsort(-probs[0], kind="stable")[:2].tolist()) == {1, 4}
    assert probs.sum() == pytest.approx(1.0, abs=1e-3)


def test_a_residual_stream_that_a_norm_changes_is_refused():
    model = families.build("minimax")  # the output of its norm before attention is the stream that goes on
    with pytest.raises(FinemoeError, match="cannot be applied ahead"):
        finemoe.offload(model, 0.5, "mixtral-offloading")


def test_a_page_names_the_families_without_routers_ahead():
    page = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    section = page.partition("## Routers that cannot be applied ahead\n")[2].partition("\n## ")[0]
    sentence = re.search(r"It is refused,[^.]*", section)[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == set(NO_LOOKAHEAD)


def test_a_router_that_hands_out_no_scores_gives_a_top_k_trace(tmp_path):
    model = families.build("mixtral")
    for layer in find_moe_layers(model):
        layer.router.register_forward_hook(lambda module, args, output: (None, *output[1:]))
    whole, known = (routing.record(built) for built in (families.build("mixtral"), model))
    assert known.probs is None
    np.testing.assert_array_equal(known.tokens, whole.tokens)
    np.testing.assert_array_equal(np.sort(known.expert_ids, axis=-1), np.sort(whole.expert_ids, axis=-1))
    weights = whole.expert_probs.astype(np.float32)  # Mixtral's weights are its K probabilities, normalised
    expected = weights / weights.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(known.expert_probs.astype(np.float32), expected, atol=2e-3)
    known.save(tmp_path / "known.trace")
    assert finemoe.replay(finemoe.RoutingTrace.load(tmp_path / "known.trace"), "finemoe", 0.5).accesses > 0
