"""The picture of the pipeline in the documentation: which rule reads what another one makes.

`python -m finemoe.artifact.docs.rulegraph` writes docs/images/rulegraph.dot from the Snakefile and draws it with Graphviz' `dot`,
which the operating system's package manager installs. A test compares the .dot file with the Snakefile.
"""

import re
import subprocess
import sys
from pathlib import Path

from finemoe.artifact.pipeline.notebooks import known_notebooks
from finemoe.artifact.pipeline.table import read_table
from finemoe.errors import FinemoeError
from finemoe.paths import ROOT

GRAPH = ROOT / "docs" / "images" / "rulegraph.dot"
# Okabe and Ito's colours, lightened; folders of notebooks also differ by shape, so that a grey print can be read.
_LOOKS = {
    "stages": ("box", "#BFE0F2"),
    "figures": ("ellipse", "#FBE3B0"),
    "studies": ("hexagon", "#BFE5D8"),
    "tour": ("cds", "#F3D5E4"),
    "": ("note", "#E6E6E6"),
}


def rule_edges() -> tuple[list[str], list[tuple[str, str]]]:
    """The rules of the default target but the target itself, and who makes what whom reads, as Snakemake reports them.

    Raises:
        FinemoeError: Snakemake reports an error.
    """
    command = [sys.executable, "-m", "snakemake", "--rulegraph", "dot", "--forceall", "--cores", "1", "--nolock"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise FinemoeError(f"snakemake --rulegraph failed: {done.stderr.strip().splitlines()[-1]}")
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', done.stdout))
    edges = [(names[a], names[b]) for a, b in re.findall(r"(\d+) -> (\d+)", done.stdout)]
    return sorted(set(names.values()) - {"all"}), sorted(edge for edge in edges if "all" not in edge)


def to_dot(rules: list[str], edges: list[tuple[str, str]]) -> str:
    """The graph in Graphviz' language, from left to right; edges that follow from others are left out."""
    nodes = [f'  {rule} [shape={shape}, fillcolor="{colour}"];' for rule in rules for shape, colour in [_LOOKS[_folder(rule)]]]
    arrows = [f"  {a} -> {b};" for a, b in _reduced(edges)]
    head = [
        "digraph pipeline {",
        '  graph [rankdir=LR, ranksep=0.9, nodesep=0.09, bgcolor="white", margin=0.05];',
        '  node [style=filled, fontname="Helvetica", fontsize=11, penwidth=0.6, height=0.25, margin="0.08,0.02"];',
        '  edge [color="#777777", penwidth=0.7, arrowsize=0.5];',
    ]
    return "\n".join([*head, *nodes, *arrows, "}"]) + "\n"


def _folder(rule: str) -> str:
    entry = read_table().get(rule)
    return known_notebooks()[entry.notebook].parent.name if entry else ""


def _reduced(edges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The edges without those that a longer way makes superfluous."""
    follows: dict[str, set[str]] = {}
    for a, b in edges:
        follows.setdefault(a, set()).add(b)
    return [(a, b) for a, b in edges if not any(b in _reach(other, follows) for other in follows[a] - {b})]


def _reach(start: str, follows: dict[str, set[str]]) -> set[str]:
    waiting, found = [start], set[str]()
    while waiting:
        fresh = follows.get(waiting.pop(), set()) - found
        found |= fresh
        waiting.extend(fresh)
    return found


def write(graph: Path = GRAPH) -> None:
    """Write the .dot file and the .svg next to it.

    Raises:
        FinemoeError: Graphviz is not installed.
    """
    graph.write_text(to_dot(*rule_edges()), encoding="utf-8")
    try:
        subprocess.run(["dot", "-Tsvg", str(graph), "-o", str(graph.with_suffix(".svg"))], check=True)
    except FileNotFoundError as error:
        raise FinemoeError("no program `dot`: install Graphviz (apt install graphviz) to draw the graph") from error


if __name__ == "__main__":
    write()
