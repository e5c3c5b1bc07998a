import pytest

from finemoe.artifact.pipeline.config import CONFIG, check, load
from finemoe.errors import FinemoeError
from finemoe.policies import LIVE_POLICIES


@pytest.fixture
def config():
    return load()


def test_shipped_configurations_are_valid(config):
    check(config)
    smoke = load(CONFIG / "smoke.yaml")
    check(smoke)
    assert smoke["results"] != config["results"]
    assert smoke["figures"] != config["figures"]
    assert set(smoke["models"]) <= set(config["models"])


def test_overlay_merges_mappings_key_by_key(tmp_path, config):
    (tmp_path / "mine.yaml").write_text("prefetch_distance: {qwen-mini: 6}\nseed: 7\n")
    merged = load(tmp_path / "mine.yaml")
    assert merged == config | {"seed": 7, "prefetch_distance": config["prefetch_distance"] | {"qwen-mini": 6}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modles": []}, "unknown key 'modles'; did you mean 'models'"),
        ({"models": ["mixtrl-mini"]}, "unknown value 'mixtrl-mini' in models; did you mean 'mixtral-mini'"),
        ({"policies": ["finmoe"]}, "unknown value 'finmoe' in policies; did you mean 'finemoe'"),
        ({"prefetch_distance": {"qwen": 3}}, "unknown value 'qwen' in prefetch_distance"),
        ({"prefetch_distance": {"qwen-mini": 3}}, "prefetch_distance has no entry for 'mixtral-mini'"),
        ({"num_prompts": "many"}, "num_prompts: 'many' is not of type 'integer'"),
        ({"expert_memories": [1.5]}, "expert_memories: 1.5 is greater than the maximum of 1"),
        ({"datasets": ["question"]}, "unknown value 'question' in datasets; did you mean 'questions'"),
        (
            {"prefetch_distance": {"mixtral-mini": 100, "qwen-mini": 3, "phi-mini": 3}},
            "prefetch_distance of mixtral-mini is 100, but it has 32 MoE layers",
        ),
        ({"lookahead": [3, 1]}, "lookahead is [3, 1]; give its strides in ascending order"),
        ({"figures": "results"}, "figures and results are both 'results'"),
    ],
)
def test_mistakes_end_in_one_line_that_says_what_was_meant(config, change, message):
    with pytest.raises(FinemoeError) as caught:
        check(config | change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_malformed_files(tmp_path):
    with pytest.raises(FinemoeError, match="no such configuration file"):
        load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(FinemoeError, match="expected 'key: value' lines"):
        load(tmp_path / "list.yaml")
    (tmp_path / "open.yaml").write_text("models: [")
    with pytest.raises(FinemoeError, match=r"open\.yaml: not a YAML file"):
        load(tmp_path / "open.yaml")


def test_policies_are_those_of_the_registry(config):
    check(config | {"policies": [*LIVE_POLICIES, "finemoe.policies.on_demand:OnDemand"]})
    with pytest.raises(FinemoeError, match="config: unknown value 'oracle' in policies; known: deepspeed-inference, finemoe,"):
        check(config | {"policies": ["oracle"]})
    with pytest.raises(FinemoeError, match="config: policy 'nowhere:Mine' cannot be loaded from 'nowhere:Mine'"):
        check(config | {"policies": ["nowhere:Mine"]})


def test_every_setting_is_explained():
    lines = (CONFIG / "default.yaml").read_text().splitlines()
    settings = [line for line in lines if line and line[0].isalpha() and not line.startswith(("models:", "datasets:", "seed:"))]
    assert all("#" in line for line in settings)
