"""Every figure of an advice, each with a caption; figures without data are left out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finemoe.advice.result import Advice
from finemoe.advice.verdict import WITHIN
from finemoe.artifact.advice.memory_figures import hit_rate_figure, prefetching_figure, time_figure
from finemoe.artifact.advice.routing_figures import recall_figure, reuse_figure, sensitivity_figure, usage_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Drawing:
    """A figure that is drawn on request.

    Attributes:
        name: a slug.
        title: title of its section.
        text: its caption.
        draw: makes the figure from the advice.
    """

    name: str
    title: str
    text: str
    draw: Callable[[Advice], "Figure"]


_TIMES = Drawing(
    "times",
    "Time per token over expert memory",
    "Mean time of a token after the first, in virtual time; bands are 95 % intervals over requests. Black lines show "
    "limits: Belady's eviction, which knows the future, a perfect predictor, and all experts resident. The star is the "
    f"recommendation, if any size fits: the smallest that takes at most {WITHIN - 1:.0%} longer than the fastest that fits. "
    "Sizes in the hatched region do not fit.",
    time_figure,
)
_HIT_RATES = Drawing(
    "hit_rates",
    "Hit rate over expert memory",
    "Share of the demanded experts that are in the cache when experts are loaded on demand only; bands are 95 % "
    "intervals over requests. Left of the cliff, LRU evicts every expert before its next use. Right of the knee, more "
    "memory brings less.",
    hit_rate_figure,
)
_PREFETCHING = Drawing(
    "prefetching",
    "What prefetching is worth",
    "Time of the fastest prefetching system over the time of the fastest system that loads on demand, with its 95 % "
    "interval over requests: below 1 prefetching pays. A filled marker means that the interval excludes 1.",
    prefetching_figure,
)
_RECALLS = Drawing(
    "recalls",
    "How well the experts can be predicted",
    "K experts are named for a layer that uses K; recall is the share of the used experts among them. The dotted line "
    "is chance. Grey predictors look at no other layer. Systems are asked some layers ahead; finemoe-plus counts with "
    "its last forecast before the gate.",
    recall_figure,
)
_USAGE = Drawing(
    "usage",
    "How experts are used",
    "Left: share of all uses that go to the most used 10 % and 25 % of a layer's experts. Middle: the effective number "
    "of experts, 2 to the power of the entropy of their shares. Right: distinct experts that consecutive tokens of a "
    "request use; the band goes from the layer with the fewest to the layer with the most.",
    usage_figure,
)
_REUSE = Drawing(
    "reuse",
    "How soon an expert is used again",
    "Share of uses whose expert was used before in the same request, at most so many tokens ago. The dotted line is "
    "what experts drawn at random would give.",
    reuse_figure,
)
_SENSITIVITY = Drawing(
    "sensitivity",
    "What changes the advice",
    "Time per token at the recommended size with one thing changed, of the fastest system that loads on demand and of "
    "the fastest that prefetches there. Dashed lines are the times without a change.",
    sensitivity_figure,
)


def drawings(advice: Advice) -> list[Drawing]:
    """The figures for which an advice has data, in the order of the page."""
    has_data = {
        _TIMES: advice.times,
        _HIT_RATES: advice.hit_rates,
        _PREFETCHING: advice.prefetching,
        _RECALLS: advice.predictability,
        _USAGE: advice.concentration,
        _REUSE: advice.reuse,
        _SENSITIVITY: advice.sensitivity,
    }
    timed_only = () if advice.machine is not None else (_TIMES, _PREFETCHING, _SENSITIVITY)
    return [drawing for drawing, rows in has_data.items() if rows and drawing not in timed_only]
