"""Numbers of the paper's figures and claims, from `data/reference`: simulated, replayed, recorded or computed."""

from collections.abc import Iterator
from itertools import chain

import pandas as pd

from finemoe.artifact.claims import VERDICTS
from finemoe.artifact.docs.tables import Number, groups, items, milliseconds, only, percent, rows, shipped, signed_percent, slug

REAL = "gpt-oss-20b"
_FIGURES = "reference/figures"
_CLAIMS = f"{_FIGURES}/claims.csv"
_VERBS = {"holds": ("hold", "holds"), "holds weaker": ("hold weaker", "holds weaker")}
_FAILS = ("do not hold", "does not hold")


def figure_numbers() -> Iterator[Number]:
    """All of them."""
    return chain(
        _claims(), _gains(), _on_real_routing(), _by_memory(), _assumptions(), _hit_rates(), _stores(), _models(), _scale()
    )


def _claims() -> Iterator[Number]:
    table = shipped(_CLAIMS)
    counts = {verdict: int((table.verdict == verdict).sum()) for verdict in VERDICTS}
    yield Number("claims", str(len(table)), _CLAIMS, "claims of the paper that were tested")
    for verdict, count in counts.items():
        yield Number(f"claims_{slug(verdict)}", str(count), _CLAIMS, f"claims with the verdict {verdict!r}")
    told = [
        f"{counts[verdict]} {(verbs[1] if counts[verdict] == 1 else verbs[0])}"
        for verdict, verbs in {**_VERBS, "does not hold": _FAILS}.items()
    ]
    yield Number("claims_verdicts", ", ".join(told), _CLAIMS, "how many claims have which verdict, in words")
    for one in rows(table):
        yield Number(f"verdict_{one.id.lower()}", one.verdict, _CLAIMS, f"verdict of {one.artefact}")
        decided = one.reproduced.partition("; ")[0].removeprefix("decided by ")
        yield Number(f"decided_{one.id.lower()}", decided, _CLAIMS, f"the statement that decides {one.artefact}")


def _gains() -> Iterator[Number]:
    """Of FineMoE over the baselines: of the headline and Figure 10."""
    source = f"{_FIGURES}/headline.csv"
    for quantity, panel, share in rows(shipped(source)):
        name = f"gain_{slug(str(quantity).replace(' over ', ' '))}_{slug(panel)}"
        is_hits = str(quantity).startswith("hit rate")
        meaning = f"FineMoE's change in {quantity}, {panel}"
        yield Number(name, signed_percent(share if is_hits else -share), source, meaning)


def _on_real_routing() -> Iterator[Number]:
    """Every system on the two testbeds of the paper: a quarter of gpt-oss-20b's experts in the cache."""
    for figure, testbed in (("f10", "6 x RTX 3090"), ("f13", "A100")):
        source = f"{_FIGURES}/{figure}.csv"
        for one in rows(_real(source)):
            where = f"{one.system}, {REAL} on {testbed}"
            yield Number(f"{figure}_tpot_{slug(one.system)}", milliseconds(one.tpot_s), source, f"simulated TPOT of {where}")
            yield Number(f"{figure}_hits_{slug(one.system)}", percent(one.hit_rate), source, f"hit rate of {where}")


def _by_memory() -> Iterator[Number]:
    source = f"{_FIGURES}/f12.csv"
    for one in rows(_real(source)):
        name = f"f12_tpot_{slug(one.system)}_{one.cache_limit_gb:g}gb"
        meaning = f"simulated TPOT of {one.system}, {REAL} on 6 x RTX 3090 with {one.cache_limit_gb:g} GB of expert cache"
        yield Number(name, milliseconds(one.tpot_s), source, meaning)


def _assumptions() -> Iterator[Number]:
    """Of the notebook `disagreement`: one assumption varied at a time."""
    source = f"{_FIGURES}/disagreement.csv"
    short = {
        "store capacity (maps)": "store",
        "eviction rule": "rule",
        "requests ProMoE learns from": "requests",
        "link (times)": "link",
    }
    for one in rows(shipped(source)):
        is_base = pd.isna(one.value)
        value = "base" if is_base else f"{short[one.assumption]}_{slug(one.value.removesuffix('.0').replace('.', '_'))}"
        meaning = f"simulated TPOT of {one.system} on {REAL}, {one.assumption}{'' if is_base else f' {one.value}'}"
        yield Number(f"disagreement_{slug(one.system)}_{value}", milliseconds(one.tpot_s), source, meaning)


