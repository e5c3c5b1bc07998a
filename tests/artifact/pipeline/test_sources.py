from finemoe.artifact.pipeline.sources import sources_of
from finemoe.paths import ROOT


def test_modules_reached_through_imports_are_listed():
    assert sources_of("finemoe.files") == ["finemoe/errors.py", "finemoe/files.py"]


def test_bare_import_of_the_lazy_package_reaches_the_engine():
    assert {"finemoe/runtime/engine.py", "finemoe/runtime/link.py"} <= set(sources_of("quickstart"))


def test_figure_notebooks_do_not_depend_on_the_runtime():
    for name in ("t1", "f3a", "f3b", "f3c", "f4", "f8", "f9", "f14a", "f14b", "compare_systems", "training_curves", "claims"):
        sources = set(sources_of(name))
        assert {"finemoe/paths.py", "finemoe/artifact/plotting.py"} & sources, name  # a notebook that is gone reaches nothing
        assert not [path for path in sources if path.startswith("finemoe/runtime/")], name


def test_every_listed_file_exists_and_is_listed_once():
    reached = sources_of("run_offloading")
    assert len(reached) == len(set(reached))
    assert all((ROOT / path).is_file() for path in reached)


def test_a_missing_notebook_reaches_nothing():
    assert sources_of("no_such") == []
