"""The simulator against the live engine on this machine: same requests, policy, cache and paced link, predicted and measured.

The machine is measured separately from what is predicted, with different prompts (`micro_measurements`). Every cache starts full,
with the same experts in the engine and in the simulator, so that a few tokens are representative of a served request.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import finemoe
from finemoe.artifact.pipeline.measured_pace import Machine, MeasuredPace
from finemoe.artifact.pipeline.micro_measurements import measure_machine
from finemoe.artifact.pipeline.noise import busy_share
from finemoe.artifact.pipeline.timing import generation, one_expert_bytes, paced_link
from finemoe.artifact.progress import progress
from finemoe.paths import ROOT
from finemoe.policies import make_policy, policy_named
from finemoe.policies.base import Policy
from finemoe.policies.finemoe import store_from
from finemoe.report import Report
from finemoe.runtime.link import make_link
from finemoe.runtime.loading import load_model
from finemoe.simulation.replay import paced, replay_setup
from finemoe.traces import RoutingTrace

POLICIES = ("on-demand", "mixtral-offloading", "promoe", "finemoe")
STEADY = ("on-demand", "mixtral-offloading")  # their hits do not depend on timing and must be predicted exactly


@dataclass(frozen=True)
class Subject:
    """A model that is served and predicted.

    Attributes:
        name: name of the model.
        prompts: prompts of the served requests, one after the other; trace: their routing.
        num_tokens: tokens generated per request.
        searched: routing of other requests, used to time searches.
        known: the history that each policy gets, by policy.
        policies: for replays, by name.
        options: further options of the policies.
    """

    name: str
    model: Any
    tokenizer: Any
    prompts: Sequence[str]
    num_tokens: int
    trace: RoutingTrace
    searched: RoutingTrace
    known: dict[str, Any]
    policies: dict[str, Policy]
    options: dict[str, Any]

    @classmethod
    def load(
        cls,
        folder: Path,
        prompts: Sequence[str],
        num_tokens: int,
        history: RoutingTrace,
        prefetch_distance: int,
        store_capacity: int,
        policies: Sequence[str] = POLICIES,
    ) -> "Subject":
        """Load a model's folder and record its prompts; of `history`, only as many other requests are used as fill a store."""
        model, tokenizer = load_model(str(folder))
        strides = sorted({stride for name in policies for stride in lookahead_of(name)})
        trace = finemoe.record(
            model, prompts, tokenizer=tokenizer, max_new_tokens=num_tokens, min_new_tokens=num_tokens, lookahead=strides
        )
        history = first_rows(history, store_capacity)
        options: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity}
        known: dict[str, Any] = dict.fromkeys(policies, history)
        if "finemoe" in known:  # filled only once, because this takes longer than serving a request
            known["finemoe"] = store_from(replay_setup(trace, history, **options))
        systems = {name: make_policy(name, replay_setup(trace, one, **options), is_replay=True) for name, one in known.items()}
        return cls(folder.name, model, tokenizer, prompts, num_tokens, trace, history, known, systems, options)

    @property
    def first_held(self) -> list[tuple[int, int]]:
        """All experts, (layer, expert), in the order in which caches are filled initially, alternating between layers."""
        return [(layer, expert) for expert in range(self.trace.num_experts) for layer in range(self.trace.num_layers)]


def load_subjects(
    models: Sequence[str],
    traces: Sequence[str],
    prefetch_distances: Sequence[int],
    prompts: Sequence[str],
    num_tokens: int,
    store_capacity: int,
) -> list[Subject]:
    """One subject per model folder, with the history of its trace and its d; relative paths start at the repository root."""
    return [
        Subject.load(
            ROOT / folder, prompts, num_tokens, RoutingTrace.load(ROOT / trace).split("history"), distance, store_capacity
        )
        for folder, trace, distance in progress(
            list(zip(models, traces, prefetch_distances, strict=True)), "loading models and filling stores", "model"
        )
    ]


def first_rows(history: RoutingTrace, num_rows: int) -> RoutingTrace:
    """The first requests of a history, as few as contain `num_rows` rows."""
    ends = history.offsets[1:]
    return history.select(range(min(len(ends), int(np.searchsorted(ends, num_rows)) + 1)))


