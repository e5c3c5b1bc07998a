"""The claim on the store's memory: Fig. 18."""

import pandas as pd

from finemoe.artifact.claims import Claim, Statement

REPORTED_MB = 200  # the paper's bound at 32 K maps
WHOLE = "maps and embeddings"


def store_tests(table: pd.DataFrame) -> pd.DataFrame:
    """Memory at the largest capacity against the paper's bound.

    Args:
        table: rows (model, content, capacity, store_mb).
    Returns:
        By model: whole_mb with embeddings and maps_mb without, and whether each is below the bound.
    """
    largest = table[table.capacity == table.capacity.max()].pivot(index="model", columns="content", values="store_mb")
    tests = pd.DataFrame({"whole_mb": largest[WHOLE], "maps_mb": largest["maps"]}).reindex(table.model.unique())
    return tests.assign(is_below=tests.whole_mb < REPORTED_MB, is_below_without=tests.maps_mb < REPORTED_MB)


def store_claim(tests: pd.DataFrame, capacity: int) -> Claim:
    """A store of 32 K maps takes less than 200 MB.

    Args:
        tests: as `store_tests` returns them. capacity: the largest, in maps.
    """
    first = tests.iloc[0]
    return Claim.judged(
        [Statement.of(f"below {REPORTED_MB} MB", "all three models", tests.is_below)],
        id="F18",
        artefact="Fig. 18",
        claim="A store of 32 K maps takes less than 200 MB",
        reported="< 200 MB at 32 K",
        reproduced="; ".join(
            f"{row.Index} {row.whole_mb:.0f} MB ({row.maps_mb:.0f} MB without embeddings)" for row in tests.itertuples()
        ),
        panel="all three models, real hidden sizes",
        executor="computed",
        why=f"At {capacity:,} maps {int(tests.is_below.sum())} of {len(tests)} stores stay below {REPORTED_MB} MB with "
        f"embeddings, {int(tests.is_below_without.sum())} without. For {tests.index[0]} the embeddings take "
        f"{first.whole_mb / first.maps_mb - 1:.0f} times what the maps take.",
    )
