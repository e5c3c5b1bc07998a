"""What is measured, row by row: the schema of the tables is these dataclasses. Every time is in seconds, every size in bytes."""

from dataclasses import dataclass

# Ways of copying, and what inference does meanwhile; see Copies.
QUEUED, PREFETCHED, CHUNKED, MAPPED = "queued", "as prefetched", "chunked", "read by a kernel"
IDLE, LAUNCHING = "idle", "launching"


@dataclass(frozen=True)
class Correctness:
    """A miniature offloaded under random delays, against the same model under Transformers' eager.

    Attributes:
        num_different_steps: decode steps whose logits differ in any bit.
    """

    model: str
    dtype: str
    policy: str
    expert_memory: float
    num_steps: int
    num_different_steps: int


@dataclass(frozen=True)
class Arenas:
    """Host memory taken as the experts' is: touched, and page-locked where a GPU reads it.

    Attributes:
        record_bytes: of one expert. pinned_bytes: how much of it is page-locked.
    """

    num_bytes: int
    record_bytes: int
    pinned_bytes: int
    seconds: float


@dataclass(frozen=True)
class Copies:
    """Host memory to expert slots, expert after expert over the engine's link, by a thread beside inference's.

    Attributes:
        mode: QUEUED (all copies issued, then waited for), PREFETCHED (in the engine's own chunks, as many under way at a time as
            it has), CHUNKED (in others), or MAPPED (no copy: the GPU reads the host's memory itself).
        transfer_bytes: all experts copied. chunk_bytes: of one copy. chunks_in_flight: how many are under way at a time.
        main_thread: IDLE, or LAUNCHING small kernels one after another, as inference does.
        bytes_per_s: the median of repetitions; low, high: their extremes.
    """

    mode: str
    transfer_bytes: int
    chunk_bytes: int
    chunks_in_flight: int
    main_thread: str
    bytes_per_s: float
    low: float
    high: float


@dataclass(frozen=True)
class Kernels:
    """Parts of a model with every expert on the device.

    Attributes:
        part: "iteration" (the whole model), "layer" (one decoder layer without routed experts) or "expert" (one routed expert).
        num_tokens: computed at once. context_tokens: attended to before them.
        seconds: as the engine runs it, host work included. kernel_seconds: the device alone (without a GPU the same).
    """

    model: str
    part: str
    num_tokens: int
    context_tokens: int
    seconds: float
    kernel_seconds: float


@dataclass(frozen=True)
class Software:
    """A layer of a decode step at one token when there is nothing to load, with the routing of the history's requests.

    Attributes:
        policy: "resident" where everything is on the device for good and nobody searches. seconds_per_layer: of a whole layer:
            its arithmetic, accounting, publishing, and waiting for whatever search is in line.
        start_search_s, gate_search_s: the policy's own work beside it, at an iteration's start and at a gate.
    """

    model: str
    policy: str
    seconds_per_layer: float
    start_search_s: float
    gate_search_s: float


@dataclass(frozen=True)
class Requests:
    """One served request under one policy and memory size.

    Attributes:
        host_stall_s: how long the thread of inference waited for experts. A GPU that waits for a copy by itself is not in it.
    """

    model: str
    policy: str
    expert_memory: float
    expert_memory_bytes: int
    request: int
    num_prompt_tokens: int
    num_decode_steps: int
    ttft_s: float
    tpot_s: float
    accesses: int
    hits: int
    late: int
    misses: int
    prefetched_bytes: int
    demand_bytes: int
    wasted_bytes: int
    host_stall_s: float


@dataclass(frozen=True)
class Chunks(Requests):
    """The same with prefetches in chunks of another size."""

    chunk_bytes: int
    chunks_in_flight: int


@dataclass(frozen=True)
class Baselines:
    """The same model, request and device memory under another offloader.

    Attributes:
        expert_memory: the share of experts whose memory it may use; peak_device_bytes: what it did use (0 without a GPU).
    """

    model: str
    system: str
    expert_memory: float
    request: int
    num_decode_steps: int
    ttft_s: float
    tpot_s: float
    peak_device_bytes: int


@dataclass(frozen=True)
class Overhead:
    """Decoding with every expert on the device.

    Attributes:
        variant: "eager", "grouped_mm", "batched_mm" (Transformers' own) or a policy. is_equal: whether the last logits are
            eager's bit for bit.
    """

    model: str
    variant: str
    round: int
    seconds_per_token: float
    is_equal: bool


@dataclass(frozen=True)
class Breakdown:
    """FineMoE's mean decode iteration in parts (Fig. 17); search and prefetching run beside the others."""

    model: str
    expert_memory: float
    part: str
    seconds: float


@dataclass(frozen=True)
class Launches:
    """What the host pays for one call of a decode step's sizes: of many issued in a row, without waiting for the device.

    Attributes:
        what: the call; of an iteration the device's work counts, too. by_graph: captured once, and replayed as a CUDA graph.
        seconds: the median of repetitions; low, high: their extremes. is_equal: whether a replay gave the same bits.
    """

    model: str
    what: str
    by_graph: bool
    seconds: float
    low: float
    high: float
    is_equal: bool


@dataclass(frozen=True)
class Hotspots:
    """A function in which inference's thread spends time, under a profiler, which makes small ones look larger than they are.

    Attributes:
        calls_per_step, own_s_per_step, whole_s_per_step: of the iterations of one request, and without or with what it calls.
    """

    model: str
    policy: str
    function: str
    calls_per_step: float
    own_s_per_step: float
    whole_s_per_step: float


@dataclass(frozen=True)
class Predictions:
    """The simulator's answer on the calibrated testbed, and the limit, against what was measured.

    Attributes:
        limit_tpot_s: of this policy's decisions: the critical path of kernels and of transfers, each started as early as it was
            decided on, at peak bandwidth, with no host work at all. over_limit: measured over it.
        link_use: bytes moved over what the link could have moved in the requests' time at its peak.
    """

    model: str
    policy: str
    expert_memory: float
    measured_tpot_s: float
    predicted_tpot_s: float
    error: float
    limit_tpot_s: float
    over_limit: float
    link_use: float


@dataclass(frozen=True)
class Foretold:
    """The simulator's answer for a card before anybody measured on it, from what is expected of the engine there.

    Attributes:
        card: its testbed's title. hit_rate, link_use: as they are defined for what is measured.
    """

    card: str
    model: str
    policy: str
    expert_memory: float
    tpot_s: float
    hit_rate: float
    link_use: float


@dataclass(frozen=True)
class Skipped:
    """What was not measured on this machine, and why."""

    group: str
    part: str
    reason: str


TABLES: dict[str, type] = {
    kind.__name__.lower(): kind
    for kind in (
        *(
            Correctness,
            Arenas,
            Copies,
            Kernels,
            Software,
            Requests,
            Chunks,
            Baselines,
            Overhead,
            Breakdown,
            Launches,
            Hotspots,
            Predictions,
        ),
        Skipped,
    )
}
