"""`finemoe run`: a model answers with part of its experts on the device."""

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
    Profile,
    Slots,
    Store,
    failure_to_save,
    load_options,
)
from finemoe.cli.messages import command
from finemoe.cli.models import dtype_to_load, require_model
from finemoe.cli.options import (
    DECODING,
    INPUT,
    NO_TEXTS,
    OUTPUT,
    AsJson,
    Capacity,
    Distance,
    Model,
    PolicyOption,
    StreamPromptsFrom,
    memory_of,
    require_known,
    streamed_from,
)
from finemoe.cli.progress import compiling_shown, is_watched, stage


@command
def run(
    model: Model,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            help="The question, or the text to continue. '-' reads it from standard input.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read the prompt from a text file.", rich_help_panel=INPUT)
    ] = None,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat", metavar="", help="Talk: every line of standard input is a turn, Ctrl-D ends.", rich_help_panel=INPUT
        ),
    ] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message of the chat.", rich_help_panel=INPUT)] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", metavar="", help="Continue the text itself, without the model's chat template.", rich_help_panel=INPUT
        ),
    ] = False,
    template_option: Annotated[
        list[str],
        typer.Option(
            metavar="NAME=VALUE",
            help="An option of the chat template, such as enable_thinking=false. Repeatable.",
            rich_help_panel=INPUT,
        ),
    ] = NO_TEXTS,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Tokens to generate at most. Default: 64, or 512 with a chat template.",
            min=1,
            metavar="N",
            rich_help_panel=DECODING,
        ),
    ] = None,
    sample: Annotated[
        bool | None,
        typer.Option(
            "--sample/--greedy", metavar="", help="Draw tokens, or take the most probable (default).", rich_help_panel=DECODING
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(metavar="T", min=0, help="Of sampling. Default: the checkpoint's. 0 is greedy.", rich_help_panel=DECODING),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Of sampling. Default: the checkpoint's.", rich_help_panel=DECODING)
    ] = None,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of sampling, and of policies that draw random numbers.", min=0, metavar="N", rich_help_panel=DECODING
        ),
    ] = 0,
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
    stream_prompts_from: StreamPromptsFrom = "256",
    store: Store = None,
    profile: Profile = None,
    num_devices: Devices = 1,
    link: Link = None,
    thoughts: Annotated[
        bool,
        typer.Option(
            "--thoughts/--no-thoughts", metavar="", help="Show what a model thinks before it answers.", rich_help_panel=OUTPUT
        ),
    ] = True,
    timeline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a timeline for Perfetto to this .json file.", rich_help_panel=OUTPUT),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a prompt with part of the experts on the device, and report what the expert cache did.

    The text is greedy and the same every time unless --sample is given. Ctrl-C ends it at the next token and still reports.
    """
    from finemoe.cli.prompt_text import asked_of, template_options
    from finemoe.files import require_place

    begin, is_shown = time.monotonic(), is_watched(as_json)
    memory = memory_of(expert_memory)
    asked = asked_of(prompt, prompt_file, chat, as_json)
    template = template_options(template_option)
    for file in (timeline, profile):
        if file is not None:
            require_place(file)
    with stage("importing NumPy and Numba", is_shown):
        require_known([policy], eviction)
    require_model(model)
    loaded_dtype = dtype_to_load(model, dtype)
    options = load_options(
        policy,
        option,
        store,
        num_devices,
        eviction=eviction,
        link=link,
        dtype=loaded_dtype,
        host_memory=host_memory,
        expert_format=expert_format,
        prefetch_distance=prefetch_distance,
        store_capacity=store_capacity,
        stream_prompts_from=streamed_from(stream_prompts_from),
        seed=seed,
        slots=slots,
    )
    with stage("importing PyTorch and Transformers", is_shown):
        import finemoe
        from finemoe.cli.run_report import RunReport
        from finemoe.cli.turns import Turns, decoding_of, speaker_of
        from finemoe.runtime.generation import refusals_in_one_line
        from finemoe.runtime.loading import load_tokenizer

    decoding = decoding_of(sample, temperature, top_p, seed)
    with stage("loading the tokenizer", is_shown):
        tokenizer = load_tokenizer(model)
    turns = Turns(tokenizer, asked, system, raw, template)
    is_warm = profile is not None and profile.exists()
    with compiling_shown(is_shown):
        module, engine = finemoe.load(model, memory, progress=is_shown, profile=profile if is_warm else None, **options)
    start_s = time.monotonic() - begin
    speaker = speaker_of(module, turns, decoding, max_new_tokens, thoughts, as_json, is_shown)
    with engine, _timeline(engine, timeline), refusals_in_one_line(module):
        answers = turns.answered(speaker)
        report = engine.report()
        failure = failure_to_save(engine, profile)
    config = module.generation_config
    told = RunReport(answers, report, decoding.text(config), start_s, bool(config.do_sample) and not decoding.is_sampled)
    if as_json:
        told.print_json()
    else:
        chosen = None if loaded_dtype == dtype else loaded_dtype
        written = profile if failure is None else None
        told.print_table(f"{model} at {expert_memory} expert memory", chosen, written, is_warm, timeline)
    for one in (turns.failure, failure):
        if one is not None:
            raise one
    told.leave()


@contextmanager
def _timeline(engine: Any, path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with engine.timeline(path):
        yield
