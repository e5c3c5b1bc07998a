"""The numbers under `/metrics`, in Prometheus' format."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finemoe.errors import EngineError
from finemoe.report import Report
from finemoe.serving.running import RunningRequest, RunningRequests

if TYPE_CHECKING:
    from finemoe.runtime.engine import Engine

disable_created_metrics()  # a second series for each, of when it was first counted
_PREFIX = "finemoe"
_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Counts requests, and reads the engine's counters when asked.

    Args:
        engine: the engine. running: the server's requests.
    """

    def __init__(self, engine: "Engine", running: RunningRequests) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_EngineCollector(engine))
        registry.register(_RunningCollector(running))
        self._requests = Counter("requests", "Answered requests.", ["endpoint", "status"], namespace=_PREFIX, registry=registry)
        self._cancelled = Counter("cancelled_requests", "Requests that were given up.", namespace=_PREFIX, registry=registry)
        self._prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", namespace=_PREFIX, registry=registry)
        self._generated_tokens = Counter("generated_tokens", "Tokens generated.", namespace=_PREFIX, registry=registry)
        first, each = "From a request's arrival to its first token.", "From a token to the next."
        self._ttft_s = _histogram("time_to_first_token_seconds", first, _TTFT_S, registry)
        self._tpot_s = _histogram("time_per_output_token_seconds", each, _TPOT_S, registry)

    def note(self, request: RunningRequest, endpoint: str, status: int) -> None:
        """Count a request that is over; one without an answer has status 499."""
        self._requests.labels(endpoint, str(status)).inc()
        self._cancelled.inc(request.is_cancelled)
        self._prompt_tokens.inc(request.prompt_tokens)
        self._generated_tokens.inc(request.generated_tokens)
        if request.ttft_s is not None:
            self._ttft_s.observe(request.ttft_s)
        for time_s in request.token_times_s:
            self._tpot_s.observe(time_s)

    def text(self) -> bytes:
        """Everything, in the text format."""
        return generate_latest(self._registry)


def _histogram(name: str, text: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(name, text, namespace=_PREFIX, registry=registry, buckets=buckets)


class _EngineCollector(Collector):
    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """The counters of `engine.report()`, all from one report."""
        try:
            report = self._engine.report()
        except EngineError:
            report = None
        yield GaugeMetricFamily(f"{_PREFIX}_engine_up", "Whether the engine can serve requests.", float(report is not None))
        if report is not None:
            yield from _of_report(report)

    def describe(self) -> list[Metric]:
        """Nothing, so that registering does not read the engine."""
        return []


class _RunningCollector(Collector):
    def __init__(self, running: RunningRequests) -> None:
        self._running = running

    def collect(self) -> Iterator[Metric]:
        """How many requests compute, and how many wait."""
        computing, waiting = self._running.counts()
        yield GaugeMetricFamily(f"{_PREFIX}_requests_running", "Requests that are computing.", computing)
        yield GaugeMetricFamily(f"{_PREFIX}_requests_waiting", "Requests that wait for their turn.", waiting)


def _of_report(report: Report) -> Iterator[Metric]:
    counters = {
        "expert_hits": ("Demanded experts that were in expert memory.", report.hits),
        "expert_late": ("Demanded experts that were being loaded.", report.late),
        "expert_misses": ("Demanded experts that were neither.", report.misses),
        "demand_bytes": ("Bytes of experts loaded on demand.", report.demand_bytes),
        "prefetched_bytes": ("Bytes of experts loaded ahead.", report.prefetched_bytes),
        "wasted_bytes": ("Bytes of experts loaded ahead and evicted unused.", report.wasted_bytes),
        "stall_seconds": ("Time that inference waited for experts.", report.stall_s),
        "prefills": ("Prefills.", report.num_prefills),
        "decode_steps": ("Decode steps.", report.num_decode_steps),
    }
    for name, (text, value) in counters.items():
        yield CounterMetricFamily(f"{_PREFIX}_{name}", text, value)
    yield GaugeMetricFamily(f"{_PREFIX}_expert_hit_ratio", "Hits / all demanded experts.", report.hit_rate)
    yield GaugeMetricFamily(f"{_PREFIX}_expert_memory_bytes", "Size of expert memory.", report.expert_memory_bytes)
