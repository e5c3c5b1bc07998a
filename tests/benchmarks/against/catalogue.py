"""The subjects, with the bars that this revision is to clear."""

from .subject import NEW, OLD, Bar, Side, Subject

MODELS = ("mixtral-mini", "qwen-mini", "phi-mini")
POLICIES = ("on-demand", "finemoe")


def subjects(prompts: list[str]) -> list[Subject]:
    """All of them; prompts: what is generated, in the order in which requests come."""
    found = []
    for model in MODELS:
        found += [_own_time(model), _token(model, prompts[:2])]
    return found


def _own_time(model: str) -> Subject:
    variants = tuple(f"{policy} {share}" for share in ("0.5", "1.0") for policy in POLICIES)
    bars = (
        Bar(Side(NEW, "finemoe 0.5"), Side(OLD, "finemoe 0.5"), 0.3),
        Bar(Side(NEW, "finemoe 0.5"), Side(NEW, "on-demand 0.5"), 1.5),
        Bar(Side(NEW, "on-demand 0.5"), Side(OLD, "on-demand 0.5")),
        *(Bar(Side(NEW, f"{policy} 1.0"), Side(OLD, f"{policy} 1.0"), 1.0) for policy in POLICIES),
    )
    options = {"model": model, "variants": variants, "num_passes": 20}
    return Subject(f"own time a layer, {model}", "own_time", options, _both(variants), 15, bars, scale=1e6, unit="µs")


def _token(model: str, prompts: list[str]) -> Subject:
    offloaded = tuple(f"{policy} {share}" for share in ("0.5", "1.0") for policy in POLICIES)
    variants = ("eager", *offloaded)
    bars = (
        *(Bar(Side(NEW, variant), Side(OLD, variant), 1.0 if variant.endswith("1.0") else None) for variant in offloaded),
        *(Bar(Side(NEW, variant), Side(NEW, "eager")) for variant in offloaded),
        Bar(Side(NEW, "finemoe 0.5"), Side(NEW, "on-demand 0.5")),
    )
    options = {"model": model, "prompts": prompts, "num_tokens": 10, "variants": variants}
    return Subject(f"token, {model}", "token", options, _both(variants), 12, bars)


def _both(variants: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {NEW: variants, OLD: variants}
