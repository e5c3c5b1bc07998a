"""No claim about the paper changes with what is not in it: the same tables with its rows, best or worst of all, and without."""

from collections.abc import Callable

import pandas as pd
import pytest

from finemoe.artifact.analysis.latency import BOUNDS, OURS, PAPER_SYSTEMS, means
from finemoe.artifact.claims import Claim
from finemoe.artifact.verdicts.batches import batch_claim
from finemoe.artifact.verdicts.footprint import footprint_claim
from finemoe.artifact.verdicts.gains import against_on_demand, gains_table
from finemoe.artifact.verdicts.headline import headline_claim
from finemoe.artifact.verdicts.memory import cache_limit_claim, cache_limit_tests
from finemoe.artifact.verdicts.online import online_claim, online_tests
from finemoe.artifact.verdicts.systems import high_end_claim, systems_claim
from tests.artifact.tables import requests

PANEL = ["model", "dataset"]


def panels(ours: dict[str, float]) -> pd.DataFrame:
    """Requests of the paper's systems and of its bounds on two kinds of routing, and of `ours` with these TPOTs."""
    seconds = {name: 0.1 + 0.02 * place for place, name in enumerate([*PAPER_SYSTEMS, *BOUNDS])} | ours
    table = requests(**{name: [tpot_s, 1.1 * tpot_s, 0.9 * tpot_s] for name, tpot_s in seconds.items()})
    hits = (10 / (1 + table.tpot_s)).round()  # who is faster hits more
    timed = table.assign(hits=hits, service_s=table.tpot_s, latency_s=2 * table.tpot_s, dataset="questions")
    return pd.concat([timed.assign(model=model) for model in ("mixtral-mini", "gpt-oss-20b")], ignore_index=True)


def of_systems(table: pd.DataFrame) -> Claim:
    return systems_claim("F10", "Fig. 10", gains_table(table), against_on_demand(table))


def of_cache_limits(table: pd.DataFrame) -> Claim:
    limited = pd.concat([table.assign(cache_limit_gb=limit) for limit in (6, 48)])
    gains = gains_table(limited, by=(*PANEL, "cache_limit_gb"))
    return cache_limit_claim(cache_limit_tests(gains[gains.quantity == "tpot_s"]), against_on_demand(table))


def of_high_end(table: pd.DataFrame) -> Claim:
    gains = gains_table(table)
    return high_end_claim(gains.assign(gain_paper_testbed=gains.gain + 0.1), against_on_demand(table))


def of_footprints(table: pd.DataFrame) -> Claim:
    summary = means(table, [*PANEL, "system"])
    return footprint_claim(table, summary.assign(total_gb=30 + 70 * (summary.system == "No-offload")))


def of_batches(table: pd.DataFrame) -> Claim:
    return batch_claim(gains_table(table.assign(batch_size=1), by=(*PANEL, "batch_size")))


CLAIMS: dict[str, Callable[[pd.DataFrame], Claim]] = {
    "F1b": of_footprints,
    "F10": of_systems,
    "F11": lambda table: online_claim(online_tests(table), table.request.nunique()),
    "F12": of_cache_limits,
    "F13": of_high_end,
    "F16b": of_batches,
    "H": lambda table: headline_claim(gains_table(table)),
}


@pytest.mark.parametrize("id_", CLAIMS)
@pytest.mark.parametrize("tpot_s", [0.001, 9.0], ids=["the best", "the worst"])
def test_claims_are_the_same_without_what_is_not_in_the_paper(id_, tpot_s):
    added, bare = panels(dict.fromkeys(OURS, tpot_s)), panels({})
    assert set(added.system) - set(bare.system) == set(OURS)
    found = CLAIMS[id_](added)
    assert found == CLAIMS[id_](bare)
    assert not [name for name in OURS if name in str(found)]
