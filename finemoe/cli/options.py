"""Options that several commands take, and how their texts are read."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.errors import FinemoeError

SYSTEMS = "finemoe, finemoe-plus, moe-infinity, promoe, mixtral-offloading, deepspeed-inference, on-demand, no-offload"
OWN = "or module:Class for your own"
POLICY, MEMORY, MACHINE, INPUT, OUTPUT = "Policy", "Expert memory", "Machine", "Input", "Output"  # panels of the help pages
DECODING = "Decoding"

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="NAME", help="mixtral-mini, qwen-mini or phi-mini, a folder, or a hub id.", rich_help_panel=INPUT
    ),
]
Distance = Annotated[
    int | None,
    typer.Option(help="Layers to predict ahead. Default: 3, or all layers if fewer.", min=1, metavar="N", rich_help_panel=POLICY),
]
Capacity = Annotated[
    int, typer.Option(help="Expert maps that the Expert Map Store holds.", min=1, metavar="N", rich_help_panel=POLICY)
]
PolicyOption = Annotated[
    list[str],
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="An option of the policy, such as predictor=speculative for promoe. Repeatable.",
        rich_help_panel=POLICY,
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of policies that draw random numbers.", min=0, metavar="N", rich_help_panel=POLICY)]
StreamPromptsFrom = Annotated[
    str,
    typer.Option(
        metavar="N|off",
        help="Tokens from which a prompt is streamed: its next layers load while one runs.",
        rich_help_panel=POLICY,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", metavar="", help="Print JSON instead of text, and no progress.", rich_help_panel=OUTPUT)
]
NO_TEXTS = list[str]()  # the default of a repeatable option


def examples(*commands: str) -> str:
    """The epilogue of a help page."""
    return "\n".join(["Examples:", *commands])


def reach_own(*names: str | None) -> None:
    """Let a user's own policy or rule, "module:Class", be imported from the working folder, which is searched last."""
    folder = str(Path.cwd())
    if folder not in sys.path and any(name is not None and ":" in name for name in names):
        sys.path.append(folder)


def require_known(policies: list[str], eviction: str | None, is_replay: bool = False) -> None:
    """Refuse misspelt policies and rules before anything is loaded.

    Raises:
        FinemoeError: no policy or rule has the name, or it runs in a replay only.
    """
    from finemoe.cache.rules import rule_named
    from finemoe.policies import policy_named

    reach_own(*policies, eviction)
    for policy in policies:
        policy_named(policy, is_replay)
    if eviction is not None:
        rule_named(eviction, is_replay)


def memory_of(text: str) -> float | str:
    """The meaning of `--expert-memory`: a share of all experts, or bytes as a text with a unit.

    Raises:
        FinemoeError: it is neither.
    """
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


def streamed_from(text: str) -> int | None:
    """The meaning of `--stream-prompts-from`: a number of tokens, or None for "off".

    Raises:
        FinemoeError: it is neither.
    """
    if text == "off":
        return None
    if not (text.isdecimal() and int(text) >= 1):
        raise FinemoeError(f"--stream-prompts-from {text}: give a number of tokens, at least 1, or 'off'")
    return int(text)


def loaded_store(path: Path | None) -> Any:
    """The Expert Map Store in a file, or None without one."""
    if path is None:
        return None
    from finemoe.maps.store import ExpertMapStore

    return ExpertMapStore.load(path)
