"""Tables of requests in virtual time: means, paired gains, what is left out, and the verdicts drawn from them."""

import numpy as np
import pandas as pd
import pytest

import finemoe
from finemoe.artifact.analysis import verdicts
from finemoe.artifact.analysis.arrivals import azure_like
from finemoe.artifact.analysis.footprint import footprint_table
from finemoe.artifact.analysis.latency import (
    LATENCY_SYSTEMS,
    distance_table,
    latency_table,
    means,
    reduction,
    systems_on_testbed,
)
from finemoe.artifact.analysis.online import online_summary, online_table
from finemoe.errors import FinemoeError
from finemoe.simulation.cost import CostModel, size_named
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from finemoe.simulation.testbed import FOLDER
from finemoe.simulation.testbed import Testbed as Machine
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE
from tests.simulation.test_hardware import SIZE

TRACE = RoutingTrace.load(FILE)
HISTORY, SERVED = TRACE.split("history"), TRACE.split("served")


@pytest.fixture
def toy(monkeypatch):
    """Replays of the golden trace mean a toy model."""
    for module in ("finemoe.simulation.replay", "finemoe.artifact.analysis.latency"):
        monkeypatch.setattr(f"{module}.size_of", lambda *_: SIZE)


def requests(**seconds: list[float]) -> pd.DataFrame:
    """A table of three requests for each system, with these TPOTs; hit rates of one half."""
    rows = [
        {"system": name.replace("_", "-"), "request": number, "tpot_s": s, "ttft_s": 2 * s, "num_decode_steps": 10 + number}
        | {"hits": 5, "accesses": 10, "demand_bytes": 1, "prefetched_bytes": 2, "wasted_bytes": 0}
        for name, values in seconds.items()
        for number, s in enumerate(values)
    ]
    return pd.DataFrame(rows).replace("on-demand", "on-demand (LRU)")


@pytest.mark.usefixtures("toy")
def test_a_table_is_the_reports_request_by_request():
    table = latency_table(HISTORY, SERVED, LATENCY_SYSTEMS, "rtx3090", [0.25, 0.5], prefetch_distance=1)
    assert set(table.system) == set(LATENCY_SYSTEMS)
    for (name, memory), part in table.groupby(["system", "expert_memory"], sort=False):
        policy = LATENCY_SYSTEMS[name].policy
        report = finemoe.replay(SERVED, policy, memory, hardware="rtx3090", history=HISTORY, prefetch_distance=1)
        assert part.tpot_s.tolist() == [one.tpot_s for one in report.requests]
        assert part.hits.sum() == report.hits


@pytest.mark.usefixtures("toy")
def test_limits_in_gb_are_over_all_devices():
    table = systems_on_testbed(HISTORY, SERVED, "6x-rtx3090", [0.5], [0.024], prefetch_distance=1)
    limited = table[table.cache_limit_gb.notna()]
    assert set(table.testbed) == {"6x-rtx3090"}
    assert limited.expert_memory.isna().all()
    same = finemoe.replay(SERVED, "on-demand", "4000000B", hardware="6x-rtx3090", history=HISTORY)  # two experts of 2 MB each
    assert limited[limited.system == "on-demand (LRU)"].tpot_s.tolist() == [one.tpot_s for one in same.requests]


@pytest.mark.usefixtures("toy")
def test_what_does_not_fit_is_left_out(monkeypatch):
    small = Machine.load("rtx3090").__class__(**{**Machine.load("rtx3090").__dict__, "memory_bytes": SIZE.total_bytes * 0.7})
    monkeypatch.setattr("finemoe.simulation.testbed.Testbed.load", classmethod(lambda *_: small))
    table = latency_table(HISTORY, SERVED, LATENCY_SYSTEMS, "rtx3090", [0.25, 0.9], prefetch_distance=1)
    assert set(table.expert_memory) == {0.25}
    assert "No-offload" not in set(table.system)


@pytest.mark.usefixtures("toy")
def test_distances_are_served_one_by_one():
    table = distance_table(HISTORY, SERVED, "rtx3090", 0.25, [1, 3])
    expected = finemoe.replay(SERVED, "finemoe", 0.25, hardware="rtx3090", history=HISTORY, prefetch_distance=3)
    found = table[(table.system == "FineMoE") & (table.prefetch_distance == 3)]
    assert found.tpot_s.tolist() == [one.tpot_s for one in expected.requests]


