"""The picture of the pipeline shows the Snakefile's rules."""

import pytest

from finemoe.artifact.docs.rulegraph import GRAPH, rule_edges, to_dot
from finemoe.artifact.pipeline.table import read_table

pytestmark = pytest.mark.timeout(300)  # Snakemake plans everything


def test_the_graph_is_the_snakefiles():
    assert GRAPH.read_text(encoding="utf-8") == to_dot(*rule_edges()), "run python -m finemoe.artifact.docs.rulegraph"


def test_every_notebook_is_drawn():
    text = GRAPH.with_suffix(".svg").read_text(encoding="utf-8")
    assert all(f">{name}</text>" in text for name in read_table())


def test_edges_that_follow_from_others_are_left_out():
    graph = to_dot(["a", "b", "c"], [("a", "b"), ("a", "c"), ("b", "c")])
    assert [line.strip() for line in graph.splitlines() if "->" in line] == ["a -> b;", "b -> c;"]
