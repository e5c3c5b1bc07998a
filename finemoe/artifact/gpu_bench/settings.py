"""Settings of a measurement: its models, policies, sizes and numbers of repetitions."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finemoe.compiling import IS_COMPILED
from finemoe.errors import FinemoeError
from finemoe.models.shipped import NAMES
from finemoe.paths import MINIATURES, MODEL_CONFIGS
from finemoe.policies import POLICIES as POLICY_CLASSES
from finemoe.simulation.cost import PUBLISHED

POLICIES = (
    "finemoe",
    "finemoe-plus",
    "on-demand",
    "moe-infinity",
    "promoe",
    "mixtral-offloading",
    "deepspeed-inference",
)
_CHOICES = ("models", "expert_memories", "policies", "checked_models", "groups", "host_memory_bytes", "traces")
_PAPER_SIZES = ("qwen1.5-moe-a2.7b", "phi-3.5-moe", "mixtral-8x7b")


@dataclass(frozen=True)
class Target:
    """A model to measure.

    Attributes:
        name: name in the tables.
        source: configuration (random weights) or checkpoint.
        recorded_from: the miniature whose routing is replayed; None if the weights are real and do the routing.
    """

    name: str
    source: str
    recorded_from: str | None


@dataclass(frozen=True)
class Settings:
    """The settings of a measurement; a call with equal settings resumes earlier calls.

    Attributes:
        models: published sizes or miniatures (random weights, replayed routing), or folders and hub ids with real weights.
        expert_memories: shares of all routed experts.
        num_prompts: number of recorded requests, split 7:3 into history and served; num_tokens: decode steps of each.
        num_served: number of served requests that are timed.
        prefetch_distance, store_capacity: d and C of the policies.
        steps: decode steps of the correctness check.
        arena_mib: sizes of host memory allocated at once, as for experts.
        chunk_kib: chunk sizes of the copies, and of FineMoE's prefetches; chunks_in_flight: of the copies.
        num_rounds: number of repetitions.
        baseline_memory: share of the experts for Accelerate, breakdown and timeline.
        baseline_tokens: decode steps under Accelerate.
        groups: the parts to measure, in this order, each "GROUP" or "GROUP:WORD:..." for the parts whose names contain these
            words; empty for all.
        host_memory_bytes: usable host memory; None for most of what the machine reports.
        traces: a folder of recorded routing, used for the traces it contains.
    """

    models: tuple[str, ...] = _PAPER_SIZES
    policies: tuple[str, ...] = POLICIES
    expert_memories: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75, 1.0)
    checked_models: tuple[str, ...] = NAMES
    num_prompts: int = 64
    num_tokens: int = 48
    num_served: int = 3
    prefetch_distance: int = 3
    store_capacity: int = 1000
    steps: int = 200
    arena_mib: tuple[int, ...] = (1024, 4096, 24576)
    chunk_kib: tuple[int, ...] = (512, 2048, 4096, 8192)
    chunks_in_flight: tuple[int, ...] = (1, 2, 4)
    num_rounds: int = 5
    baseline_memory: float = 0.25
    baseline_tokens: int = 6
    seed: int = 0
    groups: tuple[str, ...] = ()
    host_memory_bytes: int | None = None
    traces: str | None = None

    def targets(self) -> list[Target]:
        """The models, resolved."""
        return [target_of(name) for name in self.models]

    def digest(self) -> str:
        """Digest of the settings that affect the result of a part; the choice of parts does not change it."""
        content = {name: value for name, value in asdict(self).items() if name not in _CHOICES}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def target_of(name: str) -> Target:
    """Resolve a model's name.

    Raises:
        FinemoeError: it is not a known name, a path or a hub id.
    """
    if name in NAMES:
        return Target(name, str(MINIATURES / name), name)
    published = {size: miniature for miniature, size in PUBLISHED.items()}
    if name in published:
        return Target(name, str(MODEL_CONFIGS / f"{name}.json"), published[name])
    if Path(name).is_dir() or (name.count("/") == 1 and not name.startswith((".", "/"))):
        plain = Path(name).name.replace(" ", "_")  # names of parts are split into words
        return Target(f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}", name, None)
    raise FinemoeError(f"unknown model {name!r}; known: {', '.join([*published, *NAMES])}, or give a folder or a hub id")


def is_fast_enough(policy: str) -> bool:
    """Whether a policy's searches, if any, are compiled; without compilation they take hundreds of times longer."""
    return IS_COMPILED or not POLICY_CLASSES[policy].needs_context


def require_known(settings: Settings) -> None:
    """Check that every setting names something measurable.

    Raises:
        FinemoeError: a name is unknown, a share is out of range, or the folder of traces does not exist.
    """
    for kind, names, known in (
        ("policy", settings.policies, POLICIES),
        ("miniature to check", settings.checked_models, NAMES),
    ):
        if unknown := [name for name in names if name not in known]:
            raise FinemoeError(f"unknown {kind} {unknown[0]!r}; known: {', '.join(known)}")
    if wrong := [share for share in settings.expert_memories if not 0 < share <= 1]:
        raise FinemoeError(f"expert_memory is {wrong[0]:g}; give a share of all experts, above 0 and at most 1")
    if settings.traces is not None and not Path(settings.traces).is_dir():
        raise FinemoeError(
            f"{settings.traces}: no such folder of traces; `python -m finemoe.artifact.gpu_bench record` makes one"
        )


def require_device(targets: Sequence[Target], kind: str) -> None:
    """Refuse published sizes on a machine without a GPU.

    Raises:
        FinemoeError: a published size is requested, and the device is a CPU.
    """
    published = [one.name for one in targets if one.recorded_from not in (None, one.name)]
    if published and kind != "cuda":
        raise FinemoeError(
            f"{', '.join(published)}: published sizes need a CUDA device, and there is none; "
            "omit --model to measure the miniatures' sizes with pools of host memory"
        )


def settings_for(is_cuda: bool, quick: bool = False) -> Settings:
    """The settings of a machine: published sizes with a GPU, miniatures without. `quick` measures just enough to test
    that everything works."""
    settings = Settings() if is_cuda else Settings(models=NAMES, arena_mib=(64, 256), chunk_kib=(2, 8))
    if not quick:
        return settings
    few: dict[str, Any] = {"num_prompts": 10, "num_tokens": 4, "num_served": 1, "steps": 4, "num_rounds": 1, "baseline_tokens": 2}
    return replace(settings, **few, arena_mib=settings.arena_mib[:1], expert_memories=(0.25, 1.0))
