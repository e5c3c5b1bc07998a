"""A machine's folder with tables written by hand, small enough to be computed on paper."""

import json
from pathlib import Path
from typing import Any

from finemoe.artifact.machines.foretold import write_foretold
from finemoe.artifact.machines.measured import Measured
from finemoe.artifact.machines.rows import write_table
from finemoe.artifact.machines.schema import (
    CHUNKED,
    IDLE,
    LAUNCHING,
    MAPPED,
    PREFETCHED,
    QUEUED,
    TABLES,
    Arenas,
    Baselines,
    Chunks,
    Copies,
    Correctness,
    Foretold,
    Launches,
    Overhead,
    Predictions,
    Requests,
    Skipped,
)

MODEL = "qwen1.5-moe-a2.7b"
MIB = 2**20


def copies(mode: str, chunk_bytes: int, in_flight: int, main_thread: str, bytes_per_s: float) -> Copies:
    return Copies(mode, 8 * chunk_bytes, chunk_bytes, in_flight, main_thread, bytes_per_s, 0.9 * bytes_per_s, 1.1 * bytes_per_s)


LINK = [
    copies(QUEUED, 16 * MIB, 8, IDLE, 10e9),  # the peak
    copies(CHUNKED, 2 * MIB, 1, IDLE, 6e9),
    copies(PREFETCHED, 4 * MIB, 2, IDLE, 9e9),
    copies(PREFETCHED, 4 * MIB, 2, LAUNCHING, 8e9),
    copies(CHUNKED, 16 * MIB, 2, LAUNCHING, 9.5e9),
    copies(MAPPED, 16 * MIB, 1, IDLE, 30e9),  # no copy, and so no peak
]


def request(policy: str, share: float, number: int, steps: int, tpot_s: float, hits: int, moved_bytes: int) -> Requests:
    """Of ten accesses a step; half of the bytes prefetched; 0.1 s of prefill."""
    accesses = 10 * steps
    counted = (accesses, hits, 0, accesses - hits, moved_bytes // 2, moved_bytes - moved_bytes // 2, 0)
    return Requests(MODEL, policy, share, 1000, number, 5, steps, 0.1, tpot_s, *counted, 0.01)


FULL: dict[str, list[Any]] = {
    "correctness": [Correctness("qwen-mini", "bfloat16", "finemoe", 0.25, 40, 0)],
    "arenas": [Arenas(24 << 30, 16 * MIB, 24 << 30, 6.0)],
    "copies": LINK,
    "launches": [Launches(MODEL, "experts", by_graph, 3e-4 / (1 + 49 * by_graph), 0.0, 1.0, True) for by_graph in (False, True)],
    "requests": [
        request("finemoe", 0.25, 0, 10, 0.02, 50, 1_000_000_000),
        request("finemoe", 0.25, 1, 30, 0.04, 240, 3_000_000_000),
        request("on-demand", 0.25, 0, 10, 0.03, 40, 2_600_000_000),
        request("on-demand", 0.5, 0, 10, 0.01, 80, 600_000_000),
    ],
    "chunks": [Chunks(**vars(request("finemoe", 0.25, 0, 10, 0.02, 50, 10**9)), chunk_bytes=2 * MIB, chunks_in_flight=2)],
    "baselines": [Baselines(MODEL, "accelerate", 0.25, 0, 2, 1.0, 1.05, 10**9)],
    "overhead": [
        *(Overhead(MODEL, "eager", number, seconds, True) for number, seconds in enumerate((0.010, 0.012, 0.011))),
        *(Overhead(MODEL, "finemoe", number, seconds, True) for number, seconds in enumerate((0.0110, 0.0121, 0.0143))),
        Overhead(MODEL, "grouped_mm", 0, 0.008, False),
    ],
    "predictions": [
        Predictions(MODEL, "finemoe", 0.25, 0.035, 0.028, -0.2, 0.028, 1.25, 0.2),
        Predictions(MODEL, "on-demand", 0.25, 0.03, 0.0315, 0.05, 0.026, 1.15, 0.65),
    ],
    "skipped": [Skipped("systems", f"{MODEL} 0.75 finemoe", "no time left")],
}
FORETOLD = [
    Foretold("one H100", MODEL, "finemoe", 0.25, 0.028, 0.800, 0.24),
    Foretold("one H100", MODEL, "on-demand", 0.25, 0.033, 0.410, 0.59),
    Foretold("one H100", MODEL, "promoe", 0.25, 0.020, 0.500, 0.50),
]


def make_machine(folder: Path, is_gpu: bool, tables: dict[str, list[Any]]) -> Measured:
    """Written and read again; every table that is not given is empty."""
    folder.mkdir(parents=True)
    title = "NVIDIA H100 80GB HBM3" if is_gpu else "2-core x86_64 CPU, pools of memory as devices"
    facts = {
        "title": title,
        "devices": [{"name": title, "memory_bytes": 80e9}] if is_gpu else [],
        "host_memory_bytes": 128 << 30,
        "torch": "2.11",
        "transformers": "5.17",
        "settings": {"models": [MODEL]},
        "calls": [{"began": "2026-01-01T00:00:00", "code": "abc", "parts": 9, "seconds": 510.0}],
    }
    (folder / "machine.json").write_text(json.dumps(facts))
    for name in TABLES:
        write_table(tables.get(name, []), name, folder)
    return Measured.load(folder)


def make_predictions(folder: Path) -> None:
    """What had been said of the GPU that `make_machine` makes."""
    write_foretold(FORETOLD, "h100", folder)
