"""`finemoe run`: a model generates with part of its experts on the device."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.options import SYSTEMS, AsJson, Capacity, Distance, Model, Seed, loaded_store, memory_of, reach_own
from finemoe.cli.printing import print_json, print_table


def run(
    model: Model,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="the text to continue")],
    expert_memory: Annotated[str, typer.Option(help="bytes ('6GiB') or a share of all experts ('0.25')")] = "0.25",
    policy: Annotated[str, typer.Option(help=SYSTEMS)] = "finemoe",
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
    expert_format: Annotated[
        str | None,
        typer.Option(help="mxfp4, fp8 or int8: pack the experts of an unpacked model while loading it; loses precision"),
    ] = None,
    slots: Annotated[str, typer.Option(help="'unpacked' keeps packed experts unpacked, too, beside their slots")] = "packed",
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
    reach_own(policy, eviction)
    tokenizer = load_tokenizer(model)
    encoding = encode(tokenizer, [prompt], 0)[0]
    options: dict[str, Any] = {
        "policy": policy,
        "eviction": eviction,
        "history": loaded_store(store),
        "link": link,
        "dtype": dtype,
    }
    options |= {"host_memory": host_memory, "devices": num_devices, "prefetch_distance": prefetch_distance}
    options |= {"store_capacity": store_capacity, "seed": seed, "expert_format": expert_format, "slots": slots}
    module, engine = finemoe.load(model, memory_of(expert_memory), progress=not as_json, **options)
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
        print_json({"text": text, "report": report.to_dict()})
    else:
        if not is_streamed:
            typer.echo(text)
        print_table(f"{model} at {expert_memory} expert memory", report.rows())
