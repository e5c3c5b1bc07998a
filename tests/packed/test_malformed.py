"""Packed checkpoints that are damaged, or that nobody can unpack, are refused in one line, and nothing stays behind."""

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import finemoe
from finemoe.errors import EngineError, FinemoeError
from finemoe.runtime.pretrained import whole_model
from tests.packed.checkpoints import (
    EXPERTS,
    ONE,
    compressed_tensors,
    dequantised,
    edit,
    edit_config,
    fp8,
    mxfp4,
    pack_quantized,
    prompts,
)

GATE = "model.layers.1.mlp.experts.2.gate_proj.weight"
DOWN = "model.layers.1.mlp.experts.2.down_proj.weight"
DENSE = "model.layers.1.self_attn.q_proj.weight"
BLOCKS, SCALES = (f"model.layers.1.mlp.experts.down_proj_{part}" for part in ("blocks", "scales"))
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    """Folders of sound checkpoints, to be copied."""
    makers = {"fp8": fp8, "mxfp4": mxfp4, "int4": lambda folder: pack_quantized(folder, 4, 32)}
    return {kind: make(tmp_path_factory.mktemp(kind)).folder for kind, make in makers.items()}


@pytest.fixture
def copy(sound, tmp_path) -> Callable[[str], Path]:
    """A copy of one of them."""

    def of(kind: str) -> Path:
        for file in sound[kind].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    return of


