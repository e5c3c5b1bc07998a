"""Rounds: every variant of both trees once, in turn, in an order that alternates."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from .subject import Measurement, Side, Subject


class WrongTokens(Exception):
    """A measured variant did not generate what the model as it is generates."""


class Measures(Protocol):
    """A tree's process, or what stands in for it."""

    def ask(self, do: str, **told: Any) -> Any: ...


def measurements(subject: Subject, workers: Mapping[str, Measures], num_rounds: int) -> Iterator[Measurement]:
    """All rounds of a subject, measured one after the other.

    Args:
        workers: by tree.
    Raises:
        WrongTokens: trees or variants differ in what they generate.
    """
    expected = {tree: workers[tree].ask("prepare", kind=subject.kind, options=subject.options) for tree in subject.variants}
    first = next(iter(expected))
    for tree, tokens in expected.items():
        _require_equal(subject, tree, "eager", tokens, expected[first])
    for number in range(num_rounds):
        for tree, variant in _order(subject, number):
            found = workers[tree].ask("measure", variant=variant)
            if found["tokens"] is not None:
                _require_equal(subject, tree, variant, found["tokens"], expected[first])
            for name, value in found["values"].items():
                yield Measurement(subject.name, number, Side(tree, name), value)
    for tree in subject.variants:
        workers[tree].ask("finish")


def _order(subject: Subject, number: int) -> list[tuple[str, str]]:
    """Trees in turn variant by variant; every other round backwards."""
    most = max(len(variants) for variants in subject.variants.values())
    order = [
        (tree, variants[place]) for place in range(most) for tree, variants in subject.variants.items() if place < len(variants)
    ]
    return order if number % 2 == 0 else order[::-1]


def _require_equal(subject: Subject, tree: str, variant: str, tokens: Any, expected: Any) -> None:
    if tokens != expected:
        raise WrongTokens(f"{subject.name}: the {tree} tree's {variant} generated {tokens}, not {expected}")
