"""The time to first token of long prompts over paced links, streamed and not: `python -m finemoe.artifact.pipeline.long_prompts`.

The bar is max(bytes / link, compute): no executor can be faster than its link or its arithmetic. Compute is measured right
before, by the same model with every expert resident. The links are chosen such that loading what a prompt demands takes half as
long as compute, as long, and twice as long. Each engine starts with an empty cache and serves two prompts; the second finds what
the first has left. Interrupted runs continue where they stopped.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import typer

import finemoe
from finemoe.artifact.miniatures.widening import widen
from finemoe.artifact.pipeline.noise import busy_share, spread
from finemoe.artifact.pipeline.timing import paced_link
from finemoe.artifact.plotting import machine, save_table
from finemoe.artifact.progress import progress
from finemoe.artifact.prompts import load_prompts
from finemoe.errors import FinemoeError
from finemoe.models.layers import find_moe_layers
from finemoe.paths import DATA
from finemoe.runtime.loading import load_model, load_tokenizer
from finemoe.runtime.options import STREAM_PROMPTS_FROM

POLICIES = ("on-demand", "finemoe", "finemoe-plus")
LINKS = {"compute-bound": 0.5, "balanced": 1.0, "link-bound": 2.0}  # time to load what a prompt demands, over compute
EXPERT_MEMORIES, COMPARED_AT = (0.1, 0.25, 0.5), 0.25  # shares of all experts; prompts are also not streamed at one of them
_DATASET, _NUM_PROMPTS, _NUM_TRIALS = "questions", 2, 5


class Cell(NamedTuple):
    """What is measured: the columns that identify a row, but for round and prompt."""

    link: str
    expert_memory: float
    policy: str
    streaming: bool


class Subject:
    """A widened miniature twice: to be offloaded, and with every expert resident.

    Args:
        name: of the miniature. width: how many times as wide its experts become. num_tokens: length of each prompt.
    """

    def __init__(self, name: str, width: int, num_tokens: int) -> None:
        import torch

        tokens = load_tokenizer(name)("\n".join(load_prompts(_DATASET)["prompt"]), verbose=False)["input_ids"]
        if len(tokens) < _NUM_PROMPTS * num_tokens:
            raise FinemoeError(f"the prompts have {len(tokens)} tokens; num_tokens is at most {len(tokens) // _NUM_PROMPTS}")
        self.prompts = list(torch.tensor(tokens)[: _NUM_PROMPTS * num_tokens].view(_NUM_PROMPTS, 1, num_tokens))
        self.model, resident = (load_model(name)[0] for _ in range(2))
        for model in (self.model, resident):
            widen(model, width)
        self.num_experts = sum(layer.num_experts for layer in find_moe_layers(resident))
        self._resident, self._engine = resident, finemoe.offload(resident, 1.0, "no-offload")
        self.expected = [first_logits(resident, prompt) for prompt in self.prompts]

    def compute_s(self) -> float:
        """Time of the first prompt with every expert resident, in seconds."""
        begin_s = time.perf_counter()
        first_logits(self._resident, self.prompts[0])
        return time.perf_counter() - begin_s

    def demanded_bytes(self) -> int:
        """Bytes of the distinct experts that the first prompt demands, over all layers."""
        with finemoe.offload(self.model, 1.0, "on-demand") as engine:
            first_logits(self.model, self.prompts[0])
            return int(engine.report().accesses * engine.records.record_bytes)

    def close(self) -> None:
        """Give the resident model back."""
        self._engine.close()


def first_logits(model: Any, tokens: Any) -> Any:
    """The logits after a prompt, [1, V]; the keys and values are kept, as `generate` does."""
    import torch

    with torch.inference_mode():
        return model(tokens, use_cache=True, logits_to_keep=1).logits[:, -1]


def cells() -> Iterator[Cell]:
    """All cells, link by link."""
    for link in LINKS:
        for memory in EXPERT_MEMORIES:
            for policy in POLICIES:
                yield from (Cell(link, memory, policy, is_on) for is_on in ((True, False) if memory == COMPARED_AT else (True,)))


def measured(subject: Subject, cell: Cell, bytes_per_s: float) -> list[dict[str, Any]]:
    """Serve the prompts one after the other on one engine; one row per prompt.

    Raises:
        FinemoeError: logits differ from those of the model with every expert resident.
    """
    rows, compute_s = [], subject.compute_s()
    link, threshold = paced_link(bytes_per_s), STREAM_PROMPTS_FROM if cell.streaming else None
    with finemoe.offload(subject.model, cell.expert_memory, cell.policy, link=link, stream_prompts_from=threshold) as engine:
        for number, prompt in enumerate(subject.prompts):
            engine.reset_counters()
            logits = first_logits(subject.model, prompt)
            report = engine.report()
            if not (logits == subject.expected[number]).all():
                raise FinemoeError(f"{cell}: logits differ from those of the resident model; nothing more is written")
            moved, demanded = report.demand_bytes + report.prefetched_bytes, report.accesses * engine.records.record_bytes
            times = {"moved_bytes": moved, "link_s": moved / bytes_per_s, "compute_s": compute_s, "ttft_s": report.ttft_s}
            counts = {"hits": report.hits, "late": report.late, "misses": report.misses, "demanded_bytes": demanded}
            bar_s = max(times["link_s"], compute_s)
            rows.append({"prompt": number, **counts, **times, "stall_s": report.stall_s, "ratio": report.ttft_s / bar_s})
    return rows


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per cell and prompt: medians over rounds of times and ratio, and the ratio's spread."""
    by = [*Cell._fields, "prompt"]
    groups = table.groupby(by, sort=False)
    found = groups[["ttft_s", "link_s", "compute_s", "ratio", "busy"]].median()
    found["spread"] = groups["ratio"].agg(spread)
    found["rounds"] = groups.size()
    return found.reset_index()


