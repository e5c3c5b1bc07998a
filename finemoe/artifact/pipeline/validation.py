"""The simulator against the live engine on this machine: same requests, policy, cache and (paced) link, predicted and measured.

What the prediction knows of the machine is measured apart from what it predicts, with other prompts: a token's time with
everything resident and with nothing to load, one search, and what a wait costs beyond its length.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import finemoe
from finemoe.artifact.pipeline.noise import busy_share
from finemoe.artifact.pipeline.serving import serve
from finemoe.artifact.pipeline.timing import (
    expert_time_s,
    one_expert_bytes,
    paced_link,
    prefetch_time_s,
    software_time_s,
    wake_time_s,
)
from finemoe.chunks import PACED_CHUNK_S
from finemoe.policies import make_policy
from finemoe.policies.base import Context, Policy
from finemoe.policies.block import Block
from finemoe.report import Report
from finemoe.runtime.loading import load_model
from finemoe.simulation.kernel_inputs import Durations
from finemoe.simulation.replay import paced, replay_setup
from finemoe.traces import RoutingTrace

_LOAD_S = 2e-3  # a wait of the usual length


@dataclass(frozen=True)
class Machine:
    """Micro-measurements of one model on this machine, in seconds.

    Attributes:
        prefill_s, decode_s: of an iteration with everything resident. expert_s: one expert's arithmetic for one token.
        engine_s: what a policy's accounting, publishing and searching adds to a layer, by policy. wake_s: what a wait for a load
            costs beyond its length.
    """

    expert_bytes: int
    prefill_s: float
    decode_s: float
    expert_s: float
    engine_s: dict[str, float]
    wake_s: float


@dataclass(frozen=True)
class MeasuredPace:
    """A machine's pace with a paced link.

    Args:
        machine: its micro-measurements. policy: name. load_s, prefetch_s: one expert over the link, on demand and ahead.
        search_s: the policy's own work at an iteration's start and at a gate.
    """

    machine: Machine
    policy: str
    load_s: float
    prefetch_s: float
    search_s: tuple[float, float]
    num_devices: int = 1
    hidden_size: int = 0
    hand_over_s: float = 0.0
    hits_first: bool = True

    @property
    def expert_bytes(self) -> int:
        return self.machine.expert_bytes

    @property
    def chunk_s(self) -> float:
        return self.prefetch_s / max(1, round(self.load_s / PACED_CHUNK_S))

    @property
    def wake_s(self) -> float:
        return self.machine.wake_s

    def durations(
        self, trace: RoutingTrace, block: Block, begins: np.ndarray, demanded: np.ndarray, read_bytes: np.ndarray
    ) -> Durations:
        """Of every event of a block; the policy's own work was measured, whatever it reads."""
        num_layers, machine = trace.num_layers, self.machine
        per_layer = np.where(block.is_prefill, machine.prefill_s, machine.decode_s) / num_layers
        experts_s = machine.expert_s * np.diff(begins)
        before = np.repeat(per_layer, num_layers) + machine.engine_s[self.policy] - experts_s
        search = np.zeros((block.num_iterations, num_layers, 2))
        search[:, 0, 0], search[:, :, 1] = self.search_s
        return Durations(
            before=np.maximum(before, 0.0),
            expert=np.full(len(demanded), machine.expert_s),
            after=np.zeros(block.num_iterations * num_layers),
            search=search.reshape(-1),
            earliest=np.zeros(block.num_iterations * num_layers),
        )


def measure_machine(
    source: str, prompts: list[str], num_tokens: int, policies: list[str], num_rounds: int, **options: Any
) -> Machine:
    """Micro-measurements of a model.

    Args:
        prompts: others than those that are predicted. options: history, prefetch_distance and store_capacity of the policies.
    """
    model, tokenizer = load_model(source)
    with finemoe.offload(model, 1.0, "on-demand") as engine:
        engine.preload()
        serve(model, tokenizer, prompts[:1], num_tokens, engine)  # warms up
        served = [one.report for one in serve(model, tokenizer, prompts, num_tokens, engine)]
        expert_s = expert_time_s(engine, num_rounds)
        num_layers = len(engine.layers)
    prefill_s, decode_s = (float(np.mean([one[name] for one in served])) for name in ("ttft_s", "tpot_s"))
    engine_s = {}
    for policy in policies:
        software_s = software_time_s(model, tokenizer, prompts, num_tokens, policy, **options)
        engine_s[policy] = max(0.0, software_s - decode_s) / num_layers
    wake_s = wake_time_s(model, tokenizer, prompts, num_tokens, _LOAD_S)
    return Machine(one_expert_bytes(model), prefill_s, decode_s, expert_s, engine_s, wake_s)