def refusal(folder: Path, load: Callable[[Path], Any], *words: str) -> str:
    """The one line, which names the folder (or its file) and all the words."""
    before = set(threading.enumerate())
    with pytest.raises(FinemoeError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message, message
    assert str(folder) in message, message
    for word in words:
        assert word in message, message
    left = [thread.name for thread in threading.enumerate() if thread not in before and thread.name.startswith("finemoe")]
    assert not left, left
    return message


def streamed(folder: Path) -> None:
    finemoe.load(folder, 0.5, "on-demand")


def whole(folder: Path) -> None:
    whole_model(str(folder), "auto")


def both(test):
    """`finemoe.load`, and the whole models of `finemoe.record`."""
    return pytest.mark.parametrize("load", [streamed, whole])(test)


# Tensors


def without(*names: str) -> Callable[[Tensors], None]:
    def function(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return function


def replaced(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], None]:
    def function(tensors: Tensors) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return function


def without_all(ending: str, beginning: str = "model.layers.1.") -> Callable[[Tensors], None]:
    def function(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(beginning) and name.endswith(ending)]:
            del tensors[name]

    return function


FP8: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "scale of one expert lost": (without(f"{GATE}_scale_inv"), GATE),
    "scale of the first expert lost": (without(f"{GATE.replace('.2.', '.0.')}_scale_inv"), GATE.replace(".2.", ".0.")),
    "all scales of a projection lost": (without_all("up_proj.weight_scale_inv"), "up_proj.weight"),
    "all scales of a layer's experts lost": (without_all("scale_inv", "model.layers.1.mlp"), "layers.1.mlp.experts"),
    "all scales lost": (without_all("scale_inv", ""), "_proj.weight"),
    "scale of a dense layer lost": (without(f"{DENSE}_scale_inv"), DENSE),
    "scales of more rows": (replaced(f"{GATE}_scale_inv", lambda scales: torch.cat((scales, scales))), f"{GATE}_scale_inv"),
    "scales of fewer columns": (replaced(f"{DOWN}_scale_inv", lambda scales: scales[:, :-1]), f"{DOWN}_scale_inv"),
    "scales transposed": (replaced(f"{GATE}_scale_inv", lambda scales: scales.t()), f"{GATE}_scale_inv"),
    "scales in a row": (replaced(f"{GATE}_scale_inv", lambda scales: scales.flatten()), f"{GATE}_scale_inv"),
    "scales of a dense layer of fewer rows": (replaced(f"{DENSE}_scale_inv", lambda one: one[:-1]), f"{DENSE}_scale_inv"),
    "all scales of another shape": (
        lambda tensors: tensors.update({name: one[:1] for name, one in tensors.items() if "experts" in name and "scale" in name}),
        "_scale_inv",
    ),
    "weight of one expert lost": (without(DOWN), "down_proj"),
    "weight and scale of one expert lost": (without(DOWN, f"{DOWN}_scale_inv"), "down_proj"),
    "weight of one expert of fewer rows": (replaced(DOWN, lambda weight: weight[:-16]), "down_proj"),
    "one expert in integers": (replaced(DOWN, lambda weight: weight.view(torch.int8)), "down_proj"),
    "an expert's activation scale": (
        lambda tensors: tensors.update({GATE.replace("weight", "activation_scale"): torch.tensor(0.5)}),
        "gate_proj.activation_scale",
    ),
    "a dense layer's activation scale": (
        lambda tensors: tensors.update({DENSE.replace("weight", "activation_scale"): torch.tensor(0.5)}),
        "q_proj.activation_scale",
    ),
}
MXFP4: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "scales lost": (without(SCALES), "down_proj"),
    "blocks lost": (without(BLOCKS), "down_proj"),
    "both lost": (without(BLOCKS, SCALES), "down_proj"),
    "fewer blocks a row": (replaced(BLOCKS, lambda blocks: blocks[:, :, :-1]), "down_proj"),
    "fewer blocks and scales a row": (
        lambda tensors: tensors.update({BLOCKS: tensors[BLOCKS][:, :, :-1].clone(), SCALES: tensors[SCALES][:, :, :-1].clone()}),
        "down_proj",
    ),
    "fewer rows of scales": (replaced(SCALES, lambda scales: scales[:, :-1]), "down_proj"),
    "fewer experts": (replaced(BLOCKS, lambda blocks: blocks[:-1]), "down_proj"),
    "blocks of 8": (replaced(BLOCKS, lambda blocks: blocks[..., :8]), "down_proj"),
    "bytes in a row": (replaced(BLOCKS, lambda blocks: blocks.flatten(2)), "down_proj"),
    "scales as floats": (replaced(SCALES, lambda scales: torch.exp2(scales.float() - 127)), "down_proj"),
    "biases lost": (without(BLOCKS.replace("_blocks", "_bias")), "down_proj_bias"),
}
_STEM = GATE.removesuffix("weight")
INT4: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "scale of one expert lost": (without(f"{_STEM}weight_scale"), "gate"),
    "words of one expert lost": (without(f"{_STEM}weight_packed"), "gate"),
    "all scales of a projection lost": (without_all("up_proj.weight_scale"), "up_proj"),
    "scales of fewer groups": (replaced(f"{_STEM}weight_scale", lambda scales: scales[:, :-1]), "gate"),
    "fewer words": (replaced(f"{_STEM}weight_packed", lambda words: words[:, :-1]), "gate"),
    "another shape named": (replaced(f"{_STEM}weight_shape", lambda shape: shape // 2), "gate"),
    "zero points nobody asked for": (
        lambda tensors: tensors.update({f"{_STEM}weight_zero_point": torch.zeros(12, 2, dtype=torch.int32)}),
        "zero_point",
    ),
}


FAULTS = {"fp8": FP8, "mxfp4": MXFP4, "int4": INT4}


@both
@pytest.mark.parametrize(("kind", "fault"), [(kind, fault) for kind, faults in FAULTS.items() for fault in faults])
def test_tensors(copy, kind, fault, load):
    change, name = FAULTS[kind][fault]
    folder = copy(kind)
    edit(folder, change)
    refusal(folder, load, name)


@pytest.mark.parametrize("fault", ["scale of one expert lost", "scales transposed", "a dense layer's activation scale"])
def test_a_refusal_says_what_to_do(copy, fault):
    change, name = FP8[fault]
    folder = copy("fp8")
    edit(folder, change)
    assert "; " in refusal(folder, streamed, name)


@both
@pytest.mark.parametrize("kind", ["fp8", "mxfp4", "int4"])
@pytest.mark.parametrize("length", [100, -50])
def test_truncated_files(copy, kind, load, length):
    folder = copy(kind)
    (folder / ONE).write_bytes((folder / ONE).read_bytes()[:length])
    refusal(folder, load, ONE)


# Configurations


@both
@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "torchao", "hqq", "foo"])
def test_methods_that_cannot_be_unpacked(copy, method, load):
    folder = copy("fp8")
    edit_config(folder, lambda config: config.update(quantization_config={"quant_method": method, "bits": 4}))
    refusal(folder, load, method)


@both
@pytest.mark.parametrize("flag", ["load_in_4bit", "load_in_8bit"])
def test_bitsandbytes_without_its_name(copy, flag, load):
    folder = copy("fp8")
    edit_config(folder, lambda config: config.update(quantization_config={flag: True}))
    refusal(folder, load, "bitsandbytes")


