"""Training text of the miniatures: generated conversations and the documentation of the running interpreter (DESIGN 7.1).

Conversations whose prompt is one of the embedded prompts are left out, so the served prompts were never seen in training.
"""

import ast
import sysconfig
from functools import cache
from pathlib import Path
from random import Random

from finemoe.artifact.miniatures import grammar
from finemoe.artifact.miniatures.prompts import make_prompts
from finemoe.workloads import GENRES

_MIN_DOCSTRING = 120


@cache
def held_out_prompts() -> frozenset[str]:
    """Every embedded prompt."""
    return frozenset(row["prompt"] for genre in GENRES for row in make_prompts(genre))


def conversations(count: int, seed: int) -> list[str]:
    """`count` conversations, alternating between the two genres, none of them with an embedded prompt."""
    random = Random(seed)
    texts: list[str] = []
    while len(texts) < count:
        text = grammar.conversation(random, GENRES[len(texts) % 2])
        if not any(text.startswith(prompt) for prompt in _candidates(text)):
            texts.append(text)
    return texts


def _candidates(text: str) -> list[str]:
    ends = [index + len("\nAssistant:") for index in range(len(text)) if text.startswith("\nAssistant:", index)]
    return [text[:end] for end in ends if text[:end] in held_out_prompts()]


def documentation() -> list[str]:
    """Docstrings of the running interpreter's standard library, in a fixed order; each appears once, in its longest form."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"test", "tests", "site-packages", "idlelib", "lib2to3"} & set(parts):
            continue
        for text in _docstrings(path):
            found.setdefault(text)
    return list(found)


def _docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return []
    nodes = (n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))
    texts = (ast.get_docstring(node) for node in nodes)
    return [text for text in texts if text and len(text) >= _MIN_DOCSTRING]


def training_texts(
    num_conversations: int = 24_000, documentation_repeats: int = 3, seed: int = 1
) -> tuple[list[str], dict[str, list[str]]]:
    """Shuffled training documents, and held-out ones by source: one in fifty, set aside before the documentation is repeated."""
    held_out: dict[str, list[str]] = {}
    training: list[str] = []
    sources = {
        "conversations": (conversations(num_conversations, seed), 1),
        "documentation": (documentation(), documentation_repeats),
    }
    for source, (texts, repeats) in sources.items():
        Random(seed).shuffle(texts)
        cut = len(texts) // 50
        held_out[source] = texts[:cut]
        training += texts[cut:] * repeats
    Random(seed).shuffle(training)
    return training, held_out
