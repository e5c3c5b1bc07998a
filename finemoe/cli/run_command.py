"""`finemoe run`: a model generates text with part of its experts on the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.engine_options import (
    Devices,
    Dtype,
    Eviction,
    ExpertFormat,
    ExpertMemory,
    HostMemory,
    Link,
    PolicyName,
    Slots,
    Store,
    load_options,
)
from finemoe.cli.messages import Interrupted, command
from finemoe.cli.models import require_model
from finemoe.cli.options import (
    INPUT,
    NO_TEXTS,
    OUTPUT,
    AsJson,
    Capacity,
    Distance,
    Model,
    PolicyOption,
    Seed,
    memory_of,
    require_known,
)
from finemoe.cli.printing import print_json, print_table
from finemoe.cli.progress import compiling_shown, is_watched, stage


@command
def run(
    model: Model,
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="The text to continue.", rich_help_panel=INPUT)],
    max_new_tokens: Annotated[
        int, typer.Option(help="Tokens to generate at most.", min=1, metavar="N", rich_help_panel=INPUT)
    ] = 64,
    expert_memory: ExpertMemory = "0.25",
    host_memory: HostMemory = None,
    expert_format: ExpertFormat = None,
    slots: Slots = "packed",
    dtype: Dtype = "auto",
    policy: PolicyName = "finemoe",
    option: PolicyOption = NO_TEXTS,
    eviction: Eviction = None,
    prefetch_distance: Distance = None,
    store_capacity: Capacity = 1000,
    store: Store = None,
    seed: Seed = 0,
    num_devices: Devices = 1,
    link: Link = None,
    timeline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a timeline for Perfetto to this .json file.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Generate text with part of the experts on the device, and report what the expert cache did."""
    from finemoe.files import require_place

    begin, is_shown = time.monotonic(), is_watched(as_json)
    memory = memory_of(expert_memory)
    if timeline is not None:
        require_place(timeline)
    with stage("importing NumPy and Numba", is_shown):
        require_known([policy], eviction)
    require_model(model)
    options = load_options(
        *(policy, option, store, num_devices),
        **{"eviction": eviction, "link": link, "dtype": dtype, "host_memory": host_memory, "expert_format": expert_format},
        **{"prefetch_distance": prefetch_distance, "store_capacity": store_capacity, "seed": seed, "slots": slots},
    )
    with stage("importing PyTorch and Transformers", is_shown):
        import finemoe
        from finemoe.runtime.generation import refusals_in_one_line
        from finemoe.runtime.loading import load_tokenizer
        from finemoe.runtime.prompts import encode

    with stage("loading the tokenizer", is_shown):
        tokenizer = load_tokenizer(model)
    encoding = encode(tokenizer, [prompt], 0)[0]
    with compiling_shown(is_shown):
        module, engine = finemoe.load(model, memory, progress=is_shown, **options)
    start_s = time.monotonic() - begin
    with engine, _timeline(engine, timeline), refusals_in_one_line(module):
        text, is_streamed = _generated(module, tokenizer, encoding, max_new_tokens, as_json, is_shown)
        report = engine.report()
    if as_json:
        print_json({"text": text, "start_s": start_s, "report": report.to_dict()})
        return
    if not is_streamed:
        typer.echo(text)
    start = ("start", f"{start_s:.1f} s  (imports, loading, compiling; not part of TTFT)")
    print_table(f"{model} at {expert_memory} expert memory", [*report.rows(), start])
    if timeline is not None:
        typer.echo(f"{timeline}: timeline, for ui.perfetto.dev")


@contextmanager
def _timeline(engine: Any, path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with engine.timeline(path):
        yield


def _generated(
    module: Any, tokenizer: Any, encoding: Any, max_new_tokens: int, as_json: bool, is_shown: bool
) -> tuple[str, bool]:
    """The text, and whether it was printed as it came."""
    from finemoe.cli.token_stream import stream_of
    from finemoe.runtime.generation import sequences_of, tokenizer_option
    from finemoe.runtime.prompts import as_batch

    is_streamed = not as_json and (module.generation_config.num_beams or 1) == 1  # beams are known at the end only
    stream = stream_of(tokenizer, max_new_tokens, is_streamed, is_shown)
    try:
        output = module.generate(
            **as_batch(module, [encoding], tokenizer.pad_token_id).inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=stream if is_streamed else None,
            pad_token_id=tokenizer.pad_token_id,
            **tokenizer_option(module, tokenizer, {}),
        )
    except KeyboardInterrupt:
        stream.close()
        done = f"after {stream.num_tokens} of at most {max_new_tokens} tokens" if is_streamed else "while generating"
        raise Interrupted(f"{done}; no file was written") from None
    return tokenizer.decode(sequences_of(output)[0], skip_special_tokens=True), is_streamed
