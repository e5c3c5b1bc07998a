"""The claim on the models' sizes: Table 1."""

import pandas as pd

from finemoe.artifact.claims import Claim, Statement


def geometry_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Which printed numbers the computed ones agree with, to the last printed digit.

    Args:
        table: as `figures.t1.parameter_table` returns it.
    Returns:
        One row per model, one flag per number, and whether all of them are set.
    """
    tests = pd.DataFrame(
        {
            "active": table.active_rounded == table.active_reported_b,
            "total": table.total_rounded == table.total_reported_b,
            "experts": table.experts_computed == table.experts,
            "layers": table.layers_computed == table.layers,
        }
    ).set_axis(table.model)
    return tests.assign(agrees=tests.all(axis=1))


def geometry_claim(table: pd.DataFrame) -> Claim:
    """Parameters, experts and layers are those that the paper prints."""
    agrees = geometry_tests(table).agrees
    return Claim.judged(
        [Statement.of("every printed digit", "all three models", agrees)],
        id="T1",
        artefact="Table 1",
        claim="Active and total parameters, experts and layers of the three models",
        reported="; ".join(
            f"{row.title} {row.active_reported_b}/{row.total_reported_b} B, {row.experts}, {row.layers} layers"
            for row in table.itertuples()
        ),
        reproduced="; ".join(
            f"{row.title} {row.active_b:.2f}/{row.total_b:.2f} B, {row.experts_computed}, {row.layers_computed}"
            for row in table.itertuples()
        ),
        panel="all three models",
        executor="computed",
        why=f"{int(agrees.sum())} of {len(agrees)} models agree with every printed digit; embeddings count as active.",
    )
