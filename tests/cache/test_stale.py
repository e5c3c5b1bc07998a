"""Machine code older than what it was made of is forgotten."""

import importlib
import inspect
import os
import pkgutil
import re
from types import ModuleType

import pytest
from numba.core.dispatcher import Dispatcher

import finemoe.cache
import finemoe.simulation
from finemoe.cache import state
from finemoe.stale_kernels import forget_stale_kernels

MODULES = [
    importlib.import_module(found.name)
    for package in (finemoe.cache, finemoe.simulation)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


def test_only_older_kernels_of_that_file_go(tmp_path):
    folder = tmp_path / "__pycache__"
    folder.mkdir()
    kernels = [folder / name for name in ("links.run-1.py311.nbi", "links.new-2.py311.nbi", "other.run-1.py311.nbi")]
    file, source = tmp_path / "links.py", tmp_path / "compiled.py"
    for path, seconds in zip([*kernels, file, source], (10, 30, 10, 5, 20), strict=True):
        path.write_text("")
        os.utime(path, (seconds, seconds))
    forget_stale_kernels(str(file), str(source))
    assert [path.exists() for path in kernels] == [False, True, True]


def kernels_of(module: ModuleType) -> list[Dispatcher]:
    return [value for value in vars(module).values() if isinstance(value, Dispatcher)]


def sources_of(module: ModuleType, found: set[str]) -> set[str]:
    """Modules of the functions that a module's own may take in, however far away."""
    for kernel in kernels_of(module):
        name = kernel.py_func.__module__
        if name not in found:
            found.add(name)
            sources_of(importlib.import_module(name), found)
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_source_of_functions_is_named(module):
    """And so is `cache.state`, whose constants kernels take in as well."""
    own = [kernel.py_func for kernel in kernels_of(module) if kernel.py_func.__module__ == module.__name__]
    if not own:
        return
    sources = sources_of(module, set()) - {module.__name__}
    if module is not state and any(name in vars(state) for function in own for name in function.__code__.co_names):
        sources.add(state.__name__)
    text = inspect.getsource(module)
    assert bool(sources) == ("forget_stale_kernels(__file__" in text)
    for source in sources:
        assert re.search(rf"^(_SOURCES|forget_stale).*\b{source.rpartition('.')[2]}s?\b", text, re.MULTILINE), source
