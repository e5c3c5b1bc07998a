import pytest

from finemoe.artifact.pipeline import sources
from finemoe.artifact.pipeline.sources import sources_of
from finemoe.errors import FinemoeError
from finemoe.paths import ROOT
from finemoe.policies import POLICIES


def test_modules_reached_through_imports_are_listed():
    assert sources_of("finemoe.files") == ["finemoe/errors.py", "finemoe/files.py"]


def test_names_of_the_lazy_package_reach_their_modules_and_no_others():
    quickstart, recording = set(sources_of("quickstart")), set(sources_of("profile_models"))
    assert {"finemoe/runtime/engine.py", "finemoe/runtime/link.py"} <= quickstart
    assert {"finemoe/__init__.py", "finemoe/runtime/recorder.py", "finemoe/traces.py"} <= recording
    assert not [path for path in recording if path.startswith(("finemoe/advice/", "finemoe/simulation/"))]


def test_figure_notebooks_do_not_depend_on_the_runtime():
    """Those of the tour do: without a trace they record one."""
    for name in ("t1", "f3a", "f3b", "f3c", "f4", "f8", "f9", "f14a", "f14b", "training_curves", "claims"):
        sources = set(sources_of(name))
        assert {"finemoe/paths.py", "finemoe/artifact/plotting.py"} & sources, name  # a notebook that is gone reaches nothing
        assert not [path for path in sources if path.startswith("finemoe/runtime/")], name


def test_every_listed_file_exists_and_is_listed_once():
    reached = sources_of("run_offloading")
    assert len(reached) == len(set(reached))
    assert all((ROOT / path).is_file() for path in reached)


def test_a_missing_notebook_is_one_line():
    with pytest.raises(FinemoeError, match="no such notebook"):
        sources_of("no_such")


def policy_files(*starts: str, **options) -> set[str]:
    names = (path.removeprefix("finemoe/policies/").removesuffix(".py") for path in sources_of(*starts, **options))
    return {name for name in names if name in {policy.replace("-", "_") for policy in POLICIES}}


def test_recording_depends_on_no_policy_that_its_code_does_not_name():
    """A new policy, a file and a line in the registry, leaves recordings as they are. The figures' palette names three."""
    assert policy_files("profile_models") == {"finemoe", "finemoe_plus", "on_demand"}
    assert "finemoe/policies/__init__.py" not in sources_of("profile_models")


def test_what_the_code_names_is_a_dependency():
    assert {"promoe", "moe_infinity", "finemoe_plus"} <= policy_files("simulate_testbed")


def test_what_the_configuration_names_is_a_dependency(tmp_path, monkeypatch):
    assert policy_files("profile_models", policies=["promoe"]) - policy_files("profile_models") == {"promoe"}
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    (tmp_path / "mine.py").write_text("x = 1\n")
    assert sources_of(policies=["mine:Mine"]) == ["mine.py"]
    assert sources_of(policies=["absent:Mine"]) == []