def _hit_rates() -> Iterator[Number]:
    """Replayed on gpt-oss-20b: prediction by distance, rules of eviction, systems by memory."""
    source = f"{_FIGURES}/f4.csv"
    for one in rows(_real(source).dropna(subset=["distance"])):
        name = f"f4_{slug(one.method)}_{one.distance:g}"
        yield Number(name, percent(one.hit_rate), source, f"hit rate of {one.method}, {one.distance:g} layers ahead, {REAL}")
    source = f"{_FIGURES}/f14b.csv"
    for one in rows(_real(source)):
        name = f"f14b_{slug(one.rule)}_{slug(one.loading)}"
        yield Number(name, percent(one.hit_rate), source, f"hit rate of the rule {one.rule}, {one.loading}, {REAL}")
    source = "reference/compare_systems_gpt_oss.csv"
    for one in rows(shipped(source)):
        name = f"systems_hits_{slug(one.system)}_{1000 * one.expert_memory:g}"
        yield Number(
            name, percent(one.hit_rate), source, f"hit rate of {one.system}, {100 * one.expert_memory:g} % of {REAL}'s experts"
        )
    source = "reference/recalls_gpt_oss.csv"
    for one in rows(shipped(source)):
        yield Number(f"recall_{slug(one.method)}", f"{one.recall:.2f}", source, f"recall of {one.method}, 3 layers ahead, {REAL}")
        yield Number(f"recall_{slug(one.method)}_independent", f"{one.independent:g}", source, "the same, computed elsewhere")
    source = f"{_FIGURES}/quickstart.csv"
    counts = shipped(source).groupby("policy")[["hit", "late", "miss"]].sum()
    for policy, hits in items(counts.hit / counts.sum(axis=1)):
        yield Number(
            f"quickstart_hits_{slug(str(policy))}", percent(hits), source, f"hit rate of {policy} in the quickstart's notebook"
        )


def _stores() -> Iterator[Number]:
    source = f"{_FIGURES}/f18.csv"
    for one in rows(shipped(source)):
        name = f"store_mb_{slug(one.model)}_{slug(one.content)}_{one.capacity}"
        meaning = f"Expert Map Store of {one.model}, {one.capacity:,} {one.content}"
        yield Number(name, f"{one.store_mb:.0f} MB" if one.store_mb >= 10 else f"{one.store_mb:.1f} MB", source, meaning)


def _models() -> Iterator[Number]:
    source = f"{_FIGURES}/t1.csv"
    for one in rows(shipped(source)):
        model = slug(one.model)
        yield Number(f"params_total_{model}", f"{one.total_rounded} billion", source, f"parameters of {one.title}")
        yield Number(
            f"params_active_{model}", f"{one.active_rounded} billion", source, f"parameters that a token activates in {one.title}"
        )
        yield Number(
            f"params_idle_{model}", f"{one.idle_percent:.0f} %", source, f"parameters of {one.title} that a token leaves idle"
        )
    source = f"{_FIGURES}/training.csv"
    for model, part in groups(shipped(source), "model"):
        last = part.iloc[-1]
        name = slug(str(model))
        yield Number(
            f"perplexity_{name}", f"{last.held_out_perplexity_conversations:.2f}", source, f"held-out perplexity of {model}"
        )


def _scale() -> Iterator[Number]:
    """Of the notebook `scale`: models that no figure of the paper has."""
    source = f"{_FIGURES}/scale.csv"
    table = shipped(source)
    for one in rows(table[table.tpot_ms.notna() & table.devices.notna()]):
        name = f"scale_{slug(one.model)}_{slug(one.system)}_{one.devices:g}"
        meaning = f"simulated TPOT of {one.system}, {one.model} on {one.devices:g} devices"
        yield Number(name, milliseconds(one.tpot_ms / 1e3), source, meaning)


def _real(source: str) -> pd.DataFrame:
    table = shipped(source)
    return table[table.model == REAL]


def belady(memory: float) -> float:
    """Hit rate of Belady's rule on gpt-oss-20b, on demand, with a share of its experts in the cache."""
    table = shipped("reference/compare_systems_gpt_oss.csv")
    return only(table, "hit_rate", system="Belady (on demand)", expert_memory=memory)
