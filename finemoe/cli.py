"""The command line: `finemoe run`, `record`, `replay` and `info`. Everything here only parses, calls the library, and prints."""

import json
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.errors import FinemoeError, one_line_for_bad_input

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Model = Annotated[str, typer.Option("--model", "-m", help="a miniature's name, a local folder, or a hub id")]
_SYSTEMS = "finemoe, moe-infinity, promoe, mixtral-offloading, deepspeed-inference, on-demand, no-offload, or module:Class"
_FINEMOE, _A_QUARTER, _NONE = ["finemoe"], ["0.25"], list[int]()  # defaults of options that may be given several times
Distance = Annotated[int | None, typer.Option(help="layers ahead; default: 3, or as many as there are", min=1)]
Capacity = Annotated[int, typer.Option(help="maps in the store", min=1)]
Seed = Annotated[int, typer.Option(help="of policies that draw")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object instead of text")]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version

        typer.echo(version("finemoe"))
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print it and end")] = False,
) -> None:
    """Mixture-of-Experts models whose experts do not fit on the device."""
    sys.excepthook = one_line_for_bad_input
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack characters of a name or a generated text


@app.command()
def run(
    model: Model,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="the text to continue")],
    expert_memory: Annotated[str, typer.Option(help="bytes ('6GiB') or a share of all experts ('0.25')")] = "0.25",
    policy: Annotated[str, typer.Option(help=_SYSTEMS)] = "finemoe",
    eviction: Annotated[str | None, typer.Option(help="lru, lfu, finemoe, ...; default: the policy's own")] = None,
    store: Annotated[Path | None, typer.Option(help="an Expert Map Store to start from (finemoe); default: learn online")] = None,
    prefetch_distance: Distance = None,
    store_capacity: Capacity = 1000,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate at most", min=1)] = 64,
    host_memory: Annotated[
        str | None, typer.Option(help="'8GiB' of experts in host memory, the rest on disk; default: all")
    ] = None,
    num_devices: Annotated[int, typer.Option("--devices", help="devices (or, without CUDA, pools) that share the experts")] = 1,
    dtype: Annotated[str, typer.Option(help="auto (the checkpoint's), bfloat16, float16 or float32")] = "auto",
    link: Annotated[str | None, typer.Option(help="'paced:24GB/s' imitates a link on a CPU-only machine")] = None,
    timeline: Annotated[Path | None, typer.Option(help="write a timeline for Perfetto to this .json file")] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Generate text with only part of the experts on the device, and show what the expert cache did."""
    from contextlib import nullcontext

    from transformers import TextStreamer

    import finemoe
    from finemoe.files import require_place
    from finemoe.runtime.generation import refusals_in_one_line, sequences_of, tokenizer_option
    from finemoe.runtime.loading import load_tokenizer
    from finemoe.runtime.prompts import as_batch, encode

    if timeline is not None:
        require_place(timeline)
    _reach_own(policy, eviction)
    tokenizer = load_tokenizer(model)
    encoding = encode(tokenizer, [prompt], 0)[0]
    options: dict[str, Any] = {
        "policy": policy,
        "eviction": eviction,
        "history": _load_store(store),
        "link": link,
        "dtype": dtype,
    }
    options |= {"host_memory": host_memory, "devices": num_devices, "prefetch_distance": prefetch_distance}
    options |= {"store_capacity": store_capacity, "seed": seed}
    module, engine = finemoe.load(model, _memory(expert_memory), progress=not as_json, **options)
    is_streamed = not as_json and (module.generation_config.num_beams or 1) == 1  # beams are known at the end only
    with engine, engine.timeline(timeline) if timeline else nullcontext(), refusals_in_one_line(module):
        output = module.generate(  # type: ignore[operator]
            **as_batch(module, [encoding], tokenizer.pad_token_id).inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=TextStreamer(tokenizer, skip_special_tokens=True) if is_streamed else None,
            pad_token_id=tokenizer.pad_token_id,
            **tokenizer_option(module, tokenizer, {}),
        )
        report = engine.report()
    text = tokenizer.decode(sequences_of(output)[0], skip_special_tokens=True)
    if as_json:
        _print_json({"text": text, "report": report.to_dict()})
    else:
        if not is_streamed:
            typer.echo(text)
        _print_table(f"{model} at {expert_memory} expert memory", report.rows())


@app.command()
def record(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="the trace file to write")],
    dataset: Annotated[str, typer.Option(help="an embedded prompt set, a JSONL file, or a hub id")] = "questions",
    column: Annotated[str, typer.Option(help="where the dataset holds the prompt's text")] = "prompt",
    limit: Annotated[int | None, typer.Option(help="how many prompts", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to generate per prompt", min=1)] = 64,
    batch_size: Annotated[int, typer.Option(help="requests side by side", min=1)] = 8,
    lookahead: Annotated[
        list[int], typer.Option(help="also record routers applied so many layers ahead; again for more", min=1)
    ] = _NONE,
    as_json: AsJson = False,
) -> None:
    """Record the routing of a model over a prompt set as a trace file."""
    import finemoe
    from finemoe.files import require_place
    from finemoe.runtime.loading import load_model
    from finemoe.workloads import load_prompts

    require_place(output)
    prompts = load_prompts(dataset, limit=limit, column=column)
    module, tokenizer = load_model(model)
    trace = finemoe.record(
        module,
        prompts["prompt"],
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        lookahead=lookahead,
        splits=prompts["split"],
        request_ids=prompts["id"],
        progress=not as_json,
    )
    trace.save(output)
    facts = {
        "trace": str(output),
        "model": trace.model,
        "requests": trace.num_requests,
        "rows": trace.num_rows,
        "layers": trace.num_layers,
        "experts": trace.num_experts,
        "top_k": trace.top_k,
    }
    _print_json(facts) if as_json else _print_table("recorded", [(key, str(value)) for key, value in facts.items()])


@app.command()
def replay(
    trace: Annotated[Path, typer.Argument(help="a trace file, from `finemoe record`")],
    policy: Annotated[list[str], typer.Option(help=f"{_SYSTEMS}, or oracle; again for more of them")] = _FINEMOE,
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
    _reach_own(*policy, eviction)
    memories = [_memory(memory) for memory in expert_memory]
    if hardware is None and any(isinstance(memory, str) for memory in memories):
        raise FinemoeError("without --hardware a trace counts in experts: give --expert-memory as a share, such as 0.25")
    served = RoutingTrace.load(trace, mapped=True)
    known = None if history is None else RoutingTrace.load(history, mapped=True)
    if split or compare:
        known, served = served.split("history"), served.split("served")
    if compare:
        distance = min(3, served.num_layers) if prefetch_distance is None else prefetch_distance
        shares = [memory for memory in memories if isinstance(memory, float)]  # all, without hardware
        _compare(trace, known, served, shares, distance, store_capacity, figure, as_json)
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
        _print_json(dicts[0] if len(dicts) == 1 else dicts)
        return
    for policy, memory, report in reports:
        rows = report.rows() if options["hardware"] else _counts_of(report)
        share = 1.0 if policy_named(policy, is_replay=True).holds_everything else memory
        size = memory if isinstance(memory, str) else f"{share:g} of the experts"
        _print_table(f"{path} under {policy} / {report.eviction} at {size}", rows)


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


def _compare(
    path: Path,
    history: Any,
    served: Any,
    expert_memories: list[float],
    prefetch_distance: int,
    store_capacity: int,
    figure: Path | None,
    as_json: bool,
) -> None:
    from finemoe.artifact.analysis.comparison import comparison_figure
    from finemoe.artifact.analysis.systems import SYSTEMS, left_out, system_table
    from finemoe.artifact.plotting import save_figure

    for name, reason in left_out(served, SYSTEMS, prefetch_distance).items():
        typer.echo(f"left out: {name}, {reason}", err=True)
    table = system_table(history, served, SYSTEMS, expert_memories, prefetch_distance, store_capacity)
    if figure is not None:
        details = (f"d = {prefetch_distance}", f"C = {store_capacity}", f"served requests: {served.num_requests}")
        stem = figure.with_suffix("") if figure.suffix in (".pdf", ".png", ".csv") else figure
        save_figure(comparison_figure(table, path.stem, "", *details), table, stem.resolve())
    if as_json:
        _print_json(table.assign(num_requests=served.num_requests).to_dict("records"))
    else:
        _print_comparison(path, table, served.num_requests)


def _print_comparison(path: Path, table: Any, num_requests: int) -> None:
    """One table per memory size."""
    from rich.console import Console
    from rich.table import Table

    from finemoe.report import recall_text

    is_one = num_requests == 1
    for memory, part in table.groupby("expert_memory", sort=False):
        caption = "loads per expert demanded: on demand; undemanded and used later;\nundemanded and evicted unused"
        text = Table(caption=caption, padding=(0, 0, 0, 1))  # 80 columns wide
        text.add_column("system", no_wrap=True)
        for column in ("hit rate" if is_one else "hit rate [95 %]", "recall", "demand", "used", "wasted"):
            text.add_column(column, justify="right", no_wrap=True)
        for row in part.itertuples():
            interval = "" if is_one else f" [{row.low:.2f}, {row.high:.2f}]"
            loads = (f"{load:.2f}" for load in (row.demand_loads, row.useful_loads, row.wasted_loads))
            text.add_row(row.system, f"{row.hit_rate:.2f}{interval}", recall_text(row.recall_at_k), *loads)
        served = "one served request (which has no interval)" if is_one else f"{num_requests} served requests"
        typer.echo(f"{path}, {served}, instant link, {memory:.4g} of the experts")
        Console(markup=False, emoji=False).print(text)


@app.command()
def info(
    what: Annotated[str, typer.Argument(help="a miniature's name, a model folder, config.json, hub id, trace or store file")],
    as_json: AsJson = False,
) -> None:
    """Describe a model's MoE geometry, a routing trace, or an Expert Map Store."""
    facts = _describe(what)
    _print_json(facts) if as_json else _print_table(what, [(key, str(value)) for key, value in facts.items()])