@both
@pytest.mark.parametrize(
    "told", [{}, {"bits": 4}, {"quant_method": None}, {"quant_method": 7}, {"quant_method": ["fp8"]}], ids=str
)
def test_no_method_at_all(copy, told, load):
    folder = copy("fp8")
    edit_config(folder, lambda config: config.update(quantization_config=told))
    refusal(folder, load)


@both
@pytest.mark.parametrize("told", ["fp8", 7, ["fp8"]], ids=str)
def test_a_quantisation_that_is_no_mapping(copy, told, load):
    folder = copy("fp8")
    edit_config(folder, lambda config: config.update(quantization_config=told))
    refusal(folder, load)


@both
def test_static_activation_scales(copy, load):
    folder = copy("fp8")
    edit_config(folder, lambda config: config["quantization_config"].update(activation_scheme="static"))
    refusal(folder, load, "static")


@both
@pytest.mark.parametrize("block", [[16], [0, 16], "16", [32, 16], [-16, 16], {"rows": 16}], ids=str)
def test_blocks_that_are_not_the_checkpoint_s(copy, block, load):
    folder = copy("fp8")
    edit_config(folder, lambda config: config["quantization_config"].update(weight_block_size=block))
    refusal(folder, load)


@both
@pytest.mark.parametrize("kind", ["fp8", "mxfp4", "int4"])
def test_packed_tensors_and_no_word_of_them(copy, kind, load):
    """from_pretrained would cast bytes to weights, or leave them out and invent some."""
    folder = copy(kind)
    edit_config(folder, lambda config: config.pop("quantization_config"))
    refusal(folder, load, "layers.")


@both
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32], ids=str)
@pytest.mark.parametrize("name", [DENSE, GATE, "lm_head.weight", "model.norm.weight"])
def test_one_tensor_of_a_plain_checkpoint_is_no_weight(copy, name, dtype, load):
    folder = copy("fp8")
    edit_config(folder, lambda config: config.pop("quantization_config"))

    def plainly(tensors: Tensors) -> None:
        for key in [key for key in tensors if key.endswith("_scale_inv")]:
            del tensors[key]
        for key, tensor in tensors.items():
            tensors[key] = tensor.float().bfloat16()
        tensors[name] = tensors[name].float().to(dtype)

    edit(folder, plainly)
    refusal(folder, load, name)


@both
def test_the_other_method_s_configuration(copy, load):
    folder = copy("fp8")
    edit_config(folder, lambda config: config.update(quantization_config={"quant_method": "mxfp4"}))
    refusal(folder, load, "layers.")


_GROUP = compressed_tensors(4, 32)["config_groups"]["group_0"]["weights"]
COMPRESSED: dict[str, dict[str, Any]] = {
    "int8, not packed": {"format": "int-quantized"},
    "nvfp4": {"format": "nvfp4-pack-quantized"},
    "of no format": {"format": "nothing"},
    "without groups": {"config_groups": {}},
    "asymmetric": {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {**_GROUP, "symmetric": False}}}},
}


@both
@pytest.mark.parametrize("change", COMPRESSED)
def test_compressed_tensors_of_another_format(copy, change, load):
    folder = copy("int4")
    told = compressed_tensors(4, 32) | COMPRESSED[change]
    edit_config(folder, lambda config: config.update(quantization_config=told))
    refusal(folder, load)