def validation_table(
    source: str,
    machine: Machine,
    prompts: list[str],
    num_tokens: int,
    history: RoutingTrace,
    loads_ms: list[float],
    expert_memories: list[float],
    policies: list[str],
    prefetch_distance: int,
    store_capacity: int = 1000,
) -> pd.DataFrame:
    """TPOT predicted and measured, for every policy, cache size and bandwidth.

    Args:
        history: what a policy knows beforehand. loads_ms: time one expert takes on the link, which stands for its bandwidth.
    Returns:
        Rows (policy, expert_memory, load_ms, predicted_tpot_s, measured_tpot_s, error, predicted_hit_rate, measured_hit_rate,
        busy), error relative to what was measured, busy the share of the cores that other work took (`noise.busy_share`). One
        round: `noise.judged_predictions` says what several tell.
    """
    model, tokenizer = load_model(source)
    trace = finemoe.record(model, prompts, tokenizer=tokenizer, max_new_tokens=num_tokens, batch_size=1)
    rows = []
    for load_ms in loads_ms:
        bytes_per_s = machine.expert_bytes / (load_ms / 1e3)
        prefetch_s = prefetch_time_s(model, load_ms / 1e3)
        for policy in policies:
            for share in expert_memories:
                options: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity}
                predicted = _predict(trace, policy, share, history, machine, (load_ms / 1e3, prefetch_s), options)
                measured = _measure(
                    model, tokenizer, prompts, num_tokens, policy, share, history, paced_link(bytes_per_s), options
                )
                cell = {"policy": policy, "expert_memory": share, "load_ms": load_ms}
                rows.append(cell | _compared(predicted, measured) | {"busy": busy_share()})
    return pd.DataFrame(rows)


def _predict(
    trace: RoutingTrace,
    policy: str,
    share: float,
    history: RoutingTrace,
    machine: Machine,
    link_s: tuple[float, float],
    options: dict[str, Any],
) -> Report:
    setup = replay_setup(trace, history, **options)
    start_s, gate_s = search_times_s(make_policy(policy, setup, is_replay=True), trace)
    # Matcher and inference take turns at Python's lock: an answer is there no sooner than what it adds to its layer has passed.
    search_s = start_s, max(gate_s, machine.engine_s[policy] - machine.engine_s["on-demand"])
    system = make_policy(policy, setup, is_replay=True)
    pace = MeasuredPace(machine, policy, *link_s, search_s)
    return paced(trace, policy, system, [(share, system.default_eviction)], pace)[0]


def _measure(
    model: Any,
    tokenizer: Any,
    prompts: list[str],
    num_tokens: int,
    policy: str,
    share: float,
    history: RoutingTrace,
    link: str,
    options: dict[str, Any],
) -> Report:
    with finemoe.offload(model, share, policy, history=history, link=link, **options) as engine:
        for prompt in prompts:
            inputs = tokenizer(prompt, return_tensors="pt")
            model.generate(**inputs, max_new_tokens=num_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        report: Report = engine.report()
    return report


def _compared(predicted: Report, measured: Report) -> dict[str, float]:
    return {
        "predicted_tpot_s": predicted.tpot_s,
        "measured_tpot_s": measured.tpot_s,
        "error": predicted.tpot_s / measured.tpot_s - 1,
        "predicted_ttft_s": predicted.ttft_s,
        "measured_ttft_s": measured.ttft_s,
        "predicted_hit_rate": predicted.hit_rate,
        "measured_hit_rate": measured.hit_rate,
    }


def search_times_s(policy: Policy, trace: RoutingTrace, num_iterations: int = 20) -> tuple[float, float]:
    """Median time of a policy's own work at an iteration's start and at a gate, one decode row at a time."""
    if not policy.needs_context:
        return 0.0, 0.0
    starts_s, gates_s = [], []
    rows = np.flatnonzero(trace.phase == 1)[:num_iterations]
    for row in rows:
        maps, experts = trace.maps(slice(row, row + 1)), trace.expert_ids[row : row + 1].astype(np.int64)
        begin_s = time.perf_counter()
        policy.start_iteration(Context(trace.embeddings(slice(row, row + 1)), is_prefill=False, starts_request=False))
        starts_s.append(time.perf_counter() - begin_s)
        for layer in range(trace.num_layers):
            probs = np.ascontiguousarray(maps[:, layer])
            begin_s = time.perf_counter()
            policy.on_gate(layer, probs, experts[:, layer])
            gates_s.append(time.perf_counter() - begin_s)
        policy.end_iteration()
    return float(np.median(starts_s)), float(np.median(gates_s))
