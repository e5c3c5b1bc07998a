"""Eviction rules: one file for each, and the registry by which they are chosen (section 4.5).

A rule from outside the package is chosen by name as well: after `register`, through the entry points of an installed package
(group `finemoe.eviction_rules`), or as "module:object".
"""

from typing import Any

from finemoe.cache.rules.base import EvictionRule
from finemoe.errors import FinemoeError
from finemoe.registry import Registry

__all__ = ["OWN_RULES", "EvictionRule", "known_rules", "register", "rule_named"]


def _require_rule(name: str, thing: Any) -> None:
    if not isinstance(thing, EvictionRule):
        raise FinemoeError(f"{name!r} is of type {type(thing).__name__}; an eviction rule is a finemoe.cache.rules.EvictionRule")


_RULES: Registry[EvictionRule] = Registry(
    "eviction rule",
    "finemoe.eviction_rules",
    {
        "belady": "finemoe.cache.rules.belady:RULE",
        "finemoe": "finemoe.cache.rules.finemoe:RULE",
        "least-stale": "finemoe.cache.rules.least_stale:RULE",
        "least-stale-interval": "finemoe.cache.rules.least_stale_interval:RULE",
        "lfru": "finemoe.cache.rules.lfru:RULE",
        "lfu": "finemoe.cache.rules.lfu:RULE",
        "lfu-aged": "finemoe.cache.rules.lfu_aged:RULE",
        "lru": "finemoe.cache.rules.lru:RULE",
    },
    _require_rule,
)

OWN_RULES = _RULES.own_names  # of this package


def known_rules() -> list[str]:
    """Names of all rules that can be chosen, in order."""
    return _RULES.names


def register(rule: EvictionRule) -> EvictionRule:
    """Let a rule be chosen by its name from now on, in this process; returns it.

    Raises:
        FinemoeError: another rule has that name.
    """
    _RULES.register(rule.name, rule)
    return rule


def rule_named(name: str, is_replay: bool = False) -> EvictionRule:
    """The rule of that name.

    Args:
        name: a known one, or "module:object". is_replay: whether the future is known.
    Raises:
        FinemoeError: no rule has that name, or it must know the future.
    """
    rule = _RULES.find(name)
    if rule.needs_future and not is_replay:
        raise FinemoeError(f"eviction rule {name!r} must know the future; it runs in finemoe.replay only")
    return rule
