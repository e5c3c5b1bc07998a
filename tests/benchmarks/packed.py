"""Packed experts beside bf16 ones over a paced link, at equal bytes of memory: `python -m tests.benchmarks.packed --out FILE`.

One miniature with wide experts, loaded in every format at the same `expert_memory` in bytes; the variants generate in turn, round
by round. A format's gain is the ratio of its time a token to bf16's of the same round. What unpacking itself takes is measured
alone, an expert at a time, and counted as often as experts were unpacked, prefills included, so that its share is an upper bound.
On the CPU a link that takes its time stands in for PCIe; unpacking is a single thread's.
"""

import argparse
import os
import platform
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import finemoe
from finemoe.intervals import bootstrap_median
from finemoe.models.shipped import NAMES
from finemoe.paths import ROOT
from finemoe.runtime.engine import Engine
from finemoe.runtime.loading import load_tokenizer
from finemoe.workloads import read_prompts
from tests.benchmarks.wide_miniatures import save_widened

_TIMES = 64  # as wide
FORMATS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "fp8": {"expert_format": "fp8"},
    "int8": {"expert_format": "int8"},
    "mxfp4": {"expert_format": "mxfp4"},
    "mxfp4 unpacked slots": {"expert_format": "mxfp4", "slots": "unpacked"},
    "fp8 unpacked slots": {"expert_format": "fp8", "slots": "unpacked"},
}
MARKS = ("<!-- speed: written by `python -m tests.benchmarks.packed --page` -->", "<!-- end of speed -->")
PAGE = ROOT / "docs" / "packed_experts.md"
_NEW_TOKENS = 8
_KEYS = ["model", "policy", "share", "load_ms"]


def measure(model: str, policy: str, share: float, load_ms: float, formats: list[str], rounds: int) -> pd.DataFrame:
    """Rows (model, policy, share, load_ms, round, format, tpot_s, unpack_share, hit_rate, bytes_per_token, expert_bytes).

    Args:
        share: of all experts' bf16 bytes, what each format gets for its slots and rooms; load_ms: of a bf16 expert over the link.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        save_widened(model, _TIMES, Path(folder))
        tokenizer = load_tokenizer(folder)
        prompts = [tokenizer(text, return_tensors="pt") for text in [row["prompt"] for row in read_prompts("questions", limit=3)]]
        one_bytes = _expert_bytes(folder)
        link = f"paced:{one_bytes[0] / load_ms * 1e3:.0f}B/s"
        running = {}
        for name in formats:
            lm, engine = finemoe.load(folder, int(share * one_bytes[1]), policy, link=link, **FORMATS[name])
            stack.enter_context(engine)
            running[name] = lm, engine
            _generate(lm, engine, prompts)  # caches and kernels are warm, and a policy has learned
        for number in range(rounds):
            for name, (lm, engine) in running.items():
                found = _generate(lm, engine, prompts)
                rows.append(
                    {"model": model, "policy": policy, "share": share, "load_ms": load_ms, "round": number, "format": name}
                    | found
                )
    return pd.DataFrame(rows)


def _expert_bytes(folder: str) -> tuple[int, int]:
    """A bf16 expert's bytes, and all of theirs."""
    _, engine = finemoe.load(folder, 1.0, "on-demand")
    with engine:
        records = engine.records
        return records.record_bytes, records.record_bytes * records.num_records


def _generate(lm: Any, engine: Engine, prompts: list[Any]) -> dict[str, float]:
    engine.reset_counters()
    unpacker = engine.parts.unpacker
    before = unpacker.num_unpacked if unpacker else 0
    for prompt in prompts:
        lm.generate(**prompt, max_new_tokens=_NEW_TOKENS, min_new_tokens=_NEW_TOKENS, do_sample=False)
    report = engine.report()
    num_tokens = _NEW_TOKENS * len(prompts)
    unpacked = (unpacker.num_unpacked - before) / num_tokens if unpacker else 0.0
    return {
        "tpot_s": report.tpot_s,
        "unpacked_per_token": unpacked,
        "unpack_s": _unpack_s(engine) if unpacker else 0.0,
        "hit_rate": report.hit_rate,
        "moved_bytes_per_token": (report.demand_bytes + report.prefetched_bytes) / num_tokens,
        "expert_bytes": engine.records.record_bytes,
        "memory_bytes": engine.expert_memory_bytes,
    }


