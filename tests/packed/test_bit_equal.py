"""A packed checkpoint's logits and tokens are those of the model that Transformers makes of it by dequantising it whole."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import finemoe
from finemoe.policies import LIVE_POLICIES
from finemoe.runtime.pretrained import whole_model
from tests.packed.checkpoints import CASES, EXPERTS, Made, dequantised, make, naive, prompts
from tests.packed.outputs import assert_equal, outputs

DTYPES = ("float32", "float16", "bfloat16")
FEW = ("qwen3_moe_fp8", "deepseek_v3_fp8_ragged", "gpt_oss_mxfp4", "qwen3_moe_int4")  # one of every kind
FORMATS = {"int8": ["compressed-tensors int8"], "fp8": ["fp8"], "mxfp4": ["mxfp4", "plain"], "int4": ["compressed-tensors int4"]}


@dataclass
class Case:
    """A checkpoint, and what its references gave, by type."""

    made: Made
    expected: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def outputs(self, dtype: str = "auto") -> list[torch.Tensor]:
        """Of the reference."""
        if dtype not in self.expected:
            self.expected[dtype] = outputs_of(reference(self.made, dtype))
        return self.expected[dtype]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Callable[[str], Case]:
    """Checkpoints by name, each made once."""
    cases: dict[str, Case] = {}

    def of(name: str) -> Case:
        if name not in cases:
            cases[name] = Case(make(name, tmp_path_factory.mktemp(name)))
        return cases[name]

    return of


def reference(made: Made, dtype: str = "auto") -> PreTrainedModel:
    """Transformers' own model, or one of our own arithmetic where it makes none: where blocks are cut off, and in another type
    than the checkpoint's, in which it leaves what is not packed (FP8), or what is (compressed-tensors): no forward runs."""
    kind = dtype if dtype == "auto" else getattr(torch, dtype)
    is_made = dtype in ("auto", "bfloat16") or "gpt_oss" in made.folder.name
    return dequantised(made.folder, kind) if is_made and not made.is_ragged else naive(made, kind)


def outputs_of(model: PreTrainedModel) -> list[torch.Tensor]:
    """See `outputs`."""
    return outputs(model, prompts())


def assert_loads_equal(case: Case, memory: Any, policy: str, dtype: str = "auto", **options: Any) -> None:
    model, engine = finemoe.load(case.made.folder, memory, policy, dtype=dtype, **options)
    with engine:
        assert any(layout.packing is not None for layout in engine.records.layouts)
        assert_equal(outputs_of(model), case.outputs(dtype))


@pytest.mark.parametrize("memory", [0.25, 0.5, 1.0, "bytes"])
@pytest.mark.parametrize("name", CASES)
def test_every_checkpoint_at_every_size_of_the_cache(case, name, memory):
    found = case(name)
    if memory == "bytes":  # three experts, and the room in which one of them is unpacked
        _, engine = finemoe.load(found.made.folder, 1.0, "on-demand")
        with engine:
            layouts = engine.records.layouts
            packed = max(layout.nbytes for layout in layouts)
            memory = 3 * packed + max(layout.packing.weights.nbytes for layout in layouts if layout.packing)
    assert_loads_equal(found, memory, "finemoe")


