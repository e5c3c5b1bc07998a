"""docs/gallery.md equals its tables, and the publisher's numbers are compared with those computed here."""

import csv
import itertools
import json
import re

import numpy as np
import pytest

from finemoe.artifact.advice.gallery import PAGE, PICTURES, TABLES, TESTBEDS, page
from finemoe.artifact.advice.real_traces import GEMMA, NOT_SHOWN, REAL_TRACES, slots_of
from finemoe.importers import read_trace
from finemoe.traces import DECODE


def rows_of(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_is_its_tables():
    assert PAGE.read_text(encoding="utf-8") == page(), "renew it: python -m finemoe.artifact.advice.gallery --from-tables"


def test_every_trace_on_every_machine_and_every_picture():
    facts = json.loads((TABLES / "facts.json").read_text(encoding="utf-8"))
    text = PAGE.read_text(encoding="utf-8")
    assert list(facts) == [real.name for real in REAL_TRACES]
    assert all(list(machines) == list(TESTBEDS) for machines in facts.values())
    shown = re.findall(r"\]\((gallery/[^)]+)\)", text)
    assert sorted(shown) == sorted(f"{PICTURES.name}/{path.name}" for path in PICTURES.iterdir())
    for real in REAL_TRACES:
        assert f"https://github.com/{real.publisher}" in text
        assert real.licence in text
        assert real.title in text
    assert all(name in text for name in NOT_SHOWN)


def test_recommended_times_are_those_of_the_table():
    """The number of the first sentence, found again in times.csv."""
    facts = json.loads((TABLES / "facts.json").read_text(encoding="utf-8"))
    text, times = PAGE.read_text(encoding="utf-8"), rows_of("times.csv")
    for trace, machines in facts.items():
        for testbed, found in machines.items():
            chosen = found["recommendation"]
            here = [row for row in times if (row["trace"], row["testbed"], row["fits"]) == (trace, testbed, "True")]
            (row,) = [r for r in here if (r["system"], int(r["slots"])) == (chosen["system"], chosen["slots"])]
            assert f"{1e3 * float(row['tpot_s']):.2f}" in text
            causal = [r for r in here if r["system"] not in ("oracle", "Belady (on demand)", "everything resident")]
            assert float(row["tpot_s"]) <= 1.1 * min(float(r["tpot_s"]) for r in causal) * (1 + 1e-5)


def test_tables_hold_results_only():
    """Nothing of what a trace consists of: no experts, no tokens one by one."""
    for path in TABLES.iterdir():
        assert path.stat().st_size < 300_000
        if path.suffix == ".csv":
            assert not {"expert", "expert_id", "token", "step", "prompt", "request"} & set(rows_of(path.name)[0])


def test_published_numbers_are_near_those_computed():
    rows = {row["quantity"]: row for row in rows_of("published.csv")}
    assert len(rows) == len(GEMMA.published) == 6
    for row in rows.values():
        published, computed = (float(row[name].split()[0]) for name in ("published", "computed"))
        assert computed == pytest.approx(published, abs=0.5)
    assert rows["distinct experts of a layer, mean (least, greatest)"]["computed"] == "66.9 (52, 97)"


@pytest.mark.skipif(not GEMMA.path().is_file(), reason="the public sample is not here")
def test_published_numbers_are_computed_from_the_trace():
    """Counted again by plain loops."""
    trace, rows = read_trace(GEMMA.path()), {row["quantity"]: row for row in rows_of("published.csv")}
    tokens = trace.expert_ids[trace.phase == DECODE].tolist()
    pairs = [layers for before, after in itertools.pairwise(tokens) for layers in zip(before, after, strict=True)]
    same = sum(len(set(one) & set(other)) for one, other in pairs)
    assert rows["recall of the token before, %"]["computed"] == f"{100 * same / (6 * len(pairs)):.1f}"
    slots, cache, hits, demands = slots_of(trace, 4000 << 20), {}, 0, 0
    for _, _, rows_here in trace.iterations():
        for layer in range(30):
            needed = sorted({(layer, int(expert)) for expert in trace.expert_ids[rows_here, layer].reshape(-1)})
            demands += len(needed)
            hits += sum(expert in cache for expert in needed)
            for expert in needed:
                cache.pop(expert, None)
                cache[expert] = True
            while len(cache) > slots:
                cache.pop(next(iter(cache)))
    assert slots == int(4000 * 1024 * 1024 / np.mean(trace.expert_bytes))
    computed = float(rows["hit rate of LRU with a cache of 4000 MiB, prompt included, %"]["computed"])
    assert computed == pytest.approx(100 * hits / demands, abs=0.1)
