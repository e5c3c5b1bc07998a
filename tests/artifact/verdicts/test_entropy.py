"""The claims on how peaked expert activation is (Figs. 3a to 3c), on made-up tables and on the shipped ones."""

import itertools

import numpy as np
import pandas as pd
import pytest

from finemoe.artifact.figures.f3a import map_table, top_k_shares
from finemoe.artifact.verdicts.entropy import (
    LATEST_PLATEAU,
    entropy_claim,
    entropy_tests,
    peak_claim,
    peak_tests,
    running_claim,
    running_tests,
)
from tests.artifact.verdicts.shipped import figure_table, outcome, shipped_claim
from tests.test_traces import make_trace

MODELS = ("mixtral-mini", "qwen-mini", "phi-mini")


def shares(fine: float = 0.6, coarse: float = 0.4, **fine_of: float) -> pd.DataFrame:
    """Top-K shares with intervals of ± 0.05, the same for every model but for the fine ones named (with _ for -)."""
    rows = [
        {"model": model, "kind": kind, "share": share, "low": share - 0.05, "high": share + 0.05}
        for model in MODELS
        for kind, share in (("fine", fine_of.get(model.replace("-", "_"), fine)), ("coarse", coarse))
    ]
    return pd.DataFrame(rows)


def test_peaked_iterations_hold():
    tests = peak_tests(shares())
    assert tests.apart.tolist() == [True] * 3
    assert peak_claim(tests).verdict == "holds"


@pytest.mark.parametrize(("fine", "apart"), [(0.51, True), (0.49, False), (0.4, False), (0.2, False)])
def test_the_intervals_must_be_apart(fine, apart):
    tests = peak_tests(shares(qwen_mini=fine))
    assert tests.apart.to_dict() == {"mixtral-mini": True, "qwen-mini": apart, "phi-mini": True}
    assert peak_claim(tests).verdict == ("holds" if apart else "holds weaker")


def test_touching_intervals_are_not_apart():
    touching = shares().assign(low=0.5, high=0.5)
    assert not peak_tests(touching).apart.any()
    assert peak_claim(peak_tests(touching)).verdict == "does not hold"


def test_top_k_shares_are_those_of_a_loop_over_requests():
    trace = make_trace(3, (6, 9))
    found = top_k_shares({"m": trace}).set_index("kind").share
    fine, coarse = [], []
    for request in range(2):
        rows = [row for row in range(*trace.offsets[request : request + 2]) if trace.phase[row] == 1]
        maps = np.array([trace.maps(np.array([row]))[0] for row in rows])
        fine.append(np.mean([sum(sorted(layer)[-trace.top_k :]) for one in maps for layer in one]))
        coarse.append(np.mean([sum(sorted(layer)[-trace.top_k :]) for layer in maps.mean(axis=0)]))
    assert found["fine"] == pytest.approx(np.mean(fine), abs=1e-5)
    assert found["coarse"] == pytest.approx(np.mean(coarse), abs=1e-5)


def test_a_request_with_fewer_iterations_shows_its_last():
    trace = make_trace(3, (6, 9))  # two tokens of each are the prefill
    table = map_table({"m": trace}, 0, [1, 3, 20])
    assert table.kind.unique().tolist() == ["mean of 4 iterations", "iteration 1", "iteration 3", "iteration 4"]
    assert table.groupby(["kind", "layer"]).probability.sum().to_numpy() == pytest.approx(1, abs=1e-2)


def test_figure_3a_is_the_shipped_claim():
    """Its table has the maps of one request, the claim is on all of them: the shares are those that the claim names."""
    named = {"mixtral-mini": (0.66, 0.49), "qwen-mini": (0.26, 0.15), "phi-mini": (0.32, 0.20)}
    rows = [
        (model, kind, share, share, share)
        for model, pair in named.items()
        for kind, share in zip(("fine", "coarse"), pair, strict=True)
    ]
    tests = peak_tests(pd.DataFrame(rows, columns=["model", "kind", "share", "low", "high"]))
    assert outcome(peak_claim(tests)) == shipped_claim("F3a")


def test_the_request_of_figure_3a_shows_it():
    top_k = {"mixtral-mini": 2, "qwen-mini": 4, "phi-mini": 2}
    for model, part in figure_table("f3a").groupby("model"):
        layers = part.groupby(["kind", "layer"]).probability
        share = layers.apply(lambda values: values.nlargest(top_k[model]).sum()).groupby("kind").mean()  # noqa: B023
        mean = next(kind for kind in share.index if kind.startswith("mean"))
        assert (share.drop(mean) > share[mean]).all()


def entropies(coarse: float = 2.0, null: float = 2.2, **changed: float) -> pd.DataFrame:
    """Entropies of two models by counts and by probabilities, ± 0.01; `changed`: the coarse one of a model, by counts."""
    rows = [
        {"of": of, "kind": kind, "entropy_bits": bits, "low": bits - 0.01, "high": bits + 0.01, "max_bits": 3.0}
        | {"model": model, "dataset": "d"}
        for of, model in itertools.product(("counts", "probabilities"), ("a", "b"))
        for own in [changed.get(model, coarse) if of == "counts" else coarse]
        for kind, bits in (("fine", 1.0), ("coarse", own), ("shuffled", null))
    ]
    return pd.DataFrame(rows)


