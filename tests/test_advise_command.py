"""`finemoe advise` as a person meets it."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from finemoe.cli import app
from finemoe.errors import FinemoeError
from finemoe.simulation.synthetic import Recipe, synthetic_trace
from finemoe.traces import RoutingTrace

SIZES = (32, 8, 2)  # of Mixtral-8x7B
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def trace(tmp_path_factory):
    made = synthetic_trace(Recipe(0.2, 0.3, 0.6, 8), *SIZES, num_requests=8, tokens_per_request=10)
    path = tmp_path_factory.mktemp("advise") / "x.trace"
    made.arranged(np.arange(made.num_rows), made.offsets).save(path)  # without splits, which a CSV does not have
    return path


def called(*arguments) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["advise", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0
    return result.stdout, result.stderr


def test_tables_are_eighty_columns_wide(trace):
    out, err = called(trace, "--hardware", "rtx4090", "--expert-memory", "0.1", "--expert-memory", "0.25")
    assert max(map(len, out.splitlines()[1:])) <= 80  # but the path
    for part in (
        "Give the experts",
        "Cliff",
        "Knee",
        "Recall",
        "hit rate",
        "time per token",
        "sensitivity",
        "left out: Mixtral-Offloading",
    ):
        assert part in out
    assert err == ""  # progress is for terminals


def test_json_is_one_object_with_every_part(trace):
    out, _ = called(trace, "--expert-memory", "0.25", "--json")
    found = json.loads(out)
    assert found["trace"]["tokens"] == 80
    assert found["times"] == []
    assert {row["rule"] for row in found["hit_rates"]} >= {"lru", "belady", "next-use"}


def test_a_foreign_file_is_read_as_it_is(trace, tmp_path):
    """The same routing as a CSV of another project."""
    recorded = RoutingTrace.load(trace)
    with (tmp_path / "x.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["request", "token", "layer", "expert", "weight"])
        for request in range(recorded.num_requests):
            for token, row in enumerate(range(recorded.offsets[request], recorded.offsets[request + 1])):
                for layer in range(SIZES[0]):
                    weights = recorded.expert_probs[row, layer].astype(float)
                    for expert, weight in zip(recorded.expert_ids[row, layer], weights / weights.sum(), strict=True):
                        writer.writerow([request, token, layer, expert, weight])
    native, foreign = (json.loads(called(path, "--expert-memory", "0.25", "--json")[0]) for path in (trace, tmp_path / "x.csv"))
    assert foreign["hit_rates"] == native["hit_rates"]
    assert foreign["working_set"] == native["working_set"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--link", "24GB/s"], "--link is the rate of the link of --hardware"),
        (["--hardware", "rtx4090", "--link", "24GB"], "is not a rate"),
        (["--hardware", "nothing"], "no testbed 'nothing'"),
        (["--expert-memory", "7"], "a bare number is a share"),
        (["--model", "no-such-model"], "unknown model"),
    ],
)
def test_bad_input_is_one_line(trace, arguments, message):
    with pytest.raises(FinemoeError, match=message) as caught:
        called(trace, *arguments)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_trace_is_refused(tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(np.arange(100, dtype=np.uint8)))
    with pytest.raises(FinemoeError, match=r"x\.bin"):
        called(tmp_path / "x.bin")


def test_a_link_of_ones_own(trace):
    fast, slow = (
        json.loads(called(trace, "--hardware", "rtx4090", "--link", rate, "--expert-memory", "0.1", "--json")[0])
        for rate in ("50GB/s", "5GB/s")
    )
    times = [{row["system"]: row["tpot_s"] for row in found["times"]} for found in (fast, slow)]
    assert times[0]["on-demand (LRU)"] < times[1]["on-demand (LRU)"]
    assert (fast["machine"]["link_bytes_per_s"], slow["machine"]["link_bytes_per_s"]) == (50e9, 5e9)
