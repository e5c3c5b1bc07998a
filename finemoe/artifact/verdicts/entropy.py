"""The claims on how peaked expert activation is: Figs. 3a, 3b and 3c."""

import numpy as np
import pandas as pd

from finemoe.artifact.analysis.entropy import plateau_after
from finemoe.artifact.claims import Claim, Statement
from finemoe.artifact.verdicts.kinds import entries_of

PANEL = ["model", "dataset"]
REPORTED_ORDER = ("qwen-mini", "phi-mini", "mixtral-mini")  # of the entropies in Fig. 3c, from the highest
LATEST_PLATEAU = 15  # iterations; the paper reports about 10
_NOISE_BITS = 0.005  # a curve counts as rising if no step falls by more


def peak_tests(shares: pd.DataFrame) -> pd.DataFrame:
    """Whether single iterations are more peaked than a request's mean, intervals apart.

    Args:
        shares: as `figures.f3a.top_k_shares` returns it.
    Returns:
        One row per model: fine, coarse (shares of the gate's probability) and apart.
    """
    fine, coarse = (shares[shares.kind == kind].set_index("model") for kind in ("fine", "coarse"))
    return pd.DataFrame({"fine": fine.share, "coarse": coarse.share, "apart": fine.low > coarse.high})


def peak_claim(tests: pd.DataFrame) -> Claim:
    """Single iterations are peaked, a request's sum is flat.

    Args:
        tests: as `peak_tests` returns them.
    """
    return Claim.judged(
        [Statement.of("a model's intervals apart", "miniatures", tests.apart)],
        id="F3a",
        artefact="Fig. 3a",
        claim="Single iterations are peaked, a request's sum is flat",
        reported="a picture, no number",
        reproduced="top-K share of the gate, iteration against request: "
        + "; ".join(f"{row.Index} {row.fine:.2f} against {row.coarse:.2f}" for row in tests.itertuples()),
        panel="miniatures",
        executor="recorded",
        why=f"The intervals over requests lie apart for {int(tests.apart.sum())} of {len(tests)} models. A mean is never more "
        "peaked than its parts, so the direction holds by construction; Fig. 3b separates what is information.",
    )


def entropy_tests(table: pd.DataFrame) -> pd.DataFrame:
    """How far coarse entropy is above fine, and below the null of shuffled requests.

    Args:
        table: as `figures.f3b.entropies` returns it.
    Returns:
        One row per (of, model, dataset): coarse_minus_fine and the part of it that shuffled requests show too, the information in
        a request's identity, all in bits; whether the intervals of coarse and fine are apart, and those of coarse and null.
    """
    wide = table.pivot_table(index=["of", *PANEL], columns="kind", values=["entropy_bits", "low", "high"], sort=False)
    bits = wide["entropy_bits"]
    return pd.DataFrame(
        {
            "coarse_minus_fine": bits["coarse"] - bits["fine"],
            "of_it_by_construction": bits["shuffled"] - bits["fine"],
            "information_bits": bits["shuffled"] - bits["coarse"],
            "apart": wide["low"]["coarse"] > wide["high"]["fine"],
            "below_null": wide["high"]["coarse"] < wide["low"]["shuffled"],
        }
    )


def entropy_claim(tests: pd.DataFrame) -> Claim:
    """Coarse entropy is significantly higher than fine.

    Args:
        tests: as `entropy_tests` returns them.
    """
    counts = tests.loc["counts"]
    low, high = counts.information_bits.min(), counts.information_bits.max()
    return Claim.judged(
        [Statement.of("a panel's intervals apart", "miniatures", tests.apart)],
        id="F3b",
        artefact="Fig. 3b",
        claim="Coarse entropy is significantly higher than fine",
        reported="coarse significantly higher, 3 models, 2 datasets; no number",
        reproduced="coarse minus fine, bits by counts: "
        + "; ".join(f"{model}/{dataset} {row.coarse_minus_fine:.2f}" for (model, dataset), row in entries_of(counts)),
        panel="miniatures",
        executor="recorded",
        why=f"Intervals lie apart in {int(tests.apart.sum())} of {len(tests)} panels, but that holds by construction "
        "(concavity): shuffled requests show it too. The information is coarse below the shuffled null: "
        f"{low:+.3f} to {high:+.3f} bits by counts; by counts or probabilities it is clear of the null in "
        f"{int(tests.below_null.sum())} of {len(tests)} panels.",
    )


def running_tests(table: pd.DataFrame) -> pd.DataFrame:
    """The shape of every curve, and whether it ends below its null.

    Args:
        table: as `figures.f3c.running_entropies` returns it.
    Returns:
        One row per (model, dataset): whether the curve rises, the iterations after which 90 % of its rise is made, its final
        entropy in bits, and whether iterations drawn from all requests end above it.
    """
    rows = []
    for (model, dataset), part in table.groupby(PANEL, sort=False):
        curve, null = (part.entropy_bits[part.kind == kind].to_numpy() for kind in ("requests", "shuffled"))
        found = {
            "rises": bool((curve[1:] >= curve[:-1] - _NOISE_BITS).all()),
            "plateau_after": plateau_after(curve),
            "final_bits": curve[-1],
            "null_above": bool(null[-1] > curve[-1]),
        }
        rows.append({"model": model, "dataset": dataset, **found})
    return pd.DataFrame(rows).set_index(PANEL)


def running_claim(tests: pd.DataFrame) -> Claim:
    """Entropy rises while iterations are summed, plateaus after about 10, and is ordered by model.

    Args:
        tests: as `running_tests` returns them.
    """
    final = tests.final_bits.unstack("dataset").reindex(list(REPORTED_ORDER)).dropna()
    statements = [
        Statement.of("rises", "miniatures", tests.rises),
        Statement.of("plateau", "miniatures", tests.plateau_after <= LATEST_PLATEAU),
        Statement.of("order Qwen > Phi > Mixtral", "miniatures", [_is_in_order(bits.to_numpy()) for _, bits in final.items()]),
    ]
    return Claim.judged(
        statements,
        id="F3c",
        artefact="Fig. 3c",
        claim="Entropy rises while iterations are summed, plateaus after about 10; Qwen > Phi > Mixtral",
        reported="plateau after about 10 iterations; Qwen > Phi > Mixtral",
        reproduced="90 % of the rise after "
        + ", ".join(f"{model}/{dataset} {row.plateau_after}" for (model, dataset), row in entries_of(tests))
        + " iterations; final bits "
        + ", ".join(f"{model} {bits.mean():.2f}" for model, bits in final.iterrows()),
        panel="miniatures",
        executor="recorded",
        why="Tested: "
        + ", ".join(f"{one.text} {one.met} of {one.cases}" for one in statements)
        + f". The rise holds by construction and the order follows log2 J; plateau counts as met up to {LATEST_PLATEAU} "
        "iterations. Iterations dealt out at random end above the requests' own curve in "
        f"{int(tests.null_above.sum())} of {len(tests)} panels.",
    )


def _is_in_order(final_bits: np.ndarray) -> bool:
    """Whether all three models are there, and each is below the one before."""
    return len(final_bits) == len(REPORTED_ORDER) and bool((np.diff(final_bits) < 0).all())
