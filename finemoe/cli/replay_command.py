"""`finemoe replay`: recorded routing under one or several systems, without the model."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.comparison import compare_systems, drawing
from finemoe.cli.configs import sizes_for
from finemoe.cli.messages import Interrupted, command
from finemoe.cli.options import (
    INPUT,
    MACHINE,
    MEMORY,
    NO_TEXTS,
    OUTPUT,
    OWN,
    POLICY,
    SYSTEMS,
    AsJson,
    Capacity,
    Distance,
    PolicyOption,
    Seed,
    StreamPromptsFrom,
    memory_of,
    require_known,
    streamed_from,
)
from finemoe.cli.policy_options import options_by_policy
from finemoe.cli.printing import print_json
from finemoe.cli.progress import compiling_shown, is_watched, share_read, stage
from finemoe.cli.replay_setting import Setting
from finemoe.cli.replay_tables import Reports, print_system, print_systems, rows_of
from finemoe.errors import FinemoeError

_FINEMOE, _A_QUARTER = ["finemoe"], ["0.25"]  # defaults of repeatable options


@command
def replay(
    trace: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace file of `finemoe record` or `finemoe import`.")],
    history: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A trace of other requests to learn from. Default: learn online.", rich_help_panel=INPUT
        ),
    ] = None,
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            metavar="",
            help="Learn from the requests that TRACE marks as history, and serve the others.",
            rich_help_panel=INPUT,
        ),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Requests that run together.", min=1, metavar="N", rich_help_panel=INPUT)] = 1,
    expert_memory: Annotated[
        list[str],
        typer.Option(
            metavar="SIZE",
            help="Share of all experts ('0.25') or, with --hardware, bytes per device ('6GiB'). Repeatable.",
            rich_help_panel=MEMORY,
        ),
    ] = _A_QUARTER,
    policy: Annotated[
        list[str], typer.Option(metavar="NAME", help=f"{SYSTEMS}, oracle, {OWN}. Repeatable.", rich_help_panel=POLICY)
    ] = _FINEMOE,
    option: PolicyOption = NO_TEXTS,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            metavar="",
            help="Replay every system of the paper, each with its own rule, and those of --policy. Implies --split.",
            rich_help_panel=POLICY,
        ),
    ] = False,
    eviction: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="lru, lfu, finemoe, belady, ... Default: the rule of the policy.", rich_help_panel=POLICY
        ),
    ] = None,
    prefetch_distance: Distance = None,
    store_capacity: Capacity = 1000,
    stream_prompts_from: StreamPromptsFrom = "off",
    seed: Seed = 0,
    hardware: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Simulate time on a machine: a name in data/hardware, or a .yaml file.", rich_help_panel=MACHINE
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME",
            help="With --hardware, the model whose sizes count: a name in data/models/configs, a file, or a hub id. Default: "
            "the one with the layers and experts of the trace.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    gguf: Annotated[
        str | None,
        typer.Option(metavar="MIX", help="Count the experts of --model as in a GGUF file: Q4_K_M.", rich_help_panel=MACHINE),
    ] = None,
    expert_bits: Annotated[
        float | None,
        typer.Option(
            metavar="BITS", help="With --hardware, bits per weight of an expert: 4.25 in MXFP4.", rich_help_panel=MACHINE
        ),
    ] = None,
    num_devices: Annotated[
        int | None,
        typer.Option(
            "--devices",
            help="Devices that share the experts. Default: one, or all of --hardware.",
            min=1,
            metavar="N",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --compare, draw to this file name, with .pdf, .png and .csv.", rich_help_panel=OUTPUT
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Replay recorded routing under one or several systems.

    Without --hardware, loads take no time and are counted in experts. With --hardware, time is simulated on that machine.
    """
    from finemoe.traces import RoutingTrace

    is_shown = is_watched(as_json)
    memories, threshold = [memory_of(memory) for memory in expert_memory], streamed_from(stream_prompts_from)
    if history is not None and history.exists() and trace.exists() and history.samefile(trace):
        raise FinemoeError("--history names TRACE itself, but must hold other requests; use --split, or another file")
    _require_consistent(policy, option, eviction, history, split, compare, figure, hardware, model, expert_bits)
    _require_shares(memories, hardware)
    if figure is not None:
        drawing()
    with stage("importing NumPy and Numba", is_shown):
        require_known(policy, eviction, is_replay=True)
    own = options_by_policy(option, policy, is_replay=True)
    sizes = sizes_for(model, gguf)
    with stage(f"reading {trace}", is_shown, share_read(trace)):
        served = RoutingTrace.load(trace, mapped=True)
        known = None if history is None else RoutingTrace.load(history, mapped=True)
        if split or compare:
            known, served = served.split("history"), served.split("served")
    setting = Setting.of(trace, served, hardware, sizes, num_devices, expert_bits)
    options: dict[str, Any] = {"store_capacity": store_capacity, "batch_size": batch_size, "seed": seed, "progress": is_shown}
    options["stream_prompts_from"] = threshold
    with compiling_shown(is_shown):
        if compare:
            distance = min(3, served.num_layers) if prefetch_distance is None else prefetch_distance
            others = [name for name in policy if name not in _FINEMOE]
            compare_systems(setting, known, memories, figure, as_json, others, prefetch_distance=distance, **options)
            return
        _replay_each(setting, own, memories, eviction, known, as_json, options | {"prefetch_distance": prefetch_distance})


