"""The numbers under `/metrics`, in Prometheus' format."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from finemoe.report import Counters
from finemoe.serving.health import engine_failure
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
        self._highest: dict[str, float] = {}  # by counter

    def collect(self) -> Iterator[Metric]:
        """The totals of `engine.report()`, without what it says of each request, which takes longer the more there were."""
        is_up = not engine_failure(self._engine)
        yield GaugeMetricFamily(f"{_PREFIX}_engine_up", "Whether the engine can serve requests.", float(is_up))
        if is_up:
            yield from _of_counters(self._engine.parts.counters, self._highest)
            memory_bytes = self._engine.expert_memory_bytes
            yield GaugeMetricFamily(f"{_PREFIX}_expert_memory_bytes", "Size of expert memory.", memory_bytes)

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


def _of_counters(counters: Counters, highest: dict[str, float]) -> Iterator[Metric]:
    """The totals. What a rejected draft demanded is taken back later, but a counter may only grow: it then waits at its highest
    value."""
    hits, late, misses = sum(counters.hits), sum(counters.late), sum(counters.misses)
    accesses = hits + late + misses
    totals = {
        "expert_hits": ("Demanded experts that were in expert memory.", hits),
        "expert_late": ("Demanded experts that were being loaded.", late),
        "expert_misses": ("Demanded experts that were neither.", misses),
        "demand_bytes": ("Bytes of experts loaded on demand.", counters.demand_bytes),
        "prefetched_bytes": ("Bytes of experts loaded ahead.", counters.prefetched_bytes),
        "wasted_bytes": ("Bytes of experts loaded ahead and evicted unused.", counters.wasted_bytes),
        "stall_seconds": ("Time that inference waited for experts.", counters.stall_s),
        "prefills": ("Prefills.", counters.num_prefills),
        "decode_steps": ("Decode steps.", counters.num_decode_steps),
    }
    for name, (text, value) in totals.items():
        highest[name] = max(value, highest.get(name, 0))
        yield CounterMetricFamily(f"{_PREFIX}_{name}", text, highest[name])
    ratio = hits / accesses if accesses else float("nan")
    yield GaugeMetricFamily(f"{_PREFIX}_expert_hit_ratio", "Hits / all demanded experts.", ratio)
