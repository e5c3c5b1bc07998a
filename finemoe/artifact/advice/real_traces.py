"""Public traces of real models: their sources, and the values that their publishers report.

The traces are not part of the project, but tables of results computed from them are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from finemoe.advice.predictability import CHANCE, HINDSIGHT, LAST, PROMPT
from finemoe.advice.result import Advice
from finemoe.artifact.advice.tables import rows_of
from finemoe.importers import gpt_oss, route_trace
from finemoe.simulation.curves import hit_curves
from finemoe.traces import RoutingTrace

_MIB = 1 << 20


@dataclass(frozen=True)
class RealTrace:
    """A public trace.

    Attributes:
        name: a slug.
        title: name of the model.
        publisher: repository on GitHub.
        licence: licence of the trace.
        commit, files: its commit and files in the repository.
        content: what was recorded.
        model: a name in data/models/configs.
        path: path of the local copy, if there is one.
        options: of `finemoe.advice.advise`.
        published: values that the publisher reports, by quantity; report: where they are reported.
    """

    name: str
    title: str
    publisher: str
    licence: str
    commit: str
    files: str
    content: str
    model: str
    path: Callable[[], Path]
    options: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    report: str = ""


_DISTINCT, _CHANCE, _TEMPORAL, _STATIC, _PROMPT, _LRU = (
    "distinct experts of a layer, mean (least, greatest)",
    "recall of chance, %",
    "recall of the token before, %",
    "recall of the run's most used experts, %",
    "recall of the prompt's most used experts, %",
    "hit rate of LRU with a cache of 4000 MiB, prompt included, %",
)
_CACHE_BYTES = 4000 * _MIB
_DIFFERENCES = {
    _DISTINCT: "same definition: decode tokens",
    _CHANCE: "same definition: K of J experts",
    _TEMPORAL: "same definition: decode tokens that follow another",
    _STATIC: "same definition: decode tokens that follow another, and experts that all decode tokens use most",
    _PROMPT: "same idea; the publisher does not say how ties are broken and which tokens count",
    _LRU: "here {} slots of the mean size of an expert, every distinct expert of the prompt counted once a layer",
}
GEMMA = RealTrace(
    name="gemma-4-26b",
    title="gemma-4-26B-A4B (Q4_K_M), 6 of 128 experts",
    publisher="Helldez/BigMoeOnEdge",
    licence="Apache-2.0",
    commit="2d4f2b11db",
    files="docs/bench-data/2026-07-15-route-trace",
    content="One prompt on a phone: 29 prompt tokens and 128 decode tokens. Experts have two sizes; the larger one counts here.",
    model="gemma-4-26b-a4b",
    path=route_trace.sample_path,
    published={
        _DISTINCT: (67, 52, 97),
        _CHANCE: (4.7,),
        _TEMPORAL: (35.7,),
        _STATIC: (39.6,),
        _PROMPT: (26.8,),
        _LRU: (76.8,),
    },
    report="docs/bench-data/2026-07-15-route-trace/findings.md",
)
GPT_OSS = RealTrace(
    name="gpt-oss-20b",
    title="gpt-oss-20b (MXFP4), 4 of 32 experts",
    publisher="AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting",
    licence="Apache-2.0",
    commit="72b368f600",
    files="data/**/*_examples.json",
    content="369 requests from several public sets of questions, decode tokens only.",
    model="gpt-oss-20b",
    path=gpt_oss.sample_path,
    options={"expert_bits": 4.25},
)
REAL_TRACES = (GPT_OSS, GEMMA)
NOT_SHOWN = {
    "Mixtral-8x7B on MMLU (ajtejankar/mixtral-vis-moe, Apache-2.0)": "the table states the share of a request's tokens that "
    "each expert gets, not the experts of each token. Without the order of uses no cache can be replayed.",
}


def published_table(real: RealTrace, trace: RoutingTrace, advice: Advice) -> pd.DataFrame:
    """Values that the publisher reports, next to the same values computed here.

    Returns:
        Rows (trace, quantity, published, computed, difference), with numbers as text; difference compares the definitions.
    """
    computed = _computed(trace, advice) if real.published else {}
    rows = [
        {
            "trace": real.name,
            "quantity": quantity,
            "published": _text(values),
            "computed": _text(computed[quantity]),
            "difference": _DIFFERENCES[quantity].format(_detail(quantity, trace)),
        }
        for quantity, values in real.published.items()
    ]
    return pd.DataFrame(rows, columns=["trace", "quantity", "published", "computed", "difference"])


def slots_of(trace: RoutingTrace, num_bytes: int) -> int:
    """The number of experts of mean size that fit into a cache of `num_bytes`."""
    return int(num_bytes / float(np.mean(trace.expert_bytes)))


def _computed(trace: RoutingTrace, advice: Advice) -> dict[str, tuple[float, ...]]:
    recalls = {row["predictor"]: 100 * row["recall"] for row in rows_of(advice.predictability, distance=None)}
    request, curve = advice.request, hit_curves(trace, ["lru"], [slots_of(trace, _CACHE_BYTES)])["lru"]
    return {
        _DISTINCT: (request["mean"], request["least"], request["greatest"]),
        _CHANCE: (recalls[CHANCE],),
        _TEMPORAL: (recalls[LAST],),
        _STATIC: (recalls[HINDSIGHT],),
        _PROMPT: (recalls[PROMPT],),
        _LRU: (100 * float(curve.hit_rates[0]),),
    }


def _detail(quantity: str, trace: RoutingTrace) -> str:
    return f"{slots_of(trace, _CACHE_BYTES):,}" if quantity == _LRU else ""


def _text(values: tuple[float, ...]) -> str:
    """One number, or one number and its two bounds."""
    first, *bounds = values
    shown = f"{first:.1f}".removesuffix(".0")
    return f"{shown} ({', '.join(f'{bound:g}' for bound in bounds)})" if bounds else shown
