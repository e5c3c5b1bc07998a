"""Records keep where in 64 bytes (on CUDA, in 256) a weight begins, since products round with it: in slots, and given back."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, Qwen2MoeConfig

import finemoe
from finemoe.models.layers import find_moe_layers
from finemoe.models.shipped import resolve
from finemoe.runtime.expert_layout import ExpertLayout, copied_in_phase, phase_of, room_for
from finemoe.runtime.pool import SlotPool
from tests.runtime import families
from tests.runtime.models import ODD_FAMILY, build, padded_batch

LINE_BYTES = 64
CUDA_PHASES = 256  # how far kernels look there


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
    pool = engine.memories.memories[0].pool
    layers = range(len(engine.records.layouts))
    return [weight.data_ptr() % LINE_BYTES for layer in layers for weight in pool.weights(layer, 1, 0).values()]


@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0, 4, 8, 60])), min_size=1, max_size=4))
def test_every_experts_weights_lie_apart_and_where_the_fused_parameter_has_them(weights):
    parameters = {}
    for number, (size, phase) in enumerate(weights):
        parameters[str(number)] = torch.empty(20 * size + LINE_BYTES)[phase // 4 :][: 20 * size].view(20, size)
    layout = ExpertLayout.in_place(SimpleNamespace(expert_parameters=lambda: parameters), torch.device("cpu"))
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


def fused_on_cuda(parameter: torch.Tensor) -> torch.Tensor:
    """Memory for a parameter that begins at a multiple of 512, as whatever is allocated on CUDA."""
    memory = torch.empty(parameter.nbytes + 1024, dtype=torch.uint8)
    memory = memory[-memory.data_ptr() % 512 :][: parameter.nbytes]
    return memory.view(parameter.dtype).view(parameter.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_experts_of_odd_sizes_begin_as_in_the_fused_parameter(dtype):
    layers = find_moe_layers(build(ODD_FAMILY, dtype))
    fused = {name: fused_on_cuda(parameter) for name, parameter in layers[0].expert_parameters().items()}
    assert len(fused) == 4
    assert all(parameter[0].nbytes % LINE_BYTES for parameter in fused.values())
    layouts = [ExpertLayout.in_place(layer, torch.device("cuda", 0)) for layer in layers]
    assert len(set(layouts)) == 1
    pool = SlotPool(layouts, 3, torch.device("cpu"))
    begin = pool.bytes_of(0, 0).data_ptr()  # a multiple of 512 on CUDA
    for slot in range(3):
        assert (pool.bytes_of(0, slot).data_ptr() - begin) % CUDA_PHASES == 0
        for expert in range(layers[0].num_experts):
            found = {name: (weight.data_ptr() - begin) % CUDA_PHASES for name, weight in pool.weights(0, slot, expert).items()}
            assert found == {name: parameter[expert].data_ptr() % CUDA_PHASES for name, parameter in fused.items()}


def test_odd_sizes_cost_less_than_256_bytes_a_weight():
    for layer in find_moe_layers(build(ODD_FAMILY)):
        weights = layer.expert_parameters().values()
        padded_bytes = sum(-(-parameter[0].nbytes // CUDA_PHASES) * CUDA_PHASES for parameter in weights)
        assert ExpertLayout.of(layer).nbytes <= padded_bytes + len(weights) * CUDA_PHASES
    for layer in find_moe_layers(build("mixtral")):  # and even ones nothing
        assert ExpertLayout.of(layer).nbytes == sum(parameter[0].nbytes for parameter in layer.expert_parameters().values())
        assert ExpertLayout.of(layer).period == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@torch.no_grad()
def test_experts_of_odd_sizes_with_biases_keep_eagers_bits(dtype):
    model, batch = build(ODD_FAMILY, dtype), padded_batch()
    inputs = [batch, *({"input_ids": torch.tensor([[token]])} for token in range(2, 30))]
    expected = [model(**one).logits for one in inputs]
    for share in (0.03, 0.4, 1.0):
        for devices in (1, 2):
            with finemoe.offload(model, max(share, devices / 36), "on-demand", devices=devices) as engine:
                for one, logits in zip(inputs, expected, strict=True):
                    assert torch.equal(model(**one).logits, logits)
                assert engine.report().misses > 0
    assert all(torch.equal(model(**one).logits, logits) for one, logits in zip(inputs, expected, strict=True))


def test_a_copy_for_another_device_begins_in_the_same_phase():
    memory = torch.arange(1000, dtype=torch.float32)
    for begin in (0, 1, 7, 15, 16, 40):
        weight = memory[begin : begin + 12].view(3, 4)
        copy = copied_in_phase(weight, torch.device("cpu"))
        assert torch.equal(copy, weight)
        assert copy.data_ptr() != weight.data_ptr()
        assert copy.data_ptr() % LINE_BYTES == weight.data_ptr() % LINE_BYTES


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
