"""`finemoe plan`, and what `finemoe info` says of a machine."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from finemoe.cli import app
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from tests.planning.test_plan import FIELDS


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"})


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    """Of gpt-oss-20b's sizes."""
    path = tmp_path_factory.mktemp("trace") / "a.trace"
    synthetic_trace(Recipe(0.17, 0.38, 0.2, 12), 24, 32, 4, 6, 12).save(path)
    return str(path)


def test_a_plan_in_words_and_as_json(trace):
    arguments = ["plan", "gpt-oss-20b", "--hardware", "laptop-8gb", "--host-memory", "16GiB", "--trace", trace]
    found = json.loads(run(*arguments, "--json").stdout)
    shown = run(*arguments).stdout
    *lines, command = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert command == found["choices"][0]["command"]
    assert shlex.split(command)[:4] == ["finemoe", "run", "-m", "openai/gpt-oss-20b"]
    best = found["choices"][0]
    assert f"{best['slots']:,} of 768 experts" in " ".join(shown.split())
    assert {one["expert_format"] for one in found["choices"]} == {"mxfp4"}
    assert best["device_bytes"] + found["reserve_bytes"] <= found["memory_bytes"] == 8_000_000_000
    assert best["disk_bytes"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "gpt-oss-20"], "unknown model 'gpt-oss-20'; did you mean 'gpt-oss-20b'?"),
        (["plan", "gpt-oss-20b", "--hardware", "laptop"], "no testbed 'laptop'"),
        (["plan", "gpt-oss-20b", "--hardware", "laptop-8gb", "--memory", "8"], "gpt-oss-20b does not fit"),
        (["plan", "gpt-oss-20b", "--hardware", "laptop-8gb", "--memory", "8 gigs"], "memory: '8 gigs' is not a byte count"),
        (["plan", "qwen3-235b-a22b", "--hardware", "laptop-8gb"], "8.8 GiB too little"),
        (["plan", "gpt-oss-20b", "--hardware", "laptop-8gb", "--gguf", "Q4_K_M"], "no GGUF mix is known for experts"),
        (
            ["plan", "qwen3-30b-a3b", "--hardware", "laptop-8gb", "--expert-format", "int4"],
            "--expert-format is 'int4'; use 'fp8'",
        ),
    ],
)
def test_refusals_are_one_line(arguments, message):
    error = str(run(*arguments).exception)
    assert message in error
    assert "\n" not in error


def test_info_says_what_a_machine_holds_and_how_fast_it_is(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FIELDS), encoding="utf-8")
    arguments = ["info", str(tmp_path), "--hardware", "laptop-8gb"]
    found = json.loads(run(*arguments, "--json").stdout)
    best = json.loads(run("plan", *arguments[1:], "--expert-format", "none", "--json").stdout)["choices"][0]
    same = {"expert_memory_here_bytes": "expert_memory_bytes", "policy": "policy", "tokens_per_s": "tokens_per_s"}
    assert {name: found[name] for name in same} == {name: best[other] for name, other in same.items()}
    assert found["largest_expert_memory_bytes"] + found["machine_reserve_bytes"] <= 8_000_000_000
    shown = run(*arguments).stdout
    assert "6 layers x 16 experts, 2 per token" in shown
    assert "155.5 million, of which a token uses 23.4 million" in shown
    assert f"--policy {best['policy']}" in shown


def test_info_without_a_measured_machine_predicts_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = json.loads(run("info", "Qwen/Qwen1.5-MoE-A2.7B", "--json").stdout)
    assert "tokens_per_s" not in found
    assert found["kv_cache_bytes_per_1000_tokens"] == 1000 * 24 * 2 * 16 * 128 * 2
    assert found["other_weights_bytes"] == 2 * found["total_params"] - found["all_experts_bytes"]
    assert found["machine"].startswith("this machine: ")
    assert found["context"] == 4096


def test_info_names_the_largest_context_that_fits():
    found = json.loads(run("info", "gpt-oss-20b", "--hardware", "laptop-8gb", "--context", "200000", "--json").stdout)
    assert not found["fits"]
    most = found["largest_context"]
    arguments = ["info", "gpt-oss-20b", "--hardware", "laptop-8gb", "--context", "200000"]
    assert f"the largest context that fits is {most:,} tokens" in " ".join(run(*arguments).stdout.split())
    rest = found["machine_reserve_bytes"] + found["other_weights_bytes"] + found["smallest_expert_memory_bytes"]
    assert most == pytest.approx((8e9 - rest) / (found["kv_cache_bytes_per_1000_tokens"] / 1000), abs=2)
