"""Which files a notebook's result depends on in addition to the notebook: every module of the package that its code reaches.

Snakemake sees only declared inputs, so the Snakefile declares these. They are found by reading the source, imports inside
functions included; nothing is imported. Policies are an exception to "every module": the registry imports all of them, but a
result depends on those that its code names. A new policy therefore makes nothing stale until something runs it.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from finemoe.artifact.pipeline.notebooks import notebook_named
from finemoe.paths import ROOT

_MODULE_NAME = re.compile(r"finemoe(\.\w+)+")
_FACE = ROOT / "finemoe" / "__init__.py"  # imports its names on first use, each from its own module
_POLICIES = ROOT / "finemoe" / "policies" / "__init__.py"  # the registry


def sources_of(*starts: str, policies: Iterable[str] = ()) -> list[str]:
    """Files that notebooks (`f4`) or modules (`finemoe.artifact.miniatures.training`) depend on, relative to the root, sorted.

    Args:
        starts: names of notebooks or modules.
        policies: names of policies that run in addition to those named in the code, or `module:Class` of a file in the root.
    """
    reached = _reached([path for start in starts for path in _start(start)])
    if _POLICIES in reached:  # otherwise a policy's name in the code is a coincidence
        policies = {*policies, *(name for path in reached - {_POLICIES} for name in _named_policies(path))}
    reached |= _reached([path for name in policies for path in _policy(name)])
    return sorted(str(path.relative_to(ROOT)) for path in reached - {_POLICIES} if path.suffix == ".py")


def _reached(waiting: list[Path]) -> set[Path]:
    """These files and all files that their imports reach; the lazy `finemoe` and the registry contribute only names in use."""
    reached: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(_imports(path) if path not in (_FACE, _POLICIES) else ())
    return reached


def _start(name: str) -> list[Path]:
    return _files(name) if name.startswith("finemoe.") else [notebook_named(name)]


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    if not path.is_file():
        return ()
    tree = ast.parse(_code(path), filename=str(path))
    return tuple(file for name in _names(tree) for file in _files(name))


@cache
def _named_policies(path: Path) -> tuple[str, ...]:
    """Policies whose name appears as a string in a file's code."""
    strings = {node.value for node in ast.walk(ast.parse(_code(path))) if isinstance(node, ast.Constant)}
    return tuple(name for name in _known_policies() if name in strings)


@cache
def _known_policies() -> dict[str, str]:
    """The module of every registered policy, by policy name."""
    tree = ast.parse(_POLICIES.read_text(encoding="utf-8"))
    modules = {
        alias.name: node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module for alias in node.names
    }
    table = next(node.value for node in tree.body if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "POLICIES")
    entries = zip(table.keys, table.values, strict=True) if isinstance(table, ast.Dict) else ()
    return {ast.literal_eval(key): modules[ast.unparse(value)] for key, value in entries if key is not None}


def _policy(name: str) -> list[Path]:
    if name in _known_policies():
        return _files(_known_policies()[name])
    outside = ROOT.joinpath(*name.partition(":")[0].split(".")).with_suffix(".py")
    return [outside] if ":" in name and outside.is_file() else []


def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
    lines = (line for cell in cells for line in "".join(cell["source"]).splitlines())
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def _names(tree: ast.AST) -> Iterator[str]:
    """Dotted names under `finemoe` that a tree mentions: imports, names of the lazy `finemoe`, and strings that name a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (_home(name) or (name if _is_module(name) else node.module) for name in inner)
        elif isinstance(node, ast.Attribute) and (home := _home(ast.unparse(node))):
            yield home
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE_NAME.fullmatch(node.value):
            yield node.value


@cache
def _homes() -> dict[str, str]:
    """The module of every name that the lazy `finemoe` exports, by dotted name."""
    tree = ast.parse(_FACE.read_text(encoding="utf-8"))
    table = next(node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES")
    return {f"finemoe.{name}": place.partition(":")[0] for name, place in ast.literal_eval(table).items()}


def _home(name: str) -> str:
    return _homes().get(name, "")


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _files(name: str) -> list[Path]:
    """The file of a module, and the `__init__` of every package on the way except the outermost one, which is lazy."""
    parts = name.split(".")
    if parts[0] != "finemoe":
        return []
    if len(parts) == 1:
        return [ROOT / "finemoe" / "__init__.py"]
    folders = [ROOT.joinpath(*parts[:depth]) for depth in range(2, len(parts) + 1)]
    candidates = [folder / "__init__.py" for folder in folders] + [folders[-1].with_suffix(".py")]
    return [path for path in candidates if path.is_file()]
