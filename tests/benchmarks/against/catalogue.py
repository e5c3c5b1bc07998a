"""The subjects, with the bars that this revision is to clear against the one before its engine was sped up."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from .subject import NEW, OLD, Bar, Side, Subject

MODELS = ("mixtral-mini", "qwen-mini", "phi-mini")
POLICIES = ("on-demand", "finemoe")
SHARES = (0.25, 0.5, 0.75)
LOADS_MS = (1, 5)  # of one expert over the paced link
REPLAYED = ("on-demand", "finemoe", "promoe", "on-demand loaded", "finemoe loaded")


@dataclass(frozen=True)
class Material:
    """What subjects are made of.

    Attributes:
        prompts: texts of requests that are served, in order.
        history: (text, split) of requests whose routing is recorded, none of which is served. folder: where that routing is kept.
    """

    prompts: list[str]
    history: list[tuple[str, str]]
    folder: Path

    def recorded(self, model: str) -> dict[str, Any]:
        """What `measured.history.recorded` is told."""
        num_tokens = 32
        path = self.folder / f"{model}-{len(self.history)}x{num_tokens}.trace"
        return {"model": model, "prompts": self.history, "num_tokens": num_tokens, "path": str(path)}


def subjects(material: Material) -> list[Subject]:
    """All of them."""
    found = []
    for model in MODELS:
        found += [_own_time(model), _token(model, material.prompts[:2]), _unpreloaded(model, material)]
    found += [_paced(model, share, load_ms, material) for load_ms, model, share in product(LOADS_MS, MODELS, SHARES)]
    return [*found, _bandwidth(), *(_replay_memory(model, material) for model in MODELS[:2])]


def _own_time(model: str) -> Subject:
    searching = ("finemoe 0.5", "finemoe with history 0.5")
    variants = (*(f"{policy} {share}" for share in ("0.5", "1.0") for policy in POLICIES), searching[1])
    bars = (
        *(_against_old(variant, 0.3) for variant in searching),
        *(Bar(Side(NEW, variant), Side(NEW, "on-demand 0.5"), 1.5) for variant in searching),
        _against_old("on-demand 0.5"),
        *(_against_old(f"{policy} 1.0", 1.0) for policy in POLICIES),
    )
    options = {"model": model, "variants": variants, "num_passes": 20, "num_maps": 1000}
    return Subject(f"own time a layer, {model}", "own_time", options, _both(variants), 15, bars, scale=1e6, unit="µs")


def _token(model: str, prompts: list[str]) -> Subject:
    offloaded = tuple(f"{policy} {share}" for share in ("0.5", "1.0") for policy in POLICIES)
    variants = ("eager", *offloaded)
    bars = (
        *(_against_old(variant, 1.0 if variant.endswith("1.0") else None) for variant in offloaded),
        *(Bar(Side(NEW, variant), Side(NEW, "eager")) for variant in offloaded),
        Bar(Side(NEW, "finemoe 0.5"), Side(NEW, "on-demand 0.5")),
        *(Bar(Side(NEW, variant), Side(OLD, variant), beyond="eager") for variant in offloaded[:2]),
    )
    options = {"model": model, "prompts": prompts, "num_tokens": 10, "variants": variants}
    return Subject(f"token, {model}", "token", options, _both(variants), 10, bars)


def _unpreloaded(model: str, material: Material) -> Subject:
    offloaded = ("on-demand", "finemoe", "finemoe online")
    bars = (
        *(
            Bar(Side(NEW, f"{variant} request {number}"), Side(NEW, f"eager request {number}"), 0.95)
            for variant, number in product(offloaded, (2, 3))
        ),
        *(Bar(Side(NEW, f"{variant} again"), Side(NEW, "on-demand again"), 1.05) for variant in offloaded[1:]),
        *(_against_old(f"finemoe request {number}") for number in (2, 3)),
    )
    variants = {NEW: ("eager", *offloaded), OLD: ("finemoe",)}
    options = {"model": model, "prompts": material.prompts[:3], "num_tokens": 12, "history": material.recorded(model)}
    return Subject(f"nothing preloaded, {model}", "unpreloaded", options, variants, 8, bars)


def _paced(model: str, share: float, load_ms: int, material: Material) -> Subject:
    against_old = _against_old("finemoe", 0.85)
    bars = (Bar(Side(NEW, "finemoe"), Side(NEW, "on-demand"), 1.02), _against_old("finemoe"))
    options = {
        "model": model,
        "prompts": material.prompts[:3],  # of one alone, again and again, everything stays resident
        "num_tokens": 8,
        "share": share,
        "load_s": load_ms / 1e3,
        "variants": POLICIES,
        "history": material.recorded(model),
    }
    name = f"paced link, {load_ms} ms an expert, {model}, {share:.0%}"
    variants = {NEW: ("finemoe", "on-demand"), OLD: ("finemoe",)}
    means = {"paced link, every cell": against_old}
    return Subject(name, "paced", options, variants, 3, bars, means)


def _bandwidth() -> Subject:
    variants = ("prefetches", "bare copy", "bare copy beside")
    bars = (
        Bar(Side(NEW, "prefetches"), Side(NEW, "bare copy"), 0.9, is_floor=True),
        Bar(Side(NEW, "prefetches"), Side(NEW, "bare copy beside")),
        Bar(Side(NEW, "bare copy beside"), Side(NEW, "bare copy")),
        Bar(Side(OLD, "prefetches"), Side(OLD, "bare copy")),
    )
    options = {"hidden_size": 512, "intermediate_size": 1024}
    return Subject("link's bandwidth", "bandwidth", options, _both(variants), 15, bars, scale=1e-9, unit="GB/s")


def _replay_memory(model: str, material: Material) -> Subject:
    bars = tuple(_against_old(f"{variant}, peak", 0.6) for variant in REPLAYED)
    options = {"history": material.recorded(model), "variants": REPLAYED}
    return Subject(f"import and replay, {model}", "replay_memory", options, _both(REPLAYED), 2, bars, scale=1e-6, unit="MB")


def _against_old(value: str, limit: float | None = None) -> Bar:
    return Bar(Side(NEW, value), Side(OLD, value), limit)


def _both(variants: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {NEW: variants, OLD: variants}
