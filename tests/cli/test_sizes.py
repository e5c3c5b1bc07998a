"""Sizes that `advise` and `replay` count: of GGUF files and mixes, of bits per weight; and policies in a comparison."""

import json

import pytest
from typer.testing import CliRunner

import finemoe
from finemoe.cli import app
from finemoe.cli.configs import sizes_for
from finemoe.errors import FinemoeError
from finemoe.simulation.cost import size_named
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from tests.packed.gguf_files import Type, qwen3moe

QWEN3 = synthetic_trace(Recipe(0.2, 0.3, 0.3, 8), 48, 128, 8, 6, 2)


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    path = tmp_path_factory.mktemp("trace") / "a.trace"
    QWEN3.save(path)
    return str(path)


def test_a_mix_and_a_file_give_sizes(tmp_path):
    file = qwen3moe(lambda name: Type.Q6_K if "down_exps" in name else Type.Q4_K if "_exps" in name else Type.F32).write(tmp_path)
    assert sizes_for("qwen3-30b-a3b", "Q4_K_M").expert_bytes == 768 * 2048 // 256 * (144 + 144 + 210)
    assert sizes_for(str(file), None).expert_bytes == 256 * (144 + 144 + 210)
    assert (sizes_for(None, None), sizes_for("qwen3-30b-a3b", None)) == (None, "qwen3-30b-a3b")
    with pytest.raises(FinemoeError, match="is a GGUF file; leave it out"):
        sizes_for(str(file), "Q4_K_M")
    with pytest.raises(FinemoeError, match="--gguf counts the experts of --model; give both"):
        sizes_for(None, "Q4_K_M")


def test_a_replay_counts_them(trace):
    machine = ["replay", trace, "--policy", "on-demand", "--hardware", "h100", "--json"]
    whole = json.loads(run(*machine).stdout)
    bits = json.loads(run(*machine, "--expert-bits", "4.25").stdout)
    mix = json.loads(run(*machine, "--model", "qwen3-30b-a3b", "--gguf", "Q4_K_M").stdout)
    assert whole["expert_bytes"] == 9_437_184
    assert bits["expert_bytes"] == round(9_437_184 / 16 * 4.25)
    assert mix["expert_bytes"] == 3_059_712
    assert whole["hits"] == bits["hits"] == mix["hits"]
    assert whole["tpot_s"] > mix["tpot_s"] > bits["tpot_s"]
    assert "give both" in str(run("replay", trace, "--expert-bits", "4").exception)
    other = run(*machine, "--model", "qwen1.5-moe-a2.7b", "--gguf", "Q4_K_M")
    assert "24 layers x 60 experts, the trace 48 layers x 128 experts" in str(other.exception)


def test_other_policies_are_compared_too(tmp_path):
    synthetic_trace(Recipe(0.2, 0.3, 0.3, 8), 4, 8, 2, 6, 4).save(tmp_path / "a.trace")
    rows = json.loads(run("replay", str(tmp_path / "a.trace"), "--compare", "--policy", "finemoe-plus", "--json").stdout)
    names = [row["system"] for row in rows]
    assert "finemoe-plus" in names
    assert len(names) == len(set(names)) > 5


def test_experts_that_exceed_host_memory_are_a_warning():
    small = synthetic_trace(Recipe(0.2, 0.3, 0.3, 8), 48, 128, 8, 1, 2)
    size = size_named("qwen3-30b-a3b")
    warnings = [finemoe.advise(small, size, host_memory=given, served_rows=2).warnings for given in ("32GiB", "64GiB")]
    expected = "all experts take 54.0 GiB, of which host memory does not hold 22.0 GiB"
    assert any(one.startswith(expected) for one in warnings[0])
    assert not any("host memory" in one for one in warnings[1])
