"""What must come out alike with Numba and without: `python -m tests.uncompiled` prints as JSON what does without.

(Nothing here imports Numba itself.)
"""

import json
import sys
import warnings
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":
    sys.modules["numba"] = None  # as if it were not installed
    warnings.filterwarnings("ignore", "Numba cannot be imported")

import numpy as np
import torch

import finemoe
from finemoe.maps.kernels import gather_rows, nearest_neighbours
from finemoe.maps.ranking import rank_as_selected
from finemoe.maps.selection import select_rows
from finemoe.policies import POLICIES
from finemoe.policies.predictors import add_products
from finemoe.traces import RoutingTrace
from tests.simulation.golden import FILE
from tests.simulation.test_hardware import SIZE

PROMPT = torch.arange(20, 32)[None]


def replays() -> dict[str, list[float]]:
    """Counts of every system on a small trace, and counts and times of some in virtual time."""
    trace = RoutingTrace.load(FILE)
    history, served = trace.split("history"), trace.split("served")
    found = {}
    for policy in POLICIES:
        report = finemoe.replay(served, policy, 9 / 24, history=history, prefetch_distance=2)
        found[policy] = [report.hits, report.misses, report.prefetched_bytes, report.wasted_bytes, report.unused_resident_bytes]
    for policy in ("finemoe", "promoe", "mixtral-offloading", "on-demand"):
        with patch("finemoe.simulation.replay.size_of", lambda *_: SIZE):
            report = finemoe.replay(served, policy, 9 / 24, hardware="rtx3090", history=history, prefetch_distance=2)
        found[f"{policy} in time"] = [report.hits, report.late, report.misses, report.stall_s, report.ttft_s, report.tpot_s]
    return found


def kernels() -> dict[str, Any]:
    """What loops give whose sums and comparisons come out otherwise in another precision or order."""
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(100, 0.5), size=200).astype(np.float32)
    falling = -np.sort(-probs.astype(np.float64), axis=1)
    thresholds = falling.cumsum(axis=1)[np.arange(200), rng.integers(1, 99, 200)]  # just reached, in double precision
    selected = np.zeros(probs.shape, dtype=np.bool_)
    select_rows(probs, thresholds, 3, selected)
    scores = np.zeros((4, 20), dtype=np.float32)
    add_products(probs[:4], rng.normal(size=(100, 20)).astype(np.float32), scores)
    codes, records = rng.integers(0, 1 << 16, (20, 9)).astype(np.uint16), rng.integers(0, 9, 4)
    rows = np.zeros((4, 20), dtype=np.float32)
    gather_rows(codes, records, rows)
    dots, norms = rng.random((5, 9)).astype(np.float32), rng.random(9).astype(np.float32)
    nearest, values = np.zeros(5, dtype=np.int64), np.zeros(5, dtype=np.float32)
    nearest_neighbours(dots, norms, np.array([1, 2, 0, 3, 4], dtype=np.float32), nearest, values)
    ranked = rank_as_selected(probs[:50].astype(np.float16).astype(np.float32), rng.integers(0, 101, (50, 4)))
    return {
        "ranked": ranked.tolist(),
        "selected": selected.sum(axis=1).tolist(),
        "thresholds": [int(count) for count in (falling.cumsum(axis=1) < thresholds[:, None]).sum(axis=1) + 1],
        "scores": scores.tolist(),
        "rows": rows.tolist(),
        "nearest": nearest.tolist(),
        "values": values.tolist(),
    }


def offloaded(policy: str) -> list[Any]:
    """Greedy tokens and their logits of a miniature, offloaded."""
    model, engine = finemoe.load("qwen-mini", 0.4, policy)
    with engine:
        found = generated(model)
        assert engine.report().misses > 0
    return found


def generated(model) -> list[Any]:
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        done = model.generate(PROMPT, **options, return_dict_in_generate=True, output_logits=True)
    return [done.sequences.tolist(), torch.stack(done.logits).tolist()]


if __name__ == "__main__":
    found = {"replays": replays(), "kernels": kernels()}
    print(json.dumps(found | {policy: offloaded(policy) for policy in ("on-demand", "finemoe")}))
