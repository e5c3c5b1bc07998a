"""What the package's files may not become: too long, too knowing, or too curious about each other's insides."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import finemoe
from finemoe.policies import POLICIES

PACKAGE = Path(finemoe.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_ATTRIBUTES = 350, 25


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def attributes_of(kind: ast.ClassDef) -> set[str]:
    """What instances of a class hold: annotated in its body, or assigned to `self` in its methods."""
    fields = {item.target.id for item in kind.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)}
    return fields | {
        node.attr
        for method in kind.body
        if isinstance(method, ast.FunctionDef)
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value)
    }


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_names(tree: ast.Module) -> set[str]:
    """Private attributes and methods that a file's own classes define."""
    kinds = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    methods = {item.name for kind in kinds for item in kind.body if isinstance(item, ast.FunctionDef)}
    names = {node.id for kind in kinds for item in kind.body for node in ast.walk(item) if isinstance(node, ast.Name)}
    return {name for name in methods | names | {name for kind in kinds for name in attributes_of(kind)} if is_private(name)}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def foreign_privates(tree: ast.Module) -> Iterator[ast.Attribute]:
    """Where a file looks for a private attribute of something that is not `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_self(node.value):
            yield node


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_is_short(file):
    num_lines = sum(1 for _ in file.open(encoding="utf-8"))
    assert num_lines <= MOST_LINES


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_class_holds_little(file):
    kinds = [node for node in ast.walk(parsed(file)) if isinstance(node, ast.ClassDef)]
    counts = {kind.name: len(attributes_of(kind)) for kind in kinds}
    assert {name: count for name, count in counts.items() if count > MOST_ATTRIBUTES} == {}


def test_nobody_reads_another_files_privates():
    trees = {file: parsed(file) for file in FILES}
    privates = {file: private_names(tree) for file, tree in trees.items()}
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for file, tree in trees.items()
        for node in foreign_privates(tree)
        if node.attr not in privates[file] and any(node.attr in names for other, names in privates.items() if other != file)
    ]
    assert found == []


def test_nothing_is_patched():
    found = [file.name for file in FILES if "mock" in {name for node in ast.walk(parsed(file)) for name in imported(node)}]
    assert found == []


def imported(node: ast.AST) -> set[str]:
    """The parts of the names of modules that a statement imports."""
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
    return {part for name in names for part in name.split(".")}


def test_nobody_asks_which_system_it_has():
    """`type(x) is FineMoE`, `isinstance(x, FineMoE)`: what systems differ in is theirs to say."""
    systems = {policy.__name__ for policy in POLICIES.values()}
    found = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}: {ast.unparse(node)}"
        for file in FILES
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Compare | ast.Call)
        and {"type", "isinstance", "issubclass"} & names_in(node)
        and systems & names_in(node)
    ]
    assert found == []


def names_in(node: ast.AST) -> set[str]:
    return {item.id for item in ast.walk(node) if isinstance(item, ast.Name)}
