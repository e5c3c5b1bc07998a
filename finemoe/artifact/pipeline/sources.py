"""Which files a notebook's result depends on beside itself: every module of the package that its code reaches.

Snakemake sees only declared inputs, so the Snakefile declares these. They are found by reading the source, imports
inside functions included; nothing is imported.
"""

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from finemoe.artifact.pipeline.notebooks import notebook_named
from finemoe.paths import ROOT

_MODULE_NAME = re.compile(r"finemoe(\.\w+)+")


def sources_of(*starts: str) -> list[str]:
    """Package files behind notebooks (`f4`) or modules (`finemoe.artifact.miniatures.training`), relative to the root, sorted."""
    waiting = [path for start in starts for path in _start(start)]
    reached: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting.extend(_imports(path))
    return sorted(str(path.relative_to(ROOT)) for path in reached if path.suffix == ".py")


def _start(name: str) -> list[Path]:
    return _files(name) if name.startswith("finemoe.") else [notebook_named(name)]


@cache
def _imports(path: Path) -> tuple[Path, ...]:
    if not path.is_file():
        return ()
    tree = ast.parse(_code(path), filename=str(path))
    return tuple(file for name in _names(tree) for file in _files(name))


def _code(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = (cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
    lines = (line for cell in cells for line in "".join(cell["source"]).splitlines())
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def _names(tree: ast.AST) -> Iterator[str]:
    """Dotted names under `finemoe` that a tree mentions: imports, and strings that name a module (lazy imports)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if _is_module(name) else node.module for name in inner)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE_NAME.fullmatch(node.value):
            yield node.value


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _files(name: str) -> list[Path]:
    """The file of a module, and the `__init__` of every package on the way but the outermost, which is lazy."""
    parts = name.split(".")
    if parts[0] != "finemoe":
        return []
    if len(parts) == 1:
        return [ROOT / "finemoe" / "__init__.py"]
    folders = [ROOT.joinpath(*parts[:depth]) for depth in range(2, len(parts) + 1)]
    candidates = [folder / "__init__.py" for folder in folders] + [folders[-1].with_suffix(".py")]
    return [path for path in candidates if path.is_file()]