def _describe(what: str) -> dict[str, Any]:
    from finemoe.files import kind_of

    path = Path(what)
    kind = kind_of(path)
    if kind == "routing-trace" or path.suffix == ".trace":
        from finemoe.traces import RoutingTrace

        trace = RoutingTrace.load(path, mapped=True)
        of_trace = ("model", "num_requests", "num_rows", "num_layers", "num_experts", "top_k", "lookahead_strides")
        return {name: getattr(trace, name) for name in of_trace}
    if kind == "expert-map-store" or path.suffix == ".store":
        from finemoe.maps.store import ExpertMapStore

        store = ExpertMapStore.load(path)
        of_store = ("model", "num_layers", "num_experts", "embedding_dim", "capacity", "prefetch_distance", "nbytes")
        return {"records": len(store), **{name: getattr(store, name) for name in of_store}}
    from dataclasses import asdict

    from finemoe.maps.geometry import Geometry
    from finemoe.shipped import resolve

    return asdict(Geometry.from_config(resolve(what)))


def _reach_own(*names: str | None) -> None:
    """A policy or rule of the user's own, "module:Class", may lie in the working folder; it is searched last."""
    folder = str(Path.cwd())
    if folder not in sys.path and any(name is not None and ":" in name for name in names):
        sys.path.append(folder)


def _memory(text: str) -> float | str:
    from finemoe.units import parse_bytes

    try:
        number = float(text)
    except ValueError:
        try:
            parse_bytes(text)
        except FinemoeError as error:
            raise FinemoeError(f"--expert-memory: {error}; or a share of all experts, such as 0.25") from error
        return text
    if not 0 < number <= 1:
        raise FinemoeError(f"--expert-memory {text}: a bare number is a share in (0, 1]; for bytes add a unit, such as '6GiB'")
    return number


def _load_store(path: Path | None) -> Any:
    if path is None:
        return None
    from finemoe.maps.store import ExpertMapStore

    return ExpertMapStore.load(path)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(_without_nan(value), indent=2, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: a number that does not exist is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _print_table(title: str, rows: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for _ in range(2):
        table.add_column(overflow="fold")  # nothing is cut off in a narrow terminal
    for name, value in rows:
        table.add_row(name, value)
    typer.echo(title)
    Console(markup=False, emoji=False).print(table)
