"""What a policy's own work takes at a gate (run with `make bench`): compiled steps of FineMoE and finemoe-plus, token by token.

On the shipped trace of the Qwen miniature, 24 layers of 60 experts; FineMoE searches a store of as many maps as the history has,
up to 1,000. Rounds of the systems are interleaved, so that what else the machine does meets all of them.
"""

import time

import numpy as np
import pytest

from finemoe.maps.following import follow_gate
from finemoe.maps.forecast_step import foretell_gate
from finemoe.paths import DATA
from finemoe.policies import make_policy
from finemoe.policies.base import Context, Policy
from finemoe.simulation.replay import replay_setup
from finemoe.traces import DECODE, RoutingTrace

ROUNDS, ROWS = 30, 40
pytestmark = pytest.mark.timeout(600)


def seconds_of_gates(policy: Policy, step_function, gates: np.ndarray, experts: np.ndarray, embeddings: np.ndarray) -> float:
    """Mean over decode tokens and layers, the call from Python (some 3 microseconds) included; gates [T, L, 1, J]."""
    taken = 0.0
    for row in range(len(gates)):
        policy.start_iteration(Context(embeddings[row : row + 1], is_prefill=False, starts_request=row == 0))
        step = policy.gate_step(1)
        shape = step.num_targets, gates.shape[-1]
        numbers, counts = np.zeros((2, shape[0]), dtype=np.int64)
        room = numbers, np.zeros(shape, dtype=np.float32), counts, np.zeros(shape, dtype=np.int64)
        begin_s = time.thread_time()
        for layer in range(gates.shape[1]):
            step_function(step.table, layer, gates[row, layer], experts[row, layer], *room)
        taken += time.thread_time() - begin_s
        policy.end_iteration()
    return taken / (len(gates) * gates.shape[1])


def test_a_gate_answered_in_compiled_code(benchmark):
    trace = RoutingTrace.load(DATA / "traces" / "qwen-mini-40x32.trace")
    history, served = (trace.select(numbers) for numbers in np.split(np.arange(trace.num_requests), [30]))
    rows = np.flatnonzero(served.phase == DECODE)[:ROWS]
    told = (
        np.ascontiguousarray(served.maps(rows)[:, :, None]),
        np.ascontiguousarray(served.expert_ids[rows][:, :, None].astype(np.int64)),
        served.embeddings(rows),
    )
    systems = {
        "finemoe": (make_policy("finemoe", replay_setup(served, history)), follow_gate),
        "finemoe_plus_frozen": (make_policy("finemoe-plus", replay_setup(served, history)), foretell_gate),
        "finemoe_plus_learning": (make_policy("finemoe-plus", replay_setup(served)), foretell_gate),
    }
    seconds: dict[str, list[float]] = {name: [] for name in systems}

    def interleaved():
        for name, (policy, step_function) in systems.items():
            seconds[name].append(seconds_of_gates(policy, step_function, *told))

    benchmark.pedantic(interleaved, rounds=ROUNDS, warmup_rounds=3)
    for name, taken in seconds.items():
        benchmark.extra_info[f"{name}_us"] = round(1e6 * float(np.median(taken)), 1)
        ratios = np.array(taken) / np.array(seconds["finemoe"])
        benchmark.extra_info[f"{name}_over_finemoe"] = round(float(np.median(ratios)), 2)
