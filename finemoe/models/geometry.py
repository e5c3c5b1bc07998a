"""A model's MoE geometry from its configuration alone: built on the meta device, so no weights are allocated.

Experts are found through Transformers' experts interface, without per-family code. A parameter is active for a token unless it
belongs to one of the J - K routed experts that the token does not use; embeddings count as active (as in the paper's Table 1).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemoe.errors import FinemoeError, first_line


@dataclass(frozen=True)
class Geometry:
    """Sizes of one model.

    Attributes:
        name: family of the configuration. num_layers: L, MoE layers. num_experts: J, routed experts a layer.
        experts_per_token: K. hidden_size: h. dense_layers: decoder layers without routed experts.
        expert_params: parameters of one routed expert.
        expert_format: how experts are packed, e.g. "fp8"; "bf16" if the configuration states no quantisation.
        expert_bytes: size of one expert in packed form, as it is stored, transferred and held in a slot; the largest if layers
            differ. unpacked_expert_bytes: size of one in bf16. all_experts_bytes: size of all in packed form.
        total_params, active_params: of the whole model, and those that one token uses.
    """

    name: str
    num_layers: int
    num_experts: int
    experts_per_token: int
    hidden_size: int
    dense_layers: int
    expert_params: int
    expert_format: str
    expert_bytes: int
    unpacked_expert_bytes: int
    all_experts_bytes: int
    total_params: int
    active_params: int

    @property
    def idle_share(self) -> float:
        """Share of the parameters that a token does not use."""
        return 1 - self.active_params / self.total_params

    @classmethod
    def from_config(cls, source: Any, mix: str | None = None) -> "Geometry":
        """The geometry of a configuration.

        Args:
            source: a Transformers config object, a dict of its fields, a folder with config.json, a JSON file, or a hub id.
            mix: a llama.cpp quantisation mix such as "Q4_K_M": compute sizes as in a GGUF file of that mix.
        Raises:
            FinemoeError: no such file or model type, the model has no routed experts, or their size cannot be determined.
        """
        return cls.of_model(model_on_meta(config_of(source)), mix)

    @classmethod
    def of_model(cls, model: Any, mix: str | None = None) -> "Geometry":
        """The geometry of a model made by `model_on_meta`; mix: as in `from_config`.

        Raises:
            FinemoeError: the model has no routed experts, or their size cannot be determined.
        """
        from finemoe.models.layers import activated_per_token, find_moe_layers
        from finemoe.models.packed_sizes import expert_records
        from finemoe.packing.methods import quantization_of

        config, layers = model.config, find_moe_layers(model)
        records = expert_records(model, layers, quantization_of(config), mix)
        largest = max(records, key=lambda record: record.nbytes)
        parameters = [sum(p.numel() for p in layer.expert_parameters().values()) for layer in layers]
        num_experts, top_k = layers[0].num_experts, activated_per_token(model, layers)
        total = sum(parameter.numel() for parameter in model.parameters())
        text = config.get_text_config()
        return cls(
            name=config.model_type,
            num_layers=len(layers),
            num_experts=num_experts,
            experts_per_token=top_k,
            hidden_size=text.hidden_size,
            dense_layers=text.num_hidden_layers - len(layers),
            expert_params=parameters[0] // num_experts,
            expert_format=largest.format,
            expert_bytes=largest.nbytes,
            unpacked_expert_bytes=largest.unpacked_bytes,
            all_experts_bytes=sum(record.count * record.nbytes for record in records),
            total_params=total,
            active_params=total - sum(parameters) * (num_experts - top_k) // num_experts,
        )


def model_on_meta(config: Any) -> Any:
    """A model without weights, in bf16, the precision in which models are published.

    Raises:
        FinemoeError: Transformers has no language model for such a configuration.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    except ValueError as error:
        raise FinemoeError(f"no causal language model can be built from this configuration: {first_line(error)}") from error


def config_of(source: Any) -> Any:
    """The Transformers configuration for a config object, a dict of its fields, a folder, a JSON file, or a hub id.

    Raises:
        FinemoeError: no such file or model type.
    """
    from transformers import AutoConfig

    if isinstance(source, dict):
        return _from_fields(source, "the given fields")
    if not isinstance(source, str | Path):
        return source
    path = Path(source)
    if path.suffix == ".json":
        return _from_fields(_read_json(path), str(path))
    try:
        return AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise FinemoeError(f"no configuration found for {str(source)!r}: {first_line(error)}") from error


def _read_json(path: Path) -> dict[str, Any]:
    import json

    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FinemoeError(f"{path}: no such configuration file; check the path") from error
    except ValueError as error:
        raise FinemoeError(f"{path}: not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise FinemoeError(f"{path}: not a JSON object; a configuration has its fields by name")
    return fields


def _from_fields(fields: dict[str, Any], where: str) -> Any:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    fields = dict(fields)
    model_type = fields.pop("model_type", None)
    try:
        return AutoConfig.for_model(model_type, **fields)
    except ValueError as error:
        raise FinemoeError(f"{where}: model_type {model_type!r} is not known to the installed transformers") from error
    except StrictDataclassError as error:
        reason = " ".join(str(error).split())
        raise FinemoeError(f"{where}: {reason}") from error
