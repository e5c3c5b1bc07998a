"""A configuration says which external data it needs, and Snakemake fetches them first."""

import inspect
import re
import subprocess
import sys

import pytest

from finemoe.artifact.analysis import gpt_oss
from finemoe.artifact.external.needed import ROUTING_TABLES, SHIPPED_TABLES, needed_entries, prompt_sets
from finemoe.artifact.pipeline.config import CONFIG, check, load
from finemoe.artifact.pipeline.filling import Filling
from finemoe.artifact.pipeline.table import read_table
from finemoe.errors import FinemoeError
from finemoe.paths import ROOT

ACCEPTED = ["CC-BY-4.0", "Apache-2.0", "CC-BY-SA-3.0", "MIT"]


@pytest.fixture
def config(tmp_path):
    """The configuration of external data, with an empty folder."""
    folder = str(tmp_path / "external")
    return load(CONFIG / "external.yaml") | {"external": folder, "arrivals_file": f"{folder}/arrivals/azure2023_conv.csv"}


def names(config) -> list[str]:
    return [entry.name for entry in needed_entries(config)]


def test_the_default_configuration_needs_none():
    assert names(load()) == names(load(CONFIG / "smoke.yaml")) == []


def test_prompts_arrivals_and_routing_are_needed_by_name(config):
    assert names(config) == ["azure-conv", "arena-hard", "dolly"]
    assert names(config | {"datasets": ["lmsys", "sharegpt"], "arrivals_file": ""}) == ["sharegpt", "lmsys"]
    more = names(config | {"routing_tables": ["mixtral-8x7b", "gpt-oss-20b"]})
    assert more[1:4] == ["gpt-oss-20b", "mixtral-mmlu", "mixtral-mmlu-questions"]


def test_a_set_of_ones_own_with_the_same_name_comes_first(config):
    own = config | {"dataset_sources": {"dolly": {"dataset": "owner/name", "column": "text"}}}
    assert prompt_sets(own)["dolly"] == {"dataset": "owner/name", "column": "text"}
    assert names(own) == ["azure-conv", "arena-hard"]


def test_a_licence_that_is_not_accepted_is_one_line_and_what_is_here_needs_none(config, tmp_path):
    with pytest.raises(FinemoeError) as caught:
        check(config | {"accept_licences": ["Apache-2.0"]})
    assert str(caught.value) == (
        "nothing was fetched: not accepted: CC-BY-4.0 (https://creativecommons.org/licenses/by/4.0/) of azure-conv; CC-BY-SA-3.0"
        " (https://creativecommons.org/licenses/by-sa/3.0/) of dolly. Read the terms, then accept them with"
        " --config accept_licences='[CC-BY-4.0, CC-BY-SA-3.0]', or the same in a configuration file"
    )
    check(config | {"accept_licences": ACCEPTED})
    for name in ("arrivals/azure2023_conv.csv", "converted/dolly.jsonl", "converted/arena-hard.jsonl"):
        (tmp_path / "external" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "external" / name).touch()
    check(config)
    with pytest.raises(FinemoeError, match=r"no licence 'MITT' among those of external data; did you mean 'MIT'\?"):
        check(config | {"accept_licences": ["MITT"]})


def test_tables_on_real_routing_are_those_that_the_analysis_makes():
    made = re.findall(r'^        "(\w+)": ', inspect.getsource(gpt_oss.reference_tables), re.MULTILINE)
    assert [f"data/reference/{figure}_gpt_oss.csv" for figure in made] == SHIPPED_TABLES["gpt-oss-20b"]
    assert set(SHIPPED_TABLES) == set(ROUTING_TABLES)
    assert all((ROOT / path).is_file() for paths in SHIPPED_TABLES.values() for path in paths)


def test_a_table_that_is_made_replaces_the_shipped_one_as_input_and_parameter():
    made = {path: path.replace("data/", "r/") for path in SHIPPED_TABLES["gpt-oss-20b"]}
    filling = Filling(load(), {"results": "r", "figures": "f", "miniatures": "m"}, {}, made)
    entry = read_table()["f4"]
    assert filling.paths(entry.inputs["reference"]) == ["r/reference/f4_gpt_oss.csv", "r/reference/compare_systems_gpt_oss.csv"]
    found = filling.parameters(entry, {}, {}, {})
    assert (found["gpt_oss_table"], found["gpt_oss_systems"]) == (
        "r/reference/f4_gpt_oss.csv",
        "r/reference/compare_systems_gpt_oss.csv",
    )


@pytest.mark.timeout(300)  # Snakemake plans everything
def test_snakemake_plans_fetching_before_figures(tmp_path):
    settings = [
        f"external={tmp_path}/external",
        f"arrivals_file={tmp_path}/external/arrivals/azure2023_conv.csv",
        f"accept_licences=[{','.join(ACCEPTED)}]",
        "routing_tables=[gpt-oss-20b]",
    ]
    command = [sys.executable, "-m", "snakemake", "--nolock", "--cores", "1", "--dry-run"]
    targets = ["results/external/online/qwen-mini.csv", "figures/external/f4.png"]
    done = subprocess.run(
        [*command, *targets, "--quiet", "host", "--configfile", str(CONFIG / "external.yaml"), "--config", *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = {line.split()[0] for line in done.stdout.splitlines() if len(line.split()) == 2 and line.split()[1].isdigit()}
    assert {"fetch_azure_conv", "fetch_arena_hard", "convert_arena_hard", "fetch_dolly", "convert_dolly"} <= jobs
    assert {"fetch_gpt_oss_20b", "convert_gpt_oss_20b", "gpt_oss_tables", "serve_online", "f4"} <= jobs
    assert not jobs & {"fetch_gsm8k", "mixtral_tables", "fetch_sharegpt"}
