"""A report's totals in words, for a table."""

from typing import Any

import numpy as np

from finemoe.units import format_bytes


def rows_of(report: Any) -> list[tuple[str, str]]:
    """The totals of a `finemoe.report.Report` as (name, value with unit) pairs."""
    rows = [
        ("policy / eviction", f"{report.policy} / {report.eviction}"),
        ("expert memory", format_bytes(report.expert_memory_bytes)),
        ("hit rate", _hit_rate(report)),
        ("late / misses", f"{report.late} / {report.misses}"),
        ("recall at K", recall_text(report.recall_at_k)),
        ("loaded on demand", format_bytes(report.demand_bytes)),
        ("prefetched", f"{format_bytes(report.prefetched_bytes)}  ({format_bytes(report.wasted_bytes)} evicted unused)"),
        ("waited for weights", f"{report.stall_s:.3f} s"),
        ("TTFT", _seconds(report.ttft_s, report.num_prefills, "prefills", report.num_unknown_steps)),
        ("TPOT", _seconds(report.tpot_s, report.num_decode_steps, "decode steps", report.num_unknown_steps)),
    ]
    if report.num_unknown_steps:
        rows.append(("not timed", f"{report.num_unknown_steps} iterations, not known to be a prefill or a decode step alone"))
    if report.padding_accesses:
        padding = f"{report.padding_accesses} accesses, {format_bytes(report.padding_bytes)} loaded, not counted above"
        rows.append(("padding alone", padding))
    return rows + _draft_rows(report)


def _hit_rate(report: Any) -> str:
    return f"{report.hit_rate:.1%}  ({report.hits} of {report.accesses} accesses)" if report.accesses else "no accesses"


def recall_text(recall_at_k: float) -> str:
    """A recall in the form that every table uses."""
    return "no predictions" if np.isnan(recall_at_k) else f"{recall_at_k:.1%}"


def _draft_rows(report: Any) -> list[tuple[str, str]]:
    drafts, per_step = report.drafts, report.tokens_per_step
    if not drafts.num_steps:
        return []
    accepted = f"{drafts.num_accepted} of {drafts.num_drafts} accepted, {per_step:.2f} tokens a decode step"
    per_token = "" if np.isnan(report.tpot_s / per_step) else f", {report.tpot_s / per_step * 1e3:.2f} ms a token"
    rejected = f"{drafts.rejected_accesses} accesses, {format_bytes(drafts.rejected_bytes)} loaded, not counted above"
    return [("drafts", accepted + per_token), ("rejected alone", rejected)]


def _seconds(mean_s: float, count: int, of: str, num_unknown: int) -> str:
    if not count:
        return f"no {of}"
    if np.isnan(mean_s):
        return f"unknown  ({count} {of}, none timed)"
    return f"{mean_s * 1e3:.2f} ms  (mean of {'the timed ones among ' if num_unknown else ''}{count} {of})"
