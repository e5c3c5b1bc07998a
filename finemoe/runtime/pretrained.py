"""Loads a model with Transformers' own `from_pretrained`, whole or without its experts, and refuses made-up weights.

`from_pretrained` alone decides on class, type, files, adapter, names, conversions and tied weights. One change leaves the experts
out: where it passes the resolved files to its loading step, finemoe makes that step put the experts' parameters on the meta
device. Their tensors are then named, checked, converted and counted there, and none is read.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    PreTrainedModel,
)
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import find_adapter_config_file

from finemoe.errors import FinemoeError, first_line
from finemoe.models.layers import find_moe_layers
from finemoe.packing.methods import quantization_of
from finemoe.runtime.blockwise import replace_in
from finemoe.runtime.checkpoint import Checkpoint
from finemoe.runtime.quantization import require_known
from finemoe.runtime.remarks import without_progress, without_warnings
from finemoe.runtime.shards import Shards

_AUTO: tuple[tuple[Any, Any], ...] = (
    (AutoModelForCausalLM, MODEL_FOR_CAUSAL_LM_MAPPING),
    (AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    (AutoModelForMultimodalLM, MODEL_FOR_MULTIMODAL_LM_MAPPING),
)
_HALVES = (torch.bfloat16, torch.float16)
_NUM_NAMED = 3  # tensors named in a refusal
_NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_CONVERT = "load the model with from_pretrained, and save_pretrained into another folder"
_AGAIN = "fetch it again, or check that it is this model's"

_loading = threading.RLock()  # held while the loading step is replaced: each call restores what it found


def whole_model(source: str, dtype: Any) -> PreTrainedModel:
    """Load a model as `from_pretrained` does, with eager experts.

    Args:
        source: a folder or hub id.
        dtype: type of the weights, as in `type_of`.
    Raises:
        FinemoeError: `from_pretrained` fails or would fill missing weights with random numbers, or there is an adapter.
    """
    step = LoadingStep(source, keeps_experts=True)
    return step.from_pretrained(dtype)


def model_without_experts(source: str, dtype: Any) -> tuple[PreTrainedModel, Checkpoint]:
    """Load what `whole_model` loads, but with the experts' parameters on the meta device.

    Returns:
        The model, and the checkpoint to read its experts from.
    Raises:
        FinemoeError: as `whole_model`; also if the quantisation is not supported, or there are no safetensors files.
    """
    step = LoadingStep(source, keeps_experts=False)
    model = step.from_pretrained(dtype)
    if step.checkpoint is None:
        raise FinemoeError(f"{source}: Transformers reads this checkpoint in a way that finemoe.load cannot follow; {_CONVERT}")
    step.require_rest(model)
    return model, step.checkpoint


def type_of(dtype: Any) -> Any:
    """ "auto" or the torch type that `dtype` names, as `from_pretrained` expects it.

    Raises:
        FinemoeError: it is not a floating-point type.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if found == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise FinemoeError(f"unknown dtype {dtype!r}; use 'auto', 'bfloat16', 'float16' or 'float32'")


def class_of(config: Any) -> Any:
    """The class to build a model from: the configuration's own class if it generates text, else the family's language model, a
    text-only one first.

    Raises:
        FinemoeError: Transformers has neither.
    """
    named = [getattr(transformers, name, None) for name in config.architectures or () if isinstance(name, str)]
    own = [found for found in named if isinstance(found, type) and getattr(found, "config_class", None) is type(config)]
    models = [found for found in own if issubclass(found, PreTrainedModel)]
    generating = [found for found in models if found.can_generate()]
    usual = [auto for auto, mapping in _AUTO if type(config) in mapping]
    for found in (*generating, *usual, *models):
        return found
    raise FinemoeError(f"{type(config).__name__}: Transformers has no model class for this configuration")


def reason_of(error: BaseException) -> str:
    """An exception's message in one line."""
    is_said = str(error).strip() and not isinstance(error, KeyError)
    return first_line(error).rstrip(".") if is_said else f"{type(error).__name__} {error}".strip()