def test_coarse_above_fine_everywhere_holds():
    tests = entropy_tests(entropies())
    assert tests.apart.all()
    assert tests.below_null.all()
    assert tests.loc["counts", "a", "d"].coarse_minus_fine == pytest.approx(1.0)
    assert tests.loc["counts", "a", "d"].of_it_by_construction == pytest.approx(1.2)
    assert tests.loc["counts", "a", "d"].information_bits == pytest.approx(0.2)
    assert entropy_claim(tests).verdict == "holds"


@pytest.mark.parametrize(("coarse", "apart"), [(1.03, True), (1.01, False), (0.9, False)])
def test_one_panel_that_is_not_above_holds_weaker(coarse, apart):
    tests = entropy_tests(entropies(b=coarse))
    assert tests.apart.tolist() == [True, apart, True, True]
    claim = entropy_claim(tests)
    assert claim.verdict == ("holds" if apart else "holds weaker")
    assert claim.reproduced.startswith(f"decided by a panel's intervals apart: {3 + apart} of 4 (miniatures); ")


def test_information_is_reported_and_does_not_decide():
    claim = entropy_claim(entropy_tests(entropies(null=2.0)))
    assert claim.verdict == "holds"
    assert "+0.000 to +0.000 bits by counts" in claim.why
    assert claim.why.endswith("it is clear of the null in 0 of 4 panels.")


def test_figure_3b_s_flags_are_those_of_a_loop():
    table = figure_table("f3b")
    tests = entropy_tests(table)
    rows = {(row.of, row.model, row.dataset, row.kind): row for row in table.itertuples()}
    assert len(tests) == len(rows) / 3
    for key in tests.index:
        fine, coarse, null = (rows[(*key, kind)] for kind in ("fine", "coarse", "shuffled"))
        assert tests.apart[key] == (coarse.low > fine.high)
        assert tests.below_null[key] == (coarse.high < null.low)
        assert tests.information_bits[key] == pytest.approx(null.entropy_bits - coarse.entropy_bits)


def test_figure_3b_is_the_shipped_claim():
    assert outcome(entropy_claim(entropy_tests(figure_table("f3b")))) == shipped_claim("F3b")


def curves(final: dict[str, float], rise: int = 10, dip: float = 0.0) -> pd.DataFrame:
    """Curves of 30 points that rise to a model's final entropy in `rise` steps; one of them falls by `dip` after that."""
    tables = []
    for model, bits in final.items():
        curve = np.minimum(np.arange(30) / rise, 1.0) * bits
        curve[20:] -= dip
        for kind, values in (("requests", curve), ("shuffled", curve + 0.1)):
            rows = {"iterations": np.arange(1, 31), "entropy_bits": values, "kind": kind}
            tables.append(pd.DataFrame(rows).assign(model=model, dataset="d"))
    return pd.concat(tables, ignore_index=True)


ORDERED = {"mixtral-mini": 2.0, "qwen-mini": 4.0, "phi-mini": 3.0}


def test_curves_that_rise_level_off_and_are_ordered_hold():
    tests = running_tests(curves(ORDERED))
    assert tests.rises.all()
    assert tests.null_above.all()
    assert tests.plateau_after.tolist() == [10, 10, 10]
    assert tests.final_bits.tolist() == [2.0, 4.0, 3.0]
    assert running_claim(tests).verdict == "holds"


@pytest.mark.parametrize(("dip", "rises"), [(0.004, True), (0.006, False)])
def test_a_step_down_of_more_than_noise_is_no_rise(dip, rises):
    tests = running_tests(curves(ORDERED, dip=dip))
    assert tests.rises.tolist() == [rises] * 3
    assert running_claim(tests).verdict == ("holds" if rises else "does not hold")


@pytest.mark.parametrize(("plateau_after", "verdict"), [(LATEST_PLATEAU, "holds"), (LATEST_PLATEAU + 1, "does not hold")])
def test_a_plateau_after_more_than_15_iterations_is_late(plateau_after, verdict):
    rising = {first: running_tests(curves(ORDERED, rise=first)).plateau_after.iloc[0] for first in range(5, 25)}
    steps = next(first for first, found in rising.items() if found == plateau_after)
    assert running_claim(running_tests(curves(ORDERED, rise=steps))).verdict == verdict


@pytest.mark.parametrize(
    "final", [ORDERED | {"phi-mini": 1.0}, ORDERED | {"phi-mini": 4.0}, {"mixtral-mini": 2.0, "qwen-mini": 4.0}]
)
def test_another_order_a_tie_or_a_missing_model_is_not_the_papers(final):
    claim = running_claim(running_tests(curves(final)))
    assert claim.verdict == "does not hold"
    assert claim.reproduced.startswith("decided by order Qwen > Phi > Mixtral: 0 of 1 (miniatures); ")


def test_figure_3c_s_shapes_are_those_of_a_loop():
    table = figure_table("f3c")
    tests = running_tests(table)
    for (model, dataset), found in tests.iterrows():
        part = table[(table.model == model) & (table.dataset == dataset)]
        curve = part[part.kind == "requests"].sort_values("iterations").entropy_bits.tolist()
        null = part[part.kind == "shuffled"].sort_values("iterations").entropy_bits.tolist()
        assert found.rises == all(after >= before - 0.005 for before, after in itertools.pairwise(curve))
        wanted = curve[0] + 0.9 * (curve[-1] - curve[0])
        assert found.plateau_after == next(number for number, bits in enumerate(curve, start=1) if bits >= wanted)
        assert found.null_above == (null[-1] > curve[-1])


def test_figure_3c_is_the_shipped_claim():
    assert outcome(running_claim(running_tests(figure_table("f3c")))) == shipped_claim("F3c")
