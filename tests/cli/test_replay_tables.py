"""`finemoe replay` with several systems, in virtual time, and as a figure."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from finemoe.cli import app
from finemoe.simulation.cost import size_named
from finemoe.traces import DECODE, PREFILL, RoutingTrace
from finemoe.units import format_bytes
from tests.simulation.golden import FILE as GOLDEN

pytestmark = pytest.mark.timeout(300)  # the clockwork may have to be compiled
run = CliRunner().invoke


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Two history and three served requests of Mixtral-8x7B's shape."""
    rng = np.random.default_rng(0)
    ids = np.sort(np.argsort(rng.random((15, 32, 8)), axis=-1)[:, :, :2], axis=-1)
    made = RoutingTrace.from_topk(ids, np.full(ids.shape, 0.5), [0, 3, 6, 9, 12, 15], 8)
    splits = ("history", "history", "served", "served", "served")
    path = tmp_path_factory.mktemp("replay") / "a.trace"
    phase = np.tile([PREFILL, DECODE, DECODE], 5).astype(np.uint8)
    replace(made, splits=splits, step=np.tile([0, 1, 2], 5), phase=phase).save(path)
    return path


MACHINE = ["--hardware", "6x-rtx3090", "--devices", "2"]


def test_every_system_on_one_machine_is_one_table(trace):
    done = run(app, ["replay", str(trace), "--compare", *MACHINE, "--expert-memory", "0.25"])
    assert done.exit_code == 0, done.output
    size = size_named("mixtral-8x7b")
    for part in (
        "3 requests in virtual time on 6 x RTX 3090, PCIe 4.0, Threadripper PRO 3955WX",
        f"mixtral-8x7b, {format_bytes(size.expert_bytes)} an expert; 2 devices",
        f"expert memory 25 %: {format_bytes(32 * size.expert_bytes)} on each of 2 devices (64 of 256 experts)",
        "TTFT, ms [95 %]",
        "oracle",
        "DeepSpeed-Inference",
    ):
        assert part in done.output
    assert done.stdout.count("TPOT, ms") == 1
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80


def test_json_of_a_comparison_names_machine_and_model(trace):
    rows = json.loads(run(app, ["replay", str(trace), "--compare", *MACHINE, "--json"]).stdout)
    assert {row["system"] for row in rows} >= {"FineMoE", "on-demand (LRU)", "oracle"}
    for row in rows:
        assert (row["model"], row["devices"], row["num_requests"]) == ("mixtral-8x7b", 2, 3)
        assert row["ttft_low"] <= row["ttft_s"] <= row["ttft_high"]
        assert row["tpot_low"] <= row["tpot_s"] <= row["tpot_high"]
        assert 0 <= row["demand_loads"] <= 1  # in experts, not in bytes
        assert row["expert_memory_bytes"] == 2 * row["expert_memory_bytes_per_device"]
    one = json.loads(run(app, ["replay", str(trace), *MACHINE, "--policy", "on-demand", "--json"]).stdout)
    assert (one["hardware"], one["model"]) == (rows[0]["hardware"], "mixtral-8x7b")
    assert one["tpot_s"] == pytest.approx(rows[0]["tpot_s"], rel=0.2)  # with all five requests


def test_bytes_of_memory_are_per_device(trace):
    done = run(app, ["replay", str(trace), *MACHINE, "--policy", "on-demand", "--policy", "finemoe", "--expert-memory", "6GB"])
    slots = 6_000_000_000 // size_named("mixtral-8x7b").expert_bytes
    assert f"({2 * slots} of 256 experts)" in done.output
    assert "on-demand / lru" in done.output
    assert "finemoe / finemoe" in done.output


def test_a_single_request_has_no_interval(trace, tmp_path):
    RoutingTrace.load(trace).select([0, 2]).save(tmp_path / "one.trace")
    done = run(app, ["replay", str(tmp_path / "one.trace"), "--compare", *MACHINE])
    assert "1 request in virtual time" in done.output
    assert "one request: no intervals" in done.output
    assert "[" not in done.stdout.split("experts)")[1]


def test_one_memory_size_is_drawn_as_bars(trace, monkeypatch, tmp_path):
    from finemoe.artifact.analysis import comparison_figure

    drawn = {}
    monkeypatch.setattr(comparison_figure, "save_figure", lambda fig, table, stem: drawn.update({stem.name: fig}))
    arguments = ["replay", str(GOLDEN), "--compare", "--prefetch-distance", "2"]
    for name, more in {"one": [], "two": ["--expert-memory", "0.25", "--expert-memory", "0.5"]}.items():
        assert run(app, [*arguments, *more, "--figure", str(tmp_path / name)]).exit_code == 0
    assert run(app, ["replay", str(trace), "--compare", *MACHINE, "--figure", str(tmp_path / "timed")]).exit_code == 0
    lines = {name: fig.axes[0].get_xlabel() for name, fig in drawn.items()}
    assert lines == {"one": "expert hit rate", "two": "expert memory (share of all experts)", "timed": "TPOT, ms"}
    bars = drawn["one"].axes[0]
    assert len(bars.patches) == len(bars.get_yticklabels()) >= 8


def test_a_misspelt_machine_or_model_is_refused_with_a_suggestion():
    for arguments, message in [
        (["--hardware", "rtx3091"], "no testbed 'rtx3091'; did you mean 'rtx3090'? known: "),
        (["--hardware", "rtx3090", "--model", "mixtral-8x7"], "unknown model 'mixtral-8x7'; did you mean 'mixtral-8x7b'?"),
        (["--policy", "promo"], "unknown policy 'promo'; did you mean 'promoe'?"),
        (["--eviction", "belad"], "unknown eviction rule 'belad'; did you mean 'belady'?"),
    ]:
        assert message in str(run(app, ["replay", str(GOLDEN), *arguments]).exception)