@both
def test_nvfp4_whose_second_scale_transformers_loses(copy, load):
    """Its experts would be thousands of times too large, in silence: they are unpacked without `weight_global_scale`."""
    folder = copy("int4")

    def as_nvfp4(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("weight_packed")]:
            stem = name.removesuffix("packed")
            rows, columns = tensors.pop(f"{stem}shape").tolist()
            tensors[name] = torch.full((rows, columns // 2), 0x21, dtype=torch.uint8)
            tensors[f"{stem}scale"] = torch.ones(rows, columns // 16).to(torch.float8_e4m3fn)
            tensors[f"{stem}global_scale"] = torch.tensor([3000.0])

    edit(folder, as_nvfp4)
    weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16, "dynamic": False}
    told = compressed_tensors(
        4, 16, format="nvfp4-pack-quantized", config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}
    )
    edit_config(folder, lambda config: config.update(quantization_config=told))
    refusal(folder, load, "nvfp4")


# What is no fault


def test_no_number_among_scales_is_the_checkpoint_s_own(copy):
    """Whatever a scale is, the result is Transformers'."""
    folder = copy("fp8")

    def spoil(tensors: Tensors) -> None:
        tensors[f"{GATE}_scale_inv"][0, 0] = float("nan")
        tensors[f"{DOWN}_scale_inv"][0, 0] = float("inf")

    edit(folder, spoil)
    expected = dequantised(folder).state_dict()
    model, engine = finemoe.load(folder, 0.5, "on-demand")
    with engine:
        layout = engine.records.layouts[1]
        found = {name: torch.empty(layer[2].shape, dtype=layer.dtype) for name, layer in of_layer(expected).items()}
        layout.packing.unpack(layout.views(engine.records.record(1, 2), 2), found)
        with torch.no_grad(), pytest.raises(EngineError, match="emitted NaN"):
            model(**prompts())
    for name, weight in of_layer(expected).items():
        assert not weight[2].isfinite().all()
        assert torch.equal(found[name].isnan(), weight[2].isnan())
        assert torch.equal(found[name].nan_to_num(), weight[2].nan_to_num())


def of_layer(state: Tensors) -> Tensors:
    """The second layer's experts."""
    return {name: state[f"model.layers.1.mlp.experts.{name}"] for name in ("gate_up_proj", "down_proj")}


MIXED: dict[str, tuple[str, Callable[[Tensors], None]]] = {
    "one weight in e5m2": ("fp8", replaced(DOWN, lambda weight: weight.float().to(torch.float8_e5m2))),
    "one weight in bfloat16": ("fp8", replaced(DOWN, lambda weight: weight.bfloat16())),
    "one scale in bfloat16": ("fp8", replaced(f"{DOWN}_scale_inv", lambda scales: scales.bfloat16())),
    "one scale in float64": ("fp8", replaced(f"{DOWN}_scale_inv", lambda scales: scales.double())),
    "all scales but the first in float32": (
        "fp8",
        replaced(f"{DOWN.replace('.2.', '.0.')}_scale_inv", lambda scales: scales.bfloat16()),
    ),
    "one scale as a byte": ("fp8", replaced(f"{DOWN}_scale_inv", lambda scales: (scales.log2().round() + 127).to(torch.uint8))),
    "one scale for all": ("fp8", replaced(f"{DOWN}_scale_inv", lambda scales: scales[:1, :1])),
    "one scale in float32": ("int4", replaced(f"{_STEM}weight_scale", lambda scales: scales.float() * 1.001)),
    "a shape in int32": ("int4", replaced(f"{_STEM}weight_shape", lambda shape: shape.int())),
    "biases in float32": ("mxfp4", replaced(BLOCKS.replace("_blocks", "_bias"), lambda bias: bias.float() * 1.001)),
}


@pytest.mark.parametrize("kind", MIXED)
def test_experts_of_different_types_are_refused_or_equal(copy, kind):
    """What records hold is of one type; a cast would change it."""
    method, change = MIXED[kind]
    folder = copy(method)
    edit(folder, change)
    model, engine = loaded_or_refused(folder)
    if model is not None:
        with engine, torch.no_grad():
            assert torch.equal(model(**prompts()).logits, dequantised(folder)(**prompts()).logits)


def loaded_or_refused(folder: Path) -> Any:
    """The model and its engine, or None twice."""
    with suppress(FinemoeError):
        return finemoe.load(folder, 0.5, "on-demand")
    return None, None


def test_a_tensor_too_many_is_left_out_as_transformers_does(copy):
    folder = copy("fp8")
    edit(folder, lambda tensors: tensors.update({"model.layers.9.mlp.experts.0.gate_proj.weight": tensors[GATE].clone()}))
    model, engine = finemoe.load(folder, 0.5, "on-demand")
    with engine, torch.no_grad():
        assert torch.equal(model(**prompts()).logits, dequantised(folder)(**prompts()).logits)


@both
def test_an_expert_too_many(copy, load):
    folder = copy("fp8")
    extra = GATE.replace(".2.", f".{EXPERTS}.")
    edit(
        folder, lambda tensors: tensors.update({extra: tensors[GATE].clone(), f"{extra}_scale_inv": tensors[f"{GATE}_scale_inv"]})
    )
    refusal(folder, load, "gate")
