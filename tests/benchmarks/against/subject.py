"""What is compared: subjects, the values they give, and the bars that ratios of values must clear."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

NEW, OLD = "new", "old"


class Side(NamedTuple):
    """One value of a subject, in one of the trees."""

    tree: str
    value: str

    def __str__(self) -> str:
        return f"{self.tree} {self.value}"


@dataclass(frozen=True)
class Bar:
    """A ratio of two values of the same round, and what it is to be.

    Attributes:
        limit: the most (or, with `is_floor`, the least) that the ratio may be; None reports the ratio without a verdict.
        beyond: a value that both are taken beyond, each in its own tree; "" takes them as they are.
    """

    above: Side
    below: Side
    limit: float | None = None
    is_floor: bool = False
    beyond: str = ""

    @property
    def title(self) -> str:
        """What is compared."""
        return f"{self.above} / {self.below}" + (f", both beyond {self.beyond}" if self.beyond else "")

    def __str__(self) -> str:
        if self.limit is None:
            return ""
        return f"{'>=' if self.is_floor else '<='} {self.limit:g}"


@dataclass(frozen=True)
class Subject:
    """Something to be measured in both trees.

    Attributes:
        name: unique. kind: which module of `measured` measures it; options: what that is told.
        variants: by tree, what is run once a round; a variant gives one value or several.
        num_rounds: how often by default. scale, unit: what a value is shown in.
        means: bars whose ratio is averaged (geometrically) with that of other subjects, by the name of the mean.
    """

    name: str
    kind: str
    options: dict[str, Any]
    variants: dict[str, tuple[str, ...]]
    num_rounds: int
    bars: tuple[Bar, ...] = ()
    means: dict[str, Bar] = field(default_factory=dict)
    scale: float = 1e3
    unit: str = "ms"


class Measurement(NamedTuple):
    """One value, as it was measured."""

    subject: str
    round: int
    side: Side
    value: float