def lookahead_of(policy: str) -> tuple[int, ...]:
    """The strides at which a policy wants routers applied ahead."""
    return policy_named(policy).lookahead


def validation_round(
    subject: Subject,
    other_prompts: Sequence[str],
    loads_ms: Sequence[float],
    expert_memories: Sequence[float],
    num_repetitions: int,
) -> pd.DataFrame:
    """Predict and measure TPOT once for every policy, cache size and bandwidth, after measuring this machine anew.

    Args:
        other_prompts: prompts used to measure the machine.
        loads_ms: times of one expert on the link in ms, which stand for its bandwidth.
        expert_memories: shares of all routed experts.
        num_repetitions: repetitions of every micro-measurement.
    Returns:
        Rows (model, policy, expert_memory, load_ms, predicted_tpot_s, measured_tpot_s, error, the same for TTFT, hits and loaded
        bytes, are_counts_equal, busy). The error is relative to the measurement; busy is the share of the cores taken by other
        work (`noise.busy_share`). `noise.judged_predictions` combines several rounds.
    """
    loads_s = [load_ms / 1e3 for load_ms in loads_ms]
    tools = subject.model, subject.tokenizer, other_prompts, subject.num_tokens, subject.known, loads_s, num_repetitions
    machine = measure_machine(*tools, subject.searched, **subject.options)
    rows = []
    for policy in subject.known:
        for load_ms, load_s in zip(loads_ms, loads_s, strict=True):
            predicted = predict(subject, machine, policy, load_s, expert_memories)
            for share, report in zip(expert_memories, predicted, strict=True):
                cell = {"model": subject.name, "policy": policy, "expert_memory": share, "load_ms": load_ms}
                rows.append(cell | compared(report, measure(subject, policy, load_s, share), policy) | {"busy": busy_share()})
    return pd.DataFrame(rows)


def validation_rounds(
    subjects: Sequence[Subject],
    other_prompts: Sequence[str],
    loads_ms: Sequence[float],
    expert_memories: Sequence[float],
    num_rounds: int,
    num_repetitions: int,
) -> pd.DataFrame:
    """`validation_round` of every subject, `num_rounds` times; all rows in one table."""
    turns = [subject for _ in range(num_rounds) for subject in subjects]
    rounds = [
        validation_round(subject, other_prompts, loads_ms, expert_memories, num_repetitions)
        for subject in progress(turns, "predicting and measuring", "model and round")
    ]
    return pd.concat(rounds, ignore_index=True)


def predict(subject: Subject, machine: Machine, policy: str, load_s: float, expert_memories: Sequence[float]) -> list[Report]:
    """The simulator's reports for the subject's requests, one per cache size."""
    system = subject.policies[policy]
    choices = [(share, system.default_eviction) for share in expert_memories]
    held = [layer * subject.trace.num_experts + expert for layer, expert in subject.first_held]
    return paced(subject.trace, policy, system, choices, MeasuredPace(machine, policy, load_s), first_held=held)


def measure(subject: Subject, policy: str, load_s: float, expert_memory: float) -> Report:
    """The live engine's report for the same requests."""
    history, model = subject.known[policy], subject.model
    with finemoe.offload(model, expert_memory, policy, history=history, **subject.options) as engine:
        memory = engine.memories.memories[0]
        memory.preload(subject.first_held, is_counted=False)  # over the machine's real link
        memory.connect(make_link(memory.pool.device, paced_link(one_expert_bytes(model) / load_s)))
        for prompt in subject.prompts:
            generation(model, subject.tokenizer, [prompt], subject.num_tokens)([])
        report: Report = engine.report()
    return report


def compared(predicted: Report, measured: Report, policy: str) -> dict[str, float]:
    """The numbers of one cell."""
    both = {"predicted": predicted, "measured": measured}
    numbers = ("tpot_s", "ttft_s", "hit_rate", "hits", "late", "misses", "prefetched_bytes")
    counts = ("accesses", *(("hits", "late", "misses", "demand_bytes", "prefetched_bytes") if policy in STEADY else ()))
    return {f"{kind}_{name}": getattr(report, name) for name in numbers for kind, report in both.items()} | {
        "error": predicted.tpot_s / measured.tpot_s - 1,
        "are_counts_equal": all(getattr(predicted, name) == getattr(measured, name) for name in counts),
    }
