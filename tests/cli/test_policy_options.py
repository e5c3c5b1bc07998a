"""`--option NAME=VALUE` on the command line."""

import json

import pytest
from typer.testing import CliRunner

from finemoe.cli import app
from finemoe.cli.policy_options import options_by_policy
from finemoe.errors import FinemoeError
from tests.simulation.golden import FILE as GOLDEN


def test_values_have_the_types_that_the_policy_declares():
    found = options_by_policy(
        [
            "semantic=false",
            "similarity-aware=yes",
            "collection_capacity=60",
            "least_gain=0.5",
            "warm=a/b",
            "predictor=speculative",
        ],
        ["finemoe", "moe-infinity", "finemoe-plus", "promoe"],
    )
    assert found == {
        "finemoe": {"semantic": False, "similarity_aware": True},
        "moe-infinity": {"collection_capacity": 60},
        "finemoe-plus": {"least_gain": 0.5, "warm": "a/b"},
        "promoe": {"predictor": "speculative"},
    }
    assert options_by_policy(["warm=none"], ["finemoe-plus"]) == {"finemoe-plus": {"warm": None}}


@pytest.mark.parametrize(
    ("text", "policies", "message"),
    [
        (
            "semantics=false",
            ["finemoe"],
            "policy 'finemoe' has no option 'semantics'; did you mean 'semantic'? known: semantic, ",
        ),
        ("semantic=perhaps", ["finemoe"], "--option semantic=perhaps: semantic takes true or false, not 'perhaps'"),
        ("collection_capacity=6.5", ["moe-infinity"], "collection_capacity takes a whole number, not '6.5'"),
        ("semantic", ["finemoe"], "--option semantic: write NAME=VALUE"),
        ("store_capacity=5", ["finemoe"], "this is an option of the command itself; write --store-capacity"),
        ("x=1", ["on-demand"], "policy 'on-demand' has no option 'x'; it has no options"),
        ("x=1", ["finemoe", "promoe"], "none of finemoe, promoe has an option 'x'; known: semantic, similarity_aware, predictor"),
    ],
)
def test_mistakes_are_named(text, policies, message):
    with pytest.raises(FinemoeError) as caught:
        options_by_policy([text], policies)
    assert message in str(caught.value)


def test_a_replay_takes_them():
    arguments = ["replay", str(GOLDEN), "--split", "--prefetch-distance", "2", "--json"]
    plain, without = (
        json.loads(CliRunner().invoke(app, [*arguments, *more]).stdout) for more in ([], ["--option", "semantic=false"])
    )
    assert without["policy_options"] == {"semantic": False}
    assert "policy_options" not in plain
    assert without["recall_at_k"] != plain["recall_at_k"]
    done = CliRunner().invoke(app, [*arguments, "--option", "predictor=learned"])
    assert "policy 'finemoe' has no option 'predictor'" in str(done.exception)


def test_a_policy_of_ones_own_takes_them(tmp_path, monkeypatch):
    (tmp_path / "mine_with_options.py").write_text(
        "from finemoe.policies.on_demand import OnDemand\n"
        "class Mine(OnDemand):\n"
        "    def __init__(self, setup, strength: int | None = None, *, name='x'):\n"
        "        super().__init__(setup)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    policy = "mine_with_options:Mine"
    assert options_by_policy(["strength=3", "name=y"], [policy]) == {policy: {"strength": 3, "name": "y"}}