def _unpack_s(engine: Engine) -> float:
    """Median seconds in which one expert is unpacked, its record read from memory that no cache holds."""
    layout = engine.records.layouts[0]
    assert layout.packing is not None
    room = torch.empty(layout.packing.weights.nbytes, dtype=torch.uint8)
    weights, taken = layout.packing.weights.views(room, 0), []
    for expert in range(engine.records.counts[0]):
        packed = layout.views(engine.records.record(0, expert), expert)
        begin_s = time.perf_counter()
        layout.packing.unpack(packed, weights)
        taken.append(time.perf_counter() - begin_s)
    return sorted(taken)[len(taken) // 2]


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Each format's ratio to bf16 of the same round, median with its 95 % interval, and unpacking's share of its own time."""
    base = rows[rows.format == "bf16"].set_index([*_KEYS, "round"]).tpot_s
    found = []
    for (*key, name), part in rows.groupby([*_KEYS, "format"], sort=False):
        ratios = part.set_index([*_KEYS, "round"]).tpot_s / base
        ratio = bootstrap_median(ratios.dropna().to_numpy())
        unpack_share = (part.unpacked_per_token * part.unpack_s / part.tpot_s).median()
        found.append(
            dict(zip(_KEYS, key, strict=True))
            | {"format": name, "tpot_ms": part.tpot_s.median() * 1e3, "ratio": ratio.value, "low": ratio.low, "high": ratio.high}
            | {
                "unpack_share": unpack_share,
                "hit_rate": part.hit_rate.median(),
                "moved_mb_per_token": part.moved_bytes_per_token.median() / 1e6,
            }
            | {"expert_bytes": part.expert_bytes.iloc[0], "memory_bytes": part.memory_bytes.iloc[0]}
        )
    return pd.DataFrame(found)


def section(found: pd.DataFrame, rounds: int) -> str:
    """What a page says: the machine, and a line for each cell and format."""
    heads = ("model, policy", "memory / bf16 experts", "load of a bf16 expert", "experts in", "time per token / bf16", "ms")
    heads += ("hits", "MB moved per token", "unpacking, at most")
    lines = [
        f"Miniatures with experts {_TIMES} times as wide (2.4 MB in bf16 on mixtral-mini, 0.6 MB on qwen-mini), with the same",
        f"bytes of expert memory for each format, over a paced link; {rounds} rounds in turn on a {os.cpu_count()}-core",
        f"{platform.machine()} CPU, one thread. Times are those of a token after the first, divided by bf16's time in the same",
        "round: medians and 95 % intervals. At 5 ms an expert the link is the bottleneck.",
        "",
        f"| {' | '.join(heads)} |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in found.itertuples():
        ratio = "1" if row.format == "bf16" else f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]"
        numbers = f"{row.tpot_ms:.0f} | {row.hit_rate:.0%} | {row.moved_mb_per_token:.0f} | {row.unpack_share:.0%}"
        lines.append(f"| {row.model}, {row.policy} | {row.share:.0%} | {row.load_ms:g} ms | {row.format} | {ratio} | {numbers} |")
    return "\n".join(lines)


def write_page(table: str) -> None:
    """Put it between its marks on the page about packed experts."""
    page = PAGE.read_text(encoding="utf-8")
    before, begin, rest = page.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    assert end, f"{PAGE}: lacks the marks {MARKS}"
    PAGE.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--policies", nargs="+", default=["on-demand", "finemoe"])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5])
    parser.add_argument("--load-ms", nargs="+", type=float, default=[1.0, 5.0])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="every round's figures; added to what is there")
    parser.add_argument("--page", action="store_true", help="write the table into docs/packed_experts.md, too")
    given = parser.parse_args()
    cells = [(m, p, s, ms) for m in given.models for p in given.policies for s in given.shares for ms in given.load_ms]
    rows = pd.read_csv(given.out) if given.out.is_file() else pd.DataFrame()  # of earlier calls
    for cell in cells:
        rows = pd.concat([rows, measure(*cell, given.formats, given.rounds)])
        rows.to_csv(given.out, index=False, float_format="%.6g")
        print(summary(rows).tail(len(given.formats)).to_string(index=False), flush=True)
    if given.page:
        write_page(section(summary(rows), given.rounds))


if __name__ == "__main__":
    main()
