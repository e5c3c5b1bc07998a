"""Models of any size with random weights, and recorded routing on them."""

import json

import numpy as np
import pytest
import torch

import finemoe
from finemoe.errors import FinemoeError
from finemoe.runtime.replayed import ReplayedRouting, with_embeddings_of
from finemoe.traces import DECODE, PREFILL, RoutingTrace
from tests.runtime.models import FAMILIES, build

PROMPT, NEW = 3, 5


def recorded(model, requests: int = 4, seed: int = 0) -> RoutingTrace:
    """Routing that this model would never choose by itself."""
    num_layers = model.config.num_hidden_layers
    num_experts = next(p.shape[0] for p in model.parameters() if p.ndim == 3)
    top_k, rng = model.config.num_experts_per_tok, np.random.default_rng(seed)
    num_rows = requests * (PROMPT + NEW)
    probs = rng.dirichlet(np.full(num_experts, 0.3), size=(num_rows, num_layers)).astype(np.float16)
    ids = np.argsort(-probs.astype(np.float32), axis=-1, kind="stable")[..., :top_k]
    step = np.tile(np.concatenate([np.zeros(PROMPT), np.arange(1, NEW + 1)]), requests).astype(np.int32)
    tokens = rng.integers(0, 90, num_rows).astype(np.int32)
    distinct, index = np.unique(tokens, return_inverse=True)
    return RoutingTrace(
        expert_ids=ids.astype(np.uint8),
        expert_probs=np.take_along_axis(probs, ids, axis=-1),
        offsets=np.arange(requests + 1) * (PROMPT + NEW),
        num_experts=num_experts,
        step=step,
        phase=np.where(step == 0, PREFILL, DECODE).astype(np.uint8),
        probs=probs,
        tokens=tokens,
        embedding_table=rng.normal(size=(len(distinct), 8)).astype(np.float16),
        embedding_index=index.astype(np.int32),
        splits=("history",) * (requests - 1) + ("served",),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["on-demand", "finemoe", "promoe"])
def test_an_engine_meets_the_recorded_routing(family, policy):
    """The live run on a model with random weights counts what the replay of the trace counts."""
    model = build(family)
    trace = with_embeddings_of(model, recorded(model))
    history, served = trace.split("history"), trace.split("served")
    options = {"history": history, "prefetch_distance": 1}
    with ReplayedRouting(model, served) as routing, finemoe.offload(model, 0.5, policy, asynchronous=False, **options) as engine:
        routing.serve(0)
        live = engine.report()
    expected = finemoe.replay(served, policy, 0.5, **options)
    assert (live.accesses, live.hits, live.misses) == (expected.accesses, expected.hits, expected.misses)
    assert live.layer_hits == expected.layer_hits
    assert live.num_decode_steps == NEW


def test_detaching_gives_the_model_its_own_routing_back():
    model = build("mixtral")
    tokens = torch.arange(6)[None]
    expected = model(input_ids=tokens).logits
    with ReplayedRouting(model, recorded(model)) as routing:
        routing.serve(1)
    assert torch.equal(model(input_ids=tokens).logits, expected)


def test_cosines_of_embeddings_survive_the_widening():
    model = build("phimoe")
    trace = recorded(model)
    wide = with_embeddings_of(model, trace)
    one, other = trace.embeddings(), wide.embeddings()
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    np.testing.assert_allclose(unit(one) @ unit(one).T, unit(other) @ unit(other).T, atol=5e-3)
    weight = model.get_input_embeddings().weight.detach().numpy()
    np.testing.assert_allclose(weight[trace.tokens], other, atol=1e-6)


def test_routing_of_other_sizes_is_refused():
    with pytest.raises(FinemoeError, match="the model has 4 layers x 8 experts, the trace 4 x 12"):
        ReplayedRouting(build("mixtral"), recorded(build("qwen2_moe")))


def test_a_random_model_is_made_from_a_configuration(tmp_path):
    config = build("mixtral").config.to_dict() | {"model_type": "mixtral"}
    keep = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    fields = {name: config[name] for name in (*keep, "intermediate_size", "num_local_experts", "num_experts_per_tok")}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    texts = []
    for _ in range(2):
        model, engine = finemoe.load(f"random:{path}", 0.25, "on-demand", dtype="bfloat16", seed=3)
        with engine:
            texts.append(model.generate(torch.arange(2, 8)[None], max_new_tokens=6, do_sample=False, pad_token_id=0).tolist())
            assert engine.report().misses > 0
        assert model.dtype == torch.bfloat16
    assert texts[0] == texts[1]  # the same seed, the same weights
    with pytest.raises(FinemoeError, match="no such configuration file"):
        finemoe.load("random:nowhere.json", 0.25)
