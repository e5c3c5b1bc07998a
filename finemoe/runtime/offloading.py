"""`finemoe.offload`: run a Transformers MoE model losslessly with only part of its experts on the device (DESIGN 3)."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from finemoe.models.layers import MoELayer, activated_per_token, find_moe_layers
from finemoe.policies.base import PolicySetup
from finemoe.runtime.engine import Engine
from finemoe.runtime.guards import require_contiguous, require_free, require_offloadable
from finemoe.runtime.observer import embedding_of
from finemoe.runtime.options import STREAM_PROMPTS_FROM, engine_options


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
    stream_prompts_from: int | None = STREAM_PROMPTS_FROM,
    seed: int = 0,
    **policy_options: Any,
) -> Engine:
    """Keep only part of a model's routed experts on the device; the model's own `generate` and `forward` keep working.

    Args:
        model: a Transformers MoE model with its weights in memory.
        expert_memory: bytes per device (an int, or a string like "6GiB"), or a share in (0, 1] of all routed experts (a float).
        policy: "finemoe", "finemoe-plus", "moe-infinity", "promoe", "mixtral-offloading", "deepspeed-inference", "on-demand",
            "no-offload", or your own by its registered name or as "module:Class" (docs/add_a_system.md).
        history: a RoutingTrace of other requests (finemoe also takes an ExpertMapStore, finemoe-plus a Forecaster). With None,
            the policy learns online from the requests it serves.
        eviction: replaces the policy's default rule: "lru", "lfu", "lfu-aged", "lfru", "least-stale", "least-stale-interval",
            "next-use" or "finemoe".
        prefetch_distance: d in layers; 3 by default, or the number of MoE layers if that is smaller.
        store_capacity: C, the capacity of the expert map store, in maps.
        devices: a device, a list of devices, or a number of devices. Experts are distributed round-robin; the first device
            computes. The default is the first CUDA device, or the CPU without CUDA. A number n on a CPU-only machine creates n
            separate pools of memory.
        link: "paced:24GB/s" makes copies on a CPU-only machine as slow as a real link.
        host_memory: bytes of experts kept in host memory (an int, or a string like "6GiB"); the rest is stored on disk. None
            keeps all of them in host memory.
        disk_folder: folder for the experts on disk (an unnamed file); None uses the folder for temporary files.
        asynchronous: True searches and prefetches off the critical path; False does both inline and deterministically; None
            follows the system that the policy models.
        grouped_from: from this number of tokens on, compute a layer's experts with grouped matrix products over the slots,
            which suits long prompts; results then differ from eager's by rounding. None, the default, stays bit-equal.
        stream_prompts_from: from this number of tokens on, a prompt is streamed: while a layer runs, the experts of the next ones
            are loaded, since nearly all of them will be demanded. None streams no prompt.
        seed: seed of policies that draw random numbers.
        policy_options: options of the policy itself, such as promoe's `predictor`.
    Returns:
        The engine; close it to restore the model.
    Raises:
        FinemoeError: the model cannot be offloaded (the message gives the reason), or an option is out of range.
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
    setup = policy_setup(model, layers, history, prefetch_distance, store_capacity, seed, stream_prompts_from)
    return Engine(model, layers, setup, options)


def policy_setup(
    model: nn.Module,
    layers: list[MoELayer],
    history: Any = None,
    prefetch_distance: int | None = None,
    store_capacity: int = 1000,
    seed: int = 0,
    stream_prompts_from: int | None = STREAM_PROMPTS_FROM,
) -> PolicySetup:
    """What a policy gets to know about a model; layers narrower than the widest are padded with probability 0."""
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
        stream_prompts_from=stream_prompts_from,
    )


def identity_of(model: nn.Module, layers: list[MoELayer]) -> str:
    """A short identifier of a model's routing: its class and a digest of its first router's weights."""
    import xxhash

    source = layers[0].router if layers[0].router is not None else model
    weight = next(source.parameters()).detach().float().cpu().contiguous().numpy()
    return f"{type(model).__name__}-{xxhash.xxh3_64_hexdigest(weight.tobytes())[:12]}"
