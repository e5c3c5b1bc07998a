"""`--option NAME=VALUE`: options of a policy, typed as its constructor declares them."""

import inspect
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from finemoe.errors import FinemoeError
from finemoe.suggestions import suggestion

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_OF_EVERY_POLICY = ("prefetch_distance", "store_capacity", "stream_prompts_from", "seed", "history")  # options of the commands
_NAMES = {int: "a whole number", float: "a number", bool: "true or false"}


def options_by_policy(texts: Sequence[str], policies: Sequence[str], is_replay: bool = False) -> dict[str, dict[str, Any]]:
    """The options of each policy; every option goes to the policies that have it.

    Args:
        texts: "name=value" each. policies: names. is_replay: whether the future is known.
    Raises:
        FinemoeError: no policy has the option, or the value has another type.
    """
    parameters = {policy: _parameters(policy, is_replay) for policy in policies}
    found: dict[str, dict[str, Any]] = {policy: {} for policy in policies}
    for text in texts:
        name, value = _split(text)
        having = [policy for policy in policies if name in parameters[policy]]
        if not having:
            raise FinemoeError(f"--option {text}: {_unknown(name, parameters)}")
        for policy in having:
            found[policy][name] = _converted(text, value, parameters[policy][name])
    return found


def _split(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise FinemoeError(f"--option {text}: write NAME=VALUE, such as predictor=speculative")
    return name.strip().replace("-", "_"), value.strip()


def _parameters(policy: str, is_replay: bool) -> dict[str, inspect.Parameter]:
    from finemoe.policies import policy_named

    found = inspect.signature(policy_named(policy, is_replay)).parameters.values()
    return {one.name: one for one in found if one.name != "setup" and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}


def _unknown(name: str, parameters: dict[str, dict[str, inspect.Parameter]]) -> str:
    if name in _OF_EVERY_POLICY:
        return f"this is an option of the command itself; write --{name.replace('_', '-')}"
    known = list(dict.fromkeys(one for found in parameters.values() for one in found))
    which = f"policy {next(iter(parameters))!r}" if len(parameters) == 1 else f"none of {', '.join(parameters)}"
    verb = "has no option" if len(parameters) == 1 else "has an option"
    return f"{which} {verb} {name!r}; {suggestion(name, known) if known else 'it has no options'}"


def _converted(text: str, value: str, parameter: inspect.Parameter) -> Any:
    """The value in the declared type; without a declaration, in the type of the default."""
    kinds = _kinds(parameter)
    if type(None) in kinds and value.lower() in ("none", ""):
        return None
    for kind in (bool, int, float):
        if kind in kinds and (converted := _as(kind, value)) is not None:
            return converted
    if str in kinds:
        return value
    if Path in kinds:
        return Path(value)
    expected = " or ".join(_NAMES[kind] for kind in (bool, int, float) if kind in kinds)
    if not expected:
        return value
    raise FinemoeError(f"--option {text}: {parameter.name} takes {expected}, not {value!r}")


def _kinds(parameter: inspect.Parameter) -> tuple[Any, ...]:
    declared = parameter.annotation
    if isinstance(declared, str):  # from __future__ import annotations
        simple = {"bool": bool, "int": int, "float": float, "str": str, "Path": Path, "None": type(None)}
        return tuple(simple[one.strip()] for one in declared.split("|") if one.strip() in simple)
    if get_origin(declared) in (Union, types.UnionType):
        return get_args(declared)
    if declared is inspect.Parameter.empty:
        default = parameter.default
        return () if default is inspect.Parameter.empty or default is None else (type(default),)
    return (declared,)


def _as(kind: type, value: str) -> Any:
    if kind is bool:
        return _TRUTH.get(value.lower())
    try:
        return kind(value)
    except ValueError:
        return None
