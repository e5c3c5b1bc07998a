"""docs/gallery.md: advice on public traces of real models, generated from the tables in data/reference/advice.

`python -m finemoe.artifact.advice.gallery` computes the tables of the available traces, then updates figures and page; with
`--from-tables` it only updates figures and page.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from finemoe.advice.advise import advise
from finemoe.advice.result import Advice
from finemoe.advice.sentences import amount, sentences
from finemoe.advice.systems import ORACLE, RESIDENT
from finemoe.artifact.advice.gallery_tables import Key, read_advice, write_advice
from finemoe.artifact.advice.html import svg
from finemoe.artifact.advice.memory_figures import hit_rate_figure, time_figure
from finemoe.artifact.advice.page import facts_of, sentence
from finemoe.artifact.advice.page_tables import milliseconds
from finemoe.artifact.advice.real_traces import NOT_SHOWN, REAL_TRACES, RealTrace, published_table
from finemoe.artifact.advice.tables import has_interval, rows_of
from finemoe.artifact.claims import pipe_table
from finemoe.artifact.plotting import STYLE, save_table
from finemoe.files import atomic_path, write_text
from finemoe.importers import read_trace
from finemoe.paths import DATA, ROOT

TABLES, PAGE, PICTURES = DATA / "reference" / "advice", ROOT / "docs" / "gallery.md", ROOT / "docs" / "gallery"
TESTBEDS = ("laptop-8gb", "rtx4090")
_PUBLISHED = "published.csv"
_GITHUB = "https://github.com"


def compute(folder: Path = TABLES) -> None:
    """Compute the tables; the tables of an unavailable trace are kept."""
    known = read_advice(folder) if (folder / "facts.json").is_file() else {}
    tables = {real.name: part for real in REAL_TRACES if len(part := _known_published(folder, real.name))}
    for real in REAL_TRACES:
        if not real.path().is_file():
            typer.echo(f"{real.name}: the trace is not available; its tables are kept")
            continue
        trace = read_trace(real.path(), None)
        for testbed in TESTBEDS:
            typer.echo(f"{real.name} on {testbed}")
            known[real.name, testbed] = advise(trace, model=real.model, hardware=testbed, **real.options)
        tables[real.name] = published_table(real, trace, known[real.name, TESTBEDS[0]])
    order = [(real.name, testbed) for real in REAL_TRACES for testbed in TESTBEDS if (real.name, testbed) in known]
    write_advice({key: known[key] for key in order}, folder)
    save_table(pd.concat([tables[real.name] for real in REAL_TRACES if real.name in tables]), folder / _PUBLISHED)


def pictures(found: Mapping[Key, Advice]) -> dict[str, bytes]:
    """The page's figures by file name: times and hit rates of every trace, on the first machine."""
    import matplotlib.pyplot as plt

    made = {}
    with plt.style.context(STYLE):
        for (trace, testbed), advice in found.items():
            if testbed != TESTBEDS[0]:
                continue
            for kind, draw in {"times": time_figure, "hit_rates": hit_rate_figure}.items():
                fig = draw(advice)
                made[f"{trace}-{kind}.svg"] = svg(fig)
                plt.close(fig)
    return made


def page(folder: Path = TABLES) -> str:
    """The page, generated from the tables."""
    return "\n".join(_page(read_advice(folder), pd.read_csv(folder / _PUBLISHED, keep_default_na=False, dtype=str)))


def _page(found: Mapping[Key, Advice], published: pd.DataFrame) -> Iterator[str]:
    yield "# Gallery: advice on public traces of real models\n"
    yield (
        "`python -m finemoe.artifact.advice.gallery` computes this page's tables (`data/reference/advice`) and makes the page "
        "from them. Times are virtual: each system is replayed on the recorded routing against a described machine "
        "(`data/hardware`). The traces are not part of this project; follow the links to their publishers.\n"
    )
    for real in REAL_TRACES:
        of_trace = {testbed: found[real.name, testbed] for testbed in TESTBEDS if (real.name, testbed) in found}
        if of_trace:
            yield from _section(real, of_trace, published[published.trace == real.name])
    yield "## Not shown\n"
    yield "\n".join(f"- {name}: {reason}" for name, reason in NOT_SHOWN.items()) + "\n"


