"""`finemoe serve`: an endpoint for OpenAI clients on this machine."""

import signal
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
from finemoe.cli.messages import INTERRUPTED, command
from finemoe.cli.models import dtype_to_load, require_model
from finemoe.cli.options import (
    NO_TEXTS,
    Capacity,
    Distance,
    PolicyOption,
    Seed,
    StreamPromptsFrom,
    memory_of,
    require_known,
    streamed_from,
)
from finemoe.cli.printing import print_table
from finemoe.cli.progress import compiling_shown, is_watched, stage
from finemoe.errors import FinemoeError

SERVER = "Server"  # a panel of the help page
_LEVELS = ("critical", "error", "warning", "info", "debug")


@command
def serve(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="mixtral-mini, qwen-mini or phi-mini, a folder, or a hub id.", show_default=False),
    ],
    host: Annotated[
        str, typer.Option(metavar="NAME", help="Address to listen on; 0.0.0.0 admits other machines.", rich_help_panel=SERVER)
    ] = "localhost",
    port: Annotated[
        int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0 takes a free one.", rich_help_panel=SERVER)
    ] = 8000,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What clients call the model. Default: its name or folder.", rich_help_panel=SERVER),
    ] = None,
    max_context: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=2, help="Tokens of prompt and answer at most. Default: the model's.", rich_help_panel=SERVER
        ),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tokens of an answer at most.", rich_help_panel=SERVER)
    ] = 1024,
    batched: Annotated[
        bool,
        typer.Option("--batched", metavar="", help="Compute all requests together; answers are greedy.", rich_help_panel=SERVER),
    ] = False,
    batch_tokens: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=64,
            help="With --batched: tokens of all prompts and answers at once, at most. Default: 8 contexts, up to 16,384.",
            rich_help_panel=SERVER,
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text file with the key that clients must send.", rich_help_panel=SERVER),
    ] = None,
    log_level: Annotated[
        str, typer.Option(metavar="LEVEL", help="error, warning, info (a line per request) or debug.", rich_help_panel=SERVER)
    ] = "warning",
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
    seed: Seed = 0,
    num_devices: Devices = 1,
    link: Link = None,
) -> None:
    """Answer OpenAI clients with a model that has part of its experts on the device."""
    from finemoe.files import require_place

    is_shown, memory, api_key = is_watched(), memory_of(expert_memory), _key_in(api_key_file)
    _require_level(log_level)
    if batch_tokens is not None and not batched:
        raise FinemoeError("--batch-tokens counts only with --batched; give both, or neither")
    if profile is not None:
        require_place(profile)
    with stage("importing NumPy and Numba", is_shown):
        require_known([policy], eviction)
    require_model(model)
    options = load_options(
        *(policy, option, store, num_devices),
        eviction=eviction,
        link=link,
        dtype=dtype_to_load(model, dtype),
        host_memory=host_memory,
        expert_format=expert_format,
        slots=slots,
        prefetch_distance=prefetch_distance,
        store_capacity=store_capacity,
        stream_prompts_from=streamed_from(stream_prompts_from),
        seed=seed,
    )
    with stage("importing PyTorch, Transformers and its server", is_shown):
        service, served_model, server = _modules()
        import finemoe
        from finemoe.runtime.loading import load_tokenizer

    service.require_free(host, port)
    _set_log_level(log_level)
    tokenizer = load_tokenizer(model)
    warm = profile if profile is not None and profile.exists() else None
    with compiling_shown(is_shown):
        module, engine = finemoe.load(model, memory, progress=is_shown, profile=warm, **options)
    known_as, aliases = served_model.names_of(model)
    known_as, aliases = (name or known_as), [known_as, *aliases]
    with engine:
        with service.Service(
            *(module, engine, tokenizer, known_as, aliases),
            max_context=max_context,
            max_new_tokens=max_new_tokens,
            api_key=api_key,
            is_batched=batched,
            batch_tokens=batch_tokens,
        ) as running:
            sockets = server.bind(host, port)
            address = _address(host, sockets[0].getsockname()[1])

            def announce() -> None:
                _announce(known_as, address, engine, running)
                if not server.is_loopback(host):
                    _warn(host, api_key is not None)

            is_interrupted = _run(running.server(announce, log_level), sockets)
        print_table(f"{known_as} at {expert_memory} expert memory", engine.report().rows())
        failure = failure_to_save(engine, profile)
    if failure is not None:
        raise failure
    if is_interrupted:
        raise typer.Exit(INTERRUPTED)


def _run(server: Any, sockets: Any) -> bool:
    """Serve until a signal comes; whether it was Ctrl-C."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # the server raises it again once it has ended
    try:
        server.run(sockets)
    except KeyboardInterrupt:
        return True
    finally:
        signal.signal(signal.SIGTERM, before)
    return False


def _modules() -> tuple[Any, Any, Any]:
    from finemoe.extras import module_of_extra

    for name in ("fastapi", "openai", "prometheus_client", "uvicorn"):
        module_of_extra(name, "`finemoe serve`", "serve")
    from finemoe.serving import served_model, server, service

    return service, served_model, server


def _announce(name: str, address: str, engine: Any, service: Any) -> None:
    from finemoe.runtime.plain_template import plain_template_note
    from finemoe.units import format_bytes

    memory = format_bytes(engine.expert_memory_bytes)
    if not service.has_own_template:
        typer.echo(plain_template_note(name))
    if service.batch_tokens:
        typer.echo(
            f"Requests are batched, up to {service.batch_tokens:,} tokens at once. Answers are greedy, "
            "and may differ by rounding from those to a request alone."
        )
    typer.echo(f"{name} is ready at {address}/v1 with {memory} of expert memory; Ctrl-C stops it.")


def _warn(host: str, has_key: bool) -> None:
    whom = "who know the key" if has_key else "without a key; --api-key-file sets one"
    typer.echo(f"finemoe: --host {host} admits clients on other machines {whom}", err=True)


def _address(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _key_in(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise FinemoeError(f"--api-key-file {path}: no such file; write the key into it") from error
    except UnicodeDecodeError as error:
        raise FinemoeError(f"--api-key-file {path} is no text; write the key into it") from error
    if not key or not key.isascii() or any(letter.isspace() for letter in key):
        raise FinemoeError(f"--api-key-file {path}: the key must be one word of ASCII characters")
    return key


def _require_level(level: str) -> None:
    from finemoe.suggestions import suggestion

    if level not in _LEVELS:
        raise FinemoeError(f"--log-level {level}: unknown; {suggestion(level, _LEVELS)}")


def _set_log_level(level: str) -> None:
    """Transformers reports every request as a warning; show those only where requests are asked for."""
    import logging

    from transformers.utils.logging import set_verbosity

    set_verbosity({"info": logging.WARNING, "debug": logging.DEBUG}.get(level, logging.ERROR))
    logging.getLogger("finemoe.serving").setLevel(level.upper())
    if level != "debug":  # the server reports what fails in a batch, without a traceback
        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