def _require_consistent(
    policies: list[str],
    options: list[str],
    eviction: str | None,
    history: Path | None,
    split: bool,
    compare: bool,
    figure: Path | None,
    hardware: str | None,
    model: str | None,
    expert_bits: float | None,
) -> None:
    from finemoe.files import require_place

    if history is not None and (split or compare):
        raise FinemoeError("--history and --split (or --compare) both name what is known beforehand; give one of them")
    given = {"--option": bool(options), "--eviction": eviction is not None}
    if compare and (fixed := [name for name, is_given in given.items() if is_given]):
        raise FinemoeError(f"--compare replays every system with its own options and rule; leave out {', '.join(fixed)}")
    if model is not None and hardware is None:
        raise FinemoeError("--model names the model whose sizes count on --hardware; give both")
    if expert_bits is not None and hardware is None:
        raise FinemoeError("--expert-bits sets the size of an expert on --hardware; give both")
    if figure is not None and not compare:
        raise FinemoeError("--figure draws the result of --compare; give both")
    if figure is not None:
        require_place(figure.with_suffix(".csv"))


def _require_shares(memories: list[float | str], hardware: str | None) -> None:
    from finemoe.simulation.testbed import known_testbeds

    if hardware is None and (texts := [memory for memory in memories if isinstance(memory, str)]):
        raise FinemoeError(
            f"--expert-memory {texts[0]}: without --hardware, memory is counted in experts; give a share such as 0.25, or add "
            f"--hardware with one of {', '.join(known_testbeds())}"
        )


def _replay_each(
    setting: Setting,
    own: dict[str, dict[str, Any]],
    memories: list[float | str],
    eviction: str | None,
    history: Any,
    as_json: bool,
    options: dict[str, Any],
) -> None:
    from tqdm import tqdm

    from finemoe.simulation.replay import sweep

    found: dict[tuple[str, float | str], Any] = {}
    policies = tqdm(own, desc="systems", unit="system", leave=False, disable=not options["progress"] or len(own) == 1)
    try:
        for policy in policies:
            reports = sweep(setting.served, policy, memories, [eviction], history, **setting.options, **options, **own[policy])
            found |= {(policy, memory): report for memory, report in zip(memories, reports, strict=True)}
    except KeyboardInterrupt:
        policies.close()
        if found and not as_json:
            _print(setting, found, own)
        done = len({policy for policy, _ in found})
        raise Interrupted(f"{done} of {len(own)} systems are done; no file was written") from None
    if as_json:
        named = (lambda report: report) if setting.is_timed else _in_experts
        dicts = [
            {"expert_memory": memory, **named(report.to_dict()), **setting.facts(memory), **_options_fact(own[policy])}
            for (policy, memory), report in found.items()
        ]
        print_json(dicts[0] if len(dicts) == 1 else dicts)
        return
    _print(setting, found, own)


def _options_fact(options: dict[str, Any]) -> dict[str, Any]:
    return (
        {"policy_options": {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}}
        if options
        else {}
    )


def _print(setting: Setting, found: Reports, own: dict[str, dict[str, Any]]) -> None:
    """One report in detail, several as a table."""
    if len(found) == 1:
        (((policy, memory), report),) = found.items()
        print_system(setting, _held(policy, memory), report)
        return
    rows = rows_of(setting, found)
    for row, report in zip(rows, found.values(), strict=True):
        told = "".join(f" {name}={value}" for name, value in own[row["system"]].items())
        row["system"] = f"{report.policy} / {report.eviction}{told}"
    print_systems(setting, rows)


def _held(policy: str, memory: float | str) -> float | str:
    from finemoe.policies import policy_named

    return 1.0 if policy_named(policy, is_replay=True).holds_everything else memory


def _in_experts(report: Any) -> Any:
    """A report's dict with keys named after its unit: without a model's sizes, fields of bytes count experts."""
    if isinstance(report, dict):
        return {name.replace("_bytes", "_experts"): _in_experts(value) for name, value in report.items()}
    return [_in_experts(value) for value in report] if isinstance(report, list) else report