def _section(real: RealTrace, found: Mapping[str, Advice], published: pd.DataFrame) -> Iterator[str]:
    yield f"## {real.title}\n"
    link = f"[{real.publisher}]({_GITHUB}/{real.publisher})"
    yield f"- Source: {link}, commit `{real.commit}`, `{real.files}`. Licence: {real.licence}."
    yield f"- Content: {real.content}"
    yield f"- {facts_of(next(iter(found.values())))[0]}\n"
    yield f"```\n{_command(real)}\n```\n"
    shown: set[str] = set()  # statements that hold on every machine are shown once
    for testbed, advice in found.items():
        yield f"### On {testbed}\n"
        yield f"{facts_of(advice)[-1]}.\n"
        yield from _lists(advice, shown)
    bands = "bands are 95 % intervals over requests, " if any(map(has_interval, found[TESTBEDS[0]].times)) else ""
    yield f"![Time per token over expert memory]({PICTURES.name}/{real.name}-times.svg)\n"
    yield f"Time per token on {TESTBEDS[0]}; {bands}the star is the recommendation, sizes in the hatched region do not fit.\n"
    yield f"![Hit rate over expert memory]({PICTURES.name}/{real.name}-hit_rates.svg)\n"
    yield "Hit rate of every eviction rule when experts are loaded on demand.\n"
    yield pipe_table(pd.DataFrame([_summary(testbed, advice) for testbed, advice in found.items()])) + "\n"
    if len(published):
        yield f"What the publisher reports (`{real.report}`) and what is computed here from the same trace:\n"
        yield pipe_table(published.drop(columns="trace").rename(columns={"difference": "definitions"})) + "\n"


def _lists(advice: Advice, shown: set[str]) -> Iterator[str]:
    """Sentences, then warnings, without those already in `shown`, to which they are added."""
    for title, texts in (("", sentences(advice)), ("Warnings:\n\n", [sentence(text) for text in advice.warnings])):
        new = [text for text in texts if text not in shown]
        shown.update(new)
        if new:
            yield title + "\n".join(f"- {text}" for text in new) + "\n"


def _summary(testbed: str, advice: Advice) -> dict[str, str]:
    """One row per machine: its recommendation and its bounds."""
    chosen = advice.recommendation
    if chosen is None:
        return {"machine": testbed, "recommended": "nothing fits"}
    ratios = rows_of(advice.prefetching, slots=chosen["slots"])
    return {
        "machine": testbed,
        "recommended": f"{chosen['system']}, {amount(advice, chosen['slots'])}",
        "ms per token": milliseconds(chosen["row"]),
        "best on demand, ms": f"{chosen['on_demand']['system']}: {milliseconds(chosen['on_demand'])}",
        "prefetching / on demand": _ratio(ratios[0]) if ratios else "-",
        "perfect predictor, ms": _limit(advice, ORACLE),
        "all resident, ms": _limit(advice, RESIDENT),
    }


def _ratio(row: Mapping[str, Any]) -> str:
    interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if has_interval(row) else ""
    return f"{row['ratio']:.3f}{interval}"


def _limit(advice: Advice, name: str) -> str:
    return f"{1e3 * advice.limits[name]:.2f}" if name in advice.limits else "-"


def _command(real: RealTrace) -> str:
    options = "".join(f" --{name.replace('_', '-')} {value}" for name, value in real.options.items())
    return f"finemoe advise {real.path().name} -m {real.model} --hardware {TESTBEDS[0]}{options} --page {real.name}.html"


def _known_published(folder: Path, name: str) -> pd.DataFrame:
    if not (folder / _PUBLISHED).is_file():
        return pd.DataFrame()
    table = pd.read_csv(folder / _PUBLISHED, keep_default_na=False, dtype=str)
    return table[table.trace == name]


def write_gallery(from_tables: Annotated[bool, typer.Option(help="update figures and page only")] = False) -> None:
    """Compute the tables, and update the figures and the page."""
    if not from_tables:
        compute()
    for name, content in pictures(read_advice(TABLES)).items():
        with atomic_path(PICTURES / name) as path:
            path.write_bytes(content)
    write_text(PAGE, page())


if __name__ == "__main__":
    typer.run(write_gallery)
