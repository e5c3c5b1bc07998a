"""`expert_format` loses what its format rounds away, and nothing else: such a model is the eager one of rounded weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import finemoe
from finemoe.errors import FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.policies import LIVE_POLICIES
from tests.packed.checkpoints import mxfp4
from tests.packed.numerics import FP4, float32, nibble, quantize_fp8, rounded
from tests.packed.outputs import assert_equal, outputs
from tests.runtime.models import FAMILIES, ODD_FAMILY, build, padded_batch

ALL = (*FAMILIES, ODD_FAMILY)


def fp8_worth(matrix: np.ndarray) -> np.ndarray:
    """Blocks of 128 × 128, a float32 scale each."""
    return quantize_fp8(matrix, (128, 128), "float32")[2]


def mxfp4_worth(matrix: np.ndarray) -> np.ndarray:
    """Value after value; blocks of 32 along a row, the last of which may be shorter; ties to the even code."""
    worth = np.zeros_like(matrix)
    for row, column in np.ndindex(matrix.shape):
        block = matrix[row, column - column % 32 : column - column % 32 + 32]
        power = np.float32(2.0 ** (int(np.floor(np.log2(np.abs(block).max() or 1.0))) - 2))
        off = np.abs(FP4 - abs(matrix[row, column]) / power)
        code = min(range(8), key=lambda number, off=off: (off[number], number % 2))
        worth[row, column] = nibble(code + 8 * int(np.signbit(matrix[row, column]))) * power
    return worth


def int8_worth(matrix: np.ndarray) -> np.ndarray:
    """A float32 scale for each row."""
    worth = np.zeros_like(matrix)
    for row, values in enumerate(matrix):
        scale = np.abs(values).max() / np.float32(127)
        worth[row] = np.clip(np.rint(values / scale), -127, 127).astype(np.float32) * scale
    return worth


WORTH: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mxfp4": mxfp4_worth, "fp8": fp8_worth, "int8": int8_worth}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Callable[[str], Path]:
    """Tiny models in bf16 by family, each saved once."""
    folders: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            model = build(family, torch.bfloat16)
            for name, parameter in model.named_parameters():
                if ".experts." in name:
                    parameter.data *= 8  # what experts give shall matter
            model.save_pretrained(folders[family])
        return folders[family]

    return of


@pytest.fixture(scope="module")
def expected(checkpoint) -> Callable[..., list[torch.Tensor]]:
    """What eager makes of rounded weights, by family, format and type; None is no format."""
    found: dict[tuple[str, str | None, str], list[torch.Tensor]] = {}

    def of(family: str, form: str | None, dtype: str = "bfloat16") -> list[torch.Tensor]:
        if (family, form, dtype) not in found:
            told = {"dtype": getattr(torch, dtype), "experts_implementation": "eager"}
            model = AutoModelForCausalLM.from_pretrained(checkpoint(family), **told).eval()
            if form is not None:
                round_experts(model, form)
            found[family, form, dtype] = outputs_of(model)
        return found[family, form, dtype]

    return of


@torch.no_grad()
def round_experts(model: PreTrainedModel, form: str) -> None:
    """Every matrix of every expert becomes what it is worth once it is packed; where each begins in memory stays."""
    for layer in find_moe_layers(model):
        for parameter in layer.expert_parameters().values():
            for expert in range(layer.num_experts if parameter.dim() == 3 else 0):
                matrix = float32(parameter[expert])
                worth = WORTH[form](matrix.T.copy()).T.copy() if layer.experts.is_transposed else WORTH[form](matrix)
                parameter[expert] = rounded(worth, parameter.dtype)


def outputs_of(model: PreTrainedModel) -> list[torch.Tensor]:
    """See `outputs`."""
    return outputs(model, padded_batch())


@pytest.mark.parametrize("memory", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("form", WORTH)
@pytest.mark.parametrize("family", ALL)
def test_it_is_eager_with_rounded_weights(checkpoint, expected, family, form, memory):
    model, engine = finemoe.load(checkpoint(family), memory, expert_format=form)
    with engine:
        assert all(form in layout.packing.formats for layout in engine.records.layouts)
        assert_equal(outputs_of(model), expected(family, form))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("form", WORTH)
@pytest.mark.parametrize("family", ALL)
def test_in_another_type(checkpoint, expected, family, form, dtype):
    """A checkpoint's weights are rounded to the type that is asked for, then packed."""
    model, engine = finemoe.load(checkpoint(family), 0.5, "on-demand", dtype=dtype, expert_format=form)
    with engine:
        assert_equal(outputs_of(model), expected(family, form, dtype))


@pytest.mark.parametrize("policy", LIVE_POLICIES)
def test_under_every_policy(checkpoint, expected, policy):
    model, engine = finemoe.load(checkpoint("mixtral"), 0.25, policy, expert_format="mxfp4")
    with engine:
        assert_equal(outputs_of(model), expected("mixtral", "mxfp4"))


@pytest.mark.parametrize("options", [{"slots": "unpacked"}, {"devices": 2}, {"host_memory": "10KB"}], ids=str)
@pytest.mark.parametrize("form", WORTH)
def test_under_other_options(checkpoint, expected, form, options):
    model, engine = finemoe.load(checkpoint(ODD_FAMILY), 0.4, expert_format=form, **options)
    with engine:
        assert_equal(outputs_of(model), expected(ODD_FAMILY, form))


@pytest.mark.parametrize("family", ALL)
def test_without_it_nothing_is_lost_and_with_it_something_is(checkpoint, expected, family):
    model, engine = finemoe.load(checkpoint(family), 0.5)
    with engine:
        assert all(layout.packing is None for layout in engine.records.layouts)
        assert_equal(outputs_of(model), expected(family, None))
    prefills = [expected(family, form)[0] for form in (None, *WORTH)]
    assert all(not torch.equal(one, other) for number, one in enumerate(prefills) for other in prefills[:number])


@pytest.mark.parametrize("form", WORTH)
def test_random_weights_may_be_packed(checkpoint, form):
    """The same random weights as without a format, rounded."""
    source = f"random:{checkpoint('mixtral')}"
    _, engine = finemoe.load(source, 1.0, "on-demand", dtype="float32")
    with engine:
        plain = {name: view.clone() for name, view in engine.records.layouts[1].views(engine.records.record(1, 3), 3).items()}
    _, engine = finemoe.load(source, 1.0, "on-demand", dtype="float32", expert_format=form)
    with engine:
        layout = engine.records.layouts[1]
        found = {name: torch.empty_like(tensor) for name, tensor in plain.items()}
        layout.packing.unpack(layout.views(engine.records.record(1, 3), 3), found)
    for name, tensor in plain.items():
        assert torch.equal(found[name], rounded(WORTH[form](float32(tensor)), torch.float32)), name


def refused(source: str | Path, form: str, match: str) -> None:
    with pytest.raises(FinemoeError, match=match) as caught:
        finemoe.load(source, 0.5, expert_format=form)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", ["int4", "FP8", "", "bf16"])
def test_an_unknown_format(checkpoint, form):
    for source in (checkpoint("mixtral"), f"random:{checkpoint('mixtral')}", "nowhere"):
        refused(source, form, rf"^expert_format is '{form}'; use 'fp8', 'mxfp4', 'int8', or omit it to stay exact$")


@pytest.mark.parametrize("form", WORTH)
def test_what_is_packed_already(tmp_path, form):
    """Also in the same format, and where only a configuration says so."""
    mxfp4(tmp_path, 32, 32)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"
    for source in (tmp_path, f"random:{tmp_path}"):
        refused(source, form, rf"experts are already packed; omit expert_format='{form}'$")
