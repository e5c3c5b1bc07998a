"""`finemoe replay`: recorded routing under one or several systems, without the model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.comparison import compare_systems, drawing
from finemoe.cli.options import SYSTEMS, AsJson, Capacity, Distance, Seed, memory_of, reach_own
from finemoe.cli.printing import print_json, print_table
from finemoe.errors import FinemoeError

_FINEMOE, _A_QUARTER = ["finemoe"], ["0.25"]  # defaults of options that may be given several times


def replay(
    trace: Annotated[Path, typer.Argument(help="a trace file, from `finemoe record`")],
    policy: Annotated[list[str], typer.Option(help=f"{SYSTEMS}, or oracle; again for more of them")] = _FINEMOE,
    expert_memory: Annotated[
        list[str], typer.Option(help="share of all routed experts ('0.25') or, with --hardware, bytes a device; again for more")
    ] = _A_QUARTER,
    eviction: Annotated[str | None, typer.Option(help="lru, lfu, finemoe, belady, ...; default: the policy's own")] = None,
    history: Annotated[Path | None, typer.Option(help="a trace of other requests; default: learn online")] = None,
    split: Annotated[
        bool, typer.Option("--split", help="the trace's own history split is the history, the rest is served")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="every system of the paper beside LRU and Belady (implies --split)")
    ] = False,
    figure: Annotated[Path | None, typer.Option(help="with --compare: draw to this file stem (.pdf, .png, .csv)")] = None,
    prefetch_distance: Distance = None,
    store_capacity: Capacity = 1000,
    hardware: Annotated[str | None, typer.Option(help="a testbed in data/hardware or a .yaml file: virtual time")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="with --hardware: whose sizes (a name in data/models/configs, a file, a hub id); default: by layers x experts"
        ),
    ] = None,
    num_devices: Annotated[
        int | None, typer.Option("--devices", help="devices that share the experts; default: one, or the testbed's", min=1)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="requests that run side by side", min=1)] = 1,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Replay recorded routing under one or several systems: with an instant link, bytes counted in experts, or with --hardware in
    virtual time on a described machine."""
    from finemoe.files import require_place
    from finemoe.traces import RoutingTrace

    if history is not None and (split or compare):
        raise FinemoeError("--history and --split (or --compare) both say what is known beforehand; give one of them")
    if compare and (eviction or hardware or num_devices or seed or batch_size != 1 or policy != _FINEMOE):
        raise FinemoeError("--compare takes every system with its own rule and an instant link; leave the other options out")
    if model is not None and hardware is None:
        raise FinemoeError("--model says whose sizes --hardware means; give both")
    if figure is not None and not compare:
        raise FinemoeError("--figure draws what --compare finds; give both")
    if figure is not None:
        require_place(figure.with_suffix(".csv"))
        drawing()
    reach_own(*policy, eviction)
    memories = [memory_of(memory) for memory in expert_memory]
    if hardware is None and any(isinstance(memory, str) for memory in memories):
        raise FinemoeError("without --hardware a trace counts in experts: give --expert-memory as a share, such as 0.25")
    served = RoutingTrace.load(trace, mapped=True)
    known = None if history is None else RoutingTrace.load(history, mapped=True)
    if split or compare:
        known, served = served.split("history"), served.split("served")
    if compare:
        distance = min(3, served.num_layers) if prefetch_distance is None else prefetch_distance
        shares = [memory for memory in memories if isinstance(memory, float)]  # all, without hardware
        compare_systems(trace, known, served, shares, distance, store_capacity, figure, as_json)
        return
    options: dict[str, Any] = {"prefetch_distance": prefetch_distance, "store_capacity": store_capacity, "hardware": hardware}
    options |= {"model": model, "batch_size": batch_size, "devices": num_devices, "seed": seed, "progress": not as_json}
    _replay_each(trace, served, policy, memories, eviction, known, as_json, options)


def _replay_each(
    path: Path,
    served: Any,
    policies: list[str],
    expert_memories: list[float | str],
    eviction: str | None,
    history: Any,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    from finemoe.policies import policy_named
    from finemoe.simulation.replay import sweep

    reports = [
        (policy, memory, report)
        for policy in policies
        for memory, report in zip(
            expert_memories, sweep(served, policy, expert_memories, [eviction], history, **options), strict=True
        )
    ]
    if as_json:
        named = (lambda found: found) if options["hardware"] else _in_experts
        dicts = [{"expert_memory": memory, **named(report.to_dict())} for _, memory, report in reports]
        print_json(dicts[0] if len(dicts) == 1 else dicts)
        return
    for policy, memory, report in reports:
        rows = report.rows() if options["hardware"] else _counts_of(report)
        share = 1.0 if policy_named(policy, is_replay=True).holds_everything else memory
        size = memory if isinstance(memory, str) else f"{share:g} of the experts"
        print_table(f"{path} under {policy} / {report.eviction} at {size}", rows)


def _in_experts(report: Any) -> Any:
    """A report's dict under the names of what it counts: without a model's sizes that is experts, where it says bytes."""
    if isinstance(report, dict):
        return {name.replace("_bytes", "_experts"): _in_experts(value) for name, value in report.items()}
    return [_in_experts(value) for value in report] if isinstance(report, list) else report


def _counts_of(report: Any) -> list[tuple[str, str]]:
    from finemoe.report import recall_text

    names = ("accesses", "hits", "misses", "demand_bytes", "prefetched_bytes", "useful_bytes", "wasted_bytes")
    counts = [(name.replace("_bytes", " (experts)"), f"{getattr(report, name):g}") for name in names]
    return [("hit_rate", f"{report.hit_rate:g}"), ("recall_at_k", recall_text(report.recall_at_k)), *counts]
