"""Everything in a GGUF file except its experts, converted to parameters by Transformers, one tensor at a time.

Transformers unpacks the whole file before it loads any of it. Here its own name map, unpacking and reordering are applied to one
tensor when that tensor is loaded.
"""

import threading
from importlib import import_module
from typing import Any

import torch

from finemoe.errors import FinemoeError
from finemoe.runtime.gguf_file import GgufFile, GgufTensor

_INSTEAD = "use the model's safetensors checkpoint"
_LLAMA_NAMES = {"mixtral": "llama"}  # llama.cpp's name of an architecture that is missing from Transformers' table


def rest_of(file: GgufFile, model: Any, dtype: torch.dtype, experts: set[str]) -> dict[str, Any]:
    """A file's tensors by the model's names, unread, in the form of Transformers' loading step.

    Args:
        file: the file.
        model: the model.
        dtype: type of the model, in which tensors are returned.
        experts: names of the experts' tensors, which are left out.
    Raises:
        FinemoeError: there are unknown tensors in a model that Transformers does not read from a GGUF file. In a model that it
            does read, Transformers leaves them out, and so does this function.
    """
    legacy = import_module("transformers.modeling_gguf_pytorch_utils")
    processor = legacy.TENSOR_PROCESSORS.get(file.architecture, legacy.TensorProcessor)(config=model.config.to_dict())
    kind = model.config.model_type
    names = legacy.get_gguf_hf_weights_map(model, processor, model_type=_LLAMA_NAMES.get(kind, kind))
    if kind in _LLAMA_NAMES and (others := sorted(file.tensors.keys() - names.keys() - experts)):
        raise FinemoeError(f"{file.path}: the file holds {others[0]}, for which {type(model).__name__} has no weight; {_INSTEAD}")
    turn = threading.Lock()
    return {
        names[name]: _Unread(file, tensor, processor, names, dtype, turn)
        for name, tensor in file.tensors.items()
        if name in names
    }


class _Unread:
    """A tensor that is unpacked when it is indexed, one at a time."""

    def __init__(
        self, file: GgufFile, tensor: GgufTensor, processor: Any, names: dict[str, str], dtype: torch.dtype, turn: Any
    ) -> None:
        self._file, self._tensor, self._processor = file, tensor, processor
        self._names, self._dtype, self._turn = names, dtype, turn

    def __getitem__(self, _: Any) -> torch.Tensor:
        package = import_module("gguf")
        with self._turn:
            stored = self._file.read(self._tensor)
            if stored.dtype == torch.bfloat16:
                stored = stored.view(torch.uint8)  # NumPy has no bfloat16; the package accepts bytes
            values = package.dequantize(stored.numpy(), package.GGMLQuantizationType(self._tensor.type_id))
            made = self._processor.process(
                weights=values, name=self._tensor.name, tensor_key_mapping=self._names, parsed_parameters={"tensors": {}}
            )
            own = torch.empty(made.weights.shape, dtype=self._dtype)  # torch's memory starts at a multiple of 64
            own.copy_(torch.from_numpy(made.weights))
            self._file.close()
            return own

    def get_dtype(self) -> str:
        """A type of weights in safetensors' notation; Transformers asks for it before it reads."""
        return "F32"
