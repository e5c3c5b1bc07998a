"""The measurements, row by row: these dataclasses are the schema of the tables. All times are in seconds, all sizes in bytes."""

from dataclasses import dataclass

# Ways of copying, and what inference does meanwhile; see Copies.
QUEUED, PREFETCHED, CHUNKED, MAPPED = "queued", "as prefetched", "chunked", "read by a kernel"
IDLE, LAUNCHING = "idle", "launching"


@dataclass(frozen=True)
class Correctness:
    """A miniature offloaded with random delays, compared with the same model under Transformers' eager.

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
    """Host memory allocated as for experts: touched and, if a GPU reads it, page-locked.

    Attributes:
        record_bytes: size of one expert.
        pinned_bytes: how much of the memory is page-locked.
    """

    num_bytes: int
    record_bytes: int
    pinned_bytes: int
    seconds: float


@dataclass(frozen=True)
class Copies:
    """Copies from host memory to expert slots, one expert after the other over the engine's link, by a thread next to
    inference's.

    Attributes:
        mode: QUEUED (all copies issued, then waited for), PREFETCHED (the engine's own chunks and number in flight), CHUNKED
            (other chunks), or MAPPED (no copy: the GPU reads the host's memory itself).
        transfer_bytes: size of all copied experts.
        chunk_bytes: size of one copy.
        chunks_in_flight: number of copies under way at a time.
        main_thread: IDLE, or LAUNCHING small kernels one after another, as inference does.
        bytes_per_s: median over repetitions; low, high: their extremes.
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
        num_tokens: tokens computed at once.
        context_tokens: tokens before them that they attend to.
        seconds: as run by the engine, including host work.
        kernel_seconds: the device alone (without a GPU, the same value).
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
        policy: "resident" if everything is permanently on the device and nothing is searched.
        seconds_per_layer: a whole layer: its arithmetic, accounting, publishing, and waiting for inline searches.
        start_search_s, gate_search_s: the policy's own concurrent work, at the start of an iteration and at a gate.
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
        host_stall_s: how long inference's thread waited for experts. Excludes a GPU that waits for a copy by itself.
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
    """One served request, with prefetches in chunks of another size."""

    chunk_bytes: int
    chunks_in_flight: int


@dataclass(frozen=True)
class Baselines:
    """The same model, request and device memory under another offloader.

    Attributes:
        expert_memory: the share of experts whose memory it may use; peak_device_bytes: the memory it used (0 without a GPU).
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
        variant: "eager", "grouped_mm", "batched_mm" (Transformers' own) or a policy.
        is_equal: whether the last logits are eager's bit for bit.
    """

    model: str
    variant: str
    round: int
    seconds_per_token: float
    is_equal: bool


@dataclass(frozen=True)
class Breakdown:
    """FineMoE's mean decode iteration in parts (Fig. 17); search and prefetching run concurrently with the others."""

    model: str
    expert_memory: float
    part: str
    seconds: float


@dataclass(frozen=True)
class Launches:
    """The host's cost of one call of a decode step's sizes, when many are issued in a row without waiting for the device.

    Attributes:
        what: the call; an iteration includes the device's work.
        by_graph: whether it is captured once and replayed as a CUDA graph.
        seconds: median over repetitions; low, high: their extremes.
        is_equal: whether a replay gives the same bits.
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
    """A function in which inference's thread spends time, measured with a profiler, which inflates the time of small functions.

    Attributes:
        calls_per_step, own_s_per_step, whole_s_per_step: averages over the iterations of one request; own time excludes, and
            whole time includes, the functions it calls.
    """

    model: str
    policy: str
    function: str
    calls_per_step: float
    own_s_per_step: float
    whole_s_per_step: float


@dataclass(frozen=True)
class Predictions:
    """The simulator's prediction on the calibrated testbed, and the limit, compared with the measurement.

    Attributes:
        limit_tpot_s: lower bound for this policy's decisions: the critical path of kernels and transfers, each started as early
            as it was decided on, at peak bandwidth and without host work. over_limit: measured time over the limit.
        link_use: bytes moved, over what the link could move at its peak in the requests' time.
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
    """The simulator's prediction for a card before any measurement on it, from the expected speed of the engine there.

    Attributes:
        card: title of its testbed.
        hit_rate, link_use: defined as for measurements.
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
    """A part that was not measured on this machine, and the reason."""

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
