"""`finemoe.offload`: run a Transformers MoE model with only part of its experts on the device, losslessly (DESIGN 3)."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from finemoe.models.layers import MoELayer, activated_per_token, find_moe_layers
from finemoe.policies.base import PolicySetup
from finemoe.runtime.engine import Engine
from finemoe.runtime.guards import require_contiguous, require_free, require_offloadable
from finemoe.runtime.observer import embedding_of
from finemoe.runtime.options import engine_options


def offload(
    model: nn.Module,
    expert_memory: int | float | str,
    policy: str = "finemoe",
    *,
    history: Any = None,
    eviction: str | None = None,
    prefetch_distance: int | None = None,
    store_capacity: int = 1000,
    devices: Any = None,
    link: str | None = None,
    host_memory: int | str | None = None,
    disk_folder: str | Path | None = None,
    asynchronous: bool | None = None,
    grouped_from: int | None = None,
    seed: int = 0,
    **policy_options: Any,
) -> Engine:
    """Keep only part of a model's routed experts on the device; the model's own `generate` and `forward` go on working.

    Args:
        model: a Transformers MoE model with its weights in memory.
        expert_memory: bytes per device (an int, or a text like "6GiB"), or a share in (0, 1] of all routed experts (a float).
        policy: "finemoe", "finemoe-plus", "moe-infinity", "promoe", "mixtral-offloading", "deepspeed-inference", "on-demand",
            "no-offload", or one of your own, by its registered name or as "module:Class" (docs/add_a_system.md).
        history: a RoutingTrace (or, for finemoe, an ExpertMapStore; for finemoe-plus, a Forecaster) of other requests; None
            learns online from those served.
        eviction: overrides the policy's own rule: "lru", "lfu", "lfu-aged", "lfru", "least-stale",
            "least-stale-interval", "next-use" or "finemoe".
        prefetch_distance: d in layers, by default 3 (or as many as the model has); store_capacity: C in maps.
        devices: where experts live, round-robin, and the first of them computes: a device, a list of devices, or how many; by
            default the first CUDA device if there is one, else the CPU (where several stand in as so many pools of memory).
        link: "paced:24GB/s" makes copies take a real link's time on a CPU-only machine.
        host_memory: bytes of experts kept in host memory; the rest waits on disk. None keeps all of them in host memory.
        disk_folder: where the disk's share lies (a nameless file); None is the folder for temporary files.
        asynchronous: search and prefetch off the critical path; False does both in line, deterministically; None as the policy's
            system does it.
        grouped_from: number of tokens from which a layer's experts are computed by grouped matrix products over the slots, for
            long prompts; results then differ from eager's by rounding. None, the default, never does it and stays bit-equal.
        seed: for policies that draw at random. policy_options: the system's own, such as promoe's `predictor`.
    Raises:
        FinemoeError: the model cannot be offloaded (the message says why), or an option is out of range.
    """
    require_offloadable(model)
    layers = find_moe_layers(model)
    require_free(layers)
    require_contiguous(layers)
    options = engine_options(
        expert_memory,
        policy,
        eviction=eviction,
        devices=devices,
        link=link,
        host_memory=host_memory,
        disk_folder=disk_folder,
        asynchronous=asynchronous,
        grouped_from=grouped_from,
        **policy_options,
    )
    return Engine(model, layers, policy_setup(model, layers, history, prefetch_distance, store_capacity, seed), options)


def policy_setup(
    model: nn.Module,
    layers: list[MoELayer],
    history: Any = None,
    prefetch_distance: int | None = None,
    store_capacity: int = 1000,
    seed: int = 0,
) -> PolicySetup:
    """What a policy is told about a model; layers narrower than the widest are padded with probability 0."""
    embedding = embedding_of(model)
    weight = getattr(embedding, "weight", None)
    return PolicySetup(
        num_layers=len(layers),
        num_experts=max(layer.num_experts for layer in layers),
        top_k=activated_per_token(model, layers),
        embedding_dim=weight.shape[-1] if isinstance(weight, torch.Tensor) else 0,
        prefetch_distance=min(3, len(layers)) if prefetch_distance is None else prefetch_distance,
        store_capacity=store_capacity,
        history=history,
        model=identity_of(model, layers),
        seed=seed,
    )


def identity_of(model: nn.Module, layers: list[MoELayer]) -> str:
    """A short name for a model's routing: its class and a digest of its first router's weights."""
    import xxhash

    source = layers[0].router if layers[0].router is not None else model
    weight = next(source.parameters()).detach().float().cpu().contiguous().numpy()
    return f"{type(model).__name__}-{xxhash.xxh3_64_hexdigest(weight.tobytes())[:12]}"