def test_means_weigh_requests_by_their_steps():
    table = requests(FineMoE=[0.1, 0.2, 0.3])
    found = means(table, ["system"]).iloc[0]
    assert found.tpot_s == pytest.approx((0.1 * 10 + 0.2 * 11 + 0.3 * 12) / 33)
    assert found.tpot_s_low < found.tpot_s < found.tpot_s_high
    assert found.ttft_s == pytest.approx(0.4)
    assert found.hit_rate == 0.5


def test_a_reduction_is_paired_over_requests():
    """Half as long in every request: no interval, although the requests differ."""
    slow, fast = requests(a=[1.0, 2.0, 9.0]), requests(b=[0.5, 1.0, 4.5])
    gain = reduction(slow, fast, "tpot_s")
    assert gain.value == pytest.approx(0.5)
    assert (gain.low, gain.high) == pytest.approx((0.5, 0.5))


def test_gains_of_what_was_not_recorded_have_no_row():
    table = requests(FineMoE=[0.1] * 3, ProMoE=[0.2] * 3).assign(ttft_s=np.nan, model="gpt-oss-20b", dataset="mixed")
    gains = verdicts.gains_table(table)
    assert set(zip(gains.quantity, gains.baseline, strict=True)) == {("tpot_s", "ProMoE"), ("hit_rate", "ProMoE")}


def gains(**changed: float) -> pd.DataFrame:
    """Every gain 0.5, but for the baselines named on real routing."""
    rows = [
        {"model": model, "dataset": "d", "quantity": quantity, "baseline": baseline, "gain": value, "low": value - 0.01}
        | {"high": value + 0.01, "reported": 0.5}
        for model in ("mixtral-mini", "gpt-oss-20b")
        for quantity, reported in verdicts.REPORTED_GAINS.items()
        for baseline in reported
        for value in [changed.get(baseline, 0.5) if model == "gpt-oss-20b" else 0.5]
    ]
    return pd.DataFrame(rows)


def test_verdicts_of_the_systems():
    assert verdicts.systems_claim("F10", "Fig. 10", gains()).verdict == "holds"
    behind_one = verdicts.systems_claim("F10", "Fig. 10", gains(ProMoE=-0.1))
    assert behind_one.verdict == "holds weaker"
    assert behind_one.reproduced.startswith("decided by hit rate above a baseline's: 2 of 3 (gpt-oss-20b); miniatures: ")
    assert "ProMoE in hit rate on gpt-oss-20b" in behind_one.why
    behind_two = {"ProMoE": -0.1, "DeepSpeed-Inference": -0.1}  # of the four in latency, on real routing alone
    assert verdicts.systems_claim("F10", "Fig. 10", gains(**behind_two)).verdict == "does not hold"


def test_verdicts_of_the_headline():
    assert verdicts.headline_claim(gains()).verdict == "holds"
    short = verdicts.headline_claim(gains(ProMoE=0.1))  # by two of eight cuts on one of two panels
    assert (short.verdict, short.reproduced.split(";")[0]) == (
        "does not hold",
        "decided by latency better by 47% at least: 0 of 1 (gpt-oss-20b)",
    )


def test_without_real_routing_no_verdict_leans_on_it():
    """None recorded on a real model: an empty panel neither helps nor hurts."""
    miniatures = gains()
    miniatures = miniatures[miniatures.model == "mixtral-mini"].copy()
    assert verdicts.systems_claim("F10", "Fig. 10", miniatures).verdict == "holds"
    miniatures.loc[miniatures.index[:2], ["gain", "low"]] = -0.1  # two of four in TTFT
    claim = verdicts.systems_claim("F10", "Fig. 10", miniatures)
    assert (claim.verdict, claim.panel) == ("does not hold", "miniatures only")
    assert claim.reproduced.startswith("decided by TTFT below a baseline's: 2 of 4 (miniatures); ")


