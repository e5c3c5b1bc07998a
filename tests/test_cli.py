"""The command line: what it prints, as text and as JSON, and one clear line for a mistake."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import finemoe
from finemoe.cli import app
from finemoe.errors import FinemoeError
from finemoe.runtime.generation import refusals_in_one_line
from finemoe.simulation.cost import size_named
from finemoe.traces import RoutingTrace
from finemoe.units import format_bytes, parse_bytes
from tests.models.packed_configs import gpt_oss_20b, qwen3_30b_a3b, qwen3_30b_a3b_fp8
from tests.packed.gguf_files import Type, qwen3moe
from tests.simulation.golden import FILE as GOLDEN

pytestmark = pytest.mark.timeout(300)  # programs that load a model

run = CliRunner().invoke
SHORT = ["--max-new-tokens", "4", "--prompt", "User: Why is the sea salty?\nAssistant:"]


def test_run_prints_text_and_a_table_of_counters(tmp_path):
    timeline = tmp_path / "step.json"
    options = ["--host-memory", "1MiB", "--devices", "2", "--timeline", str(timeline)]
    done = run(app, ["run", "--model", "mixtral-mini", *SHORT, *options])
    assert done.exit_code == 0, done.output
    assert "Why is the sea salty?" in done.output
    for name in ("hit rate", "late / misses", "loaded on demand", "TTFT", "TPOT", "not part of TTFT"):
        assert name in done.output
    assert json.loads(timeline.read_text())["traceEvents"]


def test_run_as_json_is_valid_and_complete():
    done = run(app, ["run", "--model", "qwen-mini", "--policy", "on-demand", "--expert-memory", "0.5", "--json", *SHORT])
    found = json.loads(done.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert found["report"]["recall_at_k"] is None
    assert found["start_s"] > found["report"]["ttft_s"]  # loading and compiling are not in the time to the first token
    assert found["report"]["accesses"] == found["report"]["hits"] + found["report"]["misses"]
    assert len(found["report"]["layer_hits"]) == 24
    assert found["report"]["requests"][0]["num_decode_steps"] == 3


def test_record_and_info(tmp_path):
    trace = tmp_path / "routing.trace"
    done = run(app, ["record", "-m", "phi-mini", "-o", str(trace), "--limit", "10", "--max-new-tokens", "2", "--json"])
    assert done.exit_code == 0, done.output
    recorded = json.loads(done.stdout)
    described = json.loads(run(app, ["info", str(trace), "--json"]).stdout)
    assert recorded["rows"] == described["num_rows"]
    assert (described["num_layers"], described["num_experts"], described["top_k"]) == (32, 16, 2)
    options = ["--policy", "on-demand", "--expert-memory", "0.5"]
    replayed = json.loads(run(app, ["replay", str(trace), *options, "--json"]).stdout)
    assert replayed["accesses"] == replayed["hits"] + replayed["demand_experts"]
    table = run(app, ["replay", str(trace), *options, "--eviction", "belady"]).output
    assert "on-demand / belady" in table
    assert "hit rate" in table
    assert "no predictions" in table


def test_record_reads_the_prompts_from_the_column_named(tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"instruction": "What is a list?"}\n{"instruction": "Name three rivers."}\n')
    arguments = ["record", "-m", "mixtral-mini", "--dataset", str(tmp_path / "mine.jsonl"), "--max-new-tokens", "1", "--json"]
    done = run(app, [*arguments, "-o", str(tmp_path / "routing.trace"), "--column", "instruction"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["requests"] == 2
    assert "has no column 'prompt'" in str(run(app, [*arguments, "-o", str(tmp_path / "none.trace")]).exception)


def test_record_takes_prompts_instead_of_a_dataset(tmp_path):
    trace = tmp_path / "a.trace"
    arguments = ["record", "-m", "mixtral-mini", "-p", "Why?", "-p", "User: How?", "--max-new-tokens", "2", "-o", str(trace)]
    assert json.loads(run(app, [*arguments, "--json"]).stdout)["requests"] == 2
    assert RoutingTrace.load(trace).request_ids == ("prompt-0", "prompt-1")
    assert "give one of them" in str(run(app, [*arguments, "--dataset", "dialogues"]).exception)


def test_replay_of_several_systems_and_sizes():
    arguments = ["replay", str(GOLDEN), "--split", "--policy", "promoe", "--policy", "oracle", "--expert-memory", "0.25"]
    found = json.loads(run(app, [*arguments, "--expert-memory", "0.5", "--prefetch-distance", "2", "--json"]).stdout)
    assert [(one["policy"], one["expert_memory"]) for one in found] == [
        *(("promoe", 0.25), ("promoe", 0.5), ("oracle", 0.25), ("oracle", 0.5))
    ]
    assert found[1]["hits"] >= found[0]["hits"]
    table = run(app, [*arguments, "--prefetch-distance", "2"]).output
    assert table.count("hit rate [95 %]") == 1  # one table for all systems
    for part in ("promoe / lru", "oracle / belady", "2 requests, instant link; expert memory 25 % (6 of 24 experts)"):
        assert part in table


def names_in(value) -> set[str]:
    """Every key of a JSON value, at any depth."""
    if isinstance(value, dict):
        return set(value) | {name for item in value.values() for name in names_in(item)}
    return {name for item in value for name in names_in(item)} if isinstance(value, list) else set()


def test_json_says_bytes_only_of_bytes(tmp_path):
    """Without a model's sizes a replay counts experts, and its keys say so; with hardware they are bytes of that model's."""
    ids, probs = np.broadcast_to([0, 1], (3, 32, 2)), np.full((3, 32, 2), 0.5)
    trace = tmp_path / "a.trace"
    RoutingTrace.from_topk(ids, probs, [0, 3], 8).save(trace)
    arguments = ["replay", str(trace), "--policy", "on-demand", "--expert-memory", "0.25", "--json"]
    counted = json.loads(run(app, arguments).stdout)
    assert not [name for name in names_in(counted) if "bytes" in name]
    assert counted["demand_experts"] == sum(one["demand_experts"] for one in counted["requests"]) == 32 * 2
    assert counted["expert_memory_experts"] == 32 * 8 // 4
    weighed = json.loads(run(app, [*arguments, "--hardware", "a100-80gb"]).stdout)
    assert weighed["demand_bytes"] == 32 * 2 * size_named("mixtral-8x7b").expert_bytes
    assert {name for name in names_in(weighed) if name.endswith("_experts")} == set()


def test_one_request_has_no_interval(tmp_path):
    golden = RoutingTrace.load(GOLDEN)
    served = [number for number, split in enumerate(golden.splits) if split == "served"]
    known = [number for number, split in enumerate(golden.splits) if split == "history"]
    golden.select([*known, served[0]]).save(tmp_path / "one.trace")
    arguments = ["--compare", "--expert-memory", "0.4", "--prefetch-distance", "2"]
    one, several = (run(app, ["replay", str(path), *arguments]).stdout for path in (tmp_path / "one.trace", GOLDEN))
    assert "1 request, instant link" in one
    assert "one request: no intervals" in one
    assert "[" not in one
    assert f"{len(served)} requests, instant link" in several
    assert "hit rate [95 %]" in several
    for table in (one, several):
        assert "no predictions" in table
        assert "…" not in table  # nothing is cut off in 80 columns
    rows = json.loads(run(app, ["replay", str(tmp_path / "one.trace"), *arguments, "--json"]).stdout)
    assert {(row["num_requests"], row["low"], row["high"]) for row in rows} == {(1, None, None)}


def test_replay_compares_all_systems_and_draws(tmp_path):
    arguments = ["replay", str(GOLDEN), "--compare", "--expert-memory", "0.4", "--prefetch-distance", "2"]
    done = run(app, [*arguments, "--figure", str(tmp_path / "systems")])
    assert done.exit_code == 0, done.output
    assert {path.suffix for path in tmp_path.iterdir()} == {".pdf", ".png", ".csv"}
    for name in ("Mixtral-Offloading", "FineMoE", "Belady (on demand)", "evicted unused", "systems.pdf, .png, .csv"):
        assert name in done.output
    done = run(app, ["replay", str(GOLDEN), "--compare", "--json"])
    assert "left out: ProMoE (speculative), routers applied 3 ahead are not recorded" in done.stderr
    assert "ProMoE (speculative)" not in [row["system"] for row in json.loads(done.stdout)]


def test_replay_in_virtual_time(tmp_path):
    ids, probs = np.broadcast_to([0, 1], (3, 32, 2)), np.full((3, 32, 2), 0.5)
    RoutingTrace.from_topk(ids, probs, [0, 3], 8).save(tmp_path / "a.trace")
    table = run(
        app, ["replay", str(tmp_path / "a.trace"), "--hardware", "laptop-8gb", "--policy", "on-demand", "--expert-memory", "0.03"]
    ).output
    assert "TPOT" in table
    assert "3 decode steps" in table


def test_options_that_contradict_each_other_are_named():
    for arguments, message in [
        (["--split", "--history", "x.trace"], "give one of them"),
        (
            ["--compare", "--eviction", "lru"],
            "--compare replays every system with its own options and rule; leave out --eviction",
        ),
        (["--compare", "--policy", "promoe", "--option", "predictor=learned"], "leave out --option"),
        (["--figure", "x"], "--figure draws the result of --compare"),
    ]:
        done = run(app, ["replay", str(GOLDEN), *arguments])
        assert message in str(done.exception)


def test_info_on_a_model():
    found = json.loads(run(app, ["info", "mixtral-mini", "--json"]).stdout)
    assert (found["num_layers"], found["num_experts"], found["experts_per_token"]) == (32, 8, 2)
    assert found["expert_format"] == "bf16"
    assert found["expert_bytes"] == found["unpacked_expert_bytes"]
    assert 0 <= found["smallest_expert_memory_bytes"] - found["expert_bytes"] <= 2 * 256


BF16_OF_QWEN3 = 9_437_184 + 2 * 256  # on the CPU two parameters may begin anywhere in a line of the cache
ROOM_OF_QWEN3 = 9_437_184  # what is unpacked begins at a multiple of 64
ROOM_OF_GPT_OSS = 49_783_680 + 128 + 2 * 256  # biases are as in the file, and the last one fills no 256 bytes


@pytest.mark.parametrize(
    ("fields", "options", "expected"),
    [
        (gpt_oss_20b, [], ("mxfp4", 13_236_480, 13_236_480 + ROOM_OF_GPT_OSS, 120 * 13_236_480 + ROOM_OF_GPT_OSS)),
        (qwen3_30b_a3b_fp8, [], ("fp8", 4_719_744, 4_719_744 + ROOM_OF_QWEN3, 480 * 4_719_744 + ROOM_OF_QWEN3)),
        (
            qwen3_30b_a3b,
            ["--gguf", "Q4_K_M"],
            ("gguf Q4_K_M", 3_059_712, 3_059_712 + ROOM_OF_QWEN3, 480 * 3_059_712 + ROOM_OF_QWEN3),
        ),
        (qwen3_30b_a3b, [], ("bf16", 9_437_184, BF16_OF_QWEN3, 480 * BF16_OF_QWEN3)),
    ],
)
def test_info_names_the_format_and_the_memory_to_give(fields, options, expected, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(fields()))
    arguments = ["info", str(tmp_path / "config.json"), *options]
    found = json.loads(run(app, [*arguments, "--json"]).stdout)
    names = ("expert_format", "expert_bytes", "smallest_expert_memory_bytes", "recommended_expert_memory_bytes")
    assert tuple(found[name] for name in names) == expected
    assert 0 <= parse_bytes(found["recommended_expert_memory"]) - found["recommended_expert_memory_bytes"] < 0.01 * 2**30
    assert found["expert_share_of_bf16"] == round(found["expert_bytes"] / found["unpacked_expert_bytes"], 4)
    shown = run(app, arguments).output
    assert expected[0] in shown
    assert format_bytes(expected[1]) in shown


def test_info_on_a_gguf_file(tmp_path):
    file = qwen3moe(lambda name: Type.Q6_K if "down_exps" in name else Type.Q4_K if "_exps" in name else Type.F32).write(tmp_path)
    found = json.loads(run(app, ["info", str(file), "--json"]).stdout)
    of_folder = json.loads(run(app, ["info", str(file.parent), "--json"]).stdout)
    changing = {"machine_memory_bytes", "largest_expert_memory_bytes", "largest_context", "host_memory_bytes"}  # free memory
    assert {name: of_folder[name] for name in of_folder.keys() - changing} == {
        name: found[name] for name in found.keys() - changing
    }
    assert (found["architecture"], found["expert_format"]) == ("qwen3moe", "gguf Q4_K, Q6_K")
    one = 256 * (2 * 144 + 210)  # rows of one block in each of three matrices
    assert found["layers"] == [{"layer": layer, "types": "Q4_K Q4_K Q6_K", "expert_bytes": one} for layer in range(2)]
    assert found["all_experts_bytes"] == 2 * found["num_experts"] * one
    _, engine = finemoe.load(file, found["smallest_expert_memory_bytes"], "on-demand", dtype="bfloat16")
    with engine:
        assert engine.expert_memory_bytes == found["smallest_expert_memory_bytes"]
    with pytest.raises(FinemoeError, match="at least"):
        finemoe.load(file, found["smallest_expert_memory_bytes"] - 1, "on-demand", dtype="bfloat16")


def test_info_refuses_what_cannot_be_loaded(tmp_path):
    told = {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(qwen3_30b_a3b() | told))
    refused = run(app, ["info", str(tmp_path / "config.json")])
    assert "its weights are quantised by awq: a checkpoint packs each expert separately" in str(refused.exception)
    assert "--gguf counts the experts of a model" in str(run(app, ["info", str(GOLDEN), "--gguf", "Q8_0"]).exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "-m", "mixtral-min", "-p", "x"],
            "unknown model 'mixtral-min'; did you mean 'mixtral-mini'? known: mixtral-mini",
        ),
        (["run", "-m", "mixtral-mini", "-p", "x", "--expert-memory", "3"], "a bare number is a share"),
        (
            ["run", "-m", "mixtral-mini", "-p", "x", "--policy", "fine"],
            "unknown policy 'fine'; did you mean 'finemoe'? known: deepspeed-inference, finemoe",
        ),
        (["run", "-m", "mixtral-mini", "-p", "x", "--store", "none.store"], "none.store: no such expert-map-store file"),
        (
            ["replay", str(GOLDEN), "--model", "mixtral-8x7b"],
            "--model names the model whose sizes count on --hardware; give both",
        ),
        (["replay", str(GOLDEN), "--hardware", "rtx3090", "--model", "nomodel"], "unknown model 'nomodel'; known: "),
        (["run", "-m", "mixtral-mini", "-p", "x", "--expert-memory", "25%"], "--expert-memory: '25%' is not a byte count"),
        (["run", "-m", "mixtral-mini", "-p", "x", "--host-memory", "lots"], "--host-memory: 'lots' is not a byte count"),
        (["run", "-m", "mixtral-mini", "-p", "a\udcff"], r"prompt 0 holds '\udcff' at character 1, which is not valid UTF-8"),
        (["replay", str(GOLDEN), "--expert-memory", "6GiB"], "without --hardware, memory is counted in experts; give a share"),
        (["replay", str(GOLDEN), "--compare", "--expert-memory", "6GiB"], "or add --hardware with one of 6x-rtx3090"),
        (["replay", "none.trace"], "none.trace: no such routing-trace file"),
        (["info", "none.trace"], "none.trace: no such routing-trace file"),
    ],
)
def test_mistakes_are_named(arguments, message):
    done = run(app, arguments)
    assert isinstance(done.exception, FinemoeError)
    assert message in str(done.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ["replay", str(GOLDEN), "--batch-size", "0"],
        ["replay", str(GOLDEN), "--devices", "0"],
        ["record", "-m", "mixtral-mini", "-o", "x.trace", "--batch-size", "-1"],
        ["record", "-m", "mixtral-mini", "-o", "x.trace", "--max-new-tokens", "0"],
        ["run", "-m", "mixtral-mini", "-p", "x", "--store-capacity", "0"],
    ],
)
def test_numbers_out_of_range_are_named(arguments):
    done = run(app, arguments)
    assert done.exit_code == 2
    assert f"for '{arguments[-2]}'" in done.output


def test_what_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("finemoe.runtime.loading.load_model", lambda _: pytest.fail("the model was loaded"))
    done = run(app, ["record", "-m", "mixtral-mini", "-o", str(tmp_path)])
    assert "is a folder; name a file to write" in str(done.exception)
    (tmp_path / "file").touch()
    done = run(app, ["replay", str(GOLDEN), "--compare", "--figure", str(tmp_path / "file" / "x")])
    assert "cannot be written" in str(done.exception)


def test_info_knows_a_trace_by_its_content(tmp_path):
    RoutingTrace.load(GOLDEN).save(tmp_path / "routing.bin")
    assert json.loads(run(app, ["info", str(tmp_path / "routing.bin"), "--json"]).stdout)["num_layers"] == 4
    (tmp_path / "config.json").write_text("[1]")
    assert "not a JSON object" in str(run(app, ["info", str(tmp_path / "config.json")]).exception)
    (tmp_path / "config.json").write_text('{"model_type": "mixtral", "num_local_experts": "x"}')
    assert "expected int, got str" in str(run(app, ["info", str(tmp_path / "config.json")]).exception)


def test_a_mistake_is_one_line_on_standard_error():
    done = subprocess.run([sys.executable, "-m", "finemoe", "info", "nowhere"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("finemoe: unknown model 'nowhere'")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("tier", ["", ", host_memory=1000"])
def test_an_engine_left_open_at_the_end_of_the_program_harms_nobody(tier):
    program = (
        "import finemoe, torch\n"
        "from tests.runtime.models import build, padded_batch\n"
        "model = build('mixtral')\n"
        f"engine = finemoe.offload(model, 0.3, link='paced:1MB/s', devices=2{tier})\n"
        "model.generate(**padded_batch(), max_new_tokens=3)\n"
        "import atexit, threading\n"
        "print('end')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_the_version_is_told():
    from importlib.metadata import version

    assert run(app, ["--version"]).output.strip() == version("finemoe")


def test_a_figures_name_may_have_its_suffix(tmp_path):
    options = ["--compare", "--expert-memory", "0.4", "--prefetch-distance", "2", "--figure", str(tmp_path / "systems.pdf")]
    assert run(app, ["replay", str(GOLDEN), *options]).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["systems.csv", "systems.pdf", "systems.png"]


def info(path, width: int = 80, encoding: str = "utf-8", to=subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": str(width), "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    return subprocess.run(
        [sys.executable, "-m", "finemoe", "info", str(path)],
        stdout=to,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_no_part_of_a_table_is_lost(tmp_path):
    """Not what looks like markup, not in a narrow terminal, not in one that lacks its characters."""
    name = "a [bold]model[/] of :smile: [/x]"
    path = tmp_path / "a.trace"
    dataclasses.replace(RoutingTrace.load(GOLDEN), model=name).save(path)
    assert f" {name} " in info(path).stdout
    narrow = [line.split("│")[1].strip() for line in info(path, width=20).stdout.splitlines() if "│" in line]
    assert "routers applied" in " ".join(narrow)
    dataclasses.replace(RoutingTrace.load(GOLDEN), model="modèle").save(path)
    done = info(path, encoding="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"mod\xe8le" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = info(GOLDEN, to=full)
    assert done.returncode == 1
    assert done.stderr.startswith("finemoe: [Errno 28] No space left on device; free some")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_text_that_finds_no_place_is_not_laid_at_generates_door(number):
    with pytest.raises(OSError, match="text") as caught, refusals_in_one_line(torch.nn.Linear(1, 1)):
        raise OSError(number, "text")
    assert caught.value.errno == number
