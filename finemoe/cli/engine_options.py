"""The options with which `run` and `serve` load a model and make its engine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finemoe.cli.options import MACHINE, MEMORY, OWN, POLICY, SYSTEMS, loaded_store
from finemoe.cli.policy_options import options_by_policy

ExpertMemory = Annotated[
    str,
    typer.Option(metavar="SIZE", help="Share of all experts ('0.25'), or bytes per device ('6GiB').", rich_help_panel=MEMORY),
]
HostMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Experts kept in host memory, such as 8GiB; the rest stays on disk.", rich_help_panel=MEMORY
    ),
]
ExpertFormat = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT", help="Pack the experts while loading: mxfp4, fp8 or int8. Loses precision.", rich_help_panel=MEMORY
    ),
]
Slots = Annotated[
    str, typer.Option(metavar="KIND", help="'unpacked' keeps packed experts unpacked in memory as well.", rich_help_panel=MEMORY)
]
Dtype = Annotated[
    str,
    typer.Option(metavar="TYPE", help="bfloat16, float16, float32, or auto: the type of the checkpoint.", rich_help_panel=MEMORY),
]
PolicyName = Annotated[str, typer.Option(metavar="NAME", help=f"{SYSTEMS}, {OWN}.", rich_help_panel=POLICY)]
Eviction = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="lru, lfu, finemoe, ... Default: the rule of the policy.", rich_help_panel=POLICY),
]
Store = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Expert Map Store to start from. Default: learn online.", rich_help_panel=POLICY),
]
Profile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Start from what earlier runs used and learned; written at the end.", rich_help_panel=POLICY
    ),
]
Devices = Annotated[
    int,
    typer.Option(
        "--devices", metavar="N", help="GPUs that share the experts; without CUDA, memory pools.", rich_help_panel=MACHINE
    ),
]
Link = Annotated[
    str | None, typer.Option(metavar="LINK", help="'paced:24GB/s' imitates such a link on a CPU.", rich_help_panel=MACHINE)
]


def load_options(policy: str, option: list[str], store: Path | None, num_devices: int, **others: Any) -> dict[str, Any]:
    """The keyword arguments of `finemoe.load`.

    Args:
        policy: name of the policy. option: "name=value" each, its options. store: file of its history, if any.
        num_devices: GPUs, or memory pools.
        others: arguments that are passed on as they are.
    """
    chosen = options_by_policy(option, [policy])[policy]
    return {**chosen, "policy": policy, "history": loaded_store(store), "devices": num_devices, **others}


def failure_to_save(engine: Any, profile: Path | None) -> OSError | None:
    """Save a profile, if one is wanted; a full disk must not cost the user the counters."""
    try:
        if profile is not None:
            engine.save_profile(profile)
    except OSError as error:
        return error
    return None
