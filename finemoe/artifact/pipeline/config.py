"""The pipeline's configuration, checked once when it is loaded: a typo gives a one-line error that suggests the right name."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finemoe.artifact.external.needed import check_licences, prompt_sets
from finemoe.errors import FinemoeError
from finemoe.paths import MINIATURES, PROMPTS, ROOT
from finemoe.simulation.testbed import known_testbeds
from finemoe.suggestions import suggestion

CONFIG = ROOT / "config"
_KNEE = 1000  # the steep part of Fig. 16a ends at this number of maps
_TESTBEDS = ("testbed", "high_end_testbed", "scale_testbed", "advised_testbed")


def load(*files: Path) -> dict[str, Any]:
    """The default configuration with `files` on top, merged as Snakemake's `--configfile` does.

    Raises:
        FinemoeError: a file is missing or is not a YAML mapping.
    """
    merged: dict[str, Any] = {}
    for file in [CONFIG / "default.yaml", *files]:
        merged = _merge(merged, _read(file))
    return merged


def check(config: Mapping[str, Any]) -> None:
    """Check a configuration against config/schema.yaml.

    Raises:
        FinemoeError: the configuration is invalid; the message names the first wrong key, its value, and the valid values.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    validator = Draft202012Validator(_read(CONFIG / "schema.yaml"))
    error = best_match(validator.iter_errors(dict(config)))
    if error is not None:
        raise FinemoeError(f"config: {_explain(error)}")
    _check_references(config)


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FinemoeError(f"{file}: no such configuration file")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise FinemoeError(f"{file}: not a YAML file ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise FinemoeError(f"{file}: expected 'key: value' lines")
    return content


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: Any) -> str:
    where = ".".join(step for step in error.absolute_path if isinstance(step, str))
    if error.validator == "additionalProperties":
        known = list(error.schema["properties"])
        unknown = next(key for key in error.instance if key not in known)
        return f"unknown key {unknown!r}; {suggestion(unknown, known)}"
    if error.validator == "enum":
        meant = suggestion(error.instance, error.validator_value)
        return f"unknown value {error.instance!r} in {where or 'prefetch_distance'}; {meant}"
    return f"{where + ': ' if where else ''}{error.message}"


def _num_layers(model: str) -> int:
    """Number of MoE layers of a miniature; other models are not opened."""
    file = MINIATURES / model / "config.json"
    return int(_read(file)["num_hidden_layers"]) if file.is_file() else sys.maxsize


def _check_policies(names: list[str]) -> None:
    from finemoe.policies import known_policies, policy_named

    known = known_policies()
    for name in names:
        if name not in known and ":" not in name:
            raise FinemoeError(f"config: unknown value {name!r} in policies; {suggestion(name, known)}")
        try:
            policy_named(name)
        except FinemoeError as error:
            raise FinemoeError(f"config: {error}") from error


def _check_references(config: Mapping[str, Any]) -> None:
    _check_policies(config["policies"])
    without = [model for model in config["models"] if model not in config["prefetch_distance"]]
    if without:
        raise FinemoeError(f"config: prefetch_distance has no entry for {without[0]!r}; add one (layers, e.g. 3)")
    known = sorted({path.stem for path in PROMPTS.glob("*.jsonl")} | set(prompt_sets(config)))
    testbeds = known_testbeds()
    for testbed in [config[name] for name in _TESTBEDS] + config["further_testbeds"]:
        if testbed not in testbeds:
            raise FinemoeError(
                f"config: unknown testbed {testbed!r}; {suggestion(testbed, testbeds)}; add data/hardware/{testbed}.yaml"
            )
    for model, distance in config["prefetch_distance"].items():
        if distance > (most := _num_layers(model)):
            raise FinemoeError(f"config: prefetch_distance of {model} is {distance}, but it has {most} MoE layers")
    if list(config["lookahead"]) != sorted(set(config["lookahead"])):
        raise FinemoeError(f"config: lookahead is {config['lookahead']}; give its strides in ascending order, each once")
    if config["figures"] == config["results"]:
        raise FinemoeError(f"config: figures and results are both {config['figures']!r}; set them to different folders")
    if config["expert_memory"] not in config["simulated_memories"]:
        raise FinemoeError(f"config: expert_memory is {config['expert_memory']}; add this value to simulated_memories")
    if min(config["store_capacities"]) > _KNEE:
        raise FinemoeError(f"config: store_capacities must begin at {_KNEE} or below, the paper's C")
    for dataset in config["datasets"]:
        if dataset not in known:
            raise FinemoeError(f"config: unknown value {dataset!r} in datasets; {suggestion(dataset, known)}")
    check_licences(config)
