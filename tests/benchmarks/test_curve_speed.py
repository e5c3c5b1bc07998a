"""Hit rates of every rule and size from a million layer events, beside the same questions put to a replay in plain Python.

The targets: under 20 s on two cores for eight rules and 16 sizes, with memory that does not grow with the trace.
"""

import resource
import time
from collections import OrderedDict

import numpy as np
import pytest

from finemoe.advice.systems import RULES
from finemoe.importers.gpt_oss import load_gpt_oss, sample_path
from finemoe.simulation.curves import hit_curves
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from finemoe.traces import RoutingTrace

pytestmark = pytest.mark.timeout(900)
LAYERS, EXPERTS, TOP_K = 24, 32, 4  # of gpt-oss-20b
EVENTS = 1_000_000
SIZES = np.linspace(LAYERS * TOP_K // 2, LAYERS * EXPERTS, 16).astype(int)
PLAIN_EVENTS = 20_000  # of the plain replay, which takes minutes for a million


def synthetic() -> RoutingTrace:
    tokens = 256
    return synthetic_trace(Recipe(0.2, 0.3, 0.8, 16), LAYERS, EXPERTS, TOP_K, EVENTS // LAYERS // tokens + 1, tokens)


def recorded() -> RoutingTrace:
    if not sample_path().is_file():
        pytest.skip("the public gpt-oss-20b trace is not here")
    trace = load_gpt_oss(sample_path())
    return trace.select(range(int(np.searchsorted(trace.offsets, EVENTS // LAYERS))))


@pytest.mark.parametrize("source", [synthetic, recorded], ids=lambda source: source.__name__)
def test_eight_rules_at_sixteen_sizes(benchmark, source):
    trace = source()
    hit_curves(trace.select([0]), RULES, SIZES)  # compiled before it is timed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    curves = benchmark.pedantic(hit_curves, (trace, RULES, SIZES), rounds=1)
    seconds, num_events = benchmark.stats.stats.min, trace.num_rows * LAYERS
    benchmark.extra_info["layer_events"] = num_events
    benchmark.extra_info["seconds_per_million_events"] = round(seconds / num_events * 1e6, 2)
    benchmark.extra_info["grown_megabytes"] = round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3)
    rows = np.arange(PLAIN_EVENTS // LAYERS)
    part = trace.arranged(rows, np.array([0, len(rows)]), step=rows.astype(np.int32))
    begin = time.perf_counter()
    plain = [plain_lru_hits(part, size) for size in SIZES]
    plain_s = time.perf_counter() - begin
    assert plain == hit_curves(part, ["lru"], SIZES)["lru"].hits.sum(axis=0).tolist()
    each_plain, each = plain_s / (part.num_rows * LAYERS), seconds / num_events / len(RULES)
    benchmark.extra_info["plain_python_over_this"] = round(each_plain / each)
    assert curves["belady"].hit_rates[8] > curves["lru"].hit_rates[8]


def plain_lru_hits(trace: RoutingTrace, size: int) -> int:
    """One token an iteration; the loop that a trace recorder's own script would have."""
    held: OrderedDict[tuple[int, int], int] = OrderedDict()
    uses: dict[tuple[int, int], int] = {}
    hits = 0
    for row in trace.expert_ids.tolist():
        for layer, experts in enumerate(row):
            keys = sorted((layer, expert) for expert in experts)
            hits += sum(key in held for key in keys)
            for key in keys:
                uses[key] = uses.get(key, 0) + 1
            for key in sorted(keys, key=lambda key: (uses[key], key)):
                held[key] = 0
                held.move_to_end(key)
            while len(held) > size:
                held.popitem(last=False)
    return hits
