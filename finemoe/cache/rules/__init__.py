"""Eviction rules: one file for each, and the registry by which they are chosen (section 4.5).

A rule from outside the package is chosen by name as well: after `register`, through the entry points of an installed package
(group `finemoe.eviction_rules`), or as "module:NAME".
"""

from dataclasses import replace
from typing import Any

from finemoe.cache.rules.base import EvictionRule
from finemoe.errors import FinemoeError
from finemoe.registry import Registry

__all__ = ["OWN_RULES", "EvictionRule", "known_rules", "register", "rule_named"]


OWN_RULES = {
    "belady": "finemoe.cache.rules.belady:RULE",
    "finemoe": "finemoe.cache.rules.finemoe:RULE",
    "least-stale": "finemoe.cache.rules.least_stale:RULE",
    "least-stale-interval": "finemoe.cache.rules.least_stale_interval:RULE",
    "lfru": "finemoe.cache.rules.lfru:RULE",
    "lfu": "finemoe.cache.rules.lfu:RULE",
    "lfu-aged": "finemoe.cache.rules.lfu_aged:RULE",
    "lru": "finemoe.cache.rules.lru:RULE",
}


def _require_rule(title: str, found: Any) -> None:
    if not isinstance(found, EvictionRule):
        raise FinemoeError(f"{title} is {found!r}; it must be a finemoe.cache.rules.EvictionRule")


_REGISTRY: Registry[EvictionRule] = Registry("eviction rule", "finemoe.eviction_rules", OWN_RULES, _require_rule)


def known_rules() -> list[str]:
    """The names that rules have, in alphabetical order."""
    return _REGISTRY.names()


def register(rule: EvictionRule) -> None:
    """Let a rule from elsewhere be chosen by its name, in this process.

    Raises:
        FinemoeError: the name is taken, or it is no rule.
    """
    _require_rule(repr(getattr(rule, "name", rule)), rule)
    _REGISTRY.register(rule.name, rule)


def rule_named(name: str, is_replay: bool = False) -> EvictionRule:
    """The rule of that name, or at "module:NAME", which is then its name.

    Args:
        is_replay: whether the future is known.
    Raises:
        FinemoeError: there is none, it cannot be loaded, or it must know the future.
    """
    rule = _REGISTRY.find(name)
    if rule is None:
        known = ", ".join(known_rules())
        raise FinemoeError(f"unknown eviction rule {name!r}; known: {known}, or 'module:NAME' for one of your own")
    if rule.needs_future and not is_replay:
        raise FinemoeError(f"eviction rule {name!r} must know the future; it runs in finemoe.replay only")
    return replace(rule, name=name)
