"""Records keep where in a line of 64 bytes a weight begins, since some CPUs' products round with it: in slots, and given back."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen2MoeConfig

import finemoe
from finemoe.miniatures.catalog import resolve
from finemoe.runtime.layers import find_moe_layers
from finemoe.runtime.records import RecordLayout, phase_of, room_for
from tests.runtime import families
from tests.runtime.models import build

LINE_BYTES = 64


def shift(model, num_bytes: int) -> None:
    """Let every expert weight begin so many bytes past a multiple of 64, as one that is mapped from a file may."""
    for layer in find_moe_layers(model):
        for parameter in layer.expert_parameters().values():
            skipped = num_bytes // parameter.element_size()
            memory = torch.empty(parameter.numel() + LINE_BYTES, dtype=parameter.dtype)
            parameter.data = memory[skipped : skipped + parameter.numel()].view(parameter.shape).copy_(parameter.data)


def phases(model) -> list[int]:
    layers = find_moe_layers(model)
    return [one.data_ptr() % LINE_BYTES for layer in layers for one in layer.expert_parameters().values()]


def phases_in_slots(engine) -> list[int]:
    pool = engine._memories.memories[0].pool
    layers = range(len(engine.records.layouts))
    return [weight.data_ptr() % LINE_BYTES for layer in layers for weight in pool.weights(layer, 1, 0).values()]


@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0, 4, 8, 60])), min_size=1, max_size=4))
def test_every_experts_weights_lie_apart_and_where_the_fused_parameter_has_them(weights):
    parameters = {}
    for number, (size, phase) in enumerate(weights):
        parameters[str(number)] = torch.empty(20 * size + LINE_BYTES)[phase // 4 :][: 20 * size].view(20, size)
    layout = RecordLayout.in_place(SimpleNamespace(expert_parameters=lambda: parameters), torch.device("cpu"))
    assert layout.nbytes % 256 == 0
    record = torch.zeros(layout.nbytes + LINE_BYTES, dtype=torch.uint8)
    record = record[-record.data_ptr() % LINE_BYTES :]
    for expert in range(20):
        end = record.data_ptr()
        for name, view in layout.views(record, expert).items():
            assert view.data_ptr() >= end
            assert view.data_ptr() % LINE_BYTES == parameters[name][expert].data_ptr() % LINE_BYTES
            end = view.data_ptr() + view.nbytes
        assert end <= record.data_ptr() + layout.nbytes
    for field in layout.fields:
        memory = room_for(field, 20, torch.device("cpu"))
        assert memory.shape == parameters[field.name].shape
        assert memory.data_ptr() % LINE_BYTES == parameters[field.name].data_ptr() % LINE_BYTES


@pytest.mark.parametrize("num_bytes", [0, 8, 20])
def test_a_given_model_computes_as_before_and_gets_its_weights_back_where_they_began(num_bytes):
    model, one_token = build("qwen2_moe"), torch.tensor([[5]])
    shift(model, num_bytes)
    with torch.no_grad():
        expected = model(input_ids=one_token).logits
        with finemoe.offload(model, 0.5, "on-demand") as engine:
            assert set(phases_in_slots(engine)) == {num_bytes}
            assert torch.equal(model(input_ids=one_token).logits, expected)
        assert set(phases(model)) == {num_bytes}
        assert torch.equal(model(input_ids=one_token).logits, expected)


@pytest.mark.parametrize(("hidden_size", "intermediate_size"), [(33, 11), (34, 15)])
@torch.no_grad()
def test_experts_of_odd_sizes_keep_eagers_bits(hidden_size, intermediate_size):
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden_size, "moe_intermediate_size": intermediate_size, "shared_expert_intermediate_size": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    experts = {"num_experts": 8, "num_experts_per_tok": 3, "num_hidden_layers": 2}
    config = Qwen2MoeConfig(**sizes, **heads, **experts, vocab_size=99)
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    tokens = [torch.tensor([[token]]) for token in range(40)]
    expected = [model(input_ids=token).logits for token in tokens]
    for grouped_from in (None, 1):  # whose products cannot take such experts
        with finemoe.offload(model, 0.5, "on-demand", grouped_from=grouped_from):
            for token, logits in zip(tokens, expected, strict=True):
                assert torch.equal(model(input_ids=token).logits, logits)


def test_grouped_products_take_weights_that_begin_anywhere():
    model, prompt = build("qwen2_moe"), torch.arange(3, 19)[None]
    shift(model, 8)
    with torch.no_grad():
        expected = model(input_ids=prompt).logits
        with finemoe.offload(model, 1.0, "on-demand", grouped_from=1):
            torch.testing.assert_close(model(input_ids=prompt).logits, expected)


@pytest.mark.parametrize("name", ["mixtral", "hy_v4", "qwen3_vl_moe"], ids=["stacked", "as stored", "as stored, by a converter"])
def test_a_loaded_models_weights_begin_where_from_pretrained_lets_them(name, tmp_path):
    families.build(name).save_pretrained(tmp_path)
    reference = type(families.build(name)).from_pretrained(tmp_path)
    model, engine = finemoe.load(str(tmp_path), 1.0, "on-demand")
    with engine:
        assert phases_in_slots(engine) == phases(reference)
        experts = {id(one) for layer in find_moe_layers(model) for one in layer.expert_parameters().values()}
        rest = {key: phase_of(one) for key, one in model.named_parameters() if id(one) not in experts}
        assert rest == {key: phase_of(one) for key, one in reference.named_parameters() if key in rest}


@torch.no_grad()
def test_single_tokens_of_a_miniature_equal_eagers_bits():
    """Half of all checkpoint files let their weights begin 8 bytes past a multiple of 16; this one does."""
    reference = AutoModelForCausalLM.from_pretrained(resolve("qwen-mini"), experts_implementation="eager")
    model, engine = finemoe.load("qwen-mini", 0.5)
    with engine:
        for token in range(20):
            expected = reference(input_ids=torch.tensor([[token]])).logits
            assert torch.equal(model(input_ids=torch.tensor([[token]])).logits, expected)