def test_cache_limits_are_those_that_every_model_has():
    tpot = gains().query("quantity == 'tpot_s'")
    limits = [tpot.assign(cache_limit_gb=limit) for limit in (6, 48)] + [
        tpot[tpot.model == "gpt-oss-20b"].assign(cache_limit_gb=96)
    ]
    claim = verdicts.cache_limit_claim(pd.concat(limits))
    assert "at 6 GB" in claim.reproduced
    assert "At 48 GB" in claim.why


@pytest.mark.usefixtures("toy")
def test_a_machine_without_room_is_named(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(
        (FOLDER / "rtx3090.yaml").read_text().replace("memory_bytes: {value: 24.0e+9", "memory_bytes: {value: 24.0e+6")
    )
    systems = {"FineMoE": LATENCY_SYSTEMS["FineMoE"]}
    with pytest.raises(FinemoeError, match=r"toy fits on .* at none of the sizes 0\.9; add smaller ones"):
        latency_table(HISTORY, SERVED, systems, str(path), [0.9], prefetch_distance=1)


def test_a_minimum_must_lie_inside():
    table = pd.concat(
        [
            requests(FineMoE=values).assign(model="mixtral-mini", dataset="d", prefetch_distance=distance)
            for distance, values in {1: [3.0] * 3, 3: [1.0] * 3, 8: [2.0] * 3}.items()
        ]
    )
    minima = verdicts.distance_minima(table)
    assert minima.best_distance.tolist() == [3]
    assert minima.is_inside.tolist() == [True]
    falling = table.assign(tpot_s=1.0 / table.prefetch_distance)
    assert verdicts.distance_minima(falling).is_inside.tolist() == [False]
    assert verdicts.distance_claim(verdicts.distance_minima(falling)).verdict == "does not hold"


@pytest.mark.parametrize(
    ("ttft_s", "best", "verdict"),
    [
        ({1: 3.0, 3: 1.0, 8: 2.0}, 3, "holds"),
        ({1: 3.0, 3: 2.0, 8: 1.0}, 8, "does not hold"),
        ({1: 1.0, 3: 2.0, 8: 3.0}, 1, "does not hold"),
    ],
)
def test_ttft_must_have_its_minimum_inside_too(ttft_s, best, verdict):
    """Real routing tells TPOT alone; its minimum does not make up for a TTFT that has none on the miniatures."""
    one = pd.concat(
        [
            requests(FineMoE=values).assign(dataset="d", prefetch_distance=distance, ttft_s=ttft_s[distance])
            for distance, values in {1: [3.0] * 3, 3: [1.0] * 3, 8: [2.0] * 3}.items()
        ]
    )
    both = pd.concat([one.assign(model="mixtral-mini"), one.assign(model="gpt-oss-20b", ttft_s=np.nan)])
    minima = verdicts.distance_minima(both).set_index("model")
    assert minima.best_ttft_distance["mixtral-mini"] == best
    assert np.isnan(minima.best_ttft_distance["gpt-oss-20b"])
    assert verdicts.distance_claim(minima.reset_index()).verdict == verdict


def test_gains_on_the_a100_are_compared_panel_by_panel():
    """A mean over miniatures and real routing would hide that one of them contradicts."""
    rows = [
        {"model": model, "dataset": "d", "quantity": "tpot_s", "baseline": baseline, "gain": gain, "low": gain - 0.01}
        | {"gain_paper_testbed": before}
        for model, gains in {"mixtral-mini": (0.4, 0.5), "gpt-oss-20b": (0.3, -0.3)}.items()
        for baseline, gain, before in zip(("MoE-Infinity", "ProMoE"), gains, (0.5, 0.6), strict=True)
    ]
    claim = verdicts.high_end_claim(pd.DataFrame(rows))
    assert claim.verdict == "does not hold"
    assert "miniatures: TPOT against MoE-Infinity -40%" in claim.reproduced
    assert "gpt-oss-20b: TPOT against MoE-Infinity -30%" in claim.reproduced
    agreeing = [row | {"gain": row["gain_paper_testbed"] - 0.1, "low": 0.1} for row in rows]
    assert verdicts.high_end_claim(pd.DataFrame(agreeing)).verdict == "holds"
    losing = [row | {"gain_paper_testbed": -0.1, "gain": -0.2} if row["model"] == "gpt-oss-20b" else row for row in rows]
    lost = verdicts.high_end_claim(pd.DataFrame(losing))  # a loss that grows is no gain that shrinks
    assert lost.reproduced.startswith("decided by a mean gain, smaller than on the six RTX 3090: 0 of 2 (gpt-oss-20b)")


def test_low_on_both_axes_is_three_statements():
    """Fastest everywhere and small everywhere, but far slower than No-offload in most panels: that is no low latency."""
    names = ("DeepSpeed-Inference", "ProMoE", "on-demand (LRU)")
    panels = [
        requests(FineMoE=[0.1] * 3, **dict.fromkeys(names, [0.2] * 3)).assign(model="mixtral-mini", dataset=dataset)
        for dataset in ("a", "b", "c")
    ]
    table = pd.concat(panels).replace({"system": {"on_demand": "on-demand (LRU)"}})
    rows = [
        {"model": "mixtral-mini", "dataset": dataset, "system": system, "total_gb": total_gb, "tpot_s": tpot_s}
        for dataset, slowdown in (("a", 1.5), ("b", 7.4), ("c", 7.4))
        for system, total_gb, tpot_s in (("FineMoE", 28, slowdown), ("No-offload", 100, 1))
    ]
    claim = verdicts.footprint_claim(table, pd.DataFrame(rows))
    assert claim.verdict == "does not hold"
    assert claim.reproduced.startswith("decided by less than twice No-offload's TPOT: 1 of 3 (miniatures); ")


def test_memory_in_parts_adds_up():
    cells = pd.DataFrame({"model": "mixtral-mini", "system": ["FineMoE", "No-offload", "MoE-Infinity"], "expert_memory": 0.25})
    table = footprint_table(cells, "6x-rtx3090", store_capacity=1000, context_tokens=100)
    size = size_named("mixtral-mini")
    assert table.experts_gb[1] == pytest.approx(size.all_experts_bytes / 1e9)
    assert table.experts_gb[0] == pytest.approx(CostModel(size, Machine.load("6x-rtx3090")).cache_bytes(0.25) / 1e9)
    assert table.memory_of_past_gb[2] == pytest.approx(120 * 32 * 8 * 8 / 1e9)
    parts = table[["experts_gb", "other_weights_gb", "kv_cache_gb", "memory_of_past_gb"]].sum(axis=1)
    np.testing.assert_allclose(table.total_gb, parts)


@pytest.mark.usefixtures("toy")
def test_online_latency_is_service_and_waiting():
    arrivals = azure_like(5, seed=2).assign(prompt_tokens=[3, 9, 4, 2, 6], new_tokens=[4, 2, 9, 3, 3])
    systems = {name: LATENCY_SYSTEMS[name] for name in ("FineMoE", "MoE-Infinity", "ProMoE", "Mixtral-Offloading")}
    table = online_table(TRACE, arrivals, systems, "rtx3090", 0.5, prefetch_distance=1, training=HISTORY)
    assert len(table) == 20
    np.testing.assert_allclose(table.latency_s, table.service_s + table.waiting_s)
    np.testing.assert_allclose(table.service_s, table.ttft_s + table.tpot_s * table.num_decode_steps)
    first = table[table.system == "FineMoE"]
    ends = (first.arrival_s + first.latency_s).to_numpy()
    assert (np.diff(ends) > 0).all()  # one at a time
    assert set(online_summary(table.assign(model="m")).system) == set(systems)


def test_synthetic_models_have_a_published_size():
    trace = synthetic_trace(Recipe(0.2, 0.2, 0.5, 8), 94, 128, 8, 2, 2)
    report = finemoe.replay(trace, "on-demand", 0.25, hardware="h200", model="qwen3-235b-a22b", devices=4)
    assert report.tpot_s > 0


def test_the_floor_is_loading_on_demand():
    table = requests(FineMoE=[0.1] * 3, on_demand=[0.2] * 3).assign(model="gpt-oss-20b", dataset="mixed")
    assert verdicts.against_on_demand(table).endswith("FineMoE's TPOT is -50% on gpt-oss-20b.")
    text = verdicts.against_on_demand(table)
    assert verdicts.systems_claim("F10", "Fig. 10", gains(), text).why.endswith(text)