@pytest.mark.parametrize("memory", [0.25, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("policy", LIVE_POLICIES)
@pytest.mark.parametrize("name", FEW)
def test_every_policy(case, name, policy, memory):
    assert_loads_equal(case(name), memory, policy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_every_type(case, name, dtype):
    assert_loads_equal(case(name), 0.4, "on-demand", dtype)


OPTIONS: dict[str, dict[str, Any]] = {
    "kept unpacked": {"slots": "unpacked"},
    "two devices": {"devices": 2},
    "two devices, kept unpacked": {"devices": 2, "slots": "unpacked"},
    "disk": {"host_memory": "30KB"},
    "grouped": {"grouped_from": 1},
    "synchronous": {"asynchronous": False},
    "paced link": {"link": "paced:20MB/s"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("memory", [0.25, pytest.param(1.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*FEW, "qwen3_moe_fp8_one_plain_layer"])
def test_every_option(case, name, memory, options, tmp_path):
    told = OPTIONS[options]
    if "host_memory" in told:
        told = told | {"disk_folder": tmp_path}
    if options == "grouped" and "plain" in name:
        pytest.skip("a layer that is not packed is grouped as asked, and rounds otherwise")
    assert_loads_equal(case(name), memory, "finemoe", **told)


def test_the_disk_holds_what_memory_does_not(case, tmp_path):
    _, engine = finemoe.load(case(FEW[0]).made.folder, 0.25, host_memory="30KB", disk_folder=tmp_path)
    with engine:
        assert engine.records.host_bytes <= 30_000 < engine.records.disk_bytes


@pytest.mark.parametrize("name", CASES)
def test_records_hold_what_the_checkpoint_has(case, name):
    """Every tensor of an expert, each rounded up to 16 bytes, and its very bytes."""
    made = case(name).made
    tensors = made.tensors()
    model, engine = finemoe.load(made.folder, 0.5, "on-demand")
    first = model.config.num_hidden_layers - len(engine.layers)
    with engine:
        for number, layout in enumerate(engine.records.layouts):
            if name == "qwen3_moe_fp8_one_plain_layer" and number == 1:
                assert layout.packing is None
                continue
            assert layout.packing.formats == next(formats for kind, formats in FORMATS.items() if kind in name)
            for expert in (0, EXPERTS - 1):
                own = of_expert(tensors, first + number, expert)
                assert layout.nbytes == sum(-(-tensor.nbytes // 16) * 16 for tensor in own)
                record = engine.records.record(number, expert)
                held = [bytes_of(view) for view in layout.views(record, expert).values()]
                assert sorted(held) == sorted(map(bytes_of, own))


def of_expert(tensors: dict[str, torch.Tensor], layer: int, expert: int) -> list[torch.Tensor]:
    """One expert's tensors in a checkpoint."""
    stem = f"model.layers.{layer}.mlp.experts."
    names = [name for name in tensors if name.startswith(stem)]
    apart = [tensors[name] for name in names if name.startswith(f"{stem}{expert}.")]
    return apart or [tensors[name][expert] for name in names]


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", CASES)
def test_whole_models_are_unpacked_alike(case, name):
    """What `record` runs: the same weights, all of them, and outputs."""
    found = case(name)
    model, expected = whole_model(str(found.made.folder), "auto").eval(), reference(found.made).state_dict()
    state = model.state_dict()
    assert list(state) == list(expected)
    for key, tensor in expected.items():
        assert state[key].dtype == tensor.dtype, key
        assert torch.equal(state[key], tensor), key
    assert_equal(outputs_of(model), found.outputs())


@pytest.mark.parametrize("name", [name for name in CASES if "ragged" not in name])
def test_both_references_are_one(case, name):
    """Ours, written out value by value, is what Transformers makes of whole blocks."""
    made = case(name).made
    expected = dequantised(made.folder).state_dict()
    for key, tensor in naive(made).state_dict().items():
        assert tensor.dtype == expected[key].dtype, key
        assert torch.equal(tensor, expected[key]), key


def test_experts_are_unpacked_where_they_are_needed(case):
    """A room for each slot keeps them; one room holds the last one only."""
    counts = {}
    for slots in ("packed", "unpacked"):
        model, engine = finemoe.load(case(FEW[0]).made.folder, 1.0, "on-demand", slots=slots)
        with engine, torch.no_grad():
            model(**prompts())
            first = engine.parts.unpacker.num_unpacked
            model(**prompts())
            counts[slots] = first, engine.parts.unpacker.num_unpacked - first
    assert counts["packed"][0] == counts["packed"][1] == counts["unpacked"][0] > 0
    assert counts["unpacked"][1] == 0
