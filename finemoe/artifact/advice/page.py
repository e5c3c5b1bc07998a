"""One self-contained HTML page of an advice: sentences, warnings, figures, all numbers, and how they were computed.

The page opens offline, can be printed, and has the same bytes for the same advice.
"""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt  # imported early, so that a missing library is reported before anything is computed

import finemoe
from finemoe.advice.result import Advice
from finemoe.advice.sentences import sentences
from finemoe.artifact.advice.figures import drawings
from finemoe.artifact.advice.html import bullets, definitions, document, heading, paragraph, picture
from finemoe.artifact.advice.page_tables import tables_of
from finemoe.artifact.plotting import STYLE
from finemoe.files import atomic_path
from finemoe.units import format_bytes

_DEFINITIONS = {
    "Expert memory": "cache slots for experts over all devices, each of the size of an expert; everything else of the "
    "model is resident.",
    "Hit rate": "share of the demanded experts that are in the cache when the gate has chosen them. The cache is cold "
    "at the start, so that the first use of an expert is a miss under every rule that loads on demand.",
    "Belady": "evicts the expert that is used again last, which needs the future; no rule that loads on demand hits more.",
    "Cliff": "the experts that one token uses in all layers. With fewer slots LRU evicts each of them before its next use.",
    "Knee": "the size at which the hit rate of the best rule that does not know the future is highest above the line "
    "between its ends.",
    "Recall": "K experts are named for a token that uses K experts of a layer; the share of the used ones among them.",
    "Interval": "95 %, from a bootstrap over requests; a trace of one request has none.",
}
_VIRTUAL_TIME = {
    "Virtual time": "every system is replayed on the recorded routing against a described machine: what it computes "
    "per second, what it reads from memory, and what its link moves. The model itself was not run.",
    "Time per token": "the mean time of a decode step, one request after the other.",
    "Perfect predictor": "names the right experts as many layers ahead as the prefetching systems look; it still has "
    "to move them over the link.",
}


def write_page(advice: Advice, title: str, path: Path, command: str | None = None) -> None:
    """Write the page, atomically.

    Args:
        advice: the advice.
        title: title of the page, such as the trace's name.
        path: path of the page.
        command: the command that made it; by default, a command that would.
    """
    text = page_text(advice, title, command)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def page_text(advice: Advice, title: str, command: str | None = None) -> str:
    """The page as HTML."""
    return document(f"Expert offloading advice: {title}", _parts(advice, title, command or _command(advice, title)))


def _parts(advice: Advice, title: str, command: str) -> Iterator[str]:
    yield f"<header>\n<h1>{escape(title)}</h1>"
    yield from (paragraph(line, "facts") for line in facts_of(advice))
    yield "</header>"
    yield heading("Advice")
    yield bullets(sentences(advice), "advice")
    if advice.warnings:
        yield f'<section class="warnings">\n{heading("Warnings")}\n{bullets(map(sentence, advice.warnings))}\n</section>'
    yield from _figures(advice)
    yield heading("All numbers")
    yield from tables_of(advice)
    if advice.left_out:
        yield heading("Systems left out")
        yield definitions({name: f"{reason}." for name, reason in advice.left_out.items()})
    if advice.notes:
        yield heading("Notes")
        yield bullets(map(sentence, advice.notes))
    yield heading("How this was computed")
    yield definitions(_DEFINITIONS if advice.machine is None else _VIRTUAL_TIME | _DEFINITIONS)
    yield f"<footer>\n{paragraph(f'finemoe {finemoe.__version__}')}\n<p><code>{escape(command)}</code></p>\n</footer>"


def facts_of(advice: Advice) -> list[str]:
    """Lines on the model and its sizes, the recording, and the machine."""
    facts, machine = advice.trace, advice.machine
    name = facts["model"] or "a model without a name"
    each = "" if facts["expert_bytes"] is None else f"; {format_bytes(facts['expert_bytes'])} an expert"
    total = "" if facts["all_experts_bytes"] is None else f", {format_bytes(facts['all_experts_bytes'])} all of them"
    sizes = f"{facts['layers']} layers x {facts['experts']} experts, {facts['top_k']} used by a token{each}{total}"
    requests = f"{facts['requests']:,} request{'s' * (facts['requests'] != 1)}"
    lines = [f"{name}: {sizes}", f"Trace: {requests}, {facts['tokens']:,} tokens, {facts['decode_steps']:,} of them decode steps"]
    return lines if machine is None else [*lines, f"Machine: {machine['testbed']}; {_room(machine)}"]


def sentence(text: str) -> str:
    """A clause as a sentence."""
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else text


def _room(machine: dict[str, Any]) -> str:
    devices = f"{machine['devices']} x " if machine["devices"] > 1 else ""
    return f"{devices}{format_bytes(machine['memory_bytes'])} of memory, {format_bytes(machine['room_bytes'])} of it for experts"


def _figures(advice: Advice) -> Iterator[str]:
    """Draw the figures in the project's style, then restore the previous style and close the figures."""
    with plt.style.context(STYLE):
        for drawing in drawings(advice):
            fig = drawing.draw(advice)
            yield heading(drawing.title)
            yield picture(fig, drawing.title, drawing.text)
            plt.close(fig)


def _command(advice: Advice, title: str) -> str:
    """The command line of such a page, as far as the advice determines it."""
    hardware = "" if advice.machine is None else " --hardware TESTBED"
    model = f" -m {advice.trace['model']}" if advice.trace["model"] else ""
    return f"finemoe advise {title}{model}{hardware} --page PAGE.html"
