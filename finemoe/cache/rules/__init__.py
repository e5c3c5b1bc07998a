"""Eviction rules, one per file, and the registry that finds them by name (section 4.5).

An external rule is selected like these: by a name given by `register` or by an entry point of the group "finemoe.eviction_rules",
or as "module:RULE".
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

from finemoe.cache.rules import (
    belady,
    finemoe,
    least_stale,
    least_stale_interval,
    lfru,
    lfu,
    lfu_aged,
    lru,
    next_use,
)
from finemoe.cache.rules.base import EvictionRule
from finemoe.errors import FinemoeError
from finemoe.registry import Registry
from finemoe.suggestions import suggestion

RULES: dict[str, EvictionRule] = {
    "belady": belady.RULE,
    "finemoe": finemoe.RULE,
    "least-stale": least_stale.RULE,
    "least-stale-interval": least_stale_interval.RULE,
    "lfru": lfru.RULE,
    "lfu": lfu.RULE,
    "lfu-aged": lfu_aged.RULE,
    "lru": lru.RULE,
    "next-use": next_use.RULE,
}


def _require_rule(what: str, found: object) -> EvictionRule:
    if not isinstance(found, EvictionRule):
        raise FinemoeError(f"{what} is {found!r}; it must be a {EvictionRule.__module__}.{EvictionRule.__qualname__}")
    return found


_REGISTRY = Registry("eviction rule", "finemoe.eviction_rules", _require_rule, RULES)


def register(name: str, rule: EvictionRule) -> None:
    """Give an external eviction rule a name in this process.

    Raises:
        FinemoeError: the name is taken, or the rule is not an `EvictionRule`.
    """
    _REGISTRY.register(name, rule)


def naming(rules: Mapping[str, EvictionRule]) -> AbstractContextManager[None]:
    """Register several rules within a block only."""
    return _REGISTRY.naming(rules)


def rule_named(name: str, is_replay: bool = False) -> EvictionRule:
    """An eviction rule, by name or as "module:RULE".

    Args:
        is_replay: whether the future is known.
    Raises:
        FinemoeError: there is no such rule, it cannot be loaded, or it needs to know the future and this is not a replay.
    """
    rule = _REGISTRY.find(name)
    if rule is None:
        raise FinemoeError(f"unknown eviction rule {name!r}; {suggestion(name, _REGISTRY.names())}")
    if rule.needs_future and not is_replay:
        raise FinemoeError(f"eviction rule {name!r} must know the future; it runs only in finemoe.replay")
    return rule
