"""Drafts and the expert cache: what a generated token costs when several are verified at once.

`python -m finemoe.artifact.pipeline.drafts` serves prompts with the miniatures on this machine: without drafts, with drafts from
the prompt, and with another miniature as an assistant, which is offloaded as well. It writes two tables. Counts come from engines
that search and load in line, so they are the same on every run; times come from a paced link.
"""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

import finemoe
from finemoe.artifact.pipeline.noise import busy_share
from finemoe.artifact.pipeline.timing import one_expert_bytes, paced_link
from finemoe.artifact.plotting import machine, save_table
from finemoe.artifact.progress import progress
from finemoe.artifact.prompts import load_prompts
from finemoe.errors import FinemoeError
from finemoe.models.shipped import NAMES
from finemoe.paths import DATA, MINIATURES
from finemoe.report import Report
from finemoe.runtime.loading import load_model

SYSTEMS = ("on-demand", "finemoe", "finemoe-plus")
ASSISTANTS = {"mixtral-mini": "phi-mini", "qwen-mini": "mixtral-mini", "phi-mini": "mixtral-mini"}  # they share a tokenizer
WAYS = ("no drafts", "prompt lookup", "assistant")
_NUM_DRAFTS = 3  # tokens that a step verifies at most


def served_rows(
    models: dict[str, tuple[Any, Any]],
    name: str,
    prompts: Sequence[str],
    num_tokens: int,
    system: str,
    expert_memory: float,
    **options: Any,
) -> list[dict[str, Any]]:
    """Serve the prompts in every way, on a cache that starts cold in each.

    Args:
        models: model and tokenizer of every miniature that is needed, by name.
        name: the miniature that generates. system: its policy; the assistant's as well. expert_memory, options: of both engines.
    Returns:
        A row per way: tokens generated after the first of each prompt, decode steps, tokens per step; and per token, experts
        demanded (rejected drafts' included), bytes over the link of the model and of the assistant, and seconds of decode steps.
    Raises:
        FinemoeError: the tokens differ from those of the model without an engine and without drafts.
    """
    model, tokenizer = models[name]
    assistant = models[ASSISTANTS[name]][0]
    expected = [_generated(model, tokenizer, prompt, num_tokens) for prompt in prompts]
    rows = []
    for way in WAYS:
        drafts = {"prompt lookup": {"prompt_lookup_num_tokens": _NUM_DRAFTS}, "assistant": {"assistant_model": assistant}}.get(
            way, {}
        )
        with ExitStack() as stack:
            engine = stack.enter_context(finemoe.offload(model, expert_memory, system, **options))
            other = None
            if way == "assistant":
                other = stack.enter_context(finemoe.offload(assistant, expert_memory, system, **options))
            found = [_generated(model, tokenizer, prompt, num_tokens, **drafts) for prompt in prompts]
            if found != expected:
                raise FinemoeError(f"{name} under {system}, {way}: tokens differ from those without an engine")
            num_generated = (
                sum(len(tokens) for tokens in found) - sum(_length(tokenizer, prompt) for prompt in prompts) - len(prompts)
            )
            report, drafting = engine.report(), None if other is None else other.report()
            rows.append({"way": way} | _costs(report, drafting, num_generated))
    return rows


def _generated(model: Any, tokenizer: Any, prompt: str, num_tokens: int, **drafts: Any) -> list[int]:
    inputs = tokenizer(prompt, return_tensors="pt")
    lengths = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
    if "assistant_model" in drafts:
        config = drafts["assistant_model"].generation_config
        config.num_assistant_tokens, config.num_assistant_tokens_schedule = _NUM_DRAFTS, "constant"
        config.assistant_confidence_threshold = 0.0
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        pad_token_id=tokenizer.pad_token_id,
        **lengths,
        **drafts,
    )
    tokens: list[int] = output[0].tolist()
    return tokens


def _length(tokenizer: Any, prompt: str) -> int:
    return len(tokenizer(prompt)["input_ids"])


