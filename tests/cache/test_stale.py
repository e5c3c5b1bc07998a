"""Machine code older than what it was made of is forgotten."""

import ast
import importlib
import inspect
import os
import pkgutil
import re
from types import FunctionType, ModuleType

import numpy as np
import pytest
from numba.core.dispatcher import Dispatcher

import finemoe.cache
import finemoe.maps
import finemoe.native
import finemoe.policies
import finemoe.runtime
import finemoe.simulation
from finemoe.stale_kernels import forget_stale_kernels

MODULES = [
    importlib.import_module(found.name)
    for package in (finemoe.cache, finemoe.maps, finemoe.native, finemoe.policies, finemoe.runtime, finemoe.simulation)
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


def sources_of_constants(module: ModuleType) -> set[str]:
    """Modules whose constants a module's own kernels take in, by name or as an attribute of the module."""
    homes = {here: home for here, (home, _) in imports_of(module).items()}
    used = {name for function in own_functions(module) for name in function.__code__.co_names}
    found = set()
    for name in used & homes.keys():
        value = vars(module)[name]
        if isinstance(value, ModuleType):
            found.add(value.__name__)
        elif isinstance(value, int | float | np.generic):
            found.add(homes[name])
    return {name for name in found if name.startswith("finemoe.")}


def imports_of(module: ModuleType) -> dict[str, tuple[str, str]]:
    """What it takes from others: by the name here, from where, and the name there."""
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: (node.module, alias.name) for node in imports for alias in node.names}


def own_functions(module: ModuleType) -> list[FunctionType]:
    return [kernel.py_func for kernel in kernels_of(module) if kernel.py_func.__module__ == module.__name__]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_source_of_functions_and_constants_is_named(module):
    if not own_functions(module):
        return
    sources = (sources_of(module, set()) | sources_of_constants(module)) - {module.__name__}
    text = inspect.getsource(module)
    assert bool(sources) == ("forget_stale_kernels(__file__" in text)
    names = {f"{home}.{there}": here for here, (home, there) in imports_of(module).items()}
    for source in sources:
        name = names.get(source, source.rpartition(".")[2])
        assert re.search(rf"^(_SOURCES|forget_stale).*\b{name}s?\b", text, re.MULTILINE), source
