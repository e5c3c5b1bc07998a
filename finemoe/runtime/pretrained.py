"""Asks Transformers' own `from_pretrained` for a model, whole or without its experts, and refuses what it would make up.

Which class, type, files, adapter, names, conversions and tied weights: all of it is `from_pretrained`'s own doing, never a second
opinion. Experts are left out by one change: where it hands the resolved files to its loading step, that step is told to put the
experts' parameters on the meta device, so that their tensors are named, checked, converted and counted there, and none is read.
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
from transformers.utils import logging as transformers_logging

from finemoe.errors import FinemoeError, first_line
from finemoe.models.layers import find_moe_layers
from finemoe.packing.methods import quantization_of
from finemoe.runtime.blockwise import replace_in
from finemoe.runtime.checkpoint import Checkpoint
from finemoe.runtime.quantization import require_known
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

_loading = threading.RLock()  # held while Transformers' loading step is replaced, so that each call puts back what it found


def whole_model(source: str, dtype: Any) -> PreTrainedModel:
    """A model as `from_pretrained` gives it, with eager experts.

    Args:
        source: a folder or hub id; dtype: as in `type_of`.
    Raises:
        FinemoeError: it gives none, or would fill weights that the checkpoint lacks with random numbers; or an adapter is there.
    """
    step = LoadingStep(source, keeps_experts=True)
    return step.from_pretrained(dtype)


def model_without_experts(source: str, dtype: Any) -> tuple[PreTrainedModel, Checkpoint]:
    """What `whole_model` gives, but the experts' parameters are on the meta device; and the checkpoint to read them from.

    Raises:
        FinemoeError: as `whole_model`; also weights that are quantised, or no safetensors file.
    """
    step = LoadingStep(source, keeps_experts=False)
    model = step.from_pretrained(dtype)
    if step.checkpoint is None:
        raise FinemoeError(f"{source}: Transformers reads this checkpoint in a way that finemoe.load cannot follow; {_CONVERT}")
    step.require_rest(model)
    return model, step.checkpoint


def type_of(dtype: Any) -> Any:
    """ "auto" or the torch type meant by `dtype`, as `from_pretrained` takes it.

    Raises:
        FinemoeError: it is no floating-point type.
    """
    found = getattr(torch, dtype, None) if isinstance(dtype, str) and dtype != "auto" else dtype
    if found == "auto" or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise FinemoeError(f"unknown dtype {dtype!r}; write 'auto', 'bfloat16', 'float16' or 'float32'")


def class_of(config: Any) -> Any:
    """The class to make a model of: the one the configuration was saved from where it generates text, else the family's language
    model, text alone first.

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
    raise FinemoeError(f"{type(config).__name__}: Transformers has no model to build from it")


def reason_of(error: BaseException) -> str:
    """An exception in one line."""
    is_said = str(error).strip() and not isinstance(error, KeyError)
    return first_line(error).rstrip(".") if is_said else f"{type(error).__name__} {error}".strip()


