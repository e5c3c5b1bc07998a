"""Numbers that a run reported and no other shipped table holds: minutes, memory, disk, rounding; each names its command."""

from collections.abc import Iterator

from finemoe.artifact.docs.costs import cost_numbers
from finemoe.artifact.docs.tables import Number, shipped

_REPORTED = "reference/docs/reported.csv"


def reported_numbers() -> Iterator[Number]:
    """Every row of `data/reference/docs/reported.csv`, and what every notebook cost."""
    for one in shipped(_REPORTED).itertuples(index=False):
        yield Number(str(one.name), str(one.text), _REPORTED, f"{one.meaning} ({one.source})")
    yield from cost_numbers()