class LoadingStep:
    """One call of `from_pretrained`, with its loading step intercepted.

    Args:
        source: a folder or hub id.
        keeps_experts: False leaves the experts' parameters on the meta device.
    Attributes:
        checkpoint: built from the resolved files; None before loading, and for files other than safetensors.
    """

    def __init__(self, source: str, keeps_experts: bool) -> None:
        self._source, self._keeps_experts = source, keeps_experts
        self.checkpoint: Checkpoint | None = None
        self._experts: set[str] = set()  # names of the parameters that are left out

    def from_pretrained(self, dtype: Any) -> PreTrainedModel:
        """Load the model; see `whole_model`."""
        dtype = type_of(dtype)
        self._require_no_adapter()
        config = self._config()
        if not self._keeps_experts:
            self._require_no_distributed_shards()
        made = class_of(config)
        with in_one_line(f"{self._source}: ", self._remedy):
            unpacking = self._dequantizing(config)
        is_here = Path(self._source).is_dir() or constants.HF_HUB_OFFLINE
        quietly = without_progress() if is_here else nullcontext()  # a download keeps its bar
        silently = without_warnings() if unpacking else nullcontext()  # that all weights are unpacked, which experts are not
        with in_one_line(f"{self._source}: ", self._remedy), self._watched(), quietly, silently, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)  # it is passed only to unpack
            model, info = made.from_pretrained(
                self._source,
                dtype=dtype,
                experts_implementation="eager",
                trust_remote_code=False,
                output_loading_info=True,
                **unpacking,
            )
        if lost := info["missing_keys"]:
            raise self._lacks(lost)
        if isinstance(dtype, torch.dtype) and quantization_of(config) is not None:
            _cast_halves(model, dtype)
        found: PreTrainedModel = model
        return found

    def require_rest(self, model: PreTrainedModel) -> None:
        """Refuse a model that lacks more than its experts, as a conversion that makes both would leave it."""
        tensors = (*model.named_parameters(), *model.named_buffers())
        if stray := [name for name, tensor in tensors if tensor.is_meta and name not in self._experts]:
            raise FinemoeError(
                f"{self._source}: {_listed(stray)} cannot be read without the experts; use finemoe.offload instead"
            )

    def _config(self) -> Any:
        with in_one_line(f"{self._source}: no usable configuration: "):
            return AutoConfig.from_pretrained(self._source, trust_remote_code=False)

    def _require_no_adapter(self) -> None:
        """With peft installed, `from_pretrained` applies an adapter in the folder; without peft it silently ignores it."""
        with in_one_line(f"{self._source}: "):
            file = find_adapter_config_file(self._source)
        if file is not None:
            raise FinemoeError(
                f"{file}: finemoe neither applies nor silently ignores this adapter; merge it "
                "(merge_and_unload of peft) and save the model, or move the adapter's files elsewhere"
            )

    def _dequantizing(self, config: Any) -> dict[str, Any]:
        """Arguments that make `from_pretrained` unpack the weights of a quantised checkpoint."""
        told = quantization_of(config)
        if told is None:
            return {}
        require_known(told, self._source)
        return {"quantization_config": AutoQuantizationConfig.from_dict({**told, "dequantize": True})}

    def _require_no_distributed_shards(self) -> None:
        """Transformers prefers shards of a distributed run to all other files, and reads them whole, past the loading step."""
        if found := [path.name for path in Path(self._source).glob("shard-*-model-*-of-*.safetensors")]:
            raise FinemoeError(
                f"{self._source}: {_listed(found)}: finemoe.load does not read the shards of a distributed run; {_CONVERT}"
            )

    def _remedy(self) -> str:
        """What to do about a source that `from_pretrained` refuses."""
        folder = Path(self._source)
        if not folder.is_dir():
            return ""
        present = [name for name in _NAMES if (folder / name).is_file()]
        if present:
            return f"; check config.json and {present[0]} there, or fetch the checkpoint again"
        if broken := [name for name in _NAMES if (folder / name).is_symlink() or (folder / name).exists()]:
            return f"; {broken[0]} there is not a file, or is a broken link: fetch the checkpoint again"
        found = [path.name for path in folder.iterdir() if path.suffix in _ENDINGS]
        held = f"it contains {_listed(found)}, but " if found else ""
        return f"; {held}neither {_NAMES[0]} nor {_NAMES[1]}: give the weights these names"

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Replace the loading step by `step`, for this thread only.

        It is the one place that every class's `from_pretrained` passes through with the files resolved, the model built on the
        meta device, and nothing read yet. No public argument leaves parameters out: a `device_map` with "meta" wraps the model.
        """
        thread = threading.get_ident()
        with _loading:
            original = PreTrainedModel._load_pretrained_model

            def step(model: Any, state_dict: Any, checkpoint_files: Any, load_config: Any, *more: Any, **named: Any) -> Any:
                if threading.get_ident() != thread:
                    return original(model, state_dict, checkpoint_files, load_config, *more, **named)
                self._read_names(model, checkpoint_files, load_config)
                if not self._keeps_experts:
                    state_dict, load_config = self._leave_out(model, checkpoint_files, load_config)
                with self._doubles_named():
                    outcome = original(model, state_dict, checkpoint_files, load_config, *more, **named)
                self._require_right(model, outcome[0])
                return outcome

            PreTrainedModel._load_pretrained_model = staticmethod(step)  # type: ignore[method-assign]
            try:
                yield
            finally:
                PreTrainedModel._load_pretrained_model = staticmethod(original)  # type: ignore[method-assign]

    def _read_names(self, model: Any, files: Any, load_config: Any) -> None:
        replace_in(load_config.weight_mapping or [])
        if files and all(file.endswith(_ENDINGS[0]) for file in files):
            mapping = deepcopy(load_config.weight_mapping or [])  # some renamings keep state
            self.checkpoint = Checkpoint(model, Shards(files), mapping)
            if fault := self.checkpoint.packed_fault():
                raise FinemoeError(f"{self._source}: {fault}")

    def _leave_out(self, model: Any, files: Any, load_config: Any) -> tuple[dict[str, Any], Any]:
        """The tensors and settings that make the loading step leave the experts' parameters on the meta device."""
        if self.checkpoint is None:
            others = [file for file in files or () if not file.endswith(_ENDINGS[0])]
            raise FinemoeError(f"{_listed(others or [self._source])}: finemoe.load reads safetensors files only; {_CONVERT}")
        self._experts = {f"{layer.name}.{name}" for layer in find_moe_layers(model) for name in layer.expert_parameters()}
        places = (load_config.device_map or {"": "cpu"}) | dict.fromkeys(self._experts, "meta")
        return self.checkpoint.without(self._experts), replace(load_config, device_map=places)

    def _require_right(self, model: Any, info: Any) -> None:
        """Refuse what the loading step found wrong; `from_pretrained` reports less, or fills it with random numbers first."""
        if self.checkpoint is not None and (info.conversion_errors or info.mismatched_keys):
            raise self._misfit(info)
        if lost := (info.missing_keys & self._experts) - model.all_tied_weights_keys.keys():
            raise self._lacks(lost)

    @contextmanager
    def _doubles_named(self) -> Iterator[None]:
        """Where a checkpoint holds a parameter's weights twice, Transformers fails without naming it; name it here."""
        try:
            yield
        except Exception as error:
            doubled = self.checkpoint.doubled() if self.checkpoint is not None else None
            if doubled is None:
                raise
            raise FinemoeError(f"{self._source}: {doubled}; {_AGAIN}") from error

    def _lacks(self, names: Any) -> FinemoeError:
        return FinemoeError(
            f"{self._source}: the checkpoint lacks {_listed(names)}{self._files()}, which from_pretrained would fill with random "
            f"numbers; {_AGAIN}"
        )

    def _misfit(self, info: Any) -> FinemoeError:
        """Why tensors do not make the parameter they should."""
        assert self.checkpoint is not None
        shapes = {name: (tuple(found), tuple(wanted)) for name, found, wanted in info.mismatched_keys}
        target = min(info.conversion_errors or shapes)
        fault = self.checkpoint.fault(target)
        if fault is None and target in shapes:
            fault = f"the checkpoint has shape {shapes[target][0]}, not {shapes[target][1]}, for {target}"
        if fault is None:
            reasons = info.conversion_errors[target].strip().splitlines()
            fault = f"the checkpoint's tensors do not make {target} ({reasons[-2] if len(reasons) > 1 else reasons[-1]})"
        return FinemoeError(f"{self._source}: {fault}; {_AGAIN}")

    def _files(self) -> str:
        files = self.checkpoint.files if self.checkpoint is not None else []
        return f" (read: {_listed([Path(file).name for file in files])})" if files else ""


def _cast_halves(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Convert the unpacked part of a quantised checkpoint to the requested type as well: Transformers (5.23) keeps its own type,
    and fails at the first product of both. Weights that are float32 on purpose stay float32."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in _HALVES:
            tensor.data = tensor.data.to(dtype)


def _listed(names: Any) -> str:
    first = sorted(names)[:_NUM_NAMED]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


@contextmanager
def in_one_line(before: str, after: Callable[[], str] = str) -> Iterator[None]:
    """Turn any error of Transformers into a FinemoeError with the first line of its reason."""
    try:
        yield
    except (FinemoeError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not type(error).__module__.startswith("torch."):  # such as CheckpointException
            raise
        raise FinemoeError(f"{before}{reason_of(error)}{after()}") from error