class LoadingStep:
    """One call of `from_pretrained`, and what passes through its loading step.

    Args:
        source: a folder or hub id; keeps_experts: False leaves their parameters on the meta device.
    Attributes:
        checkpoint: of the resolved files; None before, and where they are no safetensors files.
    """

    def __init__(self, source: str, keeps_experts: bool) -> None:
        self._source, self._keeps_experts = source, keeps_experts
        self.checkpoint: Checkpoint | None = None
        self._experts: set[str] = set()  # parameters left out

    def from_pretrained(self, dtype: Any) -> PreTrainedModel:
        """The model; see `whole_model`."""
        dtype = type_of(dtype)
        self._require_no_adapter()
        config = self._config()
        if not self._keeps_experts:
            self._require_no_distributed_shards()
        made = class_of(config)
        quietly = _quiet() if Path(self._source).is_dir() else nullcontext()
        with in_one_line(f"{self._source}: ", self._remedy), self._watched(), quietly, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)  # to unpack, and nothing else
            model, info = made.from_pretrained(
                self._source,
                dtype=dtype,
                experts_implementation="eager",
                trust_remote_code=False,
                output_loading_info=True,
                **self._dequantizing(config),
            )
        if lost := info["missing_keys"]:
            raise self._lacks(lost)
        if isinstance(dtype, torch.dtype) and quantization_of(config) is not None:
            _cast_halves(model, dtype)
        found: PreTrainedModel = model
        return found

    def require_rest(self, model: PreTrainedModel) -> None:
        """Refuse a model of which more than the experts was left out, as a conversion that makes both would do."""
        tensors = (*model.named_parameters(), *model.named_buffers())
        if stray := [name for name, tensor in tensors if tensor.is_meta and name not in self._experts]:
            raise FinemoeError(
                f"{self._source}: {_listed(stray)} cannot be read apart from the experts; use finemoe.offload instead"
            )

    def _config(self) -> Any:
        with in_one_line(f"{self._source}: no usable configuration: "):
            return AutoConfig.from_pretrained(self._source, trust_remote_code=False)

    def _require_no_adapter(self) -> None:
        """With peft installed `from_pretrained` applies an adapter in the folder, without it leaves it out in silence."""
        with in_one_line(f"{self._source}: "):
            file = find_adapter_config_file(self._source)
        if file is not None:
            raise FinemoeError(
                f"{file}: an adapter, which finemoe does not apply and will not leave out in silence; merge it "
                "(merge_and_unload of peft) and save the model, or move the adapter's files elsewhere"
            )

    def _dequantizing(self, config: Any) -> dict[str, Any]:
        """Arguments by which `from_pretrained` unpacks what it loads of a quantised checkpoint."""
        told = quantization_of(config)
        if told is None:
            return {}
        require_known(told, self._source)
        return {"quantization_config": AutoQuantizationConfig.from_dict({**told, "dequantize": True})}

    def _require_no_distributed_shards(self) -> None:
        """Transformers prefers what a distributed run left to all else in a folder, and reads it whole, past the loading step."""
        if found := [path.name for path in Path(self._source).glob("shard-*-model-*-of-*.safetensors")]:
            raise FinemoeError(
                f"{self._source}: {_listed(found)}: shards of a distributed run, which finemoe.load does not read; {_CONVERT}"
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
            return f"; {broken[0]} there is no file, or a link to none: fetch the checkpoint again"
        found = [path.name for path in folder.iterdir() if path.suffix in _ENDINGS]
        held = f"it holds {_listed(found)}, but " if found else ""
        return f"; {held}neither {_NAMES[0]} nor {_NAMES[1]}: give the weights these names"

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Puts `_step` in the place of the loading step, for this thread alone.

        It is the one place through which all classes' `from_pretrained` pass with the files resolved, the model built on the meta
        device, and nothing read yet; no public argument leaves parameters out (a `device_map` with "meta" in it wraps the model).
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
            mapping = deepcopy(load_config.weight_mapping or [])  # some renamings remember what they have seen
            self.checkpoint = Checkpoint(model, Shards(files), mapping)
            if fault := self.checkpoint.packed_fault():
                raise FinemoeError(f"{self._source}: {fault}")

    def _leave_out(self, model: Any, files: Any, load_config: Any) -> tuple[dict[str, Any], Any]:
        """Tensors and instructions for the loading step by which experts' parameters are left on the meta device."""
        if self.checkpoint is None:
            others = [file for file in files or () if not file.endswith(_ENDINGS[0])]
            raise FinemoeError(f"{_listed(others or [self._source])}: finemoe.load reads safetensors files only; {_CONVERT}")
        self._experts = {f"{layer.name}.{name}" for layer in find_moe_layers(model) for name in layer.expert_parameters()}
        places = (load_config.device_map or {"": "cpu"}) | dict.fromkeys(self._experts, "meta")
        return self.checkpoint.without(self._experts), replace(load_config, device_map=places)

    def _require_right(self, model: Any, info: Any) -> None:
        """Refuses what the loading step found wrong: `from_pretrained` would say less, or fill it with random numbers first."""
        if self.checkpoint is not None and (info.conversion_errors or info.mismatched_keys):
            raise self._misfit(info)
        if lost := (info.missing_keys & self._experts) - model.all_tied_weights_keys.keys():
            raise self._lacks(lost)

    @contextmanager
    def _doubles_named(self) -> Iterator[None]:
        """Transformers stumbles, and does not say over what, where a checkpoint holds a parameter's weights twice."""
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
        """Why tensors do not make the parameter that they should."""
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
        return f" ({_listed([Path(file).name for file in files])} read)" if files else ""


def _cast_halves(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give what is not packed in a quantised checkpoint the type that was asked for, too: Transformers (5.23) leaves it in its
    own, and stumbles at the first product of both. What is in float32 on purpose stays so."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in _HALVES:
            tensor.data = tensor.data.to(dtype)


def _listed(names: Any) -> str:
    first = sorted(names)[:_NUM_NAMED]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


@contextmanager
def in_one_line(before: str, after: Callable[[], str] = str) -> Iterator[None]:
    """Whatever Transformers refuses, by the first line of its reason."""
    try:
        yield
    except (FinemoeError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not type(error).__module__.startswith("torch."):  # as its CheckpointException
            raise
        raise FinemoeError(f"{before}{reason_of(error)}{after()}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Transformers' bar, which would tell of reading where files are but mapped; a download keeps its own."""
    is_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if is_shown:
            transformers_logging.enable_progress_bar()
