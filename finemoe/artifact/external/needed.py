"""Which external data a configuration of the pipeline needs, and whether its user may have them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finemoe.artifact.external.manifest import Entry, by_configuration, read_manifest, require_accepted, require_known
from finemoe.artifact.external.store import Store
from finemoe.paths import ROOT

# The data behind tables that are shipped under data/reference, and the tables that `finemoe.artifact.analysis` computes of them.
ROUTING_TABLES = {"gpt-oss-20b": ("gpt-oss-20b",), "mixtral-8x7b": ("mixtral-mmlu", "mixtral-mmlu-questions")}
SHIPPED_TABLES = {
    "gpt-oss-20b": [
        f"data/reference/{figure}_gpt_oss.csv"
        for figure in ("f4", "f14a", "f14b", "compare_systems", "simulated", "disagreement", "coverage", "statistics", "f15")
    ],
    "mixtral-8x7b": ["data/reference/f8_mixtral.csv", "data/reference/f9_mixtral.csv"],
}


def prompt_sets(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Prompt sets among external data, as `dataset_sources` names a set; what the configuration names itself comes first."""
    found = {
        name: {"dataset": f"{config['external']}/{entry.result}"}
        for name, entry in read_manifest().items()
        if entry.prompts is not None
    }
    return found | config["dataset_sources"]


def needed_entries(config: Mapping[str, Any]) -> list[Entry]:
    """The data that the figures of a configuration are made from, in the order of the list."""
    sources = prompt_sets(config)
    wanted = {sources[name]["dataset"] for name in config["datasets"] if name in sources} | {config["arrivals_file"]}
    names = {name for table in config["routing_tables"] for name in ROUTING_TABLES[table]}
    return [
        entry for entry in read_manifest().values() if entry.name in names or f"{config['external']}/{entry.result}" in wanted
    ]


def check_licences(config: Mapping[str, Any]) -> None:
    """Check that what a configuration needs is here, or that its licence is accepted.

    Raises:
        FinemoeError: a licence is unknown or not accepted; the message names it and how to accept it.
    """
    require_known(config["accept_licences"], read_manifest())
    store = Store(ROOT / Path(config["external"]), config["mirror"])
    missing = [entry for entry in needed_entries(config) if not store.result(entry).is_file()]
    require_accepted(missing, config["accept_licences"], by_configuration)
