"""Loads the model of a GGUF file with Transformers' own `from_pretrained`, without its experts (see `pretrained`).

Transformers has two readers. The newer one, used for the architectures that it knows, reads tensor by tensor. The older one
unpacks the whole file before the loading step: finemoe makes it find an empty file, and passes everything except the experts to
the loading step.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.gguf.reader import load_gguf_state_dict
from transformers.quantizers.quantizer_gguf import GgufHfQuantizer
from transformers.utils.quantization_config import GgufConfig

from finemoe.errors import FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.runtime.expert_layout import LINE_BYTES
from finemoe.runtime.gguf_checkpoint import GgufCheckpoint
from finemoe.runtime.gguf_config import config_of_gguf
from finemoe.runtime.gguf_file import GgufFile
from finemoe.runtime.gguf_parts import parts_of, tensors_of
from finemoe.runtime.gguf_rest import rest_of
from finemoe.runtime.pretrained import LoadingStep, in_one_line

_INSTEAD = "use the model's safetensors checkpoint"


def gguf_model_without_experts(path: Path, dtype: Any) -> tuple[PreTrainedModel, GgufCheckpoint]:
    """Load the model of a file with its experts' parameters on the meta device.

    Args:
        path: the file.
        dtype: as in `pretrained.type_of`. "auto" is Transformers' choice: float32, except for newer architectures and for files
            without blocks.
    Returns:
        The model, and the checkpoint to read its experts from.
    Raises:
        FinemoeError: the file is damaged or lacks tensors, or Transformers does not know its architecture.
    """
    step = GgufStep(GgufFile(path))
    model = step.from_pretrained(dtype)
    step.require_rest(model)
    for tensor in (*model.parameters(), *model.buffers()):
        _align(tensor)
    assert step.gguf is not None
    return model, step.gguf


class GgufStep(LoadingStep):
    """One call of `from_pretrained` for a GGUF file.

    Attributes:
        gguf: the file's experts; None before loading.
    """

    def __init__(self, file: GgufFile) -> None:
        super().__init__(str(file.path.parent), keeps_experts=False)
        self._file = file
        self.gguf: GgufCheckpoint | None = None

    def _config(self) -> Any:
        with in_one_line(f"{self._file.path}: cannot configure {self._file.architecture!r}: ", lambda: f"; {_INSTEAD}"):
            return config_of_gguf(self._file)

    def _dequantizing(self, config: Any) -> dict[str, Any]:
        return {
            "gguf_file": self._file.path.name,
            "config": config,
            "quantization_config": GgufConfig(dequantize=True),  # kernels would round differently
        }

    def _remedy(self) -> str:
        return f" ({self._file.path.name}); fetch the file again, or {_INSTEAD}"

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with super()._watched(), _unread():
            yield

    def _read_names(self, model: Any, files: Any, load_config: Any) -> None:
        is_new = load_config.hf_quantizer.supported
        arithmetic = load_config.dtype if is_new else torch.float32
        for layer in find_moe_layers(model):
            parts_of(self._file, layer, arithmetic)  # refuses a file that lacks tensors before anything is read
        self.gguf = GgufCheckpoint(self._file, arithmetic)

    def _leave_out(self, model: Any, files: Any, load_config: Any) -> tuple[dict[str, Any], Any]:
        layers = find_moe_layers(model)
        experts = {f"{layer.name}.{name}": one for layer in layers for name, one in layer.expert_parameters().items()}
        self._experts = set(experts)
        tensors = {tensor.name: tensor for layer in layers for tensor in tensors_of(self._file, layer)}
        if load_config.hf_quantizer.supported:
            read = load_gguf_state_dict(load_config.hf_quantizer.header)
            absent = {name: self._file.on_meta(tensor) for name, tensor in tensors.items()}
        else:
            read = rest_of(self._file, model, load_config.dtype, set(tensors))
            absent = {name: torch.empty(one.shape, dtype=one.dtype, device="meta") for name, one in experts.items()}
        places = (load_config.device_map or {"": "cpu"}) | dict.fromkeys(experts, "meta")
        return read | absent, replace(load_config, device_map=places)

    def _require_right(self, model: Any, info: Any) -> None:
        for name, found, wanted in info.mismatched_keys:
            raise FinemoeError(
                f"{self._file.path}: the file has shape {tuple(found)}, not {tuple(wanted)}, for {name}; "
                f"fetch the file again, or {_INSTEAD}"
            )
        for name, reason in info.conversion_errors.items():
            said = reason.strip().splitlines()[-1]
            raise FinemoeError(
                f"{self._file.path}: the file's tensors do not form {name} ({said}); fetch the file again, or {_INSTEAD}"
            )
        super()._require_right(model, info)
        self._file.close()

    def _files(self) -> str:
        return f" (read: {self._file.path.name})"


@contextmanager
def _unread() -> Iterator[None]:
    """Make Transformers' older reader find nothing, for this thread only, while `LoadingStep` has replaced the loading step."""
    thread, original = threading.get_ident(), GgufHfQuantizer.get_state_dict

    def get_state_dict(self: Any, checkpoint_file: str, model: Any) -> dict[str, Any]:
        if threading.get_ident() == thread:
            return {}
        found: dict[str, Any] = original(self, checkpoint_file, model)
        return found

    GgufHfQuantizer.get_state_dict = get_state_dict  # type: ignore[method-assign]
    try:
        yield
    finally:
        GgufHfQuantizer.get_state_dict = original  # type: ignore[method-assign]


def _align(tensor: torch.Tensor) -> None:
    """Move a weight from NumPy's memory, which has any alignment, to torch's, so that results do not depend on its address."""
    if tensor.device.type == "cpu" and tensor.data_ptr() % LINE_BYTES:
        tensor.data = tensor.data.clone()
