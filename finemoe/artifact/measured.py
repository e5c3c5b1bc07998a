"""What machines measured: the tables that finemoe.artifact.gpu_bench leaves, row by row. The schema is these dataclasses.

Every time is in seconds, every size in bytes. `data/measured/<machine>/` holds one CSV for each, where figures read them.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

import pandas as pd

from finemoe.artifact.plotting import save_table
from finemoe.errors import FinemoeError
from finemoe.paths import DATA

MEASURED = DATA / "measured"  # one folder for each machine
NOT_YET = "not yet measured on a GPU"  # what figures and pages say until somebody has
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
        *(Correctness, Arenas, Copies, Kernels, Software, Requests, Chunks, Baselines, Overhead, Breakdown, Predictions),
        Skipped,
    )
}


def write_table(rows: list[Any], name: str, folder: Path) -> None:
    """Write rows of one kind as `folder`/`name`.csv; an empty table has its columns."""
    _write(rows, TABLES[name], folder / f"{name}.csv")


def write_foretold(rows: list[Foretold], card: str, folder: Path) -> None:
    """Write what was foretold for a card where `read_foretold` finds it."""
    _write(rows, Foretold, foretold_path(card, folder))


def foretold_path(card: str, folder: Path) -> Path:
    """Where what was foretold for a card lies."""
    return folder / f"predictions-before-{Path(card).stem}.csv"


def _write(rows: list[Any], kind: type, path: Path) -> None:
    save_table(pd.DataFrame([vars(row) for row in rows], columns=[field.name for field in fields(kind)]), path)


def read_foretold(machine: "Measured") -> pd.DataFrame:
    """What was foretold for a machine's card, which its name tells, beside its folder or in what is shipped; empty where nobody
    said anything."""
    for path in (*_foretold_in(machine.folder.parent), *_foretold_in(MEASURED)):
        if path.stem.rpartition("-")[2] in machine.title.lower().replace("-", " ").split():
            return _read(path, Foretold)
    return pd.DataFrame(columns=[field.name for field in fields(Foretold)])


def read_all_foretold(folder: Path) -> pd.DataFrame:
    """What was foretold of all cards, by card."""
    nothing = pd.DataFrame(columns=[field.name for field in fields(Foretold)])
    found = [_read(path, Foretold) for path in _foretold_in(folder)]
    return pd.concat(found, ignore_index=True) if found else nothing


def _foretold_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("predictions-before-*.csv"))


def read_table(name: str, folder: Path) -> pd.DataFrame:
    """A table as `write_table` wrote it.

    Raises:
        FinemoeError: it is missing, or its columns are not the schema's.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise FinemoeError(f"{path}: not measured; run `python -m finemoe.artifact.gpu_bench --out {folder}`")
    return _read(path, TABLES[name])


def _read(path: Path, kind: type) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, keep_default_na=False, na_values=["", "nan"])
    except (OSError, ValueError) as error:
        raise FinemoeError(
            f"{path}: not a table ({error}); take it from the archive again, or measure in another folder"
        ) from error
    expected = get_type_hints(kind)
    if list(table.columns) != list(expected):
        raise FinemoeError(f"{path}: has the columns {', '.join(table.columns)}; expected {', '.join(expected)}")
    for column, sort in expected.items():
        if not _is_of(table[column], sort):
            raise FinemoeError(f"{path}: column {column} holds something else than {sort.__name__}")
    return table


def _is_of(column: pd.Series, kind: type) -> bool:
    checks = {
        int: pd.api.types.is_integer_dtype,
        float: pd.api.types.is_numeric_dtype,
        bool: pd.api.types.is_bool_dtype,
        str: lambda values: all(isinstance(value, str) for value in values),
    }
    return len(column) == 0 or bool(checks[kind](column))


@dataclass(frozen=True)
class Measured:
    """One machine's tables.

    Attributes:
        folder: where they lie. facts: of the machine. tables: by name, as the dataclasses above describe them.
    """

    folder: Path
    facts: dict[str, Any]
    tables: dict[str, pd.DataFrame]

    @property
    def title(self) -> str:
        return str(self.facts["title"])

    @property
    def is_gpu(self) -> bool:
        return bool(self.facts["devices"])

    @property
    def memory_bytes(self) -> float:
        """Of the first device, or the host's where there is none."""
        devices = self.facts["devices"]
        return float(devices[0]["memory_bytes"] if devices else self.facts["host_memory_bytes"])

    @classmethod
    def load(cls, folder: Path) -> "Measured":
        """A machine's folder.

        Raises:
            FinemoeError: nothing was measured there, or a table is missing or not what the schema says.
        """
        path = folder / "machine.json"
        if not path.is_file():
            raise FinemoeError(
                f"{folder}: no machine was measured there; run `python -m finemoe.artifact.gpu_bench --out {folder}`"
            )
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FinemoeError(
                f"{path}: damaged ({error}); take it from the archive again, or measure in another folder"
            ) from error
        return cls(folder, facts, {name: read_table(name, folder) for name in TABLES})


def gpus_first(machines: list[Measured]) -> list[Measured]:
    """Machines with a GPU before the others, otherwise in the order given."""
    return sorted(machines, key=lambda one: not one.is_gpu)