def _costs(report: Report, drafting: Report | None, num_generated: int) -> dict[str, Any]:
    """Numbers per generated token; the prompts' experts and bytes are included, as they are the same in every way."""
    accesses = report.accesses + report.drafts.rejected_accesses
    return {
        "num_tokens": num_generated,
        "num_decode_steps": report.num_decode_steps,
        "tokens_per_step": report.tokens_per_step,
        "accepted": report.drafts.num_accepted / report.drafts.num_drafts if report.drafts.num_drafts else float("nan"),
        "hit_rate": report.hit_rate,
        "accesses_per_token": accesses / num_generated,
        "rejected_share": report.drafts.rejected_accesses / accesses,
        "bytes_per_token": _moved_bytes(report) / num_generated,
        "assistant_bytes_per_token": 0.0 if drafting is None else _moved_bytes(drafting) / num_generated,
        "decode_s_per_token": _decode_s(report) / num_generated,
        "assistant_s_per_token": 0.0 if drafting is None else _decode_s(drafting) / num_generated,
    }


def _decode_s(report: Report) -> float:
    return report.tpot_s * report.num_decode_steps


def _moved_bytes(report: Report) -> int:
    return report.demand_bytes + report.prefetched_bytes + report.drafts.rejected_bytes


def table_of(
    names: Sequence[str], num_served: int, num_tokens: int, expert_memory: float, load_s: float | None = None
) -> pd.DataFrame:
    """Every miniature and system in every way; over a link on which an expert takes `load_s`, if given, else in line."""
    prompts = list(load_prompts("dialogues").to_pandas().query("split == 'served'").head(num_served)["prompt"])
    models = {name: load_model(str(MINIATURES / name)) for name in {*names, *(ASSISTANTS[name] for name in names)}}
    rows: list[dict[str, Any]] = []
    for name, system in progress(list(itertools.product(names, SYSTEMS)), "drafts", "cell"):
        link = None if load_s is None else paced_link(one_expert_bytes(models[name][0]) / load_s)
        options = {"asynchronous": False} if link is None else {"link": link}
        cell = {"model": name, "assistant": ASSISTANTS[name], "system": system, "expert_memory": expert_memory}
        found = served_rows(models, name, prompts, num_tokens, system, expert_memory, **options)
        rows += [cell | row | ({} if link is None else {"busy": busy_share()}) for row in found]
    table = pd.DataFrame(rows)
    if load_s is None:
        return table.drop(columns=["decode_s_per_token", "assistant_s_per_token"]).assign(executor="measured, in line")
    return table.assign(load_ms=load_s * 1e3, executor="paced", machine=machine())


def write_tables(
    counts: Annotated[Path, typer.Option(help="where to write the counts")] = DATA / "reference" / "drafts_counted.csv",
    times: Annotated[Path, typer.Option(help="where to write the times")] = DATA / "reference" / "drafts_measured.csv",
    models: Annotated[list[str], typer.Option("--model")] = list(NAMES),  # noqa: B006
    expert_memory: Annotated[float, typer.Option(help="share of all routed experts")] = 0.25,
    num_served: Annotated[int, typer.Option(help="number of prompts", min=1)] = 6,
    num_tokens: Annotated[int, typer.Option(help="tokens generated for each prompt", min=2)] = 32,
    load_ms: Annotated[float, typer.Option(help="time to load an expert over the paced link, in ms; 0 measures no times")] = 1.0,
) -> None:
    """Count and time, and write both tables."""
    table = table_of(models, num_served, num_tokens, expert_memory)
    save_table(table, counts)
    typer.echo(table.drop(columns=["executor", "expert_memory"]).round(3).to_string(index=False))
    if load_ms:
        measured = table_of(models, min(num_served, 2), num_tokens, expert_memory, load_ms / 1e3)
        save_table(measured, times)
        typer.echo(
            measured[["model", "system", "way", "decode_s_per_token", "assistant_s_per_token", "busy"]].round(4).to_string()
        )


if __name__ == "__main__":
    typer.run(write_tables)