def write_table(
    output: Annotated[Path, typer.Option()] = DATA / "reference" / "long_prompts_measured.csv",
    model: Annotated[str, typer.Option(help="a miniature")] = "qwen-mini",
    width: Annotated[int, typer.Option(help="how many times as wide its experts become", min=1)] = 8,
    num_tokens: Annotated[int, typer.Option(help="tokens of a prompt", min=2)] = 2000,
    rounds: Annotated[int, typer.Option(help="number of rounds, each of which measures every cell", min=1)] = 3,
    afresh: Annotated[bool, typer.Option("--afresh", help="measure everything again, also what the table has")] = False,
) -> None:
    """Measure every cell in every round, write after each, and print the medians."""
    rows: list[Any] = [] if afresh or not output.exists() else pd.read_csv(output).to_dict("records")
    subject = Subject(model, width, num_tokens)
    told = {"executor": "live, paced link", "machine": machine(), "model": model, "width": width, "prompt_tokens": num_tokens}
    told["num_experts"] = subject.num_experts
    if rows and {name: rows[0][name] for name in told} != told:
        raise FinemoeError(f"{output} was measured on {rows[0]['machine']}, or with other options; add --afresh to replace it")
    rates = {row["link"]: row["bytes_per_s"] for row in rows} or _rates(subject)
    done = {(row["round"], *(row[name] for name in Cell._fields)) for row in rows}
    turns = [(number, cell) for number in range(rounds) for cell in cells() if (number, *cell) not in done]
    for number, cell in progress(turns, "measuring", "cell"):
        found = measured(subject, cell, rates[cell.link])
        shared = told | {"round": number, "bytes_per_s": rates[cell.link], "busy": busy_share()}
        rows += [shared | cell._asdict() | row for row in found]
        save_table(pd.DataFrame(rows), output)
    subject.close()
    typer.echo(summary(pd.DataFrame(rows)).to_string(float_format="{:.3f}".format))


def _rates(subject: Subject) -> dict[str, int]:
    """The links, in bytes per second. Other work on the machine only slows trials down, so the fastest one counts."""
    compute_s, demanded = min(subject.compute_s() for _ in range(_NUM_TRIALS)), subject.demanded_bytes()
    return {name: round(demanded / (factor * compute_s)) for name, factor in LINKS.items()}


if __name__ == "__main__":
    typer.run(write_table)
